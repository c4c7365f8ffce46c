//! What a run on other kernels prints at its end: boot times, results, and the verifier's work, by kernel.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::machine::Ended;

/// What a test prints of a program that it loaded: `VERIFIED: PROGRAM: N of BUDGET, KERNEL`.
const VERIFIED: &str = "VERIFIED: ";

/// Everything that was measured.
#[derive(Default)]
pub(super) struct Figures {
    kernels: Vec<Of>,
}

/// What was measured on one kernel.
struct Of {
    release: String,
    boot: Duration,
    suites: Vec<String>,
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
            verified: BTreeMap::new(),
        });
    }

    /// A suite has ended on the kernel that booted last.
    pub(super) fn ran(&mut self, release: &str, suite: &str, ended: &Ended) {
        let Some(kernel) = self.kernels.iter_mut().find(|of| of.release == release) else {
            return;
        };
        kernel.suites.push(format!(
            "{suite}: {} passed, {} failed, {} skipped in {:.0} s",
            ended.tally.passed(),
            ended.tally.failed_names().len(),
            ended.tally.skipped(),
            ended.took.as_secs_f32()
        ));
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
        writeln!(f, "== kernels")?;
        for kernel in &self.kernels {
            writeln!(
                f,
                "Linux {}: booted in {:.1} s",
                kernel.release,
                kernel.boot.as_secs_f32()
            )?;
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
        Ok(())
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
