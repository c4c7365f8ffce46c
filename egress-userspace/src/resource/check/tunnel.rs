//! Where servers reach each other (FWD-6): all of them or none, each at an address of its own.

use std::collections::HashMap;
use std::net::IpAddr;

use super::super::{Kind, Place, Policy};
use super::Checker;
use crate::{forwarding, placed};

pub(super) fn check(checker: &Checker<'_, '_>) {
    let all: Vec<_> = placed::servers(checker.resources).collect();
    let Some(first) = all.iter().find_map(|one| one.server.tunnel) else {
        return;
    };
    targets(checker);
    let mut known: HashMap<IpAddr, (&str, Place)> = HashMap::new();
    for (object, location) in checker.resources.locations.iter().enumerate() {
        let place = Place::object(Kind::Location, object);
        for (at, _, server) in location.servers() {
            let Some(address) = server.tunnel else {
                checker.error(
                    place.field("server").item(at),
                    format!(
                        "server {} has no `tunnel` address, and others have",
                        server.name
                    ),
                    "add, for instance, tunnel = \"10.9.0.2\", where the other servers reach it; or give none one",
                );
                continue;
            };
            // One that was refused.
            if address.is_unspecified() {
                continue;
            }
            let place = place.field("tunnel").item(at);
            if let Some((other, _)) = known.get(&address) {
                checker.error(
                    place,
                    format!(
                        "server {} is reached at {address}, and so is server {other}: it would be its own peer",
                        server.name
                    ),
                    "give each server the address of one of its own interfaces",
                );
                continue;
            }
            known.insert(address, (&server.name, place));
            one(checker, place, &server.name, address, first);
        }
    }
}

/// Between servers a pool, or a policy's address, is told by 24 bits. Two that are the same there are refused by name:
/// were one of them moved on, servers that know of both and servers that know of one would mean different ones (SAFE-1).
fn targets(checker: &Checker<'_, '_>) {
    let mut known: HashMap<u32, String> = HashMap::new();
    let mut meet = |name: &str, place: Place, called: String| {
        let Some(other) = known.insert(forwarding::target(name), called.clone()) else {
            return;
        };
        if other != called {
            checker.error(
                place,
                format!(
                    "{other} and {called} have the same id in the tunnel between servers, which is made of their own"
                ),
                "give a pool another id",
            );
        }
    };
    for (object, pool) in checker.resources.pools.iter().enumerate() {
        let place = Place::object(Kind::Pool, object).field("id");
        meet(&pool.id, place, format!("pool {}", pool.id));
    }
    for address in forwarding::named(checker.resources) {
        let names = |policy: &Policy| {
            let egress = policy.egress.as_ref();
            egress.is_some_and(|egress| egress.ipv4 == address || egress.ipv4_fallback == address)
        };
        let policy = checker.resources.policies.iter().position(names);
        let place = Place::object(Kind::Policy, policy.unwrap_or(0));
        meet(
            &forwarding::called(address),
            place,
            format!("a policy's address {address}"),
        );
    }
}

/// One server's address.
fn one(checker: &Checker<'_, '_>, place: Place, server: &str, address: IpAddr, first: IpAddr) {
    if let Some(what) = unusable(address) {
        checker.error(
            place,
            format!("server {server} cannot be reached at {address}: it is {what}"),
            "write the address of an interface by which the servers reach each other",
        );
        return;
    }
    if address.is_ipv4() != first.is_ipv4() && !first.is_unspecified() {
        checker.error(
            place,
            format!(
                "server {server} is reached at {address} and others at {first}: the tunnel has one address family"
            ),
            "write IPv4 addresses for all servers, or IPv6 addresses for all",
        );
    }
    let pool = checker.resources.pools.iter().find(|pool| {
        pool.addresses
            .iter()
            .any(|one| one.net().contains(&address))
    });
    if let Some(pool) = pool {
        checker.error(
            place,
            format!(
                "server {server} cannot be reached at {address}: it is an egress IP of pool {}",
                pool.id
            ),
            "write an address that is the server's own",
        );
    }
}

/// Why other servers cannot reach an address.
fn unusable(address: IpAddr) -> Option<&'static str> {
    if address.is_loopback() {
        return Some("a loopback address");
    }
    if address.is_multicast() {
        return Some("a multicast address");
    }
    match address {
        IpAddr::V4(address) if address.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("a link-local address"),
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            Some("an IPv4 address written as IPv6")
        }
        _ => None,
    }
}
