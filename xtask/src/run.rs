//! `cargo xtask run`: egress at work, in a lab of network namespaces or on this host.
//!
//! The lab is the whole thing in small: the real daemon, real clients, real origins that tell which address they
//! see. It ends with success only if every origin saw a dedicated IP for the bound client and the default address
//! for the unbound one.

use std::{
    io::{IsTerminal as _, Write as _, stdout},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    config::Resources,
    interrupt,
    site::{Plan, Site},
    standard::Kind,
    worker,
};

use crate::{
    build, setup,
    topology::{Topology, options},
    workspace::Workspace,
};

mod locations;
mod show;
mod traffic;

/// How often the live view is drawn.
const FRAME: Duration = Duration::from_secs(1);
/// How often it is looked whether Ctrl-C came.
const GLANCE: Duration = Duration::from_millis(50);

/// Options of `cargo xtask run`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// End after one round of traffic, also on a terminal
    #[arg(long, conflicts_with = "config")]
    once: bool,
    /// Run the daemon on this host with this configuration, in the foreground, instead of a lab
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// `routed` or `segment`: one gateway, and what is between it and the origins; `three-locations`: eight servers that
    /// share egress IPs
    #[arg(
        long,
        value_name = "NAME",
        default_value = "routed",
        conflicts_with = "config"
    )]
    topology: Topology,
}

/// Builds, then runs the lab or the daemon.
pub(crate) fn main(args: &Args) -> Result<()> {
    let workspace = setup::ready("run")?;
    match &args.config {
        Some(config) => on_this_host(&workspace, config),
        None => match args.topology {
            Topology::Standard(kind) => in_a_lab(&workspace, kind, args.once),
            Topology::ThreeLocations => locations::show(&workspace, args.once),
        },
    }
}

/// Becomes the daemon.
fn on_this_host(workspace: &Workspace, config: &Path) -> Result<()> {
    let binary = build::release(workspace)?;
    let error = Command::new(&binary)
        .args(["run", "--config"])
        .arg(config)
        .exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}

fn in_a_lab(workspace: &Workspace, kind: Kind, once: bool) -> Result<()> {
    let plan = Plan {
        network: options(kind),
        resources: Resources::both_families(),
        binary: Some(daemon(workspace)?),
        ..Plan::default()
    };
    helpers(workspace, false)?;
    let live = !once && stdout().is_terminal();
    interrupt::defer();
    let start = Instant::now();
    let mut site = Site::start(&plan)?;
    show::intro(&site, start.elapsed());
    let sights = traffic::send(&site)?;
    show::sights(&sights);
    let held = traffic::Held::open(&mut site)?;
    show::state(&site)?;
    if live && !interrupt::caught() {
        watch(&site)?;
    }
    drop(held);
    let wrong = sights.iter().filter(|sight| !sight.is_right()).count();
    drop(site);
    ensure!(
        wrong == 0,
        "{wrong} of {} requests were seen with the wrong address, see the table",
        sights.len()
    );
    println!(
        "\nEvery origin saw a dedicated IP for the bound client and the default address for the unbound one."
    );
    Ok(())
}

/// The release binary, or the one that the environment names.
pub(crate) fn daemon(workspace: &Workspace) -> Result<PathBuf> {
    match std::env::var_os(egress_tests::gateway::BINARY_VARIABLE) {
        Some(path) => Ok(PathBuf::from(path)),
        None => build::release(workspace),
    }
}

/// Builds the lab's clients and origins and tells the lab where they are.
pub(crate) fn helpers(workspace: &Workspace, optimised: bool) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--quiet", "--package", "egress-tests", "--bins"]);
    if optimised {
        cargo.arg("--release");
    }
    let status = cargo.status().context("cannot run cargo")?;
    ensure!(
        status.success(),
        "the lab's clients and origins do not build"
    );
    worker::use_helpers(
        workspace
            .target
            .join(if optimised { "release" } else { "debug" }),
    );
    Ok(())
}

/// Shows what the daemon says, again and again, until Ctrl-C.
fn watch(site: &Site) -> Result<()> {
    watch_with("the lab", || {
        traffic::again(site)?;
        show::live(site)
    })
}

/// Draws what is said, again and again, until Ctrl-C.
fn watch_with(what: &str, view: impl Fn() -> Result<String>) -> Result<()> {
    while !interrupt::caught() {
        let view = view()?;
        let mut out = stdout().lock();
        // Home, draw each line over the old one, clear the rest.
        write!(out, "\x1b[H\x1b[2J{view}\nCtrl-C ends {what}.")?;
        out.flush()?;
        let next = Instant::now() + FRAME;
        while Instant::now() < next && !interrupt::caught() {
            thread::sleep(GLANCE);
        }
    }
    println!();
    Ok(())
}

/// Refuses an unknown node by naming those there are.
pub(crate) fn known_node<'n>(name: &str, mut nodes: impl Iterator<Item = &'n str>) -> Result<()> {
    let mut names = Vec::new();
    for node in nodes.by_ref() {
        if node == name {
            return Ok(());
        }
        names.push(node);
    }
    bail!("no node {name}; there are: {}", names.join(", "))
}
