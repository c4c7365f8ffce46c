//! The command `nft`, which knows how to write rules.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::dataplane::api::DataPlaneError;

/// Where administrators' programs are although a service's PATH may lack them.
const PLACES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];

/// Runs a script as one transaction.
pub(super) fn script(script: &str) -> Result<(), DataPlaneError> {
    run(&program()?, &["-f", "-"], script).map(drop)
}

/// What a command prints.
pub(super) fn output(arguments: &[&str]) -> Result<String, DataPlaneError> {
    run(&program()?, arguments, "")
}

fn program() -> Result<PathBuf, DataPlaneError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PLACES.map(PathBuf::from))
        .map(|place| place.join("nft"))
        .find(|file| file.is_file())
        .ok_or_else(|| DataPlaneError::Refused {
            reason: "the command nft is not installed, and without it there is no guard (SAFE-6)"
                .to_owned(),
            remedy: "install the package nftables".to_owned(),
        })
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, DataPlaneError> {
    let failed = |error: io::Error| {
        DataPlaneError::failed(
            format!("running {} {}", program.display(), arguments.join(" ")),
            error,
        )
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it stops reading, it says why when it ends. It reads all before it prints.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let first: Vec<&str> = said.lines().take(3).collect();
        return Err(DataPlaneError::failed(
            format!("running {} {}", program.display(), arguments.join(" ")),
            first.join("; "),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
