//! Requirements of the RFCs on NAT that no rule of ours says (`docs/rfc-compliance.md`).

use egress_common::key::{TCP, UDP};

use super::{DataPlane, EGRESS, INSIDE, ORIGIN, Packet, at};
use crate::harness::eventually;
use crate::packet::SYN;
use crate::world::{self, SECOND, World};

#[test]
fn rfc_4787_req_6a_replies_alone_keep_a_flow() {
    let mut world = World::default();
    // Longer than a busy machine keeps this test from its next packet.
    world.settings.timers.udp = 3 * SECOND;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    plane.arm();
    let ticks = plane.progress().ticks;
    // A hundred ticks are a second: longer than a flow lives without packets.
    eventually("four hundred ticks", || {
        plane.arrives(&Packet::udp(ORIGIN, egress, b"again"), INSIDE);
        plane.progress().ticks > ticks + 400
    });
    assert_eq!(plane.count(EGRESS, ORIGIN, UDP).unwrap().admitted, 1);
    assert_eq!(plane.active(EGRESS, ORIGIN, UDP), 1);
}

#[test]
fn rfc_6888_req_3_a_pool_is_any_list_of_addresses() {
    let addresses = [
        world::EGRESS,
        [198, 51, 100, 77],
        [192, 0, 2, 255],
        [8, 0, 8, 0],
        [203, 0, 113, 3],
    ];
    let world = World::default().with_addresses(&addresses).with_capacity(3);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for port in 0..15 {
        let (address, _) = plane.leaves(&Packet::tcp((INSIDE.0, 3_000 + port), ORIGIN, SYN));
        assert!(addresses.map(at).contains(&address), "{address:?}");
    }
    assert_eq!(
        addresses.map(|egress| plane.active(at(egress), ORIGIN, TCP)),
        [3; 5]
    );
}

#[test]
fn rfc_6056_the_same_endpoints_leave_with_other_ports_each_time() {
    // Where a client's own port cannot be kept, nobody foresees which one it gets.
    let mut ports = std::collections::HashSet::new();
    for _ in 0..5 {
        let Some(plane) = DataPlane::of(World::default().with_slices(1 << 20)) else {
            return;
        };
        // IPv6 has no slices: there it is another host's.
        plane.leaves(&Packet::udp((at([10, 1, 0, 77]), INSIDE.1), ORIGIN, b""));
        let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
        assert_ne!(egress.1, INSIDE.1);
        ports.insert(egress.1);
    }
    // Once in 2,048 two are the same; three of five as good as never.
    assert!(ports.len() > 2, "always one of {ports:?}");
}
