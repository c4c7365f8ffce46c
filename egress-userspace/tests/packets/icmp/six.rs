//! What ICMPv6 errors look like (RFC 4443).

use super::Packet;

/// Type, code, and the four bytes behind the checksum.
pub(super) type Kind = (u8, u8, [u8; 4]);

pub(super) const TOO_BIG: Kind = (2, 0, [0, 0, 5, 0]);
pub(super) const NO_PORT: Kind = (1, 4, [0; 4]);
pub(super) const TOO_LATE: Kind = (3, 0, [0; 4]);
/// All that are translated.
pub(super) const KINDS: &[Kind] = &[
    TOO_BIG,
    (1, 0, [0; 4]),
    (1, 1, [0; 4]),
    (1, 3, [0; 4]),
    NO_PORT,
    (1, 6, [0; 4]),
    TOO_LATE,
    (3, 1, [0; 4]),
    (4, 0, [0, 0, 0, 6]),
    (4, 1, [0, 0, 0, 40]),
];
/// The type of a ping, and errors that are not translated.
pub(super) const PING: u8 = 128;
pub(super) const OTHERS: &[u8] = &[0, 5, 99, 100, 101, 127];
/// Extensions stand behind 128 bytes of quote (RFC 4884, section 4).
pub(super) const EXTENDED: Kind = (3, 0, [16, 0, 0, 0]);

/// Packets of all looks, as they are quoted.
pub(super) fn quoted(packet: &Packet) -> Vec<Packet> {
    let protocol = packet.protocol;
    let with = |change: &dyn Fn(&mut Packet)| {
        let mut packet = packet.clone();
        change(&mut packet);
        packet
    };
    vec![
        with(&|_| {}),
        with(&|packet| packet.ttl = 1),
        // Destination options; hop-by-hop options and a routing header that has nothing left.
        with(&|packet| packet.options = vec![60, protocol, 0, 1, 4, 0, 0, 0, 0]),
        with(&|packet| {
            let (hops, route) = ([43, 0, 1, 4, 0, 0, 0, 0], [protocol, 0, 4, 0, 0, 0, 0, 0]);
            packet.options = [&[0][..], &hops, &route].concat();
        }),
        with(&|packet| packet.length = Some(65_535)),
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
        with(|packet| (packet.ttl, packet.padding) = (1, 6)),
    ]
}

/// A later fragment.
pub(super) fn later(packet: Packet) -> Packet {
    Packet {
        options: vec![44, 6, 0, 0, 8, 0, 0, 0, 1],
        ..packet
    }
}
