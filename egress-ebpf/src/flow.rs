//! Finding a flow from either side, and advancing it by one packet.

use aya_ebpf::helpers::bpf_ktime_get_boot_ns;
use aya_ebpf::programs::TcContext;
use egress_common::clock::Moment;
use egress_common::key::{FlowKey, ReverseKey, TCP};
use egress_common::packet::{self, Options, Segment, control};
use egress_common::record::Cause;
use egress_common::slot::{Slot, SlotWord, State, advance, flag};
use egress_common::tcp::{self, Direction, Way};
use egress_common::word::Word;

use crate::family::Family;
use crate::frame::Frame;
use crate::index::{self, ByEgress, ByInside};
use crate::maps::SWITCH;
use crate::{options, slots, verdict, word};

/// A slot that was checked to be the packet's.
pub struct Found<A> {
    pub index: u32,
    pub slot: *mut Slot<A>,
    pub word: SlotWord,
}

/// A slot that was checked to be the packet's, if it is still alive.
#[inline(always)]
pub fn at<A: Family>(index: u32) -> Option<Found<A>> {
    let slot = A::slot(index)?;
    let word = SlotWord::from_bits(slots::word_of(slot).load());
    word.state
        .is_linked()
        .then_some(Found { index, slot, word })
}

/// Whether the slices of this server may be others' by now: nobody has renewed its claim in time (CLU-3).
#[inline(always)]
pub fn lapsed<A: Family>() -> bool {
    A::SLICED
        && SWITCH.get(0).is_some_and(|switch| {
            // SAFETY: the helper takes nothing.
            switch.has_lapsed(|| unsafe { bpf_ktime_get_boot_ns() })
        })
}

/// A slot's number plus one, or 0 where its egress IP and port may be another server's by now. Those of forwarded flows were
/// never this one's.
#[inline(always)]
pub fn usable<A: Family>(place: u32) -> u32 {
    if place == 0 || !lapsed::<A>() {
        return place;
    }
    let Some(slot) = A::slot(place - 1) else {
        return 0;
    };
    let word = SlotWord::from_bits(slots::word_of(slot).load());
    if word.has(flag::FORWARDED) { place } else { 0 }
}

/// The flow of a packet from the inside.
#[inline(always)]
pub fn outgoing<A: Family>(key: &FlowKey<A>) -> Option<Found<A>> {
    match usable::<A>(index::find::<A, ByInside>(key)) {
        0 => None,
        slot => at(slot - 1),
    }
}

/// The flow between these endpoints, used or not.
#[inline(always)]
pub fn between<A: Family>(key: &FlowKey<A>) -> Option<Found<A>> {
    match index::find::<A, ByInside>(key) {
        0 => None,
        slot => at(slot - 1),
    }
}

/// The flow of a packet from an origin.
#[inline(always)]
pub fn incoming<A: Family>(key: &ReverseKey<A>) -> Option<Found<A>> {
    match usable::<A>(index::find::<A, ByEgress>(key)) {
        0 => None,
        slot => at(slot - 1),
    }
}

/// What a packet says about its flow.
pub struct Arrival<'a> {
    pub way: Way,
    pub protocol: u8,
    /// Of TCP packets; otherwise anything.
    pub segment: &'a Segment,
    /// Where the transport header starts.
    pub transport: usize,
    /// IP length.
    pub length: u32,
    pub frame: &'a Frame,
}

/// Advances a flow by one packet: state, time, counters.
#[inline(always)]
pub fn advance_by<A: Family>(ctx: &TcContext, found: &Found<A>, arrival: &Arrival<'_>) {
    let now = slots::now();
    let slot = found.slot;
    let word = found.word;
    // First, so that the record of a flow that this packet ends has it too.
    count(ctx, slot, arrival.way, arrival.length);
    let (next, alive) = match (arrival.protocol, word.state, arrival.way) {
        (TCP, ..) => follow(ctx, found, arrival, now),
        (_, State::UdpUnanswered, Way::Back) => {
            let answered = word.with_state(State::UdpAnswered);
            // A lost race is another answer's.
            advance(&slots::word_of(slot), word, answered);
            (answered, true)
        }
        _ => (word, true),
    };
    // SAFETY: a live map value. Counters and times are this flow's own; packets of one direction
    // of a flow are rarely on two CPUs at once, and a lost increment there is tolerated.
    unsafe {
        let moment = Moment::of(now);
        if alive && next.state.is_counted() && (*slot).last_seen != moment {
            (*slot).last_seen = moment;
        }
    }
}

/// Counts a packet of a flow.
#[inline(always)]
pub fn count<A: Family>(ctx: &TcContext, slot: *mut Slot<A>, way: Way, length: u32) {
    let segments = verdict::segments(ctx);
    // SAFETY: as in `advance_by`.
    unsafe {
        match way {
            Way::Out => {
                (*slot).packets_out = (*slot).packets_out.wrapping_add(segments);
                (*slot).bytes_out += length as u64;
            }
            Way::Back => {
                (*slot).packets_in = (*slot).packets_in.wrapping_add(segments);
                (*slot).bytes_in += length as u64;
            }
        }
    }
}

/// Swaps a slot's word; false if another packet of the flow has changed it.
#[inline(always)]
fn change<A: Family>(
    found: &Found<A>,
    from: SlotWord,
    to: SlotWord,
    arrival: &Arrival<'_>,
    now: u64,
) -> bool {
    if to.state as u8 == State::Closed as u8 {
        let cause = match arrival.way {
            _ if !arrival.segment.has(control::RST) => Cause::Fin,
            Way::Out => Cause::ResetByInside,
            Way::Back => Cause::ResetByOrigin,
        };
        slots::close(found, from, to, cause, now)
    } else {
        advance(&slots::word_of(found.slot), from, to)
    }
}

/// Advances a flow by a TCP segment; returns the word it has then, and whether the segment is
/// believed: another one is no sign of life (NAT-7).
#[inline(always)]
fn follow<A: Family>(
    ctx: &TcContext,
    found: &Found<A>,
    arrival: &Arrival<'_>,
    now: u64,
) -> (SlotWord, bool) {
    let mut word = found.word;
    let segment = arrival.segment;
    if !word.state.is_counted() {
        return (word, false);
    }
    let slot = found.slot;
    // SAFETY: a live map value; see `advance_by` for concurrent writers.
    let (sender_at, receiver_at, window_at, windows) = unsafe {
        let [out, back] = (*slot).windows;
        let at = (&raw mut (*slot).windows).cast::<u8>();
        match arrival.way {
            Way::Out => (&raw mut (*slot).out, &raw mut (*slot).back, at, (out, back)),
            Way::Back => (
                &raw mut (*slot).back,
                &raw mut (*slot).out,
                at.add(1),
                (back, out),
            ),
        }
    };
    let other = arrival.way.other();
    // SAFETY: as above.
    let (mut sender, mut receiver) = unsafe {
        (
            Direction::of(word, arrival.way, *sender_at, windows.0),
            Direction::of(word, other, *receiver_at, windows.1),
        )
    };
    let (end, acknowledged, offered) = (sender.end, receiver.ack, sender.window);
    let reset = segment.has(control::RST);
    if !reset && !tcp::observe(word, arrival.way, segment, &mut sender, &mut receiver) {
        return (word, false);
    }
    let handshake = segment.has(control::SYN) && matches!(arrival.way, Way::Back);
    let options = if handshake && matches!(word.state, State::TcpHalfOpen) {
        options::read(ctx, arrival.transport as u32, segment.header as u32)
    } else {
        Options::default()
    };
    let closing = word.flags & (flag::FIN_IN | flag::FIN_OUT) != 0 || segment.has(control::FIN);
    if closing
        && !reset
        && matches!(arrival.way, Way::Out)
        && let Some(timestamp) =
            packet::usual_timestamp(arrival.frame, arrival.transport, segment.header)
    {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*slot).timestamp, timestamp) };
    }
    // SAFETY: as above.
    unsafe {
        if acknowledged != receiver.ack || !word.has(flag::SYN_IN) {
            core::ptr::write_volatile(sender_at, sender.side());
            core::ptr::write_volatile(receiver_at, receiver.side());
        } else if !reset {
            // Two segments of one side may be on two CPUs at once: neither takes back what the other
            // has said. Only a FIN knows better where the end is.
            if segment.has(control::FIN) && end != sender.end {
                core::ptr::write_volatile(&raw mut (*sender_at).end, sender.end);
            } else if end != sender.end {
                word::forward(&raw mut (*sender_at).end, sender.end);
            }
            word::forward(&raw mut (*sender_at).ack, sender.ack);
            if closing {
                let side = core::ptr::read_volatile(sender_at);
                (sender.end, sender.ack) = (side.end, side.ack);
            }
        }
        let window = tcp::window_of(segment);
        if sender.window != offered && window != windows.0 {
            core::ptr::write_volatile(window_at, window);
        }
    }
    if closing {
        // A barrier between what we wrote and what we read: of two last acknowledgments at once, one
        // at least must see the other.
        slots::word_of(slot).add(0);
    }
    // Twice: the other side's packet on another CPU may win the first time, and a FIN that was
    // acknowledged comes only once.
    for _ in 0..2 {
        // SAFETY: as above. Read again: the other side may have acknowledged meanwhile.
        let side = unsafe { core::ptr::read_volatile(receiver_at) };
        (receiver.end, receiver.ack) = (side.end, side.ack);
        let next = tcp::step(word, arrival.way, segment, &options, &sender, &receiver);
        if next == word || change(found, word, next, arrival, now) {
            return (next, !reset);
        }
        word = SlotWord::from_bits(slots::word_of(slot).load());
        if word.generation != found.word.generation || !word.state.is_counted() {
            break;
        }
    }
    (word, !reset)
}
