//! A probe: a connection of the daemon's own that leaves by the egress IP it is told to (POOL-10).
//!
//! The daemon enters the socket by its cookie, before it connects. The kernel gives no cookie twice, and no packet
//! from a wire has one, so nobody else can have what is meant for a probe. Everything of that socket leaves by this
//! candidate or not at all; it is admitted like any other connection, and counted under the cap.

use crate::key::Reference;
use crate::reason::Reason;

/// Probes that may be under way at once: entries of the map, by socket cookie.
pub const MAX_PROBES: u32 = 1_024;

/// What a probe is to do, and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probe {
    /// The candidate as its pool has it: an IPv4 address in the first four bytes, or the first address of a range.
    pub address: [u8; 16],
    /// Where that candidate stands among those of a version of the configuration. Where another one stands there by
    /// now, the probe is refused.
    pub candidate: u32,
    /// The pool's number.
    pub pool: u32,
    /// 0 as long as nothing is known; 1 once it was admitted; else one of [`refused`].
    pub outcome: u32,
    /// Always zero.
    pub pad: u32,
    /// Of one that was admitted: its slot.
    pub slot: Reference,
}

const _: () = assert!(size_of::<Probe>() == 40);

/// [`Probe::outcome`] of one that was admitted.
pub const ADMITTED: u32 = 1;
const REFUSED: u32 = 2;

/// [`Probe::outcome`] of one that was refused.
#[inline(always)]
pub const fn refused(reason: Reason) -> u32 {
    REFUSED + reason as u32
}

impl Probe {
    /// Why it was refused, if it was.
    pub const fn reason(&self) -> Option<Reason> {
        match self.outcome.checked_sub(REFUSED) {
            Some(number) => Reason::from_number(number),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_one_of_three() {
        let of = |outcome| Probe {
            outcome,
            ..Probe::default()
        };
        assert_eq!(of(0).reason(), None);
        assert_eq!(of(ADMITTED).reason(), None);
        for reason in Reason::ALL {
            assert_eq!(of(refused(*reason)).reason(), Some(*reason));
        }
        assert_eq!(of(u32::MAX).reason(), None);
    }
}
