//! ANN-1: who asks for an address of the range is told the uplink's, also who probes for a duplicate.

use egress_common::family::V6;
use egress_common::reason::Reason;
use egress_common::settings::{EgressAddress, egress_flag};

use super::{DataPlane, usual};
use crate::harness::{Hook, done};
use crate::packet::{Body, Packet};
use crate::run::{Meta, Verdict};
use crate::world::{INSIDE_INTERFACE, RANGE, UPLINK_MAC, v6};

const ASKER: [u8; 6] = [2, 9, 9, 9, 9, 9];
const ASKER_IP: V6 = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
const NOBODY: V6 = [0; 16];

fn target() -> V6 {
    let mut target = RANGE;
    target[8..].copy_from_slice(&[0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4]);
    target
}

/// A solicitation for `target` with these options.
fn solicitation(source: V6, target: V6, options: &[u8]) -> Packet<V6> {
    let mut group = [0; 16];
    group[..12].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    group[11] = 1;
    group[12] = 0xff;
    group[13..].copy_from_slice(&target[13..]);
    let mut packet = Packet::icmp(source, group, 135, 0, &[&target[..], options].concat());
    packet.to = [0x33, 0x33, 0xff, target[13], target[14], target[15]];
    packet.from = ASKER;
    packet.ttl = 255;
    packet
}

/// The advertisement that answers it.
fn advertisement(to: ([u8; 6], V6), flags: u8) -> Packet<V6> {
    let mut payload = target().to_vec();
    payload.extend([2, 1]);
    payload.extend(UPLINK_MAC);
    let mut packet = Packet::icmp(target(), to.1, 136, 0, &payload);
    packet.body = Body::Icmp(136, 0, [flags, 0, 0, 0], payload);
    (packet.to, packet.from, packet.ttl) = (to.0, UPLINK_MAC, 255);
    packet
}

#[test]
fn ann_1_who_asks_for_an_address_of_a_range_is_told_the_uplinks_address() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let mac = [&[1, 1][..], &ASKER].concat();
    let unicast = Packet {
        to: UPLINK_MAC,
        destination: target(),
        ..solicitation(ASKER_IP, target(), &[])
    };
    let tagged = Packet {
        vlans: vec![7],
        ..solicitation(ASKER_IP, target(), &mac)
    };
    let asked = [
        solicitation(ASKER_IP, target(), &mac),
        solicitation(ASKER_IP, target(), &[]),
        // With a nonce besides (RFC 3971, RFC 7527).
        solicitation(
            ASKER_IP,
            target(),
            &[&mac[..], &[14, 1, 1, 2, 3, 4, 5, 6]].concat(),
        ),
        unicast,
        tagged,
    ];
    for packet in asked {
        let outcome = plane.run(Hook::UplinkIngress, &packet, Meta::default());
        assert_eq!(outcome.verdict, Verdict::Redirect, "{packet:?}");
        let expected = Packet {
            vlans: packet.vlans.clone(),
            ..advertisement((ASKER, ASKER_IP), 0x60)
        };
        assert_eq!(Packet::read(&outcome.bytes), expected);
        assert_eq!(
            outcome.mark,
            done(plane.world.mark_mask),
            "it leaves as it is"
        );
    }
}

#[test]
fn ann_1_a_probe_for_a_duplicate_is_answered_to_all() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let probe = solicitation(NOBODY, target(), &[14, 1, 1, 2, 3, 4, 5, 6]);
    let outcome = plane.run(Hook::UplinkIngress, &probe, Meta::default());
    assert_eq!(outcome.verdict, Verdict::Redirect);
    let all = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(
        Packet::read(&outcome.bytes),
        advertisement(([0x33, 0x33, 0, 0, 0, 1], all), 0x20)
    );
}

#[test]
fn ann_1_other_solicitations_are_the_kernels() {
    let Some(mut plane) = DataPlane::of(usual()) else {
        return;
    };
    let mut announced = solicitation(target(), target(), &[]);
    announced.destination = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let ours = solicitation(ASKER_IP, target(), &[]);
    let left_alone = [
        solicitation(ASKER_IP, v6(0xf, 1), &[]),
        announced,
        Packet {
            ttl: 254,
            ..ours.clone()
        },
        Packet {
            checksum: Some(1),
            ..ours.clone()
        },
        Packet {
            from: [1, 9, 9, 9, 9, 9],
            ..ours.clone()
        },
        Packet::icmp(ASKER_IP, ours.destination, 135, 0, &target()[..8]),
        Packet {
            ttl: 255,
            ..Packet::icmp(ASKER_IP, ours.destination, 136, 0, &target())
        },
    ];
    for packet in left_alone {
        let outcome = plane.run(Hook::UplinkIngress, &packet, Meta::default());
        assert_eq!(outcome.verdict, Verdict::Next, "{packet:?}");
        assert_eq!(outcome.bytes, packet.bytes());
    }
    plane.change(|world| world.settings.answer_arp = 0);
    let outcome = plane.run(Hook::UplinkIngress, &ours, Meta::default());
    assert_eq!(outcome.verdict, Verdict::Next, "switched off");
    plane.change(|world| world.settings.answer_arp = 1);
    let key = aya::maps::lpm_trie::Key::new(32 + 64, {
        let mut data = [0; 20];
        data[4..].copy_from_slice(&RANGE);
        data
    });
    plane.prefix(
        "EGRESS6",
        &key,
        EgressAddress {
            flags: egress_flag::RETIRED,
            owner: 0,
        },
    );
    let outcome = plane.run(Hook::UplinkIngress, &ours, Meta::default());
    assert_eq!(outcome.verdict, Verdict::Next, "not to be answered for");
}

#[test]
fn neighbour_discovery_stays_on_its_link() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let inside = v6(1, 2);
    for kind in [133, 134, 135, 136, 137, 143] {
        let own = Packet::icmp(inside, v6(0xff, 7), kind, 0, &[0; 16]);
        plane.passes(&own);
        let meta = Meta {
            ingress: INSIDE_INTERFACE + 1,
            ..Meta::default()
        };
        plane.dropped_with(Hook::UplinkEgress, &own, meta, Reason::Ipv6);
    }
}
