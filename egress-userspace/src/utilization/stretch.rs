//! Five minutes as the data plane has them: of one era of the wall clock, and how a count was used in them.

use std::cmp::Ordering;

use egress_common::usage::{Area, ERAS, PERIOD, Peak, Period, Second, Usage, WallClock};

/// The most stretches that are told apart: the data plane numbers periods in ten bits.
const MOST: usize = 400;

/// A period, or what an era has of it, up to now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The era.
    pub era: u64,
    /// Number of five minutes since 1970.
    number: u64,
    /// From when to when, ns of the data plane's clock.
    from: u64,
    /// See `from`.
    pub to: u64,
}

/// How a count was used in a stretch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// Not at all: it was made later, or it is one of those that nobody used.
    Not,
    /// So much.
    So {
        /// Connections times ms.
        sum: u64,
        /// The most at once.
        most: u64,
        /// Connections at its end.
        level: u64,
    },
    /// Nobody knows: the data plane has two later ones.
    Unknown,
}

impl Stretch {
    /// All that end after `after`, in order; the last one goes until `now`. Both are ns of the data plane's clock.
    pub fn all(clock: &WallClock, after: u64, now: u64) -> Vec<Self> {
        let mut found = Vec::new();
        let oldest = clock.era.saturating_sub(ERAS as u64 - 1);
        for era in oldest..=clock.era {
            let means = |era: u64| clock.eras[usize::try_from(era % ERAS as u64).unwrap_or(0)];
            let (offset, since) = (means(era).offset, means(era).since);
            let end = match era {
                era if era == clock.era => now,
                era => means(era + 1).since,
            };
            let reach = PERIOD * MOST as u64;
            let mut from = since
                .max(after.saturating_sub(PERIOD))
                .max(end.saturating_sub(reach));
            while from < end {
                let number = from.wrapping_add(offset) / PERIOD;
                let begun = number.wrapping_mul(PERIOD).wrapping_sub(offset);
                // A period that began before the clock did is at a wrapped time.
                let age = from.wrapping_sub(begun);
                let to = end.min(from + (PERIOD - age));
                let stretch = Self {
                    era,
                    number,
                    from: from.saturating_sub(age).max(since),
                    to,
                };
                if to > after {
                    found.push(stretch);
                }
                from = to;
            }
        }
        let spare = found.len().saturating_sub(MOST);
        found.split_off(spare)
    }

    /// The bucket that it belongs to: when that began, seconds since 1970.
    pub fn bucket(&self) -> i64 {
        let seconds = self.number.saturating_mul(PERIOD / 1_000_000_000);
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }

    /// The bucket's first second, and which of its seconds, from and to, are news to one who has seen all until `read`. One
    /// that was under way then is among them.
    pub fn seconds(&self, clock: &WallClock, read: Option<u64>) -> (Second, usize, usize) {
        const SECOND: u64 = 1_000_000_000;
        let era = usize::try_from(self.era % ERAS as u64).unwrap_or(0);
        let begun = self.number.wrapping_mul(PERIOD);
        let begun = begun.wrapping_sub(clock.eras[era].offset);
        let nth = |time: u64| usize::try_from(time.wrapping_sub(begun) / SECOND).unwrap_or(0);
        let from = read.unwrap_or(0).clamp(self.from, self.to);
        let last = usize::try_from(PERIOD / SECOND - 1).unwrap_or(0);
        let first = Second::new(self.era, self.number.wrapping_mul(PERIOD / SECOND));
        (first, nth(from).min(last), nth(self.to).min(last))
    }

    /// Its length, ms.
    pub fn length(&self) -> u64 {
        (self.to - self.from) / 1_000_000
    }

    /// How a count was used in it.
    pub fn used(&self, usage: &Usage) -> Used {
        let length = self.to - self.from;
        let period = Period::new(self.era, self.number);
        let (area, last) = (
            Area::from_bits(usage.area),
            Area::from_bits(usage.last_area),
        );
        let still = |level: u16| (u64::from(level) * length, u64::from(level), level);
        let (sum, least, level) = match period.order(area.period) {
            Ordering::Greater => still(area.level),
            Ordering::Equal if last.period == area.period => (area.until(length), 0, area.level),
            Ordering::Equal => (area.until(length), u64::from(last.level), area.level),
            Ordering::Less if last.period == area.period => return Used::Not,
            Ordering::Less => match period.order(last.period) {
                Ordering::Greater => still(last.level),
                Ordering::Equal => (last.until(length), 0, last.level),
                Ordering::Less => return Used::Unknown,
            },
        };
        let peaks = [usage.peak, usage.last_peak].map(Peak::from_bits);
        let most = peaks
            .iter()
            .find(|peak| peak.period == period)
            .map_or(0, |peak| u64::from(peak.most))
            .max(least);
        if sum == 0 && most == 0 {
            return Used::Not;
        }
        Used::So {
            sum: sum / 1_000_000,
            most,
            level: u64::from(level),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use egress_common::usage::{Era, Place};

    const SECOND: u64 = 1_000_000_000;

    /// Wall-clock time is 1,000 s ahead, then 1,100 s, then 700 s.
    fn clock() -> WallClock {
        let mut clock = WallClock {
            era: 2,
            ..WallClock::default()
        };
        for (era, (offset, since)) in [(1_000, 150), (1_100, 350), (700, 400)]
            .into_iter()
            .enumerate()
        {
            clock.eras[era] = Era {
                offset: offset * SECOND,
                since: since * SECOND,
            };
        }
        clock
    }

    fn told(after: u64, now: u64) -> Vec<(u64, i64, u64, u64)> {
        let all = Stretch::all(&clock(), after * SECOND, now * SECOND);
        let tell = |one: &Stretch| (one.era, one.bucket(), one.from / SECOND, one.to / SECOND);
        all.iter().map(tell).collect()
    }

    #[test]
    fn stretches_follow_the_wall_clock_through_its_steps() {
        let all = [
            (0, 900, 150, 200),
            (0, 1_200, 200, 350),
            (1, 1_200, 350, 400),
            (2, 900, 400, 500),
            (2, 1_200, 500, 800),
            (2, 1_500, 800, 1_000),
        ];
        assert_eq!(told(0, 1_000), all);
        assert_eq!(told(200, 1_000), all[1..], "what ended then is over");
        assert_eq!(told(399, 1_000), all[2..]);
        assert_eq!(told(999, 1_000), all[5..]);
        assert_eq!(told(1_000, 1_000), []);
        let mut late = clock();
        late.era = 20;
        for (nth, era) in late.eras.iter_mut().enumerate() {
            *era = Era {
                offset: 0,
                since: nth as u64 * SECOND,
            };
        }
        for nth in 0..5 {
            late.eras[nth].since += 16 * SECOND;
        }
        let all = Stretch::all(&late, 0, 30 * SECOND);
        let eras: Vec<u64> = all.iter().map(|one| one.era).collect();
        assert_eq!(eras, (5..=20).collect::<Vec<_>>(), "no more are remembered");
        let long = Stretch::all(&clock(), 0, 10_000_000 * SECOND);
        assert_eq!((long.len(), long[0].era), (MOST, 2));
    }

    #[test]
    fn obs_1_what_is_between_and_after_two_periods_is_known_and_what_was_before_is_not() {
        let clock = clock();
        let all = Stretch::all(&clock, 0, 2_000 * SECOND);
        let period = |at: usize| Period::new(all[at].era, all[at].number);
        let mut usage = Usage::begun(Place {
            period: period(4),
            ..Place::default()
        });
        assert_eq!(all[3].used(&usage), Used::Not, "it was made later");
        usage.last_area = Area::begun(period(4), 3).bits();
        usage.last_peak = Peak {
            period: period(4),
            most: 9,
        }
        .bits();
        usage.area = Area::begun(period(6), 5).bits();
        usage.peak = Peak {
            period: period(6),
            most: 5,
        }
        .bits();
        let so = |sum: u64, most, level| Used::So {
            sum: sum * 1_000,
            most,
            level,
        };
        assert_eq!(all[3].used(&usage), Used::Unknown);
        assert_eq!(all[4].used(&usage), so(900, 9, 3));
        assert_eq!(
            all[5].used(&usage),
            so(900, 3, 3),
            "between them nothing changed"
        );
        assert_eq!(all[6].used(&usage), so(1_500, 5, 5));
        assert_eq!(all[7].used(&usage), so(1_500, 5, 5), "nor after them");
        // A maximum that has not been written yet is at least what the period began with.
        usage.area = Area::begun(period(6), 2).bits();
        usage.peak = usage.last_peak;
        assert_eq!(all[6].used(&usage), so(600, 3, 2));
    }
}
