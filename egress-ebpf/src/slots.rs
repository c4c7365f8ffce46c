//! Slots: taken from the free lists, and given back in two steps.
//!
//! Life ends in one sweep and one grace period: whoever swaps the state word out of a linked state
//! owns the removal of both index entries; the sweep frees the slot a second later, when no CPU can
//! still hold a reference (see `egress_common::slot`).

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_coarse_ns;
use egress_common::clock::Moment;
use egress_common::free::Links;
use egress_common::record::Cause;
use egress_common::slot::{SlotWord, State, advance, flag};
use egress_common::word::Word;

use crate::count;
use crate::family::Family;
use crate::flow::Found;
use crate::index::{self, ByEgress, ByInside};
use crate::lists;
use crate::record;
use crate::word::MapWord;

/// The coarse monotonic clock, ns: one tick of the kernel exact, and five times cheaper than the
/// fine one.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without preconditions.
    unsafe { bpf_ktime_get_coarse_ns() }
}

/// The state word of a slot.
#[inline(always)]
pub fn word_of<T>(slot: *mut T) -> MapWord {
    // SAFETY: slots are 8-aligned map values that begin with the word.
    unsafe { MapWord::first_of(slot) }
}

/// The slots' free-list links: a free slot was seen by nobody, so the field is free too.
struct SlotLinks<A>(core::marker::PhantomData<A>);

impl<A: Family> Links for SlotLinks<A> {
    #[inline(always)]
    fn next(&self, index: u32) -> Option<u32> {
        // SAFETY: a live map value.
        A::slot(index)
            .map(|slot| unsafe { core::ptr::read_volatile(&raw const (*slot).last_seen.0) })
    }
    #[inline(always)]
    fn set_next(&self, index: u32, next: u32) -> bool {
        match A::slot(index) {
            Some(slot) => {
                // SAFETY: a live map value.
                unsafe { core::ptr::write_volatile(&raw mut (*slot).last_seen.0, next) };
                true
            }
            None => false,
        }
    }
}

/// [`lists::search`] for a slot.
unsafe extern "C" fn search_slots<A: Family>(nth: u32, record: *mut c_void) -> i64 {
    let links = SlotLinks::<A>(core::marker::PhantomData);
    lists::search(nth, record, A::free_slots, &links)
}

/// Takes a free slot and makes it the caller's: `Opening`, with a new generation.
#[inline(always)]
pub fn obtain<A: Family>() -> Option<(u32, u32)> {
    let index = lists::take(search_slots::<A>)?;
    let slot = A::slot(index)?;
    // SAFETY: the slot is ours: it was on no list and in no index.
    unsafe {
        let generation = (*slot).generation.wrapping_add(1);
        let opening = SlotWord {
            state: State::Opening,
            scale: 0,
            flags: 0,
            generation,
        };
        core::ptr::write_volatile(slot.cast::<u64>(), opening.bits());
        Some((index, generation))
    }
}

/// Returns a slot that was never put into an index: nobody can hold a reference to it.
#[inline(always)]
pub fn discard<A: Family>(index: u32) {
    let Some(slot) = A::slot(index) else { return };
    let seen = SlotWord::from_bits(word_of(slot).load());
    free::<A>(index, seen);
}

/// Frees a slot that nobody can hold a reference to: the sweep calls it after the grace period.
#[inline(always)]
pub fn free<A: Family>(index: u32, seen: SlotWord) {
    let Some(slot) = A::slot(index) else { return };
    let word = word_of(slot);
    // SAFETY: a live map value that nobody refers to. Read again only if it stays on no list.
    let since = unsafe { (*slot).last_seen };
    if !advance(&word, seen, seen.with_state(State::Free)) {
        return;
    }
    if !lists::give(
        A::free_slots,
        &SlotLinks::<A>(core::marker::PhantomData),
        index,
    ) {
        // Not on a list: the sweep will try again. The list has written to where the time was.
        // SAFETY: as above.
        unsafe { (*slot).last_seen = since };
        advance(
            &word,
            seen.with_state(State::Free),
            seen.with_state(State::Unlinked),
        );
    }
}

/// Ends a linked flow: out of both indexes and, if it was counted, out of the count, for this cause. True for
/// the one caller that did it.
#[inline(always)]
pub fn unlink<A: Family>(found: &Found<A>, cause: Cause, now: u64) -> bool {
    let (slot, seen) = (found.slot, found.word);
    // Before the swap: an unlinked slot with an old time would be freed without its grace.
    // SAFETY: a live map value.
    unsafe { (*slot).last_seen = Moment::of(now) };
    if !advance(&word_of(slot), seen, seen.with_state(State::Unlinked)) {
        return false;
    }
    remove_entries(found);
    if seen.state.is_counted() {
        count::release::<A>(slot, now);
        record::closed::<A>(found.index, slot, seen.state, cause);
    }
    true
}

/// Takes both entries of a slot out of the indexes, where they are still its own.
#[inline(always)]
fn remove_entries<A: Family>(found: &Found<A>) {
    // SAFETY: a live map value; endpoints do not change while the generation lasts.
    let (flow, reverse) = unsafe { ((*found.slot).flow, (*found.slot).reverse()) };
    index::remove::<A, ByInside>(&flow, found.index);
    index::remove::<A, ByEgress>(&reverse, found.index);
}

/// Whether an index still refers to a slot that left it: then the entry is taken out now, and the slot
/// waits for another grace period. It should not be; but an entry that stayed behind would block its
/// endpoints or its port for ever.
#[inline(always)]
pub fn is_referred_to<A: Family>(found: &Found<A>, now: u64) -> bool {
    // SAFETY: a live map value; endpoints do not change while the generation lasts.
    let (flow, reverse) = unsafe { ((*found.slot).flow, (*found.slot).reverse()) };
    let mine = found.index;
    if !index::holds::<A, ByInside>(&flow, mine) && !index::holds::<A, ByEgress>(&reverse, mine) {
        return false;
    }
    remove_entries(found);
    // SAFETY: as above.
    unsafe { (*found.slot).last_seen = Moment::of(now) };
    true
}

/// Ends a flow whose endpoints open a new one: out of the index of flows and, if it was still counted,
/// out of the count. Its port rests on, so that nobody hits the origin's TIME_WAIT (CAP-7). True for
/// the one caller that did it.
#[inline(always)]
pub fn supersede<A: Family>(found: &Found<A>, now: u64) -> bool {
    let (slot, seen) = (found.slot, found.word);
    if seen.has(flag::ORPHAN) {
        return false;
    }
    if seen.state.is_counted() {
        // SAFETY: a live map value.
        unsafe { (*slot).last_seen = Moment::of(now) };
    }
    let over = seen
        .with_state(State::Closed)
        .with_flags(flag::EXPIRED | flag::ORPHAN);
    if !advance(&word_of(slot), seen, over) {
        return false;
    }
    // SAFETY: a live map value; endpoints do not change while the generation lasts.
    let flow = unsafe { (*slot).flow };
    index::remove::<A, ByInside>(&flow, found.index);
    if seen.state.is_counted() {
        count::release::<A>(slot, now);
        record::closed::<A>(found.index, slot, seen.state, Cause::Replaced);
    }
    true
}

/// Ends a flow's counting while late packets still pass and its port rests: from the word that was seen to one that
/// is closed, for this cause. True for the one caller that did it.
#[inline(always)]
pub fn close<A: Family>(
    found: &Found<A>,
    seen: SlotWord,
    closed: SlotWord,
    cause: Cause,
    now: u64,
) -> bool {
    let slot = found.slot;
    // SAFETY: a live map value.
    unsafe { (*slot).last_seen = Moment::of(now) };
    if !advance(&word_of(slot), seen, closed) {
        return false;
    }
    count::release::<A>(slot, now);
    record::closed::<A>(found.index, slot, seen.state, cause);
    true
}
