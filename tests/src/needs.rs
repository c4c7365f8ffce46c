//! What a machine must have for a test; without it the test says so and passes.

use std::process::Command;

use nix::unistd::geteuid;

use crate::{
    gateway, programs,
    turn::{self, Manner, Turn},
};

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

/// Whether a command is found: on the path, where administrators' commands are, or unpacked for the tests.
#[must_use]
pub fn has_command(name: &str) -> bool {
    programs::find(name).is_some()
}

/// Whether the running kernel has tcx, by its version.
#[must_use]
pub fn has_tcx() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split('.')
        .filter_map(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

/// Whether `bpftool` is there and works.
#[must_use]
pub fn has_bpftool() -> bool {
    Command::new("bpftool")
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Whether a test with the daemon can run here, and if so, its turn: tests of one binary go one after the other. Prints
/// `SKIPPED` if not.
#[must_use]
pub fn turn(test: &str, commands: &[&str]) -> Option<Turn> {
    has_daemon(test, commands).then(|| turn::take(Manner::Ordinary))
}

/// As [`turn`], for a test that says how long something may take: no [`loud_turn`] of another binary is at the same time.
#[must_use]
pub fn timed_turn(test: &str, commands: &[&str]) -> Option<Turn> {
    has_daemon(test, commands).then(|| turn::take(Manner::Timed))
}

/// As [`turn`], for a test that floods the machine: no other one of its kind, and no [`timed_turn`], is at the same time.
#[must_use]
pub fn loud_turn(test: &str, commands: &[&str]) -> Option<Turn> {
    has_daemon(test, commands).then(|| turn::take(Manner::Loud))
}

fn has_daemon(test: &str, commands: &[&str]) -> bool {
    if !met(test, commands) {
        return false;
    }
    if let Err(error) = gateway::binary() {
        skip(test, &format!("{error:#}"));
        return false;
    }
    true
}
