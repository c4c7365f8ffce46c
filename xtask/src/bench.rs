//! `cargo xtask bench`: what a translated packet costs, against plain routing and nftables snat.
//!
//! Runs of the variants alternate, and ratios are taken within a round, so that a machine that changes its speed
//! does not change the answer. Absolute numbers hold for this machine only.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    client::{Churn, Clients, Closer, Options as ClientOptions},
    config::Server,
    netns,
    origin::{HTTP_PORT, Origin},
    worker::cpus,
};
use serde_json::Value;

use crate::{run, setup};

mod bpf;
mod flood;
mod forwarding;
mod generator;
mod instruction;
mod latency;
mod policies;
mod rig;
mod table;

use generator::FLOWS_PER_ORIGIN;
use rig::{Rig, Variant};
use table::Table;

/// Packets of an established flow in one sample.
const PACKETS: u32 = 1_000_000;
/// Packets before a sample, to fill caches and open the flow.
const WARM_UP: u32 = 50_000;
/// Flows that are open at the same time: several origins' worth.
const MANY_OPEN: u32 = 200_000;
/// Flows opened in one sample: several origins' worth.
const NEW_FLOWS: u32 = 5 * FLOWS_PER_ORIGIN;
/// Less than this share of packets arriving means that something else than cost is measured.
const LEAST_ARRIVED: f64 = 0.99;
/// How long connections are churned for a sample.
const CHURN: Duration = Duration::from_secs(2);
/// Connections at the same time of one client process.
const PARALLEL: usize = 16;
/// The size of the flow table for the memory figure.
const MANY_FLOWS: u32 = 1_048_576;

/// Options of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which: established, many-flows, new-flow, policies, connections, round-trip, flood, forwarding, replies, memory, memory-ipv6; all if none is named
    names: Vec<String>,
    /// Samples of each variant
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Leave egress out
    #[arg(long)]
    peers_only: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a benchmark needs to know.
struct Setting {
    variants: Vec<Variant>,
    daemon: Option<PathBuf>,
    rounds: usize,
}

type Benchmark = fn(&Setting) -> Result<Table>;

/// All benchmarks by name.
const BENCHMARKS: [(&str, Benchmark); 11] = [
    ("established", established),
    ("many-flows", many_flows),
    ("new-flow", new_flow),
    ("policies", policies::first_packets),
    ("connections", connections),
    ("round-trip", round_trip),
    ("flood", flood),
    ("forwarding", forwarding::out),
    ("replies", forwarding::back),
    ("memory", |setting| memory(setting, Family::V4)),
    ("memory-ipv6", |setting| memory(setting, Family::V6)),
];

/// Whose tables are weighed: each family has its own, by the last letter of their names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// Whether a map is this family's. What is nobody's, the configuration, is counted to IPv4.
    fn has(self, map: &Path) -> bool {
        let v6 = map.to_string_lossy().ends_with('6');
        (self == Self::V6) == v6
    }
}

/// Measures what was named.
pub(crate) fn main(args: &Args) -> Result<()> {
    let names: Vec<_> = BENCHMARKS.iter().map(|(name, _)| *name).collect();
    for name in &args.names {
        ensure!(
            names.contains(&name.as_str()),
            "no benchmark {name}; there are: {}",
            names.join(", ")
        );
    }
    let workspace = setup::ready("bench")?;
    run::helpers(&workspace, true)?;
    let mut setting = Setting {
        variants: vec![Variant::Route, Variant::Snat],
        daemon: None,
        rounds: args.rounds,
    };
    if !args.peers_only {
        setting.daemon = Some(run::daemon(&workspace)?);
        setting.variants.extend([Variant::Egress, Variant::Fast]);
    }
    let mut tables = Vec::new();
    for (name, benchmark) in BENCHMARKS {
        if !args.names.is_empty() && !args.names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let table = benchmark(&setting).with_context(|| format!("measuring {name}"))?;
        if !args.json {
            table.print();
        }
        tables.push(table);
    }
    if args.json {
        let tables: Result<Vec<Value>> = tables.iter().map(Table::json).collect();
        println!("{:#}", Value::Array(tables?));
    }
    Ok(())
}

/// The cost of a packet of a flow that exists (PERF-1, PERF-2).
fn established(setting: &Setting) -> Result<Table> {
    let mut table = Table::new(
        "established",
        format!(
            "64-byte UDP, one flow, whole path, {} x {PACKETS} packets",
            setting.rounds
        ),
        "ns/packet",
        "PERF-1, fast path: <= 0.90 x routing, <= 0.55 x snat; PERF-2, without: <= 1.20 x routing",
    );
    let rigs = rigs(setting)?;
    for _ in 0..setting.rounds {
        for (variant, rig) in &rigs {
            table.add(*variant, cost(*variant, rig, 1, PACKETS, WARM_UP)?);
        }
    }
    Ok(table)
}

/// The cost of a packet of one of many flows that exist (PERF-4).
fn many_flows(setting: &Setting) -> Result<Table> {
    let mut table = Table::new(
        "many-flows",
        format!(
            "64-byte UDP, {MANY_OPEN} flows in scattered order, whole path, {} x {PACKETS} packets",
            setting.rounds
        ),
        "ns/packet",
        "PERF-4, fast path: <= 0.50 x snat",
    );
    let rigs = rigs(setting)?;
    for _ in 0..setting.rounds {
        for (variant, rig) in &rigs {
            // The first packets open the flows.
            table.add(
                *variant,
                cost(*variant, rig, MANY_OPEN, PACKETS, MANY_OPEN)?,
            );
        }
    }
    Ok(table)
}

/// The time a byte takes to an origin and back (PERF-7).
fn round_trip(setting: &Setting) -> Result<Table> {
    let mut table = Table::new(
        "round-trip",
        format!(
            "one byte there and back over TCP, both ends on one CPU, median of {} x {} round trips",
            setting.rounds,
            latency::ROUND_TRIPS
        ),
        "ns",
        "PERF-7, fast path: <= 1.00 x routing",
    );
    let rigs: Vec<_> = setting
        .variants
        .iter()
        .map(|variant| Ok((*variant, rig(setting, *variant)?)))
        .collect::<Result<_>>()?;
    for _ in 0..setting.rounds {
        for (variant, rig) in &rigs {
            table.add(*variant, latency::median(rig, cpus() - 1)?);
        }
    }
    Ok(table)
}

/// The cost of a packet that opens a flow (PERF-5).
fn new_flow(setting: &Setting) -> Result<Table> {
    let mut table = Table::new(
        "new-flow",
        format!(
            "64-byte UDP, every packet opens a flow, whole path, {} x {NEW_FLOWS} packets",
            setting.rounds
        ),
        "ns/packet",
        "PERF-5: <= 0.57 x snat",
    );
    for _ in 0..setting.rounds {
        for variant in &setting.variants {
            // A network of its own each time: old flows must not be found again.
            let rig = rig(setting, *variant)?.drop_at_origin()?;
            table.add(*variant, cost(*variant, &rig, NEW_FLOWS, NEW_FLOWS, 0)?);
        }
    }
    Ok(table)
}

/// Short TCP connections a second: connect, request, answer, close (PERF-6).
fn connections(setting: &Setting) -> Result<Table> {
    let mut table = Table::new(
        "connections",
        format!(
            "connect, request, close; {} x {CHURN:?}, client closes first",
            setting.rounds
        ),
        "conn/s",
        "PERF-6: >= 1.20 x snat, >= 0.98 x routing",
    );
    for _ in 0..setting.rounds {
        for variant in &setting.variants {
            let rig = rig(setting, *variant)?;
            let _origin = Origin::start(&rig.origin(), &[Rig::at(HTTP_PORT).ip()], cpus())?;
            let mut clients = Clients::start(&rig.client(), cpus(), &ClientOptions::default())?;
            let churn = Churn {
                target: Rig::at(HTTP_PORT),
                duration_ms: CHURN.as_millis() as u64,
                parallel: PARALLEL,
                closer: Closer::Client,
            };
            let outcome = clients.churn(churn)?;
            let bad = outcome.refusals() + outcome.failures() + outcome.timed_out;
            ensure!(
                bad * 100 <= outcome.succeeded,
                "{variant}: too many connections failed: {outcome:?}"
            );
            table.add(
                *variant,
                outcome.succeeded as f64 / (outcome.elapsed_us as f64 / 1e6),
            );
        }
    }
    Ok(table)
}

/// The speed of an established transfer under a flood of SYNs from inside.
fn flood(setting: &Setting) -> Result<Table> {
    let mut table = Table::new(
        "flood",
        format!(
            "one transfer while {} SYNs/s from inside go unanswered, {} x {:?}",
            flood::RATE,
            setting.rounds,
            flood::TIME
        ),
        "MB/s",
        "Build 8: >= 0.90 x routing",
    );
    // With nftables snat two CPUs are too slow for this rate, so there is nothing to compare.
    let rigs: Vec<_> = setting
        .variants
        .iter()
        .filter(|variant| **variant != Variant::Snat)
        .map(|variant| Ok((*variant, rig(setting, *variant)?)))
        .collect::<Result<_>>()?;
    for _ in 0..setting.rounds {
        for (variant, rig) in &rigs {
            let speed = flood::speed(rig).with_context(|| variant.to_string())?;
            table.add(*variant, speed);
        }
    }
    Ok(table)
}

/// Kernel memory for each flow the tables of a family have room for (PERF-8).
fn memory(setting: &Setting, family: Family) -> Result<Table> {
    let (name, maps) = match family {
        Family::V4 => ("memory", "all maps but IPv6's"),
        Family::V6 => ("memory-ipv6", "IPv6's maps"),
    };
    let mut table = Table::new(
        name,
        format!(
            "{maps}, with room for {MANY_FLOWS} flows; for snat an nf_conntrack entry without its hash"
        ),
        "B/flow",
        "PERF-8: <= 130 B",
    );
    let slabs = std::fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let entry = slabs
        .lines()
        .find(|line| line.starts_with("nf_conntrack "))
        .and_then(|line| line.split_whitespace().nth(3));
    if let Some(size) = entry {
        table.add(Variant::Snat, size.parse()?);
    }
    if setting.variants.contains(&Variant::Egress) {
        let server = Server {
            max_flows: MANY_FLOWS,
            ..server()
        };
        let rig = Rig::up(Variant::Egress, setting.daemon.as_deref(), &server)?;
        let gateway = rig.gateway.as_ref().context("the rig has no gateway")?;
        let maps = gateway.pin().join("maps");
        let mut bytes = 0;
        for map in std::fs::read_dir(&maps)
            .with_context(|| format!("no pinned maps in {}", maps.display()))?
        {
            let map = map?.path();
            if !family.has(&map) {
                continue;
            }
            let mut command = std::process::Command::new("bpftool");
            let shown = netns::run(command.args(["-j", "map", "show", "pinned"]).arg(map))?;
            let shown: Value = serde_json::from_str(&shown)?;
            bytes += shown["bytes_memlock"]
                .as_u64()
                .context("bpftool tells no size")?;
        }
        table.add(Variant::Egress, bytes as f64 / f64::from(MANY_FLOWS));
    }
    Ok(table)
}

fn rigs(setting: &Setting) -> Result<Vec<(Variant, Rig)>> {
    setting
        .variants
        .iter()
        .map(|variant| Ok((*variant, rig(setting, *variant)?.drop_at_origin()?)))
        .collect()
}

fn rig(setting: &Setting, variant: Variant) -> Result<Rig> {
    let rig = Rig::up(variant, setting.daemon.as_deref(), &server())?;
    rig.verify(variant)?;
    Ok(rig)
}

fn server() -> Server {
    Server {
        accelerate: false,
        ..Server::default()
    }
}

fn cost(variant: Variant, rig: &Rig, flows: u32, packets: u32, warm_up: u32) -> Result<f64> {
    // The last CPU: the first one has the machine's own interrupts.
    let (nanoseconds, arrived) = rig.cost(flows, packets, warm_up, cpus() - 1)?;
    if (arrived as f64) < f64::from(packets) * LEAST_ARRIVED {
        bail!("{variant}: only {arrived} of {packets} packets arrived at the origin");
    }
    Ok(nanoseconds)
}
