//! A zone: a tenant's traffic, recognised by selectors, and its setting (ZONE-1, ZONE-2).

use std::net::SocketAddr;

use egress_common::forward::MAX_REGIONS;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::address;
use super::mark::{self, Mark};
use super::name;
use super::place::ObjectPlaces;
use crate::config::interface_problem;
use crate::document::{Table, Value};

/// A tenant's traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Unique id.
    pub id: String,
    /// Unique name; the id when none was given.
    pub name: String,
    /// The owner, by id or name.
    pub account: String,
    /// Source prefixes.
    pub sources: Vec<IpNet>,
    /// Firewall marks.
    pub marks: Vec<Mark>,
    /// Paths below the cgroup2 mount, without a leading slash; descendants included.
    pub cgroups: Vec<String>,
    /// Interfaces by which its packets enter; they make the zone a realm.
    pub interfaces: Vec<String>,
    /// Origins that must let a pool's addresses in before the zone is enabled on it by API or command line (POOL-10).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require_probe: Vec<SocketAddr>,
    /// The names of the locations where it may leave by its pool or its policies; anywhere if there are none (FWD-8).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub regions: Vec<String>,
    /// The setting, if the file has `[zone.aegis]`; else it is left to API and command line.
    pub aegis: Option<Aegis>,
}

/// A zone's setting (ZONE-1). Off by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aegis {
    /// Whether the zone's traffic leaves by the pool.
    pub enabled: bool,
    /// The pool, by id or name; present whenever `enabled`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool_id: Option<String>,
}

impl Zone {
    pub(super) fn read(mut table: Table<'_, '_>, places: &mut ObjectPlaces<'_>) -> Self {
        places.whole(table.span());
        let id = name::id(
            &mut table,
            "id = \"023e105f4ecef8ad9ca31a8372d0c353\"",
            places,
        );
        let name =
            name::name(&mut table, "name = \"shop.example\"", places).unwrap_or_else(|| id.clone());
        let mut selectors = 0;
        let mut list = |key, example| {
            let found = table.list(key, example);
            selectors += found.len();
            found
        };
        let sources = list("sources", "sources = [\"10.1.0.0/16\"]");
        let marks = list("marks", "marks = [161, \"0x50/0xf0\"]");
        let cgroups = list("cgroups", "cgroups = [\"system.slice/proxy.service\"]");
        let interfaces = list("interfaces", "interfaces = [\"in0\"]");
        let regions = table.list("regions", REGIONS);
        if let Some(value) = regions.get(MAX_REGIONS) {
            value.refuse(
                format!("`regions` names more than {MAX_REGIONS} locations"),
                "name fewer; a zone without `regions` may leave at all locations",
            );
        }
        let required = table.list("require_probe", REQUIRED);
        if let Some(value) = required.get(MAX_REQUIRED) {
            value.refuse(
                format!("`require_probe` names more than {MAX_REQUIRED} origins"),
                "name those that check who comes; every address of the pool connects to each",
            );
        }
        if selectors == 0 {
            table.lacks(
                ["sources", "marks", "cgroups", "interfaces"],
                format!("zone {name} has no selector: nothing says which traffic is its own"),
                "add any of sources, marks, cgroups, interfaces; for instance sources = [\"10.1.0.0/16\"]",
            );
        }
        let setting = table.get("aegis", "[zone.aegis]");
        if let Some(value) = setting {
            places.field("aegis", value.span());
        }
        let zone = Self {
            sources: collect(sources, "sources", places, address::net),
            marks: collect(marks, "marks", places, mark::read),
            cgroups: collect(cgroups, "cgroups", places, cgroup),
            interfaces: collect(interfaces, "interfaces", places, interface),
            regions: collect(regions, "regions", places, |value| {
                name::checked(value, REGIONS)
            }),
            require_probe: collect(required, "require_probe", places, required_origin),
            aegis: setting
                .and_then(|value| value.table("[zone.aegis]"))
                .map(|table| Aegis::read(table, &name, places)),
            account: name::reference(&mut table, "account", "account = \"acme\"", places),
            id,
            name,
        };
        table.finish();
        zone
    }

    /// Whether its inside addresses may repeat elsewhere (ZONE-2).
    pub fn is_realm(&self) -> bool {
        !self.interfaces.is_empty()
    }
}

impl Aegis {
    fn read(mut table: Table<'_, '_>, zone: &str, places: &mut ObjectPlaces<'_>) -> Self {
        let enabled = table
            .get("enabled", "enabled = true")
            .and_then(|value| value.boolean())
            .unwrap_or(false);
        let pool = table.get("pool_id", "pool_id = \"partners\"");
        let pool_id = pool.and_then(|value| {
            places.field("pool_id", value.span());
            name::checked(value, "pool_id = \"partners\"")
        });
        if enabled && pool.is_none() && !table.report().is_incomplete() {
            table.report().error(
                table.span(),
                format!("zone {zone} is enabled without a pool"),
                "add the pool it shall leave by, for instance pool_id = \"partners\"",
            );
        }
        table.finish();
        Self { enabled, pool_id }
    }
}

fn collect<'a, 's, T>(
    values: Vec<Value<'a, 's>>,
    field: &'static str,
    places: &mut ObjectPlaces<'_>,
    read: impl Fn(Value<'a, 's>) -> Option<T>,
) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if let Some(selector) = read(value) {
            places.item(field, found.len(), value.span());
            found.push(selector);
        }
    }
    found
}

fn cgroup(value: Value<'_, '_>) -> Option<String> {
    let text = value.string()?;
    let path = text.trim_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let (reason, remedy) = if path.is_empty() {
        (
            "is the root, and would select every socket of this host".to_owned(),
            EXAMPLE,
        )
    } else if path.starts_with("sys/fs/cgroup") {
        (
            "begins where cgroups are mounted; it is to begin below".to_owned(),
            EXAMPLE,
        )
    } else if parts
        .iter()
        .any(|part| matches!(*part, "" | "." | "..") || part.contains('\0'))
    {
        ("is not a path below the cgroup2 mount".to_owned(), EXAMPLE)
    } else if let Some(scope) = parts.iter().find(|part| part.ends_with(".scope")) {
        (
            format!("lies in the transient scope {scope}, which is another one at the next start"),
            "select the slice or service around it, for instance cgroups = [\"system.slice/proxy.service\"]",
        )
    } else {
        return Some(path.to_owned());
    };
    value.refuse(
        format!("cgroup \"{}\" {reason}", text.escape_debug()),
        remedy,
    );
    None
}

const EXAMPLE: &str = "write, for instance, cgroups = [\"system.slice/proxy.service\"]";

const REGIONS: &str = "regions = [\"frankfurt\"]";

/// Origins that one zone may require to be probed.
const MAX_REQUIRED: usize = 16;
const REQUIRED: &str = "require_probe = [\"198.51.100.10:443\"]";

fn required_origin(value: Value<'_, '_>) -> Option<SocketAddr> {
    let origin: SocketAddr = value.parsed("an address with a port")?;
    if origin.port() == 0 || origin.ip().is_unspecified() || origin.ip().is_multicast() {
        value.refuse(
            format!("nobody can be connected to at {origin}"),
            format!("write, for instance, {REQUIRED}"),
        );
        return None;
    }
    Some(origin)
}

fn interface(value: Value<'_, '_>) -> Option<String> {
    let name = value.string()?;
    if let Some(problem) = interface_problem(name) {
        value.refuse(
            format!(
                "\"{}\" is not an interface name: {problem}",
                name.escape_debug()
            ),
            "`ip link` lists the interfaces of this host",
        );
        return None;
    }
    Some(name.to_owned())
}
