//! Fragments leave and arrive in every order.

use egress_common::key::{TCP, UDP};

use super::{LINK, back, bytes, datagram, held, leaves, orders, out, passes, with_id};
use crate::harness::{DataPlane, Hook};
use crate::loopback::{Loopback, Sent};
use crate::packet::{ACK, PSH, Packet, SYN};
use crate::pieces::{cut, cut_for_ethernet, reassemble};
use crate::run::{Meta, Verdict};
use crate::world::{EGRESS, INSIDE, ORIGIN, World};

#[test]
fn nat_6_fragments_in_order_leave_and_arrive() {
    let Some(plane) = DataPlane::of(World::default().with_slices(1 << 1)) else {
        return;
    };
    for (nth, length) in [1_600, 2_953, 9_000, 60_000, 65_500]
        .into_iter()
        .enumerate()
    {
        let packet = datagram(INSIDE, 0x100 + nth as u16, length);
        let frames = cut_for_ethernet(&packet);
        let left = leaves(&plane, &frames);
        assert_eq!(left.source, EGRESS);
        assert_eq!(
            left,
            with_id(&packet.clone().sent_from(left.sender()), left.id)
        );
        let answer = Packet {
            id: 0x100,
            fragment: 0,
            ..Packet::udp(ORIGIN, left.sender(), &bytes(length))
        };
        let arrived: Vec<Vec<u8>> = cut_for_ethernet(&answer)
            .iter()
            .map(|frame| passes(back(&plane, frame)))
            .collect();
        assert_eq!(reassemble(&arrived, LINK), answer.sent_to(INSIDE));
        let slot = plane.slot(INSIDE, ORIGIN, UDP).unwrap();
        assert_eq!(slot.packets_in, slot.packets_out);
        assert_eq!(slot.bytes_in, slot.bytes_out);
    }
    let slot = plane.slot(INSIDE, ORIGIN, UDP).unwrap();
    let packets: usize = [1_600usize, 2_953, 9_000, 60_000, 65_500]
        .iter()
        .map(|length| (length + 8).div_ceil(1_480))
        .sum();
    assert_eq!(slot.packets_out as usize, packets);
    assert_eq!(plane.all_reasons(), vec![]);
    plane.consistent();
}

#[test]
fn nat_6_whatever_the_fragments_look_like() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let plain = datagram(INSIDE, 1, 3_000);
    let mut packets = [
        // Fragments that must not be fragmented.
        Packet {
            fragment: 0x4000,
            ..plain.clone()
        },
        Packet {
            options: vec![7; 12],
            ..plain.clone()
        },
        Packet {
            vlans: vec![5],
            ..plain.clone()
        },
        Packet {
            checksum: Some(0),
            ..plain.clone()
        },
        Packet {
            tos: 0xb8,
            ttl: 1,
            ..plain.clone()
        },
        Packet {
            fragment: 0,
            ..Packet::tcp(INSIDE, ORIGIN, SYN).payload(&bytes(3_000))
        },
    ];
    for (nth, packet) in packets.iter_mut().enumerate() {
        packet.id = nth as u16;
        let link = LINK + 4 * packet.vlans.len();
        // A first fragment with no more than the transport header, if it may be so short.
        let shortest = if packet.protocol == 6 { 24 } else { 8 };
        let left: Vec<Vec<u8>> = cut(packet, &[shortest, 8, 800, 800])
            .iter()
            .map(|frame| passes(out(&plane, frame)))
            .collect();
        let left = reassemble(&left, link);
        assert_eq!(
            left,
            with_id(&packet.clone().sent_from((EGRESS, INSIDE.1)), left.id)
        );
    }
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 1);
    plane.consistent();
}

#[test]
fn nat_6_fragments_leave_in_every_order() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    for (nth, order) in orders(4).into_iter().enumerate() {
        let packet = datagram(INSIDE, nth as u16, 5_000);
        let frames = cut_for_ethernet(&packet);
        let mut left = Vec::new();
        let before = order.iter().position(|nth| *nth == 0).unwrap();
        for nth in &order[..before] {
            held(&plane, Hook::UplinkEgress, &frames[*nth]);
        }
        let outcome = out(&plane, &frames[0]);
        if before == 0 {
            left.push(passes(outcome));
        } else {
            // The first one and all that waited for it were sent as copies.
            assert_eq!(outcome.verdict, Verdict::Redirect, "{order:?}");
            left.extend(wire.frames(Sent::Out, before + 1));
        }
        for nth in &order[before + 1..] {
            left.push(passes(out(&plane, &frames[*nth])));
        }
        let left = reassemble(&left, LINK);
        assert_eq!(
            left,
            with_id(&packet.sent_from((EGRESS, INSIDE.1)), left.id),
            "{order:?}"
        );
    }
    assert!(wire.rest().iter().all(|(sent, _)| *sent == Sent::In));
    assert_eq!(plane.all_reasons(), vec![]);
}

#[test]
fn nat_6_fragments_arrive_in_every_order() {
    arrive_in_every_order(false);
}

/// Frames that are handed back wait in a queue: were what comes before them held as well, all would go round for ever.
#[test]
fn nat_6_what_comes_while_others_are_handed_back_is_not_held_as_well() {
    arrive_in_every_order(true);
}

/// Those behind the first one come `at_once`, or after what was held for it and handed back.
fn arrive_in_every_order(at_once: bool) {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"query"));
    let wire = Loopback::watch();
    for (nth, order) in orders(4).into_iter().enumerate() {
        let answer = Packet {
            id: nth as u16,
            fragment: 0,
            ..Packet::udp(ORIGIN, egress, &bytes(5_000))
        };
        let frames = cut_for_ethernet(&answer);
        let before = order.iter().position(|nth| *nth == 0).unwrap();
        for nth in &order[..before] {
            held(&plane, Hook::UplinkIngress, &frames[*nth]);
        }
        let mut again = vec![frames[0].clone()];
        if before > 0 {
            // All of them arrive again as they were, the first one first.
            let hook = Hook::UplinkIngress;
            let outcome = plane.try_bytes(hook, &frames[0], Meta::default()).unwrap();
            assert_eq!(outcome.verdict, Verdict::Redirect, "{order:?}");
            again = wire.frames(Sent::In, before + 1);
            assert_eq!(again[0], frames[0]);
        }
        assert!(
            again.iter().all(|frame| frames.contains(frame)),
            "{order:?}"
        );
        let mut rest: Vec<_> = order[before + 1..]
            .iter()
            .map(|nth| frames[*nth].clone())
            .collect();
        let all = if at_once && before > 0 {
            rest.append(&mut again);
            rest
        } else {
            again.append(&mut rest);
            again
        };
        let arrived: Vec<_> = all
            .iter()
            .map(|frame| passes(back(&plane, frame)))
            .collect();
        assert_eq!(
            reassemble(&arrived, LINK),
            answer.sent_to(INSIDE),
            "{order:?}"
        );
    }
    assert_eq!(wire.rest(), vec![]);
    assert_eq!(plane.all_reasons(), vec![]);
}

#[test]
fn nat_6_the_longest_datagram_leaves_backwards() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    let packet = datagram(INSIDE, 9, 65_507);
    let frames = cut_for_ethernet(&packet);
    for frame in frames[1..].iter().rev() {
        held(&plane, Hook::UplinkEgress, frame);
    }
    assert_eq!(out(&plane, &frames[0]).verdict, Verdict::Redirect);
    let left = reassemble(&wire.frames(Sent::Out, frames.len()), LINK);
    assert_eq!(
        left,
        with_id(&packet.sent_from((EGRESS, INSIDE.1)), left.id)
    );
    assert_eq!(plane.all_reasons(), vec![]);
}

#[test]
fn nat_6_a_tcp_answer_in_fragments() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1_000, 9_000));
    let answer = Packet {
        fragment: 0,
        ..Packet::tcp(ORIGIN, egress, ACK | PSH)
            .numbers(9_001, 1_001)
            .payload(&bytes(4_000))
    };
    let arrived: Vec<Vec<u8>> = cut_for_ethernet(&answer)
        .iter()
        .map(|frame| passes(back(&plane, frame)))
        .collect();
    assert_eq!(reassemble(&arrived, LINK), answer.sent_to(INSIDE));
    // What it acknowledges is more than the first fragment held.
    let ack = Packet::tcp(INSIDE, ORIGIN, ACK).numbers(1_001, 13_001);
    assert_eq!(plane.leaves(&ack), egress);
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(slot.back.ack.max(slot.out.ack), 13_001, "it is believed");
}
