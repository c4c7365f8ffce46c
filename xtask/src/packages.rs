//! Programs of the distribution that building and testing need, installed when missing.
//!
//! Promises: nothing is installed that is there already; whoever watches reads one line that says what is
//! installed and what for; and where this may not install (not root, no apt), the error says what to do.

use std::{
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::workspace::{is_root, which};

/// A program, the Debian package that brings it, and what it is for.
pub(crate) struct Tool {
    pub(crate) command: &'static str,
    pub(crate) package: &'static str,
    pub(crate) purpose: &'static str,
}

/// What labs and tests call.
const TOOLS: [Tool; 6] = [
    Tool {
        command: "ip",
        package: "iproute2",
        purpose: "network namespaces",
    },
    Tool {
        command: "nft",
        package: "nftables",
        purpose: "the guard",
    },
    Tool {
        command: "bpftool",
        package: "bpftool",
        purpose: "map contents",
    },
    Tool {
        command: "curl",
        package: "curl",
        purpose: "real traffic",
    },
    Tool {
        command: "tcpdump",
        package: "tcpdump",
        purpose: "captures",
    },
    Tool {
        command: "iperf3",
        package: "iperf3",
        purpose: "throughput",
    },
];

/// Seconds to wait for another package manager to finish: an unattended upgrade right after boot takes about
/// this long.
const LOCK_TIMEOUT: u32 = 300;

/// Lines of a failed package manager's output worth showing.
const ERROR_LINES: usize = 15;

/// Installs whatever labs and tests lack.
pub(crate) fn ensure_tools() -> Result<()> {
    ensure_commands(&TOOLS)
}

/// Installs those of `tools` that are not there.
pub(crate) fn ensure_commands(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools
        .iter()
        .filter(|tool| which(tool.command).is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    let purposes: Vec<&str> = missing.iter().map(|tool| tool.purpose).collect();
    install(&packages, &purposes.join(", "))
}

/// Whether the distribution's packages are managed with apt.
pub(crate) fn has_apt() -> bool {
    which("apt-get").is_some()
}

/// Installs Debian packages, and says so in one line.
pub(crate) fn install(packages: &[&str], purpose: &str) -> Result<()> {
    let list = packages.join(" ");
    if !has_apt() {
        bail!(
            "missing for {purpose}: {list} (names of Debian packages). There is no apt-get here: install their \
             counterparts with this system's package manager and repeat"
        );
    }
    if !is_root() {
        bail!(
            "missing for {purpose}: {list}. Only root may install: run `apt-get update && apt-get install -y \
             --no-install-recommends {list}` as root and repeat"
        );
    }
    eprintln!("xtask: installing {list} (for {purpose})");
    update();
    let lock = format!("DPkg::Lock::Timeout={LOCK_TIMEOUT}");
    let mut arguments = vec!["-o", &lock, "install", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    let output = apt_get(&arguments)?;
    if !output.status.success() {
        bail!(
            "apt-get could not install {list}, needed for {purpose}:\n{}",
            tail(&output)
        );
    }
    Ok(())
}

/// Downloads a package, and those it depends on that are not installed, into `archives`; installs nothing.
pub(crate) fn download(package: &str, archives: &Path) -> Result<()> {
    ensure!(has_apt(), "there is no apt-get here");
    ensure!(is_root(), "only root may use apt-get");
    update();
    let lock = format!("DPkg::Lock::Timeout={LOCK_TIMEOUT}");
    let folder = format!("Dir::Cache::archives={}", archives.display());
    let mut arguments = vec![
        "-o",
        &lock,
        "-o",
        &folder,
        "install",
        "-y",
        "--download-only",
    ];
    arguments.extend(["--no-install-recommends", package]);
    let output = apt_get(&arguments)?;
    ensure!(
        output.status.success(),
        "apt-get could not download {package}:\n{}",
        tail(&output)
    );
    Ok(())
}

/// Installs those of `packages` that dpkg does not have yet.
pub(crate) fn ensure(packages: &[&str], purpose: &str) -> Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|package| !installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    install(&missing, purpose)
}

/// Whether dpkg has a package, fully installed.
fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// The version of a package that apt would install, after refreshing its lists.
pub(crate) fn candidate(package: &str) -> Option<String> {
    if is_root() {
        update();
    }
    let output = Command::new("apt-cache")
        .args(["policy", package])
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
}

/// Refreshes the package lists, once in the life of this process. Failing is no error yet: the lists at hand may
/// still do, and if not, the installation says what it lacks.
fn update() {
    static DONE: AtomicBool = AtomicBool::new(false);
    if DONE.swap(true, Ordering::Relaxed) {
        return;
    }
    match apt_get(&["update"]) {
        Ok(output) if output.status.success() => {}
        Ok(output) => eprintln!(
            "xtask: `apt-get update` failed, going on with the package lists at hand:\n{}",
            tail(&output)
        ),
        Err(error) => eprintln!("xtask: {error:#}"),
    }
}

fn apt_get(arguments: &[&str]) -> Result<Output> {
    Command::new("apt-get")
        .arg("-q")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")
}

/// The end of what a failed program printed, which is where the reason is.
fn tail(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(ERROR_LINES)..].join("\n")
}
