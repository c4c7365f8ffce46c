//! Packets that are found by their source get the zone's tag.
//!
//! A rule cannot merge a value that it looks up into a mark. So there are chains that write constants: one for each
//! value of the low eight bits of a zone's number and, where there are numbers that have more, one for each value of
//! the others. Ten thousand zones need three hundred of them; a chain takes as long to load as many elements of a map.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use egress_common::tag::Tag;
use ipnet::IpNet;

use super::{Stage, Verdicts, Writer, suffix};
use crate::desired::DesiredZone;

/// The bits of a zone's number that the low chains write.
const LOW: u16 = 0xff;

/// What the chains write: bits of a zone's number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct High(u16);

/// The same, and what the zone's account sends through pools.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Low(u16, &'static str);

impl High {
    fn of(zone: &DesiredZone) -> Self {
        Self(zone.number & !LOW)
    }

    fn chain(&self) -> String {
        format!("high_{}", self.0)
    }
}

impl Low {
    fn of(zone: &DesiredZone) -> Self {
        Self(zone.number & LOW, suffix(zone))
    }

    fn chain(&self) -> String {
        format!("low_{}{}", self.0, self.1)
    }
}

/// The verdicts on the sources of one length.
#[derive(Default)]
struct Sources {
    high: Verdicts,
    low: Verdicts,
}

impl Writer<'_> {
    /// Empty where low chains write all that there is to write.
    fn highs(&self) -> BTreeSet<High> {
        let highs: BTreeSet<High> = self.stamping().map(High::of).collect();
        if highs.iter().all(|high| high.0 == 0) {
            return BTreeSet::new();
        }
        highs
    }

    fn lows(&self) -> BTreeSet<Low> {
        self.stamping().map(Low::of).collect()
    }

    /// The zones that packets are found to belong to by their source, and are bound by it.
    fn stamping(&self) -> impl Iterator<Item = &DesiredZone> {
        self.zones()
            .filter(|zone| zone.enabled && !zone.selectors.sources.is_empty())
    }

    /// The names of the chains below.
    pub(super) fn stamp_chains(&self) -> Vec<String> {
        let highs = self.highs();
        let lows = self.lows();
        let highs = highs.iter().map(High::chain);
        highs.chain(lows.iter().map(Low::chain)).collect()
    }

    /// The longest prefix decides; one set of rules for the host's own packets and forwarded ones.
    pub(super) fn sources(&mut self) {
        let highs = self.highs();
        let mut by_length: BTreeMap<(Reverse<u8>, String), Sources> = BTreeMap::new();
        for zone in self.zones() {
            for net in &zone.selectors.sources {
                let (expression, value) = expression(net);
                let verdicts = by_length
                    .entry((Reverse(net.prefix_len()), expression))
                    .or_default();
                if !zone.enabled {
                    verdicts.low.push((value, "accept".to_owned()));
                    continue;
                }
                let high = High::of(zone);
                if highs.contains(&high) {
                    let verdict = format!("jump {}", high.chain());
                    verdicts.high.push((value.clone(), verdict));
                }
                let verdict = format!("goto {}", Low::of(zone).chain());
                verdicts.low.push((value, verdict));
            }
        }
        for ((_, expression), verdicts) in by_length {
            self.map("sources", &expression, &verdicts.high);
            self.map("sources", &expression, &verdicts.low);
        }
    }

    /// Writes the zone's tag while the source is still true.
    pub(super) fn stamps(&mut self) {
        // What comes first writes all bits, since rules of others may have written to them after `early`.
        let anew = self.cleared();
        let highs = self.highs();
        for high in &highs {
            let tag = self.tag(Tag::Zone(high.0));
            self.rule(&high.chain(), format_args!("{anew} ^ {tag}"));
        }
        for low in self.lows() {
            let tag = self.tag(Tag::Zone(low.0));
            let written = if highs.is_empty() {
                format!("{anew} ^ {tag}")
            } else {
                format!("meta mark set meta mark | {tag}")
            };
            let sourced = Stage::Sourced.chain();
            self.rule(
                &low.chain(),
                format_args!("{written} goto {sourced}{}", low.1),
            );
        }
    }
}

/// What of a packet is compared with a prefix, and with what.
fn expression(net: &IpNet) -> (String, String) {
    match net {
        // A mask of nothing is no expression.
        IpNet::V4(net) if net.prefix_len() == 0 => ("meta nfproto".into(), "ipv4".into()),
        IpNet::V6(net) if net.prefix_len() == 0 => ("meta nfproto".into(), "ipv6".into()),
        IpNet::V4(net) => (
            format!("ip saddr & {}", net.netmask()),
            net.network().to_string(),
        ),
        IpNet::V6(net) => (
            format!("ip6 saddr & {}", net.netmask()),
            net.network().to_string(),
        ),
    }
}
