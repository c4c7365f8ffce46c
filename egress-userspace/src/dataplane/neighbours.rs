//! Other instances on this host: two that share an interface would undo each other's work, and two that share
//! bits of the mark would believe each other's tags.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aya::programs::loaded_programs;
use egress_common::layout::{LAYOUT, Layout};

use super::clsact;
use super::interfaces::Interface;
use super::lock;
use super::maps::Maps;
use super::pins::Pins;
use super::sys::{self, Direction};
use crate::config::Dataplane;
use crate::dataplane::api::DataPlaneError;

/// Another instance, and what tells its programs from others of the same names.
struct Other {
    pins: PathBuf,
    /// Bits of the mark in which it keeps its tags; none where its pins cannot be read.
    mask: u32,
}

/// Checks that no other instance has programs on one of our interfaces, or keeps its tags in bits of the mark that
/// are ours, with programs on any interface of this network namespace.
///
/// # Errors
/// [`DataPlaneError::Refused`] that names the interface and the other one's pins.
pub(super) fn check(
    pins: &Pins,
    config: &Dataplane,
    uplinks: &[Interface],
    insides: &[Interface],
) -> Result<(), DataPlaneError> {
    let programs = others_programs(pins);
    if programs.is_empty() {
        return Ok(());
    }
    for (interfaces, key) in [(uplinks, "uplink"), (insides, "inside")] {
        for interface in interfaces {
            refuse_shared(&programs, interface, key)?;
        }
    }
    let mask = layout(pins).map_or(config.mark_mask, |layout| layout.mark_mask);
    for interface in Interface::all()? {
        let attached = attached(&interface)?;
        let other = attached.iter().find_map(|program| programs.get(program));
        if let Some(other) = other.filter(|other| other.mask & mask != 0) {
            let example = apart(other.mask)
                .map(|mask| format!(", for instance \"{mask:#010x}\" here"))
                .unwrap_or_default();
            return Err(DataPlaneError::Refused {
                reason: format!(
                    "another instance in this network namespace, whose pins are in {} and whose programs are on {}, \
                     keeps its tags in bits {:#010x} of the packet mark, and this one in bits {mask:#010x}: they \
                     would believe each other's",
                    other.pins.display(),
                    interface.name,
                    other.mask
                ),
                remedy: format!(
                    "give each a [dataplane] mark_mask of its own{example}; for an instance that has run before, that \
                     takes effect after `egress detach`, which ends its live flows"
                ),
            });
        }
    }
    Ok(())
}

/// Checks that no other instance has programs on an interface that is about to get ours.
///
/// # Errors
/// [`DataPlaneError::Refused`] that names both.
pub(super) fn check_interface(
    pins: &Pins,
    interface: &Interface,
    key: &str,
) -> Result<(), DataPlaneError> {
    let programs = others_programs(pins);
    if programs.is_empty() {
        return Ok(());
    }
    refuse_shared(&programs, interface, key)
}

fn refuse_shared(
    programs: &BTreeMap<u32, Other>,
    interface: &Interface,
    key: &str,
) -> Result<(), DataPlaneError> {
    let attached = attached(interface)?;
    let Some(other) = attached.iter().find_map(|program| programs.get(program)) else {
        return Ok(());
    };
    let other = other.pins.display();
    Err(DataPlaneError::Refused {
        reason: format!(
            "another instance, whose pins are in {other}, already has programs on {key} {}",
            interface.name
        ),
        remedy: format!(
            "give this one another [dataplane] {key}; or take the other one off first: `egress detach --pin {other}`, \
             and `--socket` if its daemon runs"
        ),
    })
}

/// A mask that shares no bit with `taken`.
fn apart(taken: u32) -> Option<u32> {
    [0xffff_0000, 0x0000_ffff, 0xff00_0000, 0x0000_00ff]
        .into_iter()
        .find(|mask| mask & taken == 0)
}

/// The programs of other instances, by their ids.
fn others_programs(pins: &Pins) -> BTreeMap<u32, Other> {
    // The id of a map that only their own programs use.
    let others: BTreeMap<u32, PathBuf> = lock::known_pins()
        .into_iter()
        .filter(|root| root != pins.root())
        // Whatever is not there, or not readable, is nobody's who could be named.
        .filter_map(|root| Some((switch(&Pins::new(&root)).ok()??, root)))
        .collect();
    if others.is_empty() {
        return BTreeMap::new();
    }
    loaded_programs()
        .filter_map(Result::ok)
        .filter_map(|program| {
            let maps = program.map_ids().ok()??;
            let root = maps.iter().find_map(|map| others.get(map))?;
            let other = Other {
                pins: root.clone(),
                mask: layout(&Pins::new(root)).map_or(0, |layout| layout.mark_mask),
            };
            Some((program.id(), other))
        })
        .collect()
}

/// What pins were made with, where this binary can read it.
fn layout(pins: &Pins) -> Option<Layout> {
    let layout: Layout = Maps::open(pins).ok()?.only("LAYOUT").ok()?;
    (layout.version == LAYOUT).then_some(layout)
}

/// The ids of all programs that use the maps of these pins, of this daemon or an earlier one. A filter of the same
/// name that uses other maps belongs to another instance.
pub(super) fn programs(pins: &Pins) -> Result<BTreeSet<u32>, DataPlaneError> {
    let Some(switch) = switch(pins)? else {
        return Ok(BTreeSet::new());
    };
    // A program that is unloaded while we look is none of those that are attached.
    Ok(loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| {
            program
                .map_ids()
                .is_ok_and(|ids| ids.is_some_and(|ids| ids.contains(&switch)))
        })
        .map(|program| program.id())
        .collect())
}

/// The id of a map that every program of an instance uses, and nobody else's; nothing where nothing is pinned.
fn switch(pins: &Pins) -> Result<Option<u32>, DataPlaneError> {
    let maps = match Maps::open(pins) {
        Ok(maps) => maps,
        Err(DataPlaneError::Absent { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let info = maps
        .data("SWITCH")?
        .info()
        .map_err(|error| DataPlaneError::failed("looking at map SWITCH", error))?;
    Ok(Some(info.id()))
}

/// The ids of the programs on an interface, of both directions.
fn attached(interface: &Interface) -> Result<BTreeSet<u32>, DataPlaneError> {
    let mut found = BTreeSet::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        // Before Linux 6.6 there is no tcx, so nothing is on it.
        let tcx = sys::tcx(interface.index, direction).unwrap_or_default();
        found.extend(tcx.into_iter().map(|attached| attached.program));
        let filters = clsact::filters(interface, direction)?;
        found.extend(filters.into_iter().map(|filter| filter.program));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use egress_common::tag::TagField;

    use super::*;

    #[test]
    fn the_mask_that_is_proposed_is_free_and_accepted() {
        for taken in [0xffff_0000, 0x0000_ffff, 0x00ff_0000, 0x00ff_ff00] {
            let free = apart(taken).unwrap();
            assert_eq!(free & taken, 0);
            assert!(TagField::new(free).is_some());
        }
        assert_eq!(apart(0xffff_fff0), None);
    }
}
