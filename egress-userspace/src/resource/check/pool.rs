//! Pools and prefixes as a set: POOL-2, POOL-3, POOL-4, POOL-7, POOL-8.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use egress_common::settings::{MAX_CANDIDATES, MAX_POOLS, MAX_TRIED};
use ipnet::IpNet;

use super::super::overlap::overlaps;
use super::super::{Address, Kind, Place, Pool, PoolKind, PoolUse, Prefix, Service};
use super::Checker;
use crate::placed;

pub(super) fn check(checker: &Checker<'_, '_>) {
    sizes(checker);
    prefixes(checker);
    one_pool_an_address(checker);
    for (object, pool) in checker.resources.pools.iter().enumerate() {
        let place = Place::object(Kind::Pool, object);
        let members: Vec<_> = pool
            .addresses
            .iter()
            .enumerate()
            .map(|(item, address)| Member {
                place: place.field("addresses").item(item),
                address: *address,
                prefix: checker.resources.byoip(address.net()),
            })
            .collect();
        one_kind(checker, place, pool, &members);
        bound_to_egress(checker, pool, &members);
    }
    gateways(checker);
}

/// An address of the pool under examination, with the BYOIP prefix it lies in.
struct Member<'a> {
    place: Place,
    address: Address,
    prefix: Option<&'a Prefix>,
}

impl Member<'_> {
    const fn kind(&self) -> PoolKind {
        match self.prefix {
            Some(_) => PoolKind::Byoip,
            None => PoolKind::Leased,
        }
    }

    fn describe(&self) -> String {
        match self.prefix {
            Some(prefix) => format!("{} is byoip (inside {})", self.address, prefix.cidr),
            None => format!("{} is leased (inside no [[prefix]])", self.address),
        }
    }
}

/// What the data plane's tables hold.
fn sizes(checker: &Checker<'_, '_>) {
    let pools = &checker.resources.pools;
    // Pool numbers are 1..MAX_POOLS.
    if let Some(first) = pools.len().checked_sub(MAX_POOLS as usize) {
        checker.error(
            Place::object(Kind::Pool, first),
            format!(
                "{} pools are too many: at most {} fit",
                pools.len(),
                MAX_POOLS - 1
            ),
            "spread the pools over several servers",
        );
    }
    let families = [
        ("IPv4 addresses", false),
        ("IPv6 addresses and prefixes", true),
    ];
    for (noun, ipv6) in families {
        let mut all = 0;
        for (object, pool) in pools.iter().enumerate() {
            let count = pool
                .addresses
                .iter()
                .filter(|address| matches!(address, Address::V6(_)) == ipv6)
                .count();
            let place = Place::object(Kind::Pool, object).field("addresses");
            all += count;
            if count > MAX_TRIED as usize {
                checker.error(
                    place,
                    format!(
                        "pool {} has {count} {noun}; at most {MAX_TRIED} are tried for a connection",
                        pool.id
                    ),
                    "split the pool, and its zones with it",
                );
            }
            if all > MAX_CANDIDATES as usize {
                checker.error(
                    place,
                    format!("with this pool there are {all} {noun}; at most {MAX_CANDIDATES} fit"),
                    "spread the pools over several servers",
                );
                break;
            }
        }
    }
}

/// POOL-3: a prefix is bound to ingress or to egress, never both; and it is there once.
fn prefixes(checker: &Checker<'_, '_>) {
    let all = &checker.resources.prefixes;
    let nets = all
        .iter()
        .enumerate()
        .map(|(object, prefix)| (prefix.cidr, object))
        .collect();
    for ((outer_net, outer), (inner_net, inner)) in overlaps(nets) {
        let (Some(around), Some(prefix)) = (all.get(outer), all.get(inner)) else {
            continue;
        };
        let place = Place::object(Kind::Prefix, inner);
        let first = checker.at(Place::object(Kind::Prefix, outer).field("cidr"));
        let differs = |one| around.services().any(|other| other != one);
        if prefix.services().any(differs) {
            checker.error(
                place.field("service"),
                format!("{inner_net} is bound to both cdn-ingress and cdn-egress: {outer_net} is there {first} (POOL-3)"),
                "a BYOIP prefix serves ingress or egress, never both; bind it to one",
            );
        } else if outer_net == inner_net {
            checker.error(
                place.field("cidr"),
                format!("prefix {inner_net} is there twice, first {first}"),
                "keep one, and list further accounts under its delegated_to",
            );
        }
    }
}

/// POOL-4: an egress IP belongs to one pool.
fn one_pool_an_address(checker: &Checker<'_, '_>) {
    let pools = &checker.resources.pools;
    let mut nets: Vec<(IpNet, (usize, usize))> = Vec::new();
    let mut seen: HashMap<Address, (usize, usize)> = HashMap::new();
    for (object, pool) in pools.iter().enumerate() {
        for (item, address) in pool.addresses.iter().enumerate() {
            if let Some(first) = seen.get(address) {
                twice(checker, &address.to_string(), *first, (object, item));
            } else {
                seen.insert(*address, (object, item));
                if matches!(address, Address::V6(_)) {
                    nets.push((address.net(), (object, item)));
                }
            }
        }
    }
    for ((_, outer), (inner_net, inner)) in overlaps(nets) {
        let address = pools
            .get(inner.0)
            .and_then(|pool| pool.addresses.get(inner.1))
            .map_or_else(|| inner_net.to_string(), ToString::to_string);
        // The one further down in the file is at fault.
        let (first, second) = if outer < inner {
            (outer, inner)
        } else {
            (inner, outer)
        };
        twice(checker, &address, first, second);
    }
}

fn twice(checker: &Checker<'_, '_>, address: &str, first: (usize, usize), second: (usize, usize)) {
    let id = |at: (usize, usize)| {
        checker
            .resources
            .pools
            .get(at.0)
            .map_or("", |pool| pool.id.as_str())
    };
    let place = |at: (usize, usize)| {
        Place::object(Kind::Pool, at.0)
            .field("addresses")
            .item(at.1)
    };
    let at = checker.at(place(first));
    if first.0 == second.0 {
        checker.error(
            place(second),
            format!("{address} is in pool {} twice, first {at}", id(second)),
            "list it once",
        );
    } else {
        checker.error(
            place(second),
            format!(
                "{address} is in two pools: in {} ({at}) and in {} (POOL-4)",
                id(first),
                id(second)
            ),
            "an egress IP belongs to one pool; many zones may use that pool",
        );
    }
}

/// POOL-2: wholly byoip or wholly leased, and as the pool says it is.
fn one_kind(checker: &Checker<'_, '_>, place: Place, pool: &Pool, members: &[Member<'_>]) {
    let Some(first) = members.first() else { return };
    if let Some(other) = members.iter().find(|member| member.kind() != first.kind()) {
        checker.error(
            other.place,
            format!(
                "pool {} is mixed: {}, {} (POOL-2)",
                pool.id,
                first.describe(),
                other.describe()
            ),
            "make two pools, one of byoip and one of leased addresses",
        );
    } else if let Some(kind) = pool.kind
        && kind != first.kind()
    {
        let remedy = match first.kind() {
            PoolKind::Byoip => "write kind = \"byoip\"",
            PoolKind::Leased => {
                "write kind = \"leased\", or add the [[prefix]] that its addresses come from"
            }
        };
        checker.error(
            place.field("kind"),
            format!(
                "pool {} says it is {}, but {}",
                pool.id,
                kind.word(),
                first.describe()
            ),
            remedy,
        );
    }
}

/// POOL-3 and POOL-7 for the pool itself: its prefixes are bound to egress, and its account may use them.
fn bound_to_egress(checker: &Checker<'_, '_>, pool: &Pool, members: &[Member<'_>]) {
    for member in members {
        let Some(prefix) = member.prefix else {
            continue;
        };
        let net = member.address.net();
        let service = prefix.service_of(net);
        if service.is_none() {
            checker.error(
                member.place,
                format!(
                    "{} lies in {}, and is bound to no service yet",
                    member.address, prefix.cidr
                ),
                "bind the prefix to cdn-egress first",
            );
        } else if service == Some(Service::CdnIngress) {
            checker.error(
                member.place,
                format!(
                    "{} lies in {}, which is bound to cdn-ingress (POOL-3)",
                    member.address, prefix.cidr
                ),
                "take an address of another prefix, or bind this one to service = \"cdn-egress\"",
            );
        } else if !prefix.is_for(checker.resources, &pool.account, net) {
            checker.error(
                member.place,
                format!(
                    "account {} neither owns {} nor was it delegated",
                    pool.account, prefix.cidr
                ),
                format!(
                    "add \"{}\" to delegated_to of that [[prefix]]",
                    pool.account
                ),
            );
        }
    }
}

/// POOL-8: an account should hold two gateway addresses, in two cities.
fn gateways(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    // Where there are no placements every address is in this server's city.
    let mut held: BTreeMap<&str, (Place, usize, BTreeSet<&str>)> = BTreeMap::new();
    for (object, pool) in checker.resources.pools.iter().enumerate() {
        if pool.used_for == PoolUse::Gateway {
            let place = Place::object(Kind::Pool, object).field("id");
            let (_, count, cities) =
                held.entry(pool.account.as_str())
                    .or_insert((place, 0, BTreeSet::new()));
            for address in &pool.addresses {
                if let Address::V4(address) = address {
                    *count += 1;
                    let owners = placed::owners(resources, *address);
                    cities.extend(owners.iter().map(|(one, _)| one.location.name.as_str()));
                }
            }
        }
    }
    for (account, (place, count, cities)) in held {
        if count < 2 {
            checker.warning(
                place,
                format!("account {account} holds {count} gateway addresses; two are the least for one to fail (POOL-8)"),
                "add a second IPv4 address to its gateway pools",
            );
        } else if cities.len() < 2 {
            checker.warning(
                place,
                format!(
                    "all {count} gateway addresses of account {account} are in one city (POOL-8)"
                ),
                "place one of them in another city, with [[location]] and [[placement]]",
            );
        }
    }
}
