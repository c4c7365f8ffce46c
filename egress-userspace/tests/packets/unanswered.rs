//! NAT-11, SAFE-1: what must not be answered is dropped without a word.

use egress_common::reason::Reason;

use crate::harness::{DataPlane, Hook};
use crate::packet::{ACK, Packet, SYN};
use crate::world::{INSIDE, ORIGIN, World};

#[test]
fn safe_1_multicast_and_broadcast_of_a_zone_are_dropped() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for to in [[224, 0, 0, 1], [239, 255, 255, 250], [255; 4]] {
        for packet in [
            Packet::udp(INSIDE, (to, 1_900), b"hello"),
            Packet::tcp(INSIDE, (to, 80), SYN),
            Packet::other(INSIDE.0, to, 2, b""),
        ] {
            plane.dropped(Hook::UplinkEgress, &packet, Reason::Multicast);
        }
    }
    assert_eq!(plane.free(), 1_024);
}

#[test]
fn nat_11_sources_that_are_nobodys_are_not_answered() {
    let mut world = World::default();
    world.sources.push(([0; 4], 0, crate::world::ZONE));
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for from in [[240, 0, 0, 1], [250, 1, 2, 3]] {
        let packet = Packet::tcp((from, 4_000), ORIGIN, ACK);
        plane.dropped(Hook::UplinkEgress, &packet, Reason::Unanswerable);
    }
}

#[test]
fn nat_11_icmp_errors_of_a_zone_are_dropped() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for (kind, code) in [(3, 4), (11, 0), (5, 1), (12, 0), (4, 0), (99, 0)] {
        let packet = Packet::icmp(INSIDE.0, ORIGIN.0, kind, code, &[0x45; 28]);
        plane.dropped(Hook::UplinkEgress, &packet, Reason::IcmpError);
    }
}

#[test]
fn policy_7_pings_are_dropped_where_so_configured() {
    let mut world = World::default();
    world.settings.icmp_queries = 0;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let ping = Packet::icmp(INSIDE.0, ORIGIN.0, 8, 0, b"ping");
    plane.dropped(Hook::UplinkEgress, &ping, Reason::PingDropped);
}
