//! What runs on other kernels, and how much of it.

use std::path::Path;

use super::{LAB_PACKAGE, TestBinary};
use crate::{
    kernels::{self, Extent, Suite, Wanted},
    report::Report,
    workspace::Workspace,
};

/// What runs on other kernels: the programs themselves, how they are attached, and real traffic through the daemon.
/// Package, name, and the tests that are enough where not all of them run; all of them if none is named.
const KERNEL_SUITES: [(&str, &str, &[&str]); 4] = [
    (
        "egress-userspace",
        "tests/packets.rs",
        &[
            "budget::",
            "translation::",
            "icmp::nat_4",
            "refusal::",
            "guard::",
            "sweep::",
            "random::",
            "concurrency::",
        ],
    ),
    (
        "egress-userspace",
        "tests/plane.rs",
        &["hooks::", "takes_everything_over", "a_removed_program"],
    ),
    (LAB_PACKAGE, "tests/lab.rs", &[]),
    (LAB_PACKAGE, "tests/identity.rs", &[]),
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
    /// Run all tests on every one of the other kernels; without it, the first runs all and the others a selection
    #[arg(long, requires = "kernels", conflicts_with = "selection")]
    whole: bool,
    /// Run a selection of tests on every one of the other kernels, the first included
    #[arg(long, requires = "kernels")]
    selection: bool,
}

impl Options {
    /// How much runs on the other kernels.
    fn extent(&self) -> Extent {
        match (self.whole, self.selection) {
            (true, _) => Extent::Whole,
            (false, true) => Extent::Selection,
            (false, false) => Extent::Mixed,
        }
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
        let (Some(binaries), Some(current)) = (binaries, current) else {
            report.skip("other kernels", "the binaries do not build");
            return;
        };
        let suites = KERNEL_SUITES.map(|(package, name, selection)| {
            let mut found = binaries.iter();
            let test = found.find(|test| test.package == package && test.name == name)?;
            Some(Suite {
                name: name.to_owned(),
                executable: test.executable.clone(),
                arguments: test.arguments(),
                selection,
            })
        });
        let suites: Vec<Suite> = suites.into_iter().flatten().collect();
        if suites.len() < KERNEL_SUITES.len() {
            report.skip(
                "some suites on other kernels",
                "there is no such test binary",
            );
        }
        let helpers = workspace.target.join("debug");
        let [client, origin] = ["lab-client", "lab-origin"].map(|name| helpers.join(name));
        let programs = [
            ("egress", current),
            ("lab-client", &client),
            ("lab-origin", &origin),
        ];
        kernels::run(report, workspace, wanted, self.extent(), &suites, &programs);
    }
}
