//! Connections times time and the most at once, by five minutes (`egress_common::usage`).

use core::ptr::read_volatile;

use egress_common::count::Count;
use egress_common::usage::{Change, ERAS, Era, Place, Usage, Words};

use crate::family::Family;
use crate::maps::WALL_CLOCK;
use crate::word::MapWord;

/// What to enter, as a number: one that 32 bits hold is that of connections after one was opened.
const CLOSED: u64 = 1 << 32;
const NONE: u64 = 2 << 32;

/// Where a time is.
#[inline(always)]
pub fn place(now: u64) -> Place {
    let Some(clock) = WALL_CLOCK.get(0) else {
        return Place::default();
    };
    let (number, means) = {
        // SAFETY: a live map value; volatile because the daemon sets it meanwhile. The era that counts was complete
        // before it was named.
        let number = unsafe { read_volatile(&raw const clock.era) };
        let mut means = Era::default();
        if let Some(era) = clock.eras.get(number as usize & (ERAS - 1)) {
            // SAFETY: as above.
            means = unsafe { read_volatile(era) };
        }
        (number, means)
    };
    Place::of(number, means, now)
}

/// The words of a counter's usage.
///
/// # Safety
/// It is a live map value.
#[inline(always)]
pub unsafe fn words<A>(counter: *mut Count<A>) -> Words<MapWord> {
    // SAFETY: the caller's promise; counters are 8-aligned, and so are these fields of them.
    unsafe {
        let usage = &raw mut (*counter).usage;
        Words {
            area: MapWord::first_of(&raw mut (*usage).area),
            last_area: MapWord::first_of(&raw mut (*usage).last_area),
            peak: MapWord::first_of(&raw mut (*usage).peak),
            last_peak: MapWord::first_of(&raw mut (*usage).last_peak),
            seconds: MapWord::first_of(&raw mut (*usage).seconds),
        }
    }
}

/// A connection more, which makes it this many.
#[inline(always)]
pub fn opened<A: Family>(index: u32, now: u64, active: u32) {
    enter::<A>(index, now, active as u64);
}

/// A connection less.
#[inline(always)]
pub fn closed<A: Family>(index: u32, now: u64) {
    enter::<A>(index, now, CLOSED);
}

/// No connection more or less, but time has passed.
#[inline(always)]
pub fn touched<A: Family>(index: u32, now: u64) {
    enter::<A>(index, now, NONE);
}

/// A function of its own, so that the verifier's states are few where it is called.
#[inline(never)]
fn enter<A: Family>(index: u32, now: u64, change: u64) -> i32 {
    let Some(counter) = A::counter(index) else {
        return 1;
    };
    // SAFETY: a live map value; who holds a place keeps its key.
    if unsafe { (*counter).key.egress } == A::default() {
        // Connections of a server to which they are forwarded: of no origin, and more than a level has bits for.
        return 0;
    }
    let place = place(now);
    // SAFETY: a live map value.
    let words = unsafe { words(counter) };
    if change == CLOSED {
        words.enter(place, Change::Closed);
    } else if change == NONE {
        words.enter(place, Change::None);
    } else {
        words.enter(place, Change::Opened);
        words.raise(place.period, change as u32);
    }
    0
}

/// That of a counter that is made now.
#[inline(always)]
pub fn begun(now: u64) -> Usage {
    Usage::begun(place(now))
}
