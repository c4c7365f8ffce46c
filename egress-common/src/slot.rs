//! The one record of a flow, shared by both directions.
//!
//! Whoever finds a slot through an index compares generation and endpoints before believing it.
//! Everything that must happen exactly once per flow (counting, closing, unlinking) is a
//! compare-and-swap on [`SlotWord`]: only the winner acts.

use crate::clock::{Epoch, Moment};
use crate::family::Address;
use crate::key::{FlowKey, OriginKey, ReverseKey};
use crate::tcp::{Direction, Way};
use crate::word::Word;

/// Life of a slot. Order of life: free, opening, half-open..established, closed, unlinked, free.
#[repr(u8)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// On the free list.
    #[default]
    Free = 0,
    /// Owned by one CPU that is filling it in; nobody may believe it yet.
    Opening = 1,
    /// TCP: our SYN is out, the handshake is not complete. Counted.
    TcpHalfOpen = 2,
    /// TCP: the origin's SYN was acknowledged. Counted.
    TcpEstablished = 3,
    /// UDP: nothing came back yet. Counted.
    UdpUnanswered = 4,
    /// UDP: the origin has answered. Counted.
    UdpAnswered = 5,
    /// Ended and no longer counted; late packets are still translated and the port rests (CAP-7).
    Closed = 6,
    /// Out of both indexes; waits until no CPU can still hold a reference.
    Unlinked = 7,
}

impl State {
    /// Reads a state byte; unknown values are `Free`, which nobody believes.
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Opening,
            2 => Self::TcpHalfOpen,
            3 => Self::TcpEstablished,
            4 => Self::UdpUnanswered,
            5 => Self::UdpAnswered,
            6 => Self::Closed,
            7 => Self::Unlinked,
            _ => Self::Free,
        }
    }

    /// Whether the flow holds a place under its origin's cap.
    #[inline(always)]
    pub const fn is_counted(self) -> bool {
        let bits = self as u8;
        bits >= Self::TcpHalfOpen as u8 && bits <= Self::UdpAnswered as u8
    }

    /// Whether packets may be translated by this slot.
    #[inline(always)]
    pub const fn is_linked(self) -> bool {
        let bits = self as u8;
        bits >= Self::TcpHalfOpen as u8 && bits <= Self::Closed as u8
    }

    /// The name `egress flows` prints.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Opening => "opening",
            Self::TcpHalfOpen => "half-open",
            Self::TcpEstablished => "established",
            Self::UdpUnanswered => "unanswered",
            Self::UdpAnswered => "answered",
            Self::Closed => "closed",
            Self::Unlinked => "unlinked",
        }
    }
}

/// What a flow has seen; bits of [`SlotWord::flags`].
pub mod flag {
    /// The origin's SYN was seen.
    pub const SYN_IN: u16 = 1 << 0;
    /// A FIN from the inside was seen.
    pub const FIN_OUT: u16 = 1 << 1;
    /// A FIN from the origin was seen.
    pub const FIN_IN: u16 = 1 << 2;
    /// The flow ended by idleness: nothing passes any more, only the port rests.
    pub const EXPIRED: u16 = 1 << 3;
    /// The inside offered window scaling.
    pub const SCALE_OUT: u16 = 1 << 4;
    /// The origin offered window scaling.
    pub const SCALE_IN: u16 = 1 << 5;
    /// The inside's segments carry timestamps (RFC 7323).
    pub const TIMESTAMPS: u16 = 1 << 6;
    /// Replies leave by the slot's interface instead of the routing table (realms).
    pub const REDIRECT: u16 = 1 << 7;
    /// Its endpoints opened a new flow, to which their entry in the index belongs: only the port rests.
    pub const ORPHAN: u16 = 1 << 8;
    /// The flow was ended on purpose: both ends are told, whatever is told of idleness.
    pub const RESET: u16 = 1 << 9;
    /// The inside's packets enter as they leave, whatever netfilter may do on the way: the fast path has met one.
    pub const DIRECT: u16 = 1 << 10;
    /// Another server translates the flow: its packets go there as they are, and come back translated (FWD-2). Such a
    /// slot has no egress IP; its inside endpoint stands in for one, and its `interface` is that server's number.
    pub const FORWARDED: u16 = 1 << 11;
    /// Another server sent the flow here to be translated, and gets what comes back. The realm tells which one.
    pub const VISITOR: u16 = 1 << 12;
}

/// State, flags and generation in one compare-and-swap word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotWord {
    /// Where in its life the slot is.
    pub state: State,
    /// Window scale shifts (RFC 7323): inside's in the low, origin's in the high nibble.
    pub scale: u8,
    /// See [`flag`].
    pub flags: u16,
    /// Grows each time the slot is taken for a new flow.
    pub generation: u32,
}

impl SlotWord {
    /// The word as it stands in memory (little-endian).
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        self.state as u64
            | (self.scale as u64) << 8
            | (self.flags as u64) << 16
            | (self.generation as u64) << 32
    }

    /// Reads a word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            state: State::from_bits(bits as u8),
            scale: (bits >> 8) as u8,
            flags: (bits >> 16) as u16,
            generation: (bits >> 32) as u32,
        }
    }

    /// The same word in another state.
    #[inline(always)]
    pub const fn with_state(self, state: State) -> Self {
        Self { state, ..self }
    }

    /// The same word with more flags.
    #[inline(always)]
    pub const fn with_flags(self, flags: u16) -> Self {
        Self {
            flags: self.flags | flags,
            ..self
        }
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// What one side of a TCP connection has sent, for judging RSTs and TIME_WAIT reuse.
///
/// All sequence numbers as on the wire. Two CPUs may write a side at once, so values only go forward; readers
/// tolerate one that is a segment old.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Highest sequence number sent, plus one (SYN and FIN count).
    pub end: u32,
    /// Highest acknowledgment number sent.
    pub ack: u32,
}

/// The record of a flow. 96 bytes for IPv4, 136 for IPv6.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub struct Slot<A> {
    /// [`State`] as a number.
    pub state: u8,
    /// Window scale shifts: inside's in the low, origin's in the high nibble.
    pub scale: u8,
    /// See [`flag`].
    pub flags: u16,
    /// Grows each time the slot is taken for a new flow.
    pub generation: u32,
    /// Last packet in either direction; in a closed or unlinked slot when it became so. In a free slot
    /// the number of the next free one.
    pub last_seen: Moment,
    /// When the flow was admitted.
    pub opened: Epoch,
    /// Endpoints before translation.
    pub flow: FlowKey<A>,
    /// The dedicated address.
    pub egress: A,
    /// The port the flow leaves with, host byte order.
    pub egress_port: u16,
    /// Zone that was admitted.
    pub zone: u16,
    /// Pool it was admitted to.
    pub pool: u16,
    /// Widest receive windows advertised by the inside and by the origin: their high bytes, without the scale
    /// (see [`crate::tcp::window_of`]).
    pub windows: [u8; 2],
    /// Counter record that holds this flow's place, and by that stays this flow's.
    pub count: u32,
    /// Interface the flow entered by; 0 for the host's own sockets. Of a forwarded flow the number of the server that
    /// translates it, and above it that of the exit if there is one: see [`forwarded_by`].
    pub interface: u32,
    /// Timestamp value last seen from the inside while closing (RFC 7323).
    pub timestamp: u32,
    /// The inside's side of the connection.
    pub out: Side,
    /// The origin's side of the connection.
    pub back: Side,
    /// Packets from the inside.
    pub packets_out: u32,
    /// Packets from the origin.
    pub packets_in: u32,
    /// Bytes from the inside, IP length.
    pub bytes_out: u64,
    /// Bytes from the origin, IP length.
    pub bytes_in: u64,
}

/// What stands in the `interface` of a forwarded flow: the server's number and the exit's.
#[inline(always)]
pub const fn forwarded_by(server: u32, exit: u32) -> u32 {
    server & 0xffff | exit << 16
}

/// The server's number and the exit's in the `interface` of a forwarded flow.
#[inline(always)]
pub const fn server_and_exit(interface: u32) -> (u32, u32) {
    (interface & 0xffff, interface >> 16)
}

const _: () = assert!(crate::peer::MAX_PEERS <= 1 << 16 && crate::settings::MAX_EXITS <= 1 << 16);
const _: () = assert!(size_of::<Slot<crate::family::V4>>() == 96);
const _: () = assert!(size_of::<Slot<crate::family::V6>>() == 136);
const _: () = assert!(size_of::<FlowKey<crate::family::V4>>() == 16);
const _: () = assert!(size_of::<FlowKey<crate::family::V6>>() == 40);
const _: () = assert!(size_of::<ReverseKey<crate::family::V4>>() == 16);

impl<A: Address> Slot<A> {
    /// The key under which the origin's packets find this slot.
    #[inline(always)]
    pub fn reverse(&self) -> ReverseKey<A> {
        self.flow.reverse(self.egress, self.egress_port)
    }

    /// The counter this slot falls under.
    #[inline(always)]
    pub fn counted(&self) -> OriginKey<A> {
        if self.flags & flag::FORWARDED != 0 {
            let (server, _) = server_and_exit(self.interface);
            return OriginKey::of_peer(server, self.flow.protocol);
        }
        self.flow.counted(self.egress)
    }

    /// Both sides of the connection, the inside's first.
    #[inline(always)]
    pub fn directions(&self) -> (Direction, Direction) {
        let [out, back] = self.windows;
        let word = self.word();
        (
            Direction::of(word, Way::Out, self.out, out),
            Direction::of(word, Way::Back, self.back, back),
        )
    }

    /// State, flags and generation of this copy of a slot.
    #[inline(always)]
    pub fn word(&self) -> SlotWord {
        SlotWord {
            state: State::from_bits(self.state),
            scale: self.scale,
            flags: self.flags,
            generation: self.generation,
        }
    }
}

/// Moves a slot from a state to `Closed` or `Unlinked`; true for the one caller that did it.
#[inline(always)]
pub fn advance(word: &impl Word, from: SlotWord, to: SlotWord) -> bool {
    word.swap(from.bits(), to.bits()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_round_trip(bits: u64) {
            let bits = bits & !0xff | bits & 7;
            prop_assert_eq!(SlotWord::from_bits(bits).bits(), bits);
        }
    }

    #[test]
    fn the_word_is_the_first_eight_bytes_of_a_slot() {
        let slot = Slot::<crate::family::V4> {
            state: State::TcpEstablished as u8,
            scale: 0x79,
            flags: flag::SYN_IN | flag::SCALE_OUT,
            generation: 0xdead_beef,
            ..Slot::default()
        };
        // SAFETY: the slot is 8-aligned and longer than eight bytes, all of them initialised.
        let bits = unsafe { std::ptr::from_ref(&slot).cast::<u64>().read() };
        assert_eq!(SlotWord::from_bits(bits), slot.word());
    }

    #[test]
    fn only_live_states_are_counted_and_only_linked_ones_translate() {
        for bits in 0..=8 {
            let state = State::from_bits(bits);
            assert_eq!(state.is_counted(), (2..=5).contains(&bits));
            assert_eq!(state.is_linked(), (2..=6).contains(&bits));
        }
    }
}
