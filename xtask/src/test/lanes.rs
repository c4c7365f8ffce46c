//! Test binaries side by side: most of a lab's time is waiting, for timers, daemons and retransmissions, so two labs
//! share a machine well. Each has namespaces, pins and files of its own (`egress-tests`, `registry`).

use std::{
    num::NonZero,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;

use super::watch;
use crate::report::Tally;

/// More at once than this would measure each other.
const MOST: usize = 2;

/// A test binary to run, by the name it has in the report.
pub(super) struct Entry {
    /// `tests of PACKAGE: TARGET`.
    pub(super) name: String,
    /// How to run it.
    pub(super) command: Command,
}

/// How one ended.
pub(super) struct Ended {
    /// As in [`Entry`].
    pub(super) name: String,
    /// What it counted, or why it could not be run.
    pub(super) tally: Result<Tally>,
    /// How long it took.
    pub(super) time: Duration,
}

/// Runs all entries, in their order, as many at once as the machine has CPUs for and at most [`MOST`]. Every line of output is
/// printed as it comes, with the target it is of in front; `done` is told of each that has ended, in turn.
pub(super) fn run(entries: Vec<Entry>, done: impl FnMut(Ended) + Send) {
    let lanes = thread::available_parallelism().map_or(1, NonZero::get);
    let waiting = Mutex::new(entries.into_iter());
    let done = Mutex::new(done);
    thread::scope(|scope| {
        for _ in 0..lanes.min(MOST) {
            scope.spawn(|| {
                loop {
                    let next = waiting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .next();
                    let Some(Entry { name, command }) = next else {
                        return;
                    };
                    let start = Instant::now();
                    let tally = watch(command, &format!("{}: ", label(&name)));
                    let ended = Ended {
                        name,
                        tally,
                        time: start.elapsed(),
                    };
                    done.lock().unwrap_or_else(PoisonError::into_inner)(ended);
                }
            });
        }
    });
}

/// What stands in front of a line: `leak` for `tests of egress-tests: tests/leak.rs`.
fn label(name: &str) -> &str {
    let target = name.rsplit('/').next().unwrap_or(name);
    target.strip_suffix(".rs").unwrap_or(target)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Entry, label, run};

    #[test]
    fn each_is_told_of_once_whatever_becomes_of_it() {
        let shell = |name: &str, script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            Entry {
                name: name.to_owned(),
                command,
            }
        };
        let mut ended = Vec::new();
        run(
            vec![
                shell("good", "echo 'test result: ok. 2 passed; 0 failed'"),
                shell(
                    "bad",
                    "echo 'test result: FAILED. 0 passed; 1 failed'; exit 1",
                ),
                shell("crash", "kill -SEGV $$"),
                Entry {
                    name: "missing".to_owned(),
                    command: Command::new("/nonexistent/test"),
                },
            ],
            |one| {
                let tally = one.tally.ok();
                ended.push((
                    one.name,
                    tally.map(|tally| (tally.passed(), tally.failed_names().len())),
                ));
            },
        );
        ended.sort();
        let expected = [
            ("bad", Some((0, 1))),
            ("crash", Some((0, 1))),
            ("good", Some((2, 0))),
            ("missing", None),
        ];
        let expected = expected.map(|(name, counts)| (name.to_owned(), counts));
        assert_eq!(ended, expected);
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(label("tests of egress-tests: tests/leak.rs"), "leak");
        assert_eq!(
            label("tests of xtask: binary xtask"),
            "tests of xtask: binary xtask"
        );
    }
}
