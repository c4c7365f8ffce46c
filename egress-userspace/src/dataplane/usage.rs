//! Reads what counts keep of their use, while the data plane goes on (OBS-1).

use std::mem::offset_of;

use aya::Pod;
use egress_common::count::{Count, Tally};
use egress_common::family::{V4, V6};
use egress_common::key::OriginKey;
use egress_common::usage::Usage;

use super::clock;
use super::flows::{Tabled, counted, name, now, protocol, socket};
use super::maps::Maps;
use crate::dataplane::api::{DataPlaneError, UsageLook, UsageRecord};

/// All counts, cheaply enough for every second; among them, for a moment, some that have just been given up.
pub(super) fn look(maps: &Maps) -> Result<UsageLook, DataPlaneError> {
    let clock = clock::told(maps)?;
    // What changes while it is read is a moment ahead of this.
    let now = now();
    let mut counts = Vec::new();
    family::<V4>(maps, &mut counts)?;
    family::<V6>(maps, &mut counts)?;
    Ok(UsageLook { clock, now, counts })
}

/// Does without the index: it would take a system call for each.
fn family<A: Tabled>(maps: &Maps, found: &mut Vec<UsageRecord>) -> Result<(), DataPlaneError>
where
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    let counts = maps.records::<Count<A>>(&name::<A>("COUNTS"))?;
    let first = found.len();
    for index in 0..counts.len() {
        // Most are free.
        let key = counts.word_at(index, offset_of!(Count<A>, key));
        if key.is_none_or(|word| word == 0) {
            continue;
        }
        // Free records have no key, and those astray no protocol.
        let count = counted(&counts, index);
        found.extend(count.and_then(|count| record(index, &count)));
    }
    // Who begins a period writes down the last one a moment later. By now that is done, where it was under way.
    for record in found.iter_mut().skip(first) {
        let Ok(index) = u32::try_from(record.counter >> 32) else {
            continue;
        };
        let usage = offset_of!(Count<A>, usage);
        let area = counts.word_at(index, usage + offset_of!(Usage, last_area));
        let peak = counts.word_at(index, usage + offset_of!(Usage, last_peak));
        let now = counts.word(index).map(Tally::from_bits);
        if let (Some(area), Some(peak), Some(now)) = (area, peak, now)
            && u64::from(now.generation) == record.counter & u64::from(u32::MAX)
        {
            record.usage.last_area = area;
            record.usage.last_peak = peak;
        }
    }
    Ok(())
}

fn record<A: Tabled>(index: u32, count: &Count<A>) -> Option<UsageRecord> {
    if count.key.egress == A::default() {
        // What is counted of forwarded flows is their server's connections, not an origin's.
        return None;
    }
    Some(UsageRecord {
        egress_ip: count.key.egress.into(),
        origin: socket(count.key.origin, count.key.origin_port),
        protocol: protocol(count.key.protocol)?,
        counter: u64::from(index) << 32 | u64::from(count.generation),
        capacity: count.capacity.into(),
        usage: count.usage,
    })
}
