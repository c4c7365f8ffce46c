//! NAT-4: ICMP errors about flows, both ways. What is expected is the same error made once more, about the
//! same packet as the other side knows it: every field and every checksum is right, or the bytes differ.

#[path = "icmp/doubt.rs"]
mod doubt;

use egress_common::key::{TCP, UDP, realm};
use egress_common::reason::Reason;
use egress_common::settings::zone_flag;

use super::errors::{self, EXTENDED, KINDS, Kind, NO_PORT, TOO_BIG, TOO_LATE};
use super::{Address, DataPlane, Endpoint, HEADER, INSIDE, ORIGIN, Packet, STRANGER, at};
use crate::harness::{Hook, done, tagged, unbound};
use crate::packet::{ACK, Body, Net as _, RST, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{ENABLED, INSIDE_INTERFACE, POOL, World};

/// A router on the way to the origin.
const ROUTER: Address = at([203, 0, 113, 1]);
/// A router of the zone, one of no zone, this host.
const NEARER: [Address; 3] = [at([10, 1, 0, 1]), at([10, 200, 0, 1]), at([198, 18, 0, 1])];

/// An error to the sender of `packet`, which quotes `kept` bytes behind its network header.
fn about(from: Address, packet: &Packet, kind: Kind, kept: usize) -> Packet {
    let mut quote = packet.ip_bytes();
    quote.truncate(Address::header(packet, 0).len() + kept);
    let mut error = Packet::icmp(from, packet.source, kind.0, kind.1, &quote);
    if let Body::Icmp(_, _, rest, _) = &mut error.body {
        *rest = kind.2;
    }
    error
}

/// An established connection, and what it leaves with: its own port, if all slices are there.
fn connected(slices: u32) -> Option<(DataPlane, Endpoint)> {
    let plane = DataPlane::of(World::default().with_slices(slices))?;
    if slices != u32::MAX {
        // Whose port it is: IPv6, which has no slices, must take another one too.
        let first = (at([10, 1, 0, 77]), INSIDE.1);
        plane.leaves(&Packet::tcp(first, ORIGIN, SYN));
        plane.leaves(&Packet::udp(first, ORIGIN, b""));
    }
    let egress = plane.establish(INSIDE, ORIGIN, (1_000, 9_000));
    assert_eq!(egress.1 == INSIDE.1, slices == u32::MAX, "{egress:?}");
    Some((plane, egress))
}

/// Data that the connection of [`connected`] has sent, as it leaves the inside.
fn sent() -> Packet {
    Packet::tcp(INSIDE, ORIGIN, ACK)
        .numbers(1_001, 9_001)
        .payload(&[0x5a; 1_301])
}

/// Data that it was sent, as the origin sends it to `egress`.
fn received(egress: Endpoint) -> Packet {
    Packet::tcp(ORIGIN, egress, ACK)
        .numbers(9_001, 1_001)
        .payload(&[0xa5; 1_301])
}

/// What arrives at the inside is the error about the packet as the inside has sent it.
#[track_caller]
fn arrives(plane: &DataPlane, packet: &Packet, egress: Endpoint, kind: Kind, kept: usize) {
    let error = about(ROUTER, &packet.clone().sent_from(egress), kind, kept);
    let outcome = plane.back(&error);
    assert_eq!((outcome.verdict, outcome.mark), (Verdict::Next, 0));
    let right = about(ROUTER, packet, kind, kept).bytes();
    assert_eq!(outcome.bytes, right, "{kind:?} {kept}");
}

/// What leaves is the error about the packet as the origin has sent it, from where it was sent to.
#[track_caller]
fn leaves(plane: &DataPlane, from: Address, packet: &Packet, inside: Endpoint, meta: Meta) {
    let egress = packet.receiver().0;
    for (kind, kept) in [(TOO_BIG, 8), (NO_PORT, 548), (TOO_LATE, 20)] {
        let error = about(from, &packet.clone().sent_to(inside), kind, kept);
        let outcome = plane.run(Hook::UplinkEgress, &error, meta);
        assert_eq!(outcome.verdict, Verdict::Next, "{from:?} {kind:?} {kept}");
        assert_eq!(outcome.mark, done(0xffff_0000));
        let right = about(egress, packet, kind, kept).bytes();
        assert_eq!(outcome.bytes, right, "{from:?} {kind:?} {kept}");
    }
}

#[test]
fn nat_4_an_error_about_what_a_flow_has_sent_reaches_its_inside() {
    for slices in [u32::MAX, 1 << 3] {
        let Some((plane, egress)) = connected(slices) else {
            return;
        };
        let packet = sent();
        assert_eq!(plane.leaves(&packet), egress);
        for kind in KINDS.iter().copied() {
            for kept in [8, 9, 16, 18, 19, 20, 40, 548, 1_321] {
                arrives(&plane, &packet, egress, kind, kept);
            }
        }
        let datagram = Packet::udp(INSIDE, ORIGIN, &[3; 901]);
        let egress = plane.leaves(&datagram);
        for kind in KINDS.iter().copied() {
            for kept in [8, 9, 20, 548] {
                arrives(&plane, &datagram, egress, kind, kept);
            }
        }
        // A datagram without a checksum has none in the quote.
        let bare = Packet {
            checksum: Some(0),
            ..datagram
        };
        arrives(&plane, &bare, egress, TOO_BIG, 8);
        plane.consistent();
    }
}

#[test]
fn nat_4_whatever_either_packet_looks_like() {
    let Some((plane, egress)) = connected(1 << 9) else {
        return;
    };
    // An error as it comes, and as it must go on.
    let compare = |error: Packet, right: Packet, hook| {
        for (error, right) in errors::outer(&error).into_iter().zip(errors::outer(&right)) {
            let outcome = plane.run(hook, &error, Meta::default());
            assert_eq!(outcome.verdict, Verdict::Next, "{error:?}");
            assert_eq!(outcome.bytes, right.bytes(), "{error:?}");
        }
    };
    let quoted = |packet: &Packet, from: Address, kept| -> Vec<_> {
        errors::quoted(packet)
            .iter()
            .map(|packet| about(from, packet, TOO_BIG, kept))
            .collect()
    };
    for kept in [8, 20, 200] {
        let there = quoted(&sent().sent_from(egress), ROUTER, kept);
        for (error, right) in there.into_iter().zip(quoted(&sent(), ROUTER, kept)) {
            compare(error, right, Hook::UplinkIngress);
        }
        let packet = received(egress);
        let here = quoted(&packet.clone().sent_to(INSIDE), STRANGER, kept);
        for (error, right) in here.into_iter().zip(quoted(&packet, egress.0, kept)) {
            compare(error, right, Hook::UplinkEgress);
        }
    }
}

#[test]
fn nat_4_an_error_from_inside_leaves_from_the_flows_egress_ip() {
    for slices in [u32::MAX, 1 << 3] {
        let Some((plane, egress)) = connected(slices) else {
            return;
        };
        let packet = received(egress);
        plane.arrives(&packet, INSIDE);
        let datagram = Packet::udp(INSIDE, ORIGIN, b"query");
        let answer = Packet::udp(ORIGIN, plane.leaves(&datagram), &[9; 700]);
        plane.arrives(&answer, INSIDE);
        let entered = |mark| Meta {
            mark,
            ingress: INSIDE_INTERFACE,
            ..Meta::default()
        };
        for packet in [packet, answer] {
            // The inside itself; a router of its zone; one of no zone; this host, with an address of its own.
            leaves(&plane, INSIDE.0, &packet, INSIDE, Meta::default());
            let zone = entered(tagged(0xffff_0000, crate::world::ZONE));
            leaves(&plane, NEARER[0], &packet, INSIDE, zone);
            let none = entered(unbound(0xffff_0000));
            leaves(&plane, NEARER[1], &packet, INSIDE, none);
            leaves(&plane, NEARER[2], &packet, INSIDE, Meta::default());
        }
        plane.consistent();
    }
}

#[test]
fn rfc_5508_req_6_an_error_neither_ends_nor_refreshes_a_flow() {
    let Some((plane, egress)) = connected(u32::MAX) else {
        return;
    };
    plane.leaves(&sent());
    plane.arrives(&received(egress), INSIDE);
    let datagram = Packet::udp(INSIDE, ORIGIN, b"query");
    let from = plane.leaves(&datagram);
    let record = |protocol| format!("{:?}", plane.slot(INSIDE, ORIGIN, protocol).unwrap());
    let before = [record(TCP), record(UDP)];
    // Time passes, so that a refreshed flow would say so.
    let now = DataPlane::now();
    crate::harness::eventually("the clock goes on", || DataPlane::now() != now);
    for kind in KINDS.iter().copied() {
        arrives(&plane, &sent(), egress, kind, 64);
        arrives(&plane, &datagram, from, kind, 8);
    }
    leaves(&plane, INSIDE.0, &received(egress), INSIDE, Meta::default());
    let answer = Packet::udp(ORIGIN, from, b"answer");
    leaves(&plane, INSIDE.0, &answer, INSIDE, Meta::default());
    assert_eq!([record(TCP), record(UDP)], before);
    assert_eq!(plane.active(egress.0, ORIGIN, TCP), 1);
    plane.consistent();
}

#[test]
fn rfc_4884_extensions_stay_as_they_are() {
    let Some((plane, egress)) = connected(1 << 3) else {
        return;
    };
    // An MPLS label stack (RFC 4950) behind 128 bytes of quote, or behind a short packet and zeros.
    let stack = [
        0x20, 0, 0x5f, 0x9c, 0, 8, 1, 1, 0x03, 0xe8, 0x11, 0x01, 0xde, 0xad, 0xbe, 0xef,
    ];
    plane.leaves(&sent());
    let short = Packet::tcp(INSIDE, ORIGIN, ACK).numbers(1_001, 9_001);
    for packet in [sent(), short] {
        let error = |packet: &Packet| {
            let error = about(ROUTER, packet, EXTENDED, 128 - HEADER);
            let Body::Icmp(_, _, _, mut payload) = error.body.clone() else {
                panic!("an ICMP message");
            };
            payload.resize(128, 0);
            payload.extend(stack);
            error.payload(&payload)
        };
        let outcome = plane.back(&error(&packet.clone().sent_from(egress)));
        assert_eq!(outcome.verdict, Verdict::Next);
        assert_eq!(outcome.bytes, error(&packet).bytes());
    }
}

#[test]
fn zone_2_an_error_about_a_realms_flow_goes_to_its_interface() {
    let zones = [20, 21];
    let world = World {
        zones: zones
            .map(|zone| (zone, ENABLED | zone_flag::REALM, POOL))
            .to_vec(),
        ..World::default()
    };
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN).numbers(5, 0);
    for zone in zones {
        let meta = Meta {
            mark: tagged(0xffff_0000, zone),
            ingress: zone + 100,
            ..Meta::default()
        };
        let outcome = plane.run(Hook::UplinkEgress, &syn, meta);
        let egress = Packet::read(&outcome.bytes).sender();
        assert!(
            plane
                .index_in(realm::of_zone(zone as u16), INSIDE, ORIGIN, TCP)
                .is_some()
        );
        let error = about(ROUTER, &syn.clone().sent_from(egress), TOO_BIG, 40);
        let outcome = plane.back(&error);
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let right = Packet {
            ttl: error.ttl - 1,
            ..about(ROUTER, &syn, TOO_BIG, 40)
        };
        assert_eq!(outcome.bytes, right.bytes());
        let last = Packet { ttl: 1, ..error };
        plane.dropped(Hook::UplinkIngress, &last, Reason::Malformed);
        // The other way: only the realm's own packets are about its flows.
        let answer = Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(900, 6);
        plane.back(&answer);
        leaves(&plane, INSIDE.0, &answer, INSIDE, meta);
        let elsewhere = about(INSIDE.0, &answer.sent_to((INSIDE.0, 9)), TOO_BIG, 8);
        plane.dropped_with(Hook::UplinkEgress, &elsewhere, meta, Reason::IcmpError);
    }
}

#[test]
fn an_error_about_a_closed_flow_arrives_while_its_port_rests() {
    let Some((plane, egress)) = connected(u32::MAX) else {
        return;
    };
    plane.leaves(&sent());
    let reset = Packet::tcp(INSIDE, ORIGIN, RST).numbers(2_302, 0);
    plane.leaves(&reset);
    assert_eq!(plane.active(egress.0, ORIGIN, TCP), 0);
    arrives(&plane, &sent(), egress, TOO_BIG, 20);
    assert_eq!(plane.active(egress.0, ORIGIN, TCP), 0);
    plane.consistent();
}
