//! What arrives on the uplink: its mark is not believed, and nobody asked for most of it (SAFE-3).

use egress_common::reason::Reason;

use super::errors::{PING, later};
use super::{DataPlane, EGRESS, FIRSTS, INSIDE, ORIGIN, Packet, STRANGER, at};
use crate::harness::{Hook, done};
use crate::packet::{ACK, RST, SYN};
use crate::run::{Meta, Verdict};

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
        Packet::tcp((at([192, 0, 2, 9]), ORIGIN.1), egress, RST),
        Packet::udp(ORIGIN, egress, b"the port is TCP's"),
        Packet::other(ORIGIN.0, EGRESS, 47, b"gre"),
    ] {
        plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
    }
    let ping = Packet::icmp(ORIGIN.0, EGRESS, PING, 0, b"ping");
    plane.dropped(Hook::UplinkIngress, &ping, Reason::Unsolicited);
}

#[test]
fn safe_3_what_cannot_be_read_does_not_arrive_at_an_egress_ip() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for first in FIRSTS {
        let packet = Packet {
            first: Some(*first),
            ..Packet::udp(ORIGIN, (EGRESS, 1), b"no packet")
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
        later(Packet::tcp(ORIGIN, INSIDE, ACK).payload(b"the rest")),
        Packet {
            first: Some(FIRSTS[0]),
            ..Packet::udp(ORIGIN, INSIDE, b"no packet")
        },
    ] {
        let outcome = plane.back(&packet);
        assert_eq!(
            (outcome.verdict, outcome.bytes),
            (Verdict::Next, packet.bytes())
        );
    }
}
