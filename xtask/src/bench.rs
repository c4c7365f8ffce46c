//! `cargo xtask bench`: not written yet.

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Says that it is not written yet.
pub(crate) fn main(_args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`cargo xtask bench` is not written yet")
}
