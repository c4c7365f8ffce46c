//! NAT-7: when a connection is over, and that it leaves the count exactly once.

use egress_common::key::TCP;
use egress_common::slot::{Slot, State};
use egress_common::tcp::{Direction, Way};

use super::{Address, DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet};
use crate::packet::{ACK, FIN, PSH, RST, SYN};

/// Initial sequence numbers of both sides, in every quarter of the number space.
const NUMBERS: [(u32, u32); 5] = [
    (1_000, 5_000),
    (0x4000_0000, 0x9000_0000),
    (0xfff0_0000, 0xffff_ffff),
    (u32::MAX, 0),
    (0x8000_0000, 0x7fff_ffff),
];

struct Connection<'a> {
    plane: &'a DataPlane,
    egress: Endpoint,
    ours: u32,
    theirs: u32,
}

impl<'a> Connection<'a> {
    fn established(plane: &'a DataPlane, inside: Endpoint, numbers: (u32, u32)) -> Self {
        let egress = plane.establish(inside, ORIGIN, numbers);
        Self {
            plane,
            egress,
            ours: numbers.0.wrapping_add(1),
            theirs: numbers.1.wrapping_add(1),
        }
    }

    #[track_caller]
    fn out(&self, control: u8, sequence: u32, acknowledgment: u32) {
        let packet = Packet::tcp(INSIDE, ORIGIN, control).numbers(
            self.ours.wrapping_add(sequence),
            self.theirs.wrapping_add(acknowledgment),
        );
        assert_eq!(self.plane.leaves(&packet), self.egress);
    }

    #[track_caller]
    fn back(&self, control: u8, sequence: u32, acknowledgment: u32) {
        let packet = Packet::tcp(ORIGIN, self.egress, control).numbers(
            self.theirs.wrapping_add(sequence),
            self.ours.wrapping_add(acknowledgment),
        );
        self.plane.arrives(&packet, INSIDE);
    }

    #[track_caller]
    fn is(&self, state: State) {
        assert_eq!(self.plane.state(INSIDE, ORIGIN, TCP), Some(state));
        let active = u32::from(state.is_counted());
        assert_eq!(self.plane.active(EGRESS, ORIGIN, TCP), active);
        self.plane.consistent();
    }

    /// Nothing that came since was believed.
    #[track_caller]
    fn unchanged(&self, before: &Slot<Address>) {
        let slot = self.plane.slot(INSIDE, ORIGIN, TCP).unwrap();
        assert_eq!((slot.out, slot.back), (before.out, before.back));
        assert_eq!(slot.last_seen, before.last_seen);
        assert_eq!(slot.word(), before.word());
    }
}

/// One data plane for each pair of initial numbers.
fn each(test: impl Fn(Connection<'_>)) {
    for numbers in NUMBERS {
        let Some(plane) = DataPlane::new() else {
            return;
        };
        println!("{numbers:?}");
        let connection = Connection::established(&plane, INSIDE, numbers);
        connection.is(State::TcpEstablished);
        test(connection);
    }
}

#[test]
fn nat_7_over_when_both_fins_are_seen_and_the_last_is_acknowledged() {
    each(|tcp| {
        tcp.out(FIN | ACK, 0, 0);
        tcp.is(State::TcpEstablished);
        tcp.back(ACK, 0, 1);
        tcp.is(State::TcpEstablished);
        tcp.back(FIN | ACK | PSH, 0, 1);
        tcp.is(State::TcpEstablished);
        tcp.out(ACK, 1, 1);
        tcp.is(State::Closed);
        // Late ones still pass.
        tcp.back(FIN | ACK, 0, 1);
        tcp.out(ACK, 1, 1);
        tcp.is(State::Closed);
    });
}

#[test]
fn nat_7_simultaneous_close() {
    each(|tcp| {
        tcp.out(FIN | ACK, 0, 0);
        tcp.back(FIN | ACK, 0, 0);
        tcp.is(State::TcpEstablished);
        tcp.out(ACK, 1, 1);
        tcp.is(State::TcpEstablished);
        tcp.back(ACK, 1, 1);
        tcp.is(State::Closed);
    });
}

#[test]
fn nat_7_a_rst_of_the_origin_that_fits_ends_the_connection() {
    each(|tcp| {
        tcp.back(RST, 0, 0);
        tcp.is(State::Closed);
    });
}

#[test]
fn nat_7_a_rst_of_the_inside_that_fits_ends_the_connection() {
    each(|tcp| {
        tcp.out(RST | ACK, 0, 0);
        tcp.is(State::Closed);
    });
}

#[test]
fn nat_7_any_other_rst_changes_nothing() {
    each(|tcp| {
        for sequence in [1, u32::MAX, 40_000, 0x8000_0000, 0x4000_0000, 0xc000_0000] {
            let before = tcp.plane.slot(INSIDE, ORIGIN, TCP).unwrap();
            tcp.back(RST, sequence, 0);
            tcp.out(RST | ACK, sequence, 0);
            tcp.is(State::TcpEstablished);
            tcp.unchanged(&before);
        }
    });
}

#[test]
fn nat_7_guessed_acknowledgments_change_nothing() {
    each(|tcp| {
        let before = tcp.plane.slot(INSIDE, ORIGIN, TCP).unwrap();
        for sequence in [0x2222_2222, 0x7777_7777, 0xcccc_cccc] {
            for acknowledgment in [0x1111_1111, 0x9111_1111] {
                tcp.back(ACK, sequence, acknowledgment);
                tcp.out(ACK, sequence, acknowledgment);
            }
        }
        tcp.back(ACK, 0, 0x1111_1111);
        tcp.back(ACK, 0x1111_1111, 0);
        tcp.unchanged(&before);
        tcp.out(RST, 0, 0);
        tcp.is(State::Closed);
    });
}

#[test]
fn nat_7_a_fin_before_a_strangers_data_ends_the_connection() {
    each(|tcp| {
        let stray = Packet::tcp(ORIGIN, tcp.egress, ACK)
            .numbers(tcp.theirs.wrapping_add(5_000), tcp.ours)
            .payload(b"stray");
        tcp.plane.arrives(&stray, INSIDE);
        tcp.back(FIN | ACK, 0, 0);
        tcp.out(FIN | ACK, 0, 1);
        tcp.is(State::TcpEstablished);
        tcp.back(ACK, 1, 1);
        tcp.is(State::Closed);
    });
}

#[test]
fn nat_7_a_strangers_syn_does_not_shut_out_the_origins() {
    for (ours, theirs) in NUMBERS {
        let Some(plane) = DataPlane::new() else {
            return;
        };
        println!("{ours:#x} {theirs:#x}");
        let egress = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(ours, 0));
        let stray = Packet::tcp(ORIGIN, egress, SYN).numbers(theirs.wrapping_add(0x7777_7777), 0);
        plane.arrives(&stray, INSIDE);
        let (next, first) = (ours.wrapping_add(1), theirs.wrapping_add(1));
        let answer = Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(theirs, next);
        plane.arrives(&answer, INSIDE);
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, ACK).numbers(next, first));
        let state = plane.state(INSIDE, ORIGIN, TCP);
        assert_eq!(state, Some(State::TcpEstablished));
        plane.arrives(&Packet::tcp(ORIGIN, egress, RST).numbers(first, 0), INSIDE);
        assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::Closed));
        assert_eq!(plane.all_active(), 0);
    }
}

#[test]
fn nat_7_a_rst_between_the_two_syns_ends_the_connection() {
    for (ours, theirs) in NUMBERS {
        let Some(plane) = DataPlane::new() else {
            return;
        };
        println!("{ours:#x} {theirs:#x}");
        let egress = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(ours, 0));
        let next = ours.wrapping_add(1);
        plane.arrives(
            &Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(theirs, next),
            INSIDE,
        );
        // The origin gives up before the handshake is complete.
        let reset = Packet::tcp(ORIGIN, egress, RST | ACK).numbers(theirs.wrapping_add(1), next);
        plane.arrives(&reset, INSIDE);
        assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::Closed));
        assert_eq!(plane.all_active(), 0);
    }
}

#[test]
fn nat_7_a_refused_connection_is_over() {
    for (ours, _) in NUMBERS {
        let Some(plane) = DataPlane::new() else {
            return;
        };
        let egress = plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(ours, 0));
        for wrong in [ours, ours.wrapping_add(2), ours.wrapping_add(0x8000_0000)] {
            let reset = Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, wrong);
            plane.arrives(&reset, INSIDE);
            assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::TcpHalfOpen));
        }
        let reset = Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, ours.wrapping_add(1));
        plane.arrives(&reset, INSIDE);
        assert_eq!(plane.state(INSIDE, ORIGIN, TCP), Some(State::Closed));
        assert_eq!(plane.all_active(), 0);
    }
}

#[test]
fn nat_7_a_syn_on_a_closed_flow_opens_a_new_one() {
    each(|tcp| {
        tcp.back(RST, 0, 0);
        tcp.is(State::Closed);
        let before = tcp.plane.index(INSIDE, ORIGIN, TCP).unwrap();
        let again = Packet::tcp(INSIDE, ORIGIN, SYN).numbers(tcp.ours.wrapping_add(90_000), 0);
        tcp.plane.leaves(&again);
        let after = tcp.plane.slot(INSIDE, ORIGIN, TCP).unwrap();
        assert_eq!(after.word().state, State::TcpHalfOpen);
        assert_ne!(Some(before), tcp.plane.index(INSIDE, ORIGIN, TCP));
        assert_eq!(tcp.plane.active(EGRESS, ORIGIN, TCP), 1);
        assert_eq!(tcp.plane.count(EGRESS, ORIGIN, TCP).unwrap().admitted, 2);
        tcp.plane.consistent();
    });
}

#[test]
fn nat_7_a_syn_on_a_flow_with_both_fins_opens_a_new_one() {
    each(|tcp| {
        tcp.out(FIN | ACK, 0, 0);
        tcp.back(FIN | ACK, 0, 1);
        tcp.is(State::TcpEstablished);
        let again = Packet::tcp(INSIDE, ORIGIN, SYN).numbers(tcp.ours.wrapping_add(90_000), 0);
        tcp.plane.leaves(&again);
        tcp.is(State::TcpHalfOpen);
    });
}

#[test]
fn nat_7_a_syn_that_starts_over_is_the_connections_new_beginning() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    // Nobody answered the first attempt; the client tries again from the same port.
    plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN).numbers(1_000, 0));
    let (ours, theirs) = (0x5000_0000, 0x9000_0000);
    plane.establish(INSIDE, ORIGIN, (ours, theirs));
    assert_eq!(
        plane.state(INSIDE, ORIGIN, TCP),
        Some(State::TcpEstablished)
    );
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 1);
    plane.consistent();
}

#[test]
fn nat_7_window_scaling_is_taken_from_both_syns() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let scale = |shift: u8| [1, 3, 3, shift];
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN).with_options(&scale(7));
    let egress = plane.leaves(&syn);
    let answer = Packet::tcp(ORIGIN, egress, SYN | ACK)
        .numbers(0, 1)
        .with_options(&scale(10));
    plane.arrives(&answer, INSIDE);
    let mut ack = Packet::tcp(INSIDE, ORIGIN, ACK).numbers(1, 1);
    ack.segment().window = 1_000;
    plane.leaves(&ack);
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(slot.scale, 0xa7);
    let [out, back] = slot.windows;
    let window = |way, side, kept| Direction::of(slot.word(), way, side, kept).window;
    assert_eq!(window(Way::Out, slot.out, out), 1_024 << 7);
    assert_eq!(
        window(Way::Back, slot.back, back),
        256 << 10,
        "a SYN's window is the least"
    );
}

#[test]
fn nat_7_a_strangers_fin_within_reach_does_not_end_a_half_closed_connection() {
    each(|tcp| {
        let data = |at: u32| {
            let packet = Packet::tcp(ORIGIN, tcp.egress, ACK | PSH)
                .numbers(tcp.theirs.wrapping_add(at), tcp.ours.wrapping_add(1))
                .payload(&[7; 1_000]);
            tcp.plane.arrives(&packet, INSIDE);
        };
        // The inside has said all; somebody guesses numbers beyond what the origin has sent.
        tcp.out(FIN | ACK, 0, 0);
        tcp.back(ACK, 0, 1);
        tcp.back(FIN | ACK, 5_000, 1);
        for at in (0..8_000).step_by(1_000) {
            data(at);
            tcp.out(ACK, 1, at + 1_000);
            tcp.is(State::TcpEstablished);
        }
        // The origin's own.
        tcp.back(FIN | ACK, 8_000, 1);
        tcp.is(State::TcpEstablished);
        tcp.out(ACK, 1, 8_001);
        tcp.is(State::Closed);
    });
}
