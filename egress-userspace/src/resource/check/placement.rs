//! Locations and placements as a set: POOL-5, POOL-6, POOL-8, and this server's place among them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use super::super::location::REFUSED;
use super::super::{Address, Kind, Location, Place, Placement, PoolUse, Resources};
use super::Checker;
use crate::config::{Config, Server};
use crate::document::nearest;
use crate::placed::{self, LONGEST_DIVIDED};

/// An IPv4 egress IP is split over at most this many locations (POOL-5).
const MAX_LOCATIONS: usize = 4;

pub(super) fn check(checker: &Checker<'_, '_>, config: Option<&Config>) {
    names(checker);
    for (object, placement) in checker.resources.placements.iter().enumerate() {
        shares(checker, Place::object(Kind::Placement, object), placement);
    }
    addresses(checker);
    if !checker.resources.locations.is_empty() {
        everything_is_placed(checker);
        if let Some(config) = config {
            here(checker, &config.server);
        }
    }
}

/// Every location, data center and server has a name of its own, and every server a number of its own.
fn names(checker: &Checker<'_, '_>) {
    let mut once = Once {
        checker,
        first: HashMap::new(),
    };
    for (object, location) in checker.resources.locations.iter().enumerate() {
        let place = Place::object(Kind::Location, object);
        once.meet("location", &location.name, place.field("name"));
        distances(checker, place, location);
        for (at, data_center) in location.data_centers.iter().enumerate() {
            let place = place.field("data_center").item(at);
            once.meet("data center", &data_center.name, place);
        }
        for (at, _, server) in location.servers() {
            once.meet("server", &server.name, place.field("server").item(at));
            if let Some(number) = server.number.filter(|number| *number != REFUSED) {
                let place = place.field("number").item(at);
                once.meet("server number", &number.to_string(), place);
            }
        }
    }
}

/// Distances are to other locations that there are.
fn distances(checker: &Checker<'_, '_>, place: Place, location: &Location) {
    let others = || {
        let all = checker.resources.locations.iter();
        all.map(|one| one.name.as_str())
            .filter(|name| *name != location.name)
    };
    for to in location.distances.keys() {
        if !others().any(|name| name == to) {
            checker.error(
                place.field("name"),
                format!("location {} has a distance to {to}, and there is no other location of that name", location.name),
                nearest(to, others()).map_or_else(
                    || "take it out, or declare the location with [[location]]".to_owned(),
                    |like| format!("did you mean \"{like}\"?"),
                ),
            );
        }
    }
}

struct Once<'c, 'a, 's> {
    checker: &'c Checker<'a, 's>,
    first: HashMap<(&'static str, String), Place>,
}

impl Once<'_, '_, '_> {
    fn meet(&mut self, noun: &'static str, name: &str, place: Place) {
        // An empty one was refused already.
        if name.is_empty() {
            return;
        }
        if let Some(first) = self.first.get(&(noun, name.to_owned())) {
            self.checker.error(
                place,
                format!(
                    "{noun} {name} is there twice, first {}",
                    self.checker.at(*first)
                ),
                format!("give each {noun} its own"),
            );
        } else {
            self.first.insert((noun, name.to_owned()), place);
        }
    }
}

/// The shares of one placement.
fn shares(checker: &Checker<'_, '_>, place: Place, placement: &Placement) {
    let locations = &checker.resources.locations;
    let of: BTreeMap<&str, (&str, usize)> = locations
        .iter()
        .flat_map(|location| {
            let all = location.data_centers.iter();
            all.map(|one| {
                (
                    one.name.as_str(),
                    (location.name.as_str(), one.servers.len()),
                )
            })
        })
        .collect();
    let address = placement.address;
    let mut used = BTreeSet::new();
    let mut seen = BTreeSet::new();
    let mut wrong = false;
    for (at, share) in placement.shares.iter().enumerate() {
        let place = place.field("shares").item(at + 1);
        let name = share.data_center.as_str();
        let mut refuse = |reason: String, remedy: String| {
            wrong = true;
            checker.error(place, reason, remedy);
        };
        match of.get(name) {
            _ if name.is_empty() => wrong = true,
            None => refuse(
                format!("data center {name} is in no location"),
                nearest(name, of.keys().copied()).map_or_else(
                    || "declare it with [[location.data_center]]".to_owned(),
                    |like| format!("did you mean \"{like}\"?"),
                ),
            ),
            Some(_) if !seen.insert(name) => refuse(
                format!("data center {name} has two shares of {address}"),
                "write one share for each data center".into(),
            ),
            Some((_, 0)) if share.share > 0 => refuse(
                format!("data center {name} has a share of {address}, but no server"),
                "add a [[location.data_center.server]], or give it no share".into(),
            ),
            Some((location, _)) if share.share > 0 => {
                used.insert(*location);
            }
            Some(_) => {}
        }
    }
    let whole = place.field("shares");
    if used.len() > MAX_LOCATIONS {
        let names: Vec<&str> = used.iter().copied().collect();
        checker.error(
            whole,
            format!(
                "{address} is placed in {} locations: {}",
                used.len(),
                names.join(", ")
            ),
            format!("an egress IP is split over at most {MAX_LOCATIONS} locations (POOL-5)"),
        );
    } else if !wrong && placement.shares.iter().all(|share| share.share == 0) {
        checker.error(
            whole,
            format!("the shares of {address} sum to nothing: no server would own it"),
            "give at least one data center a share of 1 or more",
        );
    } else if !wrong {
        owners(checker, place, placement);
    }
}

/// What comes of shares that are valid.
fn owners(checker: &Checker<'_, '_>, place: Place, placement: &Placement) {
    let found = placed::owners(checker.resources, placement.address);
    for (at, share) in placement.shares.iter().enumerate() {
        let owns = |name: &str| found.iter().any(|(one, _)| one.data_center.name == name);
        if share.share > 0 && !owns(&share.data_center) {
            checker.warning(
                place.field("shares").item(at + 1),
                format!(
                    "the share of {} is too small for one of the 31 slices of {}",
                    share.data_center, placement.address
                ),
                "make it larger, or the others smaller",
            );
        }
    }
    if found.len() > 1 && found.iter().any(|(one, _)| one.server.tunnel.is_none()) {
        checker.warning(
            place,
            format!(
                "{} is split over {} servers that do not reach each other: the network must bring each reply to \
                 the server that owns its port",
                placement.address,
                found.len()
            ),
            "give each server its `tunnel` address, and replies are sent on to their owners",
        );
    }
}

/// Placements are of addresses of pools, one each; a gateway address is in one data center (POOL-8).
fn addresses(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    let mut first: HashMap<Ipv4Addr, Place> = HashMap::new();
    for (object, placement) in resources.placements.iter().enumerate() {
        let place = Place::object(Kind::Placement, object).field("address");
        let address = placement.address;
        if address.is_unspecified() {
            continue;
        }
        if let Some(other) = first.get(&address) {
            checker.error(
                place,
                format!("{address} is placed twice, first {}", checker.at(*other)),
                "write one [[placement]] with all its shares",
            );
            continue;
        }
        first.insert(address, place);
        let pool = resources
            .pools
            .iter()
            .find(|pool| pool.addresses.contains(&Address::V4(address)));
        let leased = || {
            let mut leases = resources.leases.iter();
            leases.any(|lease| lease.address == Address::V4(address))
        };
        // One that is leased, or of a prefix that the API knows, may be placed before a pool has it.
        if pool.is_none() && (leased() || is_registered(resources, address)) {
            continue;
        }
        let Some(pool) = pool else {
            checker.error(
                place,
                format!("{address} is in no pool"),
                "list it under `addresses` of a [[pool]], or remove the placement",
            );
            continue;
        };
        let parts = placement.shares.iter().filter(|share| share.share > 0);
        if pool.used_for == PoolUse::Gateway && parts.count() > 1 {
            checker.error(
                Place::object(Kind::Placement, object).field("shares"),
                format!(
                    "{address} of gateway pool {} is placed in several data centers (POOL-8)",
                    pool.id
                ),
                "a gateway address is in exactly one data center",
            );
        }
    }
}

/// Whether an address is of a BYOIP prefix that was made through the API.
fn is_registered(resources: &Resources, address: Ipv4Addr) -> bool {
    let prefix = resources.byoip(Address::V4(address).net());
    prefix.is_some_and(|prefix| prefix.registration.is_some())
}

/// With several servers it must be said whose an address is, or two would use it.
fn everything_is_placed(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    let several = placed::servers(resources).count() > 1;
    let mut has_ranges = false;
    for (object, pool) in resources.pools.iter().enumerate() {
        for (item, address) in pool.addresses.iter().enumerate() {
            let place = Place::object(Kind::Pool, object)
                .field("addresses")
                .item(item);
            match address {
                Address::V4(address) => {
                    let placed = resources
                        .placements
                        .iter()
                        .any(|one| one.address == *address);
                    if several && !placed {
                        let whose = if pool.made {
                            format!(" of pool {}, which was made by API,", pool.id)
                        } else {
                            String::new()
                        };
                        let or = if pool.made {
                            "; or take it out of the pool by API before"
                        } else {
                            ""
                        };
                        checker.error(
                            place,
                            format!(
                                "{address}{whose} is placed nowhere, and there are several servers"
                            ),
                            format!(
                                "add a [[placement]] with address = \"{address}\" and its shares{or}"
                            ),
                        );
                    }
                }
                Address::V6(range) => {
                    has_ranges = true;
                    let numbered =
                        placed::servers(resources).any(|one| one.server.number.is_some());
                    if (several || numbered) && range.prefix_len() > LONGEST_DIVIDED {
                        checker.error(
                            place,
                            format!("{address} is too small a range to be divided among servers (POOL-6)"),
                            format!("use a /{LONGEST_DIVIDED} or larger; a /64 is usual"),
                        );
                    }
                }
            }
        }
    }
    if several && has_ranges {
        for (object, location) in resources.locations.iter().enumerate() {
            for (at, _, server) in location.servers() {
                if server.number.is_none() && !server.name.is_empty() {
                    checker.error(
                        Place::object(Kind::Location, object)
                            .field("server")
                            .item(at),
                        format!(
                            "server {} has no number, which tells its part of each IPv6 range (POOL-6)",
                            server.name
                        ),
                        "add, for instance, number = 1; never give it to another server",
                    );
                }
            }
        }
    }
}

/// This server's place.
fn here(checker: &Checker<'_, '_>, server: &Server) {
    let resources = checker.resources;
    let found = placed::servers(resources).find(|one| one.server.name == server.name);
    let Some(found) = found else {
        let names = placed::servers(resources).map(|one| one.server.name.as_str());
        checker.error(
            Place::object(Kind::Location, 0),
            format!("this server, {}, is in no location", server.name),
            nearest(&server.name, names).map_or_else(
                || "add it as a [[location.data_center.server]]; its name is that of [server] in its configuration".to_owned(),
                |like| format!("did you mean \"{like}\"? The name is that of [server] in its configuration"),
            ),
        );
        return;
    };
    // What the configuration does not say, it leaves to the topology.
    let default = Server::default();
    for (noun, said, told, default) in [
        (
            "data center",
            &server.data_center,
            &found.data_center.name,
            &default.data_center,
        ),
        (
            "location",
            &server.location,
            &found.location.name,
            &default.location,
        ),
    ] {
        if said != told && said != default {
            let object = resources
                .locations
                .iter()
                .position(|one| one == found.location);
            checker.error(
                Place::object(Kind::Location, object.unwrap_or(0)),
                format!(
                    "server {} is in {noun} {told} here, but its [server] says {said}",
                    server.name
                ),
                "make both the same",
            );
        }
    }
    for (object, pool) in resources.pools.iter().enumerate() {
        let owns = pool.addresses.iter().any(|address| match address {
            Address::V4(address) => placed::slices_of(resources, &server.name, *address) != 0,
            Address::V6(range) => placed::part_of(resources, &server.name, *range).is_some(),
        });
        if !pool.addresses.is_empty() && !owns {
            checker.warning(
                Place::object(Kind::Pool, object),
                format!(
                    "this server, {}, owns nothing of pool {}: other servers translate what the pool's zones send by IPv4",
                    server.name, pool.id
                ),
                "give its data center a share if they are to leave here",
            );
        }
    }
}
