use std::cell::Cell;
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use egress_common::reason::Reason;
use egress_common::record::{kind, policy};

use super::super::directory::tests::directory;
use super::super::entry::tests::{bytes, flow, head, refusal};
use super::*;
use crate::config::Target;

/// Records in memory, read as the kernel's are; a place is how many lie before it.
struct Kept {
    records: Vec<Vec<u8>>,
    taken: Cell<u64>,
}

impl Kept {
    fn of(records: Vec<Vec<u8>>) -> Self {
        Self {
            records,
            taken: Cell::new(0),
        }
    }
}

impl Records for Kept {
    fn look(&self, mut each: impl FnMut(&[u8], u64) -> bool) {
        let taken = self.taken.get();
        for (record, place) in self.records.iter().zip(1..).skip(taken as usize) {
            if !each(record, place) {
                return;
            }
        }
    }

    fn take(&self, place: u64) {
        assert!(place > self.taken.get(), "nothing is taken twice");
        self.taken.set(place);
    }

    fn servers(&self) -> BTreeMap<u32, IpAddr> {
        BTreeMap::new()
    }
}

fn writer(path: &Path, refusals_per_second: u32) -> Writer {
    let log = FlowLog {
        target: Target::File(path.to_owned()),
        refusals_per_second,
        ..FlowLog::default()
    };
    Writer::new(&log, Arc::default())
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn open(time: u64) -> Vec<u8> {
    bytes(&flow(head(kind::OPEN, 0, time)))
}

fn counts(writer: &Writer) -> ([u64; 3], u64, u64) {
    let counts = writer.shared.counts().snapshot();
    (counts.written, counts.limited, counts.unreadable)
}

#[test]
fn obs_4_every_record_becomes_one_line_and_is_taken_once_it_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flows.log");
    let mut writer = writer(&path, 1_000);
    let mut records: Vec<_> = (0..1_000).map(open).collect();
    records.insert(500, b"of another version".to_vec());
    let ring = Kept::of(records);
    // More than one batch.
    assert_eq!(writer.step(&ring), Duration::ZERO);
    let first = ring.taken.get();
    assert!((100..500).contains(&first), "{first}");
    while writer.step(&ring).is_zero() {}
    assert_eq!(ring.taken.get(), 1_001);
    assert_eq!(lines(&path).len(), 1_000);
    assert_eq!(counts(&writer), ([1_000, 0, 0], 0, 1));
    assert_eq!(writer.step(&ring), PERIOD, "nothing more");
}

#[test]
fn obs_4_what_cannot_be_written_stays_and_is_written_once_it_can_be() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flows.log");
    std::fs::create_dir(&path).unwrap();
    let mut writer = writer(&path, 2);
    let refused = |time| bytes(&refusal(Reason::CapReached, time));
    let ring = Kept::of(vec![open(1), refused(2), refused(3)]);
    for _ in 0..3 {
        assert_eq!(writer.step(&ring), RETRY);
    }
    assert_eq!((ring.taken.get(), counts(&writer)), (0, ([0; 3], 0, 0)));
    assert!(writer.trouble.is_some());
    std::fs::remove_dir(&path).unwrap();
    assert!(writer.step(&ring).is_zero());
    assert_eq!(ring.taken.get(), 3);
    assert_eq!(
        counts(&writer),
        ([1, 0, 2], 0, 0),
        "a second look counts for no limit"
    );
    assert_eq!(lines(&path).len(), 3);
    assert!(writer.trouble.is_none());
}

#[test]
fn obs_4_refusals_are_limited_by_the_second_and_flows_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("flows.log");
    let mut writer = writer(&path, 3);
    let mut records = Vec::new();
    for number in 0..10 {
        records.push(bytes(&refusal(Reason::CapReached, 5 * SECOND + number)));
        records.push(open(5 * SECOND + number));
    }
    records.push(bytes(&refusal(Reason::CapReached, 6 * SECOND)));
    // Late, of the second before.
    records.push(bytes(&refusal(Reason::CapReached, 6 * SECOND - 1)));
    let ring = Kept::of(records);
    while writer.step(&ring).is_zero() {}
    assert_eq!(counts(&writer), ([10, 0, 5], 7, 0));
    assert_eq!(lines(&path).len(), 15);
}

#[test]
fn obs_4_a_policy_that_has_just_come_into_force_is_waited_for() {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("flows.log");
    let mut writer = writer(&path, 3);
    writer.shared.publish(directory(&["old"], 0, 100));
    let decided = |version, time| {
        let mut open = flow(head(kind::OPEN, 0, time));
        open.head.policy = policy(version, 1);
        bytes(&open)
    };
    let ring = Kept::of(vec![decided(0, 150), decided(1, 200)]);
    assert!(writer.step(&ring).is_zero());
    assert_eq!(writer.step(&ring), PERIOD);
    assert_eq!(ring.taken.get(), 1);
    writer.shared.publish(directory(&["new"], 1, 210));
    assert!(writer.step(&ring).is_zero());
    let names: Vec<_> = lines(&path)
        .iter()
        .map(|line| line["policy"].clone())
        .collect();
    assert_eq!(names, ["old", "new"]);
    // Names that never come are not waited for for ever.
    let ring = Kept::of(vec![decided(0, 300)]);
    let mut steps = 0;
    while !writer.step(&ring).is_zero() {
        steps += 1;
        assert!(steps <= WAITS);
    }
    assert_eq!(lines(&path)[2]["policy"], "#0");
}

/// Whoever reads standard output has stopped: the thread is in the middle of a write, and has taken nothing of it.
#[test]
fn obs_4_a_writer_that_nobody_reads_has_not_ended_until_somebody_does() {
    let (mut reader, pipe) = io::pipe().unwrap();
    let writer = Writer {
        output: Output::Stdout(pipe.as_raw_fd()),
        ..writer(Path::new("unused"), 1)
    };
    let shared = Arc::clone(&writer.shared);
    let written = || shared.counts().snapshot().written[0];
    // More lines than a pipe holds.
    let writing = Writing::run(Kept::of((0..4_000).map(open).collect()), writer).unwrap();
    let mut first = [0; 1];
    reader.read_exact(&mut first).unwrap();
    writing.end();
    assert!(!writing.is_over());
    assert_eq!(written(), 0);
    let rest = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    let long = Instant::now() + Duration::from_secs(60);
    while !writing.is_over() && Instant::now() < long {
        thread::yield_now();
    }
    assert!(writing.is_over());
    drop(pipe);
    let text = rest.join().unwrap().unwrap();
    assert_eq!(text.lines().count() as u64, written());
    assert!(text.ends_with("}\n"));
}
