//! Pools, zones and status as the commands print them: what is configured joined with what is live.

mod scope;
mod servers;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use egress_common::placement;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use scope::{find_pool, find_zone, flow_filter, origin_filter};
pub use servers::{ServerRecord, Standing as ServerState, servers};

use scope::Scope;

use crate::control::protocol::{Failure, Filter};
use crate::dataplane::api::{DataPlaneStatus, Names, PoolAddressLive, PoolLive};
use crate::dataplane::cgroup_directory;
use crate::desired::Withdrawn;
use crate::liveness::Healths;
use crate::placed::{self, Standing};
use crate::resource::{Address, Kind, Owner, Pool, PoolKind, PoolUse, Resources, Zone};
use crate::store::Stored;

/// `egress status --json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether a daemon answers.
    pub daemon: DaemonState,
    /// Whether hooks, guard and configuration are in force.
    pub ready: bool,
    /// The daemon's process, while it is up.
    pub pid: Option<u32>,
    /// The version of the program that answers.
    pub version: String,
    /// Why the configuration cannot be changed now, if it cannot: a shared store does not answer (CLU-2).
    #[serde(default)]
    pub frozen: Option<String>,
    /// Why what is stored could not be put in force here, if it could not: what was in force before still is.
    #[serde(default)]
    pub behind: Option<String>,
    /// Why slices that are to leave this server do not, if that is not for connections that are left in them (CLU-3).
    #[serde(default)]
    pub stuck: Option<String>,
    /// What is known of the other servers, by their tunnel addresses (FWD-7).
    #[serde(default)]
    pub servers: Healths,
    /// Prefixes that are withdrawn, each with the egress IPs of this server that are not announced for it (ANN-1).
    #[serde(default)]
    pub withdrawn: BTreeMap<IpNet, Vec<String>>,
    /// What the data plane says.
    #[serde(flatten)]
    pub dataplane: DataPlaneStatus,
}

/// Whether a daemon answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DaemonState {
    /// It does.
    Up,
    /// It does not.
    #[default]
    Down,
}

impl Status {
    /// The status of a data plane, told by a daemon (`pid`) or read without one.
    pub fn new(dataplane: DataPlaneStatus, pid: Option<u32>) -> Self {
        let mut status = Self {
            daemon: if pid.is_some() {
                DaemonState::Up
            } else {
                DaemonState::Down
            },
            ready: false,
            pid,
            version: env!("CARGO_PKG_VERSION").into(),
            frozen: None,
            behind: None,
            stuck: None,
            servers: Healths::new(),
            withdrawn: BTreeMap::new(),
            dataplane,
        };
        status.ready = status.in_place() && status.dataplane.guard && status.dataplane.configured;
        status
    }

    /// With what is not announced of these addresses.
    #[must_use]
    pub fn without(
        self,
        withdrawn: &Withdrawn,
        addresses: impl IntoIterator<Item = Address>,
    ) -> Self {
        let among = withdrawn.among(addresses).into_iter();
        let text = |of: Vec<Address>| of.iter().map(ToString::to_string).collect();
        Self {
            withdrawn: among.map(|(prefix, of)| (prefix, text(of))).collect(),
            ..self
        }
    }

    /// Whether there are hooks, all of them are in place, and where they are of use.
    pub fn in_place(&self) -> bool {
        let dataplane = &self.dataplane;
        let stopped = dataplane
            .troubles
            .iter()
            .any(|trouble| trouble.kind.stops_traffic());
        !dataplane.hooks.is_empty() && dataplane.hooks.iter().all(|hook| hook.in_place) && !stopped
    }
}

/// One pool: an element of `egress pools --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRecord {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its account, as written.
    pub account: Option<String>,
    /// Where its addresses come from.
    pub kind: Option<PoolKind>,
    /// Who uses it.
    #[serde(rename = "use")]
    pub used_for: Option<PoolUse>,
    /// Connections per (egress IP, origin, protocol) that it allows.
    pub connections_per_origin: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<PoolAddress>,
    /// Names of the zones that leave by it.
    pub zones: Vec<String>,
}

/// One address of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddress {
    /// The IPv4 address or IPv6 prefix.
    pub address: String,
    /// Connections per origin and protocol that this server admits on it; absent for what is not in force.
    pub capacity: Option<u32>,
    /// Live connections over all origins; absent for what is not in force.
    pub active: Option<u64>,
    /// Whether it takes no new flows.
    pub draining: bool,
    /// The slices of it, 1 to 31, from which this server gives out ports; absent for IPv6 and for what is not in
    /// force.
    pub slices: Option<Vec<u32>>,
    /// Who owns what of it; empty where no locations are told.
    pub owners: Vec<PoolOwner>,
}

/// What one server owns of an address or range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolOwner {
    /// The server.
    pub server: String,
    /// Its data center.
    pub data_center: String,
    /// The location of that.
    pub location: String,
    /// Its slices of an IPv4 address.
    pub slices: Vec<u32>,
    /// Its part of an IPv6 range.
    pub range: Option<String>,
}

/// One zone: an element of `egress zones --json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneRecord {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its account, as written.
    pub account: String,
    /// Whether its traffic leaves by the pool.
    pub enabled: bool,
    /// The pool of its setting, as written.
    pub pool_id: Option<String>,
    /// Who owns the setting; nobody while it was never made.
    pub setting_owner: Option<Owner>,
    /// Source prefixes.
    pub sources: Vec<String>,
    /// Firewall marks.
    pub marks: Vec<String>,
    /// Paths below the cgroup2 mount.
    pub cgroups: Vec<String>,
    /// Those of them that do not exist now.
    #[serde(default)]
    pub absent_cgroups: Vec<String>,
    /// Interfaces.
    pub interfaces: Vec<String>,
}

/// Every zone that `filter` lets through, by name.
pub fn zones(stored: &Stored, filter: &Filter) -> Result<Vec<ZoneRecord>, Failure> {
    let resources = stored.resources();
    let scope = Scope::of(&resources, filter)?;
    let mut found: Vec<ZoneRecord> = resources
        .zones
        .iter()
        .filter(|zone| scope.zone(zone) && scope.uses(&resources, zone))
        .map(|zone| zone_record(stored, &resources, zone))
        .collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// One zone as it is printed.
pub fn zone_record(stored: &Stored, resources: &Resources, zone: &Zone) -> ZoneRecord {
    let setting = resources.aegis(zone);
    let owner = |kind| {
        stored
            .objects
            .get(&(kind, zone.id.clone()))
            .map(|(owner, _)| *owner)
    };
    ZoneRecord {
        id: zone.id.clone(),
        name: zone.name.clone(),
        account: zone.account.clone(),
        enabled: setting.enabled,
        pool_id: setting.pool_id,
        setting_owner: if zone.aegis.is_some() {
            owner(Kind::Zone)
        } else {
            owner(Kind::Setting)
        },
        sources: zone.sources.iter().map(ToString::to_string).collect(),
        marks: zone.marks.iter().map(ToString::to_string).collect(),
        cgroups: zone.cgroups.clone(),
        absent_cgroups: absent(&zone.cgroups),
        interfaces: zone.interfaces.clone(),
    }
}

/// The cgroups that do not exist on this host.
fn absent(paths: &[String]) -> Vec<String> {
    let is_absent = |path: &&String| !cgroup_directory(path).is_ok_and(|place| place.exists());
    paths.iter().filter(is_absent).cloned().collect()
}

/// Refuses a cgroup that does not exist, since nothing can be of it (OBS-5).
///
/// # Errors
/// Where it was looked for.
pub fn require_cgroup(path: &str) -> Result<(), Failure> {
    let place = cgroup_directory(path)?;
    if place.exists() {
        return Ok(());
    }
    Err(Failure::usage(
        format!(
            "there is no cgroup {path}: no directory {}",
            place.display()
        ),
        "give its path below the cgroup2 mount, as `/proc/PID/cgroup` says it behind `0::/`",
    ))
}

/// Every pool that `filter` lets through: those that are stored with what is live about them, then those that
/// are only in force.
pub fn pools(
    stored: &Stored,
    live: &[PoolLive],
    filter: &Filter,
) -> Result<Vec<PoolRecord>, Failure> {
    let resources = stored.resources();
    let scope = Scope::of(&resources, filter)?;
    let by_number: BTreeMap<u16, &PoolLive> = live.iter().map(|pool| (pool.number, pool)).collect();
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    let users = users(&resources);
    for pool in &resources.pools {
        let number = stored.numbers.pools.get(&pool.id).copied();
        known.extend(number);
        if scope.pool(&pool.id) {
            found.push(pool_record(
                &resources,
                pool,
                number.and_then(|number| by_number.get(&number)).copied(),
                users.get(pool.id.as_str()).map_or(&[], Vec::as_slice),
            ));
        }
    }
    if filter.zone.is_none() && filter.pool.is_none() {
        let names = stored.names();
        found.extend(
            live.iter()
                .filter(|pool| !known.contains(&pool.number))
                .map(|pool| unknown(&names, pool)),
        );
    }
    if let Some(wanted) = filter.egress_ip {
        found.retain(|pool| {
            pool.addresses
                .iter()
                .any(|address| covers(&address.address, wanted))
        });
    }
    Ok(found)
}

/// The names of the enabled zones of each pool, by the pool's id.
fn users(resources: &Resources) -> HashMap<&str, Vec<String>> {
    let mut users: HashMap<&str, Vec<String>> = HashMap::new();
    for zone in &resources.zones {
        let setting = resources.aegis(zone);
        let used = setting.pool_id.as_deref().filter(|_| setting.enabled);
        if let Some(pool) = used.and_then(|reference| resources.pool(reference)) {
            users.entry(&pool.id).or_default().push(zone.name.clone());
        }
    }
    users
}

fn pool_record(
    resources: &Resources,
    pool: &Pool,
    live: Option<&PoolLive>,
    users: &[String],
) -> PoolRecord {
    let in_force: HashMap<_, _> = live
        .iter()
        .flat_map(|live| &live.addresses)
        .map(|address| (address.egress_ip, address))
        .collect();
    let addresses = pool.addresses.iter().map(|address| {
        let live = match address {
            Address::V4(_) => in_force.get(address),
            // What is in force is this server's part.
            Address::V6(_) => in_force.values().find(|live| {
                let (range, part) = (address.net(), live.egress_ip.net());
                range.contains(&part)
            }),
        };
        PoolAddress {
            address: address.to_string(),
            capacity: live.map(|live| live.cap),
            active: live.map(|live| live.active),
            draining: resources.drains(pool, address),
            slices: live.and_then(|live| slices(live)),
            owners: owners(resources, *address),
        }
    });
    PoolRecord {
        id: pool.id.clone(),
        name: pool.name.clone(),
        account: Some(pool.account.clone()),
        kind: pool.kind,
        used_for: Some(pool.used_for),
        connections_per_origin: Some(pool.connections_per_origin),
        addresses: addresses.collect(),
        zones: users.to_vec(),
    }
}

fn slices(live: &PoolAddressLive) -> Option<Vec<u32>> {
    matches!(live.egress_ip, Address::V4(_)).then(|| placement::slices(live.slices).collect())
}

fn owners(resources: &Resources, address: Address) -> Vec<PoolOwner> {
    let owner = |one: Standing<'_>, slices, range| PoolOwner {
        server: one.server.name.clone(),
        data_center: one.data_center.name.clone(),
        location: one.location.name.clone(),
        slices,
        range,
    };
    match address {
        Address::V4(address) => placed::holders(resources, address)
            .into_iter()
            .map(|(one, bitmap)| owner(one, placement::slices(bitmap).collect(), None))
            .collect(),
        Address::V6(range) => placed::servers(resources)
            .filter_map(|one| {
                let part = placed::part_of(resources, &one.server.name, range)?;
                Some(owner(one, Vec::new(), Some(part.to_string())))
            })
            .collect(),
    }
}

/// A pool of the maps that no store knows.
fn unknown(names: &Names, live: &PoolLive) -> PoolRecord {
    let addresses = live.addresses.iter().map(|address| PoolAddress {
        address: address.egress_ip.to_string(),
        capacity: Some(address.cap),
        active: Some(address.active),
        draining: address.draining,
        slices: slices(address),
        owners: Vec::new(),
    });
    PoolRecord {
        id: names.pool(live.number),
        name: None,
        account: None,
        kind: None,
        used_for: None,
        connections_per_origin: None,
        addresses: addresses.collect(),
        zones: Vec::new(),
    }
}

fn covers(address: &str, wanted: IpAddr) -> bool {
    address
        .parse::<Address>()
        .is_ok_and(|address| address.net().contains(&wanted))
}

#[cfg(test)]
mod tests;
