use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use super::*;
use crate::dataplane::api::Protocol;
use crate::diagnostic;
use crate::resource;

/// One origin of one egress IP, whose connections a test opens and closes.
#[derive(Clone, Default)]
struct Origin(Rc<RefCell<(u64, u64)>>);

impl Origin {
    /// Goes to this many connections, one after the other.
    fn become_(&self, active: u64) {
        let mut state = self.0.borrow_mut();
        if active > state.0 {
            state.1 = state.1.max(active);
        }
        state.0 = active;
    }

    fn record(&self) -> Vec<OriginRecord> {
        let (active, peak) = *self.0.borrow();
        vec![OriginRecord {
            egress_ip: [192, 0, 2, 1].into(),
            origin: ([203, 0, 113, 5], 443).into(),
            protocol: Protocol::Tcp,
            active,
            peak: peak.max(active),
            capacity: 1_000,
            utilization: 0.0,
            refused: 0,
        }]
    }
}

impl Source for Origin {
    fn counts(&self) -> Result<Vec<OriginRecord>, Failure> {
        let (active, peak) = *self.0.borrow();
        let mut records = self.record();
        records[0].peak = peak;
        records[0].active = active;
        Ok(records)
    }

    fn take_peaks(&self) -> Result<Vec<OriginRecord>, Failure> {
        let records = self.record();
        self.0.borrow_mut().1 = 0;
        Ok(records)
    }

    fn resources(&self) -> (Resources, String) {
        let text = "account = [{ id = \"a1\", name = \"acme\" }]\n[[pool]]\nid = \"p\"\naccount = \"acme\"\n\
                    addresses = [\"192.0.2.1\"]\n";
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
    _directory: tempfile::TempDir,
    path: PathBuf,
    origin: Origin,
    recorder: Option<Recorder<Origin>>,
    begun: Instant,
    /// Connections times ms, by bucket, and the most at once.
    truth: std::collections::BTreeMap<i64, (u64, u64)>,
}

/// When the tests begin, ms since 1970: 30 s before a bucket ends.
const BEGIN: i64 = 1_700_000_100_000 + 270_000;

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("utilization.db");
        Self {
            _directory: directory,
            path,
            origin: Origin::default(),
            recorder: None,
            begun: Instant::now(),
            truth: std::collections::BTreeMap::new(),
        }
    }

    fn start(&mut self) {
        let history = History::open(&self.path).unwrap();
        self.recorder = Some(Recorder::new(self.origin.clone(), history));
    }

    /// Second by second from one to another, with these connections by ms; whoever records looks at each second.
    fn run(&mut self, seconds: std::ops::Range<i64>, active: impl Fn(i64) -> u64) {
        for second in seconds {
            let now = BEGIN + second * 1_000;
            if let Some(recorder) = &mut self.recorder {
                let since = Duration::from_millis(u64::try_from(second * 1_000).unwrap());
                recorder.look(now, self.begun + since).unwrap();
            }
            for ms in (0..1_000).step_by(10) {
                let at = second * 1_000 + ms;
                let active = active(at);
                self.origin.become_(active);
                let truth = self.truth.entry(Bucket::of(BEGIN + at)).or_default();
                truth.0 += active * 10;
                truth.1 = truth.1.max(active);
            }
        }
    }

    /// What was kept of the bucket that many after the first: sum, covered, maximum, account.
    fn kept(&self, nth: i64) -> (u64, u64, u64, String) {
        let start = Bucket::of(BEGIN) + nth * 300;
        let history = History::open(&self.path).unwrap();
        let bucket = history.load(start).unwrap().unwrap();
        let series = bucket.series.values().next().unwrap();
        (
            series.sum,
            bucket.covered,
            series.max,
            series.account.clone(),
        )
    }

    /// That it is what was.
    fn check(&self, nth: i64) {
        let (sum, covered, max, account) = self.kept(nth);
        let (true_sum, true_max) = self.truth[&(Bucket::of(BEGIN) + nth * 300)];
        assert_eq!((covered, max, account.as_str()), (300_000, true_max, "a1"));
        let off = sum.abs_diff(true_sum);
        assert!(off * 100 <= true_sum, "{sum} instead of {true_sum}");
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
fn obs_1_averages_within_a_hundredth_and_exact_maxima() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..931, load);
    bench.check(1);
    bench.check(2);
    let (sum, covered, max, _) = bench.kept(0);
    assert_eq!((sum / covered, max), (39, 40), "from the first look on");
    assert_eq!(covered, 30_000);
    let unseen = bench.truth[&(Bucket::of(BEGIN) + 600)].1;
    assert_eq!(unseen, 2 * 333 + 400);
}

#[test]
fn obs_1_a_killed_daemon_loses_neither_peak_nor_time() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..98, load);
    // Killed: nothing is kept at the end. A peak of 30 ms falls into the gap.
    bench.recorder = None;
    bench.run(98..103, load);
    bench.start();
    bench.run(103..331, load);
    bench.check(1);
}

#[test]
fn obs_1_a_daemon_that_is_down_over_the_end_of_a_bucket_keeps_its_peak() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..320, load);
    bench.recorder = None;
    bench.run(320..340, load);
    bench.start();
    bench.run(340..640, load);
    let (_, covered, max, _) = bench.kept(1);
    assert_eq!(
        (covered, max),
        (300_000, 2 * 333 + 400),
        "that of second 333"
    );
    let (_, covered, max, _) = bench.kept(2);
    assert_eq!((covered, max), (290_000, 720));
}

#[test]
fn peaks_of_before_the_first_look_and_of_days_ago_belong_to_no_bucket() {
    let mut bench = Bench::new();
    bench.run(0..1, |_| 900);
    bench.run(1..2, |_| 5);
    bench.start();
    bench.run(2..3, |_| 5);
    assert_eq!(bench.kept(0).2, 5);
    bench.recorder = None;
    bench.run(3..4, |_| 700);
    bench.run(4..5, |_| 5);
    bench.start();
    bench.run(4_000..4_001, |_| 5);
    assert_eq!(bench.kept(0).2, 5);
    assert_eq!(bench.kept(14).2, 5);
}

#[test]
fn a_clock_that_is_set_back_adds_to_the_bucket_that_has_been() {
    let mut bench = Bench::new();
    bench.start();
    bench.run(0..40, |_| 10);
    let recorder = bench.recorder.as_mut().unwrap();
    let later = |seconds| bench.begun + Duration::from_secs(seconds);
    recorder.look(BEGIN + 20_000, later(40)).unwrap();
    recorder.look(BEGIN + 25_000, later(45)).unwrap();
    recorder.look(BEGIN + 30_000, later(50)).unwrap();
    let (sum, covered, max, account) = bench.kept(0);
    assert_eq!(
        (sum / 1_000, covered, max, account.as_str()),
        (395, 40_000, 10, "a1")
    );
    // Nothing of the ten seconds of after is lost either.
    let recorder = bench.recorder.as_mut().unwrap();
    recorder.save(later(50)).unwrap();
    assert_eq!(bench.kept(1).1, 10_000);
}
