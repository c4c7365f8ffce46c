//! Five minutes of connection counts.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use egress_common::count::LISTED;

use super::levels::Levels;
use super::shared::Shared;
use super::stretch::{Stretch, Used};
use crate::dataplane::api::{Protocol, UsageLook, UsageRecord};

/// The most counts whose seconds are kept of one bucket: 12 MB of memory.
const LEVELLED: usize = 20_000;

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

/// A sum whose last part may still grow: what the data plane has of these five minutes, which it tells as a whole each
/// time. So it may be entered as often as one likes, by whoever comes after a killed daemon, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// All of it.
    pub all: u64,
    /// Of which this is the last part.
    pub part: u64,
    /// Where that is from.
    pub source: i64,
}

impl Sum {
    /// Enters a part from a source; it takes the place of what the same source said before.
    fn enter(&mut self, source: i64, part: u64) {
        if self.source == source {
            self.all = self.all.saturating_sub(self.part);
        }
        self.all += part;
        self.part = part;
        self.source = source;
    }
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
    pub sum: Sum,
    /// The most connections at once.
    pub max: u64,
    /// The most that were admitted at once.
    pub capacity: u64,
    /// ms of the bucket in which nobody knows what there was: they are not in `sum`.
    pub missed: u64,
    /// The most that all servers of the data center admit at once by an address that they share; 0 where they do not.
    pub whole: u64,
    /// What was in each second, of such an address.
    pub levels: Levels,
    /// The entry that found it last.
    pub seen: u64,
}

impl Series {
    /// Whether there was a connection.
    pub fn is_used(&self) -> bool {
        self.sum.all > 0 || self.max > 0
    }
}

/// A bucket that is being filled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it began, seconds since 1970: a multiple of five minutes.
    pub start: i64,
    /// How much of it was counted, ms.
    pub covered: Sum,
    /// The maps that it was read from, and until when by the data plane's clock, ns.
    pub made: u64,
    /// See `made`.
    pub until: u64,
    /// How often something was entered.
    pub entries: u64,
    /// Of how many counts the seconds are kept.
    pub levelled: usize,
    /// Counts that were not zero all the time.
    pub series: HashMap<Key, Series>,
}

impl From<&UsageRecord> for Key {
    fn from(record: &UsageRecord) -> Self {
        Self {
            egress_ip: record.egress_ip,
            origin: record.origin,
            protocol: record.protocol,
        }
    }
}

/// A number for where something was read, the same for every daemon.
fn source(parts: &[u64]) -> i64 {
    // FNV-1a; 0 is no source.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    i64::from_ne_bytes(hash.to_ne_bytes()) | 1
}

impl Bucket {
    /// The one that begins at `start`, where `before` was the last one.
    pub fn new(start: i64, before: Option<&Self>) -> Self {
        let series = before.into_iter().flat_map(|before| &before.series);
        // What is in no pool any more, for as long as it has connections, stays whose it was.
        let live = series.filter(|(_, series)| series.active > 0);
        let series = live.map(|(key, series)| {
            let series = Series {
                account: series.account.clone(),
                capacity: series.capacity,
                whole: series.whole,
                ..Series::default()
            };
            (*key, series)
        });
        Self {
            start,
            series: series.collect(),
            ..Self::default()
        }
    }

    /// Enters what a look has of one of its stretches. `read` is until when the looker has seen all, ns of the data plane's
    /// clock: what was since is made up for by what the data plane remembers. Of addresses that are `shared` the seconds
    /// are kept. Returns for how many counts the data plane does not remember.
    pub fn enter(
        &mut self,
        look: &UsageLook,
        stretch: &Stretch,
        read: Option<u64>,
        shared: &Shared,
    ) -> usize {
        self.entries += 1;
        let gap = read.map_or(0, |read| look.now.saturating_sub(read));
        let seconds = stretch.seconds(&look.clock, read);
        let before = self.covered.all;
        let era = [look.clock.made, stretch.era];
        self.covered.enter(source(&era), stretch.length());
        let gained = self.covered.all.saturating_sub(before);
        let mut lost = 0;
        for count in &look.counts {
            let used = stretch.used(&count.usage);
            let key = Key::from(count);
            let series = match (used, self.series.get_mut(&key)) {
                (Used::Not, _) => continue,
                (Used::Unknown, None) => {
                    lost += 1;
                    continue;
                }
                (_, Some(series)) => series,
                (Used::So { .. }, None) => self.series.entry(key).or_default(),
            };
            series.seen = self.entries;
            if let Used::So { sum, most, level } = used {
                let [made, era] = era;
                let known = !series.levels.is_empty();
                if known || self.levelled < LEVELLED && shared.contains_key(&key.egress_ip) {
                    let (first, from, to) = seconds;
                    if !known {
                        series.levels = Levels::zero();
                        self.levelled += 1;
                        // What it had before it was shared, nobody knows by the second.
                        series.levels.raise(0, from, series.max);
                    }
                    series.levels.enter(&count.usage, first, from, to, most);
                }
                series.sum.enter(source(&[made, era, count.counter]), sum);
                series.max = series.max.max(most);
                series.active = level;
                if count.capacity > 0 {
                    series.capacity = count.capacity;
                }
            } else {
                series.missed += gained;
                lost += 1;
            }
        }
        // A counter that nobody used for long is given up.
        let lasts = gap <= LISTED;
        let same = self.made == look.clock.made;
        for series in self.series.values_mut() {
            if series.seen == self.entries {
                continue;
            }
            if same && gap > 0 && !(lasts && series.active == 0) {
                series.missed += gained;
                lost += 1;
            }
            series.active = 0;
        }
        self.made = look.clock.made;
        self.until = stretch.to;
        lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_told_again_takes_the_place_of_what_was_told() {
        let mut sum = Sum::default();
        for part in [3, 3, 10] {
            sum.enter(7, part);
            assert_eq!(sum.all, part);
        }
        sum.enter(8, 5);
        sum.enter(8, 6);
        assert_eq!(sum.all, 16);
        assert_eq!(source(&[1, 2]), source(&[1, 2]));
        assert_ne!(source(&[1, 2]), source(&[2, 1]));
    }
}
