//! What ICMP errors look like (RFC 792).

use super::Packet;

/// Type, code, and the four bytes behind the checksum.
pub(super) type Kind = (u8, u8, [u8; 4]);

pub(super) const TOO_BIG: Kind = (3, 4, [0, 0, 5, 0]);
pub(super) const NO_PORT: Kind = (3, 3, [0; 4]);
pub(super) const TOO_LATE: Kind = (11, 0, [0; 4]);
/// All that are translated.
pub(super) const KINDS: &[Kind] = &[
    TOO_BIG,
    (3, 0, [0; 4]),
    (3, 1, [0; 4]),
    NO_PORT,
    (3, 13, [0; 4]),
    TOO_LATE,
    (11, 1, [0; 4]),
    (12, 0, [20, 0, 0, 0]),
];
/// The type of a ping, and errors that are not translated.
pub(super) const PING: u8 = 8;
pub(super) const OTHERS: &[u8] = &[4, 5, 6, 9, 10, 40, 99];
/// Extensions stand behind 128 bytes of quote (RFC 4884, section 4).
pub(super) const EXTENDED: Kind = (11, 0, [0, 32, 0, 0]);

/// Packets of all looks, as they are quoted.
pub(super) fn quoted(packet: &Packet) -> Vec<Packet> {
    let with = |change: fn(&mut Packet)| {
        let mut packet = packet.clone();
        change(&mut packet);
        packet
    };
    vec![
        with(|_| {}),
        with(|packet| {
            packet.options = vec![1; 40];
            (packet.ttl, packet.tos) = (1, 0xb8);
        }),
        with(|packet| {
            packet.options = vec![0x94, 4, 0, 0];
            (packet.id, packet.fragment) = (0, 0);
        }),
        // The first fragment of a packet, and a packet longer than any on the wire (GRO).
        with(|packet| packet.fragment = 0x2000),
        with(|packet| packet.length = Some(65_535)),
    ]
}

/// Errors of all looks.
pub(super) fn outer(packet: &Packet) -> Vec<Packet> {
    let with = |change: fn(&mut Packet)| {
        let mut packet = packet.clone();
        change(&mut packet);
        packet
    };
    vec![
        with(|_| {}),
        with(|packet| packet.vlans = vec![7, 100]),
        with(|packet| (packet.options, packet.padding) = (vec![1; 40], 6)),
        with(|packet| {
            packet.vlans = vec![3];
            (packet.ttl, packet.tos, packet.fragment) = (1, 0xc0, 0);
        }),
    ]
}

/// A later fragment.
pub(super) fn later(packet: Packet) -> Packet {
    Packet {
        fragment: 0x2001,
        ..packet
    }
}
