//! CAP-2, SAFE-1: exact and never mixed up, with packets on two CPUs at once.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use egress_common::index::buckets;
use egress_common::key::{FlowKey, ReverseKey, TCP, UDP};
use egress_common::reason::Reason;
use egress_common::slot::State;

use super::{DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet, at};
use crate::harness::Hook;
use crate::index::{HASH_KEY, collision};
use crate::packet::{ACK, FIN, RST, SYN};
use crate::run::{Meta, Verdict};
use crate::world::World;

/// Threads meet here and leave together, within nanoseconds.
#[derive(Default)]
pub(super) struct Start(AtomicUsize);

impl Start {
    /// Waits for the other thread the `round`th time, counted from 1.
    pub(super) fn wait(&self, round: usize) {
        self.0.fetch_add(1, SeqCst);
        while self.0.load(SeqCst) < 2 * round {
            std::hint::spin_loop();
        }
    }
}

/// Whether there are two CPUs; says `SKIPPED` if not.
pub(super) fn two_cpus() -> bool {
    if std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() >= 2) {
        return true;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("concurrency");
    println!("SKIPPED: {test}: one CPU at a time is not at once");
    false
}

/// Keeps the thread on the `nth` CPU it may use.
fn pin(nth: usize) {
    // SAFETY: plain data, filled in and read by the calls.
    unsafe {
        let mut allowed: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(
            libc::sched_getaffinity(0, size_of_val(&allowed), &raw mut allowed),
            0
        );
        let mut cpus =
            (0..libc::CPU_SETSIZE as usize).filter(|cpu| libc::CPU_ISSET(*cpu, &allowed));
        let mut only: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpus.nth(nth).unwrap_or(0), &mut only);
        assert_eq!(
            libc::sched_setaffinity(0, size_of_val(&only), &raw const only),
            0
        );
    }
}

/// Runs the same thing on two CPUs at once.
pub(super) fn at_once(work: impl Fn(usize) + Sync) {
    std::thread::scope(|scope| {
        for nth in 0..2 {
            let work = &work;
            scope.spawn(move || {
                pin(nth);
                work(nth);
            });
        }
    });
}

/// A host of its own for each flow: the port is asked for by nobody else.
pub(super) fn client(thread: usize, number: u32) -> Endpoint {
    (
        at([10, 1, (number >> 14) as u8, thread as u8]),
        2_048 + (number & 0x3fff) as u16,
    )
}

/// Sends a SYN; the port if it was admitted.
fn open(plane: &DataPlane, inside: Endpoint) -> Option<Endpoint> {
    let outcome = plane.out(&Packet::tcp(inside, ORIGIN, SYN).numbers(7, 0));
    (outcome.verdict == Verdict::Next).then(|| Packet::read(&outcome.bytes).sender())
}

/// The origin says no.
fn close(plane: &DataPlane, egress: Endpoint) {
    let outcome = plane.back(&Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 8));
    assert_eq!(outcome.verdict, Verdict::Next);
}

#[test]
fn cap_2_two_hundred_rounds_around_a_cap_of_a_thousand() {
    const CAP: u32 = 1_000;
    const BASE: u32 = 900;
    const ROUNDS: usize = 200;
    if !two_cpus() {
        return;
    }
    let world = World::default().with_capacity(CAP).with_flows(65_536);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let base: Vec<Endpoint> = (0..BASE)
        .map(|number| open(&plane, client(2, number)).unwrap())
        .collect();
    let (start, admitted) = (Start::default(), AtomicU64::new(0));
    at_once(|thread| {
        let mut number = 0;
        let mut next = || {
            number += 1;
            client(thread, number)
        };
        for round in 0..ROUNDS {
            start.wait(4 * round + 1);
            // More than there are places for.
            let mut mine: Vec<Endpoint> = (0..100).filter_map(|_| open(&plane, next())).collect();
            admitted.fetch_add(mine.len() as u64, SeqCst);
            start.wait(4 * round + 2);
            assert_eq!(plane.active(EGRESS, ORIGIN, TCP), CAP, "round {round}");
            start.wait(4 * round + 3);
            // Who gives a place back finds one: never a refusal while a place is free.
            for _ in 0..50 {
                let Some(one) = mine.pop() else { break };
                close(&plane, one);
                let again = open(&plane, next());
                mine.push(again.unwrap_or_else(|| panic!("round {round}: refused a free place")));
            }
            for one in mine {
                close(&plane, one);
            }
            start.wait(4 * round + 4);
        }
    });
    assert_eq!(admitted.load(SeqCst), ROUNDS as u64 * u64::from(CAP - BASE));
    let count = plane.count(EGRESS, ORIGIN, TCP).unwrap();
    assert_eq!((count.active, count.most()), (BASE, CAP));
    for one in base {
        close(&plane, one);
    }
    assert_eq!(plane.all_active(), 0);
    assert_eq!(plane.reason(Reason::Contended), 0);
    plane.consistent();
}

#[test]
fn cap_2_the_first_packet_of_a_flow_on_both_cpus_opens_it_once() {
    const FLOWS: u32 = 3_000;
    if !two_cpus() {
        return;
    }
    // Half of them find a port only by probing.
    let world = World::default().with_flows(8_192).with_slices(0xffff_0000);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let start = Start::default();
    let seen: Vec<AtomicU64> = (0..2 * FLOWS).map(|_| AtomicU64::new(0)).collect();
    at_once(|thread| {
        for number in 0..FLOWS {
            let inside = client(3, number * 5);
            start.wait(number as usize + 1);
            if let Some((_, port)) = open(&plane, inside) {
                seen[(2 * number) as usize + thread].store(u64::from(port), SeqCst);
            }
        }
    });
    let mut both = 0;
    for pair in seen.chunks(2) {
        let ports = [pair[0].load(SeqCst), pair[1].load(SeqCst)];
        assert_ne!(ports, [0, 0], "one of them is admitted");
        if !ports.contains(&0) {
            assert_eq!(ports[0], ports[1]);
            both += 1;
        }
    }
    println!("{both} of {FLOWS} let both packets through");
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), FLOWS);
    let linked = plane
        .slots
        .iter()
        .filter(|slot| slot.as_ref().unwrap().word().state.is_linked());
    assert_eq!(linked.count(), FLOWS as usize);
    plane.consistent();
}

#[test]
fn nat_7_both_ends_closing_on_both_cpus_close_once() {
    const FLOWS: u32 = 3_000;
    if !two_cpus() {
        return;
    }
    let Some(plane) = DataPlane::of(World::default().with_flows(4_096)) else {
        return;
    };
    let flows: Vec<(Endpoint, Endpoint)> = (0..FLOWS)
        .map(|number| {
            let inside = client(4, number);
            (inside, plane.establish(inside, ORIGIN, (100, 500)))
        })
        .collect();
    let start = Start::default();
    at_once(|thread| {
        for (number, (inside, egress)) in flows.iter().enumerate() {
            start.wait(2 * number + 1);
            if thread == 0 {
                plane.leaves(&Packet::tcp(*inside, ORIGIN, FIN | ACK).numbers(101, 501));
            } else {
                plane.arrives(
                    &Packet::tcp(ORIGIN, *egress, FIN | ACK).numbers(501, 101),
                    *inside,
                );
            }
            start.wait(2 * number + 2);
            if thread == 0 {
                plane.leaves(&Packet::tcp(*inside, ORIGIN, ACK).numbers(102, 502));
            } else {
                plane.arrives(
                    &Packet::tcp(ORIGIN, *egress, ACK).numbers(502, 102),
                    *inside,
                );
            }
        }
    });
    let open = flows
        .iter()
        .filter(|(inside, _)| plane.state(*inside, ORIGIN, TCP) != Some(State::Closed))
        .count();
    assert_eq!(open, 0, "flows whose last news was lost");
    assert_eq!(plane.all_active(), 0);
    plane.consistent();
}

#[test]
fn safe_1_no_packet_with_another_flows_address_while_elements_are_recycled() {
    const ROUNDS: usize = 20_000;
    if !two_cpus() {
        return;
    }
    let Some(mut plane) = DataPlane::of(World::default().with_flows(64)) else {
        return;
    };
    // Two flows whose entries cannot be told apart, in one index and in the other one.
    let origins = |one: u32| {
        (
            at([198, 51, 100, (one >> 12) as u8]),
            2_048 + (one & 0xfff) as u16,
        )
    };
    let hosts = (0..1 << 20_u32).map(|one| {
        (
            at([10, 1, (one >> 14) as u8, 1]),
            (one & 0x3fff) as u16 + 2_048,
        )
    });
    let of_host = |host: &Endpoint| FlowKey {
        inside: host.0,
        origin: ORIGIN.0,
        inside_port: host.1,
        origin_port: ORIGIN.1,
        protocol: UDP,
        ..FlowKey::default()
    };
    let inside = collision(buckets(64), &hosts, |host| of_host(host).hash(&HASH_KEY))
        .map(|host| (host, ORIGIN));
    let of_origin = |origin: &Endpoint| ReverseKey {
        egress: EGRESS,
        origin: origin.0,
        egress_port: INSIDE.1,
        origin_port: origin.1,
        protocol: UDP,
        ..ReverseKey::default()
    };
    let outside = collision(buckets(64), &(0..1 << 20_u32).map(origins), |origin| {
        of_origin(origin).hash(&HASH_KEY)
    })
    .map(|origin| (INSIDE, origin));
    let flows =
        [inside, outside].map(|pair| pair.map(|(inside, origin)| Case::of(&plane, inside, origin)));
    // Both entries at once already are a test: each leads to the other's slot.
    for case in flows.iter().flatten() {
        assert!(case.pass(&plane).iter().all(|passed| *passed == Some(true)));
    }
    assert_ne!(plane.reason(Reason::IndexInconsistent), 0);
    // A packet that finds no flow opens none, or it would be in the way.
    let mut closed = World::default().with_addresses(&[]);
    closed.settings.refuse_reset = 0;
    plane.write(1, &closed);
    plane.switch(1);
    let cells = flows.each_ref().map(|[one, other]| {
        let index = if one.origin == other.origin {
            &plane.flows
        } else {
            &plane.reverse
        };
        let place = index.place(if one.origin == other.origin {
            of_host(&one.inside).hash(&HASH_KEY)
        } else {
            of_origin(&one.origin).hash(&HASH_KEY)
        });
        let (mine, taken) = (index.cell(place, one.slot), index.cell(place, other.slot));
        taken.set(0);
        (mine, [place.entry(one.slot), place.entry(other.slot)])
    });
    let over = AtomicBool::new(false);
    let (passed, missed, wrong) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    at_once(|thread| {
        if thread == 1 {
            // One element for two flows in turn, as it is when flows end and others begin.
            let mut turn = 0;
            while !over.load(SeqCst) {
                turn = 1 - turn;
                for (cell, entries) in &cells {
                    cell.set(entries[turn]);
                }
            }
            return;
        }
        for _ in 0..ROUNDS {
            for case in flows.iter().flatten() {
                for outcome in case.pass(&plane) {
                    match outcome {
                        Some(true) => passed.fetch_add(1, SeqCst),
                        Some(false) => wrong.fetch_add(1, SeqCst),
                        None => missed.fetch_add(1, SeqCst),
                    };
                }
            }
        }
        over.store(true, SeqCst);
    });
    let recycled = plane.reason(Reason::IndexInconsistent);
    println!("{passed:?} passed, {missed:?} found nothing, {recycled} met another flow's element");
    assert_eq!(wrong.into_inner(), 0, "packets with another flow's address");
    assert_ne!(passed.into_inner(), 0);
    assert_ne!(
        missed.into_inner(),
        0,
        "the test never met what it is about"
    );
}

/// A flow, and what must become of its packets.
struct Case {
    inside: Endpoint,
    origin: Endpoint,
    slot: u32,
    /// Hook, packet, and what it must leave as.
    packets: [(Hook, Vec<u8>, Vec<u8>); 2],
}

impl Case {
    fn of(plane: &DataPlane, inside: Endpoint, origin: Endpoint) -> Self {
        let out = Packet::udp(inside, origin, b"");
        let egress = plane.leaves(&out);
        let back = Packet::udp(origin, egress, b"");
        let (left, arrived) = (out.clone().sent_from(egress), back.clone().sent_to(inside));
        Self {
            inside,
            origin,
            slot: plane.index(inside, origin, UDP).unwrap(),
            packets: [
                (Hook::UplinkEgress, out.bytes(), left.bytes()),
                (Hook::UplinkIngress, back.bytes(), arrived.bytes()),
            ],
        }
    }

    /// Sends one packet each way: whether it passed as it must, if it passed.
    fn pass(&self, plane: &DataPlane) -> [Option<bool>; 2] {
        // Address and port in a packet on its way out, and in one on its way back.
        let places = [26..30, 34..36, 30..34, 36..38];
        self.packets.each_ref().map(|(hook, bytes, right)| {
            let outcome = plane.try_bytes(*hook, bytes, Meta::default()).unwrap();
            (outcome.verdict != Verdict::Drop).then(|| {
                outcome.verdict == Verdict::Next
                    && places
                        .iter()
                        .all(|at| outcome.bytes[at.clone()] == right[at.clone()])
            })
        })
    }
}
