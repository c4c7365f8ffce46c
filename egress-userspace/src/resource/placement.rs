//! Placements (POOL-5): read and checked, but refused by this version.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::document::{Table, nearest};

/// An IPv4 egress IP is split over at most this many locations (POOL-5).
const MAX_LOCATIONS: usize = 4;
/// Shares are weights; this is plenty to express any split of 31 slices.
const MAX_SHARE: u32 = 1000;

/// Checks the fields of every placement and refuses each by name.
pub(super) fn refuse_all(tables: Vec<Table<'_, '_>>, locations: &BTreeMap<String, String>) {
    for mut table in tables {
        let address = table
            .require("address", "address = \"192.0.2.10\"")
            .and_then(|value| value.parsed::<Ipv4Addr>("an IPv4 address"))
            .map_or_else(String::new, |address| address.to_string());
        check_shares(&mut table, &address, locations);
        table.report().error(
            table.span(),
            format!("the placement of {address} cannot be used: several servers are not available in this version"),
            "remove the [[placement]]; this server owns every address of every pool",
        );
        table.finish();
    }
}

fn check_shares(table: &mut Table<'_, '_>, address: &str, locations: &BTreeMap<String, String>) {
    let Some(shares) = table.require(
        "shares",
        "shares = [ { data_center = \"fra01\", share = 3 } ]",
    ) else {
        return;
    };
    let mut used = BTreeSet::new();
    for value in shares.array().unwrap_or_default() {
        let Some(mut share) = value.table("a share") else {
            continue;
        };
        if let Some(value) = share.require("data_center", "data_center = \"fra01\"")
            && let Some(name) = value.name()
        {
            if let Some(location) = locations.get(&name) {
                used.insert(location.clone());
            } else {
                let remedy = nearest(&name, locations.keys().map(String::as_str)).map_or_else(
                    || "declare it with [[location.data_center]]".to_owned(),
                    |like| format!("did you mean \"{like}\"?"),
                );
                value.refuse(format!("data center {name} is in no location"), remedy);
            }
        }
        if let Some(value) = share.require("share", "share = 3") {
            value.integer(0..=MAX_SHARE, "");
        }
        share.finish();
    }
    if used.len() > MAX_LOCATIONS {
        shares.refuse(
            format!(
                "{address} is placed in {} locations: {}",
                used.len(),
                used.into_iter().collect::<Vec<_>>().join(", ")
            ),
            format!("an egress IP is split over at most {MAX_LOCATIONS} locations (POOL-5)"),
        );
    }
}
