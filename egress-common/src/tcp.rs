//! TCP as a NAT sees it (RFC 5382, RFC 7857): when a connection is established, and when it is over.
//!
//! A connection is over when both FINs were seen and the last one is acknowledged, or when a RST
//! arrives whose sequence number fits what its receiver has acknowledged; any other RST changes
//! nothing (NAT-7). The judge knows for each side the highest sequence number it has sent and the
//! acknowledgment and window it last offered.

use crate::packet::{Options, Segment, control};
use crate::slot::{Direction, SlotWord, State, flag};

/// Which way a segment travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the inside to the origin.
    Out,
    /// From the origin to the inside.
    Back,
}

/// Window granted to a side that has not advertised one yet.
const FIRST_WINDOW: u32 = 65_535;

/// Whether `a` comes after `b` in sequence space (RFC 9293, section 3.4).
#[inline(always)]
pub const fn after(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

/// Whether `low <= value <= high` in sequence space.
#[inline(always)]
const fn between(low: u32, value: u32, high: u32) -> bool {
    value.wrapping_sub(low) <= high.wrapping_sub(low)
}

/// What is known of both sides right after the inside's first SYN.
#[inline(always)]
pub fn opened(segment: &Segment, options: &Options) -> (Direction, Direction, u16, u8) {
    let out = Direction {
        end: segment.sequence.wrapping_add(segment.length()),
        ack: 0,
        window: segment.window as u32,
        timestamp: options.timestamp.unwrap_or(0),
    };
    // The origin has acknowledged nothing: a RST by the inside may carry any number of its SYN.
    let back = Direction {
        ack: segment.sequence,
        window: FIRST_WINDOW,
        ..Direction::default()
    };
    let mut flags = 0;
    let mut scale = 0;
    if let Some(shift) = options.scale {
        flags |= flag::SCALE_OUT;
        scale = shift & 0x0f;
    }
    if options.timestamp.is_some() {
        flags |= flag::TIMESTAMPS;
    }
    (out, back, flags, scale)
}

/// Whether a first answer acknowledges our SYN, or some of the data that came with it (RFC 7413).
#[inline(always)]
const fn acknowledges_syn(segment: &Segment, sender: &Direction, receiver: &Direction) -> bool {
    segment.acknowledgment == receiver.end
        || (after(segment.acknowledgment, sender.ack)
            && !after(segment.acknowledgment, receiver.end))
}

/// Advances what is known of both sides by one segment; call before [`step`] for segments that are
/// not RSTs. False if the segment is none of this connection's: then nothing has changed.
///
/// A segment whose data lies beyond the window its receiver offered moves nothing: a stranger who
/// guesses ports cannot stretch what a RST is measured against. What is known of the receiver
/// changes only where one side's numbers begin: it has acknowledged nothing of them.
#[inline(always)]
pub fn observe(
    word: SlotWord,
    way: Way,
    segment: &Segment,
    sender: &mut Direction,
    receiver: &mut Direction,
) -> bool {
    let end = segment.sequence.wrapping_add(segment.length());
    let opening = word.state as u8 == State::TcpHalfOpen as u8 && !word.has(flag::SYN_IN);
    if opening {
        match way {
            Way::Back
                if segment.has(control::ACK) && !acknowledges_syn(segment, sender, receiver) =>
            {
                return false;
            }
            // The inside starts over, or repeats itself.
            Way::Out if segment.opens() => {
                sender.end = end;
                receiver.ack = segment.sequence;
                return true;
            }
            _ => {}
        }
    }
    let limit = receiver
        .ack
        .wrapping_add(if receiver.window > FIRST_WINDOW {
            receiver.window
        } else {
            FIRST_WINDOW
        });
    // The origin's first SYN says where its numbers begin.
    if opening && segment.has(control::SYN) && matches!(way, Way::Back) {
        sender.end = end;
        receiver.ack = segment.sequence;
    } else if after(end, sender.end) && !after(end, limit) {
        sender.end = end;
    }
    if segment.has(control::ACK) {
        if after(segment.acknowledgment, sender.ack) || !word.has(flag::SYN_IN) {
            sender.ack = segment.acknowledgment;
        }
        let scaled = word.has(flag::SCALE_OUT | flag::SCALE_IN) && !segment.has(control::SYN);
        let shift = match way {
            Way::Out => word.scale & 0x0f,
            Way::Back => word.scale >> 4,
        };
        sender.window = (segment.window as u32) << if scaled { shift } else { 0 };
    }
    true
}

/// Whether a RST is believed.
#[inline(always)]
pub fn reset_fits(
    word: SlotWord,
    way: Way,
    segment: &Segment,
    sender: &Direction,
    receiver: &Direction,
) -> bool {
    match way {
        // RFC 9293, 3.10.7.3: in SYN-SENT a RST counts if it acknowledges the SYN.
        Way::Back if !word.has(flag::SYN_IN) => {
            segment.has(control::ACK) && acknowledges_syn(segment, sender, receiver)
        }
        _ => {
            let high = if after(sender.end, receiver.ack) {
                sender.end
            } else {
                receiver.ack
            };
            between(receiver.ack, segment.sequence, high)
        }
    }
}

/// The state after a segment. `options` are read only for a SYN.
///
/// `sender` and `receiver` as [`observe`] left them, if it believed the segment. The caller swaps the word if it changed; who
/// swaps it to [`State::Closed`] gives the flow's place back.
#[inline(always)]
pub fn step(
    word: SlotWord,
    way: Way,
    segment: &Segment,
    options: &Options,
    sender: &Direction,
    receiver: &Direction,
) -> SlotWord {
    if !matches!(word.state, State::TcpHalfOpen | State::TcpEstablished) {
        return word;
    }
    if segment.has(control::RST) {
        return if reset_fits(word, way, segment, sender, receiver) {
            word.with_state(State::Closed)
        } else {
            word
        };
    }
    let mut next = word;
    if segment.has(control::SYN) && matches!(way, Way::Back) && !word.has(flag::SYN_IN) {
        next = next.with_flags(flag::SYN_IN);
        if let Some(shift) = options.scale {
            next = next.with_flags(flag::SCALE_IN);
            next.scale = next.scale & 0x0f | shift << 4;
        }
    }
    if matches!(next.state, State::TcpHalfOpen)
        && matches!(way, Way::Out)
        && word.has(flag::SYN_IN)
        && segment.has(control::ACK)
    {
        next.state = State::TcpEstablished;
    }
    if segment.has(control::FIN) && word.has(flag::SYN_IN) {
        let fin = segment.sequence.wrapping_add(segment.length());
        if fin == sender.end {
            next = next.with_flags(match way {
                Way::Out => flag::FIN_OUT,
                Way::Back => flag::FIN_IN,
            });
        }
    }
    if next.has(flag::FIN_OUT | flag::FIN_IN)
        && !after(sender.end, receiver.ack)
        && !after(receiver.end, sender.ack)
    {
        next.state = State::Closed;
    }
    next
}

/// Whether an origin still in TIME_WAIT on this port would accept this SYN (RFC 6191; CAP-7):
/// ahead of everything last seen from the inside there.
#[inline(always)]
pub fn reusable(word: SlotWord, last: &Direction, sequence: u32, timestamp: Option<u32>) -> bool {
    if !after(sequence, last.end) {
        return false;
    }
    match timestamp {
        Some(value) if word.has(flag::TIMESTAMPS) => after(value, last.timestamp),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
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
    fn cap_7_reuse_needs_sequence_and_timestamp_ahead() {
        let word = Wire::established().word.with_state(State::Closed);
        let last = Direction {
            end: 100,
            timestamp: 50,
            ..Direction::default()
        };
        assert!(!reusable(word, &last, 100, None));
        assert!(reusable(word, &last, 101, None));
        let word = word.with_flags(flag::TIMESTAMPS);
        assert!(!reusable(word, &last, 101, Some(50)));
        assert!(reusable(word, &last, 101, Some(51)));
        assert!(!reusable(
            word,
            &last,
            100u32.wrapping_sub(1 << 30),
            Some(51)
        ));
    }
}
