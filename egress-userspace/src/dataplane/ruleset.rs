//! The guard's rules as text for `nft` (SAFE-6): a packet of an enabled zone leaves by an uplink that has our
//! programs, stays inside, or is dropped.
//!
//! A packet's zone is found as the data plane finds it, in the same order (ZONE-3): mark, then cgroup, then the
//! tag it got where it entered, then the longest source prefix; the first that matches decides, also if it
//! names a zone that is not enabled. There is one rule for each mask, depth or prefix length, whatever the
//! number of zones.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::net::IpAddr;

use egress_common::tag::{Tag, TagField};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::cgroups::Cgroups;
use crate::config::{DNS_PORT, IcmpQueries};
use crate::desired::{Desired, DesiredZone};

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// Multicast listener and neighbour discovery (RFC 2710, 3810, 4861): never crosses a router, never touched.
const NEIGHBOUR_DISCOVERY: &str = "{ 130, 131, 132, 133, 134, 135, 136, 137, 143 }";

/// ICMP queries and their answers, as the data plane tells them from errors.
const ICMP_QUERIES: &str = "{ 0, 8, 13-18 }";

/// Counter of packets that would have left by another interface, or by an uplink without our programs.
pub(super) const ELSEWHERE: &str = "elsewhere";
/// Counter of packets that entered by an inside interface whose program did not see them.
pub(super) const UNSEEN: &str = "unseen";

/// What the rules depend on beside the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// Indices of uplinks on which all our programs are in place.
    pub(super) uplinks: BTreeSet<u32>,
    /// Indices of the inside interfaces.
    pub(super) insides: BTreeSet<u32>,
    /// Names of the inside interfaces, existing or not.
    pub(super) inside_names: BTreeSet<String>,
    /// The selected cgroups that exist.
    pub(super) cgroups: Cgroups,
}

/// What becomes of a packet once a selector has named its zone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It may leave by an uplink.
    Bound,
    /// It is forwarded and carries no tag: the program where it entered is missing, so it may not leave.
    Unseen,
}

impl Stage {
    const fn chain(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Unseen => UNSEEN,
        }
    }
}

/// A script that makes table `table` what it has to be, in one transaction. Counters go on counting.
pub(super) fn script(
    table: &str,
    field: TagField,
    desired: &Desired,
    surroundings: &Surroundings,
) -> String {
    let mut writer = Writer {
        table,
        field,
        desired,
        surroundings,
        text: String::new(),
    };
    writer.frame();
    writer.early();
    writer.own();
    writer.forwarding();
    writer.leaving();
    for stage in [Stage::Bound, Stage::Unseen] {
        writer.destinations(stage);
    }
    writer.text
}

struct Writer<'a> {
    table: &'a str,
    field: TagField,
    desired: &'a Desired,
    surroundings: &'a Surroundings,
    text: String,
}

impl Writer<'_> {
    fn line(&mut self, line: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn rule(&mut self, chain: &str, rule: impl Display) {
        let table = self.table;
        self.line(format_args!("add rule inet {table} {chain} {rule}"));
    }

    /// `expression vmap { value : verdict, ... }`, if there is anything in it.
    fn map<K: Display>(&mut self, chain: &str, expression: &str, verdicts: &[(K, String)]) {
        if verdicts.is_empty() {
            return;
        }
        let elements: Vec<String> = verdicts
            .iter()
            .map(|(value, verdict)| format!("{value} : {verdict}"))
            .collect();
        self.rule(
            chain,
            format_args!("{expression} vmap {{ {} }}", elements.join(", ")),
        );
    }

    /// Table, counters and chains; what was in them is forgotten.
    fn frame(&mut self) {
        let table = self.table;
        self.line(format_args!("add table inet {table}"));
        self.line(format_args!("flush table inet {table}"));
        for counter in [ELSEWHERE, UNSEEN] {
            self.line(format_args!("add counter inet {table} {counter}"));
        }
        for (chain, hook, priority) in [
            // Before connection tracking and whatever else may look at marks.
            ("early", "output", -300),
            // After mangling and address translation, when interface and mark are final.
            ("own", "output", 300),
            ("forwarding", "forward", 300),
            ("leaving", "postrouting", 300),
        ] {
            self.line(format_args!(
                "add chain inet {table} {chain} {{ type filter hook {hook} priority {priority}; policy accept; }}"
            ));
        }
        self.line(format_args!("add chain inet {table} entered"));
        for stage in [Stage::Bound, Stage::Unseen] {
            for suffix in ["", "_tcp", "_udp", "_other"] {
                self.line(format_args!(
                    "add chain inet {table} {}{suffix}",
                    stage.chain()
                ));
            }
        }
    }

    /// The host's own sockets cannot forge a tag.
    fn early(&mut self) {
        let mask = self.field.mask;
        self.rule(
            "early",
            format_args!(
                "meta mark & {mask:#010x} != 0 meta mark set meta mark & {:#010x}",
                !mask
            ),
        );
    }

    /// What the host's own sockets send.
    fn own(&mut self) {
        self.rule(
            "own",
            format_args!("icmpv6 type {NEIGHBOUR_DISCOVERY} accept"),
        );
        self.marks("own");
        self.cgroups("own");
        self.sources("own", Stage::Bound);
    }

    /// What is forwarded.
    fn forwarding(&mut self) {
        self.marks("forwarding");
        self.tags("forwarding");
        let names: Vec<String> = self
            .surroundings
            .inside_names
            .iter()
            .map(|name| format!("{name:?}"))
            .collect();
        if !names.is_empty() {
            self.rule(
                "forwarding",
                format_args!("iifname {{ {} }} goto entered", names.join(", ")),
            );
        }
        // Entered where we have no program: the uplink's finds the zone by the source.
        self.sources("forwarding", Stage::Bound);

        let interfaces: Vec<(String, String)> = self
            .zones()
            .flat_map(|zone| {
                zone.selectors
                    .interfaces
                    .iter()
                    .map(|name| (format!("{name:?}"), verdict(zone, Stage::Unseen)))
            })
            .collect();
        self.map("entered", "iifname", &interfaces);
        self.sources("entered", Stage::Unseen);
    }

    /// Everything that leaves, once more: whoever came by neither of the hooks above. Sources may have been
    /// rewritten by now, so they say nothing.
    fn leaving(&mut self) {
        self.marks("leaving");
        self.tags("leaving");
    }

    fn zones(&self) -> impl Iterator<Item = &DesiredZone> {
        self.desired.zones.iter()
    }

    fn marks(&mut self, chain: &str) {
        let mut by_mask: BTreeMap<(u32, u32), Vec<(String, String)>> = BTreeMap::new();
        for zone in self.zones() {
            for mark in &zone.selectors.marks {
                // The most bits first.
                by_mask
                    .entry((u32::MAX - mark.mask.count_ones(), mark.mask))
                    .or_default()
                    .push((format!("{:#010x}", mark.value), verdict(zone, Stage::Bound)));
            }
        }
        for ((_, mask), verdicts) in by_mask {
            self.map(chain, &format!("meta mark & {mask:#010x}"), &verdicts);
        }
    }

    fn tags(&mut self, chain: &str) {
        let field = self.field;
        let verdicts: Vec<(String, String)> = self
            .zones()
            .map(|zone| {
                let tag = field.write(0, Tag::Zone(zone.number));
                (format!("{tag:#010x}"), verdict(zone, Stage::Bound))
            })
            .collect();
        let expression = format!("meta mark & {:#010x}", field.mask);
        self.map(chain, &expression, &verdicts);
        self.rule(chain, format_args!("{expression} != 0 accept"));
    }

    fn cgroups(&mut self, chain: &str) {
        let mut by_level: BTreeMap<u32, Vec<(String, String)>> = BTreeMap::new();
        for zone in self.zones() {
            for path in &zone.selectors.cgroups {
                if let Some(cgroup) = self.surroundings.cgroups.get(path) {
                    by_level
                        .entry(cgroup.level)
                        .or_default()
                        .push((format!("\"{}\"", cgroup.nft), verdict(zone, Stage::Bound)));
                }
            }
        }
        // The deepest first.
        for (level, verdicts) in by_level.into_iter().rev() {
            self.map(chain, &format!("socket cgroupv2 level {level}"), &verdicts);
        }
    }

    fn sources(&mut self, chain: &str, stage: Stage) {
        let mut by_length: BTreeMap<(bool, u8), Vec<(IpNet, String)>> = BTreeMap::new();
        for zone in self.zones() {
            for net in &zone.selectors.sources {
                by_length
                    .entry((matches!(net, IpNet::V6(_)), net.prefix_len()))
                    .or_default()
                    .push((net.trunc(), verdict(zone, stage)));
            }
        }
        // The longest first.
        for ((_, length), nets) in by_length.into_iter().rev() {
            let verdicts: Vec<(IpAddr, String)> = nets
                .iter()
                .map(|(net, verdict)| (net.network(), verdict.clone()))
                .collect();
            match nets.first().map(|(net, _)| *net) {
                Some(IpNet::V4(_)) if length == 0 => self.every(chain, "ipv4", &verdicts),
                Some(IpNet::V6(_)) if length == 0 => self.every(chain, "ipv6", &verdicts),
                Some(IpNet::V4(net)) => {
                    self.map(chain, &format!("ip saddr & {}", net.netmask()), &verdicts);
                }
                Some(IpNet::V6(net)) => {
                    self.map(chain, &format!("ip6 saddr & {}", net.netmask()), &verdicts);
                }
                None => {}
            }
        }
    }

    fn every(&mut self, chain: &str, family: &str, verdicts: &[(IpAddr, String)]) {
        for (_, verdict) in verdicts {
            self.rule(chain, format_args!("meta nfproto {family} {verdict}"));
        }
    }

    /// Where a packet of an enabled zone may go.
    fn destinations(&mut self, stage: Stage) {
        let chain = stage.chain();
        // Zones of accounts that have switched a protocol off (POLICY-6).
        self.rule(
            &format!("{chain}_tcp"),
            format_args!("meta l4proto udp accept"),
        );
        self.rule(
            &format!("{chain}_udp"),
            format_args!("meta l4proto tcp accept"),
        );
        self.rule(
            &format!("{chain}_other"),
            format_args!("meta l4proto {{ tcp, udp }} accept"),
        );
        for suffix in ["_tcp", "_udp", "_other"] {
            self.rule(&format!("{chain}{suffix}"), format_args!("goto {chain}"));
        }

        let exempt = &self.desired.exempt;
        let v4: Vec<Ipv4Net> = exempt
            .destinations
            .iter()
            .filter_map(|net| match net {
                IpNet::V4(net) => Some(*net),
                IpNet::V6(_) => None,
            })
            .collect();
        let v6: Vec<Ipv6Net> = exempt
            .destinations
            .iter()
            .filter_map(|net| match net {
                IpNet::V6(net) => Some(*net),
                IpNet::V4(_) => None,
            })
            .collect();
        // Sets must not overlap within themselves.
        let sets = [
            ("ip daddr", list(Ipv4Net::aggregate(&v4)), ""),
            ("ip6 daddr", list(Ipv6Net::aggregate(&v6)), ""),
            (
                "ip daddr",
                list(exempt.resolvers.iter().filter(|address| address.is_ipv4())),
                DNS,
            ),
            (
                "ip6 daddr",
                list(exempt.resolvers.iter().filter(|address| address.is_ipv6())),
                DNS,
            ),
        ];
        let queries = exempt.icmp_queries == IcmpQueries::Default;
        for (expression, set, more) in sets {
            if !set.is_empty() {
                self.rule(chain, format_args!("{expression} {{ {set} }}{more} accept"));
            }
        }
        if queries {
            self.rule(chain, format_args!("icmp type {ICMP_QUERIES} accept"));
        }
        let mut allowed = BTreeSet::from([LOOPBACK]);
        allowed.extend(&self.surroundings.insides);
        if stage == Stage::Bound {
            allowed.extend(&self.surroundings.uplinks);
        }
        // By index: an interface of the same name that was created anew has another.
        self.rule(chain, format_args!("oif {{ {} }} accept", list(allowed)));
        let counter = match stage {
            Stage::Bound => ELSEWHERE,
            Stage::Unseen => UNSEEN,
        };
        self.rule(chain, format_args!("counter name \"{counter}\" drop"));
    }
}

/// Follows a resolver's address; the port is [`DNS_PORT`].
const DNS: &str = " meta l4proto { tcp, udp } th dport 53";
const _: () = assert!(DNS_PORT == 53);

/// Where a packet of a zone goes once it is known to be one.
fn verdict(zone: &DesiredZone, stage: Stage) -> String {
    if !zone.enabled {
        return "accept".to_owned();
    }
    let suffix = match (zone.egress_tcp, zone.egress_udp) {
        (true, true) => "",
        (true, false) => "_tcp",
        (false, true) => "_udp",
        (false, false) => "_other",
    };
    format!("goto {}{suffix}", stage.chain())
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests;
