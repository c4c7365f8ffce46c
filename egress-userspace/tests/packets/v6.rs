//! What both families must do alike, over IPv6.
//!
//! The files of tests are compiled once for each family: what differs, they take from here.

use egress_common::family::V6;

use crate::world;

type Address = V6;
type DataPlane = crate::harness::Plane<V6>;
type Packet = crate::packet::Packet<V6>;
type Endpoint = crate::packet::Endpoint<V6>;

const INSIDE: Endpoint = (at(world::INSIDE.0), world::INSIDE.1);
const ORIGIN: Endpoint = (at(world::ORIGIN.0), world::ORIGIN.1);
const STRANGER: V6 = at(world::STRANGER);
const EGRESS: V6 = at(world::EGRESS);
const EGRESS_2: V6 = at(world::EGRESS_2);

/// Bytes of a network header without extensions.
const HEADER: usize = 40;
/// Where in it the protocol and the source address stand.
const PROTOCOL: usize = 6;
const SOURCE: usize = 8;
/// How many of its bytes its length field counts.
const COUNTED: usize = 0;
/// First bytes that it never has: another version.
const FIRSTS: &[u8] = &[0x00, 0x06, 0x40, 0x45, 0x50, 0x70, 0xf0];
/// Groups, and hosts that are on no wire.
const MARTIANS: &[V6] = &[
    [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xff, 0x0e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0xff; 16],
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [0; 16],
];
/// Extension headers in front of a TCP segment: for the destination, and for every hop before that.
const OPTIONS: [&[u8]; 2] = [
    &[60, 6, 0, 1, 4, 0, 0, 0, 0],
    &[0, 60, 0, 1, 4, 0, 0, 0, 0, 6, 0, 1, 4, 0, 0, 0, 0],
];

/// An extension header of every length, in front of `protocol`.
fn network_options(protocol: u8) -> Vec<Vec<u8>> {
    let of = |units: u8| {
        let mut header = vec![1; (usize::from(units) + 1) * 8];
        (header[0], header[1]) = (protocol, units);
        // Padding of one byte each.
        header[2..].fill(0);
        [&[60], &header[..]].concat()
    };
    let none = std::iter::once(Vec::new());
    none.chain((0..=31).map(of)).collect()
}

/// The least port that a client keeps where it is free, and the least that is given out.
const KEPT: u16 = 1;
const RANDOM: u16 = 1_024;
/// Types of ICMP messages that are no errors.
const QUERIES: &[u8] = &[128, 129];
/// What refuses a packet, and what says that its protocol cannot be translated: the pointer is to the field that
/// names it (RFC 4443, 3.4).
const PROHIBITED: errors::Kind = (1, 1, [0; 4]);
const NO_PROTOCOL: errors::Kind = (4, 1, [0, 0, 0, 6]);

/// An answer to `packet` as the data plane makes it of it: extension headers become one option that is skipped.
fn answer_to(packet: &Packet, answer: Packet) -> Packet {
    let mut options = packet.options.clone();
    if let Some(extensions) = options.len().checked_sub(1) {
        let units = (extensions / 8 - 1) as u8;
        let option = [60, answer.protocol, units, 0x1e, (extensions - 4) as u8];
        options[..option.len()].copy_from_slice(&option);
    }
    Packet {
        to: packet.from,
        from: packet.to,
        vlans: packet.vlans.clone(),
        ttl: 64,
        options,
        ..answer
    }
}

/// Bytes of a packet that an error quotes: as many as we keep.
fn quoted(packet: &Packet) -> usize {
    packet.ip_bytes().len().min(304)
}

/// The address that has this one's part in a world.
const fn at(address: [u8; 4]) -> V6 {
    crate::family::v6_of(address)
}

#[path = "alike.rs"]
mod alike;
#[path = "icmp/six.rs"]
mod errors;
