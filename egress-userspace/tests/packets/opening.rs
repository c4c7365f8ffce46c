//! NAT-7 (RFC 5382 REQ-2a): both ends open at once, and their SYNs cross.

use egress_common::key::TCP;
use egress_common::reason::Reason;
use egress_common::slot::State;

use super::{DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet};
use crate::harness::Hook;
use crate::packet::{ACK, FIN, SYN};

/// Initial numbers of the inside and of the origin.
const NUMBERS: [(u32, u32); 4] = [
    (1_000, 5_000),
    (u32::MAX, 0),
    (0, u32::MAX),
    (0x7fff_ffff, 0x8000_0000),
];

/// A segment of the inside, in numbers from where both begin.
fn out(control: u8, (ours, theirs): (u32, u32), sequence: u32) -> Packet {
    Packet::tcp(INSIDE, ORIGIN, control).numbers(ours.wrapping_add(sequence), theirs)
}

/// A segment of the origin, likewise.
fn back(egress: Endpoint, control: u8, (ours, theirs): (u32, u32), sequence: u32) -> Packet {
    Packet::tcp(ORIGIN, egress, control).numbers(theirs.wrapping_add(sequence), ours)
}

/// The inside answers the origin's SYN, and the origin the inside's.
fn answer(plane: &DataPlane, egress: Endpoint, (ours, theirs): (u32, u32), control: u8) {
    let after = theirs.wrapping_add(1);
    assert_eq!(plane.leaves(&out(SYN | ACK, (ours, after), 0)), egress);
    // Where it has sent its SYN already, the next number follows.
    let sequence = u32::from(control & SYN == 0);
    let numbers = (ours.wrapping_add(1), theirs);
    plane.arrives(&back(egress, control, numbers, sequence), INSIDE);
}

/// Both are established by the one connection, which counts once, carries data and closes.
fn goes_on(plane: &DataPlane, egress: Endpoint, (ours, theirs): (u32, u32)) {
    let is = |state: State| assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(state));
    is(State::TcpEstablished);
    let count = plane.count(EGRESS, ORIGIN, TCP).unwrap();
    assert_eq!((count.active, count.admitted), (1, 1));
    let next = (ours.wrapping_add(1), theirs.wrapping_add(1));
    assert_eq!(plane.leaves(&out(ACK, next, 0).payload(b"four")), egress);
    plane.arrives(
        &back(egress, ACK, (next.0.wrapping_add(4), next.1), 0).payload(b"back"),
        INSIDE,
    );
    let ends = (next.0.wrapping_add(4), next.1.wrapping_add(4));
    assert_eq!(plane.leaves(&out(FIN | ACK, ends, 0)), egress);
    plane.arrives(
        &back(egress, FIN | ACK, (ends.0.wrapping_add(1), ends.1), 0),
        INSIDE,
    );
    is(State::TcpEstablished);
    assert_eq!(
        plane.leaves(&out(
            ACK,
            (ends.0.wrapping_add(1), ends.1.wrapping_add(1)),
            0
        )),
        egress
    );
    is(State::Closed);
    assert_eq!(plane.all_active(), 0);
    plane.consistent();
}

/// Each sends its SYN before it has seen the other's, and each answers with SYN and ACK (RFC 9293, figure 8).
#[test]
fn rfc_5382_req_2a_two_syns_that_cross_are_one_connection() {
    for numbers in NUMBERS {
        let (ours, theirs) = numbers;
        let Some(plane) = DataPlane::new() else {
            return;
        };
        let egress = plane.leaves(&out(SYN, (ours, 0), 0));
        plane.arrives(&back(egress, SYN, (0, theirs), 0), INSIDE);
        assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::TcpHalfOpen));
        assert_eq!(plane.all_active(), 1);
        // The two answers cross as well.
        answer(&plane, egress, numbers, SYN | ACK);
        goes_on(&plane, egress, numbers);
    }
}

/// The same where the inside's SYN is lost behind us, and sent again after the origin's has come.
#[test]
fn rfc_5382_req_2a_a_syn_that_is_lost_and_sent_again_opens_nothing_else() {
    for numbers in NUMBERS {
        let (ours, theirs) = numbers;
        let Some(plane) = DataPlane::new() else {
            return;
        };
        let syn = out(SYN, (ours, 0), 0);
        let egress = plane.leaves(&syn);
        let other = back(egress, SYN, (0, theirs), 0);
        plane.arrives(&other, INSIDE);
        assert_eq!(plane.leaves(&syn), egress);
        plane.arrives(&other, INSIDE);
        answer(&plane, egress, numbers, ACK);
        goes_on(&plane, egress, numbers);
    }
}

/// The origin's comes before anybody has asked for it: it is dropped, and the connection opens by the inside's.
#[test]
fn safe_3_the_origins_syn_alone_opens_nothing() {
    for numbers in NUMBERS {
        let (ours, theirs) = numbers;
        let Some(plane) = DataPlane::new() else {
            return;
        };
        let early = back((EGRESS, INSIDE.1), SYN, (0, theirs), 0);
        plane.dropped(Hook::UplinkIngress, &early, Reason::Unsolicited);
        assert_eq!((plane.free(), plane.all_active()), (1_024, 0));
        let egress = plane.leaves(&out(SYN, (ours, 0), 0));
        plane.arrives(&early.sent_to(egress), INSIDE);
        answer(&plane, egress, numbers, SYN | ACK);
        goes_on(&plane, egress, numbers);
    }
}
