//! ICMP errors that are not believed, or about nothing of ours: dropped and counted.

use egress_common::reason::Reason;
use egress_common::settings::zone_flag;

use super::super::errors::{KINDS, NO_PORT, OTHERS, PING, TOO_BIG, TOO_LATE, later};
use super::super::{DataPlane, Endpoint, HEADER, INSIDE, ORIGIN, Packet, STRANGER, at};
use super::{ROUTER, about, arrives, connected, received, sent};
use crate::harness::Hook;
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{ENABLED, POOL, World, ZONE};

#[test]
fn rfc_5508_req_3_what_is_not_as_it_was_summed_is_dropped() {
    let Some((plane, egress)) = connected(1 << 3) else {
        return;
    };
    plane.leaves(&sent());
    let there = about(ROUTER, &sent().sent_from(egress), TOO_BIG, 548);
    let back = about(STRANGER, &received(egress).sent_to(INSIDE), TOO_BIG, 548);
    let message = 14 + HEADER;
    let quote = message + 8;
    for (hook, error) in [(Hook::UplinkIngress, there), (Hook::UplinkEgress, back)] {
        let bytes = error.bytes();
        // Any byte of the message that says nothing about which flow it is: the checksum tells.
        for at in (4..8).chain(8 + HEADER + 8..bytes.len() - message) {
            let mut bytes = bytes.clone();
            bytes[message + at] ^= 0x40;
            let count = plane.reason(Reason::IcmpChecksum);
            let outcome = plane.try_bytes(hook, &bytes, Meta::default()).unwrap();
            let what = format!("{hook:?}: byte {at} of the message");
            assert_eq!(outcome.verdict, Verdict::Drop, "{what}");
            assert_eq!(plane.reason(Reason::IcmpChecksum), count + 1, "{what}");
        }
        // The quoted header's own checksum, where it has one; the message's is right.
        let mut payload = bytes[quote..].to_vec();
        payload[8] ^= 1;
        if HEADER == 20 {
            let lies = error.clone().payload(&payload);
            plane.dropped(hook, &lies, Reason::IcmpChecksum);
        }
        // The quoted segment's is nobody's business: it stays as wrong as it was.
        let mut payload = bytes[quote..].to_vec();
        payload[HEADER + 30] ^= 1;
        let wrong = error.clone().payload(&payload);
        let outcome = plane.run(hook, &wrong, Meta::default());
        assert_eq!(outcome.verdict, Verdict::Next);
        let mut right = plane.run(hook, &error, Meta::default()).bytes;
        right[quote + HEADER + 30] ^= 1;
        Packet::read(&outcome.bytes);
        assert_eq!(outcome.bytes[quote..], right[quote..]);
    }
}

#[test]
fn rfc_5927_a_segment_that_cannot_be_under_way_is_not_believed() {
    let Some((plane, egress)) = connected(u32::MAX) else {
        return;
    };
    plane.leaves(&sent());
    plane.arrives(&received(egress), INSIDE);
    let window = 65_535u32;
    // 1,001 to 2,302 is under way to the origin, 9,001 to 10,302 to the inside.
    for (number, believed) in [
        (1_001, true),
        (2_302, true),
        (2_303, false),
        (1_001u32.wrapping_sub(window), true),
        (1_001u32.wrapping_sub(window + 1), false),
        (0x7777_7777, false),
    ] {
        let about_sent = about(
            ROUTER,
            &sent().numbers(number, 9_001).sent_from(egress),
            TOO_BIG,
            8,
        );
        let about_received = about(
            INSIDE.0,
            &received(egress)
                .numbers(number.wrapping_add(8_000), 1_001)
                .sent_to(INSIDE),
            TOO_BIG,
            8,
        );
        if believed {
            assert_eq!(plane.back(&about_sent).verdict, Verdict::Next, "{number}");
            assert_eq!(
                plane.out(&about_received).verdict,
                Verdict::Next,
                "{number}"
            );
        } else {
            plane.dropped(Hook::UplinkIngress, &about_sent, Reason::IcmpImplausible);
            plane.dropped(Hook::UplinkEgress, &about_received, Reason::IcmpImplausible);
        }
    }
    // A SYN that nobody has answered is under way.
    let syn = Packet::tcp((INSIDE.0, 41_000), ORIGIN, SYN).numbers(77, 0);
    let from = plane.leaves(&syn);
    arrives(&plane, &syn, from, TOO_LATE, 8);
    let guessed = about(ROUTER, &syn.numbers(79, 0).sent_from(from), TOO_BIG, 8);
    plane.dropped(Hook::UplinkIngress, &guessed, Reason::IcmpImplausible);
}

#[test]
fn rfc_5508_req_4_an_error_about_no_flow_is_dropped() {
    let Some((plane, egress)) = connected(u32::MAX) else {
        return;
    };
    let other = (egress.0, egress.1 + 1);
    for packet in [
        Packet::tcp(other, ORIGIN, ACK),
        Packet::tcp(egress, (ORIGIN.0, 80), ACK),
        Packet::udp(egress, ORIGIN, b"the port is TCP's"),
        Packet::other(egress.0, ORIGIN.0, 47, b"gre gre gre"),
        Packet::icmp(egress.0, ORIGIN.0, PING, 0, b"ping"),
        // A later fragment has no ports, whatever stands there.
        later(sent().sent_from(egress)),
    ] {
        for kind in KINDS.iter().copied() {
            let error = about(ROUTER, &packet, kind, 28);
            plane.dropped(Hook::UplinkIngress, &error, Reason::IcmpError);
        }
    }
    // Cut short, of kinds that are not translated, or to somebody else than the quoted sender.
    let known = sent().sent_from(egress);
    for kept in 0..8 {
        let error = about(ROUTER, &known, TOO_BIG, kept);
        plane.dropped(Hook::UplinkIngress, &error, Reason::IcmpError);
    }
    for kind in OTHERS.iter().copied() {
        let error = about(ROUTER, &known, (kind, 0, [0; 4]), 28);
        plane.dropped(Hook::UplinkIngress, &error, Reason::IcmpError);
    }
    let foreign = about(ROUTER, &sent(), TOO_BIG, 28).sent_to((egress.0, 0));
    plane.dropped(Hook::UplinkIngress, &foreign, Reason::IcmpError);
}

#[test]
fn rfc_5508_req_5_an_error_about_no_flow_does_not_leave_a_bound_zone() {
    let world = World {
        exempt: vec![([192, 0, 2, 99], 32)],
        ..World::default()
    };
    let Some(mut plane) = DataPlane::of(world) else {
        return;
    };
    plane.establish(INSIDE, ORIGIN, (1_000, 9_000));
    let to = |inside: Endpoint| Packet::udp(ORIGIN, inside, b"nobody asked");
    let error = about(INSIDE.0, &to(INSIDE), NO_PORT, 8);
    plane.dropped(Hook::UplinkEgress, &error, Reason::IcmpError);
    // Nor does one about a flow that goes to somebody else than its origin, whoever sends it.
    for from in [INSIDE.0, STRANGER] {
        let tells = about(from, &received(INSIDE), TOO_BIG, 28).sent_to((at([192, 0, 2, 8]), 0));
        plane.dropped(Hook::UplinkEgress, &tells, Reason::IcmpError);
    }
    // What is nobody's passes, and what is about packets that take the default egress does too.
    plane.passes(&about(STRANGER, &to((STRANGER, 9)), NO_PORT, 8));
    let exempt = Packet::udp((at([192, 0, 2, 99]), 53), INSIDE, b"answer");
    plane.passes(&about(INSIDE.0, &exempt, NO_PORT, 8));
    plane.change(|world| world.zones = vec![(ZONE, ENABLED & !zone_flag::UDP, POOL)]);
    plane.passes(&about(INSIDE.0, &to(INSIDE), NO_PORT, 8));
    let segment = Packet::tcp(ORIGIN, (INSIDE.0, 9), ACK);
    let error = about(INSIDE.0, &segment, TOO_BIG, 8);
    plane.dropped(Hook::UplinkEgress, &error, Reason::IcmpError);
}

#[test]
fn an_error_of_any_length_is_summed_and_a_longer_one_is_none() {
    let Some((plane, egress)) = connected(1 << 3) else {
        return;
    };
    let packet = sent().payload(&[0x77; 2_100]);
    plane.leaves(&sent());
    // With the ICMP header and the quoted network header: 510, 511, 512, 513, ... 2,048 bytes.
    for length in [510, 511, 512, 513, 1_023, 1_024, 1_025, 2_047, 2_048] {
        arrives(&plane, &packet, egress, TOO_BIG, length - 8 - HEADER);
    }
    let error = about(
        ROUTER,
        &packet.sent_from(egress),
        TOO_BIG,
        2_049 - 8 - HEADER,
    );
    plane.dropped(Hook::UplinkIngress, &error, Reason::Malformed);
}
