//! POOL-5, CAP-3: a server that owns some slices of an address gives out ports of these, up to their quota.

use egress_common::key::TCP;
use egress_common::port::{capacity, capacity_of, owns};
use egress_common::reason::Reason;

use crate::harness::DataPlane;
use crate::packet::{Packet, SYN};
use crate::world::{EGRESS, ORIGIN, World};

/// Eight slices, not side by side.
const EIGHT: u32 = 0x8421_0a22;

/// The nth of many inside endpoints, with any port.
fn endpoint(nth: u32) -> ([u8; 4], u16) {
    let host = nth / 500;
    let port = (nth.wrapping_mul(40_503) % 64_000) as u16 + 1_024;
    ([10, 1, 10, host as u8], port)
}

#[test]
fn cap_3_eight_slices_carry_their_quota_and_no_other_port_leaves() {
    // 40,000 / 31 is 1,290.3: each slice carries that, rounded.
    assert_eq!(EIGHT.count_ones(), 8);
    assert!((8 * 1_290..=8 * 1_291).contains(&capacity(EIGHT)));
    let world = World::default()
        .with_slices(EIGHT)
        .with_capacity(capacity(EIGHT))
        .with_flows(32_768);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let mut used = std::collections::HashSet::new();
    let (mut slices, mut kept) = (0, 0);
    for nth in 0..capacity(EIGHT) {
        let inside = endpoint(nth);
        let (address, port) = plane.leaves(&Packet::tcp(inside, ORIGIN, SYN));
        assert_eq!(address, EGRESS);
        assert!(owns(EIGHT, port), "port {port} is another server's");
        assert!(used.insert(port), "port {port} twice");
        slices |= 1 << (port >> 11);
        kept += u32::from(port == inside.1);
    }
    assert_eq!(slices, EIGHT, "all of them are used");
    assert!(kept > 1_000, "a port in an owned slice is kept: {kept}");
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), capacity(EIGHT));
    plane.answered(&Packet::tcp(endpoint(40_000), ORIGIN, SYN));
    assert_eq!(plane.reason(Reason::CapReached), 1);
    plane.consistent();
}

#[test]
fn pool_5_a_server_that_loses_slices_keeps_its_flows_and_opens_none_there() {
    let Some(mut plane) = DataPlane::of(World::default().with_slices(1 << 3 | 1 << 4)) else {
        return;
    };
    let old = plane.establish(([10, 1, 2, 3], 7_000), ORIGIN, (1, 1));
    assert_eq!(old.1 >> 11, 3, "7000 is in slice 3 and kept");
    plane.change(|world| {
        for candidate in &mut world.pools[0].1 {
            candidate.slices = 1 << 4;
            candidate.capacity = capacity_of(40_000, 1 << 4);
        }
    });
    for host in 0..100 {
        let new = plane.leaves(&Packet::tcp(([10, 1, 2, 100 + host], 7_000), ORIGIN, SYN));
        assert_eq!(new.1 >> 11, 4);
    }
    let live = Packet::tcp(([10, 1, 2, 3], 7_000), ORIGIN, crate::packet::ACK).numbers(2, 2);
    assert_eq!(plane.leaves(&live), old);
}
