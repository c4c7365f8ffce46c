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

/// How far from what a side has acknowledged a segment for it may lie: twice its window, because the
/// latest window may be one that another CPU is about to write.
#[inline(always)]
const fn reach(side: &Direction) -> u32 {
    /// A side's reach stays within what [`after`] can tell.
    const WIDEST: u32 = 1 << 29;
    let window = if side.window < FIRST_WINDOW {
        FIRST_WINDOW
    } else if side.window > WIDEST {
        WIDEST
    } else {
        side.window
    };
    window << 1
}

/// Whether a number lies in what its receiver has yet to acknowledge: all that a RST has to know.
#[inline(always)]
const fn unacknowledged(number: u32, sender: &Direction, receiver: &Direction) -> bool {
    let high = if after(sender.end, receiver.ack) {
        sender.end
    } else {
        receiver.ack
    };
    between(receiver.ack, number, high)
}

/// Whether the origin's first SYN arrives, or a SYN that acknowledges ours after one that did not
/// and may have been a stranger's: its numbers are where the origin's begin.
#[inline(always)]
const fn begins(
    word: SlotWord,
    way: Way,
    segment: &Segment,
    sender: &Direction,
    receiver: &Direction,
) -> bool {
    matches!(way, Way::Back)
        && matches!(word.state, State::TcpHalfOpen)
        && segment.has(control::SYN)
        && (!word.has(flag::SYN_IN)
            || (segment.has(control::ACK)
                && segment.sequence != receiver.ack
                && acknowledges_syn(segment, sender, receiver)))
}

/// Whether both numbers of a segment are such as this connection would use now.
///
/// Nobody acknowledges what was not sent. But of two segments on two CPUs we may have missed one:
/// who knows as much as a RST must may acknowledge up to the window it has offered.
#[inline(always)]
const fn plausible(
    word: SlotWord,
    segment: &Segment,
    sender: &Direction,
    receiver: &Direction,
) -> bool {
    let reach_in = reach(receiver);
    let low = receiver.ack.wrapping_sub(reach_in);
    let span = reach_in << 1;
    let start = segment.sequence.wrapping_sub(low);
    if start > span || segment.length() > span - start {
        return false;
    }
    if !segment.has(control::ACK) || !word.has(flag::SYN_IN) {
        return true;
    }
    let reach_out = reach(sender);
    let mut high = receiver.end;
    if unacknowledged(segment.sequence, sender, receiver) {
        let offered = sender.ack.wrapping_add(reach_out);
        if after(offered, high) {
            high = offered;
        }
    }
    !after(sender.ack.wrapping_sub(reach_out), segment.acknowledgment)
        && !after(segment.acknowledgment, high)
}

/// Advances what is known of both sides by one segment; call before [`step`] for segments that are
/// not RSTs. False if the segment is none of this connection's: then nothing has changed, and it
/// does not count as a sign of life.
///
/// A stranger who guesses ports can thus neither stretch what a RST is measured against nor put it
/// out of reach. What is known of the receiver changes only where one side's numbers begin: it has
/// acknowledged nothing of them.
#[inline(always)]
pub fn observe(
    word: SlotWord,
    way: Way,
    segment: &Segment,
    sender: &mut Direction,
    receiver: &mut Direction,
) -> bool {
    if !segment.has(control::ACK) && !segment.has(control::SYN) {
        return false;
    }
    let end = segment.sequence.wrapping_add(segment.length());
    let opening = word.state as u8 == State::TcpHalfOpen as u8 && !word.has(flag::SYN_IN);
    // The inside starts over, or repeats itself.
    if opening && matches!(way, Way::Out) && segment.opens() {
        sender.end = end;
        receiver.ack = segment.sequence;
        return true;
    }
    let mut latest = segment.has(control::ACK);
    if begins(word, way, segment, sender, receiver) {
        if latest && !acknowledges_syn(segment, sender, receiver) {
            return false;
        }
        sender.end = end;
        receiver.ack = segment.sequence;
    } else if opening && matches!(way, Way::Back) {
        // Where the origin's numbers begin is not known yet.
        if !acknowledges_syn(segment, sender, receiver) {
            return false;
        }
    } else {
        if !plausible(word, segment, sender, receiver) {
            return false;
        }
        // A FIN is the end even if a stranger's data seemed to lie behind it, unless it is an old one.
        if after(end, sender.end) || segment.has(control::FIN) && !after(receiver.ack, end) {
            sender.end = end;
        }
        latest = latest && word.has(flag::SYN_IN) && !after(sender.ack, segment.acknowledgment);
    }
    if latest {
        sender.ack = segment.acknowledgment;
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
        _ => unacknowledged(segment.sequence, sender, receiver),
    }
}

/// Whether a segment that an ICMP error quotes may still be under way (RFC 5927, section 4.1).
///
/// Nobody complains about what was never sent. That the NAT has seen an acknowledgment does not say
/// that the sender has, and it may send again what it asks about: so up to a window back is believed.
#[inline(always)]
pub const fn quotable(number: u32, sender: &Direction, receiver: &Direction) -> bool {
    /// At most this much, or a guess would hit too often.
    const FARTHEST: u32 = 1 << 20;
    let back = if receiver.window < FIRST_WINDOW {
        FIRST_WINDOW
    } else if receiver.window > FARTHEST {
        FARTHEST
    } else {
        receiver.window
    };
    let high = if after(sender.end, receiver.ack) {
        sender.end
    } else {
        receiver.ack
    };
    between(receiver.ack.wrapping_sub(back), number, high)
}

/// The state after a RST, or after a segment that [`observe`] believed. `options` are read only for
/// the origin's SYN.
///
/// `sender` and `receiver` as [`observe`] left them. The caller swaps the word if it changed; who
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
    if segment.has(control::SYN)
        && matches!(way, Way::Back)
        && matches!(word.state, State::TcpHalfOpen)
        && (!word.has(flag::SYN_IN) || segment.has(control::ACK))
    {
        next.flags &= !flag::SCALE_IN;
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
        if !after(receiver.ack, fin) {
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
