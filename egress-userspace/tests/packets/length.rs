//! SAFE-1: lengths that lie, each with every value there is near the truth: a packet whose headers do not fit into it
//! is malformed, both ways, and changes nothing.

use egress_common::key::TCP;
use egress_common::reason::Reason;

use super::{COUNTED, DataPlane, EGRESS, FIRSTS, HEADER, INSIDE, ORIGIN, Packet};
use crate::harness::Hook;
use crate::packet::{ACK, Body, SYN};
use crate::run::{Meta, Verdict};

const PAYLOAD: &[u8] = b"12345678";
/// Bytes of the shortest headers.
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

/// How long the length field says that a network header with these bytes behind it is.
fn field(behind: usize) -> u16 {
    (COUNTED + behind) as u16
}

/// Numbers up to a little more than `right`, and the largest one.
fn around(right: u16) -> impl Iterator<Item = u16> {
    (0..=right + 9).chain([0x7fff, 0x8000, u16::MAX])
}

fn tcp(words: u8) -> Packet {
    let options = [1; 8];
    let mut packet = Packet::tcp(INSIDE, ORIGIN, SYN)
        .with_options(&options)
        .payload(PAYLOAD);
    packet.segment().words = Some(words);
    packet
}

fn udp(length: u16) -> Packet {
    let mut packet = Packet::udp(INSIDE, ORIGIN, PAYLOAD);
    if let Body::Udp(udp) = &mut packet.body {
        udp.length = Some(length);
    }
    packet
}

/// Packets, and whether their headers fit into them.
fn packets() -> Vec<(Packet, bool)> {
    let mut packets = Vec::new();
    let plain = Packet::tcp(INSIDE, ORIGIN, SYN).payload(PAYLOAD);
    let least = field(TCP_HEADER);
    let right = field(TCP_HEADER + PAYLOAD.len());
    for claimed in around(right) {
        let length = Some(claimed);
        // What a length leaves over is padding.
        let fits = (least..=right).contains(&claimed);
        packets.push((
            Packet {
                length,
                ..plain.clone()
            },
            fits,
        ));
    }
    let plain = udp((UDP_HEADER + PAYLOAD.len()) as u16);
    let right = field(UDP_HEADER + PAYLOAD.len());
    for claimed in around(right) {
        let length = Some(claimed);
        packets.push((
            Packet {
                length,
                ..plain.clone()
            },
            claimed == right,
        ));
    }
    for words in 0..=15 {
        let header = usize::from(words) * 4;
        let fits = (TCP_HEADER..=TCP_HEADER + 8 + PAYLOAD.len()).contains(&header);
        packets.push((tcp(words), fits));
    }
    for length in around((UDP_HEADER + PAYLOAD.len()) as u16) {
        // Super-packets say zero.
        let fits = length == 0 || (8..=16).contains(&length);
        packets.push((udp(length), fits));
    }
    for first in FIRSTS {
        let first = Some(*first);
        packets.push((Packet { first, ..tcp(7) }, false));
        packets.push((Packet { first, ..udp(16) }, false));
    }
    packets.push((
        Packet {
            vlans: vec![1, 2, 3],
            ..tcp(7)
        },
        false,
    ));
    packets
}

#[test]
fn safe_1_a_packet_that_its_headers_do_not_fit_into_does_not_leave() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let (fit, lies): (Vec<_>, Vec<_>) = packets().into_iter().partition(|(_, fits)| *fits);
    println!("{} fit, {} do not", fit.len(), lies.len());
    for (packet, _) in &lies {
        plane.dropped(Hook::UplinkEgress, packet, Reason::Malformed);
    }
    assert_eq!((plane.free(), plane.all_active()), (1_024, 0));
    // The same of flows that exist, and what does fit leaves as wrong as it is.
    let egress = (EGRESS, INSIDE.1);
    for (packet, _) in &fit {
        let outcome = plane.out(packet);
        assert_eq!(outcome.verdict, Verdict::Next, "{packet:?}");
        assert_eq!(outcome.bytes, packet.clone().sent_from(egress).bytes());
    }
    assert_eq!(plane.all_active(), 2);
    for (packet, _) in &lies {
        plane.dropped(Hook::UplinkEgress, packet, Reason::Malformed);
    }
    assert_eq!(plane.all_active(), 2);
    plane.consistent();
}

#[test]
fn safe_3_a_packet_that_its_headers_do_not_fit_into_does_not_arrive() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    assert_eq!(plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"")), egress);
    let before = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    for (packet, fits) in packets() {
        let packet = packet.sent_from(ORIGIN).sent_to(egress);
        // More tags than are looked at hide whose it is: the kernel's business.
        if !packet.vlans.is_empty() {
            continue;
        }
        if fits {
            let outcome = plane.back(&packet);
            assert_eq!(outcome.verdict, Verdict::Next, "{packet:?}");
            assert_eq!(outcome.bytes, packet.sent_to(INSIDE).bytes());
        } else {
            plane.dropped(Hook::UplinkIngress, &packet, Reason::Malformed);
        }
    }
    let after = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(
        (after.word(), after.packets_out),
        (before.word(), before.packets_out)
    );
    plane.consistent();
}

#[test]
fn safe_1_a_packet_cut_anywhere_neither_leaves_nor_arrives() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let segment = |packet: Packet| packet.numbers(2, 2).with_options(&[2, 4, 5, 180]);
    let whole = segment(Packet::tcp(INSIDE, ORIGIN, SYN)).bytes();
    for cut in 14..whole.len() {
        if let Some(outcome) = plane.try_bytes(Hook::UplinkEgress, &whole[..cut], Meta::default()) {
            assert_eq!(outcome.verdict, Verdict::Drop, "cut to {cut}");
        }
    }
    assert_eq!((plane.free(), plane.all_active()), (1_024, 0));
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let whole = segment(Packet::tcp(ORIGIN, egress, ACK)).bytes();
    let before = format!("{:?}", plane.slot(INSIDE, ORIGIN, TCP));
    for cut in 14..whole.len() {
        let Some(outcome) = plane.try_bytes(Hook::UplinkIngress, &whole[..cut], Meta::default())
        else {
            continue;
        };
        // Without a destination it is nobody's.
        let expected = if cut < 14 + HEADER {
            Verdict::Next
        } else {
            Verdict::Drop
        };
        assert_eq!(outcome.verdict, expected, "cut to {cut}");
        assert_eq!(outcome.bytes, whole[..cut], "cut to {cut}");
    }
    assert_eq!(format!("{:?}", plane.slot(INSIDE, ORIGIN, TCP)), before);
    plane.consistent();
}
