//! A version of the egress policies in the maps: read back, and written (SAFE-5).

use std::collections::BTreeMap;
use std::net::IpAddr;

use egress_common::family::{V4, V6};
use egress_common::policy::{MAX_RULES, MAX_SETS, PORTS, Rule, set};
use egress_common::settings::MAX_ZONES;
use ipnet::IpNet;

use super::maps::Maps;
use super::tables::Prefixes;
use super::versions::{read_trie, write_array, write_trie};
use crate::dataplane::api::DataPlaneError;
use crate::policy::compile::{self, Tables};

/// Reads a version that has this many rules.
pub(super) fn read(maps: &Maps, version: u32, rules: u32) -> Result<Tables, DataPlaneError> {
    if rules == 0 {
        return Ok(Tables::default());
    }
    let rules: Vec<Rule> = maps.range("POLICY_RULES", version * MAX_RULES, rules.min(MAX_RULES))?;
    let zones: Vec<u32> = maps.range("POLICY_ZONES", version * MAX_ZONES, MAX_ZONES)?;
    let zones: BTreeMap<u32, u32> = (0..)
        .zip(zones)
        .filter(|(_, number)| *number != set::NONE)
        .collect();
    let from = joined(
        read_trie(maps, "POLICY_FROM4", version)?,
        read_trie(maps, "POLICY_FROM6", version)?,
    );
    let to = joined(
        read_trie(maps, "POLICY_TO4", version)?,
        read_trie(maps, "POLICY_TO6", version)?,
    );
    let ports: Vec<u32> = maps.range("POLICY_PORTS", version * PORTS, PORTS)?;
    // Every set is some value's.
    let numbers = zones.values().chain(from.values()).chain(to.values());
    let last = numbers.chain(&ports).copied().max().unwrap_or(0);
    let sets = maps.range(
        "POLICY_SETS",
        version * MAX_SETS,
        (last + 1).clamp(set::SHARED, MAX_SETS),
    )?;
    Ok(Tables {
        rules,
        sets,
        zones,
        from,
        to,
        ports,
    })
}

/// Writes everything to a version that is not in force. Without rules nobody looks, and only what takes memory is
/// cleared.
pub(super) fn write(maps: &Maps, version: u32, tables: &Tables) -> Result<(), DataPlaneError> {
    let (from4, from6) = parted(&tables.from);
    let (to4, to6) = parted(&tables.to);
    write_trie(maps, "POLICY_FROM4", version, &from4)?;
    write_trie(maps, "POLICY_FROM6", version, &from6)?;
    write_trie(maps, "POLICY_TO4", version, &to4)?;
    write_trie(maps, "POLICY_TO6", version, &to6)?;
    if tables.rules.is_empty() {
        return Ok(());
    }
    let numbered = |values: &[Rule]| (0..).zip(values.to_vec()).collect::<Vec<(u32, Rule)>>();
    write_array(
        maps,
        "POLICY_RULES",
        version,
        MAX_RULES,
        numbered(&tables.rules).into_iter(),
    )?;
    write_array(
        maps,
        "POLICY_SETS",
        version,
        MAX_SETS,
        (0..).zip(tables.sets.iter().copied()),
    )?;
    write_array(
        maps,
        "POLICY_ZONES",
        version,
        MAX_ZONES,
        tables.zones.iter().map(|(zone, set)| (*zone, *set)),
    )?;
    maps.set_range("POLICY_PORTS", version * PORTS, &tables.ports)
}

fn joined(v4: Prefixes<V4>, v6: Prefixes<V6>) -> compile::Prefixes {
    let v4 = v4
        .into_iter()
        .map(|((length, address), number)| (IpAddr::from(address), length, number));
    let v6 = v6
        .into_iter()
        .map(|((length, address), number)| (IpAddr::from(address), length, number));
    v4.chain(v6)
        .filter_map(|(address, length, number)| {
            let net = IpNet::new(address, u8::try_from(length).ok()?).ok()?;
            Some((net, number))
        })
        .collect()
}

fn parted(prefixes: &compile::Prefixes) -> (Prefixes<V4>, Prefixes<V6>) {
    let (mut v4, mut v6) = (Prefixes::new(), Prefixes::new());
    for (net, number) in prefixes {
        let length = u32::from(net.prefix_len());
        match net.network() {
            IpAddr::V4(address) => v4.insert((length, address.octets()), *number),
            IpAddr::V6(address) => v6.insert((length, address.octets()), *number),
        };
    }
    (v4, v6)
}
