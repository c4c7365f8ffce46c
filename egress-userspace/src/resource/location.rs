//! Locations, data centers and servers: read and checked, but refused by this version.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::document::Table;

/// Checks the fields of every location and refuses each by name. Returns data center to location, for the
/// checks on placements.
pub(super) fn refuse_all(tables: Vec<Table<'_, '_>>) -> BTreeMap<String, String> {
    let mut locations = BTreeMap::new();
    for mut table in tables {
        let name = table
            .require("name", "name = \"frankfurt\"")
            .and_then(|value| value.name())
            .unwrap_or_default();
        for mut data_center in table.sections("data_center") {
            if let Some(found) = data_center
                .require("name", "name = \"fra01\"")
                .and_then(|value| value.name())
            {
                locations.insert(found, name.clone());
            }
            for mut server in data_center.sections("server") {
                server
                    .require("name", "name = \"fra01-s1\"")
                    .and_then(|value| value.name());
                if let Some(value) = server.require("tunnel", "tunnel = \"10.9.0.1\"") {
                    value.parsed::<IpAddr>("an IP address");
                }
                server.finish();
            }
            data_center.finish();
        }
        table.report().error(
            table.span(),
            format!(
                "location {name} cannot be used: several servers are not available in this version"
            ),
            "remove the [[location]]; this server owns every address of every pool",
        );
        table.finish();
    }
    locations
}
