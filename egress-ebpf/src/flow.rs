//! Finding a flow from either side, and advancing it by one packet.

use aya_ebpf::programs::TcContext;
use egress_common::key::{FlowKey, Reference, ReverseKey, TCP};
use egress_common::packet::{self, Options, Segment, control};
use egress_common::reason::Reason;
use egress_common::slot::{Slot, SlotWord, State, advance, flag};
use egress_common::tcp::{self, Way};
use egress_common::word::Word;

use crate::family::Family;
use crate::frame::Frame;
use crate::{options, report, slots, verdict, word};

/// A slot that was checked to be the packet's.
pub struct Found<A> {
    pub index: u32,
    pub slot: *mut Slot<A>,
    pub word: SlotWord,
}

impl<A> Found<A> {
    /// What an index entry of this slot holds.
    #[inline(always)]
    pub fn reference(&self) -> Reference {
        Reference {
            index: self.index,
            generation: self.word.generation,
        }
    }
}

/// The slot an index entry refers to, if it is alive and of that generation.
#[inline(always)]
pub fn linked<A: Family>(reference: Reference) -> Option<Found<A>> {
    let slot = A::slot(reference.index)?;
    let word = SlotWord::from_bits(slots::word_of(slot).load());
    if word.generation != reference.generation || !word.state.is_linked() {
        return None;
    }
    Some(Found {
        index: reference.index,
        slot,
        word,
    })
}

/// A slot that an earlier step has checked to be the packet's, if it is still alive.
#[inline(always)]
pub fn at<A: Family>(index: u32) -> Option<Found<A>> {
    let slot = A::slot(index)?;
    let word = SlotWord::from_bits(slots::word_of(slot).load());
    word.state
        .is_linked()
        .then_some(Found { index, slot, word })
}

/// The flow of a packet from the inside.
#[inline(always)]
pub fn outgoing<A: Family>(key: &FlowKey<A>) -> Option<Found<A>> {
    let found = linked::<A>(A::flow(key)?)?;
    // SAFETY: a live map value. The index element may have been recycled for another flow between
    // look-up and read, so the slot must say itself that it is this packet's.
    if unsafe { (*found.slot).flow != *key } {
        report::count_bytes(Reason::IndexInconsistent, 0);
        return None;
    }
    Some(found)
}

/// The flow of a packet from an origin.
#[inline(always)]
pub fn incoming<A: Family>(key: &ReverseKey<A>) -> Option<Found<A>> {
    let found = linked::<A>(A::reverse(key)?)?;
    // SAFETY: as above.
    if unsafe { (*found.slot).reverse() != *key } {
        report::count_bytes(Reason::IndexInconsistent, 0);
        return None;
    }
    Some(found)
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
    let (next, alive) = match (arrival.protocol, word.state, arrival.way) {
        (TCP, ..) => follow(ctx, found, arrival, now),
        (_, State::UdpUnanswered, Way::Back) => {
            let answered = word.with_state(State::UdpAnswered);
            // A lost race is another answer's.
            change(slot, word, answered, now);
            (answered, true)
        }
        _ => (word, true),
    };
    // SAFETY: a live map value. Counters and times are this flow's own; packets of one direction
    // of a flow are rarely on two CPUs at once, and a lost increment there is tolerated.
    unsafe {
        if alive && next.state.is_counted() && (*slot).last_seen != now {
            (*slot).last_seen = now;
        }
        let segments = verdict::segments(ctx);
        match arrival.way {
            Way::Out => {
                (*slot).packets_out = (*slot).packets_out.wrapping_add(segments);
                (*slot).bytes_out += arrival.length as u64;
            }
            Way::Back => {
                (*slot).packets_in = (*slot).packets_in.wrapping_add(segments);
                (*slot).bytes_in += arrival.length as u64;
            }
        }
    }
}

/// Swaps a slot's word; false if another packet of the flow has changed it.
#[inline(always)]
fn change<A: Family>(slot: *mut Slot<A>, from: SlotWord, to: SlotWord, now: u64) -> bool {
    if to.state as u8 == State::Closed as u8 {
        slots::close::<A>(slot, from, to, now)
    } else {
        advance(&slots::word_of(slot), from, to)
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
    let (sender_at, receiver_at) = unsafe {
        match arrival.way {
            Way::Out => (&raw mut (*slot).out, &raw mut (*slot).back),
            Way::Back => (&raw mut (*slot).back, &raw mut (*slot).out),
        }
    };
    // SAFETY: as above.
    let (mut sender, mut receiver) = unsafe { (*sender_at, *receiver_at) };
    let (end, acknowledged) = (sender.end, receiver.ack);
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
        && matches!(arrival.way, Way::Out)
        && let Some(timestamp) =
            packet::usual_timestamp(arrival.frame, arrival.transport, segment.header)
    {
        sender.timestamp = timestamp;
    }
    // SAFETY: as above.
    unsafe {
        if acknowledged != receiver.ack || !word.has(flag::SYN_IN) {
            core::ptr::write_volatile(sender_at, sender);
            core::ptr::write_volatile(receiver_at, receiver);
        } else if !reset {
            // Two segments of one side may be on two CPUs at once: neither takes back what the other
            // has said. Only a FIN knows better where the end is.
            if segment.has(control::FIN) && end != sender.end {
                core::ptr::write_volatile(&raw mut (*sender_at).end, sender.end);
            } else if end != sender.end {
                word::forward(&raw mut (*sender_at).end, sender.end);
            }
            word::forward(&raw mut (*sender_at).ack, sender.ack);
            core::ptr::write_volatile(&raw mut (*sender_at).window, sender.window);
            if closing {
                core::ptr::write_volatile(&raw mut (*sender_at).timestamp, sender.timestamp);
                sender = core::ptr::read_volatile(sender_at);
            }
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
        let receiver = unsafe { core::ptr::read_volatile(receiver_at) };
        let next = tcp::step(word, arrival.way, segment, &options, &sender, &receiver);
        if next == word || change(slot, word, next, now) {
            return (next, !reset);
        }
        word = SlotWord::from_bits(slots::word_of(slot).load());
        if word.generation != found.word.generation || !word.state.is_counted() {
            break;
        }
    }
    (word, !reset)
}
