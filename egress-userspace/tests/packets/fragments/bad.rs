//! Fragments that repeat, overlap, or belong to no datagram.

use egress_common::reason::Reason;

use super::{LINK, bytes, datagram, held, out, passes, refused, with_id};
use crate::harness::{DataPlane, Hook};
use crate::packet::{Packet, SYN};
use crate::pieces::{MORE, cut, cut_for_ethernet, reassemble};
use crate::run::Meta;
use crate::world::{EGRESS, INSIDE, ORIGIN, STRANGER, World};

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
