//! Source ports: slices, quotas, and the order in which ports are tried (CAP-3, CAP-8).

use crate::siphash::{Secret, siphash};

/// Most connections of one IPv4 egress IP to one origin and protocol (CAP-1).
pub const CONNECTIONS_PER_ORIGIN: u32 = 40_000;
/// Slices of an address that may be owned: 1..=31. Slice 0 holds the ports below 2048 and is never
/// used.
pub const SLICES: u32 = 31;
/// All slices of an address, as a bitmap: bit k is slice k.
pub const ALL_SLICES: u32 = 0xffff_fffe;
/// Ports of a slice, as a power of two: slice = port >> 11.
pub const SLICE_SHIFT: u32 = 11;
/// Random ports tried before quarantined ones are asked to yield (CAP-8: at least 64).
pub const PROBES: u32 = 64;

/// Groups of [`effort`]: up to 1, 2, 4, ... 64 ports tried, and more.
pub const EFFORTS: u32 = 8;

/// The group of a flow that got its port after so many were tried (OBS-3).
#[inline(always)]
pub const fn effort(tried: u32) -> u32 {
    let group = u32::BITS - tried.saturating_sub(1).leading_zeros();
    if group < EFFORTS { group } else { EFFORTS - 1 }
}

/// The most ports tried in a group; none for the last one.
pub const fn most_tried(group: u32) -> Option<u32> {
    if group + 1 < EFFORTS {
        Some(1 << group)
    } else {
        None
    }
}

/// Connections per origin that owning slice k (1..=31) entitles to (CAP-3).
pub const fn quota(slice: u32) -> u32 {
    quota_of(CONNECTIONS_PER_ORIGIN, slice)
}

/// What owning slice k (1..=31) entitles to of `total`, at most [`CONNECTIONS_PER_ORIGIN`]: the quotas of all slices
/// add up to it (CAP-3, CAP-8).
pub const fn quota_of(total: u32, slice: u32) -> u32 {
    if slice == 0 || slice > SLICES || total > CONNECTIONS_PER_ORIGIN {
        return 0;
    }
    total * slice / SLICES - total * (slice - 1) / SLICES
}

/// Connections per origin that a set of slices entitles to.
pub const fn capacity(slices: u32) -> u32 {
    capacity_of(CONNECTIONS_PER_ORIGIN, slices)
}

/// What a set of slices entitles to of `total`.
pub const fn capacity_of(total: u32, slices: u32) -> u32 {
    let mut sum = 0;
    let mut slice = 1;
    while slice <= SLICES {
        if slices >> slice & 1 == 1 {
            sum += quota_of(total, slice);
        }
        slice += 1;
    }
    sum
}

/// In place of slices: every port, those below 2048 too. Of flows that leave with the client's own, since another
/// server translates them.
pub const EVERY_PORT: u32 = u32::MAX;

/// Whether a port lies in one of the slices.
#[inline(always)]
pub const fn owns(slices: u32, port: u16) -> bool {
    (slices & ALL_SLICES) >> (port >> SLICE_SHIFT) & 1 == 1
}

/// The order of ports tried for one new flow: unguessable, and different for the next flow.
///
/// The seed is a keyed hash (RFC 6056, section 3.3.3 with a per-flow counter); the sequence from it
/// is splitmix64, whose outputs reveal nothing about the key.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The sequence of one flow. `nonce` differs between two flows with the same endpoints.
    #[inline(always)]
    pub fn new(secret: Secret, inside: u64, origin: u64, ports: u64, nonce: u64) -> Self {
        Self(siphash(secret, [inside, origin, ports, nonce]))
    }

    /// The next number.
    #[inline(always)]
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// The next port, uniform over 1024..=65535 (RFC 6056, section 3.2).
    #[inline(always)]
    pub fn next_unprivileged(&mut self) -> u16 {
        let mixed = self.next();
        1_024 + (((mixed >> 32) * 64_512) >> 32) as u16
    }

    /// The next port, uniform over the ports of `slices`; 0 if there are none.
    #[inline(always)]
    pub fn next_port(&mut self, slices: u32) -> u16 {
        let mixed = self.next();
        let slices = slices & ALL_SLICES;
        let low = (mixed & 0x7ff) as u16;
        let owned = count_ones(slices);
        if owned == 0 {
            return 0;
        }
        // Multiply-shift instead of a remainder: uniform within 31 / 2^32.
        let nth = (((mixed >> 32) * owned as u64) >> 32) as u32;
        select(slices, nth) << SLICE_SHIFT | low
    }
}

/// Number of set bits, in constant time and without a helper the BPF target lacks.
#[inline(always)]
const fn count_ones(bits: u32) -> u32 {
    let pairs = bits - (bits >> 1 & 0x5555_5555);
    let quads = (pairs & 0x3333_3333) + (pairs >> 2 & 0x3333_3333);
    (((quads + (quads >> 4)) & 0x0f0f_0f0f).wrapping_mul(0x0101_0101)) >> 24
}

/// Position of the nth set bit (from 0); 0 when there are fewer.
#[inline(always)]
const fn select(bits: u32, nth: u32) -> u16 {
    let mut bits = bits;
    let mut nth = nth;
    let mut position = 0;
    let mut width = 16;
    while width > 0 {
        let below = count_ones(bits & ((1 << width) - 1));
        if nth >= below {
            nth -= below;
            bits >>= width;
            position += width as u16;
        } else {
            bits &= (1 << width) - 1;
        }
        width >>= 1;
    }
    position & 31
}

/// Where a new flow begins among the egress IPs of its pool: the same for all flows of one inside
/// address (CAP-9). `inside` is the address's digest, `realm` the address space it belongs to.
#[inline(always)]
pub fn preferred(secret: Secret, inside: u64, realm: u16, candidates: u32) -> u32 {
    if candidates < 2 {
        return 0;
    }
    let spread = siphash(secret, [inside, realm as u64]) >> 32;
    ((spread * candidates as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obs_3_efforts_are_told_apart_by_powers_of_two() {
        for tried in 0..=600 {
            let slowly = (0..EFFORTS)
                .find(|group| most_tried(*group).is_none_or(|most| tried <= most))
                .unwrap();
            assert_eq!(effort(tried), slowly, "{tried}");
        }
        assert_eq!((effort(1), effort(PROBES), effort(PROBES + 1)), (0, 6, 7));
        assert_eq!(effort(u32::MAX), EFFORTS - 1);
    }

    use proptest::prelude::*;

    #[test]
    fn cap_3_quotas_add_up_to_forty_thousand() {
        assert_eq!((1..=SLICES).map(quota).sum::<u32>(), CONNECTIONS_PER_ORIGIN);
        assert_eq!(capacity(ALL_SLICES), CONNECTIONS_PER_ORIGIN);
        assert_eq!(quota(0) + quota(32), 0);
    }

    proptest! {
        #[test]
        fn cap_3_any_division_adds_up(mask: u32) {
            prop_assert_eq!(capacity(mask) + capacity(!mask), CONNECTIONS_PER_ORIGIN);
        }

        #[test]
        fn cap_8_every_port_tried_is_owned(seed: u64, slices in 2u32..) {
            let mut sequence = Sequence(seed);
            for _ in 0..PROBES {
                let port = sequence.next_port(slices);
                prop_assert!(owns(slices, port), "port {port} of {slices:#x}");
                prop_assert!(port >= 2048);
            }
        }

        #[test]
        fn select_agrees_with_counting(bits: u32, nth in 0u32..32) {
            let slow = (0..32).filter(|k| bits >> k & 1 == 1).nth(nth as usize);
            if let Some(position) = slow {
                prop_assert_eq!(select(bits, nth), position as u16);
            }
            prop_assert_eq!(count_ones(bits), bits.count_ones());
        }
    }

    #[test]
    fn cap_8_ports_are_spread_evenly() {
        let mut sequence = Sequence(7);
        let mut tally = [0u32; 32];
        for _ in 0..310_000 {
            tally[(sequence.next_port(ALL_SLICES) >> SLICE_SHIFT) as usize] += 1;
        }
        assert_eq!(tally[0], 0);
        for hits in &tally[1..] {
            assert!((9_500..10_500).contains(hits), "{tally:?}");
        }
    }

    proptest! {
        #[test]
        fn cap_9_an_inside_address_keeps_to_one_candidate(inside: u64, realm: u16, candidates in 0u32..300) {
            let secret = Secret { k0: 1, k1: 2 };
            let start = preferred(secret, inside, realm, candidates);
            prop_assert!(start < candidates.max(1));
            prop_assert_eq!(start, preferred(secret, inside, realm, candidates));
        }
    }

    #[test]
    fn cap_9_inside_addresses_are_spread_over_the_candidates() {
        let secret = Secret { k0: 1, k1: 2 };
        let mut tally = [0; 4];
        for inside in 0..4_000 {
            tally[preferred(secret, inside, 0, 4) as usize] += 1;
        }
        assert!(
            tally.iter().all(|hits| (850..1_150).contains(hits)),
            "{tally:?}"
        );
    }

    #[test]
    fn no_slices_no_port() {
        assert_eq!(Sequence(1).next_port(0), 0);
        assert_eq!(Sequence(1).next_port(1), 0);
    }
}
