//! Looks at the counts every second, and keeps what it saw.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use egress_common::usage::PERIOD;

use super::bucket::Bucket;
use super::history::History;
use super::rollup::Retention;
use super::shared::{Shared, shared};
use super::stretch::Stretch;
use crate::control::Failure;
use crate::controller::Service;
use crate::dataplane::api::UsageLook;
use crate::placed;
use crate::resource::{Address, Resources};

/// Time between two looks, ms.
const REST: i64 = 1_000;
/// How long after a second's beginning it is looked, ms: late enough that the data plane's clock, which goes by ticks, is in
/// it, too, and early enough that a busy machine seldom misses a whole second.
const AFTER: i64 = 50;
/// Time after which a bucket under way is kept: what a killed daemon has not kept, the data plane still has.
const KEEP: Duration = Duration::from_secs(30);

/// Where counts come from.
trait Source {
    /// What the counts of now have of their use.
    fn usage(&self) -> Result<UsageLook, Failure>;

    /// Whose is what, and the name of the data center.
    fn resources(&self) -> (Resources, String);

    /// Whether there are no counts any more, and never will be.
    fn is_over(&self) -> bool;
}

impl Source for Arc<Service> {
    fn usage(&self) -> Result<UsageLook, Failure> {
        Ok(self.view()?.usage()?)
    }

    fn resources(&self) -> (Resources, String) {
        let controller = self.controller();
        let resources = controller.stored().resources();
        let server = &controller.config().server;
        let pop = placed::data_center(&resources, server).to_owned();
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
    retention: Retention,
    bucket: Option<Bucket>,
    /// The addresses that servers of this data center share.
    shared: Option<Shared>,
    /// The maps that were read, and until when by their clock, ns.
    read: Option<(u64, u64)>,
    kept: Option<Instant>,
}

impl<S: Source> Recorder<S> {
    fn new(source: S, history: History, retention: Retention) -> Self {
        Self {
            source,
            history,
            retention,
            bucket: None,
            shared: None,
            read: None,
            kept: None,
        }
    }

    /// Looks at the counts. Where this fails, the next look covers this time, too.
    fn look(&mut self, instant: Instant) -> Result<(), Failure> {
        let look = self.source.usage()?;
        let shares = self.shared.take().unwrap_or_else(|| {
            let (resources, pop) = self.source.resources();
            shared(&resources, &pop)
        });
        let made = look.clock.made;
        let read = match self.read {
            Some((of, until)) if of == made => Some(until),
            _ => self.history.until(made).map_err(failed)?,
        };
        // Where nothing was read yet, what the data plane has of each count.
        let after = read.unwrap_or_else(|| look.now.saturating_sub(2 * PERIOD));
        let gap = read.map_or(0, |read| look.now.saturating_sub(read));
        let mut lost = 0;
        for stretch in Stretch::all(&look.clock, after, look.now) {
            self.turn_to(stretch.bucket())?;
            if let Some(bucket) = &mut self.bucket {
                lost += bucket.enter(&look, &stretch, read, &shares);
            }
            self.read = Some((made, stretch.to));
        }
        self.shared.get_or_insert(shares);
        if lost > 0 {
            let before = match gap / 1_000_000_000 {
                0 => "what the data plane counted before there was a history of it is older than it remembers".to_owned(),
                seconds => format!(
                    "utilization was not recorded for {seconds} s, longer than the data plane remembers"
                ),
            };
            tracing::warn!("{before}: {lost} times five minutes of one count are left out");
        }
        let due = |kept| instant.saturating_duration_since(kept) >= KEEP;
        if self.kept.is_none_or(due) {
            self.save(instant)?;
        }
        Ok(())
    }

    /// Goes on with the bucket that began then; a clock that was set back, and a daemon that was started anew, come into
    /// one that has been. The last one is kept first: if it cannot be, it stays.
    fn turn_to(&mut self, start: i64) -> Result<(), Failure> {
        if self.bucket.as_ref().is_some_and(|one| one.start == start) {
            return Ok(());
        }
        let known = self.history.load(start).map_err(failed)?;
        if let Some(mut bucket) = self.bucket.take() {
            let kept = self.keep(&mut bucket);
            self.bucket = Some(bucket);
            kept?;
        }
        let next = known.unwrap_or_else(|| Bucket::new(start, self.bucket.as_ref()));
        self.bucket = Some(next);
        self.history.tidy(start, &self.retention).map_err(failed)
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
        let shares = shared(&resources, &pop);
        for (key, series) in &mut bucket.series {
            if let Some(whole) = shares.get(&key.egress_ip) {
                series.whole = *whole;
            }
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
        self.shared = Some(shares);
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
    pub fn start(service: Arc<Service>, path: &Path, kept: Retention) -> Result<Self, Failure> {
        let history = History::open(path).map_err(failed)?;
        let (end, ended) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("utilization".into())
            .spawn(move || run(Recorder::new(service, history, kept), &ended))
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
        let rest = REST - (now() - AFTER).rem_euclid(REST);
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
    let outcome = recorder.look(Instant::now());
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
