//! An account: who owns addresses and zones.

use serde::{Deserialize, Serialize};

use super::name;
use super::place::ObjectPlaces;
use crate::document::Table;

/// Who owns addresses and zones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Unique id.
    pub id: String,
    /// Unique name; the id when none was given.
    pub name: String,
    /// Whether TCP of its zones leaves by their pools; if not it takes the default egress (POLICY-6). True by
    /// default.
    pub egress_tcp: bool,
    /// The same for UDP. True by default.
    pub egress_udp: bool,
    /// Percent of the data plane's tables for policies up to which its policies may be added to through the API; where
    /// nothing is said, [`POLICY_PERCENT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_percent: Option<u32>,
    /// Percent of the data plane's tables for pools and egress IPs up to which its pools may be added to through the API;
    /// where nothing is said, [`POOL_PERCENT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_percent: Option<u32>,
}

/// What an account may take of the tables for policies where the file says nothing, percent: eight accounts have room.
pub const POLICY_PERCENT: u32 = 12;

/// The same of the tables for pools and egress IPs.
pub const POOL_PERCENT: u32 = 12;

impl Account {
    pub(super) fn read(mut table: Table<'_, '_>, places: &mut ObjectPlaces<'_>) -> Self {
        places.whole(table.span());
        let id = name::id(&mut table, "id = \"acme\"", places);
        let name = name::name(&mut table, "name = \"acme\"", places).unwrap_or_else(|| id.clone());
        let policy_percent = table
            .get("policy_percent", "policy_percent = 12")
            .and_then(|value| value.integer(0..=100, "percent of the tables for policies"));
        let pool_percent = table
            .get("pool_percent", "pool_percent = 12")
            .and_then(|value| value.integer(0..=100, "percent of the tables for egress IPs"));
        let mut flag = |key, example| {
            table
                .get(key, example)
                .and_then(|value| value.boolean())
                .unwrap_or(true)
        };
        let account = Self {
            id,
            name,
            egress_tcp: flag("egress_tcp", "egress_tcp = true"),
            egress_udp: flag("egress_udp", "egress_udp = true"),
            policy_percent,
            pool_percent,
        };
        table.finish();
        account
    }
}
