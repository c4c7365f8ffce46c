//! What a run on other kernels prints at its end: boot times, results, and the verifier's work, by kernel.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::machine::Ended;
use crate::report::Tally;

/// What a test prints of a program that it loaded: `VERIFIED: PROGRAM: N of BUDGET, KERNEL`.
const VERIFIED: &str = "VERIFIED: ";

/// Everything that was measured.
#[derive(Default)]
pub(super) struct Figures {
    kernels: Vec<Of>,
}

/// Tests, by how they ended.
#[derive(Clone, Copy, Default)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    fn of(tally: &Tally) -> Self {
        Self {
            passed: tally.passed(),
            failed: tally.failed_names().len(),
            skipped: tally.skipped(),
        }
    }

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// What was measured on one kernel.
struct Of {
    release: String,
    boot: Duration,
    suites: Vec<String>,
    /// Of all suites.
    counts: Counts,
    /// Instructions by program.
    verified: BTreeMap<String, String>,
}

impl Figures {
    /// A kernel has booted.
    pub(super) fn booted(&mut self, release: &str, boot: Duration) {
        self.kernels.push(Of {
            release: release.to_owned(),
            boot,
            suites: Vec::new(),
            counts: Counts::default(),
            verified: BTreeMap::new(),
        });
    }

    /// A suite has ended on the kernel that booted last.
    pub(super) fn ran(&mut self, release: &str, suite: &str, ended: &Ended) {
        let Some(kernel) = self.kernels.iter_mut().find(|of| of.release == release) else {
            return;
        };
        let counts = Counts::of(&ended.tally);
        kernel.counts.add(counts);
        let seconds = ended.took.as_secs_f32();
        kernel
            .suites
            .push(format!("{suite}: {counts} in {seconds:.0} s"));
        for line in &ended.lines {
            if let Some((program, count)) = verified(line) {
                kernel.verified.insert(program.to_owned(), count.to_owned());
            }
        }
    }
}

/// The program and the count, if the line tells them.
fn verified(line: &str) -> Option<(&str, &str)> {
    let (program, rest) = line.strip_prefix(VERIFIED)?.split_once(": ")?;
    Some((program, rest.split_once(' ')?.0))
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut all = Counts::default();
        writeln!(f, "== kernels")?;
        for kernel in &self.kernels {
            let Of {
                release, counts, ..
            } = kernel;
            let boot = kernel.boot.as_secs_f32();
            writeln!(f, "Linux {release}: {counts}; booted in {boot:.1} s")?;
            all.add(*counts);
            for suite in &kernel.suites {
                writeln!(f, "    {suite}")?;
            }
            let counts: Vec<String> = kernel
                .verified
                .iter()
                .map(|(program, count)| format!("{program} {count}"))
                .collect();
            if !counts.is_empty() {
                writeln!(f, "    verified instructions: {}", counts.join(", "))?;
            }
        }
        write!(f, "all kernels: {all}")
    }
}

#[cfg(test)]
mod tests {
    use super::verified;

    #[test]
    fn counts_of_the_verifier_are_read() {
        let line = "VERIFIED: uplink_egress: 98892 of 130000, Linux 6.1";
        assert_eq!(verified(line), Some(("uplink_egress", "98892")));
        assert_eq!(verified("uplink_egress: 1"), None);
    }
}
