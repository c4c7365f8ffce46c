//! CAP-2, SAFE-1: exact and never mixed up, with packets on two CPUs at once.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use egress_common::key::{FlowKey, Reference, ReverseKey, TCP, UDP};
use egress_common::reason::Reason;
use egress_common::slot::State;

use crate::harness::{DataPlane, Hook};
use crate::packet::{ACK, Endpoint, FIN, Packet, RST, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{EGRESS, EGRESS_2, ORIGIN, World};

/// Threads meet here and leave together, within nanoseconds.
#[derive(Default)]
struct Start(AtomicUsize);

impl Start {
    /// Waits for the other thread the `round`th time, counted from 1.
    fn wait(&self, round: usize) {
        self.0.fetch_add(1, SeqCst);
        while self.0.load(SeqCst) < 2 * round {
            std::hint::spin_loop();
        }
    }
}

/// Whether there are two CPUs; says `SKIPPED` if not.
fn two_cpus() -> bool {
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
fn at_once(work: impl Fn(usize) + Sync) {
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
fn client(thread: usize, number: u32) -> Endpoint {
    (
        [10, 1, (number >> 14) as u8, thread as u8],
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
    assert_eq!((count.active, count.peak), (BASE, CAP));
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

/// A signal that does nothing, as often as the kernel sends it: each is an interruption of whatever
/// the thread does, also between two instructions of a program.
struct Interruptions(libc::timer_t);

impl Interruptions {
    fn every(period: Duration) -> Self {
        extern "C" fn nothing(_: libc::c_int) {}
        // SAFETY: plain data for the calls; the handler does nothing.
        unsafe {
            let handler: extern "C" fn(libc::c_int) = nothing;
            libc::signal(libc::SIGRTMIN(), handler as libc::sighandler_t);
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = libc::SIGRTMIN();
            event.sigev_notify_thread_id = libc::gettid();
            let mut timer: libc::timer_t = std::mem::zeroed();
            assert_eq!(
                libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer),
                0
            );
            let period = libc::timespec {
                tv_sec: 0,
                tv_nsec: period.as_nanos() as libc::c_long,
            };
            let times = libc::itimerspec {
                it_interval: period,
                it_value: period,
            };
            assert_eq!(
                libc::timer_settime(timer, 0, &raw const times, std::ptr::null_mut()),
                0
            );
            Self(timer)
        }
    }
}

impl Drop for Interruptions {
    fn drop(&mut self) {
        // SAFETY: the timer is ours.
        unsafe { libc::timer_delete(self.0) };
    }
}

#[test]
fn safe_1_no_packet_with_another_flows_address_while_elements_are_recycled() {
    /// Encounters that are enough, and how long to wait for them: a packet meets a recycled element
    /// only if it is interrupted between two particular instructions.
    const ENOUGH: u64 = 4;
    const PATIENCE: Duration = Duration::from_secs(60);
    if !two_cpus() {
        return;
    }
    let both = [EGRESS, EGRESS_2];
    let Some(mut plane) = DataPlane::of(World::default().with_addresses(&both).with_flows(64))
    else {
        return;
    };
    // Two hosts that leave from different egress IPs.
    let mut hosts = vec![([10, 1, 0, 2], 40_000)];
    let mut egress = vec![plane.leaves(&Packet::udp(hosts[0], ORIGIN, b""))];
    for last in 3..40 {
        let inside = ([10, 1, 0, last], 41_000);
        let leaves = plane.leaves(&Packet::udp(inside, ORIGIN, b""));
        if leaves.0 != egress[0].0 {
            hosts.push(inside);
            egress.push(leaves);
            break;
        }
    }
    assert_eq!(hosts.len(), 2);
    let flows = [0, 1].map(|nth| {
        let key = FlowKey {
            inside: hosts[nth].0,
            origin: ORIGIN.0,
            inside_port: hosts[nth].1,
            origin_port: ORIGIN.1,
            protocol: UDP,
            ..FlowKey::default()
        };
        (
            key,
            key.reverse(egress[nth].0, egress[nth].1),
            plane.flows.get(&key, 0).unwrap(),
        )
    });
    // A packet that finds no flow opens none, or it would be in the way.
    let mut closed = World::default().with_addresses(&[]);
    closed.settings.refuse_reset = 0;
    plane.write(1, &closed);
    plane.switch(1);
    let (over, packets, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let missed = AtomicU64::new(0);
    at_once(|thread| {
        if thread == 1 {
            recycle(&plane, flows, &over);
            return;
        }
        // Address and port in a packet on its way out, and in one on its way back.
        let places = [26..30, 34..36, 30..34, 36..38];
        let cases: Vec<_> = (0..2)
            .flat_map(|nth| {
                let out = Packet::udp(hosts[nth], ORIGIN, b"");
                let back = Packet::udp(ORIGIN, egress[nth], b"");
                let (left, arrived) = (
                    out.clone().sent_from(egress[nth]),
                    back.clone().sent_to(hosts[nth]),
                );
                [
                    (Hook::UplinkEgress, out.bytes(), left.bytes()),
                    (Hook::UplinkIngress, back.bytes(), arrived.bytes()),
                ]
            })
            .collect();
        let _often = Interruptions::every(Duration::from_micros(40));
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline
            && plane.reason(Reason::IndexInconsistent) + wrong.load(SeqCst) < ENOUGH
        {
            for _ in 0..1_000 {
                for (hook, bytes, right) in &cases {
                    let outcome = plane.try_bytes(*hook, bytes, Meta::default()).unwrap();
                    packets.fetch_add(1, SeqCst);
                    if outcome.verdict == Verdict::Drop {
                        missed.fetch_add(1, SeqCst);
                    } else if outcome.verdict != Verdict::Next
                        || places
                            .iter()
                            .any(|at| outcome.bytes[at.clone()] != right[at.clone()])
                    {
                        wrong.fetch_add(1, SeqCst);
                    }
                }
            }
        }
        over.store(true, SeqCst);
    });
    let recycled = plane.reason(Reason::IndexInconsistent);
    println!("{packets:?} packets, {missed:?} found nothing, {recycled} met a recycled element");
    assert_eq!(wrong.into_inner(), 0, "packets with another flow's address");
    assert_ne!(recycled, 0, "the test never met what it is about");
}

/// A flow in both indexes.
type Entries = (FlowKey<[u8; 4]>, ReverseKey<[u8; 4]>, Reference);

/// One element of each index for two flows in turn, as it is when flows end and others begin: a
/// deleted element is the next one used.
fn recycle(plane: &DataPlane, flows: [Entries; 2], over: &AtomicBool) {
    let mut indexes = plane.indexes.lock().unwrap();
    let [first, second] = flows;
    indexes.flows.remove(&second.0).unwrap();
    indexes.reverse.remove(&second.1).unwrap();
    while !over.load(SeqCst) {
        for (old, new) in [(first, second), (second, first)] {
            indexes.flows.remove(&old.0).unwrap();
            indexes.flows.insert(new.0, new.2, 0).unwrap();
            indexes.reverse.remove(&old.1).unwrap();
            indexes.reverse.insert(new.1, new.2, 0).unwrap();
        }
    }
}
