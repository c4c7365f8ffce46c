//! CAP-5, NAT-10, NAT-11: what is refused is answered at once, and correctly.

use egress_common::key::{TCP, UDP};
use egress_common::reason::Reason;

use super::errors::Kind;
use super::{
    DataPlane, Endpoint, INSIDE, NO_PROTOCOL, OPTIONS, ORIGIN, PROHIBITED, Packet, answer_to,
    network_options, quoted,
};
use crate::harness::Hook;
use crate::packet::{ACK, Body, FIN, PSH, RST, SYN, Tcp};
use crate::world::World;

fn full() -> Option<DataPlane> {
    let plane = DataPlane::of(World::default().with_capacity(1))?;
    plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN));
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    Some(plane)
}

const LATE: Endpoint = (INSIDE.0, 50_000);

/// The RST that is expected for `packet`.
fn reset(packet: &Packet, sequence: u32, acknowledgment: u32, control: u8) -> Packet {
    let (from, to) = (packet.receiver(), packet.sender());
    let body = Body::Tcp(Tcp {
        source: from.1,
        destination: to.1,
        sequence,
        acknowledgment,
        control,
        ..Tcp::default()
    });
    answer_to(
        packet,
        Packet {
            body,
            ..Packet::tcp(from, to, control)
        },
    )
}

#[test]
fn cap_5_a_syn_above_the_cap_is_answered_with_the_rst_of_rfc_9293() {
    let Some(plane) = full() else {
        return;
    };
    let options = [
        2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7,
    ];
    let syn = Packet::tcp(LATE, ORIGIN, SYN).numbers(u32::MAX, 5);
    let shapes: [fn(Packet) -> Packet; 5] = [
        |packet| packet,
        |packet| Packet {
            vlans: vec![9],
            ..packet
        },
        |packet| Packet {
            options: OPTIONS[0].to_vec(),
            tos: 0x10,
            ..packet
        },
        |packet| Packet {
            options: OPTIONS[1].to_vec(),
            ..packet
        },
        |packet| Packet {
            padding: 6,
            ttl: 2,
            ..packet
        },
    ];
    for packet in [syn.clone(), syn.clone().with_options(&options)] {
        for shape in shapes {
            let packet = shape(packet.clone());
            assert_eq!(plane.answered(&packet), reset(&packet, 0, 0, RST | ACK));
        }
    }
    // SEG.LEN counts data and both control bits.
    let odd = Packet::tcp(LATE, ORIGIN, SYN | FIN)
        .numbers(10, 0)
        .payload(b"12345");
    assert_eq!(plane.answered(&odd), reset(&odd, 0, 17, RST | ACK));
    assert_eq!(plane.reason(Reason::CapReached), 11);
    plane.consistent();
}

#[test]
fn cap_5_udp_above_the_cap_is_answered_administratively_prohibited() {
    let Some(plane) = full() else {
        return;
    };
    for length in [0, 1, 8, 9, 1_000] {
        for options in network_options(UDP) {
            let packet = Packet {
                options,
                ..Packet::udp(LATE, ORIGIN, &vec![0x5a; length])
            };
            check_unreachable(&plane, &packet, PROHIBITED);
        }
    }
    let refused = 5 * network_options(UDP).len() as u64;
    assert_eq!(plane.reason(Reason::CapReached), refused);
}

#[test]
fn safe_1_a_protocol_that_cannot_be_translated_is_answered_protocol_unreachable() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for protocol in [2, 41, 47, 50, 132, 255] {
        for payload in [&b""[..], b"4444", b"88888888", b"more than eight bytes"] {
            check_unreachable(
                &plane,
                &Packet::other(INSIDE.0, ORIGIN.0, protocol, payload),
                NO_PROTOCOL,
            );
        }
    }
    assert_eq!(plane.reason(Reason::Protocol), 24);
    assert_eq!(plane.free(), 1_024);
}

fn check_unreachable(plane: &DataPlane, packet: &Packet, (kind, code, rest): Kind) {
    let answer = plane.answered(packet);
    let sent = packet.ip_bytes();
    let mut expected = Packet::icmp(packet.destination, packet.source, kind, code, &[]);
    expected.body = Body::Icmp(kind, code, rest, sent[..quoted(packet)].to_vec());
    assert_eq!(answer, answer_to(packet, expected));
}

#[test]
fn nat_10_a_segment_without_a_flow_is_answered_with_rst_and_never_leaves() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let cases = [
        (ACK, (7, 0, RST)),
        (SYN | ACK, (7, 0, RST)),
        (FIN | ACK | PSH, (7, 0, RST)),
        (0, (0, 100 + 4, RST | ACK)),
        (FIN, (0, 100 + 5, RST | ACK)),
        (PSH, (0, 100 + 4, RST | ACK)),
    ];
    for (control, (sequence, acknowledgment, answer)) in cases {
        let packet = Packet::tcp(INSIDE, ORIGIN, control)
            .numbers(100, 7)
            .payload(b"data");
        assert_eq!(
            plane.answered(&packet),
            reset(&packet, sequence, acknowledgment, answer)
        );
    }
    assert_eq!(plane.reason(Reason::NoFlow), 6);
    assert_eq!(plane.free(), 1_024);
    assert!(plane.index(INSIDE, ORIGIN, TCP).is_none());
}

#[test]
fn nat_11_a_rst_is_never_answered() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for control in [RST, RST | ACK, RST | SYN, RST | SYN | ACK, RST | FIN] {
        let packet = Packet::tcp(INSIDE, ORIGIN, control);
        plane.dropped(Hook::UplinkEgress, &packet, Reason::Unanswerable);
    }
    assert_eq!(plane.reason(Reason::NoFlow), 5);
}

#[test]
fn cap_5_refuse_drop_drops() {
    let Some(mut plane) = full() else {
        return;
    };
    plane.change(|world| world.settings.refuse_reset = 0);
    plane.dropped(
        Hook::UplinkEgress,
        &Packet::tcp(LATE, ORIGIN, SYN),
        Reason::CapReached,
    );
    plane.dropped(
        Hook::UplinkEgress,
        &Packet::udp(LATE, ORIGIN, b""),
        Reason::CapReached,
    );
    plane.dropped(
        Hook::UplinkEgress,
        &Packet::tcp(LATE, ORIGIN, ACK),
        Reason::NoFlow,
    );
    let gre = Packet::other(LATE.0, ORIGIN.0, 47, b"");
    plane.dropped(Hook::UplinkEgress, &gre, Reason::Protocol);
}

#[test]
fn nat_11_replies_are_rate_limited() {
    let Some(mut plane) = full() else {
        return;
    };
    let syn = Packet::tcp(LATE, ORIGIN, SYN);
    assert_ne!(plane.out(&syn).verdict, crate::run::Verdict::Drop);
    assert_eq!(plane.reason(Reason::ReplyLimited), 0);
    plane.no_more_replies();
    for refused in 1..=10 {
        assert_eq!(plane.out(&syn).verdict, crate::run::Verdict::Drop);
        assert_eq!(plane.reason(Reason::ReplyLimited), refused);
    }
}
