//! `cargo xtask lab`: the lab of `cargo xtask run`, to stay and to work in.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use egress_tests::{
    config::{Resources, Server},
    gateway::Gateway,
    lab::Lab,
    origin::Origin,
    registry,
    standard::{self, A, B, Kind, Masquerade, Options},
};

use crate::{run, setup, workspace::Workspace};

/// Options of `cargo xtask lab`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    task: Task,
}

/// What to do with the lab.
#[derive(Subcommand)]
enum Task {
    /// Set the lab up, with origins and daemon
    Up {
        #[command(flatten)]
        which: Which,
        /// Leave the daemon out
        #[arg(long)]
        no_daemon: bool,
    },
    /// Take the lab down
    Down(Which),
    /// Run a command on a node
    Exec {
        #[command(flatten)]
        which: Which,
        /// bound, unbound, gw, net, a or b
        node: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// List the labs that are up, and their nodes
    List,
}

/// Which lab.
#[derive(clap::Args)]
struct Which {
    /// What is between gateway and origins: `routed` or `segment`
    #[arg(long, value_name = "NAME", default_value = "routed")]
    topology: Kind,
}

/// Does what was asked.
pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = setup::ready("lab")?;
    match &args.task {
        Task::Up { which, no_daemon } => up(&workspace, which.topology, !no_daemon),
        Task::Down(which) => Lab::open(which.topology.name())?.down(),
        Task::Exec {
            which,
            node,
            command,
        } => exec(which.topology, node, command),
        Task::List => list(),
    }
}

fn up(workspace: &Workspace, kind: Kind, with_daemon: bool) -> Result<()> {
    let binary = if with_daemon {
        Some(run::daemon(workspace)?)
    } else {
        None
    };
    run::helpers(workspace, false)?;
    let lab = Lab::up_persistent(kind.name(), &standard::topology(&options(kind)))?;
    for node in [A, B] {
        let log = lab.directory().join(format!("origin-{node}.log"));
        Origin::detached(&lab.node(node), &kind.addresses(node), &log)?;
    }
    if let Some(binary) = binary {
        let mut gateway =
            Gateway::prepare(&lab, &binary, &Server::default(), &Resources::default())?;
        gateway.restart()?;
        println!("configuration: {}", gateway.files().config().display());
        gateway.keep();
    }
    println!(
        "lab {} is up; for example: cargo xtask lab exec bound -- curl -s http://{}/ip",
        lab.id(),
        kind.origin(A)
    );
    lab.keep();
    Ok(())
}

/// Becomes the command, on the node.
fn exec(kind: Kind, node: &str, command: &[String]) -> Result<()> {
    let lab = Lab::open(kind.name())?;
    run::known_node(node, standard::topology(&options(kind)).nodes())?;
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command: Command = lab.node(node).command(program)?;
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

fn list() -> Result<()> {
    for name in registry::persistent()? {
        let kind: Kind = name.parse()?;
        let nodes: Vec<_> = standard::topology(&options(kind))
            .nodes()
            .map(str::to_owned)
            .collect();
        println!("{name}: {}", nodes.join(" "));
    }
    Ok(())
}

fn options(kind: Kind) -> Options {
    Options {
        kind,
        masquerade: Masquerade::Unbound,
        ..Options::default()
    }
}
