//! A pool: a named set of egress IPs.

use serde::{Deserialize, Serialize};

use super::address::Address;
use super::name;
use super::place::ObjectPlaces;
use crate::desired::CONNECTIONS_PER_ORIGIN;
use crate::diagnostic::Span;
use crate::document::{Table, Value};

/// Where a pool's addresses come from; all from the same (POOL-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// Rented from the operator.
    Leased,
    /// From a BYOIP prefix.
    Byoip,
}

impl PoolKind {
    /// The word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Leased => "leased",
            Self::Byoip => "byoip",
        }
    }
}

/// Who uses a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolUse {
    /// Zones, by their setting.
    #[default]
    Cdn,
    /// Gateway policies (POOL-8).
    Gateway,
}

/// A named set of egress IPs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Unique id: letters, digits, `-` and `_`.
    pub id: String,
    /// Unique name, if there is one.
    pub name: Option<String>,
    /// The owner, by id or name.
    pub account: String,
    /// Where the addresses come from; when absent, whatever they are.
    pub kind: Option<PoolKind>,
    /// IPv4 addresses and IPv6 prefixes, in the order in which they were written (POOL-1).
    pub addresses: Vec<Address>,
    /// Members that take no new flows while live ones finish (POOL-9); each is one of `addresses`.
    pub draining: Vec<Address>,
    /// Concurrent connections per (egress IP, origin, protocol), 1 to 40,000 (CAP-8).
    pub connections_per_origin: u32,
    /// Who uses it.
    #[serde(rename = "use")]
    pub used_for: PoolUse,
    /// Whether the pool may have no address at all: its zones' traffic is then refused, never leaked (SAFE-1).
    pub allow_empty: bool,
    /// Whether it was made through the API: then its name is its account's own affair, and no reference.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
}

impl Pool {
    pub(super) fn read(mut table: Table<'_, '_>, places: &mut ObjectPlaces<'_>) -> Self {
        places.whole(table.span());
        let id = name::id(&mut table, "id = \"partners\"", places);
        let allow_empty = table
            .get("allow_empty", "allow_empty = false")
            .and_then(|value| value.boolean())
            .unwrap_or(false);
        let written = table.require(
            "addresses",
            "addresses = [\"192.0.2.10\", \"2001:db8:aa::/64\"]",
        );
        if let Some(value) = written {
            places.field("addresses", value.span());
            if value.array_len() == Some(0) && !allow_empty {
                value.refuse(
                    format!("pool {id} is empty"),
                    "add an address; or write allow_empty = true to refuse its zones' traffic until it has one",
                );
            }
        }
        let addresses = members(written, "addresses", places);
        let written = table.get("draining", "draining = [\"192.0.2.10\"]");
        let draining = members(written, "draining", places);
        for (address, span) in &draining {
            if !addresses.iter().any(|(member, _)| member == address) {
                table.report().error(
                    span,
                    format!("{address} is draining, but is no address of pool {id}"),
                    "an address drains while it is still listed under `addresses`; add it there",
                );
            }
        }
        let kind = table.get("kind", "kind = \"leased\"");
        if let Some(value) = kind {
            places.field("kind", value.span());
        }
        let pool = Self {
            name: name::name(&mut table, "name = \"partners\"", places),
            account: name::reference(&mut table, "account", "account = \"acme\"", places),
            kind: kind.and_then(|value| {
                value.choice(&[("leased", PoolKind::Leased), ("byoip", PoolKind::Byoip)])
            }),
            addresses: addresses.into_iter().map(|(address, _)| address).collect(),
            draining: draining.into_iter().map(|(address, _)| address).collect(),
            connections_per_origin: table
                .get("connections_per_origin", "connections_per_origin = 40000")
                .and_then(|value| value.integer(1..=CONNECTIONS_PER_ORIGIN, "connections"))
                .unwrap_or(CONNECTIONS_PER_ORIGIN),
            used_for: table
                .get("use", "use = \"cdn\"")
                .and_then(|value| {
                    value.choice(&[("cdn", PoolUse::Cdn), ("gateway", PoolUse::Gateway)])
                })
                .unwrap_or_default(),
            id,
            allow_empty,
            made: false,
        };
        table.finish();
        pool
    }
}

fn members(
    written: Option<Value<'_, '_>>,
    field: &'static str,
    places: &mut ObjectPlaces<'_>,
) -> Vec<(Address, Span)> {
    let mut found: Vec<(Address, Span)> = Vec::new();
    for value in written.and_then(|value| value.array()).unwrap_or_default() {
        let Some(text) = value.string() else { continue };
        match text.parse::<Address>() {
            Ok(address) => {
                places.item(field, found.len(), value.span());
                found.push((address, value.span()));
            }
            Err(error) => value.refuse(error.to_string(), error.remedy()),
        }
    }
    found
}
