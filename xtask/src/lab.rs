//! `cargo xtask lab`: not written yet.

/// Options of `cargo xtask lab`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Says that it is not written yet.
pub(crate) fn main(_args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`cargo xtask lab` is not written yet")
}
