//! A version of the configuration in the maps: read back, and written (SAFE-5).
//!
//! Version `v`'s element `i` of an array is at `v * capacity + i`; keys of hashes and tries begin with the
//! version. Only the version that is not in force is ever written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, MapData, MapError};
use egress_common::family::{V4, V6};
use egress_common::settings::{
    Candidate, CgroupKey, CgroupPath, InterfaceKey, MAX_CANDIDATES, MAX_EXITS, MAX_MARKS,
    MAX_ZONES, MarkSelector, Pool, Prefixed, Selected, Settings, Switch, VERSION_BITS, Zone,
};

use super::cgroups;
use super::maps::Maps;
use super::policies;
use super::sys;
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

/// What is in the switch is read, changed and written by one at a time: the version, and the time at which slices are used no more,
/// have different owners ([`super::deadline`]).
static SWITCHING: Mutex<()> = Mutex::new(());

fn change(maps: &Maps, change: impl FnOnce(Switch) -> Switch) -> Result<(), DataPlaneError> {
    let _turn = SWITCHING.lock().unwrap_or_else(PoisonError::into_inner);
    maps.set("SWITCH", 0, change(maps.only("SWITCH")?))
}

/// Puts a version in force: one write that every packet sees or does not see.
pub(super) fn switch(maps: &Maps, version: u32) -> Result<(), DataPlaneError> {
    change(maps, |now| {
        let mut number = now.version.wrapping_add(1);
        if number & 1 != version {
            number = number.wrapping_add(1);
        }
        Switch {
            version: number,
            ..now
        }
    })
}

/// Whether the fast path is left alone, whatever the programs were loaded with.
pub(super) fn is_routed(maps: &Maps) -> Result<bool, DataPlaneError> {
    maps.only::<Switch>("SWITCH")
        .map(|switch| switch.routed != 0)
}

/// Lets live flows pass routing by, or not.
pub(super) fn set_routed(maps: &Maps, routed: bool) -> Result<(), DataPlaneError> {
    let routed = routed.into();
    change(maps, |now| Switch { routed, ..now })
}

/// From when on this server's slices are not used, ns since the start of the machine; 0: never.
pub(super) fn lapse(maps: &Maps) -> Result<u64, DataPlaneError> {
    maps.only::<Switch>("SWITCH").map(|switch| switch.lapse)
}

/// Says from when on. Words of eight bytes are written as a whole: a packet sees the old time or the new one.
pub(super) fn set_lapse(maps: &Maps, lapse: u64) -> Result<(), DataPlaneError> {
    change(maps, |now| Switch { lapse, ..now })
}

impl Tables {
    /// Reads a version from the maps.
    pub(super) fn read(maps: &Maps, version: u32) -> Result<Self, DataPlaneError> {
        let numbered = |count: u32| 0..count;
        let zones: Vec<Zone> = maps.range("ZONES", version * MAX_ZONES, MAX_ZONES)?;
        let pools: Vec<Pool> = maps.range("POOLS", version * MAX_EXITS, MAX_EXITS)?;
        let settings: Settings = maps
            .range("SETTINGS", version, 1)?
            .first()
            .copied()
            .unwrap_or_default();
        let mut candidates: Vec<Candidate<V4>> =
            maps.range("CANDIDATES4", version * MAX_CANDIDATES, MAX_CANDIDATES)?;
        let used = pools.iter().map(|pool| pool.first + pool.count).max();
        candidates.truncate(used.unwrap_or(0) as usize);
        let mut candidates6: Vec<Candidate<V6>> =
            maps.range("CANDIDATES6", version * MAX_CANDIDATES, MAX_CANDIDATES)?;
        let used = pools.iter().map(|pool| pool.first6 + pool.count6).max();
        candidates6.truncate(used.unwrap_or(0) as usize);
        let mut marks: Vec<MarkSelector> = maps.range("MARKS", version * MAX_MARKS, MAX_MARKS)?;
        marks.truncate(settings.marks as usize);
        Ok(Self {
            settings,
            zones: numbered(MAX_ZONES)
                .zip(zones)
                .filter(|(_, zone)| *zone != Zone::default())
                .collect(),
            pools: numbered(MAX_EXITS)
                .zip(pools)
                .filter(|(_, pool)| *pool != Pool::default())
                .collect(),
            candidates,
            candidates6,
            marks,
            paths: read_paths(maps, version)?,
            cgroups: read_cgroups(maps, version)?,
            interfaces: interface_keys(maps, version)?
                .into_iter()
                .map(|(key, zone)| (key.interface, zone))
                .collect(),
            sources4: read_trie(maps, "SOURCES4", version)?,
            sources6: read_trie(maps, "SOURCES6", version)?,
            exempt4: read_trie(maps, "EXEMPT4", version)?,
            exempt6: read_trie(maps, "EXEMPT6", version)?,
            policies: policies::read(maps, version, settings.rules)?,
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
            MAX_EXITS,
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
            "CANDIDATES6",
            version,
            MAX_CANDIDATES,
            (0..).zip(self.candidates6.iter().copied()),
        )?;
        write_array(
            maps,
            "MARKS",
            version,
            MAX_MARKS,
            (0..).zip(self.marks.iter().copied()),
        )?;
        self.write_cgroups(maps, version)?;
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
        policies::write(maps, version, &self.policies)?;
        maps.set("SETTINGS", version, self.settings)
    }

    /// First the paths: from then on the data plane enters whatever is created under one of them. What exists
    /// already is entered after that, so nothing is created unseen in between.
    fn write_cgroups(&self, maps: &Maps, version: u32) -> Result<(), DataPlaneError> {
        let mut paths = maps.hash::<CgroupPath, Selected>("CGROUP_PATHS")?;
        let key = |path: &str| {
            CgroupPath::new(version, path).ok_or_else(|| {
                DataPlaneError::failed("writing map CGROUP_PATHS", format!("{path} is too long"))
            })
        };
        for path in read_paths(maps, version)?.keys() {
            paths.remove(&key(path)?).map_err(failed("CGROUP_PATHS"))?;
        }
        for (path, &zone) in &self.paths {
            paths
                .insert(key(path)?, Selected { zone }, 0)
                .map_err(failed("CGROUP_PATHS"))?;
        }
        let mut ids = maps.hash::<CgroupKey, Selected>("CGROUPS")?;
        for cgroup in read_cgroups(maps, version)?.into_keys() {
            forget_cgroup(&mut ids, version, cgroup)?;
        }
        // One that was removed but has open sockets still is in force, and can be looked up nowhere else.
        let in_force = read_cgroups(maps, 1 - version)?;
        let mut known = in_force.clone();
        let zones: BTreeSet<u32> = self.paths.values().copied().collect();
        known.retain(|_, zone| zones.contains(zone));
        known.extend(&self.cgroups);
        known.extend(self.existing_cgroups()?);
        for (cgroup, zone) in known {
            ids.insert(cgroup_key(version, cgroup), Selected { zone }, 0)
                .map_err(failed("CGROUPS"))?;
        }
        // One that has gone since it was read was taken out of both versions, perhaps before it was entered above;
        // nobody would take it out again.
        if in_force.is_empty() {
            return Ok(());
        }
        sys::wait_for_running_programs();
        let still = read_cgroups(maps, 1 - version)?;
        for cgroup in in_force.into_keys().filter(|id| !still.contains_key(id)) {
            forget_cgroup(&mut ids, version, cgroup)?;
        }
        Ok(())
    }

    fn existing_cgroups(&self) -> Result<BTreeMap<u64, u32>, DataPlaneError> {
        let found = cgroups::find(self.paths.keys())?;
        Ok(found
            .into_iter()
            .filter_map(|(path, cgroup)| Some((cgroup.id, *self.paths.get(&path)?)))
            .collect())
    }

    /// Enters existing cgroups that the version in force does not know; returns how many.
    pub(super) fn take_up_cgroups(&self, maps: &Maps, version: u32) -> Result<u64, DataPlaneError> {
        let known = read_cgroups(maps, version)?;
        let mut ids = maps.hash::<CgroupKey, Selected>("CGROUPS")?;
        let mut taken_up = 0;
        for (&cgroup, &zone) in &self.cgroups {
            if known.get(&cgroup) != Some(&zone) {
                ids.insert(cgroup_key(version, cgroup), Selected { zone }, 0)
                    .map_err(failed("CGROUPS"))?;
                taken_up += 1;
            }
        }
        Ok(taken_up)
    }
}

fn failed(name: &'static str) -> impl Fn(MapError) -> DataPlaneError {
    move |error| DataPlaneError::failed(format!("writing map {name}"), error)
}

fn cgroup_key(version: u32, cgroup: u64) -> CgroupKey {
    CgroupKey {
        version: u64::from(version),
        cgroup,
    }
}

/// Takes a cgroup out of a version, unless the data plane was faster: then the cgroup is gone.
fn forget_cgroup(
    ids: &mut HashMap<MapData, CgroupKey, Selected>,
    version: u32,
    cgroup: u64,
) -> Result<(), DataPlaneError> {
    match ids.remove(&cgroup_key(version, cgroup)) {
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Err(error) => Err(failed("CGROUPS")(error)),
    }
}

/// The ids that a version knows, with their zones.
fn read_cgroups(maps: &Maps, version: u32) -> Result<BTreeMap<u64, u32>, DataPlaneError> {
    let all = maps.hash::<CgroupKey, Selected>("CGROUPS")?;
    let mut found = BTreeMap::new();
    for key in all.keys() {
        let key = key.map_err(|error| DataPlaneError::failed("reading map CGROUPS", error))?;
        if key.version != u64::from(version) {
            continue;
        }
        match all.get(&key, 0) {
            Ok(selected) => {
                found.insert(key.cgroup, selected.zone);
            }
            // It has just gone.
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(DataPlaneError::failed("reading map CGROUPS", error)),
        }
    }
    Ok(found)
}

/// The cgroups that are selected now, with their zones.
pub(super) fn cgroup_paths(maps: &Maps) -> Result<BTreeMap<String, u32>, DataPlaneError> {
    read_paths(maps, in_force(maps)?)
}

/// The paths that a version selects, with their zones.
fn read_paths(maps: &Maps, version: u32) -> Result<BTreeMap<String, u32>, DataPlaneError> {
    let all = maps.hash::<CgroupPath, Selected>("CGROUP_PATHS")?;
    let mut found = BTreeMap::new();
    for entry in &all {
        let (key, selected) =
            entry.map_err(|error| DataPlaneError::failed("reading map CGROUP_PATHS", error))?;
        if key.version == version {
            let path = key.path.split(|byte| *byte == 0).next().unwrap_or_default();
            let path = String::from_utf8_lossy(path.strip_prefix(b"/").unwrap_or(path));
            found.insert(path.into_owned(), selected.zone);
        }
    }
    Ok(found)
}

pub(super) fn write_array<T: Pod + Default>(
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

pub(super) fn read_trie<A: Versioned>(
    maps: &Maps,
    name: &str,
    version: u32,
) -> Result<Prefixes<A>, DataPlaneError>
where
    A::Data: Pod,
{
    let mut found = Prefixes::new();
    for (key, selected) in maps.entries::<Key<A::Data>, Selected>(name)? {
        if let Some((of, address)) = A::split(key.data())
            && of == version
        {
            let length = key.prefix_len().saturating_sub(VERSION_BITS);
            found.insert((length, address), selected.zone);
        }
    }
    Ok(found)
}

pub(super) fn write_trie<A: Versioned>(
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
    // Most of what was in force two changes ago still is.
    let before = read_trie::<A>(maps, name, version)?;
    for &(length, address) in before
        .keys()
        .filter(|prefix| !prefixes.contains_key(*prefix))
    {
        trie.remove(&key(length, address)).map_err(failed)?;
    }
    for (&(length, address), &zone) in prefixes {
        if before.get(&(length, address)) != Some(&zone) {
            trie.insert(&key(length, address), Selected { zone }, 0)
                .map_err(failed)?;
        }
    }
    Ok(())
}
