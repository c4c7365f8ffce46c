//! How far another location is, by measured round-trip times (FWD-3).
//!
//! Samples are smoothed as TCP smooths its own (RFC 6298, section 2: an eighth of each). What decides is the
//! *settled* distance, which stands still until the smoothed one has left a band around it. So two locations that
//! are equally far do not take turns, and an order once taken changes only for a reason.

/// The part of a distance by which the smoothed one must differ from the settled one: a quarter.
const BAND_SHIFT: u32 = 2;
/// And at least by this, in microseconds: what scheduling on a busy host adds to a round trip.
const BAND_LEAST: u32 = 500;
/// Weight of a sample: an eighth (RFC 6298).
const SMOOTHING_SHIFT: u32 = 3;
/// The smoothed value carries this many more bits, or it would stop short of its goal.
const FRACTION_BITS: u32 = 8;

/// The longest distance told apart, in microseconds: 16.7 s, longer than any probe waits.
pub const FARTHEST: u32 = (1 << 24) - 1;

/// The distance to a location, in microseconds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Distance {
    /// What decides.
    settled: u32,
    /// Smoothed samples, times 2^[`FRACTION_BITS`]; 0 before the first.
    smoothed: u32,
}

impl Distance {
    /// A distance that was configured and not measured yet.
    pub const fn configured(microseconds: u32) -> Self {
        Self {
            settled: at_most(microseconds),
            smoothed: 0,
        }
    }

    /// What decides, in microseconds.
    pub const fn settled(self) -> u32 {
        self.settled
    }

    /// With one more sample, in microseconds. The first one replaces what was configured.
    pub const fn measured(self, microseconds: u32) -> Self {
        let sample = at_most(if microseconds == 0 { 1 } else { microseconds });
        if self.smoothed == 0 {
            return Self {
                settled: sample,
                smoothed: sample << FRACTION_BITS,
            };
        }
        let smoothed = self.smoothed - (self.smoothed >> SMOOTHING_SHIFT)
            + ((sample << FRACTION_BITS) >> SMOOTHING_SHIFT);
        let now = smoothed >> FRACTION_BITS;
        let band = self.settled >> BAND_SHIFT;
        let band = if band < BAND_LEAST { BAND_LEAST } else { band };
        Self {
            settled: if now.abs_diff(self.settled) > band {
                now
            } else {
                self.settled
            },
            smoothed,
        }
    }
}

const fn at_most(microseconds: u32) -> u32 {
    if microseconds > FARTHEST {
        FARTHEST
    } else {
        microseconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fwd_3_noise_never_moves_a_settled_distance(
            base in 2_500u32..1_000_000,
            noise in proptest::collection::vec(-0.2f64..0.2, 1..500),
        ) {
            let mut distance = Distance::configured(7).measured(base);
            for part in noise {
                distance = distance.measured((f64::from(base) * (1.0 + part)) as u32);
                prop_assert_eq!(distance.settled(), base);
            }
        }

        #[test]
        fn fwd_3_a_lasting_change_is_followed(from in 1u32..=FARTHEST, to in 1u32..=FARTHEST) {
            let mut distance = Distance::configured(0).measured(from);
            for _ in 0..400 {
                distance = distance.measured(to);
            }
            let apart = distance.settled().abs_diff(to);
            prop_assert!(
                apart <= distance.settled() / 4 + 2 || apart <= BAND_LEAST + 2,
                "settled at {} for {}", distance.settled(), to
            );
        }

        #[test]
        fn any_samples_are_survived(configured: u32, samples: Vec<u32>) {
            let mut distance = Distance::configured(configured);
            for sample in samples {
                distance = distance.measured(sample);
                prop_assert!(distance.settled() <= FARTHEST);
            }
        }
    }

    #[test]
    fn fwd_3_two_locations_alike_do_not_take_turns() {
        let mut one = Distance::configured(0).measured(20_000);
        let mut other = Distance::configured(0).measured(20_400);
        for round in 0..1_000 {
            // They overtake each other all the time.
            let swing = if round % 2 == 0 { 0 } else { 3_000 };
            one = one.measured(18_500 + swing);
            other = other.measured(21_900 - swing);
            assert!(one.settled() < other.settled(), "round {round}");
        }
        for _ in 0..20 {
            one = one.measured(40_000);
        }
        assert!(one.settled() > other.settled(), "a real change counts");
    }

    #[test]
    fn fwd_3_what_is_configured_holds_until_something_is_measured() {
        let distance = Distance::configured(30_000);
        assert_eq!(distance.settled(), 30_000);
        assert_eq!(distance.measured(5_000).settled(), 5_000);
    }
}
