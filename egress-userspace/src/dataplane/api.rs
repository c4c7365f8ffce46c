//! What the control plane asks of the data plane, as plain data.
//!
//! [`DataPlaneView`] reads; it needs nothing but the pinned maps, so the command line opens one itself when no
//! daemon answers (SAFE-2). [`DataPlane`] also writes and belongs to the daemon alone. The records serialise to
//! exactly the JSON that the commands print and that scripts rely on.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::desired::Desired;
use crate::ownership::Slices;
use crate::resource::Address;

mod trouble;
mod usage;
mod way;

pub use trouble::{Trouble, TroubleKind};
pub use usage::{UsageLook, UsageRecord};
pub use way::{Exit, Traveller, Way};

/// Reading the data plane: counts, flows and hooks as the pinned maps and links hold them now.
pub trait DataPlaneView {
    /// Which hooks are in place, how full the tables are, and the counters by reason.
    fn status(&self) -> Result<DataPlaneStatus, DataPlaneError>;

    /// Visits every live flow that `filter` lets through, until `each` breaks off.
    fn flows(
        &self,
        filter: &FlowFilter,
        each: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
    ) -> Result<(), DataPlaneError>;

    /// The live flow with these endpoints, if there is one; what `egress why` asks (OBS-5).
    fn flow(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataPlaneError>;

    /// Connection counts by (egress IP, origin, protocol) (OBS-1).
    fn origins(&self, filter: &OriginFilter) -> Result<Vec<OriginRecord>, DataPlaneError>;

    /// What all counts keep of their use, with the capacities that counters remember from their last use: cheap enough
    /// for every second, and nothing changes by it (OBS-1).
    fn usage(&self) -> Result<UsageLook, DataPlaneError>;

    /// Visits what every flow has carried so far, live or just over.
    fn meters(&self, each: &mut dyn FnMut(Meter)) -> Result<(), DataPlaneError>;

    /// The pools as they are in force, from the maps.
    fn pools(&self) -> Result<Vec<PoolLive>, DataPlaneError>;

    /// The egress IPs of `pool` in the order in which a new flow of `inside` would try them (CAP-9); of
    /// IPv6 ranges the first few addresses each (NAT-3).
    /// `realm` is the number of the zone whose own address space `inside` belongs to, if it is one (ZONE-2).
    fn candidate_order(
        &self,
        pool: u16,
        inside: IpAddr,
        realm: Option<u16>,
    ) -> Result<Vec<IpAddr>, DataPlaneError>;

    /// The way of a packet through this host, as its routes, hooks and tables are now (OBS-5).
    fn way(&self, traveller: &Traveller) -> Result<Way, DataPlaneError>;
}

/// From when on nothing of this server's slices is used, with or without a daemon (CLU-3). Whoever has it waits for nobody who
/// changes tables or ends flows.
pub trait Deadline: Send + Sync {
    /// Now, ns: this clock counts while the machine sleeps, and nobody sets it.
    fn now(&self) -> u64;

    /// The time; 0: never.
    ///
    /// # Errors
    /// When the maps cannot be read.
    fn get(&self) -> Result<u64, DataPlaneError>;

    /// Another time; live flows are used again where it is put off.
    ///
    /// # Errors
    /// When the maps cannot be written.
    fn set(&self, at: u64) -> Result<(), DataPlaneError>;

    /// Whether times can be told at all.
    ///
    /// # Errors
    /// Where the daemon's clock is not that of the programs.
    fn check(&self) -> Result<(), DataPlaneError>;

    /// What is left until then, ns; none where it never comes.
    ///
    /// # Errors
    /// As [`Self::get`].
    fn left(&self) -> Result<Option<u64>, DataPlaneError> {
        let at = self.get()?;
        Ok((at != 0).then(|| at.saturating_sub(self.now())))
    }

    /// Whether the time has come. If that cannot be told it has not: only the programs' own word counts.
    fn has_come(&self) -> bool {
        matches!(self.left(), Ok(Some(0)))
    }
}

/// Changing the data plane.
pub trait DataPlane: DataPlaneView + Send {
    /// How many zones' connections go through a pool, as the programs have it now: also before anything was applied by
    /// this daemon.
    fn bound(&self) -> Result<usize, DataPlaneError>;

    /// Refuses egress IPs that this host or one of its routers has, as [`Self::apply`] would; changes nothing.
    fn check(&self, addresses: &[Address]) -> Result<(), DataPlaneError>;

    /// Puts `desired` in force at one instant for every packet, or changes nothing (SAFE-5).
    fn apply(&mut self, desired: &Desired) -> Result<ApplyReport, DataPlaneError>;

    /// Puts hooks and guard back where they are missing, for instance on a recreated uplink (SAFE-6).
    ///
    /// Returns what it did, one line each; empty when all was in place.
    fn repair(&mut self) -> Result<Vec<String>, DataPlaneError>;

    /// Housekeeping that nobody waits for, about once a second: tells both ends of connections that were ended for
    /// their idleness, forgets addresses whose last flow has ended, takes up selected cgroups that came or were
    /// created anew, and looks whether the host was given an egress IP. Returns what it did or found, one line each.
    fn tidy(&mut self) -> Result<Vec<String>, DataPlaneError>;

    /// Ends every live flow that leaves by one of `addresses`: both ends of a TCP connection get a RST, a UDP flow
    /// just ends. They leave the counts. Returns how many there were.
    ///
    /// New flows may still be admitted to an address that does not drain.
    fn reset(&mut self, addresses: &[IpNet]) -> Result<u64, DataPlaneError>;

    /// Of these slices, those that are not empty: some flow of this server has a port there, or one that ended rests
    /// (CLU-3). A flow that is being admitted by a configuration that is in force no more is seen.
    fn occupied(&self, slices: &Slices) -> Result<Slices, DataPlaneError>;

    /// Ends every live flow that leaves by one of these slices, as [`Self::reset`] does; returns how many there were.
    fn reset_slices(&mut self, slices: &Slices) -> Result<u64, DataPlaneError>;

    /// The time at which the programs stop to use this server's slices.
    fn deadline(&self) -> Arc<dyn Deadline>;

    /// Removes programs, links, pins, the guard and helper interfaces; says what it removed (SAFE-4).
    fn detach(&mut self) -> Result<Vec<String>, DataPlaneError>;
}

/// Names for the numbers that the maps hold.
///
/// Whoever opens a view passes them in: the daemon from [`Desired`], the command line from the store. A number
/// without a name prints as `#7`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Zone number to the zone's name.
    pub zones: BTreeMap<u16, String>,
    /// Pool number to the pool's id.
    pub pools: BTreeMap<u16, String>,
    /// Other servers' names, by where they are reached.
    #[serde(default)]
    pub servers: BTreeMap<IpAddr, String>,
}

impl Names {
    /// The zone's name, or its number.
    pub fn zone(&self, number: u16) -> String {
        self.zones
            .get(&number)
            .cloned()
            .unwrap_or_else(|| format!("#{number}"))
    }

    /// The server's name, or where it is reached.
    pub fn server(&self, address: IpAddr) -> String {
        self.servers
            .get(&address)
            .cloned()
            .unwrap_or_else(|| address.to_string())
    }

    /// The pool's id, or its number.
    pub fn pool(&self, number: u16) -> String {
        self.pools
            .get(&number)
            .cloned()
            .unwrap_or_else(|| format!("#{number}"))
    }
}

/// TCP or UDP: what is translated (NAT-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Transmission Control Protocol, IP protocol 6.
    Tcp,
    /// User Datagram Protocol, IP protocol 17.
    Udp,
}

impl Protocol {
    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// An origin to filter by: an address, and a port if one was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OriginMatch {
    /// The origin's address.
    pub address: IpAddr,
    /// The origin's port; any when absent.
    pub port: Option<u16>,
}

impl OriginMatch {
    /// Whether `origin` is meant.
    pub fn matches(&self, origin: SocketAddr) -> bool {
        origin.ip() == self.address && self.port.is_none_or(|port| port == origin.port())
    }
}

/// Which flows to list; an absent field lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowFilter {
    /// Zone number.
    pub zone: Option<u16>,
    /// Pool number.
    pub pool: Option<u16>,
    /// Destination.
    pub origin: Option<OriginMatch>,
    /// The address the flow leaves with.
    pub egress_ip: Option<IpAddr>,
    /// Protocol.
    pub protocol: Option<Protocol>,
}

/// Which connection counts to list; an absent field lets everything through.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OriginFilter {
    /// Only these egress IPs (a `--pool` or `--zone` filter arrives here as the pool's addresses and ranges).
    pub egress_ips: Option<Vec<IpNet>>,
    /// Destination.
    pub origin: Option<OriginMatch>,
    /// Protocol.
    pub protocol: Option<Protocol>,
}

impl OriginFilter {
    /// Whether a count of this key is asked for.
    pub fn matches(&self, egress_ip: IpAddr, origin: SocketAddr, protocol: Protocol) -> bool {
        self.egress_ips
            .as_ref()
            .is_none_or(|nets| nets.iter().any(|net| net.contains(&egress_ip)))
            && self.origin.is_none_or(|wanted| wanted.matches(origin))
            && self.protocol.is_none_or(|wanted| wanted == protocol)
    }
}

/// The endpoints of a flow as its inside host sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowKey {
    /// Protocol.
    pub protocol: Protocol,
    /// Inside address and port.
    pub inside: SocketAddr,
    /// Origin address and port.
    pub origin: SocketAddr,
    /// The realm's zone number, for interface-selected zones (ZONE-2).
    pub realm: Option<u16>,
}

/// One live flow: a line of `egress flows --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Protocol.
    pub protocol: Protocol,
    /// Inside address and port.
    pub inside: SocketAddr,
    /// Egress address and port.
    pub egress: SocketAddr,
    /// Origin address and port.
    pub origin: SocketAddr,
    /// The zone's name.
    pub zone: String,
    /// The pool's id.
    pub pool: String,
    /// Connection state, in the data plane's words (`syn_sent`, `established`, ...).
    pub state: String,
    /// Seconds since the flow was admitted.
    pub age_s: u64,
    /// Seconds since its last packet.
    pub idle_s: u64,
    /// Packets to the origin.
    pub packets_out: u64,
    /// Packets from the origin.
    pub packets_in: u64,
    /// Bytes to the origin.
    pub bytes_out: u64,
    /// Bytes from the origin.
    pub bytes_in: u64,
    /// `local`, or `peer NAME` when another server egresses the flow.
    pub path: String,
}

/// One connection count: an element of `egress origins --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OriginRecord {
    /// The dedicated source address.
    pub egress_ip: IpAddr,
    /// Destination address and port.
    pub origin: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Concurrent connections now (CAP-1).
    pub active: u64,
    /// The most there have been at once in these five minutes of wall-clock time.
    pub peak: u64,
    /// The most this server admits at once.
    pub capacity: u64,
    /// `active` in percent (0-100) of `capacity`.
    pub utilization: f64,
    /// New connections refused because of this count.
    pub refused: u64,
}

/// `active` in percent (0-100) of `capacity`; a capacity of 0 is full.
pub fn utilization(active: u64, capacity: u64) -> f64 {
    if capacity == 0 {
        return 100.0;
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "both are below 2^53: a server's connection counts"
    )]
    let percent = active as f64 * 100.0 / capacity as f64;
    // Two decimals: 1 of 40,000 connections is 0.0025 %.
    (percent * 10_000.0).round() / 10_000.0
}

/// What a flow has carried so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meter {
    /// Whether it is of IPv6: the two families have tables of their own.
    pub ipv6: bool,
    /// Its place in the table.
    pub slot: u32,
    /// Which flow of that place it is.
    pub generation: u32,
    /// The pool's number.
    pub pool: u16,
    /// The dedicated source address; absent where another server translates.
    pub egress_ip: Option<IpAddr>,
    /// Destination.
    pub origin: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Packets to the origin, and from it; both wrap around.
    pub packets: [u32; 2],
    /// Bytes likewise, IP length.
    pub bytes: [u64; 2],
}

/// A pool as the maps hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolLive {
    /// The pool's number.
    pub number: u16,
    /// Its IPv4 addresses in candidate order, then its IPv6 ranges.
    pub addresses: Vec<PoolAddressLive>,
}

/// One address of a pool as the maps hold it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddressLive {
    /// The egress IP, or the range.
    pub egress_ip: Address,
    /// Owned slices: bit k set = slice k (ports 2048k to 2048k+2047) belongs to this server (CAP-3). Of a
    /// range all.
    pub slices: u32,
    /// Concurrent connections admitted per origin on this server; of a range, for each of its addresses.
    pub cap: u32,
    /// No new flows; live ones finish (POOL-9).
    pub draining: bool,
    /// Live connections over all origins.
    pub active: u64,
}

/// The data plane's part of `egress status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataPlaneStatus {
    /// Every hook that the configuration asks for, attached or not.
    pub hooks: Vec<HookStatus>,
    /// Whether the guard is installed (SAFE-6).
    pub guard: bool,
    /// Whether a configuration is in force.
    pub configured: bool,
    /// Fill of the tables.
    pub tables: Vec<TableStatus>,
    /// Packets by reason, named as in the data plane.
    pub reasons: Vec<ReasonCount>,
    /// How many source ports new flows tried until they had one (CAP-8).
    #[serde(default)]
    pub ports_tried: Vec<PortsTried>,
    /// Addresses that take no new flows, with those that are left on them (POOL-9).
    #[serde(default)]
    pub draining: Vec<DrainingStatus>,
    /// The other servers that this one reaches (FWD-6).
    #[serde(default)]
    pub peers: Vec<PeerStatus>,
    /// Whether live flows take the ordinary way although `accelerate` is set, because an `ip rule` looks at bits of the
    /// packet mark that are not ours.
    #[serde(default)]
    pub routed: bool,
    /// What is announced to the network by routes (ANN-1), in whatever table.
    #[serde(default)]
    pub announced: Vec<IpNet>,
    /// Where others may take over (`takeover_after`, CLU-3): after how long this server stops to use its IPv4 egress IPs unless etcd
    /// hears of it, s; 0 once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lapses_in: Option<u64>,
    /// What is not as the configuration supposes, and what to do about it.
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

/// What went between this server and another one through the tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Where it is reached.
    pub address: IpAddr,
    /// Packets that arrived here and were sent on to it (FWD-5).
    pub sent_packets: u64,
    /// Their bytes, before the tunnel's headers.
    pub sent_bytes: u64,
    /// Packets that arrived there and were sent on to this server.
    pub received_packets: u64,
    /// Their bytes, likewise.
    pub received_bytes: u64,
}

/// An address that takes no new flows while live ones finish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainingStatus {
    /// The egress IP, or the range.
    pub egress_ip: Address,
    /// Live flows that are left on it, over all origins.
    pub active: u64,
    /// Whether it has left its pool: it goes when the last flow and its port's rest have ended.
    pub retired: bool,
}

/// One attachment of a program of ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookStatus {
    /// The program's name (`uplink_egress`, `uplink_ingress`, `inside_ingress`, ...).
    pub hook: String,
    /// The interface it belongs on.
    pub interface: String,
    /// `tcx`, `clsact` or `xdp`.
    pub kind: String,
    /// Kernel id of the program attached there; absent when the hook is missing.
    pub program_id: Option<u32>,
    /// Whether our program is attached on that interface now.
    pub in_place: bool,
}

/// How full a table is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableStatus {
    /// The map's name (`flows`, `origins`, ...).
    pub table: String,
    /// Entries in use.
    pub used: u64,
    /// The most it holds.
    pub capacity: u64,
}

/// Flows that tried about as many source ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsTried {
    /// The most that one of them tried, more than the group before; none if any number.
    pub most: Option<u32>,
    /// Flows that got a port.
    pub flows: u64,
    /// Ports that they tried.
    pub ports: u64,
}

/// Packets counted under one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// The reason's name, one enum from kernel to command line.
    pub reason: String,
    /// Packets since the maps were made.
    pub packets: u64,
}

/// What [`DataPlane::apply`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyReport {
    /// Map entries written or removed; 0 when all was as desired.
    pub changed: u64,
    /// Number of the configuration version in force afterwards.
    pub version: u64,
}

/// Why the data plane could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum DataPlaneError {
    /// Nothing is pinned: no daemon has run since the machine started, or `egress detach` removed all.
    #[error("no data plane under {}: nothing is pinned there", pin.display())]
    Absent {
        /// The pin directory.
        pin: PathBuf,
    },
    /// Something the user can change stands in the way.
    #[error("{reason}")]
    Refused {
        /// What failed, on what.
        reason: String,
        /// What to do next.
        remedy: String,
    },
    /// A system call or a library failed.
    #[error("{doing}")]
    Failed {
        /// What was being done, on what.
        doing: String,
        /// The cause.
        source: Box<dyn Error + Send + Sync>,
    },
}

impl DataPlaneError {
    /// A failure of `source` while `doing`.
    pub fn failed(
        doing: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Self::Failed {
            doing: doing.into(),
            source: source.into(),
        }
    }

    /// What to do next, where it is known.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Absent { .. } => {
                Some("start the daemon with `egress run`, or check [dataplane] pin".into())
            }
            Self::Refused { remedy, .. } => Some(remedy.clone()),
            Self::Failed { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests;
