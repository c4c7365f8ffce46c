//! Two servers that share egress IPs, and a router that brings all replies to the one it is told.
//!
//! ```text
//!  c1 10.1.0.2 ── in0  s1  up0 ── up1 ┐
//!                      und0           net ── a0 ── a  (origin)
//!                       │             │
//!                      und0           │
//!  c2 10.1.0.2 ── in0  s2  up0 ── up2 ┘
//! ```
//!
//! Both insides use the same addresses. The servers reach each other by `und0`.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context as _, Result};
use ipnet::Ipv6Net;

use crate::{
    api::LISTEN,
    client::{Clients, Options},
    config::{Files, Resources, Server},
    etcd::{self, Etcd},
    gateway::{self, Gateway},
    lab::Lab,
    leak::{LeakCheck, Rules},
    netns::Namespace,
    origin::Origin,
    service,
    topology::{End, Topology},
};

/// The router and the origin.
pub const NET: &str = "net";
/// The origin.
pub const ORIGIN: &str = "a";
/// The origin's addresses.
pub const ORIGIN_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
/// The same, of IPv6.
pub const ORIGIN_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x10);
/// The egress IP that both servers share.
pub const SHARED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
/// Their IPv6 range.
pub const RANGE: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0xaa, 0, 0, 0, 0, 0), 64);
/// The interface by which the servers reach each other.
pub const UNDERLAY: &str = "und0";
/// Where an etcd answers that both share: the router's address.
pub const ETCD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// UDP port of the tunnel.
pub const TUNNEL_PORT: u16 = 4789;

/// How long ports rest where slices are handed over.
const RESTING: &str = "[timers]\ntcp_closing = 2\nquarantine = 2";

/// One of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    One,
    /// The second.
    Two,
}

impl Side {
    /// Both.
    pub const ALL: [Self; 2] = [Self::One, Self::Two];

    /// 1 or 2.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    /// The other one.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::One => Self::Two,
            Self::Two => Self::One,
        }
    }

    /// The server's node.
    #[must_use]
    pub fn server(self) -> &'static str {
        match self {
            Self::One => "s1",
            Self::Two => "s2",
        }
    }

    /// The node of its client.
    #[must_use]
    pub fn client(self) -> &'static str {
        match self {
            Self::One => "c1",
            Self::Two => "c2",
        }
    }

    /// The interface of [`NET`] towards it.
    #[must_use]
    pub fn port(self) -> &'static str {
        match self {
            Self::One => "up1",
            Self::Two => "up2",
        }
    }

    /// The server's name in the resources.
    #[must_use]
    pub fn name(self) -> String {
        format!("lab-s{}", self.number())
    }

    /// Its part of [`RANGE`].
    ///
    /// # Panics
    /// Never: the prefix is valid.
    #[must_use]
    pub fn range(self) -> Ipv6Net {
        let bits = RANGE.network().to_bits() | u128::from(self.number()) << 48;
        Ipv6Net::new_assert(bits.into(), 80)
    }

    /// Where the other one reaches it.
    #[must_use]
    pub fn underlay(self, family: Underlay) -> IpAddr {
        let last = self.number();
        match family {
            Underlay::V4 => [10, 9, 0, last].into(),
            Underlay::V6 => [0x2001, 0xdb8, 9, 0, 0, 0, 0, last.into()].into(),
        }
    }
}

/// The addresses between the servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Underlay {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

impl Underlay {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];
}

/// Two servers that stand.
#[derive(Debug)]
pub struct Pair {
    /// Their daemons.
    pub gateways: [Gateway; 2],
    /// The origin.
    pub origin: Origin,
    /// The network.
    pub lab: Lab,
}

/// Locations and placements: both servers in one data center, each with half of [`SHARED`].
#[must_use]
pub fn resources(underlay: Underlay) -> Resources {
    let servers = Side::ALL.map(|side| {
        format!(
            "[[location.data_center.server]]\nname = \"{}\"\nnumber = {}\ntunnel = \"{}\"\n",
            side.name(),
            side.number(),
            side.underlay(underlay)
        )
    });
    Resources {
        addresses: vec![SHARED.to_string(), RANGE.to_string()],
        selectors: "sources = [\"10.1.0.0/16\", \"fd00:1::/64\"]".to_owned(),
        sections: format!(
            "[[location]]\nname = \"lab\"\n[[location.data_center]]\nname = \"lab\"\n{}\n\
             [[placement]]\naddress = \"{SHARED}\"\nshares = [{{ data_center = \"lab\", share = 1 }}]\n",
            servers.concat()
        ),
        ..Resources::default()
    }
}

impl Pair {
    /// Sets everything up; both daemons are ready when this returns, and replies go to the first server.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(underlay: Underlay) -> Result<Self> {
        let both = [resources(underlay), resources(underlay)];
        // Over IPv6 nothing is fragmented.
        let mtu = if underlay == Underlay::V4 {
            1_500
        } else {
            1_570
        };
        Self::start_with(&both, mtu, |_| "lab".to_owned())
    }

    /// As [`Pair::start`], with resources of each server's own, its data center, and the MTU between them.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start_with(
        resources: &[Resources; 2],
        mtu: u32,
        data_center: impl Fn(Side) -> String,
    ) -> Result<Self> {
        Self::on(Lab::up(&topology())?, resources, mtu, data_center, None)
    }

    /// As [`Pair::start_with`], in a lab that stands, with a store that both share if there is one.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn on(
        lab: Lab,
        resources: &[Resources; 2],
        mtu: u32,
        data_center: impl Fn(Side) -> String,
        etcd: Option<&str>,
    ) -> Result<Self> {
        for side in Side::ALL {
            let node = lab.node(side.server());
            node.ip(&format!("link set {UNDERLAY} mtu {mtu}"))?;
        }
        let binary = gateway::binary()?;
        let one = |side: Side, resources: &Resources| {
            let directory = lab.directory().join(side.server());
            fs::create_dir_all(&directory)?;
            let mut pin = lab.pin().into_os_string();
            pin.push(format!("-{}", side.server()));
            let files = Files {
                directory,
                pin: pin.into(),
            };
            let server = Server {
                name: side.name(),
                data_center: data_center(side),
                inside: vec!["in0".to_owned()],
                max_flows: 4_096,
                etcd: etcd.map(ToOwned::to_owned),
                // A slice is handed over when its ports have rested.
                sections: etcd.map_or_else(String::new, |_| {
                    format!("[api]\nlisten = \"{LISTEN}\"\n{RESTING}")
                }),
                ..Server::default()
            };
            let node = lab.node(side.server());
            let mut gateway = Gateway::on(node, files, &binary, &server, resources)?;
            gateway.restart()?;
            anyhow::Ok(gateway)
        };
        let [first, second] = resources;
        let gateways = [one(Side::One, first)?, one(Side::Two, second)?];
        let addresses = [ORIGIN_ADDRESS.into(), ORIGIN_ADDRESS_V6.into()];
        let origin = Origin::start(&lab.node(ORIGIN), &addresses, 2)?;
        let pair = Self {
            gateways,
            origin,
            lab,
        };
        pair.replies_to(Side::One)?;
        Ok(pair)
    }

    /// As [`Pair::start`], with an etcd that both share: the router has it, and both have a route there.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn sharing() -> Result<(Self, Etcd)> {
        let lab = Lab::up(&topology())?;
        let directory = service::shared_directory(&lab.directory(), "etcd")?;
        let etcd = Etcd::start(lab.node(NET), &directory, ETCD.into())?;
        let both = [resources(Underlay::V4), resources(Underlay::V4)];
        let endpoint = etcd.endpoint();
        let pair = Self::on(lab, &both, 1_550, |_| "lab".to_owned(), Some(&endpoint))?;
        Ok((pair, etcd))
    }

    /// What may leave: all by egress IPs, but for the servers' own words with etcd.
    ///
    /// # Errors
    /// When a capture does not start.
    pub fn checks(&self) -> Result<Vec<LeakCheck>> {
        let watched = Side::ALL.map(|side| {
            let own = Ipv4Addr::new(203, 0, side.number(), 2);
            let rules = Rules::new()
                .allow([SHARED])
                .allow_range(RANGE.into())
                .allow_to_port(IpAddr::from(own).into(), etcd::CLIENTS);
            LeakCheck::start(&self.node(NET), side.port(), rules)
        });
        watched.into_iter().collect()
    }

    /// Slices that a server has, as another one says, and those of them that leave; none where it is not known.
    ///
    /// # Errors
    /// When `egress server list` fails.
    pub fn slices(&self, asked: Side, side: Side) -> Result<(u64, u64)> {
        let all = self.gateway(asked).json(&["server", "list"])?;
        let all = all.as_array().context("servers are listed")?;
        let found = all.iter().find(|one| one["server"] == side.name());
        let Some(found) = found else {
            return Ok((0, 0));
        };
        let figure = |key: &str| found[key].as_u64().context("a figure is missing");
        Ok((figure("slices")?, figure("leaving")?))
    }

    /// The daemon of a server.
    #[must_use]
    pub fn gateway(&self, side: Side) -> &Gateway {
        let [one, two] = &self.gateways;
        match side {
            Side::One => one,
            Side::Two => two,
        }
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &str) -> Namespace {
        self.lab.node(name)
    }

    /// A port of the origin.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(ORIGIN_ADDRESS.into(), port)
    }

    /// A port of the origin, by IPv6.
    #[must_use]
    pub fn at_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(ORIGIN_ADDRESS_V6.into(), port)
    }

    /// A client process behind a server.
    ///
    /// # Errors
    /// When it does not start.
    pub fn clients(&self, side: Side) -> Result<Clients> {
        Clients::start(&self.node(side.client()), 1, &Options::default())
    }

    /// From now on the router brings everything for egress IPs to this server.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn replies_to(&self, side: Side) -> Result<()> {
        let number = side.number();
        let node = self.node(NET);
        node.ip(&format!(
            "-4 route replace {SHARED}/32 via 203.0.{number}.2"
        ))?;
        node.ip(&format!(
            "-6 route replace {RANGE} via 2001:db8:11{number}::2"
        ))?;
        Ok(())
    }
}

/// The network of both.
#[must_use]
pub fn topology() -> Topology {
    let mut topology = Topology::new().node(NET).node(ORIGIN);
    for side in Side::ALL {
        let (server, client, number) = (side.server(), side.client(), side.number());
        topology = topology
            .node(server)
            .node(client)
            .forwarding(server)
            .link(
                End::new(client, "eth0")
                    .address("10.1.0.2/24")
                    .address("fd00:1::2/64"),
                End::new(server, "in0")
                    .address("10.1.0.1/24")
                    .address("fd00:1::1/64"),
            )
            .link(
                End::new(server, "up0")
                    .address(&format!("203.0.{number}.2/24"))
                    .address(&format!("2001:db8:11{number}::2/64")),
                End::new(NET, side.port())
                    .address(&format!("203.0.{number}.1/24"))
                    .address(&format!("2001:db8:11{number}::1/64")),
            )
            .route(client, "default via 10.1.0.1")
            .route(client, "default via fd00:1::1")
            .route(server, &format!("default via 203.0.{number}.1"))
            .route(server, &format!("default via 2001:db8:11{number}::1"));
    }
    let [one, two] = Side::ALL.map(|side| {
        End::new(side.server(), UNDERLAY)
            .address(&format!("{}/24", side.underlay(Underlay::V4)))
            .address(&format!("{}/64", side.underlay(Underlay::V6)))
    });
    topology
        .link(one, two)
        .forwarding(NET)
        .link(
            End::new(NET, "a0")
                .address("198.51.100.1/24")
                .address("2001:db8:a::1/64"),
            End::new(ORIGIN, "eth0")
                .address(&format!("{ORIGIN_ADDRESS}/24"))
                .address(&format!("{ORIGIN_ADDRESS_V6}/64")),
        )
        .route(ORIGIN, "default via 198.51.100.1")
        .route(ORIGIN, "default via 2001:db8:a::1")
}
