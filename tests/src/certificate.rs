//! Certificates that nobody but their owner has signed, by `openssl`.

use std::{net::IpAddr, path::Path, process::Command};

use anyhow::{Context as _, Result};

use crate::{netns, programs};

/// Makes `NAME.crt` and its key, `NAME.key`, in a directory; for an address, if there is one.
///
/// # Errors
/// When there is no `openssl`, or it fails.
pub fn make(directory: &Path, name: &str, address: Option<IpAddr>) -> Result<()> {
    let openssl = programs::find("openssl").context("no openssl")?;
    let mut command = Command::new(&openssl);
    command
        .args(["req", "-x509", "-nodes", "-days", "1"])
        .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
        .args(["-subj", "/CN=egress"]);
    if let Some(address) = address {
        command.args(["-addext", &format!("subjectAltName=IP:{address}")]);
    }
    command
        .arg("-out")
        .arg(directory.join(format!("{name}.crt")))
        .arg("-keyout")
        .arg(directory.join(format!("{name}.key")));
    netns::run(programs::with_libraries(&mut command, &openssl))?;
    Ok(())
}
