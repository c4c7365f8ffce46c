//! What runs on other kernels.

use std::path::Path;

use super::{LAB_PACKAGE, TestBinary};
use crate::{
    kernels::{self, Suite, Wanted},
    report::Report,
    workspace::Workspace,
};

/// What runs on other kernels: the programs themselves, how they are attached, and real traffic through the daemon.
/// Package, name, and whether it runs the release binary.
const KERNEL_SUITES: [(&str, &str, bool); 4] = [
    ("egress-userspace", "packets", false),
    ("egress-userspace", "plane", false),
    (LAB_PACKAGE, "lab", true),
    (LAB_PACKAGE, "identity", true),
];

/// Options of `cargo xtask test` about them.
#[derive(clap::Args)]
pub(super) struct Options {
    /// Also run what depends on the kernel on other kernels, in virtual machines: the oldest that is supported,
    /// Debian's stable one and the newest there is, or those named, such as `6.1` or `newest`
    #[arg(long, num_args = 0.., value_delimiter = ',', value_name = "KERNEL")]
    kernels: Option<Vec<Wanted>>,
    /// Leave out everything but the other kernels
    #[arg(long, requires = "kernels")]
    pub(super) only: bool,
    /// Of what runs on other kernels, only these suites
    #[arg(long, requires = "only", value_delimiter = ',', value_name = "SUITE",
        value_parser = KERNEL_SUITES.map(|(_, name, _)| name))]
    suites: Vec<String>,
}

impl Options {
    /// The suites that were asked for; all of them if none was named.
    fn wanted(&self) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
        KERNEL_SUITES.into_iter().filter(|(_, name, _)| {
            self.suites.is_empty() || self.suites.iter().any(|of| of == name)
        })
    }

    /// Whether one of them runs the release binary.
    pub(super) fn need_release(&self) -> bool {
        self.wanted().any(|(_, _, release)| release)
    }

    /// What to tell cargo, to have only their binaries built.
    pub(super) fn targets(&self) -> Vec<&'static str> {
        let targets = self.wanted();
        targets
            .flat_map(|(package, name, _)| ["-p", package, "--test", name])
            .collect()
    }

    /// Runs it on those kernels that were asked for.
    pub(super) fn run(
        &self,
        report: &mut Report,
        workspace: &Workspace,
        binaries: Option<&[TestBinary]>,
        current: Option<&Path>,
    ) {
        let Some(wanted) = &self.kernels else { return };
        let Some(binaries) = binaries else {
            report.skip("other kernels", "the test binaries do not build");
            return;
        };
        let mut suites = Vec::new();
        for (package, name, release) in self.wanted() {
            let file = format!("tests/{name}.rs");
            let mut found = binaries.iter();
            let test = found.find(|test| test.package == package && test.name == file);
            match test {
                Some(_) if release && current.is_none() => {
                    report.skip(
                        &format!("{file} on other kernels"),
                        "the release binary does not build",
                    );
                }
                Some(test) => suites.push(Suite {
                    name: file,
                    executable: test.executable.clone(),
                    arguments: test.arguments(),
                }),
                None => report.skip(
                    &format!("{file} on other kernels"),
                    "there is no such test binary",
                ),
            }
        }
        let helpers = workspace.target.join("debug");
        let [client, origin] = ["lab-client", "lab-origin"].map(|name| helpers.join(name));
        let mut programs = Vec::new();
        if let Some(current) = current.filter(|_| self.need_release()) {
            programs.extend([
                ("egress", current),
                ("lab-client", &client),
                ("lab-origin", &origin),
            ]);
        }
        kernels::run(report, workspace, wanted, &suites, &programs);
    }
}
