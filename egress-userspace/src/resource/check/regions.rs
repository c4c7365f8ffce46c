//! Zones that are confined to locations (FWD-8): there are such locations, and somebody there can serve the zone.

use std::collections::BTreeSet;

use super::super::{Address, Kind, Place, Pool, Resources, Zone};
use super::Checker;
use crate::placed;

pub(super) fn check(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    let locations = || resources.locations.iter().map(|one| one.name.as_str());
    for (object, zone) in resources.zones.iter().enumerate() {
        let place = Place::object(Kind::Zone, object).field("regions");
        let mut seen = BTreeSet::new();
        for (item, region) in zone.regions.iter().enumerate() {
            let place = place.item(item);
            if !seen.insert(region) {
                checker.error(
                    place,
                    format!("zone {} names location {region} twice", zone.name),
                    "leave one out",
                );
            } else if !locations().any(|name| name == region) {
                checker.unknown(place, "location", region, locations());
            }
        }
        let setting = resources.aegis(zone);
        let pool = setting.pool_id.as_deref().and_then(|id| resources.pool(id));
        if let Some(pool) = pool
            && setting.enabled
            && !zone.regions.is_empty()
            && locations().any(|name| zone.regions.iter().any(|one| one == name))
            && !is_served(resources, zone, pool)
        {
            checker.warning(
                place.item(0),
                format!(
                    "zone {} is confined to {}, and nobody there has anything of pool {}: its traffic is refused",
                    zone.name,
                    zone.regions.join(", "),
                    pool.id
                ),
                "give a data center there a share of one of the pool's addresses, or take `regions` out",
            );
        }
    }
}

/// Whether a server where the zone may leave has anything of its pool.
fn is_served(resources: &Resources, zone: &Zone, pool: &Pool) -> bool {
    let here = |location: &str| zone.regions.iter().any(|one| one == location);
    pool.addresses.iter().any(|address| match *address {
        Address::V4(address) => {
            let owners = placed::owners(resources, address);
            owners.iter().any(|(owner, _)| here(&owner.location.name))
        }
        Address::V6(range) => placed::servers(resources).any(|one| {
            here(&one.location.name)
                && placed::part_of(resources, &one.server.name, range).is_some()
        }),
    })
}
