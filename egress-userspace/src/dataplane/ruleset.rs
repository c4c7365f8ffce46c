//! The guard's rules as text for `nft` (SAFE-6): a packet of an enabled zone leaves by an uplink that has our
//! programs, stays inside, or is dropped.
//!
//! A packet's zone is found as the data plane finds it, in the same order (ZONE-3): mark, then cgroup, then the
//! tag it got where it entered, then the longest source prefix; the first that matches decides, also if it
//! names a zone that is not enabled. There are one or two rules for each mask, depth or prefix length, whatever
//! the number of zones.
//!
//! Address translation may rewrite a source after these rules and before the uplink's program. So a packet that
//! is found by its source gets the zone's tag here, while the source is still true (`stamp`).

mod destinations;
mod stamp;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};

use egress_common::ipv6::is_local_signalling;
use egress_common::tag::{Tag, TagField};

use super::cgroups::Cgroups;
use crate::desired::{Desired, DesiredZone};

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

/// What is known of a packet whose zone a selector has named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It may leave by an uplink.
    Bound,
    /// The same, unless it is forwarded and entered by an inside interface: then the program there did not see it.
    Sourced,
    /// It is forwarded and carries no tag, so the program where it entered is missing: it may not leave.
    Unseen,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Bound, Self::Sourced, Self::Unseen];

    const fn chain(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Sourced => "sourced",
            Self::Unseen => UNSEEN,
        }
    }
}

/// Values and what becomes of a packet that has one.
type Verdicts = Vec<(String, String)>;

/// A stage's chains: for zones whose account sends both protocols through pools, only TCP, only UDP, neither
/// (POLICY-6).
const SUFFIXES: [&str; 4] = ["", "_tcp", "_udp", "_other"];

/// A script that makes table `table`, which exists, what it has to be, in one transaction. Counters go on counting.
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
    writer.tunnel();
    writer.own();
    writer.forwarding();
    writer.leaving();
    writer.sources();
    writer.stamps();
    writer.sourced();
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

impl<'a> Writer<'a> {
    fn line(&mut self, line: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn rule(&mut self, chain: &str, rule: impl Display) {
        let table = self.table;
        self.line(format_args!("add rule inet {table} {chain} {rule}"));
    }

    /// `expression vmap { value : verdict, ... }`, if there is anything in it.
    fn map(&mut self, chain: &str, expression: &str, verdicts: &[(String, String)]) {
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

    /// Counters and chains; what was in them is forgotten.
    fn frame(&mut self) {
        let table = self.table;
        self.line(format_args!("flush table inet {table}"));
        for counter in [ELSEWHERE, UNSEEN] {
            self.line(format_args!("add counter inet {table} {counter}"));
        }
        for (chain, hook, priority) in [
            // Before connection tracking and whatever else may look at marks.
            ("early", "output", -300),
            ("delivered", "input", -300),
            // After mangling and address translation, when interface and mark are final.
            ("own", "output", 300),
            ("forwarding", "forward", 300),
            ("leaving", "postrouting", 300),
        ] {
            self.line(format_args!(
                "add chain inet {table} {chain} {{ type filter hook {hook} priority {priority}; policy accept; }}"
            ));
        }
        if self.desired.tunnel.is_some() {
            self.line(format_args!(
                "add chain inet {table} arriving {{ type filter hook prerouting priority -300; policy accept; }}"
            ));
        }
        self.line(format_args!("add chain inet {table} sources"));
        for chain in self.stamp_chains() {
            self.line(format_args!("add chain inet {table} {chain}"));
        }
        for stage in Stage::ALL {
            for suffix in SUFFIXES {
                self.line(format_args!(
                    "add chain inet {table} {}{suffix}",
                    stage.chain()
                ));
            }
        }
    }

    /// The host's own sockets cannot forge a tag, and what a tunnel that ends here carries does not inherit the tag
    /// of what carried it.
    fn early(&mut self) {
        let rule = format!(
            "meta mark & {:#010x} != 0 {}",
            self.field.mask,
            self.cleared()
        );
        for chain in ["early", "delivered"] {
            self.rule(chain, &rule);
        }
    }

    /// The tunnel's own packets are no zone's, whatever their source; and nobody inside sends in a server's name
    /// (FWD-6).
    fn tunnel(&mut self) {
        let Some(tunnel) = &self.desired.tunnel else {
            return;
        };
        let family = if tunnel.own.is_ipv4() { "ip" } else { "ip6" };
        let peers = list(tunnel.peers.iter().map(|peer| peer.address));
        let names = list(
            self.surroundings
                .inside_names
                .iter()
                .map(|name| format!("{name:?}")),
        );
        if !names.is_empty() {
            self.rule(
                "arriving",
                format_args!(
                    "iifname {{ {names} }} {family} saddr {{ {}, {peers} }} counter drop",
                    tunnel.own
                ),
            );
        }
        let done = format!("{} ^ {}", self.cleared(), self.tag(Tag::Done));
        self.rule(
            "own",
            format_args!(
                "{family} saddr {} {family} daddr {{ {peers} }} udp dport {} {done} accept",
                tunnel.own, tunnel.port
            ),
        );
    }

    /// The statement that takes the tag out of a mark.
    fn cleared(&self) -> String {
        format!("meta mark set meta mark & {:#010x}", !self.field.mask)
    }

    /// What the host's own sockets send.
    fn own(&mut self) {
        // As the data plane tells them: never crosses a router, never touched.
        let local = types(is_local_signalling);
        self.rule("own", format_args!("icmpv6 type {local} accept"));
        self.marks("own");
        self.cgroups("own");
        self.rule("own", "goto sources");
    }

    /// What is forwarded. Most of it carries a tag and leaves by an uplink: it is let go by the first rule, since
    /// whatever zone it is of may leave there.
    fn forwarding(&mut self) {
        let tagged = format!("meta mark & {:#010x} != 0", self.field.mask);
        for index in &self.surroundings.uplinks {
            let rule = format!("{tagged} oif {index} accept");
            self.rule("forwarding", rule);
        }
        self.marks("forwarding");
        self.tags("forwarding");
        let interfaces: Verdicts = self
            .zones()
            .flat_map(|zone| {
                zone.selectors
                    .interfaces
                    .iter()
                    .map(|name| (format!("{name:?}"), verdict(zone, Stage::Unseen)))
            })
            .collect();
        self.map("forwarding", "iifname", &interfaces);
        self.rule("forwarding", "goto sources");
    }

    /// Everything that leaves, once more: whoever came by neither of the hooks above. Sources may have been
    /// rewritten by now, so they say nothing.
    fn leaving(&mut self) {
        let uplinks = self.surroundings.uplinks.iter();
        for index in uplinks.chain(&self.surroundings.insides) {
            self.rule("leaving", format!("oif {index} accept"));
        }
        self.marks("leaving");
        self.tags("leaving");
    }

    fn zones(&self) -> std::slice::Iter<'a, DesiredZone> {
        self.desired.zones.iter()
    }

    fn marks(&mut self, chain: &str) {
        let mut by_mask: BTreeMap<(Reverse<u32>, u32), Verdicts> = BTreeMap::new();
        for zone in self.zones() {
            for mark in &zone.selectors.marks {
                // The most bits first.
                by_mask
                    .entry((Reverse(mark.mask.count_ones()), mark.mask))
                    .or_default()
                    .push((format!("{:#010x}", mark.value), verdict(zone, Stage::Bound)));
            }
        }
        for ((_, mask), verdicts) in by_mask {
            self.map(chain, &format!("meta mark & {mask:#010x}"), &verdicts);
        }
    }

    /// A tag is a zone's. Most zones have the same verdict, so only those are listed that have another: whatever
    /// else is tagged is bound, should it even be of a zone that has just been removed.
    fn tags(&mut self, chain: &str) {
        let expression = format!("meta mark & {:#010x}", self.field.mask);
        let usual = format!("goto {}", Stage::Bound.chain());
        let verdict_of = |zone| verdict(zone, Stage::Bound);
        if !self.zones().any(|zone| verdict_of(zone) == usual) {
            let verdicts: Verdicts = self
                .zones()
                .map(|zone| (self.tag(Tag::Zone(zone.number)), verdict_of(zone)))
                .collect();
            self.map(chain, &expression, &verdicts);
            self.rule(chain, format_args!("{expression} != 0 accept"));
            return;
        }
        let others: Verdicts = self
            .zones()
            .map(|zone| (self.tag(Tag::Zone(zone.number)), verdict_of(zone)))
            .filter(|(_, verdict)| *verdict != usual)
            .collect();
        self.map(chain, &expression, &others);
        let nobodys = self.field.nobodys();
        self.rule(
            chain,
            format_args!("{expression} >= {nobodys:#010x} accept"),
        );
        self.rule(chain, format_args!("{expression} != 0 {usual}"));
    }

    fn tag(&self, tag: Tag) -> String {
        format!("{:#010x}", self.field.write(0, tag))
    }

    fn cgroups(&mut self, chain: &str) {
        let mut by_level: BTreeMap<u32, Verdicts> = BTreeMap::new();
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

    /// A packet that had no tag before its source was looked at. Where it entered by an interface that is to have
    /// a program of ours, that program is missing. Only uplinks have one that reads the tag and takes it out
    /// again: what goes elsewhere, to `lo` for instance, must not carry it there.
    fn sourced(&mut self) {
        let uplinks = list(&self.surroundings.uplinks);
        let elsewhere = if uplinks.is_empty() {
            self.cleared()
        } else {
            format!("oif != {{ {uplinks} }} {}", self.cleared())
        };
        let names = &self.surroundings.inside_names;
        let names = list(names.iter().map(|name| format!("{name:?}")));
        for suffix in SUFFIXES {
            let chain = format!("sourced{suffix}");
            self.rule(&chain, &elsewhere);
            if !names.is_empty() {
                self.rule(
                    &chain,
                    format_args!("iifname {{ {names} }} goto {UNSEEN}{suffix}"),
                );
            }
            self.rule(&chain, format_args!("goto bound{suffix}"));
        }
    }
}

/// Where a packet of a zone goes once it is known to be one.
fn verdict(zone: &DesiredZone, stage: Stage) -> String {
    if !zone.enabled {
        return "accept".to_owned();
    }
    format!("goto {}{}", stage.chain(), suffix(zone))
}

/// The suffix of the chains for what a zone's account sends through pools.
fn suffix(zone: &DesiredZone) -> &'static str {
    match (zone.egress_tcp, zone.egress_udp) {
        (true, true) => "",
        (true, false) => "_tcp",
        (false, true) => "_udp",
        (false, false) => "_other",
    }
}

/// The set of the ICMP types of a kind: `{ 0, 8, 13-18 }`.
fn types(of_kind: impl Fn(u8) -> bool) -> String {
    let mut runs: Vec<(u8, u8)> = Vec::new();
    for kind in (0..=u8::MAX).filter(|kind| of_kind(*kind)) {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(kind) => *last = kind,
            _ => runs.push((kind, kind)),
        }
    }
    let runs = runs.into_iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    format!("{{ {} }}", list(runs))
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

#[cfg(test)]
mod tests;
