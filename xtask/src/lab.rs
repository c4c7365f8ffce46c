//! `cargo xtask lab`: the lab of `cargo xtask run`, to stay and to work in.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use egress_tests::{
    cities::{self, Cities, Plan},
    config::{Resources, Server},
    gateway::Gateway,
    lab::Lab,
    origin::{HTTP_PORT, Origin},
    registry,
    standard::{self, A, B, Kind},
};

use crate::{
    programs, run, setup,
    topology::{Topology, options},
    workspace::Workspace,
};

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
        /// Such as bound, unbound, gw, net, a or b; `lab list` names those of labs that are up
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
    /// `routed` or `segment`: one gateway, and what is between it and the origins; `three-locations`: eight servers
    #[arg(long, value_name = "NAME", default_value = "routed")]
    topology: Topology,
}

/// Does what was asked.
pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = setup::ready("lab")?;
    match &args.task {
        Task::Up { which, no_daemon } => match which.topology {
            Topology::Standard(kind) => up(&workspace, kind, !no_daemon),
            Topology::ThreeLocations => {
                ensure!(
                    !no_daemon,
                    "--no-daemon is for labs with one server: {} is about several",
                    cities::NAME
                );
                up_in_three_locations(&workspace)
            }
        },
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

fn up_in_three_locations(workspace: &Workspace) -> Result<()> {
    programs::provide(workspace, &["etcd", "bird"])?;
    let binary = run::daemon(workspace)?;
    run::helpers(workspace, false)?;
    let lab = Cities::start(&Plan {
        binary: Some(binary),
        persistent: true,
        ..Plan::whole(cities::resources(7_000, 9_000))
    })?;
    let (server, ..) = cities::SERVERS[0];
    let origin = cities::ORIGINS[0].1;
    let config = lab.gateways[0].files().config().display().to_string();
    println!(
        "lab {name} is up; for example:\n  \
         cargo xtask lab exec --topology {name} client-{server} -- curl -s --interface {source} http://{origin}/ip\n  \
         cargo xtask lab exec --topology {name} {server} -- target/release/egress why {source} {origin}:{HTTP_PORT} --config {config}\n  \
         cargo xtask lab exec --topology {name} net -- ip route show proto bird\n  \
         cargo xtask lab down --topology {name}",
        name = cities::NAME,
        source = cities::inside(1),
    );
    lab.keep();
    Ok(())
}

/// Becomes the command, on the node.
fn exec(topology: Topology, node: &str, command: &[String]) -> Result<()> {
    let lab = Lab::open(topology.name())?;
    run::known_node(node, topology.nodes().iter().map(String::as_str))?;
    let (program, arguments) = command.split_first().context("no command")?;
    let mut command: Command = lab.node(node).command(program)?;
    let error = command.args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {program}"))
}

fn list() -> Result<()> {
    for name in registry::persistent()? {
        let topology: Topology = name.parse()?;
        println!("{name}: {}", topology.nodes().join(" "));
    }
    Ok(())
}
