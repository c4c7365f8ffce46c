//! POOL-10: a connection of the daemon's own leaves by the egress IP it is told to, or not at all.
//!
//! Each packet that is run has a socket of its own, whose cookie the kernel makes when it is asked for. Cookies are
//! counted up, in batches for each CPU. So where the last one of this CPU was, the next ones are known, and all of them
//! are told the same.

use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use aya::Pod;
use aya::maps::{HashMap, Map};
use egress_common::key::{Reference, TCP};
use egress_common::packet::Header;
use egress_common::probe::{ADMITTED, MAX_PROBES, Probe, refused};
use egress_common::reason::Reason;
use egress_common::settings::candidate_flag;

use super::{Address, DataPlane, EGRESS, EGRESS_2, INSIDE, ORIGIN, Packet, STRANGER, at};
use crate::harness::Hook;
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Verdict};
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
        let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"));
        let last = cookie(&socket.unwrap());
        if last % BATCH + AHEAD + 1 < BATCH {
            return last + 1..last + 1 + AHEAD;
        }
    }
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

/// Tells the sockets to come, runs `packet`, and returns what became of the one that was used.
fn with<T>(plane: &mut DataPlane, probe: Probe, run: impl FnOnce(&DataPlane) -> T) -> (T, Probe)
where
    Probe: Pod,
{
    let cookies = cookies();
    let probes =
        |plane: &mut DataPlane,
         change: &mut dyn FnMut(&mut HashMap<&mut aya::maps::MapData, u64, Probe>)| {
            let map: &mut Map = plane.load.map_mut("PROBES").unwrap();
            change(&mut map.try_into().unwrap());
        };
    probes(plane, &mut |map| {
        for cookie in cookies.clone() {
            map.insert(cookie, probe, 0).unwrap();
        }
    });
    let result = run(plane);
    let mut changed = Vec::new();
    probes(plane, &mut |map| {
        for cookie in cookies.clone() {
            let now = map.get(&cookie, 0).unwrap();
            if now != probe {
                changed.push(now);
            }
            map.remove(&cookie).unwrap();
        }
    });
    assert!(changed.len() <= 1, "one packet, one socket: {changed:?}");
    (result, changed.pop().unwrap_or(probe))
}

#[test]
fn pool_10_a_probe_leaves_by_the_address_it_is_told_and_is_counted() {
    let Some(mut plane) = DataPlane::of(both()) else {
        return;
    };
    let mut port = 5_000;
    for (egress, candidate) in [(EGRESS, 0), (EGRESS_2, 1)] {
        // Whatever zone the host's own address would be of, or none.
        for source in [INSIDE.0, STRANGER, at(world::DISABLED)] {
            for _ in 0..4 {
                port += 1;
                let syn = Packet::tcp((source, port), ORIGIN, SYN);
                let (from, probe) = with(&mut plane, told(egress, candidate), |plane| {
                    plane.leaves(&syn)
                });
                assert_eq!(from.0, egress);
                let slot = plane.slot((source, port), ORIGIN, TCP).unwrap();
                assert_eq!((slot.zone, u32::from(slot.pool)), (0, POOL));
                assert_eq!(probe.outcome, ADMITTED);
                let index = plane.index((source, port), ORIGIN, TCP).unwrap();
                let generation = slot.generation;
                assert_eq!(probe.slot, Reference { index, generation });
            }
        }
        assert_eq!(plane.active(egress, ORIGIN, TCP), 12);
    }
    plane.consistent();
}

#[test]
fn pool_10_a_probe_that_cannot_leave_as_told_is_refused_and_says_why() {
    let Some(mut plane) = DataPlane::of(both().with_capacity(1)) else {
        return;
    };
    let syn = |port| Packet::tcp((STRANGER, port), ORIGIN, SYN);
    let refuse = |plane: &mut DataPlane, probe, port, reason: Reason| {
        let before = plane.reason(reason);
        let (_, probe) = with(plane, probe, |plane| plane.answered(&syn(port)));
        assert_eq!(probe.outcome, refused(reason), "{reason:?}");
        assert_eq!(plane.reason(reason), before + 1);
    };
    // Another candidate stands there by now: the configuration has changed.
    refuse(&mut plane, told(EGRESS, 1), 1_001, Reason::NoAddress);
    refuse(&mut plane, told(EGRESS_2, 7), 1_002, Reason::NoAddress);
    refuse(&mut plane, told(EGRESS, u32::MAX), 1_003, Reason::NoAddress);
    let unknown = Probe {
        pool: POOL + 1,
        ..told(EGRESS, 0)
    };
    refuse(&mut plane, unknown, 1_004, Reason::NoAddress);
    // Nobody's place is taken for it, although another address has one.
    with(&mut plane, told(EGRESS, 0), |plane| {
        plane.leaves(&syn(1_005))
    });
    refuse(&mut plane, told(EGRESS, 0), 1_006, Reason::CapReached);
    plane.change(|world| {
        for candidate in &mut world.pools[0].1 {
            candidate.flags = candidate_flag::DRAINING;
        }
    });
    refuse(&mut plane, told(EGRESS_2, 1), 1_007, Reason::NoAddress);
    assert_eq!(plane.all_active(), 1);
    plane.consistent();
}

#[test]
fn pool_10_nothing_of_a_probes_socket_leaves_but_by_its_flow() {
    let Some(mut plane) = DataPlane::of(both()) else {
        return;
    };
    let late = Packet::tcp((STRANGER, 2_001), ORIGIN, ACK).numbers(1, 1);
    let (_, probe) = with(&mut plane, told(EGRESS, 0), |plane| plane.answered(&late));
    assert_eq!((probe.outcome, plane.reason(Reason::NoFlow)), (0, 1));
    // That of anybody else of no zone does.
    plane.passes(&late);
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
    let syn = Packet::tcp((STRANGER, 2_002), ORIGIN, SYN);
    let (outcome, probe) = with(&mut plane, told(EGRESS, 0), |plane| {
        plane.run(Hook::UplinkEgress, &syn, forwarded)
    });
    assert_eq!((outcome.verdict, probe.outcome), (Verdict::Next, 0));
    assert_eq!(outcome.bytes, syn.bytes());
    assert_eq!(plane.all_active(), 0);
}
