//! Counters per (egress IP, origin, protocol): found or made, reserved, released.

use core::ffi::c_void;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::bpf_loop;
use egress_common::count::{self, Count, Reservation, Tally};
use egress_common::free::Links;
use egress_common::key::{OriginKey, Reference};
use egress_common::reason::Reason;
use egress_common::slot::Slot;
use egress_common::usage::{Area, Period};
use egress_common::word::Word;

use crate::family::Family;
use crate::lists;
use crate::usage;
use crate::word::{self, MapWord};

/// The counters' free-list links.
struct CountLinks<A>(core::marker::PhantomData<A>);

impl<A: Family> Links for CountLinks<A> {
    #[inline(always)]
    fn next(&self, index: u32) -> Option<u32> {
        // SAFETY: a live map value.
        A::counter(index).map(|count| unsafe { core::ptr::read_volatile(&raw const (*count).next) })
    }
    #[inline(always)]
    fn set_next(&self, index: u32, next: u32) -> bool {
        match A::counter(index) {
            Some(count) => {
                // SAFETY: a live map value.
                unsafe { core::ptr::write_volatile(&raw mut (*count).next, next) };
                true
            }
            None => false,
        }
    }
}

/// [`lists::search`] for a counter.
unsafe extern "C" fn search_counts<A: Family>(nth: u32, record: *mut c_void) -> i64 {
    let links = CountLinks::<A>(core::marker::PhantomData);
    lists::search(nth, record, A::free_counts, &links)
}

/// The counter of a key, made if there is none.
///
/// # Errors
/// `OriginTableFull`; `Contended` when another CPU is retiring this very record.
#[inline(always)]
fn obtain<A: Family>(key: &OriginKey<A>, now: u64) -> Result<Reference, Reason> {
    if let Some(reference) = find(key) {
        return Ok(reference);
    }
    let index = lists::take(search_counts::<A>).ok_or(Reason::OriginTableFull)?;
    let counter = A::counter(index).ok_or(Reason::OriginTableFull)?;
    // SAFETY: the record is ours: no index refers to this generation of it.
    let reference = unsafe {
        // First the time: the sweep retires a record that has a key and an old time.
        core::ptr::write_volatile(&raw mut (*counter).idle_since, now);
        // A barrier, for machines that may turn two stores round.
        MapWord::first_of(counter).add(0);
        core::ptr::write_volatile(&raw mut (*counter).key, *key);
        (*counter).usage = usage::begun(now);
        (*counter).refused = 0;
        (*counter).admitted = 0;
        Reference {
            index,
            generation: Tally::from_bits(MapWord::first_of(counter).load()).generation,
        }
    };
    match A::insert_origin(key, &reference, BPF_NOEXIST as u64) {
        Ok(()) => Ok(reference),
        Err(error) => {
            put_back(counter, index);
            if error == EEXIST {
                find(key).ok_or(Reason::Contended)
            } else {
                Err(Reason::OriginTableFull)
            }
        }
    }
}

/// The kernel's "file exists".
pub const EEXIST: i32 = -17;

/// The counter of a key, if it is one of this key.
#[inline(always)]
fn find<A: Family>(key: &OriginKey<A>) -> Option<Reference> {
    let reference = A::origin(key)?;
    let counter = A::counter(reference.index)?;
    // SAFETY: a live map value. A key that changes while it is read changes the generation too, and
    // the reservation then fails.
    let mine = unsafe {
        (*counter).key == *key
            && Tally::from_bits(MapWord::first_of(counter).load()).generation
                == reference.generation
    };
    mine.then_some(reference)
}

/// Takes a place for a new flow.
///
/// # Errors
/// `CapReached`, `OriginTableFull` or `Contended`.
#[inline(always)]
pub fn reserve<A: Family>(key: &OriginKey<A>, cap: u32, now: u64) -> Result<Reference, Reason> {
    // Once more if the sweep retired the counter between look-up and reservation: the key has, or gets,
    // another one.
    for _ in 0..2 {
        let reference = obtain(key, now)?;
        let outcome = attempt::<A>(reference, cap);
        match outcome as u32 {
            TAKEN => {
                usage::opened::<A>(reference.index, now, (outcome >> 32) as u32);
                return Ok(reference);
            }
            FULL => return Err(Reason::CapReached),
            STALE => {}
            _ => break,
        }
    }
    Err(Reason::Contended)
}

/// Attempts a reservation on a counter; one of the numbers below, and above it how many connections there are.
#[inline(always)]
fn attempt<A: Family>(reference: Reference, cap: u32) -> u64 {
    let mut attempt = Attempt {
        index: reference.index as u64,
        generation: reference.generation as u64,
        cap: cap as u64,
        result: CONTENDED as u64,
    };
    // SAFETY: the callback is given the record it expects, which outlives the loop.
    unsafe {
        bpf_loop(
            count::ATTEMPTS,
            attempt_once::<A> as *mut c_void,
            (&raw mut attempt).cast(),
            0,
        );
    }
    // SAFETY: written by the callback, which the compiler does not see.
    unsafe { core::ptr::read_volatile(&raw const attempt.result) }
}

/// A reservation under way; whole words, as in [`lists::Search`].
#[repr(C)]
struct Attempt {
    index: u64,
    generation: u64,
    cap: u64,
    /// As [`attempt`] returns it.
    result: u64,
}

const TAKEN: u32 = 0;
const FULL: u32 = 1;
const CONTENDED: u32 = 2;
const STALE: u32 = 3;

/// One attempt at a reservation; 1 ends them.
unsafe extern "C" fn attempt_once<A: Family>(_: u32, attempt: *mut c_void) -> i64 {
    // SAFETY: the record that `reserve` handed to the loop.
    let attempt = unsafe { &mut *attempt.cast::<Attempt>() };
    let Some(counter) = A::counter(attempt.index as u32) else {
        return 1;
    };
    // SAFETY: counters are 8-aligned map values that begin with the word.
    let tally = unsafe { MapWord::first_of(counter) };
    match count::reserve(&tally, attempt.generation as u32, attempt.cap as u32) {
        Reservation::Taken(active) => {
            attempt.result = (active as u64) << 32 | TAKEN as u64;
            // SAFETY: a live map value.
            unsafe { (*counter).capacity = attempt.cap as u32 };
            1
        }
        Reservation::Full => {
            attempt.result = FULL as u64;
            // SAFETY: a live map value.
            unsafe { (*counter).capacity = attempt.cap as u32 };
            1
        }
        Reservation::Stale => {
            attempt.result = STALE as u64;
            1
        }
        Reservation::Contended => 0,
    }
}

/// Counts an admitted flow.
#[inline(always)]
pub fn admitted<A: Family>(index: u32) {
    if let Some(counter) = A::counter(index) {
        // SAFETY: a live map value.
        unsafe { word::add(&raw mut (*counter).admitted, 1) };
    }
}

/// Counts a refusal because of this key's cap.
#[inline(always)]
pub fn refused<A: Family>(key: &OriginKey<A>) {
    if let Some(counter) = find(key).and_then(|reference| A::counter(reference.index)) {
        // SAFETY: a live map value.
        unsafe { word::add(&raw mut (*counter).refused, 1) };
    }
}

/// Gives back a place that was taken by [`reserve`] on the counter with this number.
#[inline(always)]
pub fn give_back<A: Family>(index: u32, now: u64) {
    let Some(counter) = A::counter(index) else {
        return;
    };
    // SAFETY: as in `attempt`, and a live map value. The time goes first: once the count is 0 the sweep
    // may retire a counter that was idle for long.
    let tally = unsafe {
        core::ptr::write_volatile(&raw mut (*counter).idle_since, now);
        MapWord::first_of(counter)
    };
    // Before the count is 0 and the counter perhaps another's.
    usage::closed::<A>(index, now);
    count::release(&tally);
}

/// Gives back the place of a flow.
#[inline(always)]
pub fn release<A: Family>(slot: *mut Slot<A>, now: u64) {
    // SAFETY: a live map value; the caller has just won the flow's end, so the field stands.
    give_back::<A>(unsafe { (*slot).count }, now);
}

/// Retires a counter nobody has held since `before`, and takes one that nobody has changed for long along to the period
/// that is; called by the sweep alone.
#[inline(always)]
pub fn retire<A: Family>(index: u32, before: u64, now: u64, today: Period) {
    let Some(counter) = A::counter(index) else {
        return;
    };
    // SAFETY: a live map value.
    let (key, seen, idle_since, tally) = unsafe {
        // First the key: see `obtain`. The count before the time: see `give_back`.
        let key = core::ptr::read_volatile(&raw const (*counter).key);
        let tally = MapWord::first_of(counter);
        let seen = Tally::from_bits(tally.load());
        let idle_since = core::ptr::read_volatile(&raw const (*counter).idle_since);
        (key, seen, idle_since, tally)
    };
    // A time of 0 is long ago, on a machine too that has not run for as long as that.
    let rests = idle_since != 0 && idle_since >= before;
    if key == OriginKey::default() {
        return;
    }
    if seen.active != 0 || rests {
        // SAFETY: a live map value.
        let words = unsafe { usage::words(counter) };
        if today.is_far_after(Area::from_bits(words.area.load()).period) {
            usage::touched::<A>(index, now);
        }
        return;
    }
    if !count::retire(&tally, seen.generation) {
        return;
    }
    // Ours now: the generation no longer matches what the index holds.
    A::remove_origin(&key);
    put_back(counter, index);
}

/// Puts a record that is the caller's on its list. If other CPUs are in the way too often, the sweep finds it as a
/// counter that nobody has held for long, and tries again.
#[inline(always)]
fn put_back<A: Family>(counter: *mut Count<A>, index: u32) {
    let links = CountLinks::<A>(core::marker::PhantomData);
    // SAFETY: a live map value that no index refers to. One on a list has no key: the sweep must not retire it.
    unsafe { core::ptr::write_volatile(&raw mut (*counter).key, OriginKey::default()) };
    if !lists::give(A::free_counts, &links, index) {
        // SAFETY: on no list, so still the caller's.
        unsafe {
            (*counter).idle_since = 0;
            core::ptr::write_volatile(&raw mut (*counter).key, OriginKey::astray());
        }
    }
}
