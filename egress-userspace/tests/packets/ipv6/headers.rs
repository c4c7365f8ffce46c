//! Extension headers: passed within bounds, kept as they are, and refused where nobody can translate.

use egress_common::family::V6;
use egress_common::reason::Reason;

use super::{DataPlane, usual};
use crate::harness::Hook;
use crate::packet::{ACK, Body, Packet, SYN};
use crate::world::{INSIDE6, ORIGIN6};

/// Extension headers in front of `protocol`: number, length in units of eight beyond the first.
fn chain(headers: &[(u8, u8)], protocol: u8) -> Vec<u8> {
    let mut bytes = vec![headers[0].0];
    for (nth, (_, units)) in headers.iter().enumerate() {
        let next = headers.get(nth + 1).map_or(protocol, |(number, _)| *number);
        let mut header = vec![0; (usize::from(*units) + 1) * 8];
        // A padding option fills each.
        (header[0], header[1], header[2]) = (next, *units, 1);
        header[3] = 0;
        bytes.extend(header);
    }
    bytes
}

fn with(headers: &[(u8, u8)], packet: Packet<V6>) -> Packet<V6> {
    Packet {
        options: chain(headers, packet.protocol),
        ..packet
    }
}

#[test]
fn nat_1_extension_headers_are_passed_and_stay_as_they_are() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let chains: [&[(u8, u8)]; 6] = [
        &[(0, 0)],
        &[(60, 0)],
        &[(0, 1), (60, 2), (43, 0), (60, 0)],
        &[(60, 31)],
        &[(60, 15), (60, 15)],
        &[
            (60, 0),
            (60, 0),
            (60, 0),
            (60, 0),
            (60, 0),
            (60, 0),
            (60, 0),
            (60, 0),
        ],
    ];
    for (nth, headers) in chains.into_iter().enumerate() {
        let from = (INSIDE6.0, 2_000 + nth as u16);
        let syn = with(headers, Packet::tcp(from, ORIGIN6, SYN).numbers(7, 0));
        let egress = plane.leaves(&syn);
        assert_eq!(egress.1, from.1);
        let answer = with(
            headers,
            Packet::tcp(ORIGIN6, egress, SYN | ACK).numbers(70, 8),
        );
        plane.arrives(&answer, from);
        let query = with(headers, Packet::udp(from, ORIGIN6, b"query"));
        assert_eq!(plane.leaves(&query), egress);
    }
}

#[test]
fn safe_1_what_cannot_be_passed_is_refused_as_an_unknown_next_header() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    // ESP, AH, none, mobility, SCTP; and where they stand behind an option header.
    for protocol in [50, 51, 59, 135, 132] {
        let plain = Packet::other(INSIDE6.0, ORIGIN6.0, protocol, &[0; 24]);
        let before = plane.reason(Reason::Protocol);
        let answer = plane.answered(&plain);
        assert_eq!(
            answer.body,
            Body::Icmp(4, 1, [0, 0, 0, 6], plain.ip_bytes())
        );
        assert_eq!(plane.reason(Reason::Protocol), before + 1);
        let behind = with(&[(60, 0)], plain);
        let answer = plane.answered(&behind);
        assert_eq!(
            answer.body,
            Body::Icmp(4, 1, [0, 0, 0, 40], behind.ip_bytes())
        );
        assert_eq!(
            answer.options.len(),
            9,
            "the answer keeps its transport where it was"
        );
    }
    let tcp = Packet::tcp(INSIDE6, ORIGIN6, SYN);
    let nine = with(&[(60, 0); 9], tcp.clone());
    let long = with(&[(60, 32)], tcp.clone());
    let late = with(&[(60, 0), (0, 0)], tcp.clone());
    let mut routed = with(&[(43, 2)], tcp);
    // One segment left: replies would come from there.
    routed.options[4] = 1;
    for packet in [nine, long, late, routed] {
        let answer = plane.answered(&packet);
        assert!(
            matches!(answer.body, Body::Icmp(4, 1, ..)),
            "{packet:?}: {answer:?}"
        );
    }
}

#[test]
fn safe_1_a_header_that_lies_about_its_length_is_malformed() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let mut lies = with(&[(60, 0)], Packet::udp(INSIDE6, ORIGIN6, b""));
    lies.options[2] = 9;
    plane.dropped(Hook::UplinkEgress, &lies, Reason::Malformed);
    let long = Packet {
        length: Some(999),
        ..Packet::udp(INSIDE6, ORIGIN6, b"")
    };
    plane.dropped(Hook::UplinkEgress, &long, Reason::Malformed);
}

#[test]
fn cap_5_an_answer_to_a_packet_with_extension_headers_is_right() {
    let Some(plane) = DataPlane::of(super::world(&[], 1)) else {
        return;
    };
    for units in [0, 1, 31] {
        let syn = with(&[(60, units)], Packet::tcp(INSIDE6, ORIGIN6, SYN));
        let answer = plane.answered(&syn);
        assert!(matches!(answer.body, Body::Tcp(_)));
        assert_eq!(answer.options.len(), syn.options.len());
        let query = with(&[(0, units)], Packet::udp(INSIDE6, ORIGIN6, &[7; 400]));
        let answer = plane.answered(&query);
        let Body::Icmp(1, 1, [0, 0, 0, 0], quoted) = answer.body else {
            panic!("{answer:?}");
        };
        assert_eq!(quoted, query.ip_bytes()[..304], "as much as fits");
    }
}
