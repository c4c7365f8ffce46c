//! Points in time as slots keep them: 32 bits of the coarse monotonic clock.

/// Nanoseconds of a [`Moment`], as a power of two: about a millisecond, finer than the clock's own tick.
const FINE: u32 = 20;
/// Nanoseconds of an [`Epoch`], as a power of two: 17 ms, some ticks of the clock.
const COARSE: u32 = 24;
/// Epochs by which a clock that is read a little earlier may lie before one: four seconds.
const EARLIER: u32 = 1 << 8;

/// The longest time that [`Moment::age`] can tell from a clock that stepped back: 26 days.
pub const LONGEST: u64 = (1 << 31 << FINE) - 1;

/// When something happened last, to within 2^20 ns. Wraps around after 52 days: whatever keeps one ends
/// or changes within [`LONGEST`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment(pub u32);

impl Moment {
    /// The moment of a time in ns.
    #[inline(always)]
    pub const fn of(ns: u64) -> Self {
        Self((ns >> FINE) as u32)
    }

    /// Time since then, ns; 0 for a moment that is still to come.
    #[inline(always)]
    pub const fn age(self, now: u64) -> u64 {
        let age = Self::of(now).0.wrapping_sub(self.0);
        if age >> 31 == 0 {
            (age as u64) << FINE
        } else {
            0
        }
    }
}

/// When something began, to within 2^24 ns. Wraps around after 2.2 years: what lasts longer seems younger.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of a time in ns.
    #[inline(always)]
    pub const fn of(ns: u64) -> Self {
        Self((ns >> COARSE) as u32)
    }

    /// Time since then, ns, 17 ms exact and never too short; 0 for one that is just to come.
    #[inline(always)]
    pub const fn age(self, now: u64) -> u64 {
        let age = Self::of(now).0.wrapping_sub(self.0);
        if age > u32::MAX - EARLIER {
            return 0;
        }
        ((age as u64) << COARSE) + now % (1 << COARSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ages_are_right_to_a_millisecond(then in 0u64..1 << 60, age in 0u64..LONGEST) {
            let told = Moment::of(then).age(then + age);
            prop_assert!(told.abs_diff(age) <= 1 << FINE);
        }

        #[test]
        fn a_clock_that_steps_back_makes_nothing_old(then in 1u64 << 52..1 << 60, back in 0u64..1 << 50) {
            prop_assert!(Moment::of(then).age(then - back) == 0);
        }

        #[test]
        fn epochs_tell_two_years(then in 0u64..1 << 60, age in 0u64..69_000_000_000_000_000) {
            let told = Epoch::of(then).age(then + age);
            prop_assert!(told >= age && told - age < 1 << COARSE);
        }

        #[test]
        fn an_epoch_is_never_before_a_clock_that_was_read_earlier(then in 1u64 << 40..1 << 60, back in 1u64 << 24..1 << 31) {
            prop_assert_eq!(Epoch::of(then).age(then - back), 0);
        }
    }
}
