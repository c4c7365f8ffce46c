//! NAT-6: fragments leave and arrive in any order, and nothing of a zone leaves that is not translated.

mod six;

use std::time::{Duration, Instant};

use egress_common::fragment::{DATAGRAMS, Datagram, FRAME, LIFETIME, WINDOW};
use egress_common::key::{TCP, UDP};
use egress_common::reason::Reason;
use egress_common::settings::MarkSelector;

use crate::harness::{DataPlane, Hook, done, eventually};
use crate::loopback::{Loopback, Sent};
use crate::packet::{ACK, Endpoint, PSH, Packet, SYN};
use crate::pieces::{MORE, cut, cut_for_ethernet, reassemble};
use crate::run::{Meta, Outcome, Verdict};
use crate::seed::{Random, cases};
use crate::world::{EGRESS, INSIDE, ORIGIN, STRANGER, World, ZONE};

const LINK: usize = 14;
/// The second inside host.
const NEIGHBOUR: Endpoint = ([10, 1, 0, 3], 40_000);

/// `length` bytes that differ.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|nth| (nth * 7 + nth / 256) as u8).collect()
}

/// A datagram from the inside, with an identification.
fn datagram(from: Endpoint, id: u16, length: usize) -> Packet {
    Packet {
        id,
        fragment: 0,
        ..Packet::udp(from, ORIGIN, &bytes(length))
    }
}

#[track_caller]
fn out(plane: &DataPlane, frame: &[u8]) -> Outcome {
    plane
        .try_bytes(Hook::UplinkEgress, frame, Meta::default())
        .expect("a frame the kernel takes")
}

#[track_caller]
fn back(plane: &DataPlane, frame: &[u8]) -> Outcome {
    let meta = Meta {
        summed: true,
        ..Meta::default()
    };
    plane
        .try_bytes(Hook::UplinkIngress, frame, meta)
        .expect("a frame the kernel takes")
}

/// A fragment leaves or arrives translated: its bytes.
#[track_caller]
fn passes(outcome: Outcome) -> Vec<u8> {
    let head = outcome.bytes.get(..64).unwrap_or(&outcome.bytes);
    assert_eq!(outcome.verdict, Verdict::Next, "{head:02x?}");
    outcome.bytes
}

/// A fragment is dropped for this reason.
#[track_caller]
fn refused(plane: &DataPlane, hook: Hook, frame: &[u8], reason: Reason) {
    let before = plane.reason(reason);
    let outcome = plane.try_bytes(hook, frame, Meta::default()).unwrap();
    assert_eq!(outcome.verdict, Verdict::Drop);
    assert_eq!(
        plane.reason(reason),
        before + 1,
        "{:?}",
        plane.all_reasons()
    );
}

/// A later fragment is held: it goes nowhere, and that is no drop.
#[track_caller]
fn held(plane: &DataPlane, hook: Hook, frame: &[u8]) {
    let before = plane.all_reasons();
    let outcome = plane.try_bytes(hook, frame, Meta::default()).unwrap();
    assert_eq!(outcome.verdict, Verdict::Redirect);
    assert_eq!(plane.all_reasons(), before);
}

/// All fragments leave, in order; the datagram they make.
#[track_caller]
fn leaves(plane: &DataPlane, frames: &[Vec<u8>]) -> Packet {
    let left: Vec<Vec<u8>> = frames
        .iter()
        .map(|frame| {
            let outcome = out(plane, frame);
            assert_eq!(outcome.mark, done(plane.world.mark_mask));
            passes(outcome)
        })
        .collect();
    reassemble(&left, LINK)
}

/// The same datagram, but for the identification it was given.
fn with_id(packet: &Packet, id: u16) -> Packet {
    Packet {
        id,
        ..packet.clone()
    }
}

/// Every order of `n` things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![Vec::new()];
    }
    orders(n - 1)
        .into_iter()
        .flat_map(|order| {
            (0..n).map(move |at| {
                let mut order = order.clone();
                order.insert(at, n - 1);
                order
            })
        })
        .collect()
}

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
        let mut arrived = Vec::new();
        let before = order.iter().position(|nth| *nth == 0).unwrap();
        for nth in &order[..before] {
            held(&plane, Hook::UplinkIngress, &frames[*nth]);
        }
        if before == 0 {
            arrived.push(passes(back(&plane, &frames[0])));
        } else {
            // All of them arrive again as they were, the first one first.
            let hook = Hook::UplinkIngress;
            let outcome = plane.try_bytes(hook, &frames[0], Meta::default()).unwrap();
            assert_eq!(outcome.verdict, Verdict::Redirect, "{order:?}");
            let again = wire.frames(Sent::In, before + 1);
            assert_eq!(again[0], frames[0]);
            for frame in &again {
                assert!(frames.contains(frame), "{order:?}: {frame:02x?}");
                arrived.push(passes(back(&plane, frame)));
            }
        }
        for nth in &order[before + 1..] {
            arrived.push(passes(back(&plane, &frames[*nth])));
        }
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
fn nat_6_duplicates_are_dropped_alone() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let packet = datagram(INSIDE, 3, 4_000);
    let frames = cut_for_ethernet(&packet);
    let mut left = vec![passes(out(&plane, &frames[0]))];
    refused(
        &plane,
        Hook::UplinkEgress,
        &frames[0],
        Reason::FragmentDuplicate,
    );
    left.push(passes(out(&plane, &frames[1])));
    refused(
        &plane,
        Hook::UplinkEgress,
        &frames[1],
        Reason::FragmentDuplicate,
    );
    // A part of what was seen, too: a receiver could take either.
    let part = cut(&packet, &[1_480, 80, 80])[2].clone();
    refused(&plane, Hook::UplinkEgress, &part, Reason::FragmentDuplicate);
    left.push(passes(out(&plane, &frames[2])));
    refused(
        &plane,
        Hook::UplinkEgress,
        &frames[2],
        Reason::FragmentDuplicate,
    );
    let left = reassemble(&left, LINK);
    assert_eq!(
        left,
        with_id(&packet.sent_from((EGRESS, INSIDE.1)), left.id)
    );
}

#[test]
fn nat_6_overlaps_end_a_datagram() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"query"));
    let answer = |id| Packet {
        id,
        fragment: 0,
        ..Packet::udp(ORIGIN, egress, &bytes(4_000))
    };
    for (hook, way) in [(Hook::UplinkEgress, 0), (Hook::UplinkIngress, 1)] {
        let of = |id| match way {
            0 => datagram(INSIDE, id, 4_000),
            _ => answer(id),
        };
        // Behind the first one; across two; and a second end.
        for (id, overlapping) in [
            (10, cut(&of(10), &[1_472, 1_480])[1].clone()),
            (11, cut(&of(11), &[1_472, 2_000])[1].clone()),
            (12, cut(&of(12), &[1_480, 1_480, 8])[3].clone()),
        ] {
            let frames = cut_for_ethernet(&of(id));
            let seen: &[usize] = if id == 12 { &[0, 1, 2] } else { &[0] };
            if id == 12 {
                // The end lies behind the end that was seen.
                let short = Packet {
                    id,
                    ..of(id).payload(&bytes(3_000))
                };
                passes(plane.try_bytes(hook, &frames[0], Meta::default()).unwrap());
                let last = cut_for_ethernet(&short)[2].clone();
                passes(plane.try_bytes(hook, &last, Meta::default()).unwrap());
            } else {
                for nth in seen {
                    passes(
                        plane
                            .try_bytes(hook, &frames[*nth], Meta::default())
                            .unwrap(),
                    );
                }
            }
            refused(&plane, hook, &overlapping, Reason::FragmentOverlap);
            // Whatever else comes of it is dropped.
            for frame in &frames {
                refused(&plane, hook, frame, Reason::FragmentRefused);
            }
        }
        // Overlaps among held ones.
        let frames = cut_for_ethernet(&of(20));
        held(&plane, hook, &frames[1]);
        let overlapping = cut(&of(20), &[1_488, 1_480])[1].clone();
        refused(&plane, hook, &overlapping, Reason::FragmentOverlap);
        refused(&plane, hook, &frames[0], Reason::FragmentRefused);
    }
}

#[test]
fn nat_6_fragments_that_no_datagram_has_are_dropped() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"query"));
    let free = plane.free();
    for (hook, from, to) in [
        (Hook::UplinkEgress, INSIDE, ORIGIN),
        (Hook::UplinkIngress, ORIGIN, egress),
    ] {
        let raw = |protocol, fragment, payload: &[u8]| Packet {
            fragment,
            ..Packet::other(from.0, to.0, protocol, payload)
        };
        let udp = Packet::udp(from, to, &bytes(64)).ip_bytes()[20..].to_vec();
        let tcp = Packet::tcp(from, to, SYN).with_options(&[1; 20]).ip_bytes()[20..].to_vec();
        for packet in [
            // RFC 1858: the first one without ports, or without the whole transport header.
            raw(17, MORE, b""),
            raw(17, MORE, &udp[..4]),
            raw(6, MORE, &tcp[..8]),
            raw(6, MORE, &tcp[..16]),
            raw(6, MORE, &tcp[..32]),
            // Empty, uneven, and behind the end of the longest datagram (the ping of death).
            raw(17, 0x2010, b""),
            raw(17, 0x0010, b""),
            raw(17, 0x2010, b"seven b"),
            raw(17, 0x1fff, &[0; 8]),
            raw(17, 0x1ffd, &[0; 100]),
            raw(17, 0x3fff, &[0; 1_480]),
        ] {
            refused(&plane, hook, &packet.bytes(), Reason::FragmentMalformed);
        }
        // A length field that says less than is there.
        let mut lying = udp.clone();
        lying[5] = 16;
        let lying = raw(17, MORE, &lying);
        refused(&plane, hook, &lying.bytes(), Reason::FragmentMalformed);
    }
    assert_eq!(plane.free(), free);
    plane.consistent();
}

/// Also when they say that they belong to a datagram whose good fragments wait.
#[test]
fn nat_6_a_datagram_that_is_awaited_takes_no_malformed_fragment() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"query"));
    for (hook, from, to) in [
        (Hook::UplinkEgress, INSIDE, ORIGIN),
        (Hook::UplinkIngress, ORIGIN, egress),
    ] {
        let raw = |fragment, payload: &[u8]| Packet {
            fragment,
            ..Packet::other(from.0, to.0, 17, payload)
        };
        held(&plane, hook, &raw(0x0010, b"the last").bytes());
        for bad in [
            raw(0x2011, b""),
            raw(0x2010, b"seven b"),
            raw(0x1ffd, &[0; 100]),
        ] {
            refused(&plane, hook, &bad.bytes(), Reason::FragmentMalformed);
        }
    }
}

#[test]
fn fragments_of_nobody_and_of_other_protocols() {
    let mut world = World::default();
    world.exempt.push(([192, 0, 2, 99], 32));
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for frame in cut_for_ethernet(&datagram((STRANGER, 9), 1, 4_000))
        .iter()
        .rev()
    {
        assert_eq!(passes(out(&plane, frame)), *frame);
    }
    // However odd they are.
    for payload in [&b""[..], b"tiny"] {
        for fragment in [MORE, 0x2010, 0x3fff] {
            let odd = Packet {
                fragment,
                ..Packet::other(STRANGER, ORIGIN.0, 17, payload)
            };
            plane.passes(&odd);
        }
    }
    let exempt = Packet {
        destination: [192, 0, 2, 99],
        ..datagram(INSIDE, 1, 4_000)
    };
    for frame in cut_for_ethernet(&exempt).iter().rev() {
        assert_eq!(passes(out(&plane, frame)), *frame);
    }
    for protocol in [1, 47, 132] {
        for fragment in [MORE, 0x2010, 0x0010] {
            let packet = Packet {
                fragment,
                ..Packet::other(INSIDE.0, ORIGIN.0, protocol, &[8; 64])
            };
            plane.dropped(Hook::UplinkEgress, &packet, Reason::Fragment);
            let packet = Packet {
                fragment,
                ..Packet::other(ORIGIN.0, EGRESS, protocol, &[8; 64])
            };
            plane.dropped(Hook::UplinkIngress, &packet, Reason::Fragment);
        }
    }
    // One that claims an egress IP.
    let claiming = datagram((EGRESS, 9), 1, 4_000);
    for frame in cut_for_ethernet(&claiming) {
        refused(&plane, Hook::UplinkEgress, &frame, Reason::ClaimsEgressIp);
    }
}

#[test]
fn nat_6_fragments_of_a_refused_or_unknown_datagram_never_leave() {
    let Some(plane) = DataPlane::of(World::default().with_capacity(1)) else {
        return;
    };
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"the one connection"));
    let frames = cut_for_ethernet(&datagram(NEIGHBOUR, 1, 4_000));
    assert_eq!(out(&plane, &frames[0]).verdict, Verdict::Redirect);
    for frame in &frames[1..] {
        refused(&plane, Hook::UplinkEgress, frame, Reason::FragmentRefused);
    }
    // Nobody asked for these.
    let unsolicited = Packet::udp(ORIGIN, (EGRESS, 9), &bytes(4_000));
    let frames = cut_for_ethernet(&Packet {
        fragment: 0,
        ..unsolicited
    });
    held(&plane, Hook::UplinkIngress, &frames[1]);
    refused(&plane, Hook::UplinkIngress, &frames[0], Reason::Unsolicited);
    held(&plane, Hook::UplinkIngress, &frames[2]);
    plane.consistent();
}

#[test]
fn nat_6_a_first_fragment_that_is_dropped_opens_no_flow() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let free = plane.free();
    let frames = cut_for_ethernet(&datagram(INSIDE, 1, 4_000));
    held(&plane, Hook::UplinkEgress, &frames[1]);
    let overlapping = cut(&datagram(INSIDE, 1, 4_000), &[1_488])[0].clone();
    let hook = Hook::UplinkEgress;
    refused(&plane, hook, &overlapping, Reason::FragmentOverlap);
    refused(&plane, hook, &frames[0], Reason::FragmentRefused);
    assert_eq!(plane.free(), free);
    assert_eq!(plane.active(EGRESS, ORIGIN, UDP), 0);
    plane.consistent();
}

#[test]
fn nat_6_fragments_end_with_their_flow() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    let frames = cut_for_ethernet(&datagram(INSIDE, 1, 4_000));
    let egress = Packet::udp(ORIGIN, (EGRESS, INSIDE.1), &bytes(4_000));
    let answers = cut_for_ethernet(&Packet {
        fragment: 0,
        ..egress
    });
    passes(out(&plane, &frames[0]));
    passes(back(&plane, &answers[0]));
    // The flow ends and another one takes its slot.
    let mut slot = plane.slot(INSIDE, ORIGIN, UDP).unwrap();
    let index = plane.index(INSIDE, ORIGIN, UDP).unwrap();
    slot.generation += 1;
    plane.overwrite(index, slot);
    refused(
        &plane,
        Hook::UplinkEgress,
        &frames[1],
        Reason::FragmentRefused,
    );
    refused(
        &plane,
        Hook::UplinkIngress,
        &answers[1],
        Reason::FragmentRefused,
    );
    assert_eq!(wire.rest(), vec![]);
}

#[test]
fn policy_7_fragments_to_a_resolver_follow_their_first() {
    const RESOLVER: Endpoint = ([192, 0, 2, 53], 53);
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    plane.exempt_port(RESOLVER);
    let wire = Loopback::watch();
    let to = |port, id| Packet {
        id,
        fragment: 0,
        ..Packet::udp(INSIDE, (RESOLVER.0, port), &bytes(4_000))
    };
    let frames = cut_for_ethernet(&to(RESOLVER.1, 1));
    held(&plane, Hook::UplinkEgress, &frames[1]);
    assert_eq!(out(&plane, &frames[0]).verdict, Verdict::Redirect);
    let mut left = wire.frames(Sent::Out, 2);
    left.push(passes(out(&plane, &frames[2])));
    assert_eq!(reassemble(&left, LINK), to(RESOLVER.1, 1));
    // To another port of the same address it is translated.
    let left = leaves(&plane, &cut_for_ethernet(&to(54, 2)));
    assert_eq!(left.source, EGRESS);
}

#[test]
fn zone_2_fragments_of_a_marked_packet_keep_its_zone() {
    let world = World {
        marks: vec![MarkSelector {
            mask: 0xff,
            value: 0x42,
            zone: ZONE,
        }],
        ..World::default()
    };
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let wire = Loopback::watch();
    let meta = Meta {
        mark: 0x42,
        ..Meta::default()
    };
    let packet = datagram((STRANGER, 40_000), 1, 2_000);
    let frames = cut_for_ethernet(&packet);
    for frame in frames.iter().rev() {
        let outcome = plane.try_bytes(Hook::UplinkEgress, frame, meta).unwrap();
        assert_eq!(outcome.verdict, Verdict::Redirect);
    }
    let left = reassemble(&wire.frames(Sent::Out, 2), LINK);
    assert_eq!(left, with_id(&packet.sent_from((EGRESS, 40_000)), left.id));
}

#[test]
fn rfc_6864_two_hosts_with_one_identification_leave_with_two() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let mut seen = std::collections::HashSet::new();
    let mut first = Vec::new();
    for host in [INSIDE, NEIGHBOUR] {
        for id in 0..200 {
            let frames = cut_for_ethernet(&datagram(host, id, 2_000));
            let left = leaves(&plane, &frames);
            assert!(seen.insert(left.id), "{} came twice", left.id);
            first.push(left.id);
        }
    }
    // One after the other, from where nobody can tell: as far apart as 16 bits allow.
    assert!(
        first
            .windows(2)
            .all(|pair| pair[1] == pair[0].wrapping_add(1))
    );
    let other = Packet {
        destination: [192, 0, 2, 8],
        ..datagram(INSIDE, 0, 2_000)
    };
    let left = leaves(&plane, &cut_for_ethernet(&other));
    assert_ne!(left.id, first[399].wrapping_add(1));
}

#[test]
fn nat_6_what_cannot_be_held_is_dropped_and_counted() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let packet = datagram(INSIDE, 1, 9_000);
    let long = cut(&packet, &[1_480, FRAME / 8 * 8])[1].clone();
    assert!(long.len() > FRAME);
    refused(&plane, Hook::UplinkEgress, &long, Reason::FragmentsFull);
    // After the first one it may be of any length.
    let packet = datagram(INSIDE, 2, 9_000);
    let left = leaves(&plane, &cut(&packet, &[1_480, 2_800, 2_800, 2_800]));
    assert_eq!(
        left,
        with_id(&packet.sent_from((EGRESS, INSIDE.1)), left.id)
    );
}

#[test]
fn nat_6_later_fragments_without_a_first_take_bounded_room_and_leave_others_theirs() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    // Other hosts wait for their first fragments.
    let hosts: Vec<Packet> = (0..32)
        .map(|host| datagram(([10, 1, 1, host], 40_000), 7, 2_000))
        .collect();
    for packet in &hosts {
        held(&plane, Hook::UplinkEgress, &cut_for_ethernet(packet)[1]);
    }
    // One host sends later fragments only, for less time than the others wait.
    let began = Instant::now();
    let mut sent = 0;
    for id in 0..20_000 {
        if began.elapsed() > Duration::from_secs(2) {
            break;
        }
        sent += 1;
        let frame = cut(&datagram(INSIDE, id, 16), &[8])[1].clone();
        assert_eq!(out(&plane, &frame).verdict, Verdict::Redirect);
    }
    let lost = plane.reason(Reason::FragmentsFull);
    assert!(sent > 4 * u64::from(WINDOW), "{sent} are no flood");
    assert!(lost >= sent - 2 * u64::from(WINDOW), "{lost} of {sent}");
    let mut kept = 0;
    for packet in &hosts {
        let outcome = out(&plane, &cut_for_ethernet(packet)[0]);
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let sent = wire.rest().into_iter();
        let left: Vec<Vec<u8>> = sent
            .filter(|(sent, _)| *sent == Sent::Out)
            .map(|(_, bytes)| bytes)
            .collect();
        if left.len() == 2 {
            assert_eq!(reassemble(&left, LINK).source, EGRESS);
            kept += 1;
        }
    }
    // All but those whose source happens to share the window: one in sixteen.
    assert!(kept >= 24, "{kept} of 32");
    println!("{kept} of 32 hosts kept their fragments; {lost} of {sent} found no room");
}

#[test]
fn nat_6_a_flood_of_first_fragments_does_not_stop_others() {
    let Some(plane) = DataPlane::of(World::default().with_flows(4_096)) else {
        return;
    };
    // Others send long datagrams while one host sends nothing but first fragments.
    let hosts: Vec<Packet> = (0..64)
        .map(|host| datagram(([10, 1, 1, host], 40_000), 7, 60_000))
        .collect();
    let frames: Vec<Vec<Vec<u8>>> = hosts.iter().map(cut_for_ethernet).collect();
    let mut left = vec![Vec::new(); hosts.len()];
    let mut id = 0;
    for nth in 0..frames[0].len() {
        for (frames, left) in frames.iter().zip(&mut left) {
            left.push(passes(out(&plane, &frames[nth])));
        }
        // Not longer than others' datagrams are remembered, where the machine is slow.
        let burst = Instant::now();
        for _ in 0..1_000 {
            if burst.elapsed() > Duration::from_secs(1) {
                break;
            }
            let frame = cut(&datagram(INSIDE, id, 16), &[8])[0].clone();
            passes(out(&plane, &frame));
            id += 1;
        }
    }
    for (packet, frames) in hosts.iter().zip(&left) {
        let left = reassemble(frames, LINK);
        assert_eq!(left.payload_length(), packet.payload_length());
    }
    let mut records = plane.datagrams();
    assert_eq!(records.len(), DATAGRAMS);
    records.retain(|record: &Datagram<[u8; 4]>| record.key.source == INSIDE.0);
    println!(
        "{} of {DATAGRAMS} records after {id} first fragments",
        records.len()
    );
    // And new ones get through.
    let left = leaves(&plane, &cut_for_ethernet(&datagram(NEIGHBOUR, 1, 60_000)));
    assert_eq!(left.source, EGRESS);
}

#[test]
fn nat_6_whoever_waits_in_vain_is_counted_and_makes_room() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    let frames = cut_for_ethernet(&datagram(INSIDE, 1, 4_000));
    held(&plane, Hook::UplinkEgress, &frames[1]);
    held(&plane, Hook::UplinkEgress, &frames[2]);
    assert_eq!(plane.buffers().len(), 2);
    plane.arm();
    plane.rewind(LIFETIME - 1_000_000_000);
    let ticks = plane.progress().ticks;
    eventually("a whole sweep", || plane.progress().ticks > ticks + 20);
    assert_eq!(plane.buffers().len(), 2, "not yet");
    plane.rewind(LIFETIME);
    eventually("both are counted", || {
        plane.reason(Reason::FragmentNoFirst) == 2
    });
    assert_eq!(plane.buffers(), vec![]);
    // The first one finds nobody.
    assert_eq!(out(&plane, &frames[0]).verdict, Verdict::Redirect);
    let sent = wire.rest();
    assert_eq!(
        sent.iter().filter(|(sent, _)| *sent == Sent::Out).count(),
        1
    );
}

#[test]
fn nat_6_random_datagrams_arrive_whole_or_not_at_all() {
    if !crate::harness::permitted() {
        return;
    }
    let mut random = Random::announced("fragments");
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    for case in 0..cases(400) {
        let id = random.number() as u16;
        let port = 20_000 + (case % 40_000) as u16;
        let length = 1 + random.below(6_000) as usize;
        let packet = datagram(([10, 1, 3, case as u8], port), id, length);
        let mut frames = Vec::new();
        let mut sizes = vec![(1 + random.below(100) as usize) * 8];
        sizes.extend((0..40).map(|_| (1 + random.below(60) as usize) * 8));
        let honest = cut(&packet, &sizes);
        // Some twice, some out of place.
        for frame in &honest {
            frames.push(frame.clone());
            if random.once_in(6) {
                frames.push(frame.clone());
            }
        }
        for _ in 0..random.below(8) {
            let (a, b) = (
                random.below(frames.len() as u64),
                random.below(frames.len() as u64),
            );
            frames.swap(a as usize, b as usize);
        }
        let mut left = Vec::new();
        for frame in &frames {
            let outcome = out(&plane, frame);
            if outcome.verdict == Verdict::Next {
                left.push(outcome.bytes);
            }
        }
        // What was released is on the wire by now, and what else came in meanwhile.
        let sent = wire
            .rest()
            .into_iter()
            .filter(|(sent, _)| *sent == Sent::Out);
        left.extend(sent.map(|(_, bytes)| bytes));
        let all = honest.len();
        if all == 1 {
            // Not a fragment: every copy leaves.
            assert!(
                left.iter()
                    .all(|frame| <Packet>::read(frame).source == EGRESS)
            );
            continue;
        }
        // A datagram that was complete begins anew with a late copy of its first fragment.
        let late = left.len() - all;
        assert!(left.len() >= all, "case {case}: {} of {all}", left.len());
        let first_copies = frames.iter().filter(|frame| **frame == honest[0]).count();
        assert!(late <= (first_copies - 1) * all, "case {case}: {late}");
        for frame in &left {
            assert_eq!(frame[26..30], EGRESS, "case {case}");
        }
        let mut parts = std::collections::HashMap::new();
        for frame in left {
            let id = u16::from_be_bytes([frame[18], frame[19]]);
            parts.entry(id).or_insert_with(Vec::new).push(frame);
        }
        let whole = parts.values().filter(|parts| parts.len() == all).count();
        assert!(whole >= 1, "case {case}");
        for (id, parts) in parts {
            if parts.len() == all {
                let expected = packet.clone().sent_from((EGRESS, port));
                assert_eq!(
                    reassemble(&parts, LINK),
                    with_id(&expected, id),
                    "case {case}"
                );
            }
        }
    }
    println!("{:?}", plane.all_reasons());
    assert_eq!(plane.reason(Reason::FragmentOverlap), 0);
    plane.consistent();
}

#[test]
fn nat_6_fragments_of_one_datagram_on_two_cpus() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let wire = Loopback::watch();
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"query"));
    let mut contended = 0;
    let mut spoilt = 0;
    for id in 0..1_000 {
        let packet = datagram(INSIDE, id, 7_000);
        let frames = cut_for_ethernet(&packet);
        let (plane, frames) = (&plane, &frames);
        let mut left: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let workers: Vec<_> = [[0, 2, 4], [1, 3, 5]]
                .map(|nths: [usize; 3]| {
                    scope.spawn(move || {
                        nths.into_iter()
                            .filter_map(|nth| frames.get(nth))
                            .map(|frame| out(plane, frame))
                            .filter(|outcome| outcome.verdict == Verdict::Next)
                            .map(|outcome| outcome.bytes)
                            .collect::<Vec<_>>()
                    })
                })
                .into_iter()
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect()
        });
        let before = std::mem::replace(&mut contended, plane.reason(Reason::Contended));
        if contended != before {
            // A virtual CPU was stopped while it had the lock: what the other one brought meanwhile is lost.
            spoilt += 1;
            wire.rest();
            continue;
        }
        let missing = frames.len() - left.len();
        left.extend(wire.frames(Sent::Out, missing));
        let left = reassemble(&left, LINK);
        assert_eq!(
            left,
            with_id(&packet.sent_from((EGRESS, INSIDE.1)), left.id)
        );
    }
    assert!(
        spoilt <= 100,
        "{spoilt} of 1,000 datagrams lost a fragment to the lock"
    );
    let mut reasons = plane.all_reasons();
    reasons.retain(|(reason, _)| *reason != Reason::Contended);
    assert_eq!(reasons, vec![]);
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
