//! Random numbers that can be repeated: the seed is printed, `EGRESS_SEED` sets it, and `EGRESS_CASES`
//! says how much is tried. `EGRESS_EFFORT` is the share of that, in percent, where time is dear.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

pub(crate) fn variable(name: &str) -> Option<u64> {
    env::var(name).ok()?.parse().ok()
}

/// How many cases to try.
pub(crate) fn cases(default: u64) -> u64 {
    let effort = variable("EGRESS_EFFORT").unwrap_or(100);
    variable("EGRESS_CASES").unwrap_or((default * effort / 100).max(1))
}

/// The seed: `EGRESS_SEED`, else the clock; prints which.
pub(crate) fn announced(what: &str) -> u64 {
    let seed = variable("EGRESS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.map_or(1, |now| u64::from(now.subsec_nanos()) ^ now.as_secs())
    });
    println!("{what}: EGRESS_SEED={seed}");
    seed
}

impl Random {
    /// From `EGRESS_SEED`, else from the clock; prints which.
    pub(crate) fn announced(what: &str) -> Self {
        Self(announced(what))
    }

    /// From a seed.
    pub(crate) fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let value = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    /// True once in `n` times.
    pub(crate) fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub(crate) fn of<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len() as u64) as usize]
    }
}
