//! Five minutes of connection counts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::dataplane::api::{OriginRecord, Protocol};

/// Length of a bucket, seconds.
pub const LENGTH: i64 = 300;

/// What is counted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The dedicated source address.
    pub egress_ip: IpAddr,
    /// Destination address and port.
    pub origin: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
}

/// One count's five minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Series {
    /// Id of the account that owned the address; empty while that is not known.
    pub account: String,
    /// Whether that was looked up in this bucket.
    pub looked_up: bool,
    /// Connections when it was looked at last.
    pub active: u64,
    /// Connections times ms.
    pub sum: u64,
    /// The most connections at once.
    pub max: u64,
    /// The most that were admitted at once.
    pub capacity: u64,
    /// The look that found it last.
    pub seen: u64,
}

/// A bucket that is being filled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// When it began, seconds since 1970: a multiple of [`LENGTH`].
    pub start: i64,
    /// How much of it was looked at, ms.
    pub covered: u64,
    /// When it was looked at last, ms since 1970.
    pub until: i64,
    /// How often it was looked at.
    pub looks: u64,
    /// Counts that were not zero all the time.
    pub series: HashMap<Key, Series>,
}

impl From<&OriginRecord> for Key {
    fn from(record: &OriginRecord) -> Self {
        Self {
            egress_ip: record.egress_ip,
            origin: record.origin,
            protocol: record.protocol,
        }
    }
}

impl Bucket {
    /// Start of the bucket that this time lies in, from ms since 1970 to seconds.
    pub fn of(now: i64) -> i64 {
        now.div_euclid(LENGTH * 1000) * LENGTH
    }

    /// One that begins to be filled at `now` (ms since 1970), with what is live then.
    pub fn begin(now: i64, counts: &[OriginRecord]) -> Self {
        let live = counts.iter().filter(|count| count.active > 0);
        let series = live.map(|count| {
            let series = Series {
                active: count.active,
                max: count.active,
                capacity: count.capacity,
                ..Series::default()
            };
            (Key::from(count), series)
        });
        Self {
            start: Self::of(now),
            covered: 0,
            until: now,
            looks: 0,
            series: series.collect(),
        }
    }

    /// Enters the counts of now, `elapsed` ms after the last ones; in between they went evenly from those to these.
    /// The records' peaks are since the beginning of the bucket.
    pub fn enter(&mut self, now: i64, elapsed: u64, counts: &[OriginRecord]) {
        self.looks += 1;
        for count in counts {
            let key = Key::from(count);
            let series = match self.series.get_mut(&key) {
                Some(series) => series,
                None if count.active > 0 || count.peak > 0 => self.series.entry(key).or_default(),
                None => continue,
            };
            series.enter(count, elapsed);
            series.seen = self.looks;
        }
        // The counters of the others were given up, as happens only to those at zero.
        for series in self.series.values_mut() {
            if series.seen != self.looks {
                series.pass(0, elapsed);
            }
        }
        self.covered += elapsed;
        self.until = now;
    }

    /// Ends a bucket at whose end nobody looked: until then the counts stayed. `counts` are later ones; their peaks are
    /// since the beginning of this bucket.
    pub fn hold(&mut self, counts: &[OriginRecord]) {
        let rest = ((self.start + LENGTH) * 1000 - self.until).max(0);
        let elapsed = u64::try_from(rest).unwrap_or(0);
        for series in self.series.values_mut() {
            series.pass(series.active, elapsed);
        }
        for count in counts.iter().filter(|count| count.peak > 0) {
            let series = self.series.entry(Key::from(count)).or_default();
            series.max = series.max.max(count.peak);
            series.capacity = count.capacity;
        }
        self.covered += elapsed;
        self.until += rest;
    }

    /// Adds what was recorded of the same bucket before.
    pub fn add(&mut self, before: Self) {
        for (key, earlier) in before.series {
            let series = self.series.entry(key).or_insert_with(|| Series {
                account: earlier.account,
                capacity: earlier.capacity,
                ..Series::default()
            });
            series.sum += earlier.sum;
            series.max = series.max.max(earlier.max);
        }
        self.covered += before.covered;
    }

    /// The next one, which begins where this one was looked at last.
    pub fn next(&self, start: i64) -> Self {
        let live = self.series.iter().filter(|(_, series)| series.active > 0);
        let series = live.map(|(key, series)| {
            let series = Series {
                looked_up: false,
                sum: 0,
                seen: 0,
                max: series.active,
                ..series.clone()
            };
            (*key, series)
        });
        Self {
            start,
            covered: 0,
            until: self.until,
            looks: 0,
            series: series.collect(),
        }
    }
}

impl Series {
    fn enter(&mut self, count: &OriginRecord, elapsed: u64) {
        self.pass(count.active, elapsed);
        self.max = self.max.max(count.peak).max(count.active);
        if count.capacity > 0 {
            self.capacity = count.capacity;
        }
    }

    fn pass(&mut self, active: u64, elapsed: u64) {
        self.sum += (self.active + active) * elapsed / 2;
        self.active = active;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(port: u16, active: u64, peak: u64) -> OriginRecord {
        OriginRecord {
            egress_ip: [192, 0, 2, 1].into(),
            origin: ([203, 0, 113, 5], port).into(),
            protocol: Protocol::Tcp,
            active,
            peak,
            capacity: 100,
            utilization: 0.0,
            refused: 0,
        }
    }

    fn of(bucket: &Bucket, port: u16) -> (u64, u64, u64) {
        let series = &bucket.series[&Key::from(&count(port, 0, 0))];
        (series.active, series.sum, series.max)
    }

    #[test]
    fn obs_1_sums_are_weighted_by_time_and_peaks_between_samples_count() {
        let mut bucket = Bucket::begin(600_000, &[count(1, 4, 9), count(2, 0, 7)]);
        assert_eq!((bucket.start, bucket.series.len()), (600, 1));
        assert_eq!(
            of(&bucket, 1),
            (4, 0, 4),
            "older peaks are not of this bucket"
        );
        bucket.enter(601_000, 1_000, &[count(1, 6, 6), count(3, 0, 50)]);
        assert_eq!(of(&bucket, 1), (6, 5_000, 6));
        assert_eq!(
            of(&bucket, 3),
            (0, 0, 50),
            "came and went between two samples"
        );
        // The counter is gone: so are its connections.
        bucket.enter(603_000, 2_000, &[count(3, 0, 0)]);
        assert_eq!(of(&bucket, 1), (0, 11_000, 6));
        assert_eq!((bucket.covered, bucket.until), (3_000, 603_000));
        assert!(!bucket.series.contains_key(&Key::from(&count(2, 0, 0))));
    }

    #[test]
    fn obs_1_the_next_bucket_begins_with_what_is_live() {
        let mut bucket = Bucket::begin(600_000, &[]);
        bucket.enter(899_000, 299_000, &[count(1, 2, 8), count(2, 0, 3)]);
        bucket.enter(900_004, 1_004, &[count(1, 5, 8), count(2, 0, 3)]);
        let mut next = bucket.next(900);
        assert_eq!((next.start, next.covered, next.until), (900, 0, 900_004));
        assert_eq!((of(&next, 1), next.series.len()), ((5, 0, 5), 1));
        next.enter(901_000, 996, &[count(1, 5, 0), count(2, 0, 0)]);
        assert_eq!((of(&next, 1), next.series.len()), ((5, 4_980, 5), 1));
    }

    #[test]
    fn obs_1_a_bucket_whose_end_nobody_saw_keeps_its_peak() {
        let mut bucket = Bucket::begin(600_000, &[count(1, 3, 0)]);
        bucket.enter(700_000, 100_000, &[count(1, 3, 3)]);
        bucket.hold(&[count(1, 1, 40), count(2, 0, 6), count(3, 0, 0)]);
        assert_eq!(of(&bucket, 1), (3, 900_000, 40));
        assert_eq!((of(&bucket, 2).2, bucket.series.len()), (6, 2));
        assert_eq!((bucket.covered, bucket.until), (300_000, 900_000));
    }

    #[test]
    fn buckets_begin_at_multiples_of_five_minutes() {
        assert_eq!(Bucket::of(299_999), 0);
        assert_eq!(Bucket::of(300_000), 300);
        assert_eq!(Bucket::of(-1), -300);
    }
}
