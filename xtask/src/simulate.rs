//! `cargo xtask simulate`: placement and forwarding decisions in a world that no lab has room for.

use anyhow::{Context as _, Result, ensure};

use crate::workspace::Workspace;

/// Options of `cargo xtask simulate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Data centers, three in each location
    #[arg(long, default_value_t = 300)]
    data_centers: u32,
    /// Servers
    #[arg(long, default_value_t = 10_000)]
    servers: u32,
    /// Connections to decide about
    #[arg(long, default_value_t = 1_000_000)]
    flows: u32,
    /// Changes of each kind
    #[arg(long, default_value_t = 500)]
    changes: u32,
    /// What chance begins with; another one each time if not given
    #[arg(long)]
    seed: Option<u64>,
}

/// Builds the simulation as it would be built for a kernel or a daemon, optimized, and runs it.
pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    let mut command = workspace.cargo();
    command
        .args(["run", "--quiet", "--release", "-p", "egress-common"])
        .args(["--example", "simulation", "--"]);
    for (name, number) in [
        ("--data-centers", args.data_centers),
        ("--servers", args.servers),
        ("--flows", args.flows),
        ("--changes", args.changes),
    ] {
        command.arg(name).arg(number.to_string());
    }
    if let Some(seed) = args.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    let status = command.status().context("cargo cannot be started")?;
    ensure!(status.success(), "the simulation found a mistake");
    Ok(())
}
