//! Leases as a set: every address is leased once, to whose pool has it (POOL-4).

use std::collections::HashMap;

use ipnet::IpNet;

use super::super::overlap::overlaps;
use super::super::{Address, Kind, Lease, Place};
use super::Checker;

pub(super) fn check(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    if resources.leases.is_empty() {
        return;
    }
    for (object, lease) in resources.leases.iter().enumerate() {
        checker.account(Place::object(Kind::Lease, object), &lease.account);
    }
    once(checker);
    byoip(checker);
    pools(checker);
}

/// No address is leased twice.
fn once(checker: &Checker<'_, '_>) {
    let leases = &checker.resources.leases;
    let nets = leases.iter().enumerate();
    let nets = nets.map(|(object, lease)| (lease.address.net(), object));
    for ((_, outer), (_, inner)) in overlaps(nets.collect()) {
        if let (Some(around), Some(lease)) = (leases.get(outer), leases.get(inner)) {
            checker.error(
                Place::object(Kind::Lease, inner),
                format!(
                    "{} is leased already, with {}",
                    lease.address, around.address
                ),
                "end the other lease first",
            );
        }
    }
}

/// No leased address is in a BYOIP prefix, or around one.
fn byoip(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    // Which is which is told by the tag: prefixes first, so that an equal one counts as the outer.
    let prefixes = resources
        .prefixes
        .iter()
        .map(|prefix| (prefix.cidr, (0, 0)));
    let leases = resources.leases.iter().enumerate();
    let leases = leases.map(|(object, lease)| (lease.address.net(), (1, object)));
    for ((outer, (is_lease, around)), (inner, (is_inner_lease, within))) in
        overlaps(prefixes.chain(leases).collect())
    {
        if is_lease == is_inner_lease {
            continue;
        }
        let (object, leased, prefix) = if is_lease == 0 {
            (within, inner, outer)
        } else {
            (around, outer, inner)
        };
        checker.error(
            Place::object(Kind::Lease, object),
            format!("{leased} is leased, and in the BYOIP prefix {prefix}"),
            "an address is leased or byoip, never both",
        );
    }
}

/// An address that is leased to an account is in no other account's pool.
fn pools(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    let mut single: HashMap<Address, &Lease> = HashMap::new();
    let mut ranges: Vec<(IpNet, &Lease)> = Vec::new();
    for lease in &resources.leases {
        match lease.address {
            Address::V4(_) => drop(single.insert(lease.address, lease)),
            Address::V6(net) => ranges.push((net.into(), lease)),
        }
    }
    for (object, pool) in resources.pools.iter().enumerate() {
        for (item, address) in pool.addresses.iter().enumerate() {
            let net = address.net();
            let around = || {
                let mut ranges = ranges.iter();
                ranges.find(|(range, _)| range.contains(&net) || net.contains(range))
            };
            let lease = single
                .get(address)
                .copied()
                .or_else(|| around().map(|(_, lease)| *lease));
            if let Some(lease) = lease
                && !resources.same_account(&lease.account, &pool.account)
            {
                checker.error(
                    Place::object(Kind::Pool, object)
                        .field("addresses")
                        .item(item),
                    format!("{address} of pool {} is leased to another account", pool.id),
                    "take it out of the pool, or end the lease",
                );
            }
        }
    }
}
