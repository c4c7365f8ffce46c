//! Random numbers that can be repeated: the seed is printed, and `EGRESS_SEED` sets it.

use std::{
    env,
    time::{SystemTime, UNIX_EPOCH},
};

/// The variable that repeats an earlier run.
const VARIABLE: &str = "EGRESS_SEED";

/// A small generator (`SplitMix64`), good enough to vary tests.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Takes the seed from `EGRESS_SEED`, else from the clock, and prints it.
    #[must_use]
    pub fn announced(what: &str) -> Self {
        let seed = env::var(VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| {
                SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(1, |since| u64::from(since.subsec_nanos()) ^ since.as_secs())
            });
        println!("{what}: {VARIABLE}={seed}");
        Self { state: seed }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// A number from 0 to `end` - 1; 0 if `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number().checked_rem(end).unwrap_or(0)
    }
}

/// The output function of `SplitMix64`.
#[must_use]
pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
