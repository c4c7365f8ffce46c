//! `cargo xtask build`: sets up what compiling needs and leaves the release binary at `target/release/egress`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::{
    toolchain::Toolchain,
    workspace::{FEATURES, Workspace},
};

/// Options of `cargo xtask build`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Builds and says where the binary is.
pub(crate) fn main(_args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    let binary = release(&workspace)?;
    println!(
        "{}",
        binary
            .strip_prefix(&workspace.root)
            .unwrap_or(&binary)
            .display()
    );
    Ok(())
}

/// Sets up what compiling needs, builds the release binary and returns where it is.
pub(crate) fn release(workspace: &Workspace) -> Result<PathBuf> {
    Toolchain::ensure(workspace)?;
    compile(workspace, 0)?;
    let binary = workspace.release_binary();
    ensure!(binary.is_file(), "the build left no {}", binary.display());
    Ok(binary)
}

/// Builds the release binary with a variant of the kernel programs: 0 is the real one, others do the same under
/// other program tags.
pub(crate) fn compile(workspace: &Workspace, variant: u32) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "egress-userspace",
        "--bin",
        "egress",
    ]);
    cargo.args(FEATURES);
    if variant == 0 {
        cargo.env_remove("EGRESS_EBPF_VARIANT");
    } else {
        // A setting that makes no difference worth mentioning gives the daemon, and it alone, a place of its own
        // in the target directory. So a variant shares every dependency and does not displace the real one.
        let units = 15 - variant.min(14);
        cargo
            .arg("--config")
            .arg(format!(
                "profile.release.package.egress-userspace.codegen-units={units}"
            ))
            .env("EGRESS_EBPF_VARIANT", variant.to_string());
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(status.success(), "the release binary does not build");
    Ok(())
}
