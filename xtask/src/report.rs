//! What `cargo xtask test` did: each step with its time, each failure and each skip by name, and the closing line
//! `N passed, N failed, N skipped`, alone, which scripts read.
//!
//! Nothing is left out silently: a step that did not run is a skip, with its reason.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use anyhow::Result;

use crate::story::Stories;

/// How a step ended.
#[derive(Clone, Copy)]
enum Outcome {
    Done,
    Failed,
    Skipped,
}

/// The protocol of a run, written while it goes on.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    failures: Vec<String>,
    /// What tests that failed had printed.
    stories: Vec<String>,
    skips: Vec<String>,
    steps: Vec<(String, Duration, Outcome)>,
}

impl Report {
    /// Runs a step and takes down how long it took and whether it worked. An error is a failure of the run, and
    /// does not keep later steps from running.
    pub(crate) fn step<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n== {name}");
        let start = Instant::now();
        let result = step();
        let outcome = match &result {
            Ok(_) => Outcome::Done,
            Err(error) => {
                println!("{name} FAILED: {error:#}");
                self.failures.push(name.to_owned());
                Outcome::Failed
            }
        };
        self.steps.push((name.to_owned(), start.elapsed(), outcome));
        result.ok()
    }

    /// Runs tests and adds up what they report.
    pub(crate) fn tests(&mut self, name: &str, tests: impl FnOnce() -> Result<Tally>) {
        println!("\n== {name}");
        let start = Instant::now();
        let tally = tests();
        self.ended(name, tally, start.elapsed());
    }

    /// Adds up what tests that have ended reported.
    pub(crate) fn ended(&mut self, name: &str, tally: Result<Tally>, time: Duration) {
        let tally = tally.unwrap_or_else(|error| {
            println!("{name} FAILED: {error:#}");
            Tally {
                broken: Some(format!("{error:#}")),
                ..Tally::default()
            }
        });
        let failures = self.failures.len();
        self.passed += tally.passed();
        self.stories.extend_from_slice(tally.stories.told());
        self.failures.extend(
            tally
                .failed_names()
                .into_iter()
                .map(|test| format!("{name}: {test}")),
        );
        self.skips.extend(
            tally
                .skipped
                .iter()
                .map(|(test, reason)| format!("{name}: {test}: {reason}")),
        );
        let outcome = if self.failures.len() > failures {
            Outcome::Failed
        } else {
            Outcome::Done
        };
        self.steps.push((name.to_owned(), time, outcome));
    }

    /// Takes down that a step does not run, and why.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        println!("\n== {name}\nSKIPPED: {name}: {reason}");
        self.skips.push(format!("{name}: {reason}"));
        self.steps
            .push((name.to_owned(), Duration::ZERO, Outcome::Skipped));
    }

    /// Whether something was tested, and nothing failed.
    pub(crate) fn good(&self) -> bool {
        self.failures.is_empty() && self.passed > 0
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for story in &self.stories {
            writeln!(f, "== what failed\n{story}\n")?;
        }
        writeln!(f, "== summary")?;
        for (name, time, outcome) in &self.steps {
            let outcome = match outcome {
                Outcome::Done => "ok",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped",
            };
            writeln!(f, "{:8.1} s  {outcome:<8} {name}", time.as_secs_f32())?;
        }
        for skip in &self.skips {
            writeln!(f, "skipped: {skip}")?;
        }
        for failure in &self.failures {
            writeln!(f, "failed: {failure}")?;
        }
        if self.passed == 0 {
            writeln!(f, "no test has passed")?;
        }
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failures.len(),
            self.skips.len()
        )
    }
}

/// What test binaries say about themselves, read from their output line by line.
///
/// Two kinds of test did not run: those libtest ignores, and those that found something missing, printed
/// `SKIPPED: <test>: <reason>` and returned; libtest takes the latter for passed.
#[derive(Default)]
pub(crate) struct Tally {
    ok: usize,
    /// Tests that returned early, which libtest counts as passed.
    returned_early: usize,
    failed: usize,
    names: Vec<String>,
    in_names: bool,
    skipped: BTreeMap<String, String>,
    stories: Stories,
    /// Why the binary's own counts are not the whole story: it crashed, hung or did not start.
    pub(crate) broken: Option<String>,
}

impl Tally {
    /// Takes in one line of output.
    pub(crate) fn line(&mut self, line: &str) {
        self.stories.line(line);
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.ok += count(counts, " passed");
            self.failed += count(counts, " failed");
        }
        // With output shown as it comes, a test's first line continues libtest's `test NAME ... `.
        let own = match line.find(" ... ") {
            Some(at) if line.starts_with("test ") => &line[at + " ... ".len()..],
            _ => line,
        };
        if let Some(skip) = own.trim_start().strip_prefix("SKIPPED: ") {
            let (test, reason) = skip.split_once(": ").unwrap_or((skip, "no reason given"));
            if self.skip(test, reason) {
                self.returned_early += 1;
            }
        } else if let Some(reason) = own.strip_prefix("ignored")
            && let Some(test) = line.strip_prefix("test ")
            && let Some((test, _)) = test.split_once(" ... ")
        {
            let reason = reason.trim_start_matches(", ");
            self.skip(test, if reason.is_empty() { "ignored" } else { reason });
        }
        // The names of what failed are listed between `failures:` and an empty line, indented.
        if line == "failures:" {
            self.in_names = true;
        } else if self.in_names
            && let Some(test) = line.strip_prefix("    ")
        {
            self.names.push(test.to_owned());
        } else {
            self.in_names = false;
        }
    }

    /// Notes a skip; whether this test's is the first.
    fn skip(&mut self, test: &str, reason: &str) -> bool {
        self.skipped
            .insert(test.to_owned(), reason.to_owned())
            .is_none()
    }

    /// Whether no test has reported a failure.
    pub(crate) fn all_passed(&self) -> bool {
        self.failed == 0
    }

    /// How many tests passed.
    pub(crate) fn passed(&self) -> usize {
        self.ok.saturating_sub(self.returned_early)
    }

    /// How many tests did not run.
    pub(crate) fn skipped(&self) -> usize {
        self.skipped.len()
    }

    /// A name for each failure, as many as there are.
    pub(crate) fn failed_names(&self) -> Vec<String> {
        let mut names = self.names.clone();
        names.resize(self.failed, "a test whose name was not printed".to_owned());
        names.extend(self.broken.clone());
        names
    }
}

/// The number in front of `what` in libtest's `ok. 3 passed; 0 failed; 1 ignored; ...`.
fn count(counts: &str, what: &str) -> usize {
    counts
        .split_once(what)
        .and_then(|(before, _)| before.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{Report, Tally};

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn failures_are_named() {
        let tally = tally(
            "running 3 tests\n\
             test a::one ... ok\n\
             test a::two ... FAILED\n\
             test a::three ... ok\n\
             \n\
             failures:\n\
             \n\
             ---- a::two stdout ----\n    \
                 indented output\n\
             \n\
             failures:\n    \
                 a::two\n\
             \n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(tally.passed(), 2);
        assert_eq!(tally.failed_names(), ["a::two"]);
    }

    #[test]
    fn early_returns_and_ignored_tests_are_skips_not_passes() {
        let tally = tally(
            "running 4 tests\n\
             test one ... SKIPPED: one: no iperf3\n\
             ok\n\
             test two ... some output\n\
             SKIPPED: two: no GENEVE: really\n\
             SKIPPED: two: said twice\n\
             ok\n\
             test three ... ignored, takes an hour\n\
             test four ... ok\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(tally.passed(), 1);
        assert_eq!(tally.skipped.len(), 3);
        assert_eq!(tally.skipped["one"], "no iperf3");
        assert_eq!(tally.skipped["three"], "takes an hour");
        assert!(tally.failed_names().is_empty());
    }

    #[test]
    fn a_crash_is_a_failure() {
        let mut tally = tally("running 2 tests\ntest one ... ok\n");
        tally.broken = Some("killed by signal 11".to_owned());
        assert_eq!(tally.failed_names(), ["killed by signal 11"]);
    }

    #[test]
    fn the_last_line_counts_and_nothing_tested_is_not_good() {
        let mut report = Report::default();
        assert!(!report.good());
        report.tests("t", || {
            Ok(tally("test result: ok. 5 passed; 0 failed; 0 ignored"))
        });
        report.skip("kernels", "not available yet");
        assert!(report.good());
        report.step("fmt", || -> anyhow::Result<()> { anyhow::bail!("no") });
        assert!(!report.good());
        let text = report.to_string();
        assert_eq!(text.lines().last(), Some("5 passed, 1 failed, 1 skipped"));
    }
}
