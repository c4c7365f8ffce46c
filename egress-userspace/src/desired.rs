//! What the data plane shall do, as plain data: the end product of configuration and resources.
//!
//! Names are resolved, references followed, defaults filled in; what is left are numbers and addresses that
//! translate to map entries one to one. [`crate::resolve`] makes it.

mod withdrawn;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

pub use egress_common::forward::Tier;
use egress_common::share::share_of;

pub use egress_common::port::{ALL_SLICES, CONNECTIONS_PER_ORIGIN};
use ipnet::{IpNet, Ipv6Net};
pub use withdrawn::Withdrawn;

use crate::config::{Exempt, Refuse, Timers};
use crate::dataplane::api::Names;
use crate::policy::Expression;
use crate::resource::Address;

/// Everything that the data plane needs to know about tenants and their addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Zones, by ascending number.
    pub zones: Vec<DesiredZone>,
    /// Pools, by ascending number.
    pub pools: Vec<DesiredPool>,
    /// Egress policies, the first to be asked first (POLICY-1).
    pub policies: Vec<DesiredPolicy>,
    /// What takes the default egress whatever its zone says (POLICY-7).
    pub exempt: Exempt,
    /// Idle times and holds (NAT-7, CAP-7).
    pub timers: Timers,
    /// What the flow log is told: bits `1 << kind` of [`egress_common::record::kind`] (OBS-4).
    pub log: u32,
    /// How a refusal is told to the inside host (CAP-5).
    pub refuse: Refuse,
    /// The other servers, if they reach each other.
    pub tunnel: Option<DesiredTunnel>,
    /// The zones that are confined to locations, by number (FWD-8).
    pub confined: BTreeMap<u16, Confinement>,
    /// What is kept from the network though it is used (ANN-1).
    pub withdrawn: Withdrawn,
}

/// Where a zone may leave, and what that makes of its pool on this server (FWD-8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The names of the locations.
    pub regions: Vec<String>,
    /// What it may use.
    pub part: Part,
}

/// What some traffic may use of its pool on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of it.
    All,
    /// One of [`DesiredTunnel::exits`].
    Exit(usize),
    /// Nothing.
    Nothing,
}

/// The way to the other servers, and what is theirs (FWD-5, FWD-6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredTunnel {
    /// Where this server is reached.
    pub own: IpAddr,
    /// Name of the interface.
    pub device: String,
    /// UDP port, the same on all servers.
    pub port: u16,
    /// The others, in the order of the file; at least one.
    pub peers: Vec<DesiredPeer>,
    /// What pools are between servers.
    pub pools: Vec<DesiredForward>,
    /// What certain traffic may use of them.
    pub exits: Vec<DesiredPart>,
}

/// What certain traffic may use of a pool: a policy's address, or what is left to a zone that is confined to locations
/// where this server has no IPv4 address for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPart {
    /// This server's number of the pool.
    pub pool: u16,
    /// The one address; without it all of the pool's.
    pub only: Option<Ipv4Addr>,
    /// The locations where it may leave; anywhere if there are none.
    pub regions: Vec<String>,
    /// The tunnel id, of the address or of the pool; the same on all servers.
    pub target: u32,
    /// Whether it may leave here: by the address if this server has it, by the pool's IPv6 ranges.
    pub here: bool,
    /// As [`DesiredForward::shares`].
    pub shares: Option<Vec<(usize, Tier)>>,
}

/// A pool among servers: its tunnel id, and where its new connections go (FWD-2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredForward {
    /// This server's number of the pool.
    pub pool: u16,
    /// Its tunnel id, the same on all servers.
    pub target: u32,
    /// Where this server owns nothing of the pool's IPv4 addresses and others do: by share of the inside addresses,
    /// which of [`DesiredTunnel::peers`] translates, and how near it is.
    pub shares: Option<Vec<(usize, Tier)>>,
}

/// Another server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPeer {
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// IPv4 egress IPs and the slices of each that it owns, at least one of each.
    pub slices: Vec<(Ipv4Addr, u32)>,
    /// The IPv6 ranges that it uses.
    pub ranges: Vec<Ipv6Net>,
}

/// A tenant's traffic and what becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredZone {
    /// Stable number, at least 1: it stands in mark bits and maps.
    pub number: u16,
    /// The zone's id.
    pub id: String,
    /// The zone's name; its id when it has none.
    pub name: String,
    /// Whether its traffic leaves by the pool; if not it takes the default egress (ZONE-1).
    pub enabled: bool,
    /// Number of its pool; always present when `enabled`.
    pub pool: Option<u16>,
    /// What recognises its packets; any of them (ZONE-2).
    pub selectors: Selectors,
    /// Whether it is a realm: interface-selected, so its inside addresses may repeat elsewhere (ZONE-2).
    pub realm: bool,
    /// Whether TCP leaves by the pool; if not it takes the default egress (POLICY-6).
    pub egress_tcp: bool,
    /// Whether UDP leaves by the pool; if not it takes the default egress (POLICY-6).
    pub egress_udp: bool,
}

/// A zone's selectors. Where zones overlap: mark, then cgroup, then interface, then the longest source (ZONE-3).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// Marks of packets, after the reserved bits are taken out.
    pub marks: Vec<DesiredMark>,
    /// Paths below the cgroup2 mount, without a leading slash; descendants included, the deepest match wins.
    pub cgroups: Vec<String>,
    /// Names of interfaces of `[dataplane] inside`.
    pub interfaces: Vec<String>,
    /// Source prefixes; the longest match wins.
    pub sources: Vec<IpNet>,
}

/// A firewall mark to match: `packet mark & mask == value`. Never touches the reserved bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DesiredMark {
    /// The bits wanted; no bit outside `mask`.
    pub value: u32,
    /// The bits looked at; no bit of the reserved mark mask.
    pub mask: u32,
}

/// Which traffic of some zones leaves by which address (POLICY-1, ZONE-5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPolicy {
    /// Its name.
    pub name: String,
    /// Numbers of the zones that it applies to: its account's.
    pub zones: Vec<u16>,
    /// What it matches; `None` for all traffic.
    pub traffic: Option<Expression>,
    /// How IPv4 leaves.
    pub ipv4: DesiredExit,
    /// How IPv6 leaves.
    pub ipv6: DesiredExit,
}

/// How a policy's new flows leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DesiredExit {
    /// By the default egress.
    Default,
    /// By an address, or a range, that this server has.
    By {
        /// Number of the pool that has it.
        pool: u16,
        /// What of the pool.
        address: Address,
    },
    /// By an IPv4 address that other servers have (FWD-2).
    Elsewhere {
        /// Number of the pool that has it.
        pool: u16,
        /// The one of [`DesiredTunnel::exits`].
        exit: usize,
    },
    /// Nobody who may translate has it: they are refused.
    Nowhere {
        /// Number of the pool that has it.
        pool: u16,
    },
}

/// A named set of egress IPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DesiredPool {
    /// Stable number, at least 1.
    pub number: u16,
    /// The pool's id.
    pub id: String,
    /// IPv4 addresses in the order of the file. May be empty: then its zones' traffic is refused (SAFE-1).
    pub candidates: Vec<Candidate>,
    /// IPv6 prefixes (POOL-6).
    pub prefixes: Vec<DesiredPrefix>,
}

/// One IPv4 egress IP on this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The egress IP.
    pub address: Ipv4Addr,
    /// Owned slices: bit k = slice k, for k in 1..=31; [`ALL_SLICES`] on a single server (CAP-3).
    pub slices: u32,
    /// Concurrent connections admitted per (origin, protocol): the owned quota, or less if the pool says so.
    pub cap: u32,
    /// No new flows; live ones finish (POOL-9).
    pub draining: bool,
}

/// One IPv6 egress range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DesiredPrefix {
    /// The range.
    pub prefix: Ipv6Net,
    /// Concurrent connections admitted per (origin, protocol) and address of the range.
    pub cap: u32,
    /// No new flows; live ones finish (POOL-9).
    pub draining: bool,
}

impl Desired {
    /// The names of its zones and pools by number.
    pub fn names(&self) -> Names {
        Names {
            zones: self
                .zones
                .iter()
                .map(|zone| (zone.number, zone.name.clone()))
                .collect(),
            pools: self
                .pools
                .iter()
                .map(|pool| (pool.number, pool.id.clone()))
                .collect(),
            servers: self
                .tunnel
                .iter()
                .flat_map(|tunnel| &tunnel.peers)
                .map(|peer| (peer.address, peer.name.clone()))
                .collect(),
        }
    }

    /// The addresses and ranges of all pools.
    pub fn addresses(&self) -> impl Iterator<Item = Address> {
        self.pools.iter().flat_map(|pool| {
            let single = pool.candidates.iter().map(|one| Address::V4(one.address));
            single.chain(pool.prefixes.iter().map(|range| Address::V6(range.prefix)))
        })
    }

    /// The server that translates new connections of an inside address, where this one owns nothing of the pool.
    pub fn forwarded(&self, pool: u16, inside: Ipv4Addr) -> Option<(&DesiredPeer, Tier)> {
        let tunnel = self.tunnel.as_ref()?;
        let pool = tunnel.pools.iter().find(|one| one.pool == pool)?;
        tunnel.share(pool.shares.as_ref()?, inside)
    }

    /// The server that translates new connections of an inside address which leave by an exit.
    pub fn forwarded_by(&self, exit: usize, inside: Ipv4Addr) -> Option<(&DesiredPeer, Tier)> {
        let tunnel = self.tunnel.as_ref()?;
        let exit = tunnel.exits.get(exit)?;
        tunnel.share(exit.shares.as_ref()?, inside)
    }

    /// The pool with this number.
    pub fn pool(&self, number: u16) -> Option<&DesiredPool> {
        self.pools.iter().find(|pool| pool.number == number)
    }

    /// Whether traffic to `destination` port `port` is exempt (POLICY-7): a listed destination, or DNS
    /// (port 53) to a listed resolver.
    pub fn is_exempt(&self, destination: IpAddr, port: u16) -> bool {
        self.exempt
            .destinations
            .iter()
            .any(|net| net.contains(&destination))
            || (port == crate::config::DNS_PORT && self.exempt.resolvers.contains(&destination))
    }
}

impl DesiredTunnel {
    fn share(&self, shares: &[(usize, Tier)], inside: Ipv4Addr) -> Option<(&DesiredPeer, Tier)> {
        let (peer, tier) = *shares.get(share_of(inside.octets()))?;
        Some((self.peers.get(peer)?, tier))
    }
}
