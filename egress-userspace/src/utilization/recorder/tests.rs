use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use egress_common::usage::{Change, ERAS, Era, Place, Usage, WallClock, Words};
use egress_common::word::Word;

use super::*;
use crate::dataplane::api::{Protocol, UsageRecord};
use crate::diagnostic;
use crate::resource;

/// A word as the data plane has it.
struct Shared<'a>(&'a AtomicU64);

impl Word for Shared<'_> {
    fn load(&self) -> u64 {
        self.0.load(SeqCst)
    }

    fn swap(&self, old: u64, new: u64) -> Result<(), u64> {
        self.0
            .compare_exchange(old, new, SeqCst, SeqCst)
            .map(|_| ())
    }

    fn add(&self, amount: u64) -> u64 {
        self.0.fetch_add(amount, SeqCst)
    }

    fn store(&self, value: u64) {
        self.0.store(value, SeqCst);
    }
}

/// A data plane with one origin of one egress IP, whose connections a test opens and closes. What it keeps is kept by
/// the code that the kernel runs.
#[derive(Clone)]
struct Origin(Rc<RefCell<State>>);

struct State {
    clock: WallClock,
    now: u64,
    active: u64,
    /// The counter's number and its words; none while nobody was ever connected.
    counter: Option<(u64, [AtomicU64; 5])>,
    counters: u64,
}

const MS: u64 = 1_000_000;

impl Origin {
    fn new(now: i64) -> Self {
        let boot = u64::try_from(now).unwrap() * MS;
        let mut eras = [Era::default(); ERAS];
        // The machine has run for an hour.
        let since = 3_600_000 * MS;
        eras[0] = Era {
            offset: boot - since,
            since,
        };
        Self(Rc::new(RefCell::new(State {
            clock: WallClock {
                era: 0,
                made: boot,
                eras,
            },
            now: since,
            active: 0,
            counter: None,
            counters: 0,
        })))
    }

    /// Goes to this many connections, one after the other.
    fn become_(&self, active: u64) {
        let mut state = self.0.borrow_mut();
        while state.active != active {
            let opens = active > state.active;
            state.active = if opens {
                state.active + 1
            } else {
                state.active - 1
            };
            state.enter(if opens {
                Change::Opened
            } else {
                Change::Closed
            });
        }
    }

    /// The wall clock is set.
    fn set(&self, by: i64) {
        let mut state = self.0.borrow_mut();
        let last = state.means();
        state.clock.era += 1;
        let at = usize::try_from(state.clock.era).unwrap() % ERAS;
        state.clock.eras[at] = Era {
            offset: last.offset.wrapping_add_signed(by * 1_000_000),
            since: state.now,
        };
        // As the sweep does within a second.
        state.enter(Change::None);
    }

    /// The sweep gives up a counter that nobody uses.
    fn retire(&self) {
        self.0.borrow_mut().counter = None;
    }
}

impl State {
    fn means(&self) -> Era {
        self.clock.eras[usize::try_from(self.clock.era).unwrap() % ERAS]
    }

    fn enter(&mut self, change: Change) {
        let place = Place::of(self.clock.era, self.means(), self.now);
        if self.counter.is_none() {
            self.counters += 1;
            let usage = Usage::begun(place);
            let words = [
                usage.area,
                usage.last_area,
                usage.peak,
                usage.last_peak,
                usage.seconds,
            ];
            self.counter = Some((self.counters, words.map(AtomicU64::new)));
        }
        let (_, [area, last_area, peak, last_peak, seconds]) = self.counter.as_ref().unwrap();
        let words = Words {
            area: Shared(area),
            last_area: Shared(last_area),
            peak: Shared(peak),
            last_peak: Shared(last_peak),
            seconds: Shared(seconds),
        };
        words.enter(place, change);
        if change == Change::Opened {
            words.raise(place.period, u32::try_from(self.active).unwrap());
        }
    }
}

impl Source for Origin {
    fn usage(&self) -> Result<UsageLook, Failure> {
        let state = self.0.borrow();
        let count = |(counter, words): &(u64, [AtomicU64; 5])| {
            let [area, last_area, peak, last_peak, seconds] =
                [0, 1, 2, 3, 4].map(|at| words[at].load(SeqCst));
            UsageRecord {
                egress_ip: [192, 0, 2, 1].into(),
                origin: ([203, 0, 113, 5], 443).into(),
                protocol: Protocol::Tcp,
                counter: *counter,
                capacity: 1_000,
                usage: Usage {
                    area,
                    last_area,
                    peak,
                    last_peak,
                    seconds,
                },
            }
        };
        Ok(UsageLook {
            clock: state.clock,
            now: state.now,
            counts: state.counter.iter().map(count).collect(),
        })
    }

    fn resources(&self) -> (Resources, String) {
        let text = "account = [{ id = \"a1\", name = \"acme\" }]\n[[pool]]\nid = \"p\"\naccount = \"acme\"\n\
                    addresses = [\"192.0.2.1\"]\n[[location]]\nname = \"frankfurt\"\n[[location.data_center]]\n\
                    name = \"fra01\"\nserver = [{ name = \"s1\", number = 1 }, { name = \"s2\", number = 2 }]\n\
                    [[placement]]\naddress = \"192.0.2.1\"\nshares = [{ data_center = \"fra01\", share = 1 }]\n";
        let (resources, found) = resource::parse(&diagnostic::Source::new("r.toml", text), None);
        (
            resources.unwrap_or_else(|| panic!("{found}")),
            "fra01".into(),
        )
    }

    fn is_over(&self) -> bool {
        false
    }
}

struct Bench {
    directory: tempfile::TempDir,
    path: PathBuf,
    origin: Origin,
    recorder: Option<Recorder<Origin>>,
    begun: Instant,
    /// Connections times ms, and the most at once, by bucket.
    truth: BTreeMap<i64, (u64, u64)>,
    /// The most at once, by second.
    seconds: BTreeMap<i64, u64>,
    /// How far the wall clock was set, ms.
    set: i64,
}

/// When the tests begin, ms since 1970: 30 s before a bucket ends.
const BEGIN: i64 = 1_700_000_100_000 + 270_000;
/// The bucket that they begin in.
const FIRST: i64 = 1_700_000_100;

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("utilization.db");
        Self {
            directory,
            path,
            origin: Origin::new(BEGIN),
            recorder: None,
            begun: Instant::now(),
            truth: BTreeMap::new(),
            seconds: BTreeMap::new(),
            set: 0,
        }
    }

    fn start(&mut self) {
        let history = History::open(&self.path).unwrap();
        self.recorder = Some(Recorder::new(
            self.origin.clone(),
            history,
            Retention::default(),
        ));
    }

    /// Killed: nothing is kept at the end.
    fn kill(&mut self) {
        self.recorder = None;
    }

    /// Second by second from one to another, with these connections by ms; whoever records looks at each second.
    fn run(&mut self, seconds: std::ops::Range<i64>, active: impl Fn(i64) -> u64) {
        for second in seconds {
            self.look(second);
            for ms in (0..1_000).step_by(10) {
                let at = second * 1_000 + ms;
                self.at(at);
                let before = self.origin.0.borrow().active;
                let active = active(at);
                self.origin.become_(active);
                let wall = BEGIN + at + self.set;
                let most = self.seconds.entry(wall.div_euclid(1_000)).or_default();
                *most = before.max(active).max(*most);
                let truth = self
                    .truth
                    .entry(wall.div_euclid(300_000) * 300)
                    .or_default();
                truth.0 += active * 10;
                truth.1 = truth.1.max(active);
            }
        }
    }

    fn at(&self, ms: i64) {
        self.origin.0.borrow_mut().now = (3_600_000 + u64::try_from(ms).unwrap()) * MS;
    }

    fn look(&mut self, second: i64) {
        self.at(second * 1_000);
        if let Some(recorder) = &mut self.recorder {
            let since = Duration::from_secs(u64::try_from(second).unwrap());
            recorder.look(self.begun + since).unwrap();
        }
    }

    /// Ends the recorder in order.
    fn end(&mut self, second: i64) {
        self.look(second);
        self.recorder.take().unwrap().save(self.begun).unwrap();
    }

    /// What was kept of the bucket that many after the first: sum, covered, missed, maximum, account.
    fn kept(&self, nth: i64) -> (u64, u64, u64, u64, String) {
        let history = History::open(&self.path).unwrap();
        let bucket = history.load(FIRST + nth * 300).unwrap().unwrap();
        let series = bucket.series.values().next().unwrap();
        (
            series.sum.all,
            bucket.covered.all,
            series.missed,
            series.max,
            series.account.clone(),
        )
    }

    /// That it is what was.
    fn check(&self, nth: i64, covered: u64) {
        let (sum, found, missed, max, account) = self.kept(nth);
        let (true_sum, true_max) = self.truth[&(FIRST + nth * 300)];
        assert_eq!(
            (found, missed, max, account.as_str()),
            (covered, 0, true_max, "a1"),
            "{nth}"
        );
        let off = sum.abs_diff(true_sum);
        assert!(
            off * 1_000 <= true_sum,
            "{nth}: {sum} instead of {true_sum}"
        );
    }

    fn has(&self, nth: i64) -> bool {
        let history = History::open(&self.path).unwrap();
        let bucket = history.load(FIRST + nth * 300).unwrap();
        bucket.is_some_and(|bucket| !bucket.series.is_empty())
    }
}

/// Steps, a ramp, and peaks of 30 ms that no look of a second sees.
fn load(ms: i64) -> u64 {
    let second = ms / 1_000;
    let base = match second {
        ..=60 => 40,
        61..=200 => 300,
        201..=360 => u64::try_from(second).unwrap() * 2,
        _ => 90,
    };
    let peak = [100, 333, 500].contains(&second) && (400..430).contains(&(ms % 1_000));
    if peak { base + 400 } else { base }
}

#[test]
fn obs_1_averages_within_a_thousandth_and_exact_maxima() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..931, load);
    bench.check(0, 30_000);
    bench.check(1, 300_000);
    bench.check(2, 300_000);
    let (sum, covered, ..) = bench.kept(0);
    assert_eq!((sum, covered), (40 * 30_000, 30_000), "from the first on");
    assert_eq!(bench.truth[&(FIRST + 600)].1, 2 * 333 + 400);
}

#[test]
fn obs_1_a_killed_daemon_loses_neither_peak_nor_time() {
    // Within a bucket; over its end; over two ends, where the first one is gone by then but for what was kept.
    for gap in [5, 25, 290] {
        let mut bench = Bench::new();
        bench.start();
        bench.run(0..90, load);
        bench.kill();
        bench.run(90..90 + gap, load);
        bench.start();
        bench.run(90 + gap..671, load);
        for nth in 0..3 {
            bench.check(nth, if nth == 0 { 30_000 } else { 300_000 });
        }
    }
}

#[test]
fn obs_1_what_the_data_plane_does_not_remember_is_left_out() {
    let mut bench = Bench::new();
    bench.start();
    // Kept: 30 s of the second bucket, at 60 s.
    bench.run(0..80, load);
    bench.kill();
    bench.run(80..940, |ms| 3 + u64::from(ms % 60_000 > 30_000));
    bench.start();
    bench.run(940..1_300, |_| 3);
    let (sum, covered, missed, max, _) = bench.kept(1);
    assert_eq!((covered, missed, max), (300_000, 270_000, 40));
    assert!(sum.abs_diff(30_000 * 40) <= 300, "{sum}");
    assert!(!bench.has(2), "nothing, rather than a wrong number");
    // The last one before the daemon came back, and all after.
    bench.check(3, 300_000);
    bench.check(4, 300_000);
}

#[test]
fn obs_1_nothing_is_lost_of_a_count_that_does_not_change_however_long_the_daemon_is_dead() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..80, |_| 7);
    bench.kill();
    bench.run(80..2_000, |_| 7);
    bench.start();
    bench.run(2_000..2_200, |_| 7);
    for nth in 1..7 {
        assert_eq!(bench.kept(nth).0, 7 * 300_000, "{nth}");
        bench.check(nth, 300_000);
    }
}

#[test]
fn obs_1_a_counter_that_was_given_up_meanwhile() {
    // It was seen at zero: there is nothing to miss.
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..100, |ms| u64::from(ms < 50_000) * 3);
    bench.kill();
    bench.run(100..110, |_| 0);
    bench.origin.retire();
    bench.start();
    bench.run(110..332, |_| 0);
    bench.check(1, 300_000);
    // It was seen at work, and nobody knows until when. A new one for the same origin knows its own time.
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..95, |_| 3);
    bench.kill();
    bench.run(95..110, |_| 0);
    bench.origin.retire();
    bench.start();
    bench.run(110..332, |ms| u64::from(ms >= 200_000) * 5);
    let (sum, covered, missed, max, _) = bench.kept(1);
    assert_eq!((covered, max), (300_000, 5));
    // Kept at 90 s, and looked at again at 110 s.
    assert_eq!(missed, 20_000);
    assert!(sum.abs_diff(60_000 * 3 + 130_000 * 5) < 2_000, "{sum}");
}

#[test]
fn obs_1_a_daemon_with_a_new_file_has_what_the_data_plane_has() {
    let mut bench = Bench::new();
    bench.run(0..200, load);
    bench.start();
    bench.run(200..332, load);
    bench.check(0, 30_000);
    bench.check(1, 300_000);
}

#[test]
fn obs_1_new_maps_add_to_the_five_minutes_of_the_old_ones() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..100, |_| 10);
    bench.end(100);
    // The machine starts anew, and takes 20 s for it.
    bench.origin = Origin::new(BEGIN + 120_000);
    bench.origin.0.borrow_mut().now = 3_600_000 * MS;
    bench.origin.become_(4);
    bench.start();
    bench.origin.0.borrow_mut().now += 50_000 * MS;
    let recorder = bench.recorder.as_mut().unwrap();
    recorder.look(bench.begun).unwrap();
    recorder.save(bench.begun).unwrap();
    let (sum, covered, missed, max, _) = bench.kept(1);
    assert_eq!((covered, missed, max), (70_000 + 50_000, 0, 10));
    assert_eq!(sum, 10 * 70_000 + 4 * 50_000);
}

#[test]
fn obs_1_a_clock_that_is_set_back_adds_to_the_bucket_that_has_been() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..40, |_| 10);
    // 10 s into the second bucket, back by 20 s; then forward by an hour.
    bench.at(40_000);
    bench.origin.set(-20_000);
    bench.set = -20_000;
    bench.run(40..55, |ms| if ms < 45_000 { 10 } else { 2 });
    bench.at(55_000);
    bench.origin.set(3_600_000);
    bench.set += 3_600_000;
    bench.run(55..100, |_| 6);
    bench.end(100);
    bench.check(0, 30_000 + 10_000);
    bench.check(1, 10_000 + 5_000);
    bench.check(13, 45_000);
    assert_eq!(bench.truth.keys().count(), 3);
}

#[test]
fn obs_1_a_clock_that_was_set_while_nobody_looked() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..50, |_| 10);
    bench.kill();
    bench.run(50..60, |_| 20);
    // The next daemon sees it when it starts, and tells the data plane before it looks.
    bench.at(60_000);
    bench.origin.set(-40_000);
    bench.set = -40_000;
    bench.start();
    bench.run(60..100, |ms| if ms < 61_000 { 20 } else { 5 });
    bench.end(100);
    bench.check(0, 30_000 + 10_000);
    bench.check(1, 30_000 + 30_000);
}

#[test]
fn a_file_that_cannot_be_written_loses_nothing_for_five_minutes() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..331, load);
    let held = bench.recorder.take().unwrap();
    // Another process writes, for longer than anybody waits.
    let other = rusqlite::Connection::open(&bench.path).unwrap();
    other.execute_batch("BEGIN EXCLUSIVE").unwrap();
    bench.recorder = Some(held);
    bench.at(640_000);
    let since = Duration::from_secs(640);
    let failed = bench.recorder.as_mut().unwrap().look(bench.begun + since);
    assert!(failed.is_err());
    other.execute_batch("COMMIT").unwrap();
    bench.run(641..940, |_| 3);
    drop(bench.directory);
}

mod seconds;
