//! A version of the configuration in the maps: read back, and written (SAFE-5).
//!
//! Version `v`'s element `i` of an array is at `v * capacity + i`; keys of hashes and tries begin with the
//! version. Only the version that is not in force is ever written.

use aya::Pod;
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use egress_common::family::{V4, V6};
use egress_common::settings::{
    Candidate, CgroupKey, InterfaceKey, MAX_CANDIDATES, MAX_MARKS, MAX_POOLS, MAX_ZONES,
    MarkSelector, Pool, Prefixed, Selected, Settings, Switch, VERSION_BITS, Zone,
};

use super::maps::Maps;
use super::tables::{Prefixes, Tables};
use crate::dataplane::api::DataPlaneError;

/// The version that counts.
pub(super) fn in_force(maps: &Maps) -> Result<u32, DataPlaneError> {
    maps.only::<Switch>("SWITCH")
        .map(|switch| switch.version & 1)
}

/// Whether anything was ever put in force: a time-out of nothing is none.
pub(super) fn is_configured(maps: &Maps) -> Result<bool, DataPlaneError> {
    let settings: Vec<Settings> = maps.range("SETTINGS", in_force(maps)?, 1)?;
    Ok(settings
        .first()
        .is_some_and(|settings| settings.timers.udp != 0))
}

/// Puts a version in force: one write that every packet sees or does not see.
pub(super) fn switch(maps: &Maps, version: u32) -> Result<(), DataPlaneError> {
    maps.set("SWITCH", 0, Switch { version, pad: 0 })
}

impl Tables {
    /// Reads a version from the maps.
    pub(super) fn read(maps: &Maps, version: u32) -> Result<Self, DataPlaneError> {
        let numbered = |count: u32| 0..count;
        let zones: Vec<Zone> = maps.range("ZONES", version * MAX_ZONES, MAX_ZONES)?;
        let pools: Vec<Pool> = maps.range("POOLS", version * MAX_POOLS, MAX_POOLS)?;
        let settings: Settings = maps
            .range("SETTINGS", version, 1)?
            .first()
            .copied()
            .unwrap_or_default();
        let mut candidates: Vec<Candidate<V4>> =
            maps.range("CANDIDATES4", version * MAX_CANDIDATES, MAX_CANDIDATES)?;
        let used = pools.iter().map(|pool| pool.first + pool.count).max();
        candidates.truncate(used.unwrap_or(0) as usize);
        let mut marks: Vec<MarkSelector> = maps.range("MARKS", version * MAX_MARKS, MAX_MARKS)?;
        marks.truncate(settings.marks as usize);
        Ok(Self {
            settings,
            zones: numbered(MAX_ZONES)
                .zip(zones)
                .filter(|(_, zone)| *zone != Zone::default())
                .collect(),
            pools: numbered(MAX_POOLS)
                .zip(pools)
                .filter(|(_, pool)| *pool != Pool::default())
                .collect(),
            candidates,
            marks,
            cgroups: cgroup_keys(maps, version)?
                .into_iter()
                .map(|(key, zone)| (key.cgroup, zone))
                .collect(),
            interfaces: interface_keys(maps, version)?
                .into_iter()
                .map(|(key, zone)| (key.interface, zone))
                .collect(),
            sources4: read_trie(maps, "SOURCES4", version)?,
            sources6: read_trie(maps, "SOURCES6", version)?,
            exempt4: read_trie(maps, "EXEMPT4", version)?,
            exempt6: read_trie(maps, "EXEMPT6", version)?,
        })
    }

    /// Writes everything to a version that is not in force, and clears what was left there.
    pub(super) fn write(&self, maps: &Maps, version: u32) -> Result<(), DataPlaneError> {
        write_array(
            maps,
            "ZONES",
            version,
            MAX_ZONES,
            self.zones.iter().map(|(n, v)| (*n, *v)),
        )?;
        write_array(
            maps,
            "POOLS",
            version,
            MAX_POOLS,
            self.pools.iter().map(|(n, v)| (*n, *v)),
        )?;
        write_array(
            maps,
            "CANDIDATES4",
            version,
            MAX_CANDIDATES,
            (0..).zip(self.candidates.iter().copied()),
        )?;
        write_array(
            maps,
            "MARKS",
            version,
            MAX_MARKS,
            (0..).zip(self.marks.iter().copied()),
        )?;
        let failed = |name: &'static str| {
            move |error: MapError| DataPlaneError::failed(format!("writing map {name}"), error)
        };
        let mut cgroups = maps.hash::<CgroupKey, Selected>("CGROUPS")?;
        for (key, _) in cgroup_keys(maps, version)? {
            cgroups.remove(&key).map_err(failed("CGROUPS"))?;
        }
        for (&cgroup, &zone) in &self.cgroups {
            let key = CgroupKey {
                version: u64::from(version),
                cgroup,
            };
            cgroups
                .insert(key, Selected { zone }, 0)
                .map_err(failed("CGROUPS"))?;
        }
        let mut interfaces = maps.hash::<InterfaceKey, Selected>("INTERFACES")?;
        for (key, _) in interface_keys(maps, version)? {
            interfaces.remove(&key).map_err(failed("INTERFACES"))?;
        }
        for (&interface, &zone) in &self.interfaces {
            let key = InterfaceKey { version, interface };
            interfaces
                .insert(key, Selected { zone }, 0)
                .map_err(failed("INTERFACES"))?;
        }
        write_trie(maps, "SOURCES4", version, &self.sources4)?;
        write_trie(maps, "SOURCES6", version, &self.sources6)?;
        write_trie(maps, "EXEMPT4", version, &self.exempt4)?;
        write_trie(maps, "EXEMPT6", version, &self.exempt6)?;
        maps.set("SETTINGS", version, self.settings)
    }
}

fn write_array<T: Pod + Default>(
    maps: &Maps,
    name: &str,
    version: u32,
    capacity: u32,
    elements: impl Iterator<Item = (u32, T)>,
) -> Result<(), DataPlaneError> {
    let mut whole = vec![T::default(); capacity as usize];
    for (index, value) in elements {
        if let Some(element) = whole.get_mut(index as usize) {
            *element = value;
        }
    }
    maps.set_range(name, version * capacity, &whole)
}

fn cgroup_keys(maps: &Maps, version: u32) -> Result<Vec<(CgroupKey, u32)>, DataPlaneError> {
    let all = maps.hash::<CgroupKey, Selected>("CGROUPS")?;
    let found = all
        .iter()
        .filter(|entry| !matches!(entry, Ok((key, _)) if key.version != u64::from(version)))
        .map(|entry| entry.map(|(key, selected)| (key, selected.zone)))
        .collect::<Result<_, _>>();
    found.map_err(|error| DataPlaneError::failed("reading map CGROUPS", error))
}

fn interface_keys(maps: &Maps, version: u32) -> Result<Vec<(InterfaceKey, u32)>, DataPlaneError> {
    let all = maps.hash::<InterfaceKey, Selected>("INTERFACES")?;
    let found = all
        .iter()
        .filter(|entry| !matches!(entry, Ok((key, _)) if key.version != version))
        .map(|entry| entry.map(|(key, selected)| (key, selected.zone)))
        .collect::<Result<_, _>>();
    found.map_err(|error| DataPlaneError::failed("reading map INTERFACES", error))
}

/// Key data that can be taken apart again.
pub(super) trait Versioned: Prefixed + Ord {
    fn split(data: Self::Data) -> Option<(u32, Self)>;
}

impl Versioned for V4 {
    fn split(data: Self::Data) -> Option<(u32, Self)> {
        let (version, address) = data.split_first_chunk()?;
        Some((u32::from_be_bytes(*version), address.try_into().ok()?))
    }
}

impl Versioned for V6 {
    fn split(data: Self::Data) -> Option<(u32, Self)> {
        let (version, address) = data.split_first_chunk()?;
        Some((u32::from_be_bytes(*version), address.try_into().ok()?))
    }
}

fn read_trie<A: Versioned>(
    maps: &Maps,
    name: &str,
    version: u32,
) -> Result<Prefixes<A>, DataPlaneError>
where
    A::Data: Pod,
{
    let trie = maps.trie::<A::Data, Selected>(name)?;
    let mut found = Prefixes::new();
    for entry in &trie {
        let (key, selected) =
            entry.map_err(|error| DataPlaneError::failed(format!("reading map {name}"), error))?;
        if let Some((of, address)) = A::split(key.data())
            && of == version
        {
            let length = key.prefix_len().saturating_sub(VERSION_BITS);
            found.insert((length, address), selected.zone);
        }
    }
    Ok(found)
}

fn write_trie<A: Versioned>(
    maps: &Maps,
    name: &str,
    version: u32,
    prefixes: &Prefixes<A>,
) -> Result<(), DataPlaneError>
where
    A::Data: Pod,
{
    let failed = |error| DataPlaneError::failed(format!("writing map {name}"), error);
    let mut trie = maps.trie::<A::Data, Selected>(name)?;
    let key = |length: u32, address: A| Key::new(VERSION_BITS + length, A::data(version, address));
    for (length, address) in read_trie::<A>(maps, name, version)?.into_keys() {
        trie.remove(&key(length, address)).map_err(failed)?;
    }
    for (&(length, address), &zone) in prefixes {
        trie.insert(&key(length, address), Selected { zone }, 0)
            .map_err(failed)?;
    }
    Ok(())
}
