//! POOL-10: a connection of the daemon's own leaves by the egress IP it is told to, or not at all.
//!
//! Each packet that is run has a socket of its own, whose cookie the kernel makes when it is asked for. Cookies are
//! counted up, in batches for each CPU. So where the last one of this CPU was, the next ones are known, and all of them
//! are told the same. Where others have used all of them up meanwhile, it is tried again, with another packet.

use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicU16, Ordering};

use aya::maps::HashMap;
use egress_common::key::{Reference, TCP};
use egress_common::packet::Header;
use egress_common::probe::{ADMITTED, MAX_PROBES, Probe, refused};
use egress_common::reason::Reason;
use egress_common::settings::candidate_flag;

use super::{Address, DataPlane, EGRESS, EGRESS_2, INSIDE, ORIGIN, Packet, STRANGER, at};
use crate::harness::Hook;
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Outcome, Verdict};
use crate::world::{self, INSIDE_INTERFACE, POOL, World};

/// Cookies that are told: others on this CPU may be given some.
const AHEAD: u64 = MAX_PROBES as u64 / 2;
/// `COOKIE_LOCAL_BATCH` of Linux.
const BATCH: u64 = 4_096;

/// A world of these two addresses, in this order.
fn both() -> World {
    World::default().with_addresses(&[world::EGRESS, world::EGRESS_2])
}

/// The next cookies of this thread, which stays on its CPU.
fn cookies() -> std::ops::Range<u64> {
    // SAFETY: a set of CPUs of our own, for this thread.
    unsafe {
        let cpu = libc::sched_getcpu();
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(usize::try_from(cpu).unwrap(), &mut set);
        assert_eq!(
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set),
            0
        );
    }
    loop {
        let last = cookie(&socket());
        if last % BATCH + AHEAD + 1 < BATCH {
            return last + 1..last + 1 + AHEAD;
        }
    }
}

/// A socket, of which only the cookie matters.
fn socket() -> UdpSocket {
    UdpSocket::bind("0.0.0.0:0").unwrap()
}

fn cookie(socket: &UdpSocket) -> u64 {
    let (mut cookie, mut length) = (0_u64, 8);
    // SAFETY: eight bytes of ours.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    assert_eq!(status, 0);
    cookie
}

fn told(address: Address, candidate: u32) -> Probe {
    Probe {
        address: address.wide(),
        candidate,
        pool: POOL,
        ..Probe::default()
    }
}

/// Tells the sockets to come, runs a packet with a port of its own, and returns it, what became of it, and what was told
/// of the probe.
fn run(
    plane: &mut DataPlane,
    probe: Probe,
    meta: Meta,
    packet: impl Fn(u16) -> Packet,
) -> (Packet, Outcome, Probe) {
    static PORT: AtomicU16 = AtomicU16::new(10_000);
    loop {
        let cookies = cookies();
        let mut map: HashMap<_, u64, Probe> =
            plane.load.map_mut("PROBES").unwrap().try_into().unwrap();
        for cookie in cookies.clone() {
            map.insert(cookie, probe, 0).unwrap();
        }
        let packet = packet(PORT.fetch_add(1, Ordering::Relaxed));
        let outcome = plane.run(Hook::UplinkEgress, &packet, meta);
        let used_up = cookie(&socket()) >= cookies.end;
        let mut map: HashMap<_, u64, Probe> =
            plane.load.map_mut("PROBES").unwrap().try_into().unwrap();
        let mut changed = Vec::new();
        for cookie in cookies {
            let now = map.get(&cookie, 0).unwrap();
            if now != probe {
                changed.push(now);
            }
            map.remove(&cookie).unwrap();
        }
        assert!(changed.len() <= 1, "one packet, one socket: {changed:?}");
        match changed.pop() {
            None if used_up => {}
            told => return (packet, outcome, told.unwrap_or(probe)),
        }
    }
}

/// A packet of the host's own.
fn own(
    plane: &mut DataPlane,
    probe: Probe,
    packet: impl Fn(u16) -> Packet,
) -> (Packet, Outcome, Probe) {
    run(plane, probe, Meta::default(), packet)
}

#[test]
fn pool_10_a_probe_leaves_by_the_address_it_is_told_and_is_counted() {
    let Some(mut plane) = DataPlane::of(both()) else {
        return;
    };
    for (egress, candidate) in [(EGRESS, 0), (EGRESS_2, 1)] {
        // Of no zone, and of one that is disabled; of one that is enabled, and has an opinion of its own.
        for (expected, source) in [(1, STRANGER), (2, at(world::DISABLED)), (3, INSIDE.0)] {
            let syn = |port| Packet::tcp((source, port), ORIGIN, SYN);
            let (packet, outcome, probe) = own(&mut plane, told(egress, candidate), syn);
            assert_eq!(outcome.verdict, Verdict::Next);
            let from = Packet::read(&outcome.bytes).sender();
            assert_eq!(from.0, egress);
            assert_eq!(outcome.bytes, packet.clone().sent_from(from).bytes());
            let inside = packet.sender();
            let slot = plane.slot(inside, ORIGIN, TCP).unwrap();
            assert_eq!((slot.zone, u32::from(slot.pool)), (0, POOL));
            let index = plane.index(inside, ORIGIN, TCP).unwrap();
            let generation = slot.generation;
            assert_eq!(
                (probe.outcome, probe.slot),
                (ADMITTED, Reference { index, generation })
            );
            if source != INSIDE.0 {
                assert_eq!(plane.active(egress, ORIGIN, TCP), expected);
            }
        }
    }
    plane.consistent();
}

#[test]
fn pool_10_a_probe_that_cannot_leave_as_told_is_refused_and_says_why() {
    let Some(mut plane) = DataPlane::of(both().with_capacity(1)) else {
        return;
    };
    let syn = |port| Packet::tcp((STRANGER, port), ORIGIN, SYN);
    let refuse = |plane: &mut DataPlane, probe, reason: Reason| {
        let before = plane.reason(reason);
        let (_, outcome, probe) = own(plane, probe, syn);
        assert_eq!(outcome.verdict, Verdict::Redirect, "{reason:?}");
        assert_eq!(probe.outcome, refused(reason), "{reason:?}");
        assert_eq!(plane.reason(reason), before + 1);
    };
    // Another candidate stands there by now: the configuration has changed.
    refuse(&mut plane, told(EGRESS, 1), Reason::NoAddress);
    refuse(&mut plane, told(EGRESS_2, 7), Reason::NoAddress);
    refuse(&mut plane, told(EGRESS, u32::MAX), Reason::NoAddress);
    // Nor is it handed to another server where the pool has nothing.
    let unknown = Probe {
        pool: POOL + 1,
        ..told(EGRESS, 0)
    };
    refuse(&mut plane, unknown, Reason::NoAddress);
    // Nobody's place is taken for it, although another address has one.
    let (_, _, probe) = own(&mut plane, told(EGRESS, 0), syn);
    assert_eq!(probe.outcome, ADMITTED);
    refuse(&mut plane, told(EGRESS, 0), Reason::CapReached);
    plane.change(|world| {
        for candidate in &mut world.pools[0].1 {
            candidate.flags = candidate_flag::DRAINING;
        }
    });
    refuse(&mut plane, told(EGRESS_2, 1), Reason::NoAddress);
    assert_eq!(plane.all_active(), 1);
    plane.consistent();
}

#[test]
fn pool_10_nothing_of_a_probes_socket_leaves_but_by_its_flow() {
    let Some(mut plane) = DataPlane::of(both()) else {
        return;
    };
    let late = |port| Packet::tcp((STRANGER, port), ORIGIN, ACK).numbers(1, 1);
    // What is refused so is told to nobody: only the count shows that it was seen as a probe's.
    let mut tries = 0;
    let probe = loop {
        let (_, outcome, probe) = own(&mut plane, told(EGRESS, 0), late);
        if outcome.verdict == Verdict::Redirect || tries > 100 {
            break probe;
        }
        tries += 1;
    };
    assert_eq!((probe.outcome, plane.reason(Reason::NoFlow)), (0, 1));
    // That of anybody else of no zone does.
    plane.passes(&late(9_999));
    assert_eq!(plane.all_active(), 0);
}

#[test]
fn pool_10_what_came_in_by_a_wire_is_no_probe() {
    let Some(mut plane) = DataPlane::of(both()) else {
        return;
    };
    let forwarded = Meta {
        ingress: INSIDE_INTERFACE,
        mark: crate::harness::unbound(plane.world.mark_mask),
        ..Meta::default()
    };
    let syn = |port| Packet::tcp((STRANGER, port), ORIGIN, SYN);
    let (packet, outcome, probe) = run(&mut plane, told(EGRESS, 0), forwarded, syn);
    assert_eq!((outcome.verdict, probe.outcome), (Verdict::Next, 0));
    assert_eq!(outcome.bytes, packet.bytes());
    assert_eq!(plane.all_active(), 0);
}
