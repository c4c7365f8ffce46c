//! ZONE-4: the tag is written where a packet enters, by source or by interface, and cleared where
//! there is none.

use crate::harness::{DataPlane, Hook, done, tagged, unbound};
use crate::packet::{Packet, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{DISABLED, DISABLED_ZONE, INSIDE, ORIGIN, STRANGER, World, ZONE};

const MASK: u32 = 0xffff_0000;

fn mark(plane: &DataPlane, packet: &Packet, mark: u32) -> u32 {
    let outcome = plane.run(
        Hook::InsideIngress,
        packet,
        Meta {
            mark,
            ..Meta::default()
        },
    );
    assert_eq!(
        (outcome.verdict, outcome.bytes),
        (Verdict::Next, packet.bytes())
    );
    outcome.mark
}

#[test]
fn zone_4_the_source_decides() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let from = |address| Packet::tcp((address, 1), ORIGIN, SYN);
    assert_eq!(
        mark(&plane, &from(INSIDE.0), 0x55),
        tagged(MASK, ZONE) | 0x55
    );
    assert_eq!(
        mark(&plane, &from(DISABLED), 0),
        tagged(MASK, DISABLED_ZONE)
    );
    let fragment = Packet {
        fragment: 3,
        vlans: vec![4],
        ..from(INSIDE.0)
    };
    assert_eq!(mark(&plane, &fragment, 0), tagged(MASK, ZONE));
}

#[test]
fn zone_4_a_forged_tag_is_replaced() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let packet = Packet::tcp((STRANGER, 1), ORIGIN, SYN);
    for forged in [done(MASK), tagged(MASK, ZONE)] {
        assert_eq!(mark(&plane, &packet, forged | 0x66), unbound(MASK) | 0x66);
    }
    let arp = [0xff; 60];
    let meta = Meta {
        mark: done(MASK),
        ..Meta::default()
    };
    assert_eq!(
        plane
            .try_bytes(Hook::InsideIngress, &arp, meta)
            .unwrap()
            .mark,
        0
    );
}

#[test]
fn zone_3_the_interface_goes_before_the_longest_source_prefix() {
    let mut world = World {
        interfaces: vec![(1, 9)],
        ..World::default()
    };
    world.sources.push(([10, 1, 0, 2], 32, 11));
    let Some(mut plane) = DataPlane::of(world) else {
        return;
    };
    let packet = Packet::tcp(INSIDE, ORIGIN, SYN);
    assert_eq!(mark(&plane, &packet, 0), tagged(MASK, 9));
    plane.change(|world| world.interfaces.clear());
    assert_eq!(mark(&plane, &packet, 0), tagged(MASK, 11));
}

#[test]
fn a_mask_of_eight_bits_carries_a_tag_too() {
    let world = World {
        mark_mask: 0x0000_ff00,
        ..World::default()
    };
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let packet = Packet::tcp(INSIDE, ORIGIN, SYN);
    assert_eq!(mark(&plane, &packet, 0xabcd_ef12), 0xabcd_0712);
    plane.leaves(&packet);
}
