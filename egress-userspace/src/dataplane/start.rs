//! The beginning: the programs of this binary on maps that are there already, or on new ones.

use egress_common::layout::Layout;

use super::check;
use super::detach;
use super::first;
use super::maps::Maps;
use super::object::{self, Object};
use super::pins::{Pins, State};
use crate::config::Dataplane;
use crate::dataplane::api::DataPlaneError;

/// Loads the programs; afterwards the maps are pinned in their place. Nothing is attached or replaced yet.
pub(super) fn programs(
    pins: &Pins,
    config: &Dataplane,
) -> Result<(Layout, Object), DataPlaneError> {
    // Whoever left these did not come to the end, and nothing is attached to them.
    pins.fresh().remove()?;
    pins.gone().remove()?;
    match pins.state()? {
        State::Foreign => Err(detach::foreign(pins)),
        State::Present => take_over(pins, config),
        State::Absent => create(pins, config),
    }
}

/// Loads the programs onto the maps that are pinned.
fn take_over(pins: &Pins, config: &Dataplane) -> Result<(Layout, Object), DataPlaneError> {
    let layout = check::compatible(pins)?;
    for sentence in check::kept(&layout, config) {
        tracing::warn!("{sentence}");
    }
    let object = Object::load(&pins.maps(), &layout, config.accelerate)?;
    // Somebody may have removed the links' directory.
    pins.create()?;
    Ok((layout, object))
}

/// Makes the maps aside, loads the programs onto them, and only then puts them in their place.
fn create(pins: &Pins, config: &Dataplane) -> Result<(Layout, Object), DataPlaneError> {
    let layout = object::layout(config)?;
    let fresh = pins.fresh();
    let build = || {
        fresh.create()?;
        let object = Object::load(&fresh.maps(), &layout, config.accelerate)?;
        first::fill(&Maps::open(&fresh)?, &layout)?;
        fresh.rename(pins)?;
        Ok(object)
    };
    match build() {
        Ok(object) => Ok((layout, object)),
        Err(error) => {
            // What cannot be removed now is removed by the next start.
            drop(fresh.remove());
            Err(error)
        }
    }
}
