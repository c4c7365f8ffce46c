//! NAT-1: a flow leaves from its egress IP and its replies arrive, with every checksum right.

use egress_common::key::{TCP, UDP};
use egress_common::slot::State;

use super::{DataPlane, EGRESS, HEADER, INSIDE, OPTIONS, ORIGIN, Packet, at};
use crate::harness::Hook;
use crate::packet::{ACK, Body, PSH, SYN};
use crate::run::Meta;
use crate::world::World;

/// Where a datagram's checksum stands in a frame.
const CHECKSUM: std::ops::Range<usize> = 14 + HEADER + 6..14 + HEADER + 8;

#[test]
fn nat_1_tcp_out_and_back_with_the_port_kept() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1_000, 9_000));
    assert_eq!(
        egress,
        (EGRESS, INSIDE.1),
        "CAP-8: the client's port is kept"
    );
    let data = Packet::tcp(INSIDE, ORIGIN, ACK | PSH)
        .numbers(1_001, 9_001)
        .payload(b"GET /");
    assert_eq!(plane.leaves(&data), egress);
    let answer = Packet::tcp(ORIGIN, egress, ACK | PSH)
        .numbers(9_001, 1_006)
        .payload(b"an odd length");
    plane.arrives(&answer, INSIDE);
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(slot.word().state, State::TcpEstablished);
    assert_eq!((slot.packets_out, slot.packets_in), (3, 2));
    let bare = HEADER as u64 + 20;
    let bytes = (3 * bare + 5, 2 * bare + 13);
    assert_eq!((slot.bytes_out, slot.bytes_in), bytes);
    plane.consistent();
}

#[test]
fn nat_1_tcp_out_and_back_with_the_port_changed() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    // Somebody else has the client's port.
    let neighbour = (at([10, 1, 0, 3]), INSIDE.1);
    let taken = plane.leaves(&Packet::tcp(neighbour, ORIGIN, SYN));
    let egress = plane.establish(INSIDE, ORIGIN, (1_000, 9_000));
    assert_eq!((taken.1, egress.0), (INSIDE.1, EGRESS));
    assert_ne!(egress, taken);
    let data = Packet::tcp(INSIDE, ORIGIN, ACK | PSH)
        .numbers(1_001, 9_001)
        .payload(b"seven b");
    assert_eq!(plane.leaves(&data), egress);
    plane.consistent();
}

#[test]
fn nat_1_udp_out_and_back() {
    for slices in [u32::MAX, 1 << 1] {
        let Some(plane) = DataPlane::of(World::default().with_slices(slices)) else {
            return;
        };
        let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"query"));
        assert_eq!(plane.state(INSIDE, ORIGIN, UDP), Some(State::UdpUnanswered));
        plane.arrives(&Packet::udp(ORIGIN, egress, b"an answer"), INSIDE);
        assert_eq!(plane.state(INSIDE, ORIGIN, UDP), Some(State::UdpAnswered));
        assert_eq!(plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"")), egress);
        assert_eq!(plane.active(EGRESS, ORIGIN, UDP), 1);
        plane.consistent();
    }
}

#[test]
fn nat_1_a_udp_checksum_of_zero_stays_zero() {
    let Some(plane) = DataPlane::of(World::default().with_slices(1 << 9)) else {
        return;
    };
    let without = |packet: Packet| Packet {
        checksum: Some(0),
        ..packet
    };
    let egress = plane.leaves(&without(Packet::udp(INSIDE, ORIGIN, b"query")));
    let answer = without(Packet::udp(ORIGIN, egress, b"answer"));
    // Not summed by a device: the port is not made up for anywhere, but nobody looks at the sum of a
    // datagram without a checksum.
    let outcome = plane.run(Hook::UplinkIngress, &answer, Meta::default());
    assert_eq!(outcome.bytes, answer.sent_to(INSIDE).bytes());
}

#[test]
fn nat_1_a_udp_checksum_that_comes_out_as_zero_is_sent_as_all_ones() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    // The two payload bytes are chosen so that the translated datagram sums to 0xffff.
    let payload = (0..=u16::MAX)
        .map(u16::to_be_bytes)
        .find(|bytes| {
            let sent = Packet::udp((EGRESS, INSIDE.1), ORIGIN, bytes).bytes();
            sent[CHECKSUM] == [0xff, 0xff]
        })
        .unwrap();
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, &payload));
    let Some(back) = (0..=u16::MAX)
        .map(u16::to_be_bytes)
        .find(|bytes| Packet::udp(ORIGIN, INSIDE, bytes).bytes()[CHECKSUM] == [0xff, 0xff])
    else {
        panic!("some payload sums to all ones");
    };
    plane.arrives(&Packet::udp(ORIGIN, (EGRESS, INSIDE.1), &back), INSIDE);
}

#[test]
fn nat_1_whatever_the_packet_looks_like() {
    let Some(plane) = DataPlane::of(World::default().with_slices(1 << 9)) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let timestamps = [1, 1, 8, 10, 0, 0, 0, 9, 0, 0, 0, 8];
    let out = Packet::tcp(INSIDE, ORIGIN, ACK | PSH)
        .numbers(2, 2)
        .payload(&[0xab; 1_399])
        .with_options(&timestamps);
    let back = Packet::tcp(ORIGIN, egress, ACK)
        .numbers(2, 2)
        .with_options(&timestamps);
    let shapes: [fn(Packet) -> Packet; 5] = [
        |packet| packet,
        |packet| Packet {
            vlans: vec![100],
            ..packet
        },
        |packet| Packet {
            vlans: vec![7, 100],
            tos: 0xb8,
            ..packet
        },
        |packet| Packet {
            options: OPTIONS[0].to_vec(),
            ..packet
        },
        |packet| Packet {
            options: OPTIONS[1].to_vec(),
            padding: 6,
            ttl: 1,
            id: 0,
            ..packet
        },
    ];
    for shape in shapes {
        assert_eq!(plane.leaves(&shape(out.clone())), egress);
        plane.arrives(&shape(back.clone()), INSIDE);
    }
}

#[test]
fn nat_1_every_pair_of_numbers_keeps_its_checksum() {
    let Some(plane) = DataPlane::of(World::default().with_slices(1 << 3)) else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    for value in (0..=u16::MAX).step_by(251) {
        let payload = value.to_be_bytes();
        assert_eq!(plane.leaves(&Packet::udp(INSIDE, ORIGIN, &payload)), egress);
        plane.arrives(&Packet::udp(ORIGIN, egress, &payload), INSIDE);
    }
}

#[test]
fn a_super_packet_counts_as_the_packets_it_stands_for() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    plane.establish(INSIDE, ORIGIN, (1, 1));
    let data = Packet::tcp(INSIDE, ORIGIN, ACK)
        .numbers(2, 2)
        .payload(&[7; 3_000]);
    let meta = Meta {
        segments: (3, 1_000),
        ..Meta::default()
    };
    plane.run(Hook::UplinkEgress, &data, meta);
    assert_eq!(plane.slot(INSIDE, ORIGIN, TCP).unwrap().packets_out, 2 + 3);
}

#[test]
fn two_hosts_with_the_same_port_are_told_apart_by_the_port_they_leave_with() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let neighbour = (at([10, 1, 0, 3]), INSIDE.1);
    let first = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"one"));
    let second = plane.leaves(&Packet::udp(neighbour, ORIGIN, b"two"));
    assert_ne!(first, second);
    plane.arrives(&Packet::udp(ORIGIN, first, b"to one"), INSIDE);
    plane.arrives(&Packet::udp(ORIGIN, second, b"to two"), neighbour);
    // Another origin is another budget of ports.
    let other = (at([192, 0, 2, 8]), 443);
    assert_eq!(
        plane.leaves(&Packet::udp(neighbour, other, b"")).1,
        INSIDE.1
    );
}

#[test]
fn the_users_bits_of_the_mark_stay() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let meta = Meta {
        mark: 0x1234,
        ..Meta::default()
    };
    let outcome = plane.run(Hook::UplinkEgress, &Packet::tcp(INSIDE, ORIGIN, SYN), meta);
    assert_eq!(outcome.mark, 0xffff_1234);
    assert!(matches!(<Packet>::read(&outcome.bytes).body, Body::Tcp(_)));
}
