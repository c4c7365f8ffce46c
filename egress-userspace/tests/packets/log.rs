//! OBS-4: what the flow log is told. One open for each flow that is admitted, one close for each open, whoever ends it.

use std::cell::RefCell;
use std::collections::BTreeMap;

use egress_common::key::{Reference, TCP, UDP};
use egress_common::reason::Reason;
use egress_common::record::{Cause, kind};
use egress_common::slot::State;

use super::concurrency::{Start, at_once, client, two_cpus};
use super::{DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet};
use crate::harness::{FlowLog, Told, eventually, name};
use crate::packet::{ACK, FIN, RST, SYN};
use crate::run::Verdict;
use crate::world::{POOL, SECOND, World, ZONE};

const ALL: u32 = 1 << kind::OPEN | 1 << kind::CLOSE | 1 << kind::REFUSED;

fn logged(mut world: World) -> Option<DataPlane> {
    world.settings.log = ALL;
    DataPlane::of(world)
}

/// The one record there is.
#[track_caller]
fn only(log: &mut FlowLog) -> Told<super::Address> {
    let told = log.told();
    assert_eq!(told.len(), 1, "{told:?}");
    told[0]
}

#[track_caller]
fn closed(log: &mut FlowLog) -> (Cause, State) {
    match only(log) {
        Told::Closed(flow, cause) => (cause, State::from_bits(flow.head.state)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn obs_4_a_connections_open_and_close_say_all_there_is_to_say() {
    let Some(plane) = logged(World::default()) else {
        return;
    };
    let mut log = plane.flow_log();
    let before = DataPlane::now();
    let egress = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(99, 0));
    let Told::Opened(opened) = only(&mut log) else {
        panic!("no open");
    };
    let slot = opened.slot;
    assert_eq!((slot.egress, slot.egress_port), egress);
    assert_eq!((slot.flow.inside, slot.flow.inside_port), INSIDE);
    assert_eq!((slot.flow.origin, slot.flow.origin_port), ORIGIN);
    assert_eq!(slot.flow.protocol, TCP);
    assert_eq!((u32::from(slot.zone), u32::from(slot.pool)), (ZONE, POOL));
    assert_eq!(plane.index(INSIDE, ORIGIN, TCP), Some(opened.head.index));
    assert!(opened.head.time >= before && opened.head.time < before + 300 * SECOND);
    // Packets, and what they are long: 20 bytes of TCP header, and the data.
    let head = (Packet::tcp(INSIDE, ORIGIN, SYN).ip_bytes().len()) as u64;
    let (mut out, mut back) = (vec![head], Vec::new());
    let send = |out: &mut Vec<u64>, control, numbers: (u32, u32), data: &[u8]| {
        let packet = Packet::tcp(INSIDE, ORIGIN, control)
            .numbers(numbers.0, numbers.1)
            .payload(data);
        assert_eq!(plane.leaves(&packet), egress);
        out.push(head + data.len() as u64);
    };
    let receive = |back: &mut Vec<u64>, control, numbers: (u32, u32), data: &[u8]| {
        let packet = Packet::tcp(ORIGIN, egress, control)
            .numbers(numbers.0, numbers.1)
            .payload(data);
        plane.arrives(&packet, INSIDE);
        back.push(head + data.len() as u64);
    };
    receive(&mut back, SYN | ACK, (499, 100), b"");
    send(&mut out, ACK, (100, 500), b"question");
    receive(&mut back, ACK, (500, 108), &[7; 500]);
    send(&mut out, FIN | ACK, (108, 1_000), b"");
    receive(&mut back, FIN | ACK, (1_000, 109), b"");
    assert!(log.told::<super::Address>().is_empty(), "not yet");
    send(&mut out, ACK, (109, 1_001), b"");
    let Told::Closed(flow, cause) = only(&mut log) else {
        panic!("no close");
    };
    assert_eq!(cause, Cause::Fin);
    assert_eq!(
        State::from_bits(flow.head.state),
        State::TcpEstablished,
        "the state it left"
    );
    assert_eq!(name(&flow), name(&opened));
    // The last packet, which closed it, is among them.
    assert_eq!(
        (flow.slot.packets_out, flow.slot.packets_in),
        (out.len() as u32, back.len() as u32)
    );
    assert_eq!(
        (flow.slot.bytes_out, flow.slot.bytes_in),
        (out.iter().sum(), back.iter().sum())
    );
    let age = flow.slot.opened.age(flow.head.time);
    assert!(age < flow.head.time - before + SECOND / 50, "{age}");
    // Late packets, and the end of the rest, are nobody's news.
    send(&mut out, ACK, (109, 1_001), b"");
    receive(&mut back, RST | ACK, (1_001, 109), b"");
    assert!(log.told::<super::Address>().is_empty());
    assert_eq!(plane.reason(Reason::FlowLogLost), 0);
}

#[test]
fn obs_4_whoever_ends_a_connection_is_named() {
    let Some(plane) = logged(World::default()) else {
        return;
    };
    let mut log = plane.flow_log();
    let fresh = |log: &mut FlowLog| {
        let egress = plane.establish(INSIDE, ORIGIN, (100, 500));
        assert!(matches!(only(log), Told::Opened(_)));
        egress
    };
    fresh(&mut log);
    plane.leaves(&Packet::tcp(INSIDE, ORIGIN, RST).numbers(101, 0));
    let established = State::TcpEstablished;
    assert_eq!(closed(&mut log), (Cause::ResetByInside, established));

    // From its second life on, a connection replaces one that is over already: that is no second close.
    let egress = fresh(&mut log);
    plane.arrives(&Packet::tcp(ORIGIN, egress, RST).numbers(501, 0), INSIDE);
    assert_eq!(closed(&mut log), (Cause::ResetByOrigin, established));

    let egress = fresh(&mut log);
    plane.leaves(&Packet::tcp(INSIDE, ORIGIN, FIN | ACK).numbers(101, 501));
    plane.arrives(
        &Packet::tcp(ORIGIN, egress, FIN | ACK).numbers(501, 101),
        INSIDE,
    );
    assert!(log.told::<super::Address>().is_empty());
    plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(90_000, 0));
    let told = log.told::<super::Address>();
    assert!(
        matches!(
            told[..],
            [Told::Closed(_, Cause::Replaced), Told::Opened(_)]
        ),
        "{told:?}"
    );

    for (protocol, state) in [(TCP, State::TcpHalfOpen), (UDP, State::UdpUnanswered)] {
        for cause in [Cause::Operator, Cause::ZoneMoved] {
            let inside = (INSIDE.0, 41_000 + cause as u16);
            if protocol == TCP {
                plane.leaves(&Packet::tcp(inside, ORIGIN, SYN));
            } else {
                plane.leaves(&Packet::udp(inside, ORIGIN, b""));
            }
            let Told::Opened(flow) = only(&mut log) else {
                panic!("no open");
            };
            assert!(plane.end_because(name(&flow), cause));
            assert_eq!(closed(&mut log), (cause, state));
            assert!(!plane.end_because(name(&flow), cause));
            assert!(log.told::<super::Address>().is_empty());
        }
    }
    plane.consistent();
}

/// What the sweep has closed of what was opened, once it is `enough`.
fn swept(
    change: impl FnOnce(&mut World),
    open: impl FnOnce(&DataPlane),
    enough: usize,
) -> Option<Vec<Cause>> {
    let mut world = World::default();
    change(&mut world);
    let plane = logged(world)?;
    let mut log = plane.flow_log();
    open(&plane);
    let told = log.told::<super::Address>();
    assert!(told.iter().all(|told| matches!(told, Told::Opened(_))));
    plane.arm();
    let (log, causes) = (RefCell::new(log), RefCell::new(Vec::new()));
    eventually("the sweep closes flows", || {
        let mut causes = causes.borrow_mut();
        for told in log.borrow_mut().told::<super::Address>() {
            match told {
                Told::Closed(_, cause) => causes.push(cause),
                other => panic!("{other:?}"),
            }
        }
        causes.len() >= enough
    });
    Some(causes.into_inner())
}

#[test]
fn obs_4_the_timer_that_ends_a_flow_is_named() {
    let udp = |plane: &DataPlane| {
        plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    };
    let Some(causes) = swept(|world| world.settings.timers.udp = SECOND / 10, udp, 1) else {
        return;
    };
    assert_eq!(causes, [Cause::TimeoutUdp]);
    let half_open = |plane: &DataPlane| {
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN));
    };
    let soon = |world: &mut World| world.settings.timers.tcp_transitory = SECOND / 10;
    let causes = swept(soon, half_open, 1);
    assert_eq!(causes.unwrap(), [Cause::TimeoutTcpTransitory]);
    let established = |plane: &DataPlane| {
        plane.establish(INSIDE, ORIGIN, (1, 1));
    };
    let soon = |world: &mut World| world.settings.timers.tcp_established = SECOND / 10;
    let causes = swept(soon, established, 1);
    assert_eq!(causes.unwrap(), [Cause::TimeoutTcpEstablished]);
}

#[test]
fn obs_4_a_flow_that_makes_room_says_so() {
    let crowd = |plane: &DataPlane| {
        for port in 0..64 {
            plane.leaves(&Packet::udp((INSIDE.0, 7_000 + port), ORIGIN, b""));
        }
    };
    let full = |world: &mut World| world.max_flows = 64;
    // Whom nobody answers leaves a full table long before its timer, which is 300 s.
    let Some(causes) = swept(full, crowd, 8) else {
        return;
    };
    assert!(
        causes.iter().all(|cause| *cause == Cause::Reclaimed),
        "{causes:?}"
    );
}

#[test]
fn obs_4_a_refusal_has_its_reason_and_endpoints() {
    let Some(plane) = logged(World::default().with_capacity(1)) else {
        return;
    };
    let mut log = plane.flow_log();
    plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN));
    assert!(matches!(only(&mut log), Told::Opened(_)));
    let late: Endpoint = (INSIDE.0, 50_000);
    plane.answered(&Packet::tcp(late, ORIGIN, SYN));
    let Told::Refused(refusal) = only(&mut log) else {
        panic!("no refusal");
    };
    assert_eq!(u32::from(refusal.head.cause), Reason::CapReached as u32);
    assert_eq!((refusal.flow.inside, refusal.flow.inside_port), late);
    assert_eq!((refusal.flow.origin, refusal.flow.origin_port), ORIGIN);
    assert_eq!(refusal.flow.protocol, TCP);
    assert_eq!((refusal.zone, refusal.pool), (ZONE, POOL));
    plane.answered(&Packet::tcp(late, ORIGIN, ACK));
    let Told::Refused(refusal) = only(&mut log) else {
        panic!("no refusal");
    };
    assert_eq!(u32::from(refusal.head.cause), Reason::NoFlow as u32);
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 1);
}

#[test]
fn obs_4_only_what_is_wanted_is_told() {
    for wanted in 0..8 {
        let mut world = World::default();
        world.settings.log = wanted << 1;
        let Some(plane) = DataPlane::of(world) else {
            return;
        };
        let mut log = plane.flow_log();
        let egress = plane.establish(INSIDE, ORIGIN, (100, 500));
        plane.arrives(&Packet::tcp(ORIGIN, egress, RST).numbers(501, 0), INSIDE);
        plane.answered(&Packet::tcp((INSIDE.0, 50_000), ORIGIN, ACK));
        let mut kinds = 0;
        for told in log.told::<super::Address>() {
            kinds |= match told {
                Told::Opened(_) => 1 << kind::OPEN,
                Told::Closed(..) => 1 << kind::CLOSE,
                Told::Refused(_) => 1 << kind::REFUSED,
            };
        }
        assert_eq!(kinds, wanted << 1);
    }
}

#[test]
fn obs_4_what_does_not_fit_is_lost_and_counted_and_flows_go_on() {
    let Some(plane) = logged(World::default().with_flows(4_096)) else {
        return;
    };
    let mut log = plane.flow_log();
    // A flood of refusals fills half of the ring.
    let stray = Packet::tcp(INSIDE, ORIGIN, ACK);
    let mut sent = 0;
    while plane.reason(Reason::FlowLogLost) == 0 {
        for _ in 0..100 {
            assert_ne!(plane.out(&stray).verdict, Verdict::Next);
            sent += 1;
        }
        assert!(sent < 20_000);
    }
    let lost = plane.reason(Reason::FlowLogLost);
    // Flows have the other half, and go on without it.
    let mut flows = 0;
    while plane.reason(Reason::FlowLogLost) == lost {
        for _ in 0..100 {
            let egress = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(7 + flows, 0));
            let answer = Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 8 + flows);
            plane.arrives(&answer, INSIDE);
            flows += 1;
        }
        assert!(flows < 20_000);
    }
    assert!(flows > 500, "{flows}");
    let told = log.told::<super::Address>();
    let refused = told
        .iter()
        .filter(|told| matches!(told, Told::Refused(_)))
        .count() as u64;
    assert_eq!(refused + lost, sent);
    assert_eq!(
        told.len() as u64 + plane.reason(Reason::FlowLogLost),
        sent + 2 * u64::from(flows)
    );
    // There is room again.
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    assert!(matches!(only(&mut log), Told::Opened(_)));
}

/// Opens and closes by flow.
fn pairs(told: &[Told<super::Address>]) -> BTreeMap<(u32, u32), (u32, u32)> {
    let mut pairs = BTreeMap::<_, (u32, u32)>::new();
    for record in told {
        let (flow, opened, closed) = match record {
            Told::Opened(flow) => (flow, 1, 0),
            Told::Closed(flow, _) => (flow, 0, 1),
            Told::Refused(_) => continue,
        };
        let Reference { index, generation } = name(flow);
        let pair = pairs.entry((index, generation)).or_default();
        *pair = (pair.0 + opened, pair.1 + closed);
    }
    pairs
}

#[test]
fn obs_4_each_open_has_one_close_whoever_is_first_on_two_cpus() {
    // Three flows each at the most, and their 336 bytes of records fit the ring.
    const FLOWS: u32 = 500;
    if !two_cpus() {
        return;
    }
    let mut world = World::default().with_flows(4_096);
    // The sweep takes part as well.
    world.settings.timers.tcp_established = SECOND / 10;
    world.settings.timers.tcp_transitory = SECOND / 10;
    world.settings.timers.udp = SECOND / 10;
    let Some(plane) = logged(world) else {
        return;
    };
    plane.arm();
    let mut log = plane.flow_log();
    let start = Start::default();
    at_once(|thread| {
        for number in 0..FLOWS {
            let inside = client(3, number * 5);
            start.wait(3 * number as usize + 1);
            // Both open it.
            let outcome = plane.out(&Packet::tcp(inside, ORIGIN, SYN).numbers(100, 0));
            let passed = outcome.verdict == Verdict::Next;
            let egress = passed.then(|| Packet::read(&outcome.bytes).sender());
            start.wait(3 * number as usize + 2);
            // Both end it, each for its own end.
            if thread == 0 {
                plane.out(&Packet::tcp(inside, ORIGIN, RST).numbers(101, 0));
            } else if let Some(egress) = egress {
                plane.back(&Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 101));
            }
            start.wait(3 * number as usize + 3);
            plane.out(&Packet::udp(client(5, number), ORIGIN, b""));
        }
    });
    eventually("all flows are over", || plane.all_active() == 0);
    let mut told = log.told();
    // The last tick writes its records right after it has changed the count.
    let ticks = plane.progress().ticks;
    eventually("another tick", || plane.progress().ticks > ticks + 1);
    told.extend(log.told());
    assert_eq!(plane.reason(Reason::FlowLogLost), 0);
    let pairs = pairs(&told);
    let odd: Vec<_> = pairs.iter().filter(|(_, pair)| **pair != (1, 1)).collect();
    assert!(odd.is_empty(), "{odd:?}");
    let mut causes = BTreeMap::<_, u32>::new();
    for record in &told {
        if let Told::Closed(_, cause) = record {
            *causes.entry(*cause).or_default() += 1;
        }
    }
    println!("{} flows: {causes:?}", pairs.len());
    let all = plane.counts.iter().map(|count| count.unwrap().admitted);
    assert_eq!(pairs.len() as u64, all.sum::<u64>());
}
