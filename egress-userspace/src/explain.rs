//! `egress why`: which rule a packet meets, and what becomes of it (OBS-5).
//!
//! A pure function of what is desired and what is live; it follows the data plane's order of decisions and uses
//! its words for refusals.

mod policy;
mod render;
mod rule;
mod way;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use egress_common::reason::Reason;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use policy::{ByPort, UNKNOWN_PORT};
use policy::{by_port, decided};
pub use rule::Rule;
use rule::matching;
use way::on_its_way;

use crate::config::IcmpQueries;
use crate::dataplane::api::{
    DataPlaneView, Exit, FlowKey, FlowRecord, OriginFilter, OriginMatch, Protocol, Traveller, Way,
};
use crate::desired::{
    Candidate, Desired, DesiredExit, DesiredPeer, DesiredPrefix, DesiredZone, Part, Tier,
};
use crate::resource::Address;

/// What a packet is, as far as decisions depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Inside address.
    pub source: IpAddr,
    /// Inside port; without one, the question is about a new connection.
    pub source_port: Option<u16>,
    /// Origin address.
    pub destination: IpAddr,
    /// Origin port; 0 for ICMP.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Traffic,
    /// Firewall mark.
    pub mark: u32,
    /// The interface by which it enters, for forwarded packets.
    pub interface: Option<String>,
    /// Its socket's path below the cgroup2 mount, for the host's own sockets.
    pub cgroup: Option<String>,
}

/// The protocols one can ask about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Traffic {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP queries (ping).
    Icmp,
    /// Another one, by its number: it is not translated, and never leaves.
    Other(u8),
}

impl Traffic {
    /// Other protocols by name, with their numbers.
    const OTHERS: [(&str, u8); 5] = [
        ("sctp", 132),
        ("gre", 47),
        ("esp", 50),
        ("ah", 51),
        ("ipip", 4),
    ];
}

impl TryFrom<String> for Traffic {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let text = text.to_ascii_lowercase();
        let other = || Self::OTHERS.into_iter().find(|(name, _)| *name == text);
        match text.as_str() {
            "tcp" | "6" => Ok(Self::Tcp),
            "udp" | "17" => Ok(Self::Udp),
            "icmp" | "icmpv6" | "1" | "58" => Ok(Self::Icmp),
            _ => match other() {
                Some((_, number)) => Ok(Self::Other(number)),
                None => text.parse().map(Self::Other).map_err(|_| {
                    "expected tcp, udp, icmp, sctp, gre, esp, ah, ipip, or a protocol's number"
                        .to_owned()
                }),
            },
        }
    }
}

impl From<Traffic> for String {
    fn from(traffic: Traffic) -> Self {
        match traffic {
            Traffic::Other(number) => number.to_string(),
            named => named.to_string(),
        }
    }
}

/// What is live, for the explanation; `None` means that nobody knows.
pub trait LiveView {
    /// The live flow with these endpoints.
    fn flow(&self, key: &FlowKey) -> Option<FlowRecord>;

    /// Connections of an egress IP to an origin.
    fn active(&self, egress_ip: IpAddr, origin: SocketAddr, protocol: Protocol) -> Option<u64>;

    /// The order in which a new flow tries a pool's addresses (CAP-9).
    fn order(&self, pool: u16, inside: IpAddr, realm: Option<u16>) -> Option<Vec<IpAddr>>;

    /// The way of the packet through this host.
    fn way(&self, query: &Query) -> Way;
}

/// When there is no data plane to ask.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingLive;

impl LiveView for NothingLive {
    fn flow(&self, _: &FlowKey) -> Option<FlowRecord> {
        None
    }

    fn active(&self, _: IpAddr, _: SocketAddr, _: Protocol) -> Option<u64> {
        None
    }

    fn order(&self, _: u16, _: IpAddr, _: Option<u16>) -> Option<Vec<IpAddr>> {
        None
    }

    fn way(&self, _: &Query) -> Way {
        Way::default()
    }
}

/// What the data plane says; a failure to read is not knowing.
#[derive(Clone, Copy)]
pub struct Live<'a>(pub &'a dyn DataPlaneView);

impl LiveView for Live<'_> {
    fn flow(&self, key: &FlowKey) -> Option<FlowRecord> {
        self.0.flow(key).ok().flatten()
    }

    fn active(&self, egress_ip: IpAddr, origin: SocketAddr, protocol: Protocol) -> Option<u64> {
        let filter = OriginFilter {
            egress_ips: Some(vec![IpNet::from(egress_ip)]),
            origin: Some(OriginMatch {
                address: origin.ip(),
                port: Some(origin.port()),
            }),
            protocol: Some(protocol),
        };
        self.0
            .origins(&filter)
            .ok()
            .map(|records| records.iter().map(|record| record.active).sum())
    }

    fn order(&self, pool: u16, inside: IpAddr, realm: Option<u16>) -> Option<Vec<IpAddr>> {
        self.0.candidate_order(pool, inside, realm).ok()
    }

    fn way(&self, query: &Query) -> Way {
        let traveller = Traveller {
            source: query.source,
            destination: query.destination,
            mark: query.mark,
            interface: query.interface.clone(),
            own: query.cgroup.is_some(),
        };
        self.0.way(&traveller).unwrap_or_default()
    }
}

/// One egress IP of the pool and its verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateVerdict {
    /// The address.
    pub egress_ip: IpAddr,
    /// Connections to this origin now, if anybody knows.
    pub active: Option<u64>,
    /// Connections admitted at most.
    pub capacity: u32,
    /// Whether it takes no new flows (POOL-9).
    pub draining: bool,
    /// The withdrawn prefix for which it is not announced to the network, if it is not (ANN-1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<IpNet>,
    /// `free`, `full` or `draining`.
    pub verdict: Verdict,
}

/// Whether an egress IP takes the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// There is a place.
    Free,
    /// It carries its maximum to this origin.
    Full,
    /// It takes no new flows.
    Draining,
}

/// What becomes of the packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It belongs to a live flow, and leaves as that one does, whatever is configured now (ZONE-1).
    LiveFlow {
        /// The flow.
        flow: Box<FlowRecord>,
    },
    /// A new flow is admitted.
    Admitted {
        /// The address it leaves with.
        egress_ip: IpAddr,
    },
    /// Another server translates it (FWD-2).
    Forwarded {
        /// Its name.
        server: String,
        /// How near it is: `data-center`, `location` or `elsewhere`.
        nearness: String,
    },
    /// It is refused.
    Refused {
        /// The reason's name.
        reason: String,
        /// The reason as a sentence.
        text: String,
    },
    /// It leaves as it would without us.
    DefaultEgress {
        /// Why.
        text: String,
    },
    /// It leaves by no interface at all.
    NoRoute {
        /// Why.
        text: String,
    },
    /// It does not leave for the outside, so nothing is translated.
    StaysInside {
        /// Where it goes.
        text: String,
    },
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The question.
    pub query: Query,
    /// The rule that decided, if any.
    pub rule: Option<Rule>,
    /// Rules that match too, but come later (ZONE-3).
    pub also_matching: Vec<Rule>,
    /// The zone.
    pub zone: Option<String>,
    /// The egress policy that decided, if any did (POLICY-1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What policies decide by source port, where the question names none and it depends on it: asked as from
    /// [`UNKNOWN_PORT`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub by_source_port: Vec<ByPort>,
    /// The locations to which the zone is confined (FWD-8).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// The pool it leaves by: that of its zone's setting, or that of the policy's address.
    pub pool: Option<String>,
    /// The pool's egress IPs in the order in which they are tried.
    pub candidates: Vec<CandidateVerdict>,
    /// Where the flow egresses: `local`, or `peer NAME`.
    pub path: Option<String>,
    /// Where it leaves, if anybody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
    /// What becomes of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Explains what becomes of the packet that `query` describes.
pub fn explain(desired: &Desired, query: &Query, live: &dyn LiveView) -> Explanation {
    let mut explanation = by_rules(desired, query, live);
    let way = live.way(query);
    if let Some(outcome) = on_its_way(&explanation, &way) {
        explanation.outcome = outcome;
    }
    explanation.exit = way.exit;
    explanation
}

/// What rules, pools and counts say; and that no egress IP is reached from here (NAT-8).
fn by_rules(desired: &Desired, query: &Query, live: &dyn LiveView) -> Explanation {
    let mut explanation = until_it_leaves(desired, query, live);
    let leaves = matches!(
        explanation.outcome,
        Outcome::Admitted { .. } | Outcome::DefaultEgress { .. }
    );
    if leaves && is_egress_ip(desired, query.destination) {
        explanation.outcome = Outcome::Refused {
            reason: Reason::Unsolicited.label().into(),
            text: "the destination is an egress IP: nothing is hairpinned, so what comes back to it belongs to no flow \
                   and is dropped (NAT-8, SAFE-3)"
                .into(),
        };
    }
    explanation
}

fn is_egress_ip(desired: &Desired, address: IpAddr) -> bool {
    desired.addresses().any(|one| one.net().contains(&address))
}

/// What becomes of the packet up to the uplink.
fn until_it_leaves(desired: &Desired, query: &Query, live: &dyn LiveView) -> Explanation {
    let mut rules = matching(desired, query);
    let realm = realm(&rules, query);
    let zone = rules.first().map(|(zone, _)| *zone);
    let also_matching = rules
        .split_off(rules.len().min(1))
        .into_iter()
        .map(|(_, rule)| rule)
        .collect();
    let pool = zone
        .and_then(|zone| zone.pool)
        .and_then(|number| desired.pool(number));
    let mut explanation = Explanation {
        query: query.clone(),
        rule: rules.into_iter().next().map(|(_, rule)| rule),
        also_matching,
        zone: zone.map(|zone| zone.name.clone()),
        policy: None,
        by_source_port: Vec::new(),
        regions: zone
            .and_then(|zone| desired.confined.get(&zone.number))
            .map_or_else(Vec::new, |confined| confined.regions.clone()),
        pool: pool.map(|pool| pool.id.clone()),
        candidates: Vec::new(),
        path: None,
        exit: None,
        outcome: default_egress("no zone selects this packet"),
    };
    if let Some(flow) = live_flow(query, realm, live) {
        explanation.path = Some(flow.path.clone());
        explanation.outcome = Outcome::LiveFlow {
            flow: Box::new(flow),
        };
        return explanation;
    }
    if is_egress_ip(desired, query.source) {
        explanation.outcome = refused(Reason::ClaimsEgressIp);
        return explanation;
    }
    let Some(zone) = zone else { return explanation };
    if let Some(outcome) = before_pool(desired, zone, query) {
        explanation.outcome = outcome;
        return explanation;
    }
    let policy = decided(desired, zone, query);
    explanation.policy = policy.map(|policy| policy.name.clone());
    explanation.by_source_port = by_port(desired, zone, query);
    let exit = policy.map(|policy| match query.source {
        IpAddr::V4(_) => policy.ipv4,
        IpAddr::V6(_) => policy.ipv6,
    });
    if let (Some(policy), Some(DesiredExit::Default)) = (policy, exit) {
        explanation.pool = None;
        explanation.outcome = default_egress(format!(
            "policy {} leaves it there (POLICY-3, POLICY-4)",
            policy.name
        ));
        return explanation;
    }
    if let Some(outcome) = untranslated(desired, query) {
        explanation.outcome = outcome;
        return explanation;
    }
    let Some(protocol) = translated(query.protocol) else {
        explanation.outcome = refused(Reason::Protocol);
        return explanation;
    };
    let (pool, only) = match exit {
        Some(DesiredExit::By { pool, address }) => (desired.pool(pool), Some(address)),
        Some(DesiredExit::Nowhere { pool }) => {
            explanation.pool = desired.pool(pool).map(|pool| pool.id.clone());
            explanation.outcome = refused(Reason::NoAddress);
            return explanation;
        }
        Some(DesiredExit::Elsewhere { pool, exit }) => {
            explanation.pool = desired.pool(pool).map(|pool| pool.id.clone());
            let to = forwarded_by(desired, exit, query);
            explanation.set_forwarded(to, realm);
            return explanation;
        }
        Some(DesiredExit::Default) | None => (pool, None),
    };
    // What a zone's confinement leaves of its pool; a policy's address was chosen by it.
    let confined = desired
        .confined
        .get(&zone.number)
        .filter(|_| exit.is_none());
    match confined.map_or(Part::All, |confined| confined.part) {
        Part::Nothing => {
            explanation.outcome = refused(Reason::NoAddress);
            return explanation;
        }
        Part::Exit(exit) if query.source.is_ipv4() || !leaves_here(desired, exit) => {
            let to = forwarded_by(desired, exit, query);
            explanation.set_forwarded(to, realm);
            return explanation;
        }
        Part::Exit(_) | Part::All => {}
    }
    explanation.pool = pool.map(|pool| pool.id.clone());
    let Some(pool) = pool else {
        explanation.outcome = refused(Reason::Blocked);
        return explanation;
    };
    let origin = SocketAddr::new(query.destination, query.destination_port);
    let order = live.order(pool.number, query.source, realm);
    let active = |address| live.active(address, origin, protocol);
    let chosen = |address: Address| only.is_none_or(|only| only == address);
    explanation.candidates = match query.source {
        IpAddr::V4(_) => ordered(&pool.candidates, order.as_deref())
            .filter(|one| chosen(Address::V4(one.address)))
            .map(|one| judge(one.address.into(), one.cap, one.draining, active))
            .collect(),
        IpAddr::V6(_) => {
            let ranges: Vec<DesiredPrefix> = pool
                .prefixes
                .iter()
                .filter(|one| chosen(Address::V6(one.prefix)))
                .copied()
                .collect();
            // Which of the range's own addresses is tried first, only the order of the whole pool says.
            let order = order
                .as_deref()
                .filter(|_| ranges.len() == pool.prefixes.len());
            of_ranges(&ranges, order, active)
        }
    };
    for candidate in &mut explanation.candidates {
        candidate.withdrawn = desired.withdrawn.around(candidate.egress_ip.into());
    }
    if let IpAddr::V4(source) = query.source
        && let Some(to) = desired.forwarded(pool.number, source)
    {
        explanation.set_forwarded(Some(to), realm);
        return explanation;
    }
    explanation.path = Some("local".into());
    explanation.outcome = admit(&explanation.candidates);
    explanation
}

impl Explanation {
    /// Another server translates it, if any does.
    fn set_forwarded(&mut self, to: Option<(&DesiredPeer, Tier)>, realm: Option<u16>) {
        self.outcome = match to {
            None => refused(Reason::NoAddress),
            Some(_) if realm.is_some() => refused(Reason::ForwardedRealm),
            Some((peer, tier)) => {
                self.path = Some(format!("peer {}", peer.name));
                Outcome::Forwarded {
                    server: peer.name.clone(),
                    nearness: nearness(tier).to_owned(),
                }
            }
        };
    }
}

/// IPv6 is never forwarded (FWD-1).
fn forwarded_by<'d>(
    desired: &'d Desired,
    exit: usize,
    query: &Query,
) -> Option<(&'d DesiredPeer, Tier)> {
    match query.source {
        IpAddr::V4(source) => desired.forwarded_by(exit, source),
        IpAddr::V6(_) => None,
    }
}

fn leaves_here(desired: &Desired, exit: usize) -> bool {
    let tunnel = desired.tunnel.as_ref();
    let exit = tunnel.and_then(|tunnel| tunnel.exits.get(exit));
    exit.is_some_and(|exit| exit.here)
}

/// What no policy that names an address makes leave.
fn untranslated(desired: &Desired, query: &Query) -> Option<Outcome> {
    if matches!(query.destination, IpAddr::V6(address) if address.is_unicast_link_local()) {
        Some(refused(Reason::Ipv6))
    } else if query.protocol == Traffic::Icmp {
        Some(match desired.exempt.icmp_queries {
            IcmpQueries::Default => default_egress("ICMP queries are exempt (POLICY-7)"),
            IcmpQueries::Drop => refused(Reason::PingDropped),
        })
    } else {
        None
    }
}

fn nearness(tier: Tier) -> &'static str {
    match tier {
        Tier::Here => "here",
        Tier::DataCenter => "data-center",
        Tier::Location => "location",
        Tier::Elsewhere => "elsewhere",
    }
}

fn translated(traffic: Traffic) -> Option<Protocol> {
    match traffic {
        Traffic::Tcp => Some(Protocol::Tcp),
        Traffic::Udp => Some(Protocol::Udp),
        Traffic::Icmp | Traffic::Other(_) => None,
    }
}

/// The address space of the packet's source: that of the zone it was given where it entered, whichever zone its
/// mark selects later. The host's own sockets are in none.
fn realm(rules: &[(&DesiredZone, Rule)], query: &Query) -> Option<u16> {
    let entering = rules
        .iter()
        .find(|(_, rule)| matches!(rule.by.as_str(), "interface" | "source"));
    entering
        .map(|(zone, _)| *zone)
        .filter(|zone| zone.realm && query.cgroup.is_none())
        .map(|zone| zone.number)
}

fn live_flow(query: &Query, realm: Option<u16>, live: &dyn LiveView) -> Option<FlowRecord> {
    live.flow(&FlowKey {
        protocol: translated(query.protocol)?,
        inside: SocketAddr::new(query.source, query.source_port?),
        origin: SocketAddr::new(query.destination, query.destination_port),
        realm,
    })
}

/// What is decided before policies and the pool are looked at, in the data plane's order.
fn before_pool(desired: &Desired, zone: &DesiredZone, query: &Query) -> Option<Outcome> {
    let name = &zone.name;
    let off = match query.protocol {
        Traffic::Tcp => !zone.egress_tcp,
        Traffic::Udp => !zone.egress_udp,
        Traffic::Icmp | Traffic::Other(_) => false,
    };
    let destination = query.destination;
    if !zone.enabled {
        Some(default_egress(format!(
            "zone {name} is not enabled (ZONE-1)"
        )))
    } else if desired.is_exempt(destination, query.destination_port) {
        Some(default_egress("the destination is exempt (POLICY-7)"))
    } else if off {
        Some(default_egress(format!(
            "the account of zone {name} has this protocol switched off (POLICY-6)"
        )))
    } else if !is_of_a_host(query.source) || !is_of_a_host(destination) {
        Some(refused(Reason::Multicast))
    } else {
        None
    }
}

/// Whether an address may be one host's.
fn is_of_a_host(address: IpAddr) -> bool {
    !(address.is_multicast()
        || address.is_loopback()
        || address.is_unspecified()
        || address == IpAddr::V4(Ipv4Addr::BROADCAST))
}

fn default_egress(text: impl Into<String>) -> Outcome {
    Outcome::DefaultEgress { text: text.into() }
}

fn refused(reason: Reason) -> Outcome {
    Outcome::Refused {
        reason: reason.label().into(),
        text: reason.text().into(),
    }
}

fn ordered<'a>(
    candidates: &'a [Candidate],
    order: Option<&[IpAddr]>,
) -> impl Iterator<Item = &'a Candidate> {
    let place = |candidate: &&Candidate| {
        order.and_then(|order| {
            order
                .iter()
                .position(|address| *address == IpAddr::V4(candidate.address))
        })
    };
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    // Stable: what the order does not name stays in the file's order, at the end.
    sorted.sort_by_key(|candidate| place(candidate).unwrap_or(usize::MAX));
    sorted.into_iter()
}

/// The addresses of ranges that a flow would try: all that are full or drain, and the first that is free. Where
/// nobody knows the order, each range stands for itself with its first address.
fn of_ranges(
    ranges: &[DesiredPrefix],
    order: Option<&[IpAddr]>,
    active: impl Fn(IpAddr) -> Option<u64>,
) -> Vec<CandidateVerdict> {
    let Some(order) = order else {
        return ranges
            .iter()
            .map(|range| {
                let address = IpAddr::V6(range.prefix.network());
                judge(address, range.cap, range.draining, |_| None)
            })
            .collect();
    };
    let mut found: Vec<CandidateVerdict> = Vec::new();
    for address in order {
        let range = ranges
            .iter()
            .find(|range| IpNet::V6(range.prefix).contains(address));
        let Some(range) = range else { continue };
        found.push(judge(*address, range.cap, range.draining, &active));
        if found.last().is_some_and(|one| one.verdict == Verdict::Free) {
            break;
        }
    }
    found
}

fn judge(
    address: IpAddr,
    cap: u32,
    draining: bool,
    active: impl Fn(IpAddr) -> Option<u64>,
) -> CandidateVerdict {
    let active = active(address);
    let verdict = if draining {
        Verdict::Draining
    } else if active.is_some_and(|active| active >= u64::from(cap)) {
        Verdict::Full
    } else {
        Verdict::Free
    };
    CandidateVerdict {
        egress_ip: address,
        active,
        capacity: cap,
        draining,
        withdrawn: None,
        verdict,
    }
}

fn admit(candidates: &[CandidateVerdict]) -> Outcome {
    if let Some(free) = candidates
        .iter()
        .find(|candidate| candidate.verdict == Verdict::Free)
    {
        Outcome::Admitted {
            egress_ip: free.egress_ip,
        }
    } else if candidates
        .iter()
        .any(|candidate| candidate.verdict == Verdict::Full)
    {
        refused(Reason::CapReached)
    } else {
        refused(Reason::NoAddress)
    }
}

#[cfg(test)]
mod tests;
