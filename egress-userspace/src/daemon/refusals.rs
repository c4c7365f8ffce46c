//! The task that logs refusals (OBS-4). It has no end of its own: should it come to one, that is said, and it is
//! begun anew.

use std::io;

use tokio::task::JoinHandle;

use crate::dataplane::api::DataPlaneError;

/// A running log, and how to begin another one.
pub(super) struct Refusals<O> {
    open: O,
    task: Option<JoinHandle<io::Error>>,
}

impl<O, L> Refusals<O>
where
    O: Fn() -> Result<L, DataPlaneError>,
    L: Future<Output = io::Error> + Send + 'static,
{
    /// Begins to log.
    ///
    /// # Errors
    /// Those of `open`.
    pub(super) fn start(open: O) -> Result<Self, DataPlaneError> {
        let task = Some(tokio::spawn(open()?));
        Ok(Self { open, task })
    }

    /// Begins anew where the log has ended; says so.
    ///
    /// # Errors
    /// Those of `open`: the next call tries again.
    pub(super) async fn look_after(&mut self) -> Result<Vec<String>, DataPlaneError> {
        let mut said = Vec::new();
        if self.task.as_ref().is_some_and(JoinHandle::is_finished)
            && let Some(ended) = self.task.take()
        {
            let cause = match ended.await {
                Ok(error) => error.to_string(),
                Err(error) => error.to_string(),
            };
            said.push(format!(
                "the log of refused packets has ended ({cause}), and is begun anew"
            ));
        }
        if self.task.is_none() {
            self.task = Some(tokio::spawn((self.open)()?));
        }
        Ok(said)
    }

    /// Ends it.
    pub(super) fn stop(self) {
        if let Some(task) = self.task {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::task::yield_now;

    use super::*;

    /// A log that ends the first two times, once by a panic, and cannot be opened in between.
    #[tokio::test]
    async fn obs_4_a_log_that_ends_is_said_and_begun_anew() {
        let opened = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&opened);
        let open = move || {
            let number = count.fetch_add(1, Ordering::Relaxed);
            if number == 1 {
                return Err(DataPlaneError::failed("opening", "no memory"));
            }
            Ok(async move {
                match number {
                    0 => io::Error::other("gone"),
                    2 => panic!("an end that nobody planned"),
                    _ => std::future::pending().await,
                }
            })
        };
        let mut log = Refusals::start(open).unwrap();
        let ended = async |log: &Refusals<_>| {
            while !log.task.as_ref().unwrap().is_finished() {
                yield_now().await;
            }
        };
        ended(&log).await;
        assert!(log.look_after().await.is_err());
        assert_eq!(log.look_after().await.unwrap(), Vec::<String>::new());
        ended(&log).await;
        let said = log.look_after().await.unwrap();
        assert!(
            said.len() == 1 && said[0].contains("begun anew"),
            "{said:?}"
        );
        yield_now().await;
        assert_eq!(log.look_after().await.unwrap(), Vec::<String>::new());
        assert!(!log.task.as_ref().unwrap().is_finished());
        assert_eq!(opened.load(Ordering::Relaxed), 4);
        log.stop();
    }
}
