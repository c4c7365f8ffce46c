//! What is left in slices that are to pass to another server (CLU-3).

use std::net::IpAddr;

use egress_common::family::V4;
use egress_common::port::{SLICE_SHIFT, owns};
use egress_common::slot::{Slot, SlotWord, State, flag};

use super::maps::Maps;
use super::sys;
use crate::dataplane::api::DataPlaneError;
use crate::ownership::Slices;

/// Whether a port of an egress IP is in one of these slices.
pub(super) fn holds(slices: &Slices, egress: IpAddr, port: u16) -> bool {
    let IpAddr::V4(egress) = egress else {
        return false;
    };
    let of_address = slices.get(&egress);
    of_address.is_some_and(|slices| owns(*slices, port))
}

/// Of these slices, those in which a slot has a port, whatever its state: it may be opening, live, or rest.
pub(super) fn occupied(maps: &Maps, slices: &Slices) -> Result<Slices, DataPlaneError> {
    // A program that began by an earlier configuration may be about to admit a flow.
    sys::wait_for_running_programs();
    let slots = maps.records::<Slot<V4>>("SLOTS4")?;
    let mut found = Slices::new();
    for index in 0..slots.len() {
        let Some(word) = slots.word(index).map(SlotWord::from_bits) else {
            break;
        };
        if word.state == State::Free {
            continue;
        }
        let Some(slot) = slots.copy(index) else { break };
        if slot.flags & flag::FORWARDED == 0 && holds(slices, slot.egress.into(), slot.egress_port)
        {
            *found.entry(slot.egress.into()).or_default() |= 1 << (slot.egress_port >> SLICE_SHIFT);
        }
    }
    Ok(found)
}
