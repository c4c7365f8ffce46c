//! CAP-1, CAP-2: a new flow is counted once, up to the cap and no further.

use egress_common::key::{TCP, UDP};
use egress_common::reason::Reason;
use egress_common::slot::State;

use super::{DataPlane, EGRESS, INSIDE, ORIGIN, Packet, at};
use crate::packet::SYN;
use crate::world::{POOL, World, ZONE};

#[test]
fn cap_2_a_connection_counts_from_its_syn_and_only_once() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for _ in 0..3 {
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(77, 0));
        assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 1);
    }
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(slot.word().state, State::TcpHalfOpen);
    assert_eq!((u32::from(slot.zone), u32::from(slot.pool)), (ZONE, POOL));
    assert_eq!(slot.packets_out, 3);
    let count = plane.count(EGRESS, ORIGIN, TCP).unwrap();
    assert_eq!((count.admitted, count.most(), count.refused), (1, 1, 0));
    assert_eq!(count.capacity, 40_000);
    assert_eq!(plane.free(), 1_023);
    plane.consistent();
}

#[test]
fn cap_1_every_origin_port_and_protocol_has_its_own_count() {
    let Some(plane) = DataPlane::of(World::default().with_capacity(1)) else {
        return;
    };
    let origins = [ORIGIN, (at([192, 0, 2, 8]), 443), (ORIGIN.0, 80)];
    for origin in origins {
        plane.leaves(&Packet::tcp(INSIDE, origin, SYN));
        plane.leaves(&Packet::udp(INSIDE, origin, b""));
    }
    for origin in origins {
        assert_eq!(plane.active(EGRESS, origin, TCP), 1);
        assert_eq!(plane.active(EGRESS, origin, UDP), 1);
    }
    plane.consistent();
}

#[test]
fn cap_1_exactly_the_cap_is_admitted() {
    const CAP: u32 = 50;
    let Some(plane) = DataPlane::of(World::default().with_capacity(CAP)) else {
        return;
    };
    for port in 0..CAP as u16 {
        plane.leaves(&Packet::tcp((INSIDE.0, 10_000 + port), ORIGIN, SYN));
    }
    for port in 0..10 {
        plane.answered(&Packet::tcp((INSIDE.0, 20_000 + port), ORIGIN, SYN));
    }
    let count = plane.count(EGRESS, ORIGIN, TCP).unwrap();
    assert_eq!(
        (count.active, count.most(), count.admitted, count.refused),
        (CAP, CAP, 50, 10)
    );
    assert_eq!(count.capacity, CAP);
    assert_eq!(plane.reason(Reason::CapReached), 10);
    // Those that are in stay in.
    plane.leaves(&Packet::tcp((INSIDE.0, 10_000), ORIGIN, SYN));
    plane.consistent();
}
