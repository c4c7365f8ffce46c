//! When a flow ends without saying so (NAT-7), and how long an ended one is remembered (CAP-7).

use crate::settings::Timers;
use crate::slot::{SlotWord, State, flag};

/// How long an unlinked slot waits before it may be used again: longer than any program runs, so
/// that no CPU still holds a reference.
pub const GRACE: u64 = 1_000_000_000;

/// How full the table is, in 256ths: 0 is empty.
///
/// Above three quarters the rest of ended flows shrinks, above seven eighths the patience with
/// half-open ones too; a live flow is never shortened (CAP-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure(pub u32);

impl Pressure {
    /// No pressure at all.
    pub const NONE: Self = Self(0);

    /// The pressure when `available` of `total` records are free.
    #[inline(always)]
    pub const fn of(available: u64, total: u64) -> Self {
        if total == 0 {
            return Self::NONE;
        }
        let free = if available > total { total } else { available };
        Self(256 - (free * 256 / total) as u32)
    }

    /// `time`, shortened for a flow the origin has not answered; never below [`PATIENCE`].
    #[inline(always)]
    const fn patience(self, time: u64) -> u64 {
        let short = self.shorten(time, 224);
        if short >= PATIENCE || short == time {
            short
        } else if time < PATIENCE {
            time
        } else {
            PATIENCE
        }
    }

    /// The greater of two pressures.
    #[inline(always)]
    pub const fn or(self, other: Self) -> Self {
        if other.0 > self.0 { other } else { self }
    }

    /// `time`, shortened linearly from whole at `from` to nothing at a full table.
    #[inline(always)]
    const fn shorten(self, time: u64, from: u32) -> u64 {
        if self.0 <= from {
            return time;
        }
        let left = 256 - if self.0 > 256 { 256 } else { self.0 };
        time / (256 - from) as u64 * left as u64
    }
}

/// The least patience with a flow that the origin has not answered: longer than a round trip, and
/// than any program runs, so that a flow is never ended while it is made.
pub const PATIENCE: u64 = 2_000_000_000;

/// How long a slot in this state lives after its last packet, in nanoseconds; `None`: it has no
/// time-out.
#[inline(always)]
pub fn lifetime(word: SlotWord, timers: &Timers, pressure: Pressure) -> Option<u64> {
    match word.state {
        State::Free | State::Opening => None,
        // The origin has answered: as live as an established one (CAP-6).
        State::TcpHalfOpen if word.has(flag::SYN_IN) => Some(timers.tcp_transitory),
        State::TcpHalfOpen => Some(pressure.patience(timers.tcp_transitory)),
        State::TcpEstablished if word.has(flag::FIN_OUT | flag::FIN_IN) => {
            Some(timers.tcp_transitory)
        }
        State::TcpEstablished => Some(timers.tcp_established),
        State::UdpUnanswered => Some(pressure.patience(timers.udp)),
        State::UdpAnswered => Some(timers.udp),
        State::Closed => {
            // Late packets of an orphan pass no more: only its port rests.
            let rest = if word.has(flag::ORPHAN) || timers.quarantine > timers.tcp_closing {
                timers.quarantine
            } else {
                timers.tcp_closing
            };
            Some(pressure.shorten(rest, 192))
        }
        State::Unlinked => Some(GRACE),
    }
}

/// Whether the port of a flow that closed `age` ns ago has rested long enough for anybody (CAP-7). Until
/// somebody takes it, late packets of the flow pass on.
#[inline(always)]
pub const fn has_rested(age: u64, quarantine: u64) -> bool {
    age >= quarantine
}

/// How far the sweep got; stands behind the timer (16 bytes) in its map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// In the tables of IPv4.
    pub ipv4: Cursor,
    /// In the tables of IPv6.
    pub ipv6: Cursor,
    /// Ticks since the maps were made.
    pub ticks: u64,
    /// Which load of the programs armed the timer last: its process id and start time, hashed.
    pub armed_by: u64,
    /// Which load's callback ran last; equal to `armed_by` once an upgrade has taken the timer over.
    pub run_by: u64,
}

/// Where in a family's tables the sweep goes on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Next slot to judge.
    pub slot: u32,
    /// Next counter to judge.
    pub count: u32,
}

/// What the sweep does with a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// Nothing.
    Keep,
    /// The flow fell idle: it leaves the count; its port rests (`Closed` and expired).
    Expire,
    /// It closed so long ago that late packets pass no more; its port rests on (`Closed` and expired).
    Silence,
    /// It leaves both indexes; if it was counted, it leaves the count.
    Unlink,
    /// It returns to the free list.
    Free,
}

/// Judges a slot of which nothing was seen for `age` ns.
#[inline(always)]
pub fn judge(word: SlotWord, age: u64, timers: &Timers, pressure: Pressure) -> Sweep {
    let Some(lifetime) = lifetime(word, timers, pressure) else {
        return Sweep::Keep;
    };
    if age < lifetime {
        let late = matches!(word.state, State::Closed) && age >= timers.tcp_closing;
        return if late && !word.has(flag::EXPIRED) {
            Sweep::Silence
        } else {
            Sweep::Keep
        };
    }
    match word.state {
        State::Unlinked => Sweep::Free,
        State::TcpEstablished => Sweep::Expire,
        _ => Sweep::Unlink,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;
    const TIMERS: Timers = Timers {
        tcp_established: 7_440 * SECOND,
        tcp_transitory: 240 * SECOND,
        tcp_closing: 120 * SECOND,
        quarantine: 120 * SECOND,
        udp: 300 * SECOND,
    };

    fn word(state: State, flags: u16) -> SlotWord {
        SlotWord {
            state,
            scale: 0,
            flags,
            generation: 1,
        }
    }

    #[test]
    fn nat_7_default_timers() {
        let life = |state, flags| lifetime(word(state, flags), &TIMERS, Pressure::NONE);
        assert_eq!(life(State::TcpHalfOpen, 0), Some(240 * SECOND));
        assert_eq!(life(State::TcpHalfOpen, flag::SYN_IN), Some(240 * SECOND));
        assert_eq!(life(State::TcpEstablished, 0), Some(7_440 * SECOND));
        assert_eq!(
            life(State::TcpEstablished, flag::FIN_IN),
            Some(7_440 * SECOND)
        );
        assert_eq!(
            life(State::TcpEstablished, flag::FIN_IN | flag::FIN_OUT),
            Some(240 * SECOND)
        );
        assert_eq!(life(State::UdpUnanswered, 0), Some(300 * SECOND));
        assert_eq!(life(State::UdpAnswered, 0), Some(300 * SECOND));
        assert_eq!(life(State::Closed, 0), Some(120 * SECOND));
        assert_eq!(life(State::Free, 0), None);
    }

    #[test]
    fn cap_7_port_and_late_packets_have_times_of_their_own() {
        let short = Timers {
            quarantine: 5 * SECOND,
            ..TIMERS
        };
        let long = Timers {
            quarantine: 300 * SECOND,
            ..TIMERS
        };
        let closed = word(State::Closed, 0);
        let at = |word, seconds: u64, timers| judge(word, seconds * SECOND, timers, Pressure::NONE);
        assert!(!has_rested(5 * SECOND - 1, short.quarantine));
        assert!(has_rested(5 * SECOND, short.quarantine));
        // Taken or not, the slot is there for late packets.
        assert_eq!(at(closed, 119, &short), Sweep::Keep);
        assert_eq!(at(closed, 120, &short), Sweep::Unlink);
        // The port rests on when nothing passes any more.
        assert_eq!(at(closed, 119, &long), Sweep::Keep);
        assert_eq!(at(closed, 120, &long), Sweep::Silence);
        let silent = closed.with_flags(flag::EXPIRED);
        assert_eq!(at(silent, 299, &long), Sweep::Keep);
        assert_eq!(at(silent, 300, &long), Sweep::Unlink);
        // Nobody waits for late packets of a flow whose endpoints have another.
        let orphan = silent.with_flags(flag::ORPHAN);
        assert_eq!(at(orphan, 4, &short), Sweep::Keep);
        assert_eq!(at(orphan, 5, &short), Sweep::Unlink);
    }

    proptest! {
        #[test]
        fn cap_6_pressure_never_shortens_a_live_flow(available in 0u64..1_000, state in 0u8..8) {
            let pressure = Pressure::of(available, 1_000);
            let word = word(State::from_bits(state), flag::SYN_IN);
            if !matches!(word.state, State::UdpUnanswered | State::Closed) {
                prop_assert_eq!(lifetime(word, &TIMERS, pressure), lifetime(word, &TIMERS, Pressure::NONE));
            }
        }

        #[test]
        fn cap_6_more_pressure_never_means_more_patience(a in 0u32..=256, b in 0u32..=256, state in 0u8..8) {
            let word = word(State::from_bits(state), 0);
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(
                lifetime(word, &TIMERS, Pressure(high)) <= lifetime(word, &TIMERS, Pressure(low))
            );
        }
    }
}
