//! TCP as a NAT sees it (RFC 5382, RFC 7857): when a connection is established, and when it is over.
//!
//! A connection is over when both FINs were seen and the last one is acknowledged, or when a RST
//! arrives whose sequence number fits what its receiver has acknowledged; any other RST changes
//! nothing (NAT-7). The judge knows for each side the highest sequence number it has sent and the
//! acknowledgment and window it last offered.

use crate::packet::{Options, Segment, control};
use crate::slot::{Side, SlotWord, State, flag};

/// Which way a segment travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the inside to the origin.
    Out,
    /// From the origin to the inside.
    Back,
}

impl Way {
    /// The flag that this side's FIN was seen.
    #[inline(always)]
    pub const fn fin(self) -> u16 {
        match self {
            Self::Out => flag::FIN_OUT,
            Self::Back => flag::FIN_IN,
        }
    }

    /// The other one.
    #[inline(always)]
    pub const fn other(self) -> Self {
        match self {
            Self::Out => Self::Back,
            Self::Back => Self::Out,
        }
    }
}

/// What one side of a connection has sent, as the rules below use it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Direction {
    /// Highest sequence number sent, plus one (SYN and FIN count).
    pub end: u32,
    /// Highest acknowledgment number sent.
    pub ack: u32,
    /// Widest receive window advertised, bytes.
    pub window: u32,
}

impl Direction {
    /// From what a slot keeps of the sender of packets that go this `way`.
    #[inline(always)]
    pub const fn of(word: SlotWord, way: Way, side: Side, window: u8) -> Self {
        Self {
            end: side.end,
            ack: side.ack,
            window: ((window as u32 + 1) << 8) << shift(word, way),
        }
    }

    /// What a slot keeps.
    #[inline(always)]
    pub const fn side(&self) -> Side {
        Side {
            end: self.end,
            ack: self.ack,
        }
    }
}

/// What a slot keeps of a segment's window: its high byte, without the scale. The window of a SYN, which
/// has no scale, counts as the least: a side's first window is never taken for less than
/// `FIRST_WINDOW`.
#[inline(always)]
pub const fn window_of(segment: &Segment) -> u8 {
    if segment.has(control::SYN) {
        0
    } else {
        (segment.window >> 8) as u8
    }
}

/// How far the windows of packets that go this `way` are shifted (RFC 7323).
#[inline(always)]
const fn shift(word: SlotWord, way: Way) -> u8 {
    match way {
        _ if !word.has(flag::SCALE_OUT | flag::SCALE_IN) => 0,
        Way::Out => word.scale & 0x0f,
        Way::Back => word.scale >> 4,
    }
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
        // A FIN is the end even if a stranger's data seemed to lie before or behind it, unless it is an
        // old one. Whether it was a stranger's itself its receiver knows: see `step`.
        let fin = segment.has(control::FIN) && !after(receiver.ack, end);
        if fin || after(end, sender.end) && !word.has(way.fin()) {
            sender.end = end;
        }
        latest = latest && word.has(flag::SYN_IN) && !after(sender.ack, segment.acknowledgment);
    }
    if latest {
        sender.ack = segment.acknowledgment;
        let plain = segment.has(control::SYN);
        let offered = (segment.window as u32) << if plain { 0 } else { shift(word, way) };
        // The widest: of two segments on two CPUs the older one may be seen last, and its window may be none.
        // A side that is believed too little soon seems to acknowledge what was never sent, for good.
        if offered > sender.window {
            sender.window = offered;
        }
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
    // Who acknowledges more than the other side's FIN has not taken it for the end: a stranger's, within
    // our reach but beyond its window (RFC 5961, section 5).
    if segment.has(control::ACK)
        && next.has(way.other().fin())
        && after(segment.acknowledgment, receiver.end)
    {
        next.flags &= !way.other().fin();
    }
    if segment.has(control::FIN) && word.has(flag::SYN_IN) {
        let fin = segment.sequence.wrapping_add(segment.length());
        if !after(receiver.ack, fin) {
            next = next.with_flags(way.fin());
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

/// What an origin in TIME_WAIT remembers of the inside.
#[derive(Clone, Copy, Debug)]
pub struct Last {
    /// Highest sequence number, plus one.
    pub end: u32,
    /// Timestamp value.
    pub timestamp: u32,
}

/// The numbers of the segments that tell both ends of a flow that it is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Farewell {
    /// Sequence and acknowledgment number of the RST for the inside.
    pub inside: (u32, u32),
    /// Sequence number of the RST for the origin, and what it would acknowledge.
    pub origin: (u32, u32),
}

/// What ends a connection at both ends: each gets the number it expects next (RFC 5961, section 3.2), as
/// far as it has said which. Where that is a moment old, the end asks back (a challenge) and the answer
/// to that fits exactly.
#[inline(always)]
pub const fn farewell(word: SlotWord, out: &Side, back: &Side) -> Farewell {
    let answered = word.has(flag::SYN_IN);
    let expected = if answered { back.ack } else { out.end };
    Farewell {
        inside: (if answered { out.ack } else { 0 }, out.end),
        origin: (expected, if answered { back.end } else { 0 }),
    }
}

/// Whether an origin still in TIME_WAIT on this port would accept this SYN (RFC 6191; CAP-7):
/// ahead of everything last seen from the inside there.
#[inline(always)]
pub fn reusable(word: SlotWord, last: Last, sequence: u32, timestamp: Option<u32>) -> bool {
    if !after(sequence, last.end) {
        return false;
    }
    match timestamp {
        Some(value) if word.has(flag::TIMESTAMPS) => after(value, last.timestamp),
        _ => true,
    }
}

#[cfg(test)]
mod tests;
