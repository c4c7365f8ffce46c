//! What a family is to a test: every world is configured alike for both.

use egress_common::family::{V4, V6};
use egress_common::settings::Candidate;

use crate::packet::Net;

/// A family whose data plane can be looked at.
pub(crate) trait Family: Net {
    /// At the end of the names of its maps.
    const SUFFIX: &'static str;
    /// The version in its packets.
    const VERSION: u32;

    /// The address that has this one's part in a world.
    fn at(address: V4) -> Self;
}

impl Family for V4 {
    const SUFFIX: &'static str = "4";
    const VERSION: u32 = 4;

    fn at(address: V4) -> Self {
        address
    }
}

impl Family for V6 {
    const SUFFIX: &'static str = "6";
    const VERSION: u32 = 6;

    fn at(address: V4) -> Self {
        v6_of(address)
    }
}

/// Bits in front of an IPv4 address in its twin.
pub(crate) const TWIN_BITS: u32 = 96;

/// The IPv6 twin of an address: 2001:db8:4::a.b.c.d.
pub(crate) const fn v6_of([a, b, c, d]: V4) -> V6 {
    [0x20, 1, 0xd, 0xb8, 0, 4, 0, 0, 0, 0, 0, 0, a, b, c, d]
}

/// The twin of an egress IP: a range of one address. Slices are none of IPv6's business, apart from having none.
pub(crate) fn twin(candidate: &Candidate<V4>) -> Candidate<V6> {
    Candidate {
        address: v6_of(candidate.address),
        slices: if candidate.slices == 0 { 0 } else { u32::MAX },
        capacity: candidate.capacity,
        flags: candidate.flags,
        length: 128,
    }
}
