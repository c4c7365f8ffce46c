//! What must hold for every packet, whatever it looks like.
//!
//! The rules, not the programs, stand here: SAFE-1 (nothing of a bound zone leaves with another
//! address), SAFE-3 (nothing unasked is let in), NAT-1 (only the flow's own fields are rewritten,
//! and a wrong checksum stays as wrong as it was), ZONE-2 (realms are apart), NAT-11 (our own
//! packets are right). Flows are known from what was seen to leave.

use std::time::{Duration, Instant};

use super::driver::{Entry, Output, Seen};
use super::map::Map;
use super::parts::Parts;
use super::read::{self, Address, End, Ip, Layers, Part};
use super::rewrite::{self, Side};
use super::world::{self, Zone};

/// A flow is remembered at least this long after its last packet: the timers of [`world`], less what
/// a clock of four milliseconds and a busy machine may be late.
const REMEMBERED: Duration = Duration::from_millis(1_500);

/// Flows that are known before any is forgotten.
const MANY: usize = 1 << 18;

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Flow {
    pub(crate) realm: bool,
    pub(crate) protocol: u8,
    pub(crate) inside: End,
    pub(crate) origin: End,
}

/// A flow from the origin's side.
type Reverse = (u8, End, End);

#[derive(Clone, Copy)]
struct Mapping {
    egress: End,
    /// It has certainly lived since then.
    seen: Instant,
    /// Nothing has been seen of it since then, either way.
    last: Instant,
}

/// What became of the packets so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) translated: u64,
    pub(crate) returned: u64,
    pub(crate) errors: u64,
    pub(crate) fragments: u64,
    pub(crate) released: u64,
    pub(crate) six: u64,
    pub(crate) passed: u64,
    pub(crate) answered: u64,
    pub(crate) stopped: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.translated += other.translated;
        self.returned += other.returned;
        self.errors += other.errors;
        self.fragments += other.fragments;
        self.released += other.released;
        self.six += other.six;
        self.passed += other.passed;
        self.answered += other.answered;
        self.stopped += other.stopped;
    }
}

/// What is known from the packets so far.
pub(crate) struct Oracle {
    /// When the packets that are judged began to arrive, and when all had: the data plane's clock read
    /// something in between, however late they are judged.
    round: (Instant, Instant),
    /// Flows to be known before some are forgotten.
    many: usize,
    flows: Map<Flow, Mapping>,
    reverse: Map<Reverse, Flow>,
    parts: Parts,
    /// Flows and their egress endpoints as they are learnt; whoever uses them empties it.
    pub(crate) learnt: Vec<(Flow, End)>,
    pub(crate) tally: Tally,
}

type Judgement = Result<(), String>;

fn ensure(holds: bool, what: impl FnOnce() -> String) -> Judgement {
    if holds { Ok(()) } else { Err(what()) }
}

impl Default for Oracle {
    fn default() -> Self {
        Self {
            round: (Instant::now(), Instant::now()),
            many: MANY,
            flows: Map::default(),
            reverse: Map::default(),
            parts: Parts::default(),
            learnt: Vec::new(),
            tally: Tally::default(),
        }
    }
}

impl Oracle {
    /// The packets judged from now on arrived since `began`.
    pub(crate) fn arrived_since(&mut self, began: Instant) {
        self.round = (began, Instant::now());
    }

    /// Judges what became of a packet.
    pub(crate) fn judge(
        &mut self,
        entry: Entry,
        input: &[u8],
        output: Option<&Output<'_>>,
    ) -> Judgement {
        let Some(output) = output else {
            self.tally.stopped += 1;
            self.stopped(entry, input);
            return Ok(());
        };
        self.came(entry, input, output)
    }

    /// A packet did not come out. It may be held; and the first fragment of an answer may have had its last hop,
    /// which keeps the others from nothing.
    fn stopped(&mut self, entry: Entry, input: &[u8]) {
        self.parts.stopped(entry, input);
        let input = &read::untagged(input);
        let Layers::Ip(ip) = read::frame(input) else {
            return;
        };
        if entry == Entry::Wire
            && let Some((from, to)) = ip.ports(input)
            && let key = (ip.protocol, (ip.destination, to), (ip.source, from))
            && let Some(flow) = self.reverse.get(&key)
        {
            let way = (flow.inside.0, u32::from(flow.realm));
            self.parts.passed(entry, &ip, way);
        }
    }

    /// Judges what came out of a packet that had been held (NAT-6).
    /// `of`: a packet of the same datagram.
    pub(crate) fn released(&mut self, entry: Entry, of: &[u8], output: &Output<'_>) -> Judgement {
        self.tally.released += 1;
        // It goes in the frame of the one that it waited for, which is of the same link outside of here.
        let bytes = &read::bare(output.bytes);
        let output = &Output { bytes, ..*output };
        let mut verdict = Err("a packet too many came out".to_owned());
        let before = self.parts.doubtful();
        for input in self.parts.held(entry, of) {
            let input = read::bare(&input);
            match self.came(entry, &input, output) {
                Ok(()) => verdict = Ok(()),
                Err(what) if verdict.is_err() && input.len() == bytes.len() => {
                    verdict = Err(format!("{what}, if it is {input:02x?}"));
                }
                Err(_) => continue,
            }
            // Two later fragments may look alike; a first one is known by its ports.
            if verdict.is_ok()
                && matches!(read::frame(&input), Layers::Ip(ip) if ip.part == Part::First)
            {
                break;
            }
        }
        self.parts.one_of(before);
        verdict
    }

    /// Later fragments whose first one was seen after them.
    pub(crate) fn doubts(&mut self) -> Judgement {
        self.parts.doubts()
    }

    fn came(&mut self, entry: Entry, input: &[u8], output: &Output<'_>) -> Judgement {
        ensure(output.mark == 0, || {
            format!("came out with mark {:#x}", output.mark)
        })?;
        let input = &read::untagged(input);
        match (entry, output.seen) {
            (Entry::Wire, Seen::Left) => self.sent_back(input, output.bytes),
            (Entry::Wire, seen) => self.arrived(input, output.bytes, seen),
            (_, Seen::Delivered) => self.answered(entry, input, output.bytes),
            (_, Seen::Left) => self.left(entry, input, output.bytes),
            (_, Seen::Arrived) => Err("a packet from inside arrived on the uplink".into()),
        }
    }

    /// Judges an answer to a packet that did not leave.
    pub(crate) fn answered(&mut self, entry: Entry, input: &[u8], answer: &[u8]) -> Judgement {
        self.tally.answered += 1;
        ensure(entry != Entry::Wire, || {
            "an answer to the wire came inside".into()
        })?;
        rewrite::answer(&read::untagged(input), answer)
    }

    /// A packet from inside left.
    fn left(&mut self, entry: Entry, input: &[u8], output: &[u8]) -> Judgement {
        let ip = match read::frame(input) {
            Layers::Ip(ip) => ip,
            Layers::Broken(source) => {
                let bound = entry == Entry::Realm
                    || source.is_some_and(|source| world::zone(source) != Zone::None);
                ensure(!bound, || {
                    "LEAK: a broken packet of a bound zone left".into()
                })?;
                return self.unchanged(input, output);
            }
            Layers::Other(_) => return self.unchanged(input, output),
        };
        let zone = match entry {
            Entry::Realm => Zone::Bound,
            _ => world::zone(ip.source),
        };
        // An error about a packet of a flow leaves from its egress IP, whoever made it (NAT-4).
        let about = rewrite::quoted(input, &ip).is_some() && input != output;
        if !about && (zone == Zone::None || world::exempt(zone, &ip, input)) {
            ensure(!world::egress(ip.source), || {
                "LEAK: a packet from inside left that claims an egress IP".into()
            })?;
            return self.unchanged(input, output);
        }
        let Layers::Ip(after) = read::frame(output) else {
            return Err("LEAK: what left is no IP packet any more".into());
        };
        ensure(world::egress(after.source), || {
            format!("LEAK: left from {:?}", after.source)
        })?;
        rewrite::check(input, output, &ip, &after, Side::Source, false)?;
        self.tally.translated += 1;
        self.tally.six += u64::from(ip.six);
        let realm = entry == Entry::Realm;
        if let (Some(from), Some(to)) = (ip.ports(input), after.ports(output)) {
            let flow = Flow {
                realm,
                protocol: ip.protocol,
                inside: (ip.source, from.0),
                origin: (ip.destination, from.1),
            };
            let opens = ip.protocol == 17
                || input
                    .get(ip.transport + 13)
                    .is_some_and(|control| control & 0x16 == 2);
            self.flow_left(flow, (after.source, to.0), opens)?;
            self.part_left(entry, &ip, &after);
            return Ok(());
        }
        if let (Some(_), Some(before), Some(now)) = (
            ip.icmp(input),
            rewrite::quoted(input, &ip),
            rewrite::quoted(output, &after),
        ) {
            self.tally.errors += 1;
            // What it is about came from the origin to the inside.
            let (Some(old), Some(new)) = (before.ports(input), now.ports(output)) else {
                return Err("an error about a packet without ports left".into());
            };
            let flow = Flow {
                realm,
                protocol: before.protocol,
                inside: (before.destination, old.1),
                origin: (before.source, old.0),
            };
            let known = self.flows.get(&flow).map(|mapping| mapping.egress);
            return ensure(known == Some((now.destination, new.1)), || {
                format!("an error about {flow:?} left as if about {now:?}, not {known:?}")
            });
        }
        ensure(ip.part == Part::Later, || {
            "LEAK: a packet of no flow left with an egress IP".into()
        })?;
        self.part_left(entry, &ip, &after);
        Ok(())
    }

    /// A fragment, if it is one, left as its datagram does (NAT-6).
    fn part_left(&mut self, entry: Entry, ip: &Ip, after: &Ip) {
        self.tally.fragments += u64::from(ip.part != Part::Whole);
        let way = (after.source, after.id);
        self.parts.passed(entry, ip, way);
    }

    /// A packet of a flow left from `egress`.
    fn flow_left(&mut self, flow: Flow, egress: End, opens: bool) -> Judgement {
        let (began, now) = self.round;
        match self.flows.get_mut(&flow) {
            Some(mapping) if mapping.egress == egress => {
                (mapping.seen, mapping.last) = (began, now);
                // Another flow may have had the port meanwhile, and this one got it back.
                if !opens || self.reverse.get(&(flow.protocol, egress, flow.origin)) == Some(&flow)
                {
                    return Ok(());
                }
            }
            Some(mapping) if flow.protocol == 17 && mapping.seen + REMEMBERED > now => {
                return Err(format!(
                    "{flow:?} left from {egress:?}, a moment ago from {:?}",
                    mapping.egress
                ));
            }
            _ if !opens => {
                return Err(format!(
                    "{flow:?} was never opened and left from {egress:?}"
                ));
            }
            _ => {}
        }
        if let Some(other) = self
            .reverse
            .insert((flow.protocol, egress, flow.origin), flow)
            && other != flow
            && let Some(mapping) = self.flows.get(&other)
            && mapping.egress == egress
        {
            ensure(
                flow.protocol != 17 || mapping.seen + REMEMBERED <= now,
                || format!("{flow:?} and {other:?} share {egress:?}"),
            )?;
            self.flows.remove(&other);
        }
        let mapping = Mapping {
            egress,
            seen: began,
            last: now,
        };
        self.flows.insert(flow, mapping);
        self.learnt.push((flow, egress));
        Ok(())
    }

    /// A packet from the wire went in.
    fn arrived(&mut self, input: &[u8], output: &[u8], seen: Seen) -> Judgement {
        let Layers::Ip(ip) = read::frame(input) else {
            return self.unchanged(input, output);
        };
        if !world::egress(ip.destination) {
            return self.unchanged(input, output);
        }
        let Layers::Ip(after) = read::frame(output) else {
            return Err("what went in is no IP packet any more".into());
        };
        let handed = seen == Seen::Delivered;
        rewrite::check(input, output, &ip, &after, Side::Destination, handed)?;
        self.tally.returned += 1;
        self.tally.six += u64::from(ip.six);
        let flow = if let (Some(from), Some(to)) = (ip.ports(input), after.ports(output)) {
            let key = (ip.protocol, (ip.destination, from.1), (ip.source, from.0));
            let Some(flow) = self.reverse.get(&key) else {
                return Err(format!("{key:?} is nobody's and went in"));
            };
            ensure(flow.inside == (after.destination, to.1), || {
                format!("a reply to {flow:?} went to {:?}", after.destination)
            })?;
            if let Some(mapping) = self.flows.get_mut(flow) {
                mapping.last = self.round.1;
                if flow.protocol == 17 {
                    mapping.seen = self.round.0;
                }
            }
            *flow
        } else if let (Some(before), Some(now)) =
            (rewrite::quoted(input, &ip), rewrite::quoted(output, &after))
        {
            self.tally.errors += 1;
            // What it is about came from the inside.
            let (Some(old), Some(new)) = (before.ports(input), now.ports(output)) else {
                return Err("an error about a packet without ports went in".into());
            };
            let key = (
                before.protocol,
                (before.source, old.0),
                (before.destination, old.1),
            );
            let Some(flow) = self.reverse.get(&key) else {
                return Err(format!(
                    "an error about {key:?}, which is nobody's, went in"
                ));
            };
            ensure(
                flow.inside == (now.source, new.0) && flow.inside.0 == after.destination,
                || {
                    format!(
                        "an error about {flow:?} went to {:?} about {now:?}",
                        after.destination
                    )
                },
            )?;
            *flow
        } else {
            ensure(ip.part == Part::Later, || {
                "a packet of no flow went in from an egress IP".into()
            })?;
            self.tally.fragments += 1;
            let way = (after.destination, u32::from(handed));
            self.parts.passed(Entry::Wire, &ip, way);
            return Ok(());
        };
        let way = (after.destination, u32::from(handed));
        self.parts.passed(Entry::Wire, &ip, way);
        // No router forwards a packet of or to a link-local or loopback address: there is no way back.
        let global = |address: Address| address[10..12] == [0xff; 2] || address[0] & 0xe0 == 0x20;
        let routed = global(flow.inside.0) && global(flow.origin.0);
        ensure(flow.realm == handed || !routed, || {
            format!(
                "{flow:?} was {}handed to its realm",
                if handed { "" } else { "not " }
            )
        })
    }

    /// The data plane sent something to the wire.
    fn sent_back(&mut self, input: &[u8], output: &[u8]) -> Judgement {
        self.tally.answered += 1;
        match (read::frame(input), read::frame(output)) {
            (Layers::Other(0x0806), Layers::Other(0x0806)) => rewrite::arp(input, output),
            (Layers::Ip(ip), Layers::Ip(after)) => {
                ensure(world::egress(after.source), || {
                    format!("LEAK: answered the wire from {:?}", after.source)
                })?;
                if after.icmp(output) == Some(136) && after.six {
                    return rewrite::neighbour(input, &ip, output, &after);
                }
                ensure(after.protocol == 6, || {
                    format!("answered the wire with {after:?}")
                })
            }
            other => Err(format!("answered the wire: {other:?}")),
        }
    }

    fn unchanged(&mut self, input: &[u8], output: &[u8]) -> Judgement {
        self.tally.passed += 1;
        ensure(input == output, || {
            "a packet that is none of ours was changed".into()
        })
    }

    /// Forgets flows of long ago, if there are many.
    pub(crate) fn forget(&mut self) {
        self.parts.forget();
        if self.flows.len() < self.many {
            return;
        }
        let (_, now) = self.round;
        // Before that a connection may live on, and its next packet would be a stranger's to us.
        self.flows
            .retain(|_, mapping| now - mapping.last < world::LONGEST_LIFE);
        let flows = &self.flows;
        self.reverse.retain(|_, flow| flows.contains_key(flow));
        self.many = MANY.max(2 * self.flows.len());
    }
}
