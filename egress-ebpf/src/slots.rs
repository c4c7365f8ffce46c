//! Slots: taken from the free lists, and given back in two steps.
//!
//! Life ends in one sweep and one grace period: whoever swaps the state word out of a linked state
//! owns the removal of both index entries; the sweep frees the slot a second later, when no CPU can
//! still hold a reference (see `egress_common::slot`).

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_coarse_ns, bpf_loop};
use egress_common::free::{self, FreeList, Links, Popped};
use egress_common::key::{FlowKey, Reference, ReverseKey};
use egress_common::slot::{SlotWord, State, advance, flag};
use egress_common::word::Word;

use crate::family::Family;
use crate::flow::Found;
use crate::word::MapWord;
use crate::{count, globals, word};

/// Steps of a search through the free lists: another list, or the same one again because another CPU
/// changed it.
const STEPS: u32 = 1_024;

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

/// The slots' free-list links.
struct SlotLinks<A>(core::marker::PhantomData<A>);

impl<A: Family> Links for SlotLinks<A> {
    #[inline(always)]
    fn next(&self, index: u32) -> Option<u32> {
        // SAFETY: a live map value.
        A::slot(index).map(|slot| unsafe { core::ptr::read_volatile(&raw const (*slot).next) })
    }
    #[inline(always)]
    fn set_next(&self, index: u32, next: u32) -> bool {
        match A::slot(index) {
            Some(slot) => {
                // SAFETY: a live map value.
                unsafe { core::ptr::write_volatile(&raw mut (*slot).next, next) };
                true
            }
            None => false,
        }
    }
}

/// A search through the free lists. Whole words: narrower fields would be set together by stores that
/// the verifier calls misaligned.
#[repr(C)]
pub struct Search {
    /// List to look at first.
    start: u64,
    /// Set if another CPU was in the way since the last round began: then there is another round.
    lost: u64,
    /// What was found.
    taken: u64,
}

/// Takes a record off this CPU's list, or off another one. `step` is [`search`] over those lists.
///
/// A `bpf_loop`, because the verifier would walk through every step of a loop over lists and attempts.
#[inline(always)]
pub fn take(step: unsafe extern "C" fn(u32, *mut c_void) -> i64) -> Option<u32> {
    let mut search = Search {
        // SAFETY: a helper without preconditions.
        start: unsafe { bpf_get_smp_processor_id() } as u64,
        lost: 0,
        taken: free::NONE as u64,
    };
    // SAFETY: the callback is given the record it expects, which outlives the loop.
    unsafe {
        bpf_loop(
            STEPS,
            step as *mut c_void,
            (&raw mut search).cast::<c_void>(),
            0,
        );
    }
    // SAFETY: written by the callback, which the compiler does not see.
    let taken = unsafe { core::ptr::read_volatile(&raw const search.taken) } as u32;
    (taken != free::NONE).then_some(taken)
}

/// One step of a search; 1 ends it. Nothing in the record grows with the steps, or the verifier would
/// walk through all of them.
#[inline(always)]
pub fn search(
    nth: u32,
    search: *mut c_void,
    head: impl Fn(u32) -> Option<*mut FreeList>,
    links: &impl Links,
) -> i64 {
    // SAFETY: the record that `take` handed to the loop.
    let search = unsafe { &mut *search.cast::<Search>() };
    let lists = globals::lists();
    if nth != 0 && free::home(nth, lists) == 0 {
        if search.lost == 0 {
            return 1;
        }
        search.lost = 0;
    }
    let list = free::home((search.start as u32).wrapping_add(nth), lists);
    let Some(free) = head(list) else {
        return 1;
    };
    // SAFETY: list heads are 8-aligned map values that begin with the word.
    let head_word = unsafe { MapWord::first_of(free) };
    match free::pop(&head_word, links) {
        Popped::Taken(index) => {
            // SAFETY: a live map value.
            unsafe { word::add(&raw mut (*free).available, u64::MAX) };
            search.taken = index as u64;
            1
        }
        Popped::Empty => 0,
        Popped::Contended => {
            search.lost = 1;
            0
        }
    }
}

/// [`search`] for a slot.
unsafe extern "C" fn search_slots<A: Family>(nth: u32, record: *mut c_void) -> i64 {
    let links = SlotLinks::<A>(core::marker::PhantomData);
    search(nth, record, A::free_slots, &links)
}

/// Returns a record to its home list; false if other CPUs were in the way too often.
#[inline(always)]
pub fn give(head: impl Fn(u32) -> Option<*mut FreeList>, links: &impl Links, index: u32) -> bool {
    let Some(free) = head(free::home(index, globals::lists())) else {
        return false;
    };
    // SAFETY: as in `take`.
    let head_word = unsafe { MapWord::first_of(free) };
    if free::push(&head_word, links, index) {
        // SAFETY: a live map value.
        unsafe { word::add(&raw mut (*free).available, 1) };
        return true;
    }
    false
}

/// Takes a free slot and makes it the caller's: `Opening`, with a new generation.
#[inline(always)]
pub fn obtain<A: Family>() -> Option<(u32, u32)> {
    let index = take(search_slots::<A>)?;
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
    if !advance(&word, seen, seen.with_state(State::Free)) {
        return;
    }
    if !give(
        A::free_slots,
        &SlotLinks::<A>(core::marker::PhantomData),
        index,
    ) {
        // Not on a list: the sweep will try again.
        advance(
            &word,
            seen.with_state(State::Free),
            seen.with_state(State::Unlinked),
        );
    }
}

/// Takes a flow's entry out of the index, if it is still this slot's: another flow with the same
/// endpoints may have been admitted since.
#[inline(always)]
pub fn remove_flow<A: Family>(key: &FlowKey<A>, mine: Reference) {
    if A::flow(key) == Some(mine) {
        A::remove_flow(key);
    }
}

/// Takes a port's reservation out of the index, if it is still this slot's.
#[inline(always)]
pub fn remove_reverse<A: Family>(key: &ReverseKey<A>, mine: Reference) {
    if A::reverse(key) == Some(mine) {
        A::remove_reverse(key);
    }
}

/// Ends a linked flow: out of both indexes and, if it was counted, out of the count. True for the
/// one caller that did it.
#[inline(always)]
pub fn unlink<A: Family>(found: &Found<A>, now: u64) -> bool {
    let (slot, seen) = (found.slot, found.word);
    // Before the swap: an unlinked slot with an old time would be freed without its grace.
    // SAFETY: a live map value.
    unsafe { (*slot).last_seen = now };
    if !advance(&word_of(slot), seen, seen.with_state(State::Unlinked)) {
        return false;
    }
    remove_entries(found);
    if seen.state.is_counted() {
        count::release::<A>(slot, now);
    }
    true
}

/// Takes both entries of a slot out of the indexes, where they are still its own.
#[inline(always)]
fn remove_entries<A: Family>(found: &Found<A>) {
    // SAFETY: a live map value; endpoints do not change while the generation lasts.
    let (flow, reverse) = unsafe { ((*found.slot).flow, (*found.slot).reverse()) };
    remove_flow(&flow, found.reference());
    remove_reverse(&reverse, found.reference());
}

/// Whether an index still refers to a slot that left it: then the entry is taken out now, and the slot
/// waits for another grace period. It should not be; but an entry that stayed behind would block its
/// endpoints or its port for ever.
#[inline(always)]
pub fn is_referred_to<A: Family>(found: &Found<A>, now: u64) -> bool {
    // SAFETY: a live map value; endpoints do not change while the generation lasts.
    let (flow, reverse) = unsafe { ((*found.slot).flow, (*found.slot).reverse()) };
    let mine = Some(found.reference());
    if A::flow(&flow) != mine && A::reverse(&reverse) != mine {
        return false;
    }
    remove_entries(found);
    // SAFETY: as above.
    unsafe { (*found.slot).last_seen = now };
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
        unsafe { (*slot).last_seen = now };
    }
    let over = seen
        .with_state(State::Closed)
        .with_flags(flag::EXPIRED | flag::ORPHAN);
    if !advance(&word_of(slot), seen, over) {
        return false;
    }
    // SAFETY: a live map value; endpoints do not change while the generation lasts.
    let flow = unsafe { (*slot).flow };
    remove_flow(&flow, found.reference());
    if seen.state.is_counted() {
        count::release::<A>(slot, now);
    }
    true
}

/// Ends a flow's counting while late packets still pass and its port rests. True for the one
/// caller that did it.
#[inline(always)]
pub fn close<A: Family>(
    slot: *mut egress_common::slot::Slot<A>,
    seen: SlotWord,
    closed: SlotWord,
    now: u64,
) -> bool {
    // SAFETY: a live map value.
    unsafe { (*slot).last_seen = now };
    if !advance(&word_of(slot), seen, closed) {
        return false;
    }
    count::release::<A>(slot, now);
    true
}
