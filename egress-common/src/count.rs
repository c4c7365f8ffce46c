//! Connections of one egress IP to one origin, and their exact cap (CAP-1, CAP-2).
//!
//! `active` and the record's generation share one word, so a reservation made on a record that was
//! meanwhile given to another origin fails instead of counting for the wrong one. Reservation is a
//! compare-and-swap from n to n+1 below the cap: it never overshoots, not even for an instant, so
//! no neighbour is refused because of somebody else's failed attempt.

use crate::key::OriginKey;
use crate::usage::{Peak, Usage};
use crate::word::Word;

/// How often a reservation is retried when other CPUs change the count at the same time.
pub const ATTEMPTS: u32 = 1_024;

/// How long a counter at zero stays listed, ns: ten minutes, unless the table of counters is nearly full. What was used in
/// five minutes is remembered throughout the next.
pub const LISTED: u64 = 600_000_000_000;
const _: () = assert!(LISTED >= 2 * crate::usage::PERIOD);

/// The counter of one (egress IP, origin, protocol), as `bpftool map dump` shows it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Count<A> {
    /// Connections now; shares a word with `generation`.
    pub active: u32,
    /// Grows each time the record is given to another origin.
    pub generation: u32,
    /// Who is counted.
    pub key: OriginKey<A>,
    /// The cap when a connection was last admitted or refused.
    pub capacity: u32,
    /// How it was used (OBS-1).
    pub usage: Usage,
    /// Connections refused because the cap was reached.
    pub refused: u64,
    /// Connections admitted.
    pub admitted: u64,
    /// When a place was last given back, ns of the coarse monotonic clock.
    pub idle_since: u64,
    /// Next free record while this one is free.
    pub next: u32,
    /// Always zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<Count<crate::family::V4>>() == 96);
const _: () = assert!(size_of::<Count<crate::family::V6>>() == 120);
const _: () = assert!(core::mem::offset_of!(Count<crate::family::V4>, usage) == 24);
const _: () = assert!(size_of::<OriginKey<crate::family::V4>>() == 12);

impl<A> Count<A> {
    /// The most connections at once in the two periods in which it was used last.
    pub fn most(&self) -> u32 {
        let most = |peak| Peak::from_bits(peak).most;
        most(self.usage.peak).max(most(self.usage.last_peak))
    }
}

/// `active` and `generation` as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    /// Connections now.
    pub active: u32,
    /// The record's generation.
    pub generation: u32,
}

impl Tally {
    /// The word as it stands in memory (little-endian layout of [`Count`]'s first two fields).
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        (self.generation as u64) << 32 | self.active as u64
    }

    /// Reads a word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            active: bits as u32,
            generation: (bits >> 32) as u32,
        }
    }
}

/// What came of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// A place was taken; the number of connections including this one.
    Taken(u32),
    /// The cap is reached.
    Full,
    /// The record belongs to another origin by now: look it up again.
    Stale,
    /// Another CPU changed the record meanwhile; nothing was taken.
    Contended,
}

/// Tries once to take one place below `cap`. The caller repeats it up to [`ATTEMPTS`] times; in the
/// kernel that is a `bpf_loop`, because the verifier would walk through every repetition.
#[inline(always)]
pub fn reserve(word: &impl Word, generation: u32, cap: u32) -> Reservation {
    let seen = word.load();
    let tally = Tally::from_bits(seen);
    if tally.generation != generation {
        return Reservation::Stale;
    }
    if tally.active >= cap {
        return Reservation::Full;
    }
    match word.swap(seen, seen + 1) {
        Ok(()) => Reservation::Taken(tally.active + 1),
        Err(_) => Reservation::Contended,
    }
}

/// Gives one place back; returns how many connections remain, or `None` if nothing was held.
///
/// Whose place it is need not be said: a holder keeps the record alive (it is retired only at zero) and the count above zero, so neither
/// can change between check and subtraction; the check makes a bookkeeping error visible instead of
/// wrapping the count.
#[inline(always)]
pub fn release(word: &impl Word) -> Option<u32> {
    let tally = Tally::from_bits(word.load());
    if tally.active == 0 {
        return None;
    }
    let before = Tally::from_bits(word.add(u64::MAX));
    Some(before.active.wrapping_sub(1))
}

/// Retires a record nobody holds: true for exactly one caller, who then owns it.
#[inline(always)]
pub fn retire(word: &impl Word, generation: u32) -> bool {
    let idle = Tally {
        active: 0,
        generation,
    };
    let gone = Tally {
        active: 0,
        generation: generation.wrapping_add(1),
    };
    word.swap(idle.bits(), gone.bits()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    fn word(active: u32, generation: u32) -> AtomicU64 {
        AtomicU64::new(Tally { active, generation }.bits())
    }

    #[test]
    fn cap_2_threads_never_overshoot_and_never_refuse_a_free_place() {
        const CAP: u32 = 7;
        let count = word(0, 3);
        let highest = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        match reserve(&count, 3, CAP) {
                            Reservation::Taken(n) => {
                                assert!(n <= CAP);
                                highest.fetch_max(n, Ordering::SeqCst);
                                assert!(release(&count).is_some());
                            }
                            // Not a refusal: the sender tries again.
                            Reservation::Contended => {}
                            other => panic!("four threads never fill seven places: {other:?}"),
                        }
                    }
                });
            }
        });
        assert_eq!(Tally::from_bits(count.load(Ordering::SeqCst)).active, 0);
        assert!(highest.load(Ordering::SeqCst) <= 4);
    }

    #[test]
    fn cap_2_exactly_cap_of_many_are_admitted() {
        let count = word(0, 0);
        let taken = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        if matches!(reserve(&count, 0, 1_000), Reservation::Taken(_)) {
                            taken.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                });
            }
        });
        assert_eq!(taken.load(Ordering::SeqCst), 1_000);
    }

    #[test]
    fn a_record_of_another_generation_is_left_alone() {
        let count = word(5, 9);
        assert_eq!(reserve(&count, 8, 100), Reservation::Stale);
        assert!(!retire(&count, 9), "five connections hold it");
        assert_eq!(Tally::from_bits(count.load(Ordering::SeqCst)).active, 5);
    }

    #[test]
    fn retiring_changes_the_generation_once() {
        let count = word(0, 9);
        assert!(retire(&count, 9));
        assert!(!retire(&count, 9));
        assert_eq!(reserve(&count, 9, 100), Reservation::Stale);
    }
}
