//! What both families must do alike, over IPv4.
//!
//! The files of tests are compiled once for each family: what differs, they take from here.

use egress_common::family::V4;

use crate::world;

type Address = V4;
type DataPlane = crate::harness::Plane<V4>;
type Packet = crate::packet::Packet<V4>;
type Endpoint = crate::packet::Endpoint<V4>;

const INSIDE: Endpoint = (at(world::INSIDE.0), world::INSIDE.1);
const ORIGIN: Endpoint = (at(world::ORIGIN.0), world::ORIGIN.1);
const STRANGER: V4 = at(world::STRANGER);
const EGRESS: V4 = at(world::EGRESS);
const EGRESS_2: V4 = at(world::EGRESS_2);

/// Bytes of a network header without options.
const HEADER: usize = 20;
/// Where in it the protocol and the source address stand.
const PROTOCOL: usize = 9;
const SOURCE: usize = 12;
/// How many of its bytes its length field counts.
const COUNTED: usize = HEADER;
/// First bytes that it never has: another version, or a header that is too short or longer than a packet.
const FIRSTS: &[u8] = &[0x00, 0x05, 0x40, 0x41, 0x44, 0x4f, 0x55, 0x60, 0x65, 0xf5];
/// Groups, the broadcast, and hosts that are on no wire.
const MARTIANS: &[V4] = &[
    [224, 0, 0, 1],
    [239, 255, 255, 250],
    [255; 4],
    [127, 0, 0, 1],
    [127, 255, 255, 255],
    [0; 4],
];
/// Options of a TCP segment's network header: a router alert, and as many as there may be.
const OPTIONS: [&[u8]; 2] = [&[0x94, 4, 0, 0, 1, 1, 1, 0], &[1; 40]];

/// Options of every length.
fn network_options(_protocol: u8) -> Vec<Vec<u8>> {
    (0..=40).step_by(4).map(|length| vec![1; length]).collect()
}

/// The least port that a client keeps where it is free, and the least that is given out.
const KEPT: u16 = 2_048;
const RANDOM: u16 = 2_048;
/// Types of ICMP messages that are no errors.
const QUERIES: &[u8] = &[0, 8, 13, 14, 15, 16, 17, 18];
/// What refuses a packet (RFC 5508 REQ-8), and what says that its protocol cannot be translated.
const PROHIBITED: errors::Kind = (3, 13, [0; 4]);
const NO_PROTOCOL: errors::Kind = (3, 2, [0; 4]);

/// An answer to `packet` as the data plane makes it of it: options become no-ops.
fn answer_to(packet: &Packet, answer: Packet) -> Packet {
    Packet {
        to: packet.from,
        from: packet.to,
        vlans: packet.vlans.clone(),
        id: 0,
        ttl: 64,
        options: vec![1; packet.options.len()],
        ..answer
    }
}

/// Bytes of a packet that an error quotes: its header and eight more (RFC 792).
fn quoted(packet: &Packet) -> usize {
    let all = packet.ip_bytes().len();
    all.min(HEADER + packet.options.len() + 8)
}

/// The address that has this one's part in a world.
const fn at(address: [u8; 4]) -> V4 {
    address
}

#[path = "alike.rs"]
mod alike;
#[path = "icmp/four.rs"]
mod errors;
