//! NAT-1: every field of a header, at its extremes, stays as it is, both ways; every protocol but three is refused.

use egress_common::key::{TCP, UDP};
use egress_common::reason::Reason;

use super::{Address, DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet};
use crate::harness::Hook;
use crate::packet::{ACK, Body, Net as _, SYN};
use crate::run::Verdict;
use crate::seed::Random;

/// Fields of a network header; those of the other family change nothing.
const NETWORK: [fn(&mut Packet); 18] = [
    |packet| packet.tos = 1,
    |packet| packet.tos = 0b11,
    |packet| packet.tos = 0xfc,
    |packet| packet.tos = 0xff,
    |packet| packet.label = 1,
    |packet| packet.label = 0xf_ffff,
    |packet| packet.id = 0,
    |packet| packet.id = u16::MAX,
    |packet| packet.fragment = 0,
    |packet| packet.fragment = 0x4000,
    // The reserved flag, alone and with "do not fragment".
    |packet| packet.fragment = 0x8000,
    |packet| packet.fragment = 0xc000,
    |packet| packet.ttl = 0,
    |packet| packet.ttl = 1,
    |packet| packet.ttl = u8::MAX,
    |packet| packet.padding = 1,
    |packet| packet.padding = 46,
    |packet| (packet.tos, packet.fragment, packet.ttl) = (0xff, 0x8000, 0),
];

/// Ports of either end: the first, the last, those next to where ranges begin.
const PORTS: [u16; 8] = [0, 1, 1_023, 1_024, 2_047, 2_048, 32_768, u16::MAX];

#[test]
fn nat_1_fields_of_the_network_header_stay_as_they_are() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let with = |change: fn(&mut Packet), mut packet: Packet| {
        change(&mut packet);
        packet
    };
    for (nth, change) in NETWORK.into_iter().enumerate() {
        let from = (INSIDE.0, 2_100 + nth as u16);
        let egress = plane.leaves(&with(change, Packet::tcp(from, ORIGIN, SYN).numbers(7, 0)));
        let answer = Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(70, 8);
        plane.arrives(&with(change, answer), from);
        let query = with(change, Packet::udp(from, ORIGIN, b"query"));
        assert_eq!(plane.leaves(&query), egress);
        plane.arrives(&with(change, Packet::udp(ORIGIN, egress, b"answer")), from);
    }
    assert_eq!(plane.all_reasons(), []);
    plane.consistent();
}

#[test]
fn nat_1_every_control_bit_and_reserved_bit_stays_as_it_is() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for control in 0..=u8::MAX {
        let from = (INSIDE.0, 3_000 + u16::from(control));
        let egress = plane.establish(from, ORIGIN, (1, 1));
        let with = |mut packet: Packet| {
            let segment = packet.segment();
            (segment.reserved, segment.urgent) = (control & 15 ^ 15, u16::from(control) << 8);
            packet.numbers(2, 2)
        };
        let out = with(Packet::tcp(from, ORIGIN, control));
        assert_eq!(plane.leaves(&out), egress);
        plane.arrives(&with(Packet::tcp(ORIGIN, egress, control)), from);
    }
    assert_eq!(plane.all_reasons(), []);
    plane.consistent();
}

#[test]
fn nat_1_numbers_of_a_segment_stay_as_they_are() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let numbers = [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX];
    for sequence in numbers {
        for acknowledgment in numbers {
            for (window, urgent) in [(0, u16::MAX), (u16::MAX, 0)] {
                let with = |packet: Packet| {
                    let mut packet = packet.numbers(sequence, acknowledgment);
                    let segment = packet.segment();
                    (segment.window, segment.urgent) = (window, urgent);
                    packet
                };
                assert_eq!(
                    plane.leaves(&with(Packet::tcp(INSIDE, ORIGIN, ACK))),
                    egress
                );
                plane.arrives(&with(Packet::tcp(ORIGIN, egress, ACK)), INSIDE);
            }
        }
    }
    assert_eq!(plane.all_active(), 1);
    plane.consistent();
}

#[test]
fn nat_1_every_port_of_either_end_is_a_port() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let mut opened = 0;
    for inside in PORTS.map(|port| (INSIDE.0, port)) {
        for origin in PORTS.map(|port| (ORIGIN.0, port)) {
            let egress = plane.leaves(&Packet::udp(inside, origin, b"query"));
            assert_eq!(egress.0, EGRESS);
            plane.arrives(&Packet::udp(origin, egress, b"answer"), inside);
            let egress = plane.establish(inside, origin, (1, 1));
            plane.arrives(&Packet::tcp(origin, egress, ACK).numbers(2, 2), inside);
            assert!(plane.index(inside, origin, TCP).is_some());
            assert!(plane.index(inside, origin, UDP).is_some());
            opened += 2;
        }
    }
    assert_eq!((plane.all_active(), plane.all_reasons()), (opened, vec![]));
    plane.consistent();
}

#[test]
fn safe_1_every_other_protocol_is_refused_and_never_arrives() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let others = (0..=u8::MAX).filter(|number| ![TCP, UDP, Address::ICMP].contains(number));
    let mut refused = 0;
    for protocol in others {
        // Eight zero bytes are a whole extension header, which nothing follows that is known.
        let packet = Packet::other(INSIDE.0, ORIGIN.0, protocol, &[0; 8]);
        let answer = plane.answered(&packet);
        assert_eq!(answer.protocol, Address::ICMP, "{protocol}");
        assert!(matches!(answer.body, Body::Icmp(..)), "{protocol}");
        refused += 1;
        assert_eq!(plane.reason(Reason::Protocol), refused, "{protocol}");
        let packet = Packet::other(ORIGIN.0, EGRESS, protocol, &[0; 8]);
        plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
    }
    assert_eq!(refused, 253);
    assert_eq!((plane.free(), plane.all_active()), (1_024, 0));
}

/// Whatever stands in any byte of a header, a packet leaves with its flow's address or not at all.
#[test]
fn safe_1_every_byte_of_every_header_may_be_anything() {
    let mut random = Random::announced("bytes of headers");
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let ends: [Endpoint; 2] = [INSIDE, ORIGIN];
    let egress = plane.establish(ends[0], ends[1], (1, 1));
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    let packets = [
        Packet::tcp(INSIDE, ORIGIN, ACK)
            .numbers(2, 2)
            .payload(b"data"),
        Packet::udp(INSIDE, ORIGIN, b"datagram"),
    ];
    let addresses = 14 + super::SOURCE..14 + super::HEADER;
    let (mut left, mut stayed) = (0, 0);
    for whole in packets.map(|packet| packet.bytes()) {
        for at in (14..whole.len()).filter(|at| !addresses.contains(at)) {
            for value in [0, 1, 0x7f, 0x80, 0xff, random.number() as u8] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let Some(outcome) = plane.try_bytes(Hook::UplinkEgress, &bytes, Default::default())
                else {
                    continue;
                };
                let source = 14 + super::SOURCE;
                let source = &outcome.bytes[source..source + egress.0.len()];
                // What became a ping is no flow's (POLICY-7).
                let ping = bytes[14 + super::PROTOCOL] == Address::ICMP && outcome.bytes == bytes;
                if outcome.verdict == Verdict::Next {
                    assert!(
                        source == egress.0 || ping,
                        "byte {at} is {value:#x}: {bytes:02x?}"
                    );
                    left += 1;
                } else {
                    stayed += 1;
                }
            }
        }
    }
    println!("{left} left, {stayed} did not");
    assert!(left > 50 && stayed > 50);
    plane.consistent();
}
