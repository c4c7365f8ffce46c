use super::*;
use crate::family::{V4, V6};
use crate::port::ALL_SLICES;
use proptest::prelude::*;

const SECRET: Secret = Secret { k0: 3, k1: 4 };

/// Somebody who owns slices of an egress IP.
#[derive(Clone, Copy, Debug)]
struct Owner {
    site: Site,
    address: u64,
    slices: u32,
}

/// A world: servers in data centers in locations, the distances of the locations, who owns what.
#[derive(Clone, Debug)]
struct World {
    here: Site,
    distances: Vec<u32>,
    owners: Vec<Owner>,
    regions: Regions,
}

/// Server n stands in data center n / 2, that in location n / 4.
fn site(server: u16, out: bool) -> Site {
    Site {
        server: server + 1,
        data_center: server / 2 + 1,
        location: server / 4 + 1,
        out: u16::from(out),
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let owner = (
        0u16..24,
        proptest::bool::weighted(0.2),
        0u64..3,
        any::<u32>(),
    );
    (
        0u16..24,
        proptest::collection::vec(0u32..40, 7),
        proptest::collection::vec(owner, 0..20),
        prop_oneof![
            3 => Just(Vec::new()),
            1 => proptest::collection::vec(1u16..7, 1..4)
        ],
    )
        .prop_map(|(here, distances, owners, named)| {
            // Whether a server is out is one fact, and no slice has two owners.
            let mut out = std::collections::BTreeMap::new();
            let mut taken = [0u32; 3];
            let owners = owners
                .into_iter()
                .map(|(server, is_out, address, slices)| {
                    let is_out = *out.entry(server).or_insert(is_out);
                    let slices = slices & !taken[address as usize];
                    taken[address as usize] |= slices;
                    Owner {
                        site: site(server, is_out),
                        address,
                        slices,
                    }
                })
                .collect();
            let mut regions = Regions::default();
            regions.0[..named.len()].copy_from_slice(&named);
            World {
                here: site(here, false),
                distances,
                owners,
                regions,
            }
        })
}

impl World {
    fn distance(&self, location: u16) -> u32 {
        self.distances[usize::from(location)]
    }

    fn decide<A: Range>(&self, inside: u64) -> Option<Choice> {
        let mut decision = Decision::new::<A>(self.here, self.regions, SECRET, inside);
        for owner in &self.owners {
            let distance = self.distance(owner.site.location);
            decision.offer(&owner.site, owner.address, owner.slices, distance);
        }
        decision.made()
    }

    /// FWD-2 as it is written, one sentence after the other; all servers that would do.
    fn model(&self) -> Vec<u16> {
        let possible: Vec<Site> = self
            .owners
            .iter()
            .filter(|owner| owner.slices & ALL_SLICES != 0 && owner.site.out == 0)
            .filter(|owner| {
                let named: Vec<u16> = self.regions.0.into_iter().filter(|n| *n != 0).collect();
                named.is_empty() || named.contains(&owner.site.location)
            })
            .map(|owner| owner.site)
            .collect();
        let those = |of: &dyn Fn(&Site) -> bool| -> Vec<u16> {
            let found = possible.iter().filter(|site| of(site));
            found.map(|site| site.server).collect()
        };
        let here = self.here;
        let same_server = those(&|site| site.server == here.server);
        if !same_server.is_empty() {
            return same_server;
        }
        let same_data_center = those(&|site| site.data_center == here.data_center);
        if !same_data_center.is_empty() {
            return same_data_center;
        }
        let same_location = those(&|site| site.location == here.location);
        if !same_location.is_empty() {
            return same_location;
        }
        let closest = possible
            .iter()
            .map(|site| (self.distance(site.location), site.location))
            .min();
        closest.map_or_else(Vec::new, |(_, location)| {
            those(&|site| site.location == location)
        })
    }
}

proptest! {
    #[test]
    fn fwd_2_the_order_is_server_data_center_location_closest(world in worlds(), inside: u64) {
        let model = world.model();
        match world.decide::<V4>(inside) {
            Some(choice) => {
                prop_assert!(model.contains(&choice.server), "{choice:?}, not one of {model:?}");
                let owner = world.owners.iter().find(|owner| owner.site.server == choice.server);
                prop_assert_eq!(choice.location, owner.unwrap().site.location);
                prop_assert_eq!(choice.tier, tier(&world.here, &owner.unwrap().site));
            }
            None => prop_assert!(model.is_empty(), "{model:?}"),
        }
    }

    #[test]
    fn fwd_1_ipv6_is_never_forwarded(world in worlds(), inside: u64) {
        let choice = world.decide::<V6>(inside);
        prop_assert!(choice.is_none_or(|choice| choice.server == world.here.server));
        let here = world.model().first() == Some(&world.here.server);
        prop_assert_eq!(choice.is_some(), here);
    }

    #[test]
    fn fwd_8_a_confined_zone_leaves_where_it_may_or_not_at_all(mut world in worlds(), inside: u64, named in 1u16..7) {
        world.regions = Regions::default();
        world.regions.0[3] = named;
        let choice = world.decide::<V4>(inside);
        prop_assert!(choice.is_none_or(|choice| choice.location == named));
    }

    #[test]
    fn the_order_of_the_offers_does_not_matter(world in worlds(), inside: u64, seed: u64) {
        let mut shuffled = world.clone();
        shuffled.owners.sort_by_key(|owner| siphash(Secret { k0: seed, k1: 0 }, [owner.site.server as u64, owner.address]));
        prop_assert_eq!(world.decide::<V4>(inside), shuffled.decide::<V4>(inside));
    }

    #[test]
    fn fwd_7_who_did_not_use_a_server_stays_where_he_is_when_it_goes(world in worlds(), gone in 0u16..24, inside: u64) {
        let before = world.decide::<V4>(inside);
        let mut after = world.clone();
        after.owners.retain(|owner| owner.site.server != gone + 1);
        if let Some(before) = before && before.server != gone + 1 {
            prop_assert_eq!(after.decide::<V4>(inside), Some(before));
        }
    }

    #[test]
    fn a_slice_that_moves_within_a_data_center_takes_only_its_own_along(inside: u64) {
        // Slice 9 goes from server 2 to server 3; server 1 asks; all in one data center.
        let site = |server| Site { server, data_center: 1, location: 1, out: 0 };
        let decide = |second: u32, third: u32| {
            let mut decision = Decision::new::<V4>(site(1), Regions::default(), SECRET, inside);
            decision.offer(&site(2), 0, second, 0);
            decision.offer(&site(3), 0, third, 0);
            decision.made().unwrap().server
        };
        let (before, after) = (decide(0x0000_fffe, 0xffff_0000), decide(0x0000_fdfe, 0xffff_0200));
        prop_assert!(before == after || (before, after) == (2, 3));
    }
}

#[test]
fn fwd_2_within_a_data_center_servers_get_what_they_own() {
    let here = site(0, false);
    let (two, three) = (Site { server: 2, ..here }, Site { server: 3, ..here });
    let mut taken = 0;
    for inside in 0..20_000 {
        let mut decision = Decision::new::<V4>(here, Regions::default(), SECRET, inside);
        decision.offer(&two, 7, 0x0000_00fe, 0);
        decision.offer(&three, 7, 0xffff_ff00, 0);
        taken += u32::from(decision.made().unwrap().server == 2);
    }
    // Seven slices of 31.
    let expected = 20_000 * 7 / 31;
    assert!(
        taken.abs_diff(expected) < expected / 10,
        "{taken}, not {expected}"
    );
}
