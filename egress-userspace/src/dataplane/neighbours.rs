//! Other instances on this host: two that translate on one uplink would undo each other's work.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use aya::programs::loaded_programs;

use super::clsact;
use super::hook::Hook;
use super::interfaces::Interface;
use super::lock;
use super::maps::Maps;
use super::pins::Pins;
use super::sys;
use crate::dataplane::api::DataPlaneError;

/// Checks that no other instance's program translates on one of `uplinks`.
///
/// # Errors
/// [`DataPlaneError::Refused`] that names the uplink and the other one's pins.
pub(super) fn check(pins: &Pins, uplinks: &[Interface]) -> Result<(), DataPlaneError> {
    let others = others(pins);
    if others.is_empty() {
        return Ok(());
    }
    for interface in uplinks {
        let attached = attached(interface)?;
        let programs = loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| attached.contains(&program.id()));
        for program in programs {
            let maps = program.map_ids().ok().flatten().unwrap_or_default();
            if let Some(other) = maps.iter().find_map(|map| others.get(map)) {
                let other = other.display();
                return Err(DataPlaneError::Refused {
                    reason: format!(
                        "another instance, whose pins are in {other}, already translates on uplink {}",
                        interface.name
                    ),
                    remedy: format!(
                        "give this one another [dataplane] uplink; or take the other one off first: `egress detach \
                         --pin {other}`, and `--socket` if its daemon runs"
                    ),
                });
            }
        }
    }
    Ok(())
}

/// The other pin directories, by the id of a map that only their own programs use.
fn others(pins: &Pins) -> BTreeMap<u32, PathBuf> {
    lock::known_pins()
        .into_iter()
        .filter(|root| root != pins.root())
        .filter_map(|root| {
            // Whatever is not there, or not readable, is nobody's who could be named.
            let maps = Maps::open(&Pins::new(&root)).ok()?;
            Some((maps.data("SWITCH").ok()?.info().ok()?.id(), root))
        })
        .collect()
}

/// The ids of the programs that see what leaves by an interface.
fn attached(interface: &Interface) -> Result<BTreeSet<u32>, DataPlaneError> {
    let direction = Hook::UplinkEgress.direction();
    // Before Linux 6.6 there is no tcx, so nothing is on it.
    let tcx = sys::tcx(interface.index, direction).unwrap_or_default();
    let filters = clsact::filters(interface, direction)?;
    Ok(tcx
        .into_iter()
        .map(|attached| attached.program)
        .chain(filters.into_iter().map(|filter| filter.program))
        .collect())
}
