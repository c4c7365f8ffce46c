//! Zones as a set: every selector selects one zone (ZONE-3), and every setting can be fulfilled (POOL-7).

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;

use egress_common::settings::MAX_MARKS;
use ipnet::IpNet;

use super::super::{Address, Kind, Mark, Place, Pool, Zone};
use super::Checker;
use super::eligible::{Holders, eligible_among};

/// `reserved` are the mark bits of this server that selectors never look at; 0 where that is not known.
pub(super) fn check(checker: &Checker<'_, '_>, reserved: u32) {
    once(checker, "sources", "source prefix", |zone| &zone.sources);
    once(checker, "cgroups", "cgroup", |zone| &zone.cgroups);
    once(checker, "interfaces", "interface", |zone| &zone.interfaces);
    marks(checker, reserved);
    settings(checker);
}

/// The same selector is in no two zones, nor in one zone twice.
fn once<T: Eq + Hash + Display>(
    checker: &Checker<'_, '_>,
    field: &'static str,
    noun: &str,
    selectors: impl Fn(&Zone) -> &Vec<T>,
) {
    let mut first: HashMap<&T, Place> = HashMap::new();
    for (object, zone) in checker.resources.zones.iter().enumerate() {
        for (item, selector) in selectors(zone).iter().enumerate() {
            let place = Place::object(Kind::Zone, object).field(field).item(item);
            if let Some(other) = first.get(selector) {
                same(checker, noun, &selector.to_string(), *other, place);
            } else {
                first.insert(selector, place);
            }
        }
    }
}

fn same(checker: &Checker<'_, '_>, noun: &str, selector: &str, first: Place, second: Place) {
    let name = |place: Place| {
        checker
            .resources
            .zones
            .get(place.object)
            .map_or("", |zone| zone.name.as_str())
    };
    let at = checker.at(first);
    if first.object == second.object {
        checker.error(
            second,
            format!(
                "{noun} {selector} is in zone {} twice, first {at}",
                name(second)
            ),
            "list it once",
        );
    } else {
        checker.error(
            second,
            format!(
                "{noun} {selector} selects two zones: {} ({at}) and {} (ZONE-3)",
                name(first),
                name(second)
            ),
            "a selector belongs to one zone; remove it from the other",
        );
    }
}

/// Marks may overlap only where one mask holds all bits of the other: the longer mask is matched first.
fn marks(checker: &Checker<'_, '_>, reserved: u32) {
    let all: Vec<(Place, Mark)> = checker
        .resources
        .zones
        .iter()
        .enumerate()
        .flat_map(|(object, zone)| {
            zone.marks.iter().enumerate().map(move |(item, mark)| {
                (
                    Place::object(Kind::Zone, object).field("marks").item(item),
                    *mark,
                )
            })
        })
        .collect();
    if let Some((place, _)) = all.get(MAX_MARKS as usize) {
        checker.error(
            *place,
            format!(
                "{} marks are too many: at most {MAX_MARKS} select zones",
                all.len()
            ),
            "select by source prefix, cgroup or interface where there are many zones",
        );
        return;
    }
    for (at, (place, mark)) in all.iter().enumerate() {
        for (other_place, other) in all.iter().take(at) {
            if let Some(both) = ambiguous(*other, *mark, reserved) {
                if both.identical {
                    same(checker, "mark", &mark.to_string(), *other_place, *place);
                } else if other_place.object != place.object {
                    let name = |place: &Place| {
                        checker
                            .resources
                            .zones
                            .get(place.object)
                            .map_or("", |z| z.name.as_str())
                    };
                    checker.error(
                        *place,
                        format!(
                            "mark {:#x} selects two zones: {} by {other} ({}) and {} by {mark} (ZONE-3)",
                            both.example,
                            name(other_place),
                            checker.at(*other_place),
                            name(place)
                        ),
                        "choose marks that no packet can match both of, or a mask that includes the other's",
                    );
                }
                break;
            }
        }
    }
}

/// Two marks that match the same packet, with neither more specific than the other.
struct Ambiguous {
    example: u32,
    identical: bool,
}

fn ambiguous(one: Mark, other: Mark, reserved: u32) -> Option<Ambiguous> {
    let (mask, other_mask) = (one.effective_mask(reserved), other.effective_mask(reserved));
    if (one.value ^ other.value) & mask & other_mask != 0 {
        return None;
    }
    let identical = mask == other_mask;
    let nested = mask & other_mask == mask || mask & other_mask == other_mask;
    (identical || !nested).then_some(Ambiguous {
        example: one.value | other.value,
        identical,
    })
}

/// The pool of every setting exists and may be used.
fn settings(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    let holders = Holders::of(resources);
    for (object, zone) in resources.zones.iter().enumerate() {
        let setting = resources.aegis(zone);
        let Some(reference) = &setting.pool_id else {
            continue;
        };
        let place = Place::object(Kind::Zone, object);
        let from_file = zone.aegis.is_some();
        let Some(pool) = resources.pool(reference) else {
            if from_file {
                let known = resources.pools.iter().map(|pool| pool.id.as_str());
                checker.unknown(place.field("pool_id"), "pool", reference, known);
            } else if setting.enabled {
                checker.error(
                    place.field("name"),
                    format!(
                        "zone {} uses pool {reference} by API or command line, but that pool is gone from this file",
                        zone.name
                    ),
                    format!("keep the pool, or first run `egress zone disable {}`", zone.name),
                );
            }
            continue;
        };
        if setting.enabled
            && let Err(error) = eligible_among(resources, &holders, zone, pool)
        {
            let field = if from_file { "pool_id" } else { "name" };
            checker.error(
                place.field(field),
                format!(
                    "zone {} may not be enabled on pool {}: {error}",
                    zone.name, pool.id
                ),
                error.remedy(),
            );
        }
        if setting.enabled {
            families(checker, place, zone, pool);
        }
    }
}

/// A zone that lists sources of a family which its pool has no address of is refused all their traffic: right
/// (SAFE-1), and hardly meant.
fn families(checker: &Checker<'_, '_>, place: Place, zone: &Zone, pool: &Pool) {
    let is_ipv6 = |address: &Address| matches!(address, Address::V6(_));
    let kinds = [
        (false, "IPv4", "an IPv4 address"),
        (true, "IPv6", "an IPv6 prefix, such as a /64,"),
    ];
    for (ipv6, family, member) in kinds {
        // A pool that is empty on purpose says so itself.
        if pool.addresses.is_empty() || pool.addresses.iter().any(|one| is_ipv6(one) == ipv6) {
            continue;
        }
        let of_family = |net: &&IpNet| matches!(net, IpNet::V6(_)) == ipv6;
        let Some(item) = zone.sources.iter().position(|net| of_family(&net)) else {
            continue;
        };
        checker.warning(
            place.field("sources").item(item),
            format!(
                "zone {} has {family} sources, but pool {} has no {family} address: that traffic is refused",
                zone.name, pool.id
            ),
            format!("add {member} to pool {}, or leave these sources out of the zone", pool.id),
        );
    }
}
