//! NAT-7, CAP-7: the timer ends idle flows, takes them out of the count and frees what ended, with
//! nobody's help.

use egress_common::key::{OriginKey, TCP, UDP};
use egress_common::slot::State;

use super::{DataPlane, EGRESS, INSIDE, ORIGIN, Packet, at};
use crate::harness::{LOAD_ID, eventually};
use crate::packet::{ACK, RST, SYN};
use crate::world::{SECOND, World};

#[test]
fn nat_7_idle_flows_expire_and_their_slots_return() {
    let mut world = World::default();
    world.settings.timers.udp = SECOND / 10;
    world.settings.timers.tcp_transitory = SECOND / 10;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for port in 0..200 {
        plane.leaves(&Packet::udp((INSIDE.0, 5_000 + port), ORIGIN, b""));
        plane.leaves(&Packet::tcp((INSIDE.0, 5_000 + port), ORIGIN, SYN));
    }
    plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.consistent();
    plane.arm();
    eventually("idle flows leave the count", || plane.all_active() == 1);
    eventually("their slots are free", || plane.free() == 1_023);
    assert_eq!(plane.active(EGRESS, ORIGIN, UDP), 0);
    assert_eq!(
        plane.state(INSIDE, ORIGIN, TCP),
        Some(State::TcpEstablished)
    );
    assert_eq!(plane.flows.len(), 1);
    plane.consistent();
    let progress = plane.progress();
    assert_eq!((progress.armed_by, progress.run_by), (LOAD_ID, LOAD_ID));
    let available: u64 = plane
        .free_slots
        .iter()
        .map(|list| list.unwrap().available)
        .sum();
    assert_eq!(available, 1_023);
}

#[test]
fn cap_7_a_closed_flow_rests_and_then_its_slot_and_port_return() {
    let mut world = World::default();
    // Longer than a sweep takes: what it ends too early it has ended by then.
    let rest = 3 * SECOND;
    world.settings.timers.tcp_closing = SECOND / 10;
    world.settings.timers.quarantine = rest;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let egress = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN));
    // Before it closes: whatever time the machine takes for something else, it rests from a later moment on.
    let before = DataPlane::now();
    plane.arrives(
        &Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 1),
        INSIDE,
    );
    assert_eq!(plane.all_active(), 0);
    assert_eq!(plane.free(), 1_023);
    plane.arm();
    eventually("the entries are gone", || plane.reverse.len() == 0);
    assert!(DataPlane::now() - before >= rest - SECOND / 50);
    let free = plane.free();
    assert!(
        free == 1_023 || DataPlane::now() - before >= SECOND + rest - SECOND / 50,
        "not before the grace period: {free}"
    );
    eventually("the slot is free", || plane.free() == 1_024);
    assert!(DataPlane::now() - before >= SECOND + rest - SECOND / 50);
    plane.consistent();
}

#[test]
fn a_flow_in_use_never_expires() {
    let mut world = World::default();
    // Longer than a busy machine keeps this test from its next packet.
    world.settings.timers.udp = 3 * SECOND;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    plane.arm();
    let ticks = plane.progress().ticks;
    // A hundred ticks are a second.
    eventually("four hundred ticks", || {
        assert_eq!(plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"again")), egress);
        plane.progress().ticks > ticks + 400
    });
    assert_eq!(plane.count(EGRESS, ORIGIN, UDP).unwrap().admitted, 1);
}

#[test]
fn cap_6_counters_nobody_needs_make_room() {
    let Some(mut plane) = DataPlane::of(World {
        max_origins: 8,
        ..World::default()
    }) else {
        return;
    };
    for last in 0..8 {
        let origin = (at([192, 0, 2, last]), 443);
        let egress = plane.leaves(&Packet::tcp(INSIDE, origin, SYN));
        if last != 0 {
            plane.arrives(
                &Packet::tcp(origin, egress, RST | ACK).numbers(0, 1),
                INSIDE,
            );
        }
    }
    assert_eq!(plane.all_active(), 1);
    // Idle for a long time.
    for index in 0..8 {
        let mut count = plane.counts.get(&index, 0).unwrap();
        count.idle_since = 0;
        plane.counts.set(index, count, 0).unwrap();
    }
    plane.arm();
    eventually("only the one in use is left", || {
        plane.origins.keys().count() == 1
    });
    for last in 8..15 {
        plane.leaves(&Packet::udp(INSIDE, (at([192, 0, 2, last]), 443), b""));
    }
    plane.consistent();
}

#[test]
fn cap_6_a_counter_that_could_not_be_put_back_is_not_lost() {
    let astray = OriginKey::astray();
    let idle = |plane: &mut DataPlane, index| {
        let mut count = plane.counts.get(&index, 0).unwrap();
        count.key = OriginKey {
            egress: EGRESS,
            origin: ORIGIN.0,
            origin_port: ORIGIN.1,
            protocol: TCP,
            pad: 0,
        };
        count.idle_since = 0;
        plane.counts.set(index, count, 0).unwrap();
    };
    // Nothing can be put on the second list: an odd one goes astray, and is tried again and again.
    let Some(mut plane) = DataPlane::of(World {
        max_origins: 8,
        missing_lists: 1,
        ..World::default()
    }) else {
        return;
    };
    idle(&mut plane, 3);
    plane.arm();
    eventually("it goes astray", || {
        plane.counts.get(&3, 0).unwrap().key == astray
    });
    let generation = plane.counts.get(&3, 0).unwrap().generation;
    eventually("another attempt", || {
        plane.counts.get(&3, 0).unwrap().generation > generation + 1
    });

    // One that went astray returns to its list: 1, 5, 7 are on it.
    let Some(mut plane) = DataPlane::of(World {
        max_origins: 8,
        ..World::default()
    }) else {
        return;
    };
    let mut before = plane.counts.get(&1, 0).unwrap();
    assert_eq!(before.next, 3);
    before.next = 5;
    plane.counts.set(1, before, 0).unwrap();
    let mut stray = plane.counts.get(&3, 0).unwrap();
    stray.key = astray;
    plane.counts.set(3, stray, 0).unwrap();
    plane.arm();
    eventually("it is on its list", || {
        plane.free_counts.get(&1, 0).unwrap().first == 3
    });
    let found = plane.counts.get(&3, 0).unwrap();
    assert_eq!((found.key, found.next), (OriginKey::default(), 1));
}

#[test]
fn cap_6_a_crowded_table_rests_ports_for_less_long_but_keeps_live_flows() {
    let Some(plane) = DataPlane::of(World::default().with_flows(64)) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    for port in 0..63 {
        let inside = (INSIDE.0, 7_000 + port);
        let egress = plane.leaves(&Packet::tcp(inside, ORIGIN, SYN));
        plane.arrives(
            &Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 1),
            inside,
        );
    }
    assert_eq!(plane.free(), 0);
    plane.arm();
    eventually("room again", || plane.free() > 0);
    assert_eq!(
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2)),
        egress
    );
    plane.consistent();
}
