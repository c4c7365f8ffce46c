//! NAT-7, CAP-7, POOL-9: a flow that ended without its ends' doing. Both learn of it by RST; it leaves the count
//! once, and its port rests.

use egress_common::key::{Reference, TCP, UDP};
use egress_common::reason::Reason;
use egress_common::slot::State;

use super::{DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet, at};
use crate::harness::{Hook, eventually};
use crate::packet::{ACK, FIN, RST, SYN};
use crate::world::{SECOND, World};

const NEIGHBOUR: Endpoint = (at([10, 1, 0, 3]), INSIDE.1);

/// A data plane in which established connections are soon idle.
fn impatient(told: u32) -> Option<DataPlane> {
    let mut world = World::default();
    world.settings.timers.tcp_established = 50_000_000;
    world.settings.reset_idle = told;
    DataPlane::of(world)
}

/// A connection that the sweep has ended.
fn expired(plane: &DataPlane) -> Endpoint {
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.arm();
    eventually("the flow expires", || {
        plane.state(INSIDE, ORIGIN, TCP) == Some(State::Closed)
    });
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 0);
    egress
}

#[test]
fn nat_7_both_ends_of_an_idle_flow_are_answered_by_a_rst() {
    let Some(mut plane) = impatient(1) else {
        return;
    };
    let egress = expired(&plane);
    let index = plane.index(INSIDE, ORIGIN, TCP).unwrap();
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    let flow = Reference {
        index,
        generation: slot.generation,
    };
    assert_eq!(plane.told(), [flow], "the daemon is told, once");

    let late = Packet::tcp(INSIDE, ORIGIN, ACK)
        .numbers(2, 2)
        .payload(b"late");
    let mut answer = plane.answered(&late);
    assert_eq!(
        (answer.segment().control, answer.segment().sequence),
        (RST, 2)
    );
    assert_eq!(plane.reason(Reason::NoFlow), 1);

    for (control, numbers, expected) in [
        (ACK, (2, 9), (RST, 9, 0)),
        (FIN | ACK, (2, 5), (RST, 5, 0)),
        (SYN | ACK, (2, 7), (RST, 7, 0)),
    ] {
        let late = Packet::tcp(ORIGIN, egress, control)
            .numbers(numbers.0, numbers.1)
            .payload(b"late");
        let mut answer = plane.turned_round(&late);
        assert_eq!((answer.sender(), answer.receiver()), (egress, ORIGIN));
        let segment = answer.segment();
        assert_eq!(
            (segment.control, segment.sequence, segment.acknowledgment),
            expected
        );
    }
    assert_eq!(plane.reason(Reason::Over), 3);

    // A RST is what the other end is to hear as well.
    plane.arrives(&Packet::tcp(ORIGIN, egress, RST).numbers(2, 0), INSIDE);
    assert_eq!(
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, RST).numbers(2, 0)),
        egress
    );
    assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::Closed));
    assert_eq!(plane.all_active(), 0);
    plane.consistent();
}

#[test]
fn nat_7_the_origin_of_an_idle_flow_hears_nothing_where_that_is_configured() {
    let Some(plane) = impatient(0) else {
        return;
    };
    let egress = expired(&plane);
    let late = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    plane.dropped(Hook::UplinkIngress, &late, Reason::Unsolicited);
    let mut answer = plane.answered(&Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2));
    assert_eq!(answer.segment().control, RST);
}

#[test]
fn nat_7_a_flow_whose_endpoints_opened_another_answers_nobody() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.arrives(&Packet::tcp(ORIGIN, egress, RST).numbers(2, 0), INSIDE);
    // Behind what the origin remembers: by another port.
    let again = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(0x9000_0000, 0));
    assert_ne!(again, egress);
    for control in [ACK, RST, FIN | ACK] {
        let late = Packet::tcp(ORIGIN, egress, control).numbers(2, 2);
        plane.dropped(Hook::UplinkIngress, &late, Reason::Unsolicited);
    }
    assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::TcpHalfOpen));
    plane.consistent();
}

#[test]
fn nat_11_answers_to_origins_are_rate_limited() {
    let Some(mut plane) = impatient(1) else {
        return;
    };
    let egress = expired(&plane);
    plane.no_more_replies();
    let late = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    plane.dropped(Hook::UplinkIngress, &late, Reason::ReplyLimited);
    assert_eq!(plane.reason(Reason::Over), 1);
}

#[test]
fn pool_9_a_flow_that_is_ended_on_purpose_leaves_the_count_once() {
    let mut world = World::default();
    world.settings.reset_idle = 0;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let half_open = plane.leaves(&Packet::tcp(NEIGHBOUR, ORIGIN, SYN).numbers(5, 0));
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"one"));
    let flow = |inside, protocol| {
        let index = plane.index(inside, ORIGIN, protocol).unwrap();
        let slot = plane.slot(inside, ORIGIN, protocol).unwrap();
        Reference {
            index,
            generation: slot.generation,
        }
    };
    let flows = [flow(INSIDE, TCP), flow(NEIGHBOUR, TCP), flow(INSIDE, UDP)];
    assert_eq!(plane.all_active(), 3);
    for flow in flows {
        let stale = Reference {
            generation: flow.generation.wrapping_sub(1),
            ..flow
        };
        assert!(!plane.end(stale), "another flow's");
        assert!(plane.end(flow));
        assert!(!plane.end(flow), "once");
        plane.consistent();
    }
    let nobody = Reference {
        index: u32::MAX,
        generation: 1,
    };
    assert!(!plane.end(nobody));
    assert_eq!(plane.all_active(), 0);
    assert_eq!(
        plane.index(INSIDE, ORIGIN, UDP),
        None,
        "of UDP nothing is left"
    );
    // Told, whatever is told of idleness.
    let late = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    assert_eq!(plane.turned_round(&late).segment().control, RST);
    let accepted = Packet::tcp(ORIGIN, half_open, SYN | ACK).numbers(70, 6);
    let mut answer = plane.turned_round(&accepted);
    assert_eq!(
        (answer.segment().control, answer.segment().sequence),
        (RST, 6)
    );
    let mut answer = plane.answered(&Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2));
    assert_eq!(answer.segment().control, RST);
}

#[test]
fn cap_7_after_its_rest_anybody_may_have_a_port_and_until_then_late_packets_pass() {
    /// Longer than a busy machine keeps this test from its next packet.
    const REST: u64 = 3 * SECOND;

    let mut world = World::default();
    world.settings.timers.quarantine = REST;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (10_000, 1));
    plane.arrives(&Packet::tcp(ORIGIN, egress, RST).numbers(2, 0), INSIDE);
    let behind = |sequence| Packet::tcp(NEIGHBOUR, ORIGIN, SYN).numbers(sequence, 0);
    assert_ne!(plane.leaves(&behind(1)), egress, "it rests");
    // A slot keeps a moment to within 2^20 ns: one read a tick later may be found up to that much younger.
    let rested = DataPlane::now() + REST + (2 << 20);
    eventually("the port has rested", || DataPlane::now() >= rested);
    // Nobody has taken it: the old flow's packets pass.
    let fin = Packet::tcp(INSIDE, ORIGIN, FIN | ACK).numbers(10_001, 2);
    assert_eq!(plane.leaves(&fin), egress);
    plane.arrives(&Packet::tcp(ORIGIN, egress, ACK).numbers(2, 10_002), INSIDE);
    // Somebody else who asks for it gets it, whatever numbers it begins with.
    let third = (at([10, 1, 0, 4]), INSIDE.1);
    assert_eq!(
        plane.leaves(&Packet::tcp(third, ORIGIN, SYN).numbers(1, 0)),
        egress
    );
    let answer = Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(70, 2);
    plane.arrives(&answer, third);
    // The old flow is no more.
    assert_eq!(plane.index(INSIDE, ORIGIN, TCP), None);
    assert_eq!(plane.answered(&fin).segment().control, RST);
    plane.consistent();
}

#[test]
fn cap_7_a_port_that_rests_for_longer_than_late_packets_pass() {
    let mut world = World::default();
    world.settings.timers.tcp_closing = SECOND / 10;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (10_000, 1));
    plane.arrives(&Packet::tcp(ORIGIN, egress, RST).numbers(2, 0), INSIDE);
    plane.arm();
    let ack = Packet::tcp(INSIDE, ORIGIN, ACK).numbers(10_001, 2);
    eventually("late packets pass no more", || {
        plane.out(&ack).verdict == crate::run::Verdict::Redirect
    });
    assert_eq!(plane.answered(&ack).segment().control, RST);
    let late = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 10_001);
    assert_eq!(plane.turned_round(&late).segment().control, RST);
    let syn = Packet::tcp(NEIGHBOUR, ORIGIN, SYN).numbers(1, 0);
    assert_ne!(plane.leaves(&syn), egress, "it rests on");
    plane.consistent();
}
