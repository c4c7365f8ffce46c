//! Which servers get the new connections of a pool that this server owns nothing of, as the maps hold it (FWD-2).
//!
//! Inside addresses fall into [`SHARES`] shares by a hash. For each share the daemon makes the decision of
//! [`crate::forward`] in advance, so a new connection costs the kernel one hash and one look-up, however many servers
//! there are; and `egress why` asks the same table. Only new connections ask: the answer is kept with the flow (FWD-4).

use crate::distance::FARTHEST;
use crate::family::Address;
use crate::forward::{Choice, Decision, Regions, Site};
use crate::range::Range;
use crate::siphash::{Secret, siphash};

/// Shares of a pool; a power of two.
pub const SHARES: usize = 128;

/// Pools have tunnel ids from here; those below are not about pools ([`crate::peer`]).
pub const FIRST_TARGET: u32 = 16;
/// And below this: a VXLAN network identifier has 24 bits (RFC 7348).
pub const END_OF_TARGETS: u32 = 1 << 24;

/// The servers that translate the new connections of a pool, or of an exit ([`crate::settings::MAX_EXITS`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// The tunnel id of the pool, or of the address that the exit is; the same on all servers.
    pub target: u32,
    /// What tells exits of the same tunnel id apart: a digest of the locations that are allowed; 0 for all.
    pub regions: u32,
    /// By share: the server's number ([`crate::peer`]), 0 for none.
    pub peers: [u16; SHARES],
}

const _: () = assert!(size_of::<Forward>() == 8 + 2 * SHARES);

impl Forward {
    /// The server that gets the connections of an inside address; 0 for none.
    #[inline(always)]
    pub fn peer<A: Address>(&self, inside: A) -> u32 {
        let share = share_of(inside) & (SHARES - 1);
        match self.peers.get(share) {
            Some(peer) => *peer as u32,
            None => 0,
        }
    }
}

/// What a tunnel id means here.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// This server's number of the pool.
    pub pool: u32,
    /// The number of the exit by which its connections leave; 0: by the pool.
    pub exit: u32,
}

/// Which share an inside address falls into: the same at all servers.
#[inline(always)]
pub fn share_of<A: Address>(inside: A) -> usize {
    siphash(Secret::default(), [inside.digest()]) as usize & (SHARES - 1)
}

/// An owner of slices of an applicable egress IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The owner.
    pub owner: Site,
    /// Digest of the address.
    pub address: u64,
    /// The slices: bit k is slice k.
    pub slices: u32,
    /// Microseconds to the owner's location.
    pub distance: u32,
}

impl Offer {
    /// The distance to a location of which nothing is known.
    pub const UNKNOWN: u32 = FARTHEST;
}

/// The decision for one share.
pub fn decide<A: Range>(
    here: Site,
    regions: Regions,
    offers: &[Offer],
    share: usize,
) -> Option<Choice> {
    let mut decision = Decision::new::<A>(here, regions, Secret::default(), share as u64);
    for offer in offers {
        decision.offer(&offer.owner, offer.address, offer.slices, offer.distance);
    }
    decision.made()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{V4, V6};
    use crate::forward::Tier;
    use crate::port::ALL_SLICES;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn site(server: u16, data_center: u16, location: u16) -> Site {
        Site {
            server,
            data_center,
            location,
            out: 0,
        }
    }

    /// Two servers in this data center, one in another of this location, two locations elsewhere.
    const OTHERS: [(u16, u16, u16, u32); 5] = [
        (2, 1, 1, 0),
        (3, 1, 1, 0),
        (4, 2, 1, 0),
        (5, 3, 2, 9_000),
        (6, 4, 3, 4_000),
    ];

    fn offers(of: impl Fn(u16) -> bool) -> Vec<Offer> {
        let all = OTHERS.iter().filter(|(server, ..)| of(*server));
        all.map(|(server, data_center, location, distance)| Offer {
            owner: site(*server, *data_center, *location),
            address: 77,
            slices: slices(*server),
            distance: *distance,
        })
        .collect()
    }

    /// Every fifth slice.
    fn slices(server: u16) -> u32 {
        let all = (1..32).filter(|slice| slice % 5 == u32::from(server - 2));
        all.fold(0, |slices, slice| slices | 1 << slice)
    }

    fn chosen(offers: &[Offer]) -> BTreeMap<u16, usize> {
        let mut counts = BTreeMap::new();
        for share in 0..SHARES {
            let choice = decide::<V4>(site(1, 1, 1), Regions::default(), offers, share).unwrap();
            *counts.entry(choice.server).or_default() += 1;
        }
        counts
    }

    #[test]
    fn fwd_2_the_nearest_owners_share_and_nobody_else_gets_any() {
        let counts = chosen(&offers(|_| true));
        assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [2, 3]);
        // Half each, or nearly: six slices and seven.
        assert!(counts.values().all(|count| *count >= 40), "{counts:?}");
        assert_eq!(chosen(&offers(|server| server >= 4)), [(4, SHARES)].into());
        assert_eq!(chosen(&offers(|server| server >= 5)), [(6, SHARES)].into());
        assert_eq!(chosen(&offers(|server| server == 5)), [(5, SHARES)].into());
    }

    #[test]
    fn fwd_2_a_server_that_goes_takes_only_its_own_shares_along() {
        for share in 0..SHARES {
            let pick = |offers: &[Offer]| {
                let choice = decide::<V4>(site(1, 1, 1), Regions::default(), offers, share);
                choice.unwrap().server
            };
            let before = pick(&offers(|_| true));
            let after = pick(&offers(|server| server != 3));
            assert_eq!(after, 2);
            assert!(before == 2 || before == 3);
        }
    }

    #[test]
    fn fwd_1_ipv6_goes_nowhere() {
        for share in 0..SHARES {
            let choice = decide::<V6>(site(1, 1, 1), Regions::default(), &offers(|_| true), share);
            assert_eq!(choice, None);
        }
    }

    #[test]
    fn inside_addresses_spread_over_all_shares() {
        let mut counts = [0; SHARES];
        for host in 0..12_800_u32 {
            counts[share_of::<V4>((0x0a01_0000 + host).to_be_bytes())] += 1;
        }
        // 100 each on the average; six standard deviations are 60.
        assert!(
            counts.iter().all(|count| (40..=160).contains(count)),
            "{counts:?}"
        );
    }

    proptest! {
        /// Against the obvious way: sort owners by rank, keep the best rank, and of its slices the highest ticket.
        #[test]
        fn a_decision_is_one_of_the_nearest(
            owners in proptest::collection::vec((2u16..40, 1u16..6, 1u16..4, 0u32..3, 0u32..=ALL_SLICES), 0..12),
            share in 0..SHARES,
        ) {
            let here = site(1, 1, 1);
            let offers: Vec<Offer> = owners
                .iter()
                .map(|(server, data_center, location, distance, slices)| Offer {
                    owner: site(*server, *data_center, *location),
                    address: 5,
                    slices: *slices & ALL_SLICES,
                    distance: *distance,
                })
                .collect();
            let rank = |offer: &Offer| {
                if offer.owner.data_center == 1 {
                    (Tier::DataCenter, 0, 0)
                } else if offer.owner.location == 1 {
                    (Tier::Location, 0, 1)
                } else {
                    (Tier::Elsewhere, offer.distance, offer.owner.location)
                }
            };
            let usable = offers.iter().filter(|offer| offer.slices != 0);
            let best = usable.map(rank).min();
            let made = decide::<V4>(here, Regions::default(), &offers, share);
            prop_assert_eq!(made.is_some(), best.is_some());
            if let Some(made) = made {
                let chosen = offers.iter().any(|offer| {
                    offer.owner.server == made.server
                        && offer.slices != 0
                        && Some(rank(offer)) == best
                });
                prop_assert!(chosen);
            }
        }
    }
}
