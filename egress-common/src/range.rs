//! Which address and which ports a flow may leave with: one IPv4 address and the slices of it that
//! this server owns, or an address of an IPv6 range and every port (NAT-3, CAP-8).

use crate::family::{V4, V6};
use crate::port::{EVERY_PORT, Sequence, owns};
use crate::settings::Candidate;
use crate::siphash::{Secret, siphash};

/// Who a flow comes from, as far as its egress address depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inside<A> {
    /// Its address.
    pub address: A,
    /// The address space the address belongs to.
    pub realm: u16,
}

/// How a family's candidates are used.
pub trait Range: Sized {
    /// Whether a new flow may be sent to another server: every server has its own part of an IPv6 range (FWD-1).
    const FORWARDS: bool;

    /// How often one candidate is asked for another address before a flow is refused.
    const ROUNDS: u32;

    /// The address to leave from. It is the same for all flows of an inside address in round 0, and
    /// another one in each later round; `None` when the candidate has no more.
    fn address(
        candidate: &Candidate<Self>,
        secret: Secret,
        inside: Inside<Self>,
        round: u32,
    ) -> Option<Self>;

    /// Whether a client may keep its port.
    fn may_keep(slices: u32, port: u16) -> bool;

    /// The next random port; 0 if there is none.
    fn next_port(sequence: &mut Sequence, slices: u32) -> u16;
}

impl Range for V4 {
    const FORWARDS: bool = true;
    const ROUNDS: u32 = 1;

    #[inline(always)]
    fn address(
        candidate: &Candidate<Self>,
        _secret: Secret,
        _inside: Inside<Self>,
        _round: u32,
    ) -> Option<Self> {
        Some(candidate.address)
    }

    #[inline(always)]
    fn may_keep(slices: u32, port: u16) -> bool {
        slices == EVERY_PORT || owns(slices, port)
    }

    #[inline(always)]
    fn next_port(sequence: &mut Sequence, slices: u32) -> u16 {
        sequence.next_port(slices)
    }
}

/// Bits behind a prefix in the upper and in the lower half of an address.
#[inline(always)]
const fn host_mask(length: u32) -> (u64, u64) {
    if length == 0 {
        (u64::MAX, u64::MAX)
    } else if length < 64 {
        (u64::MAX >> length, u64::MAX)
    } else if length == 64 {
        (0, u64::MAX)
    } else if length < 128 {
        (0, u64::MAX >> (length - 64))
    } else {
        (0, 0)
    }
}

#[inline(always)]
const fn halves(address: V6) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    (
        u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        u64::from_be_bytes([i, j, k, l, m, n, o, p]),
    )
}

#[inline(always)]
const fn joined(high: u64, low: u64) -> V6 {
    let [a, b, c, d, e, f, g, h] = high.to_be_bytes();
    let [i, j, k, l, m, n, o, p] = low.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

impl Range for V6 {
    const FORWARDS: bool = false;
    const ROUNDS: u32 = crate::settings::MAX_TRIED;

    /// Prefix and a keyed hash of prefix and inside address, as RFC 7217 makes stable addresses:
    /// nobody can guess it, tell two of one inside host in two ranges, or count up to the next one. A
    /// round adds a step that is odd, so that as many rounds as the range is large meet each address
    /// once. The first address of a range is nobody's: routers on a link answer to it (RFC 4291,
    /// 2.6.1).
    #[inline(always)]
    fn address(
        candidate: &Candidate<Self>,
        secret: Secret,
        inside: Inside<Self>,
        round: u32,
    ) -> Option<Self> {
        let bits = 128u32.saturating_sub(candidate.length);
        if bits < 16 && round >> bits != 0 {
            return None;
        }
        let (prefix_high, prefix_low) = halves(candidate.address);
        let (inside_high, inside_low) = halves(inside.address);
        let realm = inside.realm as u64;
        let start = siphash(
            secret,
            [prefix_high, prefix_low, inside_high, inside_low, realm],
        );
        let other = siphash(secret, [start, prefix_low, inside_high, inside_low, !realm]);
        let (mask_high, mask_low) = host_mask(candidate.length);
        let low = start.wrapping_add((other | 1).wrapping_mul(round as u64)) & mask_low;
        let high = other.rotate_left(32) & mask_high;
        if bits > 1 && low == 0 && high == 0 {
            return None;
        }
        Some(joined(
            prefix_high & !mask_high | high,
            prefix_low & !mask_low | low,
        ))
    }

    #[inline(always)]
    fn may_keep(_slices: u32, port: u16) -> bool {
        port != 0
    }

    #[inline(always)]
    fn next_port(sequence: &mut Sequence, _slices: u32) -> u16 {
        sequence.next_unprivileged()
    }
}

#[cfg(test)]
mod tests;
