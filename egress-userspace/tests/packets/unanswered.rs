//! NAT-11, SAFE-1: what must not be answered is dropped without a word.

use egress_common::reason::Reason;

use super::errors::{KINDS, OTHERS, PING};
use super::{DataPlane, INSIDE, ORIGIN, Packet};
use crate::harness::Hook;
use crate::world::World;

#[test]
fn nat_11_icmp_errors_of_a_zone_are_dropped() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let known = KINDS.iter().map(|(kind, code, _)| (*kind, *code));
    for (kind, code) in known.chain(OTHERS.iter().map(|kind| (*kind, 1))) {
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
    let ping = Packet::icmp(INSIDE.0, ORIGIN.0, PING, 0, b"ping");
    plane.dropped(Hook::UplinkEgress, &ping, Reason::PingDropped);
}
