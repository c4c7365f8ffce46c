//! A placement: over which data centers an IPv4 egress IP is split (POOL-5).

use std::net::Ipv4Addr;

use egress_common::placement::MAX_SHARE;
use serde::{Deserialize, Serialize};

use super::place::ObjectPlaces;
use crate::document::Table;

/// How an egress IP is split.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The egress IP; unspecified when it was refused.
    pub address: Ipv4Addr,
    /// The parts, in the order of the file.
    pub shares: Vec<Share>,
}

/// A data center's part of the capacity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// The data center, by name; empty when it was refused.
    pub data_center: String,
    /// Its weight among all shares; 0 for none.
    pub share: u32,
}

impl Placement {
    pub(super) fn read(mut table: Table<'_, '_>, places: &mut ObjectPlaces<'_>) -> Self {
        places.whole(table.span());
        let address = table
            .require("address", "address = \"192.0.2.10\"")
            .and_then(|value| {
                places.field("address", value.span());
                value.parsed("an IPv4 address")
            });
        let written = table.require(
            "shares",
            "shares = [ { data_center = \"fra01\", share = 3 } ]",
        );
        if let Some(value) = &written {
            places.field("shares", value.span());
        }
        let mut shares = Vec::new();
        for value in written.and_then(|value| value.array()).unwrap_or_default() {
            let Some(mut table) = value.table("a share") else {
                continue;
            };
            // Counted from 1: what stands at 0 is the array.
            let at = shares.len() + 1;
            places.item("shares", at, value.span());
            let data_center = table.require("data_center", "data_center = \"fra01\"");
            let share = table.require("share", "share = 3");
            let share = share.and_then(|value| value.integer(0..=MAX_SHARE, ""));
            shares.push(Share {
                data_center: data_center
                    .and_then(|value| value.name())
                    .unwrap_or_default(),
                share: share.unwrap_or(1),
            });
            table.finish();
        }
        table.finish();
        Self {
            address: address.unwrap_or(Ipv4Addr::UNSPECIFIED),
            shares,
        }
    }
}
