//! What it costs that another server owns a connection, and that a reply comes to the wrong one.
//!
//! Two servers, each with a client behind it, one router between them and the origin; the pool is the second server's. All
//! ways are measured in the same network, one after the other in each round, everything on one CPU: so what a forwarded packet
//! costs is the work of both servers.

use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    config::Resources,
    netns::Namespace,
    offload::{self, Offload},
    pair::{self, NET, ORIGIN, ORIGIN_ADDRESS, Pair, SHARED, Side, Underlay},
    worker::{self, cpus},
};
use serde_json::Value;

use super::{
    LEAST_ARRIVED, Setting, WARM_UP, bpf,
    generator::{FIRST_ORIGIN, FIRST_PORT, Generator, Meter, Route},
    rig::{Variant, received},
    table::Table,
};

/// Packets of a sample.
const PACKETS: u32 = 500_000;
/// What the network between the servers takes: what is around a packet of 1,500 bytes, too.
const UNDERLAY_MTU: u32 = 1_550;

/// Packets towards the origin.
pub(super) fn out(setting: &Setting) -> Result<Table> {
    let table = Table::new(
        "forwarding",
        format!(
            "64-byte UDP, one flow, whole path of both servers, {} x {PACKETS} packets",
            setting.rounds
        ),
        "ns/packet",
        "none: what a forwarded packet costs over a local one",
    );
    let table = table.against([("local", Variant::Local), ("forwarded", Variant::Forwarded)]);
    measure(setting, table, &[Variant::Local, Variant::Forwarded])
}

/// Replies.
pub(super) fn back(setting: &Setting) -> Result<Table> {
    let table = Table::new(
        "replies",
        format!(
            "64-byte UDP, one flow, whole path of both servers, {} x {PACKETS} packets",
            setting.rounds
        ),
        "ns/packet",
        "none: what a steered reply costs over one that comes to the owner",
    );
    let table = table.against([
        ("at owner", Variant::AtOwner),
        ("steered", Variant::Steered),
    ]);
    let all = [Variant::AtOwner, Variant::Steered, Variant::Returned];
    measure(setting, table, &all)
}

fn measure(setting: &Setting, mut table: Table, variants: &[Variant]) -> Result<Table> {
    if setting.daemon.is_none() {
        return Ok(table);
    }
    let network = Network::up()?;
    for round in 0..setting.rounds {
        // Who comes first changes, so that nobody always has the machine that another one left behind.
        for at in 0..variants.len() {
            let variant = variants[(at + round) % variants.len()];
            let cost = network.cost(variant).with_context(|| variant.to_string())?;
            table.add(variant, cost);
        }
    }
    Ok(table)
}

/// The servers, and who drops what has arrived.
struct Network {
    pair: Pair,
    _drops: Vec<OwnedFd>,
}

/// From where to where packets go.
struct Way {
    from: Namespace,
    to: Namespace,
    route: Route,
}

impl Network {
    fn up() -> Result<Self> {
        let resources = of_the_second();
        let both = [resources.clone(), resources];
        let pair = Pair::start_with(&both, UNDERLAY_MTU, |side| match side {
            Side::One => "lab".to_owned(),
            Side::Two => "other".to_owned(),
        })?;
        // Without NAPI a veth takes no XDP frames.
        let takers = [
            (Side::One.server(), "in0"),
            (Side::Two.server(), "in0"),
            (NET, "a0"),
        ];
        for (node, interface) in takers {
            offload::set(&pair.node(node), interface, Offload::Gro, true)?;
        }
        // Who drops everything answers no ARP.
        for (node, interface, address, end) in [
            (Side::One.server(), "in0", "10.1.0.2", Side::One.client()),
            (Side::Two.server(), "in0", "10.1.0.2", Side::Two.client()),
            (NET, "a0", "198.51.100.10", ORIGIN),
        ] {
            let (_, mac) = link(&pair.node(end), "eth0")?;
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            pair.node(node).ip(&format!(
                "neighbour replace {address} lladdr {mac} dev {interface} nud permanent"
            ))?;
        }
        let ends = [Side::One.client(), Side::Two.client(), ORIGIN];
        let drops = ends.map(|node| {
            let node = pair.node(node);
            let (index, _) = link(&node, "eth0")?;
            node.run(|| bpf::drop_received(index))?
        });
        let drops = drops.into_iter().collect::<Result<_>>()?;
        Ok(Self {
            pair,
            _drops: drops,
        })
    }

    /// The CPU time in ns that a packet takes.
    fn cost(&self, variant: Variant) -> Result<f64> {
        let side = match variant {
            Variant::Forwarded | Variant::Returned => Side::One,
            _ => Side::Two,
        };
        let out = self.towards_origin(side)?;
        // The first packets open the flow, and wait for neighbours.
        spend(&out, WARM_UP)?;
        let way = match variant {
            Variant::Local | Variant::Forwarded => out,
            _ => self.towards_client(side)?,
        };
        self.pair.replies_to(match variant {
            Variant::Steered => Side::One,
            _ => Side::Two,
        })?;
        spend(&way, WARM_UP)?;
        let (cost, arrived) = spend(&way, PACKETS)?;
        ensure!(
            arrived >= f64::from(PACKETS) * LEAST_ARRIVED,
            "only {arrived} of {PACKETS} packets arrived"
        );
        Ok(cost)
    }

    fn towards_origin(&self, side: Side) -> Result<Way> {
        let (from, gateway) = (self.pair.node(side.client()), self.pair.node(side.server()));
        Ok(Way {
            route: Route {
                source: [10, 1, 0, 2].into(),
                destination: ORIGIN_ADDRESS,
                source_mac: link(&from, "eth0")?.1,
                next_hop_mac: link(&gateway, "in0")?.1,
                source_port: FIRST_PORT,
                destination_port: FIRST_ORIGIN,
            },
            from,
            to: self.pair.node(ORIGIN),
        })
    }

    fn towards_client(&self, side: Side) -> Result<Way> {
        let (from, gateway) = (self.pair.node(ORIGIN), self.pair.node(NET));
        let path = match side {
            Side::One => format!("from {}", side.name()),
            Side::Two => "local".to_owned(),
        };
        let flows = self.pair.gateway(Side::Two).text(["flows", "--json"])?;
        let mut port = None;
        for line in flows.lines() {
            let flow: Value = serde_json::from_str(line)?;
            if flow["path"] == path && flow["origin"] == format!("{ORIGIN_ADDRESS}:{FIRST_ORIGIN}")
            {
                let egress = flow["egress"].as_str().context("no egress IP")?;
                let (_, number) = egress.rsplit_once(':').context("no port")?;
                port = Some(number.parse()?);
            }
        }
        Ok(Way {
            route: Route {
                source: ORIGIN_ADDRESS,
                destination: SHARED,
                source_mac: link(&from, "eth0")?.1,
                next_hop_mac: link(&gateway, "a0")?.1,
                source_port: FIRST_ORIGIN,
                destination_port: port.with_context(|| format!("no flow {path}: {flows}"))?,
            },
            from,
            to: self.pair.node(side.client()),
        })
    }
}

/// Sends packets; the CPU time of each that arrived, in ns, and how many did.
fn spend(way: &Way, packets: u32) -> Result<(f64, f64)> {
    let (interface, _) = link(&way.from, "eth0")?;
    let generator = Generator::new(&way.route, 1)?;
    let cpu = cpus() - 1;
    let before = received(&way.to)?;
    let time = way.from.run(|| -> Result<_> {
        worker::pin(cpu)?;
        let meter = Meter::new(cpu)?;
        let before = meter.read()?;
        generator.send(interface, packets)?;
        Ok(meter.read()? - before)
    })??;
    let arrived = (received(&way.to)? - before) as f64;
    Ok((time.as_nanos() as f64 / arrived.max(1.0), arrived))
}

/// Both servers know that the second one owns everything.
fn of_the_second() -> Resources {
    let mut all = pair::resources(Underlay::V4);
    let second = format!(
        "[[location.data_center.server]]\nname = \"{}\"",
        Side::Two.name()
    );
    all.sections = all
        .sections
        .replace(
            &second,
            &format!("[[location.data_center]]\nname = \"other\"\n{second}"),
        )
        .replace("data_center = \"lab\"", "data_center = \"other\"");
    all
}

/// An interface's number and link-layer address.
fn link(node: &Namespace, interface: &str) -> Result<(u32, [u8; 6])> {
    let text = node.ip(&format!("-o link show dev {interface}"))?;
    let number = text.split(':').next().context("ip printed nothing")?;
    let mut words = text.split_whitespace();
    words
        .by_ref()
        .find(|word| *word == "link/ether")
        .context("no Ethernet")?;
    let address = words.next().context("no address")?;
    let mut bytes = [0; 6];
    for (byte, text) in bytes.iter_mut().zip(address.split(':')) {
        *byte = u8::from_str_radix(text, 16)?;
    }
    Ok((number.trim().parse()?, bytes))
}
