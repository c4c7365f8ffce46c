//! SAFE-5: a configuration takes effect at one instant.

use super::{DataPlane, EGRESS, EGRESS_2, INSIDE, ORIGIN, Packet, at};
use crate::packet::{ACK, SYN};
use crate::world::{self, ENABLED, POOL, World, ZONE, candidate};

#[test]
fn safe_5_the_switch_changes_everything_at_once() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    assert_eq!(egress.0, EGRESS);
    let other = World {
        zones: vec![(ZONE, ENABLED, POOL + 1)],
        sources: vec![([10, 1, 0, 2], 32, ZONE)],
        pools: vec![(POOL + 1, vec![candidate(world::EGRESS_2)])],
        ..World::default()
    };
    plane.write(1, &other);
    let new = |port| Packet::tcp((INSIDE.0, port), ORIGIN, SYN);
    let neighbour = Packet::tcp((at([10, 1, 0, 3]), 1), ORIGIN, SYN);
    assert_eq!(plane.leaves(&new(1)).0, EGRESS, "written is not switched");
    plane.switch(1);
    assert_eq!(plane.leaves(&new(2)).0, EGRESS_2);
    plane.passes(&neighbour);
    assert_eq!(
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2)),
        egress
    );
    plane.switch(0);
    assert_eq!(plane.leaves(&new(3)).0, EGRESS);
    plane.leaves(&neighbour);
    plane.consistent();
}
