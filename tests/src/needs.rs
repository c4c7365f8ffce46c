//! What a machine must have for a test; without it the test says so and passes.

use std::{path::Path, process::Command};

use nix::unistd::geteuid;

/// Says why a test does not run, in the form that `cargo xtask test` counts.
pub fn skip(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
}

/// Whether a test can run here: root, the commands it names; prints `SKIPPED` if not.
#[must_use]
pub fn met(test: &str, commands: &[&str]) -> bool {
    if !geteuid().is_root() {
        skip(test, "network namespaces need root");
        return false;
    }
    for command in ["ip"].iter().chain(commands) {
        if !has_command(command) {
            skip(test, &format!("the command {command} is not installed"));
            return false;
        }
    }
    true
}

/// Whether a command is found on the path, or where administrators' commands are.
#[must_use]
pub fn has_command(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .any(|directory| Path::new(directory).join(name).exists())
}

/// Whether `bpftool` is there and works.
#[must_use]
pub fn has_bpftool() -> bool {
    Command::new("bpftool")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
}
