//! The one-gateway networks that most tests use.
//!
//! ```text
//!  bound   10.1.0.2 ── in0 ┐                     ┌ a0 ── a  (origin A)
//!                          gw ── up0 ─── up0 ── net
//!  unbound 10.2.0.2 ── in1 ┘ 203.0.113.2         └ b0 ── b  (origin B)
//! ```
//!
//! `net` is a router ([`Kind::Routed`]) or a switch ([`Kind::Segment`]). Either way the pool's addresses are
//! on-link on the uplink, so that somebody must answer ARP for them. `net` knows a way back to the inside
//! prefixes: without an egress pool everything works too, with foreign sources. Interface `up0` of
//! `net` sees whatever leaves the gateway, which makes it the place for captures.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use anyhow::{Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::topology::{End, Topology};

/// The client whose traffic belongs to a zone.
pub const BOUND: &str = "bound";
/// The client whose traffic belongs to none.
pub const UNBOUND: &str = "unbound";
/// The gateway.
pub const GATEWAY: &str = "gw";
/// What is behind the uplink.
pub const NET: &str = "net";
/// Origin A.
pub const A: &str = "a";
/// Origin B.
pub const B: &str = "b";
/// The gateway's uplink, and the interface of [`NET`] that sees what leaves by it.
pub const UPLINK: &str = "up0";
/// The second uplink of [`Options::second_uplink`], at both ends.
pub const SECOND_UPLINK: &str = "up1";
/// The gateway's interface towards [`BOUND`].
pub const INSIDE_BOUND: &str = "in0";
/// The gateway's interface towards [`UNBOUND`].
pub const INSIDE_UNBOUND: &str = "in1";

/// The bound client's address.
pub const BOUND_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// More addresses of the bound client, for crowds: once half of the ports from one address to an origin are
/// taken, the kernel searches all of that half for each further connection.
pub const CROWD_ADDRESSES: [Ipv4Addr; 3] = [
    Ipv4Addr::new(10, 1, 0, 11),
    Ipv4Addr::new(10, 1, 0, 12),
    Ipv4Addr::new(10, 1, 0, 13),
];
/// The bound client's IPv6 address.
pub const BOUND_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 2);
/// The unbound client's IPv6 address.
pub const UNBOUND_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 2, 0, 0, 0, 0, 0, 2);
/// The gateway's own IPv6 address on the uplink: the default egress.
pub const DEFAULT_EGRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 2);
/// The unbound client's address.
pub const UNBOUND_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
/// The gateway's own address on the uplink: the default egress.
pub const DEFAULT_EGRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The default egress as a network of one address.
pub const DEFAULT_EGRESS_NET: IpNet = host(DEFAULT_EGRESS);
/// The gateway's own address on the second uplink.
pub const SECOND_EGRESS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 2);
/// The addresses of [`NET`] towards the origins, in a [`Kind::Routed`] network: a router may have something to
/// say for itself.
pub const ROUTER_ADDRESSES: [Ipv4Addr; 2] =
    [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(192, 0, 2, 1)];
/// The addresses of the pool.
pub const POOL: [Ipv4Addr; 2] = [
    Ipv4Addr::new(203, 0, 113, 10),
    Ipv4Addr::new(203, 0, 113, 11),
];
/// An IPv6 range for a pool: on-link for whoever is behind the uplink, as a whole.
pub const RANGE: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0xaa, 0, 0, 0, 0, 0), 64);
/// The prefix of the zone's clients.
pub const ZONE_PREFIX: &str = "10.1.0.0/16";
/// The prefix of the unbound client.
pub const UNBOUND_PREFIX: &str = "10.2.0.0/16";
/// The prefix of the zone's clients, of IPv6.
pub const ZONE_PREFIX_V6: &str = "fd00:1::/64";
/// The prefix of the unbound client, of IPv6.
pub const UNBOUND_PREFIX_V6: &str = "fd00:2::/64";
/// The prefix of all inside clients.
pub const INSIDE_PREFIX: &str = "10.0.0.0/8";

/// Whose packets the gateway masquerades where they leave by an uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Masquerade {
    /// Nobody's.
    #[default]
    Nobody,
    /// The unbound client's only, as a gateway does that leaves its bound clients to egress.
    Unbound,
    /// Everybody's, as a gateway with one address does: then netfilter has rewritten the source of the zone's
    /// packets before the uplink's hook sees them (ZONE-4).
    Everybody,
}

impl Masquerade {
    /// All kinds, for tests that try each.
    pub const ALL: [Self; 3] = [Self::Nobody, Self::Unbound, Self::Everybody];

    /// The script that switches it on.
    #[must_use]
    pub fn script(self) -> Option<String> {
        if self == Self::Nobody {
            return None;
        }
        let tables = [("ip", UNBOUND_PREFIX), ("ip6", UNBOUND_PREFIX_V6)];
        let table = |(family, unbound): (&str, &str)| {
            let sources = match self {
                Self::Unbound => format!("{family} saddr {unbound} "),
                _ => String::new(),
            };
            format!(
                "table {family} lab_nat {{
    chain postrouting {{
        type nat hook postrouting priority srcnat;
        {sources}oifname {{ \"{UPLINK}\", \"{SECOND_UPLINK}\" }} masquerade
    }}
}}"
            )
        };
        Some(tables.map(table).join("\n"))
    }
}

/// A network of one address.
#[must_use]
pub const fn host(address: Ipv4Addr) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(address, 32))
}

/// What is between the gateway and the origins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A router; the origins are in networks of their own.
    Routed,
    /// A switch; the origins share the uplink's subnet.
    Segment,
}

impl Kind {
    /// All kinds, for help texts and tests that try each.
    pub const ALL: [Self; 2] = [Self::Routed, Self::Segment];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Segment => "segment",
        }
    }

    /// The address of origin A.
    #[must_use]
    pub fn origin_a(self) -> Ipv4Addr {
        match self {
            Self::Routed => Ipv4Addr::new(198, 51, 100, 10),
            Self::Segment => Ipv4Addr::new(203, 0, 113, 101),
        }
    }

    /// The address of origin B.
    #[must_use]
    pub fn origin_b(self) -> Ipv4Addr {
        match self {
            Self::Routed => Ipv4Addr::new(192, 0, 2, 10),
            Self::Segment => Ipv4Addr::new(203, 0, 113, 102),
        }
    }

    /// The address of origin A or B.
    #[must_use]
    pub fn origin(self, node: &str) -> Ipv4Addr {
        if node == A {
            self.origin_a()
        } else {
            self.origin_b()
        }
    }

    /// The IPv6 address of origin A or B.
    #[must_use]
    pub fn origin_v6(self, node: &str) -> Ipv6Addr {
        let (network, host) = match (self, node) {
            (Self::Routed, A) => (0xa, 0x10),
            (Self::Routed, _) => (0xb, 0x10),
            (Self::Segment, A) => (0x113, 0x101),
            (Self::Segment, _) => (0x113, 0x102),
        };
        Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, host)
    }

    /// Both addresses of an origin.
    #[must_use]
    pub fn addresses(self, node: &str) -> [IpAddr; 2] {
        [self.origin(node).into(), self.origin_v6(node).into()]
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match Self::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Ok(kind),
            None => bail!(
                "no topology {name}; there are: {}",
                Self::ALL.map(Self::name).join(", ")
            ),
        }
    }
}

/// What differs from lab to lab.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What is between the gateway and the origins.
    pub kind: Kind,
    /// Masquerade on the gateway's uplinks.
    pub masquerade: Masquerade,
    /// A second interface of the gateway towards `net`, without a route at first.
    pub second_uplink: bool,
    /// `rp_filter` of the gateway.
    pub rp_filter: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            kind: Kind::Routed,
            masquerade: Masquerade::Nobody,
            second_uplink: false,
            rp_filter: 0,
        }
    }
}

/// The topology for the options.
#[must_use]
pub fn topology(options: &Options) -> Topology {
    let bound = CROWD_ADDRESSES.iter().fold(
        End::new(BOUND, "eth0")
            .address("10.1.0.2/24")
            .address("fd00:1::2/64"),
        |end, address| end.address(&format!("{address}/24")),
    );
    let reverse_path_filter = options.rp_filter.to_string();
    let mut topology = Topology::new()
        .node(BOUND)
        .node(UNBOUND)
        .node(GATEWAY)
        .node(NET)
        .node(A)
        .node(B)
        .forwarding(GATEWAY)
        .sysctl(GATEWAY, "net.ipv4.conf.all.rp_filter", &reverse_path_filter)
        .sysctl(
            GATEWAY,
            "net.ipv4.conf.default.rp_filter",
            &reverse_path_filter,
        )
        .link(
            bound,
            End::new(GATEWAY, INSIDE_BOUND)
                .address("10.1.0.1/24")
                .address("fd00:1::1/64"),
        )
        .link(
            End::new(UNBOUND, "eth0")
                .address("10.2.0.2/24")
                .address("fd00:2::2/64"),
            End::new(GATEWAY, INSIDE_UNBOUND)
                .address("10.2.0.1/24")
                .address("fd00:2::1/64"),
        )
        .route(BOUND, "default via 10.1.0.1")
        .route(BOUND, "default via fd00:1::1")
        .route(UNBOUND, "default via 10.2.0.1")
        .route(UNBOUND, "default via fd00:2::1");
    for node in [BOUND, UNBOUND, GATEWAY, A, B] {
        topology = many_connections(topology, node);
    }
    let uplink = End::new(GATEWAY, UPLINK)
        .address("203.0.113.2/24")
        .address("2001:db8:113::2/64");
    topology = match options.kind {
        Kind::Routed => routed(topology, uplink),
        Kind::Segment => segment(topology, uplink),
    };
    if options.second_uplink {
        topology = topology.link(
            End::new(GATEWAY, SECOND_UPLINK)
                .address("172.31.0.2/24")
                .address("2001:db8:31::2/64"),
            End::new(NET, SECOND_UPLINK)
                .address("172.31.0.1/24")
                .address("2001:db8:31::1/64"),
        );
    }
    if let Some(script) = options.masquerade.script() {
        topology = topology.nft(GATEWAY, &script);
    }
    topology
}

/// Lets a node open and accept tens of thousands of connections.
fn many_connections(topology: Topology, node: &str) -> Topology {
    topology
        .sysctl(node, "net.ipv4.ip_local_port_range", "1024 65535")
        .sysctl(node, "net.ipv4.tcp_max_syn_backlog", "65536")
        .sysctl(node, "net.core.somaxconn", "65535")
}

fn routed(topology: Topology, uplink: End) -> Topology {
    let mut topology = topology
        .forwarding(NET)
        .link(
            uplink,
            End::new(NET, UPLINK)
                .address("203.0.113.1/24")
                .address("2001:db8:113::1/64"),
        )
        .link(
            End::new(NET, "a0")
                .address("198.51.100.1/24")
                .address("2001:db8:a::1/64"),
            End::new(A, "eth0")
                .address("198.51.100.10/24")
                .address("2001:db8:a::10/64"),
        )
        .link(
            End::new(NET, "b0")
                .address("192.0.2.1/24")
                .address("2001:db8:b::1/64"),
            End::new(B, "eth0")
                .address("192.0.2.10/24")
                .address("2001:db8:b::10/64"),
        )
        .route(GATEWAY, "default via 203.0.113.1")
        .route(GATEWAY, "default via 2001:db8:113::1")
        .route(NET, &format!("{INSIDE_PREFIX} via {DEFAULT_EGRESS}"))
        .route(NET, "fd00::/16 via 2001:db8:113::2")
        .route(NET, &format!("{RANGE} dev {UPLINK}"));
    for (node, four, six) in [
        (A, "198.51.100.1", "2001:db8:a::1"),
        (B, "192.0.2.1", "2001:db8:b::1"),
    ] {
        topology = topology
            .route(node, &format!("default via {four}"))
            .route(node, &format!("default via {six}"));
    }
    topology
}

fn segment(topology: Topology, uplink: End) -> Topology {
    let mut topology = topology
        .bridge(NET, "switch")
        .link(uplink, End::new(NET, UPLINK).port_of("switch"))
        .link(
            End::new(NET, "a0").port_of("switch"),
            End::new(A, "eth0")
                .address("203.0.113.101/24")
                .address("2001:db8:113::101/64"),
        )
        .link(
            End::new(NET, "b0").port_of("switch"),
            End::new(B, "eth0")
                .address("203.0.113.102/24")
                .address("2001:db8:113::102/64"),
        );
    for node in [A, B] {
        topology = topology
            .route(node, &format!("default via {DEFAULT_EGRESS}"))
            .route(node, "default via 2001:db8:113::2")
            .route(node, &format!("{RANGE} dev eth0"));
    }
    topology
}
