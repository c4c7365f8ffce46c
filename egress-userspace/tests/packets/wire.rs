//! What arrives on the uplink: its mark is not believed, and nobody asked for most of it (SAFE-3).

use egress_common::reason::Reason;

use crate::harness::{DataPlane, Hook, done};
use crate::packet::{ACK, Packet, RST, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{EGRESS, INSIDE, ORIGIN, STRANGER};

#[test]
fn zone_4_the_tag_of_a_wire_is_cleared() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let packet = Packet::tcp(ORIGIN, (STRANGER, 80), SYN);
    let meta = Meta {
        mark: done(0xffff_0000) | 0x31,
        ..Meta::default()
    };
    let outcome = plane.run(Hook::UplinkIngress, &packet, meta);
    assert_eq!((outcome.verdict, outcome.mark), (Verdict::Next, 0x31));
    assert_eq!(outcome.bytes, packet.bytes());
}

#[test]
fn safe_3_unsolicited_packets_to_an_egress_ip_are_dropped() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    for packet in [
        Packet::tcp(ORIGIN, (EGRESS, egress.1 + 1), SYN),
        Packet::tcp((ORIGIN.0, ORIGIN.1 + 1), egress, ACK),
        Packet::tcp(([192, 0, 2, 9], ORIGIN.1), egress, RST),
        Packet::udp(ORIGIN, egress, b"the port is TCP's"),
        Packet::other(ORIGIN.0, EGRESS, 47, b"gre"),
    ] {
        plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
    }
    let ping = Packet::icmp(ORIGIN.0, EGRESS, 8, 0, b"ping");
    plane.dropped(Hook::UplinkIngress, &ping, Reason::Unsolicited);
}

#[test]
fn safe_3_what_cannot_be_read_does_not_arrive_at_an_egress_ip() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for first in [0x43, 0x4f, 0x65] {
        let packet = Packet {
            first: Some(first),
            ..Packet::udp(ORIGIN, (EGRESS, 1), b"not IPv4")
        };
        plane.dropped(Hook::UplinkIngress, &packet, Reason::Malformed);
    }
}

#[test]
fn what_is_not_for_an_egress_ip_arrives_untouched() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for packet in [
        Packet::tcp(ORIGIN, INSIDE, SYN),
        Packet {
            fragment: 0x2000,
            ..Packet::udp(ORIGIN, INSIDE, b"fragment")
        },
        Packet {
            first: Some(0x43),
            ..Packet::udp(ORIGIN, INSIDE, b"not IPv4")
        },
    ] {
        let outcome = plane.back(&packet);
        assert_eq!(
            (outcome.verdict, outcome.bytes),
            (Verdict::Next, packet.bytes())
        );
    }
}
