//! What is measured: a client, a gateway, an origin, and what the gateway does to packets.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use egress_tests::{
    capture::{Capture, Frame},
    config::{Resources, Server},
    gateway::Gateway,
    lab::Lab,
    netns::Namespace,
    offload::{self, Offload},
    standard::{DEFAULT_EGRESS, GATEWAY, INSIDE_BOUND, POOL, UPLINK},
    topology::{End, Topology},
    worker,
};

use super::{
    bpf,
    generator::{FIRST_ORIGIN, FIRST_PORT, Generator, Meter, Route},
    policies,
};

/// The nodes beside the gateway.
const CLIENT: &str = "client";
pub(crate) const ORIGIN: &str = "origin";
const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
pub(crate) const ORIGIN_ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const INSIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ORIGIN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const ROUTE: Route = Route {
    source: CLIENT_ADDRESS,
    destination: ORIGIN_ADDRESS,
    source_mac: CLIENT_MAC,
    next_hop_mac: INSIDE_MAC,
    source_port: FIRST_PORT,
    destination_port: FIRST_ORIGIN,
};
/// How long the first packets may take.
const VERIFY_LIMIT: Duration = Duration::from_secs(5);

/// What the gateway does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Forwards packets as they are.
    Route,
    /// Translates with nftables to one address, ports kept where possible.
    Snat,
    /// Translates with egress; no fast path.
    Egress,
    /// Translates with egress; live flows take the fast path.
    Fast,
    /// As [`Self::Egress`], with this many egress policies.
    Policies(usize),
    /// The client's own server translates.
    Local,
    /// The other server does.
    Forwarded,
    /// A reply comes to the server that translates, whose client it is for.
    AtOwner,
    /// It comes to the other one.
    Steered,
    /// It comes to the server that translates, and is for the other one's client.
    Returned,
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Route => "plain routing",
            Self::Snat => "nftables snat",
            Self::Egress => "egress",
            Self::Fast => "egress, fast path",
            Self::Local => "local",
            Self::Forwarded => "forwarded",
            Self::AtOwner => "at the owner",
            Self::Steered => "steered",
            Self::Returned => "of a forwarded flow",
            Self::Policies(1) => "1 policy",
            Self::Policies(count) => return f.pad(&format!("{count} policies")),
        })
    }
}

/// A network of its own for one variant.
pub(crate) struct Rig {
    // Before the lab, so that it detaches while its interfaces exist.
    pub(crate) gateway: Option<Gateway>,
    _drop: Option<OwnedFd>,
    lab: Lab,
}

impl Rig {
    /// Sets the network up.
    pub(crate) fn up(variant: Variant, daemon: Option<&Path>, server: &Server) -> Result<Self> {
        let lab = Lab::up(&topology(variant))?;
        // Without NAPI a veth takes no XDP frames; on for all variants, so that all pay for it.
        offload::set(&lab.node(GATEWAY), INSIDE_BOUND, Offload::Gro, true)?;
        // The first packet must not wait for an answer to ARP.
        lab.node(GATEWAY).ip(&format!(
            "neighbour replace {ORIGIN_ADDRESS} lladdr {} dev {UPLINK} nud permanent",
            mac(ORIGIN_MAC)
        ))?;
        let gateway = match variant {
            Variant::Egress | Variant::Fast | Variant::Policies(_) => {
                let daemon = daemon.context("no daemon to measure")?;
                let server = Server {
                    accelerate: variant == Variant::Fast,
                    inside: vec![INSIDE_BOUND.to_owned()],
                    ..server.clone()
                };
                let resources = match variant {
                    Variant::Policies(count) => policies::resources(count),
                    _ => Resources::default(),
                };
                let mut gateway = Gateway::prepare(&lab, daemon, &server, &resources)?;
                gateway.restart()?;
                Some(gateway)
            }
            _ => None,
        };
        Ok(Self {
            gateway,
            _drop: None,
            lab,
        })
    }

    /// Lets the origin drop what it receives, as early as it can.
    pub(crate) fn drop_at_origin(mut self) -> Result<Self> {
        let interface = self.index(ORIGIN, "eth0")?;
        self._drop = Some(self.origin().run(|| bpf::drop_received(interface))??);
        Ok(self)
    }

    /// Fails unless the origin sees the source that the variant gives packets: what is measured must be what is
    /// meant.
    pub(crate) fn verify(&self, variant: Variant) -> Result<()> {
        const PACKETS: u32 = 8;

        let capture = Capture::start(&self.origin(), "eth0")?;
        let interface = self.index(CLIENT, "eth0")?;
        let generator = Generator::new(&ROUTE, 1)?;
        self.client().run(|| generator.send(interface, PACKETS))??;
        let is_right = |source: IpAddr| match variant {
            Variant::Route => source == CLIENT_ADDRESS,
            Variant::Snat | Variant::Policies(_) => source == POOL[0],
            Variant::Egress | Variant::Fast => POOL.iter().any(|address| source == *address),
            // Two servers have a network of their own.
            _ => false,
        };
        capture
            .wait_for("packets with the right source", VERIFY_LIMIT, |frames| {
                let sources = frames
                    .iter()
                    .filter_map(Frame::packet)
                    .map(|packet| packet.source);
                sources.filter(|source| is_right(*source)).count() >= PACKETS as usize
            })
            .with_context(|| format!("{variant} does not do what is to be measured"))
    }

    /// The CPU time in ns that a packet takes from client to origin, and how many of `packets` arrived.
    pub(crate) fn cost(
        &self,
        flows: u32,
        packets: u32,
        warm_up: u32,
        cpu: usize,
    ) -> Result<(f64, u64)> {
        let interface = self.index(CLIENT, "eth0")?;
        let generator = Generator::new(&ROUTE, flows)?;
        let spent = |count: u32| {
            self.client().run(|| -> Result<_> {
                worker::pin(cpu)?;
                let meter = Meter::new(cpu)?;
                let before = meter.read()?;
                generator.send(interface, count)?;
                Ok(meter.read()? - before)
            })?
        };
        if warm_up > 0 {
            spent(warm_up)?;
        }
        let before = received(&self.origin())?;
        let time = spent(packets)?;
        let arrived = received(&self.origin())? - before;
        Ok((time.as_nanos() as f64 / arrived.max(1) as f64, arrived))
    }

    /// The client's namespace.
    pub(crate) fn client(&self) -> Namespace {
        self.lab.node(CLIENT)
    }

    /// The origin's namespace.
    pub(crate) fn origin(&self) -> Namespace {
        self.lab.node(ORIGIN)
    }

    /// Any node's namespace.
    pub(crate) fn node(&self, name: &str) -> Namespace {
        self.lab.node(name)
    }

    /// A port of the origin.
    pub(crate) fn at(port: u16) -> SocketAddr {
        SocketAddr::new(ORIGIN_ADDRESS.into(), port)
    }

    fn index(&self, node: &str, interface: &str) -> Result<u32> {
        let text = self
            .lab
            .node(node)
            .ip(&format!("-o link show dev {interface}"))?;
        let number = text.split(':').next().context("ip printed nothing")?;
        Ok(number.trim().parse()?)
    }
}

/// Packets that a node's `eth0` has received.
pub(crate) fn received(node: &Namespace) -> Result<u64> {
    let text = node.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"))
        .context("the node has no eth0")?;
    let packets = line
        .split_whitespace()
        .nth(1)
        .context("an odd /proc/net/dev")?;
    Ok(packets.parse()?)
}

fn topology(variant: Variant) -> Topology {
    let [client, inside, origin] = [CLIENT_MAC, INSIDE_MAC, ORIGIN_MAC].map(mac);
    let mut topology = Topology::new()
        .node(CLIENT)
        .node(GATEWAY)
        .node(ORIGIN)
        .forwarding(GATEWAY)
        .sysctl(GATEWAY, "net.ipv4.conf.all.rp_filter", "0")
        .sysctl(GATEWAY, "net.ipv4.conf.default.rp_filter", "0")
        .sysctl(CLIENT, "net.ipv4.ip_local_port_range", "1024 65535")
        .sysctl(CLIENT, "net.ipv4.tcp_tw_reuse", "1")
        .sysctl(CLIENT, "net.ipv4.tcp_max_tw_buckets", "20000")
        .sysctl(ORIGIN, "net.ipv4.tcp_max_tw_buckets", "20000")
        .link(
            End::new(CLIENT, "eth0").address("10.1.0.2/24").mac(&client),
            End::new(GATEWAY, INSIDE_BOUND)
                .address("10.1.0.1/24")
                .mac(&inside),
        )
        .link(
            End::new(GATEWAY, UPLINK).address("203.0.113.2/24"),
            End::new(ORIGIN, "eth0")
                .address("203.0.113.1/24")
                .mac(&origin),
        )
        .route(CLIENT, "default via 10.1.0.1")
        .route(ORIGIN, &format!("10.0.0.0/8 via {DEFAULT_EGRESS}"));
    if variant == Variant::Snat {
        topology = topology
            .nft(
                GATEWAY,
                &format!(
                    "table ip bench {{\n chain postrouting {{\n type nat hook postrouting priority srcnat;\n \
                     oifname \"{UPLINK}\" ip saddr 10.1.0.0/16 snat to {}\n }}\n}}",
                    POOL[0]
                ),
            )
            // Somebody must answer ARP for the address.
            .route(ORIGIN, &format!("{} via {DEFAULT_EGRESS}", POOL[0]));
    }
    topology
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
