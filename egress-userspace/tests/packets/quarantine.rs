//! CAP-7, CAP-8: the port of a closed connection rests, unless the origin would take it back.

use egress_common::key::TCP;
use egress_common::slot::State;

use super::{DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet, at};
use crate::packet::{ACK, RST, SYN};

const NEIGHBOUR: Endpoint = (at([10, 1, 0, 3]), INSIDE.1);

/// A connection whose last sequence number is 2,001 and whose last timestamp is 500, closed.
fn closed(plane: &DataPlane, inside: Endpoint, timestamps: bool) -> Endpoint {
    let stamp = |packet: Packet, value: u8| {
        if timestamps {
            packet.with_options(&[1, 1, 8, 10, 0, 0, 1, value, 0, 0, 0, 0])
        } else {
            packet
        }
    };
    let egress = plane.leaves(&stamp(
        Packet::tcp(inside, ORIGIN, SYN).numbers(2_000, 0),
        0xf4,
    ));
    plane.arrives(
        &Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 2_001),
        inside,
    );
    assert_eq!(plane.state(inside, ORIGIN, TCP), Some(State::Closed));
    egress
}

fn stamped(packet: Packet, value: u8) -> Packet {
    packet.with_options(&[1, 1, 8, 10, 0, 0, 1, value, 0, 0, 0, 0])
}

#[test]
fn cap_7_a_resting_port_is_not_reused_by_a_syn_behind() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = closed(&plane, INSIDE, false);
    for behind in [2_001, 2_000, 1, 2_001u32.wrapping_sub(0x7000_0000)] {
        let syn = Packet::tcp(NEIGHBOUR, ORIGIN, SYN).numbers(behind, 0);
        assert_ne!(plane.leaves(&syn), egress, "{behind}");
        assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::Closed));
    }
    plane.consistent();
}

#[test]
fn cap_7_a_resting_port_is_reused_by_a_syn_ahead() {
    for ahead in [2_002, 0x7000_0000] {
        let Some(plane) = DataPlane::new() else {
            return;
        };
        let egress = closed(&plane, INSIDE, false);
        let syn = Packet::tcp(NEIGHBOUR, ORIGIN, SYN).numbers(ahead, 0);
        assert_eq!(plane.leaves(&syn), egress);
        assert_eq!(plane.index(INSIDE, ORIGIN, TCP), None);
        plane.arrives(
            &Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(7, ahead + 1),
            NEIGHBOUR,
        );
        assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 1);
        plane.consistent();
    }
}

#[test]
fn cap_7_with_timestamps_both_must_be_ahead() {
    for (sequence, value, reused) in [
        (2_002, 0xf5, true),
        (2_002, 0xf4, false),
        (2_002, 0x10, false),
        (2_001, 0xf5, false),
    ] {
        let Some(plane) = DataPlane::new() else {
            return;
        };
        let egress = closed(&plane, INSIDE, true);
        let syn = stamped(
            Packet::tcp(NEIGHBOUR, ORIGIN, SYN).numbers(sequence, 0),
            value,
        );
        assert_eq!(plane.leaves(&syn) == egress, reused, "{sequence} {value}");
        plane.consistent();
    }
}

#[test]
fn cap_7_the_same_client_behind_takes_another_port_and_the_old_one_goes_on_resting() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = closed(&plane, INSIDE, false);
    let again = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(1_000, 0));
    assert_ne!(again, egress, "the origin may be in TIME_WAIT there");
    let other = plane.leaves(&Packet::tcp(NEIGHBOUR, ORIGIN, SYN).numbers(1_500, 0));
    assert_ne!(other, egress, "and nobody else may hit it either");
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 2);
    plane.consistent();
}

#[test]
fn cap_7_the_same_client_ahead_keeps_its_port() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = closed(&plane, INSIDE, false);
    assert_eq!(
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(3_000, 0)),
        egress
    );
    plane.consistent();
}
