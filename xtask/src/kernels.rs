//! `cargo xtask test --kernels`: the tests that depend on the kernel, on other kernels, each in a virtual machine.
//!
//! Promises: no kernel is installed on this machine, its packages are unpacked below the target folder; what a
//! machine runs are the very binaries that were built for this one; a machine that hangs or crashes is a failure,
//! with the end of its console; and a kernel that cannot be had is a skip, by name.
//!
//! | file | noun |
//! |---|---|
//! | [`package`] | a kernel, from the distribution's packages |
//! | [`image`] | the root file system it boots into: binaries with their libraries, and modules |
//! | [`machine`] | QEMU, and what comes out of it |
//! | [`guest`] | the first process inside |
//! | [`figures`] | what is printed at the end |

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{
    packages,
    report::Report,
    workspace::{Workspace, which},
};

mod figures;
pub(crate) mod guest;
mod image;
mod machine;
mod package;

use figures::Figures;
use image::Image;
use machine::Machine;
use package::Kernel;
pub(crate) use package::Wanted;

/// The kernels to test on: the oldest that is supported, Debian's stable one, and the newest there is.
const WANTED: [Wanted; 3] = [Wanted::Series(6, 1), Wanted::Series(6, 12), Wanted::Newest];

/// Programs of the distribution that tests call inside.
const COMMANDS: [&str; 13] = [
    "ip", "tc", "nft", "bpftool", "curl", "mount", "umount", "unshare", "nsenter", "sh", "sleep",
    "cat", "sysctl",
];

/// A test binary that takes longer hangs. Emulation is ten to thirty times slower than the machine, which may be busy.
const PATIENCE: Duration = Duration::from_secs(2 * 60 * 60);

/// A test binary to run inside.
pub(crate) struct Suite {
    /// What it tests, in the report.
    pub(crate) name: String,
    /// The binary.
    pub(crate) executable: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<&'static str>,
}

/// Runs the suites on every kernel. `programs` are further binaries they call, by the names they call them by.
pub(crate) fn run(
    report: &mut Report,
    workspace: &Workspace,
    wanted: &[Wanted],
    suites: &[Suite],
    programs: &[(&str, &Path)],
) {
    let folder = workspace.target.join("kernels");
    let wanted = if wanted.is_empty() { &WANTED } else { wanted };
    let found = report.step("kernels to test on", || {
        packages::ensure_commands(&[machine::QEMU, image::DEPMOD, image::XZ, image::STRIP])?;
        package::find(&folder, wanted)
    });
    let Some(found) = found else { return };
    let mut figures = Figures::default();
    let mut tested: Vec<String> = Vec::new();
    for (wanted, kernel) in wanted.iter().zip(found) {
        let kernel = match kernel {
            Ok(kernel) => kernel,
            Err(error) => {
                report.skip(&format!("{wanted}"), &format!("{error:#}"));
                continue;
            }
        };
        // The newest may be one of the others.
        if tested.contains(&kernel.release) {
            continue;
        }
        tested.push(kernel.release.clone());
        let job = Job {
            kernel,
            suites,
            programs,
        };
        job.run(report, &folder, &mut figures);
    }
    println!("\n{figures}");
}

/// What one kernel runs.
struct Job<'a> {
    kernel: Kernel,
    suites: &'a [Suite],
    programs: &'a [(&'a str, &'a Path)],
}

impl Job<'_> {
    fn run(&self, report: &mut Report, folder: &Path, figures: &mut Figures) {
        let release = &self.kernel.release;
        let title = format!("Linux {release}");
        let machine = report.step(&format!("{title}: boots"), || {
            let image = folder.join(format!("{release}.cpio"));
            self.image(folder)?.write(&image)?;
            let machine = Machine::boot(&self.kernel, &image, &folder.join(release));
            // Hundreds of megabytes, quickly made anew.
            fs::remove_file(&image)
                .with_context(|| format!("cannot remove {}", image.display()))?;
            machine
        });
        let Some(mut machine) = machine else { return };
        figures.booted(release, machine.boot_time());
        for suite in self.suites {
            report.tests(&format!("{title}: {}", suite.name), || {
                let result = machine.suite(&suite.name, PATIENCE)?;
                figures.ran(release, &suite.name, &result);
                Ok(result.tally)
            });
        }
    }

    /// The root file system.
    fn image(&self, folder: &Path) -> Result<Image> {
        let mut image = Image::new();
        let own = std::env::current_exe().context("cannot find xtask itself")?;
        image.stripped("/init", &own, folder)?;
        for command in COMMANDS {
            let path = which(command).with_context(|| format!("there is no {command} here"))?;
            image.program(&format!("/bin/{command}"), &path)?;
        }
        // The kernel calls it to load what is asked for.
        let kmod = which("modprobe").context("there is no modprobe here")?;
        image.program("/sbin/modprobe", &kmod)?;
        for (name, path) in self.programs {
            image.stripped(&format!("/bin/{name}"), path, folder)?;
        }
        let mut plan = String::new();
        for suite in self.suites {
            let name = suite.executable.file_name().unwrap_or_default();
            let inside = format!("/bin/{}", name.display());
            image.stripped(&inside, &suite.executable, folder)?;
            plan += &guest::line(&suite.name, &inside, &suite.arguments);
        }
        image.file(guest::PLAN, plan.into_bytes());
        image.modules(&self.kernel.root, &self.kernel.release)?;
        Ok(image)
    }
}
