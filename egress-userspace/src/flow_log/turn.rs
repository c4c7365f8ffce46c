//! Whose turn it is to read the ring: one writer's, and after it the next one's.
//!
//! A writer may be kept from its end by whoever reads what it writes (a pipe that nobody empties, a disk that does not
//! answer). Another one beside it would read what it has read, and each would give the kernel back what the other still
//! reads.

use std::sync::Arc;
use std::time::Instant;

use super::Shared;
use super::writer::{FAREWELL, Records, Writing};
use crate::config::FlowLog;
use crate::control::Failure;

/// The log as it is written, and the one before it while that has not ended.
#[derive(Default)]
pub struct Turn {
    config: Option<FlowLog>,
    writing: Option<Writing>,
    leaving: Option<Leaving>,
}

struct Leaving {
    writing: Writing,
    since: Instant,
    said: bool,
}

impl Turn {
    /// Does what the configuration says by now; never waits. Returns what is worth a warning.
    ///
    /// # Errors
    /// The ring cannot be opened, or there is no thread to be had; it is tried again the next time.
    pub fn follow<R, E>(
        &mut self,
        config: Option<FlowLog>,
        shared: &Arc<Shared>,
        open: impl FnOnce() -> Result<R, E>,
    ) -> Result<Vec<String>, E>
    where
        R: Records + Send + 'static,
        E: From<Failure>,
    {
        if self.config != config {
            self.config = config;
            if let Some(writing) = self.writing.take() {
                writing.end();
                self.leaving = Some(Leaving {
                    writing,
                    since: Instant::now(),
                    said: false,
                });
            }
        }
        if let Some(leaving) = &mut self.leaving {
            if !leaving.writing.is_over() {
                let say = !leaving.said && leaving.since.elapsed() >= FAREWELL;
                leaving.said |= say;
                let stuck = "the flow log as it was cannot be finished: whoever reads it has stopped; what comes now waits in \
                             the ring buffer until that goes on";
                return Ok(say.then(|| stuck.to_owned()).into_iter().collect());
            }
            self.leaving = None;
        }
        if let Some(config) = self.config.as_ref().filter(|_| self.writing.is_none()) {
            let writing = Writing::start(open()?, config, Arc::clone(shared))?;
            self.writing = Some(writing);
        }
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use std::net::IpAddr;
    use std::sync::{Mutex, MutexGuard};
    use std::time::Duration;

    use super::*;
    use crate::config::Target;

    /// A ring that keeps its reader for as long as somebody holds the gate.
    struct Gated(Arc<Mutex<()>>);

    impl Records for Gated {
        fn look(&self, _: impl FnMut(&[u8], u64) -> bool) {
            drop(self.0.lock().unwrap());
        }

        fn take(&self, _: u64) {}

        fn servers(&self) -> BTreeMap<u32, IpAddr> {
            BTreeMap::new()
        }
    }

    #[derive(Debug)]
    struct Never;

    impl From<Failure> for Never {
        fn from(failure: Failure) -> Self {
            panic!("{failure}");
        }
    }

    impl From<Infallible> for Never {
        fn from(never: Infallible) -> Self {
            match never {}
        }
    }

    #[test]
    fn obs_4_the_next_writer_begins_when_the_one_before_has_ended() {
        let files = tempfile::tempdir().unwrap();
        let log = |name: &str| FlowLog {
            target: Target::File(files.path().join(name)),
            ..FlowLog::default()
        };
        let (gate, mut opened) = (Arc::new(Mutex::new(())), 0);
        let (mut turn, shared) = (Turn::default(), Arc::default());
        let follow = |turn: &mut Turn, config: Option<FlowLog>, opened: &mut i32| {
            turn.follow::<_, Never>(config, &shared, || {
                *opened += 1;
                Ok(Gated(Arc::clone(&gate)))
            })
            .unwrap()
        };
        let held: MutexGuard<'_, ()> = gate.lock().unwrap();
        follow(&mut turn, Some(log("a")), &mut opened);
        assert_eq!(opened, 1);
        // Another place, none, and another one again: the first reader is in its record still.
        for config in [Some(log("b")), None, Some(log("c"))] {
            follow(&mut turn, config, &mut opened);
            assert!(opened == 1 && turn.writing.is_none());
        }
        let past = Instant::now().checked_sub(2 * FAREWELL).unwrap();
        turn.leaving.as_mut().unwrap().since = past;
        assert_eq!(follow(&mut turn, Some(log("c")), &mut opened).len(), 1);
        assert_eq!(
            follow(&mut turn, Some(log("c")), &mut opened).len(),
            0,
            "once"
        );
        drop(held);
        let long = Instant::now() + Duration::from_secs(60);
        while opened == 1 && Instant::now() < long {
            follow(&mut turn, Some(log("c")), &mut opened);
            std::thread::yield_now();
        }
        assert!(opened == 2 && turn.writing.is_some() && turn.leaving.is_none());
    }
}
