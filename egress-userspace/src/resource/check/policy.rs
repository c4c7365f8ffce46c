//! Egress policies as a set: ZONE-5, POLICY-1, POLICY-3, POLICY-5.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use egress_common::policy::MAX_RULES;

use super::super::policy::Egress;
use super::super::{Account, Address, Kind, Place, Policy};
use super::Checker;
use crate::placed;
use crate::policy::rules;

pub(super) fn check(checker: &Checker<'_, '_>) {
    let policies = &checker.resources.policies;
    once(checker);
    let mut total = 0;
    for (object, policy) in policies.iter().enumerate() {
        let place = Place::object(Kind::Policy, object);
        checker.account(place.field("account"), &policy.account);
        total += traffic(checker, place, policy);
        if let Some(egress) = &policy.egress {
            addresses(checker, place, policy, egress);
        }
    }
    if let (true, Some(last)) = (total > MAX_RULES as usize, policies.len().checked_sub(1)) {
        checker.error(
            Place::object(Kind::Policy, last).field("traffic"),
            format!("all policies together have {total} alternatives, and may have {MAX_RULES}"),
            "write lists (`in {...}`) where alternatives (`or`) compare the same selector",
        );
    }
    accounts(checker);
    promised(checker);
}

/// Whether more of the tables is promised to accounts than there is.
fn promised(checker: &Checker<'_, '_>) {
    let accounts = &checker.resources.accounts;
    type Percent = fn(&Account) -> Option<u32>;
    let kinds: [(&str, &str, Percent); 2] = [
        ("policies", "policy_percent", |one| one.policy_percent),
        ("egress IPs", "pool_percent", |one| one.pool_percent),
    ];
    for (what, field, of) in kinds {
        let sum: u32 = accounts.iter().filter_map(of).sum();
        let last = accounts.iter().rposition(|one| of(one).is_some());
        if let (true, Some(last)) = (sum > 100, last) {
            checker.warning(
                Place::object(Kind::Account, last),
                format!("accounts are promised {sum} percent of the tables for {what}"),
                format!("lower {field}, or bear that who comes last finds them full"),
            );
        }
    }
}

/// Names and precedences are there once in an account.
fn once(checker: &Checker<'_, '_>) {
    let mut first: HashMap<(String, String, &'static str), Place> = HashMap::new();
    for (object, policy) in checker.resources.policies.iter().enumerate() {
        let place = Place::object(Kind::Policy, object);
        let account = checker
            .resources
            .account(&policy.account)
            .map_or(policy.account.as_str(), |account| account.id.as_str());
        let has = [
            (policy.name.clone(), "name", "a name of its own"),
            (
                policy.precedence.to_string(),
                "precedence",
                "a precedence of its own: the lowest is asked first (POLICY-1)",
            ),
        ];
        for (value, field, remedy) in has {
            // An empty one was refused already.
            if value.is_empty() {
                continue;
            }
            let place = place.field(field);
            if let Some(other) = first.get(&(account.to_owned(), value.clone(), field)) {
                checker.error(
                    place,
                    format!(
                        "{field} {value} is there twice among the policies of account {}, first {}",
                        policy.account,
                        checker.at(*other)
                    ),
                    format!("give each policy {remedy}"),
                );
            } else {
                first.insert((account.to_owned(), value, field), place);
            }
        }
    }
}

/// What a policy matches; returns how many alternatives that are.
fn traffic(checker: &Checker<'_, '_>, place: Place, policy: &Policy) -> usize {
    let place = place.field("traffic");
    let expression = match policy.expression() {
        Ok(expression) => expression,
        Err(mistake) => {
            let (_, column) = mistake.position(&policy.traffic);
            checker.error(
                place,
                format!("policy {}, column {column}: {mistake}", policy.name),
                mistake.remedy,
            );
            return 0;
        }
    };
    for zone in expression.iter().flat_map(|expression| expression.zones()) {
        match checker.resources.zone(zone) {
            None => {
                let of = |zone: &'_ super::super::Zone| [zone.id.clone(), zone.name.clone()];
                let known: Vec<String> = checker.resources.zones.iter().flat_map(of).collect();
                checker.unknown(place, "zone", zone, known.iter().map(String::as_str));
            }
            Some(found)
                if !checker
                    .resources
                    .same_account(&found.account, &policy.account) =>
            {
                checker.error(
                    place,
                    format!(
                        "zone {zone} belongs to account {}, and policy {} to {} (ZONE-5)",
                        found.account, policy.name, policy.account
                    ),
                    "a policy is about its own account's zones",
                );
            }
            Some(_) => {}
        }
    }
    match rules::count(expression.as_ref()) {
        Ok(count) => count,
        Err(error) => {
            checker.error(
                place,
                format!("policy {}: {error}", policy.name),
                "make several policies of it",
            );
            0
        }
    }
}

/// A policy names only its account's addresses (ZONE-5), and a secondary in another location (POLICY-3).
fn addresses(checker: &Checker<'_, '_>, place: Place, policy: &Policy, egress: &Egress) {
    let resources = checker.resources;
    let owned = |field, address: Address| {
        let pool = resources
            .pools
            .iter()
            .find(|pool| pool.addresses.contains(&address));
        let (reason, remedy) = match pool {
            Some(pool) if resources.same_account(&pool.account, &policy.account) => return true,
            Some(pool) => (
                format!(
                    "{address} is in pool {} of account {}, and policy {} belongs to {} (ZONE-5)",
                    pool.id, pool.account, policy.name, policy.account
                ),
                "name an address of the policy's own account",
            ),
            None => (
                format!("policy {}: {address} is in no pool (ZONE-5)", policy.name),
                "name an address, or a whole IPv6 prefix, that a [[pool]] of the account lists",
            ),
        };
        checker.error(place.field(field), reason, remedy);
        false
    };
    let mut fine = owned("ipv4", Address::V4(egress.ipv4));
    if egress.ipv4_fallback != Ipv4Addr::UNSPECIFIED {
        fine &= owned("ipv4_fallback", Address::V4(egress.ipv4_fallback));
        if fine {
            secondary(checker, place, egress);
        }
    }
    owned("ipv6", Address::V6(egress.ipv6));
}

/// POLICY-3: where the secondary is, when it is an address.
fn secondary(checker: &Checker<'_, '_>, place: Place, egress: &Egress) {
    let place = place.field("ipv4_fallback");
    let (primary, secondary) = (egress.ipv4, egress.ipv4_fallback);
    if primary == secondary {
        checker.error(
            place,
            format!("{secondary} is both primary and secondary (POLICY-3)"),
            "name another address, or \"0.0.0.0\" for the default egress",
        );
        return;
    }
    if checker.resources.locations.is_empty() {
        checker.warning(
            place,
            format!("{secondary} is where {primary} is: it takes its place only while that one drains (POLICY-3)"),
            "place them in two locations, with [[location]] and [[placement]]",
        );
        return;
    }
    let cities = |address| -> BTreeSet<&str> {
        placed::owners(checker.resources, address)
            .iter()
            .map(|(one, _)| one.location.name.as_str())
            .collect()
    };
    if let Some(city) = cities(primary).intersection(&cities(secondary)).next() {
        checker.error(
            place,
            format!("{secondary} is in {city}, as {primary} is (POLICY-3)"),
            "name an address in another location, or \"0.0.0.0\" for the default egress",
        );
    }
}

/// POLICY-5, for every account with policies: what they do not match, and whether there is anything to match.
fn accounts(checker: &Checker<'_, '_>) {
    let resources = checker.resources;
    let mut last: BTreeMap<&str, (Place, bool)> = BTreeMap::new();
    for (object, policy) in resources.policies.iter().enumerate() {
        let place = Place::object(Kind::Policy, object);
        // One that is called by its name here and by its id there is one account.
        let account = resources.account(&policy.account);
        let (of, matches_all) = last
            .entry(account.map_or(policy.account.as_str(), |account| account.name.as_str()))
            .or_insert((place, false));
        *of = place;
        *matches_all |= policy.enabled && policy.traffic.is_empty();
    }
    for (account, (place, matches_all)) in last {
        if !matches_all {
            checker.warning(
                place,
                format!(
                    "no policy of account {account} matches all traffic: what matches none leaves by its zone's pool, or by \
                     the default egress where the zone is off (POLICY-5)"
                ),
                "add a last policy without `traffic`",
            );
        }
        let enabled = resources.zones.iter().any(|zone| {
            resources.same_account(&zone.account, account) && resources.aegis(zone).enabled
        });
        if !enabled {
            checker.warning(
                place,
                format!(
                    "no zone of account {account} is enabled: its policies apply to no traffic"
                ),
                "`egress zone enable ZONE --pool POOL`, or [zone.aegis] in the file",
            );
        }
    }
}
