//! Packets that a network might produce, and many it would not: built field by field around flows that
//! may exist, then damaged.

use super::addresses;
use super::build::Builder;
use super::driver::{Entry, LONGEST};
use super::mutate;
use super::oracle::Flow;
use super::read::{Address, End, v4};
use super::world::EXEMPT;
use crate::packet::{ACK, FIN, PSH, RST, SYN};
use crate::seed::Random;
use crate::world::{EGRESS, EGRESS_2};

/// Flows that replies are made for.
const KNOWN: usize = 4_096;

const CONTROLS: [u8; 16] = [
    SYN,
    SYN,
    SYN,
    ACK,
    ACK,
    ACK,
    ACK | PSH,
    ACK | PSH,
    FIN | ACK,
    FIN | ACK,
    RST,
    RST | ACK,
    SYN | ACK,
    SYN | FIN,
    0,
    0xff,
];
const REPLIES: [u8; 10] = [
    SYN | ACK,
    SYN | ACK,
    SYN | ACK,
    ACK,
    ACK,
    ACK | PSH,
    FIN | ACK,
    RST,
    RST | ACK,
    SYN,
];

/// Makes packets from random numbers and what it has learnt.
pub(crate) struct Generator {
    pub(crate) random: Random,
    known: Vec<(Flow, End)>,
}

/// Where a side's sequence numbers begin: the same each time, so that segments of a connection fit
/// each other although nobody remembers them.
fn begin(flow: &Flow, origin: bool) -> u32 {
    let (address, port) = if origin { flow.origin } else { flow.inside };
    let seed = u32::from_be_bytes([address[12], address[13], address[14], address[15]]);
    seed.wrapping_mul(0x9e37_79b9) ^ u32::from(port).wrapping_mul(0x85eb_ca6b)
}

impl Generator {
    pub(crate) fn new(random: Random) -> Self {
        Self {
            random,
            known: Vec::new(),
        }
    }

    /// Remembers flows; older ones make room.
    pub(crate) fn learn(&mut self, flows: &mut Vec<(Flow, End)>) {
        for flow in flows.drain(..) {
            if self.known.len() < KNOWN {
                self.known.push(flow);
            } else {
                let at = self.random.below(KNOWN as u64) as usize;
                self.known[at] = flow;
            }
        }
    }

    /// The next packet that enters there.
    pub(crate) fn packet(&mut self, entry: Entry, bytes: &mut Vec<u8>) {
        bytes.clear();
        let random = &mut self.random;
        let known = if self.known.is_empty() {
            None
        } else {
            let at = random.below(self.known.len() as u64) as usize;
            Some(self.known[at])
        };
        let mut builder = Builder::new(bytes, random);
        match entry {
            Entry::Wire => from_wire(&mut builder, known),
            _ => from_inside(
                &mut builder,
                known.filter(|(flow, _)| flow.realm == (entry == Entry::Realm)),
            ),
        }
        if bytes.len() > LONGEST {
            bytes.truncate(LONGEST);
        }
        if self.random.once_in(3) {
            mutate::some(&mut self.random, bytes);
        }
        // A device hands on no shorter frames; a cut tag would not get past the driver.
        let least = if matches!(bytes[12..14], [0x81, 0] | [0x88, 0xa8]) {
            20
        } else {
            14
        };
        if bytes.len() < least {
            bytes.resize(least, 0);
        }
        bytes.truncate(LONGEST);
    }
}

/// The ends of a connection that an inside host might open.
fn ends(builder: &mut Builder<'_>, six: bool) -> (End, End) {
    let random = &mut *builder.random;
    let inside = if six {
        addresses::inside6(random)
    } else {
        addresses::inside(random)
    };
    let origin = if six {
        addresses::origin6(random)
    } else {
        match random.below(64) {
            0 => v4(EXEMPT),
            2 => v4(EGRESS),
            3 => inside,
            4 => v4(addresses::odd(random)),
            5 => v4((random.number() as u32).to_be_bytes()),
            _ => addresses::origin(random),
        }
    };
    (
        (inside, addresses::port(random)),
        (origin, addresses::service(random)),
    )
}

fn from_inside(builder: &mut Builder<'_>, known: Option<(Flow, End)>) {
    let six = builder.random.once_in(4);
    let (inside, origin) = ends(builder, six);
    let kind = builder.random.below(100);
    match (known, kind) {
        // More of a flow that exists.
        (Some((flow, _)), 0..45) => {
            if flow.protocol == 6 {
                let control = builder.random.of(&CONTROLS);
                let ours = begin(&flow, false).wrapping_add(u32::from(control & SYN == 0));
                let theirs = begin(&flow, true).wrapping_add(1);
                segment(builder, flow.inside, flow.origin, control, ours, theirs);
            } else {
                builder.udp(flow.inside, flow.origin);
            }
        }
        (Some((flow, egress)), 45..55) => {
            // An error about a packet that came from its origin, or would have.
            let about = if builder.random.once_in(4) {
                egress
            } else {
                flow.inside
            };
            builder.error(
                flow.inside.0,
                flow.origin.0,
                flow.protocol,
                flow.origin,
                about,
            );
        }
        (Some((flow, _)), 55..60) => builder.fragment(flow.protocol, flow.inside, flow.origin),
        (_, 60..80) => {
            let flow = Flow {
                realm: false,
                protocol: 6,
                inside,
                origin,
            };
            let control = if builder.random.once_in(3) {
                builder.random.of(&CONTROLS)
            } else {
                SYN
            };
            let theirs = begin(&flow, true).wrapping_add(1);
            segment(
                builder,
                inside,
                origin,
                control,
                begin(&flow, false),
                theirs,
            );
        }
        (_, 80..84) => builder.query(inside.0, origin.0),
        (_, 84..88) => builder.error(inside.0, origin.0, 6, origin, inside),
        (_, 88..91) => builder.other(inside.0, origin.0),
        (_, 91..94) => {
            let protocol = builder.random.of(&[6, 17, 17, 1]);
            builder.fragment(protocol, inside, origin);
        }
        (_, 94) => builder.junk(),
        _ => builder.udp(inside, origin),
    }
}

/// A segment whose numbers are right, nearly right, or anything.
fn segment(builder: &mut Builder<'_>, from: End, to: End, control: u8, ours: u32, theirs: u32) {
    let random = &mut *builder.random;
    let mut near = |number: u32| match random.below(16) {
        0 => random.number() as u32,
        1 => number
            .wrapping_add(random.below(200_000) as u32)
            .wrapping_sub(100_000),
        2..4 => number.wrapping_add(random.below(64) as u32),
        _ => number,
    };
    let (ours, theirs) = (near(ours), near(theirs));
    builder.tcp(from, to, control, ours, theirs);
}

fn from_wire(builder: &mut Builder<'_>, known: Option<(Flow, End)>) {
    let kind = builder.random.below(100);
    let six = known.is_some_and(|(flow, _)| flow.inside.0[..10] != [0; 10]);
    match (known, kind) {
        (Some((flow, egress)), 0..55) => {
            if flow.protocol == 6 {
                let control = builder.random.of(&REPLIES);
                let ours = begin(&flow, true).wrapping_add(u32::from(control & SYN == 0));
                let theirs = begin(&flow, false).wrapping_add(1);
                segment(builder, flow.origin, egress, control, ours, theirs);
            } else {
                builder.udp(flow.origin, egress);
            }
        }
        (Some((flow, egress)), 55..68) => {
            // From a router on the way, or from the origin itself.
            let router = if builder.random.once_in(2) {
                flow.origin.0
            } else if six {
                addresses::origin6(builder.random)
            } else {
                v4(builder
                    .random
                    .of(&[[203, 0, 113, 1], [10, 1, 0, 2], EGRESS]))
            };
            builder.error(router, egress.0, flow.protocol, egress, flow.origin);
        }
        (Some((flow, egress)), 68..76) => builder.fragment(flow.protocol, flow.origin, egress),
        (Some((flow, egress)), 76..82) => {
            // One number off: a neighbour's, or nobody's.
            let mut other = (flow.origin, egress);
            match builder.random.below(4) {
                0 => other.0.1 ^= 1,
                1 => other.1.1 ^= 1,
                2 => other.0.0[15] ^= 1,
                _ => other.1.0[15] ^= 3,
            }
            if builder.random.once_in(2) {
                builder.udp(other.0, other.1);
            } else {
                builder.tcp(other.0, other.1, ACK, 1, 1);
            }
        }
        (_, 82..85) => builder.arp(),
        (_, 85) => {
            let (asker, target) = (
                addresses::origin6(builder.random),
                addresses::egress6(builder.random),
            );
            builder.solicitation(asker, target);
        }
        (_, 86..88) => builder.junk(),
        _ => unasked(builder),
    }
}

/// A packet that belongs to nothing.
fn unasked(builder: &mut Builder<'_>) {
    let six = builder.random.once_in(5);
    let (inside, origin) = ends(builder, six);
    let random = &mut *builder.random;
    let to: Address = if six {
        if random.once_in(2) {
            addresses::egress6(random)
        } else {
            inside.0
        }
    } else {
        match random.below(4) {
            0 => inside.0,
            1 => v4(EGRESS_2),
            _ => v4(EGRESS),
        }
    };
    let (from, to) = match random.below(12) {
        0 => ((to, inside.1), (to, inside.1)),
        1 => ((v4(EGRESS), inside.1), (to, origin.1)),
        _ => (origin, (to, inside.1)),
    };
    match builder.random.below(10) {
        0..3 => {
            let control = builder.random.of(&CONTROLS);
            let number = builder.random.number() as u32;
            builder.tcp(from, to, control, number, number);
        }
        3..6 => builder.udp(from, to),
        6 => builder.query(from.0, to.0),
        7 => builder.error(from.0, to.0, 17, to, from),
        8 => builder.other(from.0, to.0),
        _ => builder.fragment(17, from, to),
    }
}
