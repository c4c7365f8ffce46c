//! Fragments belong to the flow of their first one, and end with it.

use egress_common::key::UDP;
use egress_common::reason::Reason;
use egress_common::settings::{Device, MarkSelector, role};

use super::{LINK, NEIGHBOUR, back, bytes, datagram, held, leaves, out, passes, refused, with_id};
use crate::harness::{DataPlane, Hook, tagged, unbound};
use crate::loopback::{Loopback, Sent};
use crate::packet::{Endpoint, Packet};
use crate::pieces::{cut, cut_for_ethernet, reassemble};
use crate::run::{Meta, Verdict};
use crate::world::{EGRESS, INSIDE, ORIGIN, STRANGER, World, ZONE};

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

/// Behind a masquerade rule a zone's packets and nobody's have one source, and may have one identification.
#[test]
fn nat_6_nobodys_fragments_leave_beside_a_zones_that_look_the_same() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let device = Device {
        role: role::INSIDE,
        ..Device::default()
    };
    plane.hash("DEVICES", 1, device);
    let mask = plane.world.mark_mask;
    let masqueraded = datagram((STRANGER, 40_000), 7, 2_000);
    let nobodys = datagram((STRANGER, 40_001), 7, 2_000);
    let meta = |mark| Meta {
        mark,
        ingress: 1,
        ..Meta::default()
    };
    let leave = |frame: &[u8], mark| {
        passes(
            plane
                .try_bytes(Hook::UplinkEgress, frame, meta(mark))
                .unwrap(),
        )
    };
    let frames = cut_for_ethernet(&masqueraded);
    let left: Vec<_> = frames
        .iter()
        .map(|frame| leave(frame, tagged(mask, ZONE)))
        .collect();
    let left = reassemble(&left, LINK);
    assert_eq!(
        left,
        with_id(&masqueraded.sent_from((EGRESS, 40_000)), left.id)
    );
    for frame in cut_for_ethernet(&nobodys) {
        assert_eq!(leave(&frame, unbound(mask)), frame);
    }
    // One that only claims to be nobody's, and came by no inside interface, is the zone's by its source.
    let zones = cut_for_ethernet(&datagram(INSIDE, 8, 2_000));
    let outside = Meta {
        mark: unbound(mask),
        ..Meta::default()
    };
    let outcome = plane
        .try_bytes(Hook::UplinkEgress, &zones[1], outside)
        .unwrap();
    assert_eq!(outcome.verdict, Verdict::Redirect);
}
