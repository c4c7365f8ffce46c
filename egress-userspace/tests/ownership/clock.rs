//! A machine's clock: it has its own zero and its own rate.

use std::time::{Duration, Instant};

use super::random::Random;

/// One that nobody sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    began: Instant,
    /// What it showed then, ns.
    zero: u64,
    /// Its nanoseconds in a thousand of ours.
    rate: u64,
}

impl Clock {
    /// One that runs up to a tenth too fast or too slow: no kernel lets its clock be set worse.
    pub(crate) fn any(random: &mut Random) -> Self {
        Self {
            began: Instant::now(),
            zero: 1 + random.below(1 << 50),
            rate: 900 + random.below(201),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        let since = u64::try_from(self.began.elapsed().as_nanos()).unwrap();
        self.zero + since / 1_000 * self.rate
    }

    /// When it shows this.
    pub(crate) fn instant(&self, time: u64) -> Instant {
        let since = time.saturating_sub(self.zero) / self.rate * 1_000;
        self.began + Duration::from_nanos(since)
    }
}
