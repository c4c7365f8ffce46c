//! What flows have carried, slot by slot: two looks a moment apart tell rates.

use aya::Pod;
use egress_common::family::{V4, V6};
use egress_common::slot::{Slot, flag};

use super::flows::{self, Tabled};
use super::maps::Maps;
use crate::dataplane::api::{DataPlaneError, Meter};

/// Visits every slot that holds a flow, live or just over: one that began and ended between two looks is there still,
/// since its port rests.
pub(super) fn visit(maps: &Maps, each: &mut dyn FnMut(Meter)) -> Result<(), DataPlaneError> {
    visit_family::<V4>(maps, false, each)?;
    visit_family::<V6>(maps, true, each)
}

fn visit_family<A: Tabled>(
    maps: &Maps,
    ipv6: bool,
    each: &mut dyn FnMut(Meter),
) -> Result<(), DataPlaneError>
where
    Slot<A>: Pod,
{
    let slots = maps.records::<Slot<A>>(&format!("SLOTS{}", A::SUFFIX))?;
    for index in 0..slots.len() {
        let Some(slot) = flows::linked(&slots, index) else {
            continue;
        };
        let (Some(protocol), word) = (flows::protocol(slot.flow.protocol), slot.word()) else {
            continue;
        };
        each(Meter {
            ipv6,
            slot: index,
            generation: word.generation,
            pool: slot.pool,
            // In place of an egress IP a flow that another server translates has its inside endpoint.
            egress_ip: (!word.has(flag::FORWARDED)).then(|| slot.egress.into()),
            origin: flows::socket(slot.flow.origin, slot.flow.origin_port),
            protocol,
            packets: [slot.packets_out, slot.packets_in],
            bytes: [slot.bytes_out, slot.bytes_in],
        });
    }
    Ok(())
}
