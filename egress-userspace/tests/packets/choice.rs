//! CAP-4, CAP-9, POOL-9: which egress IP a new flow gets.

use egress_common::key::TCP;
use egress_common::reason::Reason;
use egress_common::settings::candidate_flag;

use super::{DataPlane, INSIDE, ORIGIN, Packet, at};
use crate::packet::SYN;
use crate::world::{EGRESS, EGRESS_2, World, candidate};

const BOTH: [[u8; 4]; 2] = [EGRESS, EGRESS_2];

#[test]
fn pool_9_a_draining_address_takes_no_new_flow_and_keeps_its_old_ones() {
    let Some(mut plane) = DataPlane::of(World::default().with_addresses(&BOTH)) else {
        return;
    };
    let old = plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.change(|world| {
        for candidate in &mut world.pools[0].1 {
            if at(candidate.address) == old.0 {
                candidate.flags = candidate_flag::DRAINING;
            }
        }
    });
    for host in 0..100 {
        let new = plane.leaves(&Packet::tcp((at([10, 1, 2, host]), 5_000), ORIGIN, SYN));
        assert_ne!(new.0, old.0);
    }
    assert_eq!(
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, crate::packet::ACK).numbers(2, 2)),
        old
    );
}

#[test]
fn cap_4_when_one_address_is_full_the_next_is_used_and_then_the_connection_is_refused() {
    let world = World::default().with_addresses(&BOTH).with_capacity(10);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for port in 0..20 {
        plane.leaves(&Packet::tcp((INSIDE.0, 3_000 + port), ORIGIN, SYN));
    }
    assert_eq!(
        BOTH.map(|egress| plane.active(at(egress), ORIGIN, TCP)),
        [10, 10]
    );
    plane.answered(&Packet::tcp((INSIDE.0, 4_000), ORIGIN, SYN));
    assert_eq!(plane.reason(Reason::CapReached), 1);
    let refused: u64 = BOTH
        .map(|egress| plane.count(at(egress), ORIGIN, TCP).unwrap().refused)
        .iter()
        .sum();
    assert_eq!(refused, 1, "a refusal is counted once");
    plane.consistent();
}

#[test]
fn cap_9_one_inside_address_prefers_one_egress_ip() {
    let addresses: Vec<[u8; 4]> = (1..=8).map(|last| [198, 51, 100, last]).collect();
    let Some(plane) = DataPlane::of(World {
        max_origins: 512,
        ..World::default().with_addresses(&addresses)
    }) else {
        return;
    };
    let mut used = std::collections::HashSet::new();
    for host in 0..64 {
        let mut of_host = std::collections::HashSet::new();
        for port in 0..4 {
            let inside = (at([10, 1, 3, host]), 6_000 + port);
            // Wherever it goes.
            let origin = (at([192, 0, 2 + port as u8, host]), 443 + port);
            of_host.insert(plane.leaves(&Packet::udp(inside, origin, b"")).0);
        }
        assert_eq!(of_host.len(), 1, "host {host}");
        used.extend(of_host);
    }
    assert_eq!(used.len(), 8, "and hosts spread over all of them");
}

#[test]
fn safe_1_a_pool_without_an_address_refuses() {
    let mut world = World::default();
    world.pools[0].1.clear();
    let Some(mut plane) = DataPlane::of(world) else {
        return;
    };
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN);
    plane.answered(&syn);
    assert_eq!(plane.reason(Reason::NoAddress), 1);
    // No better: addresses none of whose slices are ours.
    plane.change(|world| world.pools[0].1 = vec![candidate(EGRESS)]);
    plane.change(|world| world.pools[0].1[0].slices = 0);
    plane.answered(&syn);
    assert_eq!(plane.reason(Reason::NoAddress), 2);
    // An unknown pool.
    plane.change(|world| world.zones[0].2 = 0);
    plane.answered(&syn);
    assert_eq!(plane.reason(Reason::Blocked), 1);
    assert_eq!(plane.free(), 1_024);
}
