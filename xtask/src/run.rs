//! `cargo xtask run`: not written yet.

/// Options of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Says that it is not written yet.
pub(crate) fn main(_args: &Args) -> anyhow::Result<()> {
    anyhow::bail!("`cargo xtask run` is not written yet")
}
