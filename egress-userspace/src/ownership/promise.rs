//! What lets others take a server's slices over when it is not heard of any more: `takeover_after` (CLU-3).
//!
//! A server that has opted in has promised in the store after how long others may have what it holds, and writes there again
//! and again that it is there. Each of these signs of life is unlike all others. The server itself counts from before it sent
//! the last one that was taken, and stops in good time; the others count from when they saw it first, which is later. Each
//! goes by its own clock, of which only the rate matters.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Ownership, Step};

/// What a server has promised the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promise {
    /// Rises with every change.
    pub version: u64,
    /// After how long without a sign of life others may have what it holds, ms; 0: never.
    pub after: u64,
}

impl Promise {
    /// How long the server may go on after it sent a sign of life. Three quarters: clocks that run a tenth too fast and
    /// a tenth too slow, which is as wrong as a kernel lets them be set, still leave a thirteenth of the time between its end and the
    /// others' beginning.
    pub const fn good_for(&self) -> Duration {
        Duration::from_millis(self.after / 4 * 3)
    }

    /// How long a sign of life has to be the last one before others may take over.
    pub const fn over_after(&self) -> Duration {
        Duration::from_millis(self.after)
    }

    /// A sign of life under this promise.
    pub fn beat(&self, random: u64) -> String {
        format!("{} {random:016x}", self.version)
    }

    fn is_kept_by(&self, beat: &str) -> bool {
        let version = beat.split(' ').next();
        version.and_then(|text| text.parse().ok()) == Some(self.version)
    }
}

/// A server's last sign of life, and what it has promised: whoever takes over does so only while these are the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// What it has promised.
    pub promise: Promise,
    /// What it wrote last.
    pub beat: String,
}

impl Ownership {
    /// What a server has promised, if others may take over from it.
    pub fn promised(&self, server: &str) -> Option<Promise> {
        let promise = self.promises.get(server).copied();
        promise.filter(|promise| promise.after > 0)
    }

    /// The shortest time after which others may have what a server holds, of all but this one.
    pub fn soonest(&self, but: &str) -> Option<Duration> {
        let others = self.promises.keys().filter(|server| *server != but);
        let times = others.filter_map(|server| self.promised(server));
        times.map(|promise| promise.over_after()).min()
    }

    /// As a server goes by it while its slices may be others' by now: it opens nothing.
    pub fn set_aside(&mut self, server: &str) {
        self.forgotten.insert(server.to_owned(), i64::MAX);
    }

    /// The step by which a server promises what its configuration says, unless it has. While it is fenced it does not: what it has
    /// promised holds until it is back.
    pub fn promise(&self, server: &str, after: Option<Duration>) -> Option<Step> {
        if self.is_fenced(server) {
            return None;
        }
        let before = self.promises.get(server).copied();
        let after = after.map_or(0, |after| u64::try_from(after.as_millis()).unwrap_or(0));
        if before.map_or(0, |before| before.after) == after {
            return None;
        }
        Some(Step::Promised {
            server: server.to_owned(),
            before,
            after: Promise {
                version: before.map_or(0, |before| before.version) + 1,
                after,
            },
            mark: self.forgotten.get(server).copied(),
        })
    }
}

/// What one server sees of the others' signs of life.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// When it looked last, ns of its clock.
    looked: Option<u64>,
    seen: BTreeMap<String, Seen>,
}

/// A server's last sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    last: Silence,
    /// What was said of the server meanwhile: after it was fenced and has come back, it has its time again.
    mark: Option<i64>,
    /// For how long it was seen to be the last, ns.
    silent: u64,
}

/// How often a server looks, in the shortest time after which others take over.
pub const LOOKS: u32 = 24;
/// A part of that time, 1/n: no pause between two looks counts as more. Longer than looks are apart; and less than what clocks that
/// run a tenth too fast and too slow leave ([`Promise::good_for`]), so a clock that jumps once does no harm. Who has not
/// looked for a while blames nobody for that.
const MOST: u64 = 20;

impl Watch {
    /// After `beats` were read, which were asked for at `asked` and there at `now` (ns of this server's clock): the servers that were not
    /// heard of for as long as they have promised, each with its last sign of life.
    pub fn overdue(
        &mut self,
        ownership: &Ownership,
        beats: &BTreeMap<String, String>,
        asked: u64,
        now: u64,
    ) -> Vec<(String, Silence)> {
        let pause = self.looked.map_or(0, |looked| asked.saturating_sub(looked));
        self.looked = Some(now);
        let before = std::mem::take(&mut self.seen);
        let mut overdue = Vec::new();
        for (server, beat) in beats {
            let Some(promise) = ownership.promised(server) else {
                continue;
            };
            let over_after = nanoseconds(promise.over_after());
            let mut seen = Seen {
                last: Silence {
                    promise,
                    beat: beat.clone(),
                },
                mark: ownership.forgotten.get(server).copied(),
                silent: 0,
            };
            let same = before.get(server);
            if let Some(same) = same.filter(|one| one.last == seen.last && one.mark == seen.mark) {
                seen.silent = same.silent + pause.min(over_after / MOST);
            }
            if seen.silent >= over_after && promise.is_kept_by(beat) && !ownership.is_fenced(server)
            {
                overdue.push((server.clone(), seen.last.clone()));
            }
            self.seen.insert(server.clone(), seen);
        }
        overdue
    }
}

/// As many nanoseconds.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn promised(after: u64) -> Ownership {
        let mut ownership = Ownership::default();
        let promise = Promise { version: 3, after };
        ownership.promises.insert("s1".to_owned(), promise);
        ownership
    }

    fn beats(text: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("s1".to_owned(), text.to_owned())])
    }

    #[test]
    fn clu_3_the_owner_stops_before_anybody_takes_over_however_wrong_the_clocks() {
        for after in [1_000, 30_000, 30_001, 86_400_000] {
            let promise = Promise { version: 1, after };
            let (stops, over) = (promise.good_for(), promise.over_after());
            // Its clock goes at nine tenths, the others' at eleven.
            assert!(stops.as_secs_f64() / 0.9 < over.as_secs_f64() / 1.1 * 0.92);
        }
    }

    #[test]
    fn clu_3_a_server_is_overdue_once_its_last_sign_was_seen_for_so_long() {
        let ownership = promised(40_000);
        let mut watch = Watch::default();
        let mut look = |second: u64, text: &str| {
            let (asked, now) = (second * SECOND, second * SECOND + SECOND / 2);
            let found = watch.overdue(&ownership, &beats(text), asked, now);
            found.len()
        };
        // Each look takes half a second, in which nothing is known: a second and a half of two count.
        let mut count = |from: u64, text: &str| {
            let mut looks = (from..from + 400).step_by(2);
            looks.find(|second| look(*second, text) == 1)
        };
        assert_eq!(count(1_000, "3 aa"), Some(1_000 + 2 * 27));
        assert_eq!(count(1_056, "3 ab"), Some(1_056 + 2 * 27), "there again");
        // A clock that jumps, or a server that did not look for a while: no more than a twentieth.
        assert_eq!(count(5_000, "3 ac"), Some(5_000 + 2 * 27));
        assert_eq!(count(9_000, "3 ac"), Some(9_000));
        // Under another promise.
        assert_eq!(count(9_100, "2 ac"), None);
    }

    #[test]
    fn clu_3_a_look_after_a_long_pause_blames_nobody() {
        let ownership = promised(40_000);
        let mut watch = Watch::default();
        for look in 0..20 {
            let at = (1_000 + look * 1_000) * SECOND;
            assert_eq!(
                watch.overdue(&ownership, &beats("3 aa"), at, at),
                [],
                "{look}"
            );
        }
        let at = 21_000 * SECOND;
        assert_eq!(watch.overdue(&ownership, &beats("3 aa"), at, at).len(), 1);
    }

    /// What it said before it was fenced is not counted a second time.
    #[test]
    fn clu_3_a_server_that_is_back_has_its_time_again() {
        let mut ownership = promised(40_000);
        let mut watch = Watch::default();
        let mut at = 1_000;
        let mut count = |ownership: &Ownership, watch: &mut Watch, seconds: u64| {
            let mut found = 0;
            for _ in 0..seconds {
                at += 1;
                let overdue = watch.overdue(ownership, &beats("3 aa"), at * SECOND, at * SECOND);
                found += overdue.len();
            }
            found
        };
        assert_eq!(count(&ownership, &mut watch, 41), 1);
        ownership.forgotten.insert("s1".to_owned(), 7);
        assert_eq!(count(&ownership, &mut watch, 100), 0, "fenced");
        ownership.forgotten.insert("s1".to_owned(), -7);
        assert_eq!(count(&ownership, &mut watch, 40), 0, "back");
        assert_eq!(count(&ownership, &mut watch, 1), 1);
    }

    /// Its own clock is a tenth slow, another one a tenth fast, and jumps once.
    #[test]
    fn clu_3_looks_count_less_than_what_wrong_clocks_leave() {
        let promise = Promise {
            version: 1,
            after: 60_000,
        };
        let stops = promise.good_for().as_secs_f64() / 0.9;
        let jump = promise.over_after().as_secs_f64() / f64::from(u32::try_from(MOST).unwrap());
        let over = (promise.over_after().as_secs_f64() - jump) / 1.1;
        assert!(stops < over, "{stops} {over}");
        assert!(promise.over_after() / LOOKS < Duration::from_secs_f64(jump));
    }

    #[test]
    fn clu_3_who_has_promised_nothing_or_is_fenced_is_not_overdue() {
        let mut fenced = promised(4_000);
        fenced.forgotten.insert("s1".to_owned(), 7);
        for ownership in [Ownership::default(), promised(0), fenced] {
            let mut watch = Watch::default();
            for second in 1..60 {
                let at = second * SECOND;
                assert_eq!(watch.overdue(&ownership, &beats("3 aa"), at, at), []);
            }
        }
    }

    #[test]
    fn clu_3_a_promise_is_changed_once() {
        let ownership = promised(4_000);
        assert_eq!(ownership.promise("s1", Some(Duration::from_secs(4))), None);
        assert_eq!(ownership.promise("s2", None), None);
        let step = ownership.promise("s1", None);
        let Some(Step::Promised { before, after, .. }) = step else {
            panic!("{step:?}");
        };
        assert_eq!(before, ownership.promises.get("s1").copied());
        assert_eq!((after.version, after.after), (4, 0));
    }
}
