//! Connections played from both ends.

use super::*;

/// A connection played from both ends, with its record.
struct Wire {
    word: SlotWord,
    out: Direction,
    back: Direction,
}

const INSIDE: u32 = 0xffff_fff0;
const ORIGIN: u32 = 5_000;

fn segment(control: u8, sequence: u32, acknowledgment: u32, payload: u32) -> Segment {
    Segment {
        sequence,
        acknowledgment,
        control,
        header: 20,
        window: 1_000,
        payload,
    }
}

impl Wire {
    fn syn() -> Self {
        let syn = segment(control::SYN, INSIDE, 0, 0);
        let options = Options {
            scale: Some(7),
            timestamp: None,
        };
        let (out, back, flags, scale) = opened(&syn, &options);
        let word = SlotWord {
            state: State::TcpHalfOpen,
            scale,
            flags,
            generation: 1,
        };
        Self { word, out, back }
    }

    fn send(&mut self, way: Way, segment: Segment) -> State {
        let options = Options {
            scale: Some(7),
            timestamp: None,
        };
        let (sender, receiver) = match way {
            Way::Out => (&mut self.out, &mut self.back),
            Way::Back => (&mut self.back, &mut self.out),
        };
        if !segment.has(control::RST) && !observe(self.word, way, &segment, sender, receiver) {
            return self.word.state;
        }
        self.word = step(self.word, way, &segment, &options, sender, receiver);
        self.word.state
    }

    fn established() -> Self {
        let mut wire = Self::syn();
        let one = INSIDE.wrapping_add(1);
        assert_eq!(
            wire.send(
                Way::Back,
                segment(control::SYN | control::ACK, ORIGIN, one, 0)
            ),
            State::TcpHalfOpen
        );
        assert_eq!(
            wire.send(Way::Out, segment(control::ACK, one, ORIGIN + 1, 0)),
            State::TcpEstablished
        );
        wire
    }
}

#[test]
fn nat_7_closed_only_when_both_fins_are_seen_and_the_last_is_acknowledged() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    let fin = control::FIN | control::ACK;
    assert_eq!(
        wire.send(Way::Back, segment(fin, ORIGIN + 1, one, 0)),
        State::TcpEstablished
    );
    assert_eq!(
        wire.send(Way::Out, segment(control::ACK, one, ORIGIN + 2, 0)),
        State::TcpEstablished
    );
    assert_eq!(
        wire.send(Way::Out, segment(fin, one, ORIGIN + 2, 0)),
        State::TcpEstablished
    );
    assert_eq!(
        wire.send(
            Way::Back,
            segment(control::ACK, ORIGIN + 2, one.wrapping_add(1), 0)
        ),
        State::Closed
    );
}

#[test]
fn nat_7_a_half_closed_connection_still_carries_data() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    wire.send(
        Way::Out,
        segment(control::FIN | control::ACK, one, ORIGIN + 1, 0),
    );
    wire.send(
        Way::Back,
        segment(control::ACK, ORIGIN + 1, one.wrapping_add(1), 1_000),
    );
    assert_eq!(wire.word.state, State::TcpEstablished);
    // All that was sent is acknowledged, one FIN included: the other is yet to come.
    wire.send(
        Way::Out,
        segment(control::ACK, one.wrapping_add(1), ORIGIN + 1_001, 0),
    );
    assert_eq!(wire.word.state, State::TcpEstablished);
    assert!(wire.word.has(flag::FIN_OUT) && !wire.word.has(flag::FIN_IN));
}

#[test]
fn nat_7_a_refused_connection_is_closed_by_its_rst() {
    let mut wire = Wire::syn();
    let ack = INSIDE.wrapping_add(1);
    assert_eq!(
        wire.send(Way::Back, segment(control::RST, 0, 0, 0)),
        State::TcpHalfOpen
    );
    assert_eq!(
        wire.send(
            Way::Back,
            segment(control::RST | control::ACK, 0, ack.wrapping_add(9), 0)
        ),
        State::TcpHalfOpen
    );
    assert_eq!(
        wire.send(Way::Back, segment(control::RST | control::ACK, 0, ack, 0)),
        State::Closed
    );
}

#[test]
fn nat_7_a_blind_rst_changes_nothing() {
    let mut wire = Wire::established();
    for sequence in [
        0,
        ORIGIN,
        ORIGIN + 2,
        ORIGIN + 40_000,
        ORIGIN.wrapping_sub(1),
    ] {
        assert_eq!(
            wire.send(Way::Back, segment(control::RST, sequence, 0, 0)),
            State::TcpEstablished,
            "{sequence}"
        );
    }
    assert_eq!(
        wire.send(Way::Back, segment(control::RST, ORIGIN + 1, 0, 0)),
        State::Closed
    );
}

#[test]
fn nat_7_a_rst_behind_data_in_flight_counts() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    wire.send(Way::Back, segment(control::ACK, ORIGIN + 1, one, 1_000));
    assert_eq!(
        wire.send(Way::Back, segment(control::RST, ORIGIN + 1_001, 0, 0)),
        State::Closed
    );
}

#[test]
fn data_beyond_the_window_does_not_stretch_what_a_rst_is_measured_against() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    // Window is 1000 << 7 after the handshake.
    wire.send(
        Way::Back,
        segment(control::ACK, ORIGIN + 1_000_000, one, 10),
    );
    assert_eq!(
        wire.send(Way::Back, segment(control::RST, ORIGIN + 1_000_010, 0, 0)),
        State::TcpEstablished
    );
}

#[test]
fn nat_7_simultaneous_open() {
    let mut wire = Wire::syn();
    let one = INSIDE.wrapping_add(1);
    assert_eq!(
        wire.send(Way::Back, segment(control::SYN, ORIGIN, 0, 0)),
        State::TcpHalfOpen
    );
    assert_eq!(
        wire.send(
            Way::Out,
            segment(control::SYN | control::ACK, INSIDE, ORIGIN + 1, 0)
        ),
        State::TcpEstablished
    );
    assert_eq!(
        wire.send(
            Way::Back,
            segment(control::SYN | control::ACK, ORIGIN, one, 0)
        ),
        State::TcpEstablished
    );
}

#[test]
fn nat_7_an_inside_that_gives_up_in_syn_sent_closes_the_flow() {
    for sequence in [INSIDE, INSIDE.wrapping_add(1)] {
        let mut wire = Wire::syn();
        assert_eq!(
            wire.send(Way::Out, segment(control::RST, sequence, 0, 0)),
            State::Closed
        );
    }
}

#[test]
fn nat_7_acknowledgments_with_guessed_numbers_do_not_put_a_rst_out_of_reach() {
    for sequence in [0, 0x2222_2222, 0x7777_7777, 0xcccc_cccc, ORIGIN + 1] {
        let mut wire = Wire::established();
        let known = (wire.out, wire.back);
        for guess in [0x1111_1111, 0x9111_1111] {
            let guess = segment(control::ACK, sequence, guess, 0);
            assert!(!observe(
                wire.word,
                Way::Back,
                &guess,
                &mut wire.back,
                &mut wire.out
            ));
        }
        assert_eq!((wire.out, wire.back), known);
        assert_eq!(
            wire.send(
                Way::Out,
                segment(control::RST, INSIDE.wrapping_add(1), 0, 0)
            ),
            State::Closed
        );
    }
}

#[test]
fn nat_7_an_implausible_sequence_number_changes_no_window() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    for sequence in [ORIGIN + 10_000_000, ORIGIN.wrapping_sub(10_000_000)] {
        let known = wire.back;
        let mut guess = segment(control::ACK, sequence, one, 0);
        guess.window = 65_535;
        assert!(!observe(
            wire.word,
            Way::Back,
            &guess,
            &mut wire.back,
            &mut wire.out
        ));
        assert_eq!(wire.back, known);
    }
}

#[test]
fn an_old_acknowledgment_does_not_bring_back_its_window() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    wire.send(Way::Out, segment(control::ACK, one, ORIGIN + 1, 100));
    wire.send(
        Way::Back,
        segment(control::ACK, ORIGIN + 1, one.wrapping_add(100), 0),
    );
    let known = wire.back;
    let mut old = segment(control::ACK, ORIGIN + 1, one, 0);
    old.window = 7;
    wire.send(Way::Back, old);
    assert_eq!(wire.back, known);
}

#[test]
fn a_window_that_seems_closed_does_not_leave_what_follows_disbelieved() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    // 128,000 bytes were offered. Two segments that change places: open again, and closed before that.
    wire.send(Way::Out, segment(control::ACK, one, ORIGIN + 1, 0));
    let mut closed = segment(control::ACK, one, ORIGIN + 1, 0);
    closed.window = 0;
    wire.send(Way::Out, closed);
    for sent in [0, 128_000] {
        let data = segment(control::ACK, ORIGIN + 1 + sent, one, 128_000);
        wire.send(Way::Back, data);
    }
    assert_eq!(wire.back.end, ORIGIN + 256_001);
}

#[test]
fn a_missed_segment_does_not_leave_its_acknowledgment_disbelieved() {
    let mut wire = Wire::established();
    let later = INSIDE.wrapping_add(1).wrapping_add(1_400);
    wire.send(Way::Back, segment(control::ACK, ORIGIN + 1, later, 0));
    assert_eq!(wire.back.ack, later);
    assert_eq!(
        wire.send(Way::Out, segment(control::RST, later, 0, 0)),
        State::Closed
    );
}

#[test]
fn nat_7_a_fin_is_the_end_whatever_seemed_to_lie_behind_it() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    let fin = control::FIN | control::ACK;
    // A stranger's data within the window.
    wire.send(Way::Back, segment(control::ACK, ORIGIN + 1_001, one, 9));
    wire.send(Way::Back, segment(fin, ORIGIN + 1, one, 0));
    assert!(wire.word.has(flag::FIN_IN));
    wire.send(Way::Out, segment(fin, one, ORIGIN + 2, 0));
    let last = segment(control::ACK, ORIGIN + 2, one.wrapping_add(1), 0);
    assert_eq!(wire.send(Way::Back, last), State::Closed);
}

#[test]
fn nat_7_a_fin_of_what_was_acknowledged_long_ago_is_none() {
    let mut wire = Wire::established();
    let one = INSIDE.wrapping_add(1);
    wire.send(Way::Back, segment(control::ACK, ORIGIN + 1, one, 100));
    wire.send(Way::Out, segment(control::ACK, one, ORIGIN + 101, 0));
    wire.send(
        Way::Back,
        segment(control::FIN | control::ACK, ORIGIN + 1, one, 0),
    );
    assert!(!wire.word.has(flag::FIN_IN));
    assert_eq!(wire.back.end, ORIGIN + 101);
}

#[test]
fn nat_7_a_strangers_syn_does_not_say_where_the_origins_numbers_begin() {
    let mut wire = Wire::syn();
    let one = INSIDE.wrapping_add(1);
    wire.send(Way::Back, segment(control::SYN, 0x7777_7777, 0, 0));
    wire.send(
        Way::Back,
        segment(control::SYN | control::ACK, ORIGIN, one, 0),
    );
    assert_eq!((wire.back.end, wire.out.ack), (ORIGIN + 1, ORIGIN));
    assert_eq!(
        wire.send(Way::Out, segment(control::ACK, one, ORIGIN + 1, 0)),
        State::TcpEstablished
    );
    assert_eq!(
        wire.send(Way::Back, segment(control::RST, ORIGIN + 1, 0, 0)),
        State::Closed
    );
}

#[test]
fn nat_7_a_repeated_syn_takes_nothing_back() {
    let mut wire = Wire::syn();
    let one = INSIDE.wrapping_add(1);
    let syn = segment(control::SYN | control::ACK, ORIGIN, one, 0);
    wire.send(Way::Back, syn);
    wire.send(Way::Back, segment(control::ACK, ORIGIN + 1, one, 500));
    wire.send(Way::Back, syn);
    assert_eq!(wire.back.end, ORIGIN + 501);
    assert_eq!(wire.word.state, State::TcpHalfOpen);
}

#[test]
fn rfc_5927_an_error_quotes_what_may_be_under_way() {
    // Both sides of the wrap of numbers.
    for start in [1_000_000u32, 40_000] {
        let sender = Direction {
            end: start.wrapping_add(5_000),
            ..Direction::default()
        };
        let window = |window| Direction {
            ack: start,
            window,
            ..Direction::default()
        };
        let cases = [(0, 65_535), (100_000, 100_000), (1 << 29, 1 << 20)];
        for (offered, back) in cases {
            let receiver = window(offered);
            let fits = |number: u32| quotable(number, &sender, &receiver);
            assert!(fits(start) && fits(sender.end));
            assert!(!fits(sender.end.wrapping_add(1)));
            assert!(fits(start.wrapping_sub(back)));
            assert!(!fits(start.wrapping_sub(back + 1)));
        }
        // The other side may have acknowledged more than was seen.
        let behind = Direction {
            end: start.wrapping_sub(9),
            ..sender
        };
        assert!(quotable(start, &behind, &window(0)));
        assert!(!quotable(start + 1, &behind, &window(0)));
    }
}

#[test]
fn cap_7_reuse_needs_sequence_and_timestamp_ahead() {
    let word = Wire::established().word.with_state(State::Closed);
    let last = Last {
        end: 100,
        timestamp: 50,
    };
    assert!(!reusable(word, last, 100, None));
    assert!(reusable(word, last, 101, None));
    let word = word.with_flags(flag::TIMESTAMPS);
    assert!(!reusable(word, last, 101, Some(50)));
    assert!(reusable(word, last, 101, Some(51)));
    assert!(!reusable(
        word,
        last,
        100u32.wrapping_sub(1 << 30),
        Some(51)
    ));
}

#[test]
fn nat_7_a_strangers_fin_is_disproved_by_its_receiver() {
    let one = INSIDE.wrapping_add(1);
    // Behind what the origin has sent, and before it.
    for fin_at in [5_000, 200] {
        let mut wire = Wire::established();
        wire.send(Way::Back, segment(control::ACK, ORIGIN + 1, one, 1_000));
        let fin = segment(control::FIN | control::ACK, ORIGIN + fin_at, one, 0);
        wire.send(Way::Back, fin);
        assert!(wire.word.has(flag::FIN_IN));
        for sent in (1_000u32..10_000).step_by(1_000) {
            let data = segment(control::ACK, ORIGIN + 1 + sent, one, 1_000);
            wire.send(Way::Back, data);
            let ack = segment(control::ACK, one, ORIGIN + 1 + sent + 1_000, 0);
            wire.send(Way::Out, ack);
        }
        assert!(!wire.word.has(flag::FIN_IN), "{fin_at}");
        // The inside has nothing more to say; the origin goes on.
        let over = segment(control::FIN | control::ACK, one, ORIGIN + 10_001, 0);
        wire.send(Way::Out, over);
        let heard = segment(control::ACK, ORIGIN + 10_001, one.wrapping_add(1), 1_000);
        assert_eq!(wire.send(Way::Back, heard), State::TcpEstablished);
        let last = segment(
            control::FIN | control::ACK,
            ORIGIN + 11_001,
            one.wrapping_add(1),
            0,
        );
        wire.send(Way::Back, last);
        let ack = segment(control::ACK, one.wrapping_add(1), ORIGIN + 11_002, 0);
        assert_eq!(wire.send(Way::Out, ack), State::Closed);
    }
}

#[test]
fn nat_7_a_farewell_carries_what_each_end_expects() {
    let mut wire = Wire::syn();
    let one = INSIDE.wrapping_add(1);
    let early = farewell(wire.word, &wire.out.side(), &wire.back.side());
    // RFC 9293, 3.10.7.3: acceptable in SYN-SENT, and to an origin in SYN-RECEIVED.
    assert_eq!((early.inside, early.origin.0), ((0, one), one));
    wire = Wire::established();
    wire.send(Way::Back, segment(control::ACK, ORIGIN + 1, one, 700));
    wire.send(Way::Out, segment(control::ACK, one, ORIGIN + 701, 300));
    wire.send(
        Way::Back,
        segment(control::ACK, ORIGIN + 701, one.wrapping_add(300), 0),
    );
    let end = farewell(wire.word, &wire.out.side(), &wire.back.side());
    assert_eq!(end.inside, (ORIGIN + 701, one.wrapping_add(300)));
    assert_eq!(end.origin, (one.wrapping_add(300), ORIGIN + 701));
}
