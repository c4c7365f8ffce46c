//! Looks at the counts every second, and keeps what it saw.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::bucket::Bucket;
use super::history::History;
use crate::control::Failure;
use crate::controller::Service;
use crate::dataplane::api::OriginRecord;
use crate::placed;
use crate::resource::{Address, Resources};

/// Time between two looks, ms; they fall on whole multiples of it, so that one is at the end of each bucket.
const PERIOD: i64 = 1_000;
/// Time after which a bucket under way is kept: what a killed daemon has not kept, the next one interpolates.
const KEEP: Duration = Duration::from_secs(30);
/// Peaks that are older belong to no bucket.
const STALE: i64 = 3_600_000;
/// How long history is kept, seconds: 31 days.
pub const KEPT: i64 = 31 * 86_400;

/// Where counts come from.
trait Source {
    /// The counts of now.
    fn counts(&self) -> Result<Vec<OriginRecord>, Failure>;

    /// The counts of now, whose peaks begin anew.
    fn take_peaks(&self) -> Result<Vec<OriginRecord>, Failure>;

    /// Whose is what, and the name of the data center.
    fn resources(&self) -> (Resources, String);

    /// Whether there are no counts any more, and never will be.
    fn is_over(&self) -> bool;
}

impl Source for Arc<Service> {
    fn counts(&self) -> Result<Vec<OriginRecord>, Failure> {
        Ok(self.view()?.counts()?)
    }

    fn take_peaks(&self) -> Result<Vec<OriginRecord>, Failure> {
        Ok(self.controller().dataplane_mut().take_peaks()?)
    }

    fn resources(&self) -> (Resources, String) {
        let controller = self.controller();
        let resources = controller.stored().resources();
        let server = &controller.config().server;
        let placed = placed::servers(&resources)
            .find(|one| one.server.name == server.name)
            .map(|one| one.data_center.name.clone());
        let pop = placed.unwrap_or_else(|| server.data_center.clone());
        drop(controller);
        (resources, pop)
    }

    fn is_over(&self) -> bool {
        self.controller().is_detached()
    }
}

/// What is being recorded.
struct Recorder<S> {
    source: S,
    history: History,
    bucket: Option<Bucket>,
    /// When it was looked at last, by a clock that nobody sets.
    looked: Option<Instant>,
    kept: Option<Instant>,
}

impl<S: Source> Recorder<S> {
    fn new(source: S, history: History) -> Self {
        Self {
            source,
            history,
            bucket: None,
            looked: None,
            kept: None,
        }
    }

    /// Looks at the counts; `now` is in ms since 1970. Whatever cannot be kept, recording goes on.
    fn look(&mut self, now: i64, instant: Instant) -> Result<(), Failure> {
        let Some((bucket, last)) = self.bucket.as_mut().zip(self.looked) else {
            let begun = self.begin(now);
            self.looked = self.bucket.as_ref().map(|_| instant);
            return begun.and_then(|()| self.save(instant));
        };
        let elapsed = instant.saturating_duration_since(last).as_millis();
        let elapsed = u64::try_from(elapsed).unwrap_or(0);
        if bucket.start != Bucket::of(now) {
            bucket.enter(now, elapsed, &self.source.take_peaks()?);
            self.looked = Some(instant);
            let kept = self.save(instant);
            let next = self
                .bucket
                .take()
                .map(|bucket| bucket.next(Bucket::of(now)));
            return kept.and(self.resume(next)).and(self.tidy(now));
        }
        // Where this fails, the next look covers this time, too.
        bucket.enter(now, elapsed, &self.source.counts()?);
        self.looked = Some(instant);
        let due = |kept| instant.saturating_duration_since(kept) >= KEEP;
        if self.kept.is_none_or(due) {
            self.save(instant)?;
        }
        Ok(())
    }

    /// Goes on where the last recorder stopped.
    fn begin(&mut self, now: i64) -> Result<(), Failure> {
        let last = self.history.last().map_err(failed)?;
        let past = last.filter(|bucket| bucket.until <= now);
        if let Some(mut bucket) = past {
            if bucket.start == Bucket::of(now) {
                let elapsed = u64::try_from(now - bucket.until).unwrap_or(0);
                bucket.enter(now, elapsed, &self.source.counts()?);
                self.bucket = Some(bucket);
                return Ok(());
            }
            if now - bucket.until < STALE {
                let counts = self.source.take_peaks()?;
                bucket.hold(&counts);
                let kept = self.keep(&mut bucket);
                return kept.and(self.resume(Some(Bucket::begin(now, &counts))));
            }
        }
        let counts = self.source.take_peaks()?;
        self.resume(Some(Bucket::begin(now, &counts)))
    }

    /// Goes on with this bucket. A clock that was set back leads into one that has been.
    fn resume(&mut self, bucket: Option<Bucket>) -> Result<(), Failure> {
        let before = bucket
            .as_ref()
            .map(|bucket| self.history.load(bucket.start));
        self.bucket = bucket;
        if let (Some(bucket), Some(before)) = (
            &mut self.bucket,
            before.transpose().map_err(failed)?.flatten(),
        ) {
            bucket.add(before);
        }
        Ok(())
    }

    /// Forgets what is too old.
    fn tidy(&mut self, now: i64) -> Result<(), Failure> {
        let oldest = Bucket::of(now) - KEPT;
        self.history.forget_before(oldest).map_err(failed)
    }

    /// Keeps what there is of the bucket under way.
    fn save(&mut self, instant: Instant) -> Result<(), Failure> {
        self.kept = Some(instant);
        let Some(mut bucket) = self.bucket.take() else {
            return Ok(());
        };
        let kept = self.keep(&mut bucket);
        self.bucket = Some(bucket);
        kept
    }

    fn keep(&mut self, bucket: &mut Bucket) -> Result<(), Failure> {
        let (resources, pop) = self.source.resources();
        for (key, series) in &mut bucket.series {
            if series.looked_up {
                continue;
            }
            series.looked_up = true;
            let owner = resources.pools.iter().find(|pool| {
                let has = |address: &Address| address.net().contains(&key.egress_ip);
                pool.addresses.iter().any(has)
            });
            // What is in no pool any more, for as long as it has connections, stays whose it was.
            if let Some(account) = owner.and_then(|pool| resources.account(&pool.account)) {
                series.account.clone_from(&account.id);
            }
        }
        self.history.save(bucket, &pop).map_err(failed)
    }
}

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::failed(
        format!("utilization: {error}"),
        "look at that file and the space left on its disk; removing it loses the history and nothing else",
    )
}

/// A thread that records. Dropping it ends that, and keeps what there is.
#[derive(Debug)]
pub struct Recording {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Recording {
    /// Begins to record into the file at `path`.
    ///
    /// # Errors
    /// When the file cannot be used, or there is no thread to be had.
    pub fn start(service: Arc<Service>, path: &Path) -> Result<Self, Failure> {
        let history = History::open(path).map_err(failed)?;
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("utilization".into())
            .spawn(move || run(Recorder::new(service, history), &ended))
            .map_err(failed)?;
        Ok(Self {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn run<S: Source>(mut recorder: Recorder<S>, ended: &mpsc::Receiver<()>) {
    let mut trouble: Option<String> = None;
    while look(&mut recorder, &mut trouble) {
        let rest = PERIOD - now().rem_euclid(PERIOD);
        let rest = Duration::from_millis(u64::try_from(rest).unwrap_or(1));
        match ended.recv_timeout(rest) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                look(&mut recorder, &mut trouble);
                break;
            }
        }
    }
    let outcome = recorder.save(Instant::now());
    if outcome.is_err() {
        note(&mut trouble, outcome);
    }
}

/// Looks once; says whether there will be more to see.
fn look<S: Source>(recorder: &mut Recorder<S>, trouble: &mut Option<String>) -> bool {
    let outcome = recorder.look(now(), Instant::now());
    // After a detach there is nothing to count, which is nobody's trouble.
    if outcome.is_err() && recorder.source.is_over() {
        return false;
    }
    note(trouble, outcome);
    true
}

/// Says what went wrong when it begins, changes and ends.
fn note(trouble: &mut Option<String>, outcome: Result<(), Failure>) {
    let now = outcome.err().map(|failure| failure.to_string());
    if *trouble != now {
        match &now {
            Some(failure) => tracing::error!("utilization is not recorded: {failure}"),
            None => tracing::info!("utilization is recorded again"),
        }
        *trouble = now;
    }
}

/// Now, ms since 1970.
fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0))
}

#[cfg(test)]
mod tests;
