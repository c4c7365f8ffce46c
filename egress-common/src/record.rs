//! What the data plane tells of flows for the flow log (OBS-4): opened, closed, refused.
//!
//! A record says by itself what it is: format, kind and IP version, and with them its length. Whoever reads one that
//! other programs have left checks all of them ([`Head::length`]) and never misreads it.

use crate::expiry::{Pressure, lifetime};
use crate::family::Address;
use crate::key::FlowKey;
use crate::settings::Timers;
use crate::slot::{Slot, SlotWord, State};

/// Format of the records; a change of [`Head`], [`Flow`], [`Refusal`] or the slot is another number.
pub const FORMAT: u32 = 1;

/// Kinds of records, and bits of [`crate::settings::Settings::log`]: `1 << kind`.
pub mod kind {
    /// A flow was admitted: a [`super::Flow`].
    pub const OPEN: u8 = 1;
    /// A flow has left the count: a [`super::Flow`].
    pub const CLOSE: u8 = 2;
    /// A packet was refused: a [`super::Refusal`].
    pub const REFUSED: u8 = 3;
}

macro_rules! causes {
    ($($name:ident = $number:literal, $label:literal, $text:literal;)*) => {
        /// Why a flow has left the count.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Cause {
            $(#[doc = $text] $name = $number,)*
        }

        impl Cause {
            /// Every cause, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name in the log.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The cause with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

causes! {
    Fin = 0, "fin", "both ends have said all, and it was acknowledged";
    ResetByInside = 1, "reset_by_inside", "the inside host sent a RST";
    ResetByOrigin = 2, "reset_by_origin", "the origin sent a RST";
    TimeoutTcpEstablished = 3, "timeout_tcp_established", "an established connection was idle for `tcp_established`";
    TimeoutTcpTransitory = 4, "timeout_tcp_transitory", "a handshake, or a connection after both FINs, did not go on for `tcp_transitory`";
    TimeoutUdp = 5, "timeout_udp", "a UDP flow was idle for `udp`";
    Reclaimed = 6, "reclaimed", "the tables were nearly full: a flow that its origin had not answered was ended before its timer (CAP-6)";
    Replaced = 7, "replaced", "the inside host opened another connection from the same port";
    Operator = 8, "operator", "the operator ended it: `--reset`";
    ZoneMoved = 9, "zone_moved", "its zone's `interfaces` were added or removed, so that its inside address means something else";
}

impl Cause {
    /// The timer that ended a counted flow of which nothing was seen for `age` ns.
    #[inline(always)]
    pub fn of_idleness(word: SlotWord, age: u64, timers: &Timers) -> Self {
        if lifetime(word, timers, Pressure::NONE).is_some_and(|lifetime| age < lifetime) {
            return Self::Reclaimed;
        }
        match word.state {
            State::TcpEstablished
                if !word.has(crate::slot::flag::FIN_OUT | crate::slot::flag::FIN_IN) =>
            {
                Self::TimeoutTcpEstablished
            }
            State::TcpEstablished | State::TcpHalfOpen => Self::TimeoutTcpTransitory,
            _ => Self::TimeoutUdp,
        }
    }
}

/// What every record begins with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// When, ns of the monotonic clock.
    pub time: u64,
    /// [`FORMAT`] of who wrote it.
    pub format: u32,
    /// See [`kind`].
    pub kind: u8,
    /// IP version, 4 or 6.
    pub version: u8,
    /// Of a closed flow the [`Cause`], of a refused packet the [`crate::reason::Reason`], as a number.
    pub cause: u8,
    /// Of a closed flow the state that it left, as a number.
    pub state: u8,
    /// Of a flow the number of its slot. With the slot's generation it names the flow.
    pub index: u32,
    /// The policy by which a flow was opened or a packet refused ([`policy`]); 0: none.
    pub policy: u32,
}

impl Head {
    /// Bytes of the record that begins so; `None` if this version does not know such records.
    pub const fn length(&self) -> Option<usize> {
        if self.format != FORMAT {
            return None;
        }
        match (self.kind, self.version) {
            (kind::OPEN | kind::CLOSE, 4) => Some(size_of::<Flow<crate::family::V4>>()),
            (kind::OPEN | kind::CLOSE, 6) => Some(size_of::<Flow<crate::family::V6>>()),
            (kind::REFUSED, 4) => Some(size_of::<Refusal<crate::family::V4>>()),
            (kind::REFUSED, 6) => Some(size_of::<Refusal<crate::family::V6>>()),
            _ => None,
        }
    }
}

/// A flow that opened or closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Flow<A> {
    /// What happened to it, and when.
    pub head: Head,
    /// The flow's slot at that moment, apart from the state, which may have advanced.
    pub slot: Slot<A>,
}

/// A packet that was refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Refusal<A> {
    /// Why, and when.
    pub head: Head,
    /// Endpoints of the packet.
    pub flow: FlowKey<A>,
    /// Zone number, 0 if unknown.
    pub zone: u32,
    /// Pool number, 0 if it never came to that.
    pub pool: u32,
}

const _: () = assert!(size_of::<Head>() == 24);
const _: () = assert!(size_of::<Flow<crate::family::V4>>() == 120);
const _: () = assert!(size_of::<Flow<crate::family::V6>>() == 160);
const _: () = assert!(size_of::<Refusal<crate::family::V4>>() == 48);
const _: () = assert!(size_of::<Refusal<crate::family::V6>>() == 72);

/// A policy of a version of the configuration, as a record has it; `number` counts from 1, 0 is none.
///
/// A record of a closed flow has none: policies may have changed since it was opened.
#[inline(always)]
pub const fn policy(version: u32, number: u32) -> u32 {
    if number == 0 {
        0
    } else {
        (version & 1) << 31 | number
    }
}

/// The version of the configuration, and the policy of it, from 0.
pub const fn which(policy: u32) -> Option<(u32, u32)> {
    match (policy >> 31, policy & 0x7fff_ffff) {
        (_, 0) => None,
        (version, number) => Some((version, number - 1)),
    }
}

/// The IP version of a family's records.
#[inline(always)]
pub const fn version_of<A: Address>() -> u8 {
    if A::LEN == 4 { 4 } else { 6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expiry::{Sweep, judge};
    use crate::slot::flag;
    use proptest::prelude::*;

    const TIMERS: Timers = Timers {
        tcp_established: 7_440,
        tcp_transitory: 240,
        tcp_closing: 120,
        quarantine: 120,
        udp: 300,
    };

    #[test]
    fn numbers_are_dense_and_labels_differ() {
        let mut labels = std::collections::HashSet::new();
        for (number, cause) in Cause::ALL.iter().enumerate() {
            assert_eq!(*cause as usize, number);
            assert_eq!(Cause::from_number(number as u8), Some(*cause));
            assert!(labels.insert(cause.label()));
        }
        assert_eq!(Cause::from_number(Cause::ALL.len() as u8), None);
    }

    #[test]
    fn a_record_of_another_format_kind_or_version_has_no_length() {
        let head = Head {
            format: FORMAT,
            kind: kind::OPEN,
            version: 6,
            ..Head::default()
        };
        assert_eq!(head.length(), Some(160));
        let wrong = [
            Head {
                format: FORMAT + 1,
                ..head
            },
            Head { kind: 0, ..head },
            Head { kind: 4, ..head },
            Head { version: 5, ..head },
        ];
        assert!(wrong.iter().all(|head| head.length().is_none()));
    }

    #[test]
    fn a_policy_goes_with_its_version() {
        for (version, number) in [(0, 1), (1, 1), (2, 1_024), (3, 7)] {
            assert_eq!(
                which(policy(version, number)),
                Some((version & 1, number - 1))
            );
        }
        assert_eq!((policy(1, 0), which(0)), (0, None));
    }

    proptest! {
        /// Whatever the sweep ends, it ends by the timer that is named, or before it.
        #[test]
        fn the_timer_that_is_named_is_the_one_that_ran_out(
            state in 2u8..=5, fins in 0u16..4, answered: bool, age in prop_oneof![0u64..400_000_000_000, 0u64..8_000_000_000_000], pressure in prop_oneof![0u32..=256, 224u32..=256],
        ) {
            let timers = Timers {
                tcp_established: TIMERS.tcp_established * 1_000_000_000,
                tcp_transitory: TIMERS.tcp_transitory * 1_000_000_000,
                udp: TIMERS.udp * 1_000_000_000,
                ..TIMERS
            };
            let syn = if answered { flag::SYN_IN } else { 0 };
            let word = SlotWord {
                state: State::from_bits(state),
                scale: 0,
                flags: syn | ((fins & 1) * flag::FIN_OUT) | ((fins >> 1) * flag::FIN_IN),
                generation: 1,
            };
            let verdict = judge(word, age, &timers, Pressure(pressure));
            prop_assume!(matches!(verdict, Sweep::Expire | Sweep::Unlink));
            let timer = match Cause::of_idleness(word, age, &timers) {
                Cause::TimeoutTcpEstablished => {
                    prop_assert!(word.state == State::TcpEstablished && fins != 3);
                    timers.tcp_established
                }
                Cause::TimeoutTcpTransitory => {
                    prop_assert!(word.state == State::TcpHalfOpen || word.state == State::TcpEstablished && fins == 3);
                    timers.tcp_transitory
                }
                Cause::TimeoutUdp => {
                    prop_assert!(matches!(word.state, State::UdpUnanswered | State::UdpAnswered));
                    timers.udp
                }
                Cause::Reclaimed => {
                    prop_assert_eq!(judge(word, age, &timers, Pressure::NONE), Sweep::Keep);
                    0
                }
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            };
            prop_assert!(age >= timer);
        }
    }
}
