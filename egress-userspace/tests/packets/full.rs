//! CAP-6: a full table refuses new flows and keeps the old ones.

use egress_common::key::UDP;
use egress_common::reason::Reason;

use super::{DataPlane, EGRESS, INSIDE, ORIGIN, Packet, at};
use crate::packet::SYN;
use crate::world::World;

#[test]
fn cap_6_a_full_flow_table_refuses_and_evicts_nobody() {
    for lists in [1, 2, 7] {
        let world = World {
            lists,
            ..World::default().with_flows(100)
        };
        let Some(plane) = DataPlane::of(world) else {
            return;
        };
        let inside = |port: u16| (INSIDE.0, 10_000 + port);
        for port in 0..100 {
            plane.leaves(&Packet::udp(inside(port), ORIGIN, b""));
        }
        assert_eq!(plane.free(), 0);
        plane.answered(&Packet::udp(inside(200), ORIGIN, b""));
        plane.answered(&Packet::tcp(inside(201), ORIGIN, SYN));
        assert_eq!(plane.reason(Reason::TableFull), 2);
        assert_eq!(plane.active(EGRESS, ORIGIN, UDP), 100);
        for port in 0..100 {
            plane.leaves(&Packet::udp(inside(port), ORIGIN, b""));
        }
        plane.consistent();
    }
}

#[test]
fn cap_6_a_full_table_of_origins_refuses_new_origins_only() {
    let Some(plane) = DataPlane::of(World {
        max_origins: 16,
        ..World::default()
    }) else {
        return;
    };
    let origin = |last: u8| (at([192, 0, 2, last]), 443);
    for last in 0..16 {
        plane.leaves(&Packet::udp(INSIDE, origin(last), b""));
    }
    plane.answered(&Packet::udp(INSIDE, origin(16), b""));
    assert_eq!(plane.reason(Reason::OriginTableFull), 1);
    plane.leaves(&Packet::udp((INSIDE.0, 1_111), origin(3), b""));
    assert_eq!(
        plane.free(),
        1_024 - 17,
        "a refused flow leaves nothing behind"
    );
    plane.consistent();
}
