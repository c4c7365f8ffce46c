//! The thread that turns records into lines.

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::directory::Policy;
use super::entry::{Entry, Event};
use super::file::Output;
use super::line;
use super::{Shared, Snapshot};
use crate::config::FlowLog;
use crate::control::Failure;
use crate::dataplane::RecordRing;

/// How often it looks for records: the ring holds as many as come in that time, at a million flows a second.
const PERIOD: Duration = Duration::from_millis(20);
/// How long it waits before it tries again to write.
const RETRY: Duration = Duration::from_secs(1);
/// Lines written at once, bytes.
const BATCH: usize = 65_536;
/// How often it waits for the names of a configuration that has just come into force, a [`PERIOD`] each.
const WAITS: u32 = 50;
/// How long lines are written after a writer was told to end, and how long the end of the daemon waits for that.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);
const SECOND: u64 = 1_000_000_000;

/// The log while it is written.
pub(super) struct Writing {
    thread: Thread,
    ending: Arc<AtomicBool>,
    ended: Receiver<()>,
}

impl Writing {
    /// Begins to write what is in the ring.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub(super) fn start(
        ring: impl Records + Send + 'static,
        log: &FlowLog,
        shared: Arc<Shared>,
    ) -> Result<Self, Failure> {
        Self::run(ring, Writer::new(log, shared))
    }

    fn run(ring: impl Records + Send + 'static, mut writer: Writer) -> Result<Self, Failure> {
        let ending = Arc::new(AtomicBool::new(false));
        let (end, ended) = mpsc::channel();
        let stop = Arc::clone(&ending);
        let handle = thread::Builder::new()
            .name("flow-log".into())
            .spawn(move || {
                // When it ends, however it does, the other end hears of it.
                let _end = end;
                while !stop.load(Ordering::Relaxed) {
                    thread::park_timeout(writer.step(&ring));
                }
                // What was told before the end; there may be no end of what is told after it.
                let end = Instant::now() + FAREWELL;
                while writer.step(&ring).is_zero() && Instant::now() < end {}
            })
            .map_err(|error| Failure::failed(format!("no thread for the flow log: {error}"), ""))?;
        Ok(Self {
            thread: handle.thread().clone(),
            ending,
            ended,
        })
    }

    /// Tells it to write what is there, and to end. Whoever reads what it writes may keep it from that for ever.
    pub(super) fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }

    /// Whether it has ended: nobody reads the ring any more.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected))
    }
}

impl Drop for Writing {
    /// Writes what is there; whoever reads standard output may keep it from that, but not the daemon from its end.
    fn drop(&mut self) {
        self.end();
        if matches!(
            self.ended.recv_timeout(FAREWELL),
            Err(mpsc::RecvTimeoutError::Timeout)
        ) {
            tracing::warn!(
                "the flow log cannot be finished now; what is left waits in the ring buffer"
            );
        }
    }
}

/// Records to be read, by one reader at a time.
pub trait Records {
    /// Looks at records until `each` has enough.
    fn look(&self, each: impl FnMut(&[u8], u64) -> bool);
    /// Takes what lies before a place.
    fn take(&self, place: u64);
    /// Where other servers are reached, by their numbers.
    fn servers(&self) -> BTreeMap<u32, IpAddr>;
}

impl Records for RecordRing {
    fn look(&self, each: impl FnMut(&[u8], u64) -> bool) {
        self.look(each);
    }

    fn take(&self, place: u64) {
        self.take(place);
    }

    fn servers(&self) -> BTreeMap<u32, IpAddr> {
        self.servers().unwrap_or_default()
    }
}

struct Writer {
    output: Output,
    shared: Arc<Shared>,
    limit: Limit,
    /// What is wrong, since it was said.
    trouble: Option<String>,
    /// How often it has waited for names.
    waited: u32,
    batch: Batch,
}

/// Records looked at, and their lines.
#[derive(Default)]
struct Batch {
    lines: Vec<u8>,
    /// Behind each record: where its line ends, its place in the ring, and which count it is of.
    marks: Vec<(usize, u64, What)>,
    /// Another record waits for names.
    behind: bool,
}

#[derive(Clone, Copy)]
enum What {
    /// A line; the event's place.
    Line(usize),
    Limited,
    Unreadable,
}

impl Writer {
    fn new(log: &FlowLog, shared: Arc<Shared>) -> Self {
        Self {
            output: Output::of(log),
            shared,
            limit: Limit::new(log.refusals_per_second),
            trouble: None,
            waited: 0,
            batch: Batch::default(),
        }
    }

    /// Writes a batch; how long to wait for the next one.
    fn step(&mut self, ring: &impl Records) -> Duration {
        let limit = self.limit;
        self.fill(ring);
        if self.batch.marks.is_empty() {
            self.waited += u32::from(self.batch.behind);
            return PERIOD;
        }
        self.waited = 0;
        let (written, outcome) = match self.output.write(&self.batch.lines) {
            Ok(()) => (self.batch.lines.len(), Ok(())),
            Err(unwritten) => (unwritten.written, Err(unwritten.error)),
        };
        self.commit(ring, written);
        match outcome {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!("the flow log is written again to {}", self.output.name());
                }
                Duration::ZERO
            }
            Err(error) => {
                // They are looked at again.
                self.limit = limit;
                let error = error.to_string();
                if self.trouble.as_ref() != Some(&error) {
                    tracing::error!(
                        "the flow log cannot be written to {}: {error}; connections go on, and records wait in the \
                         ring buffer until it is full",
                        self.output.name()
                    );
                    self.trouble = Some(error);
                }
                RETRY
            }
        }
    }

    /// Makes lines of the records that are there.
    fn fill(&mut self, ring: &impl Records) {
        let Self {
            shared,
            limit,
            batch,
            waited,
            ..
        } = self;
        batch.lines.clear();
        batch.marks.clear();
        batch.behind = false;
        let directory = shared.directory();
        let offset = offset();
        let servers = LazyCell::new(|| ring.servers());
        ring.look(|record, place| {
            let what = match Entry::read(record) {
                None => What::Unreadable,
                Some(entry) => {
                    let to_come = |(version, number)| {
                        directory.policy(version, number, entry.time) == Policy::ToCome
                    };
                    if *waited < WAITS && entry.policy.is_some_and(to_come) {
                        batch.behind = true;
                        return false;
                    }
                    if matches!(entry.event, Event::Refused(_)) && !limit.allows(entry.time) {
                        What::Limited
                    } else {
                        let address = |number| servers.get(&number).copied();
                        line::write(&mut batch.lines, &entry, &directory, offset, address);
                        What::Line(entry.event.place())
                    }
                }
            };
            batch.marks.push((batch.lines.len(), place, what));
            batch.lines.len() < BATCH
        });
    }

    /// Takes the records whose lines are written.
    fn commit(&self, ring: &impl Records, written: usize) {
        let mut counted = Snapshot::default();
        let mut taken = None;
        for (end, place, what) in &self.batch.marks {
            if *end > written {
                break;
            }
            taken = Some(*place);
            match what {
                What::Line(kind) => {
                    if let Some(count) = counted.written.get_mut(*kind) {
                        *count += 1;
                    }
                }
                What::Limited => counted.limited += 1,
                What::Unreadable => counted.unreadable += 1,
            }
        }
        if let Some(place) = taken {
            ring.take(place);
            self.shared.counts().add(counted);
        }
    }
}

/// How many refusals are logged in a second of the records' clock.
#[derive(Clone, Copy)]
struct Limit {
    most: u32,
    second: u64,
    count: u32,
}

impl Limit {
    const fn new(most: u32) -> Self {
        Self {
            most,
            second: 0,
            count: 0,
        }
    }

    fn allows(&mut self, time: u64) -> bool {
        // Records of two CPUs may come a little out of order: the later second is the one that counts.
        let second = (time / SECOND).max(self.second);
        if second != self.second {
            (self.second, self.count) = (second, 0);
        }
        self.count = self.count.saturating_add(1);
        self.count <= self.most
    }
}

/// What the clock of the day is ahead of the monotonic one, ns.
fn offset() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let day = since.map_or(0, |since| {
        i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
    });
    day - i128::from(monotonic())
}

/// ns of the monotonic clock, which the data plane's records go by.
pub(crate) fn monotonic() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * SECOND + u64::try_from(now.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests;
