//! What each interface is to the data plane (`DEVICES`): its role and its link-layer address.
//!
//! An inside interface is entered only once its program is on it, and taken out before the program goes: the
//! uplink's program trusts the verdict, "no zone", of an interface that is listed here (ZONE-4).

use std::collections::BTreeMap;

use aya::maps::MapError;
use egress_common::settings::Device;

use super::interfaces::Interface;
use super::maps::Maps;
use crate::dataplane::api::DataPlaneError;

const NAME: &str = "DEVICES";

fn failed(error: MapError) -> DataPlaneError {
    DataPlaneError::failed(format!("changing map {NAME}"), error)
}

/// Makes the map hold exactly these devices, by index; what is not wanted goes first.
pub(super) fn set(maps: &Maps, wanted: &BTreeMap<u32, Device>) -> Result<(), DataPlaneError> {
    let mut map = maps.hash::<u32, Device>(NAME)?;
    let known: BTreeMap<u32, Device> = map.iter().collect::<Result<_, _>>().map_err(failed)?;
    for index in known.keys().filter(|index| !wanted.contains_key(index)) {
        map.remove(index).map_err(failed)?;
    }
    for (index, device) in wanted {
        if known.get(index) != Some(device) {
            map.insert(index, device, 0).map_err(failed)?;
        }
    }
    Ok(())
}

/// The interfaces that the map knows, by name, with their roles; one that is gone has none.
pub(super) fn names(maps: &Maps) -> Result<Vec<(String, u32)>, DataPlaneError> {
    let map = maps.hash::<u32, Device>(NAME)?;
    let known: BTreeMap<u32, Device> = map.iter().collect::<Result<_, _>>().map_err(failed)?;
    Ok(Interface::all()?
        .into_iter()
        .filter_map(|interface| Some((interface.name, known.get(&interface.index)?.role)))
        .collect())
}
