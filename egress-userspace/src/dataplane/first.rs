//! The contents of maps that were just made: who made them, the secret, and the free lists.

use std::fs::File;
use std::io::{self, Read as _};

use aya::Pod;
use egress_common::clock::Moment;
use egress_common::count::Count;
use egress_common::family::{Address, V4, V6};
use egress_common::free::{FreeList, NONE, home};
use egress_common::index::HashKey;
use egress_common::layout::Layout;
use egress_common::siphash::Secret;
use egress_common::slot::Slot;

use super::clock;
use super::maps::Maps;
use crate::dataplane::api::DataPlaneError;

/// Fills new maps. Nothing is attached yet, so nobody looks at them meanwhile.
pub(super) fn fill(maps: &Maps, layout: &Layout) -> Result<(), DataPlaneError> {
    tables::<V4>(maps, layout, "4")?;
    tables::<V6>(maps, layout, "6")?;
    let [k0, k1] = random()?;
    maps.set("SECRET", 0, Secret { k0, k1 })?;
    let words = random::<10>()?.map(|number| number as u32);
    maps.set("HASH_KEY", 0, HashKey { words })?;
    clock::begin(maps)?;
    maps.set("LAYOUT", 0, *layout)
}

/// Fills the tables of a family, whose maps' names end in `suffix`.
fn tables<A: Address>(maps: &Maps, layout: &Layout, suffix: &str) -> Result<(), DataPlaneError>
where
    Slot<A>: Pod,
    Count<A>: Pod,
{
    let name = |map: &str| format!("{map}{suffix}");
    let mut slots = maps.records_to_fill::<Slot<A>>(&name("SLOTS"))?;
    for index in 0..slots.len() {
        let next = next_of(index, layout.lists, layout.max_flows);
        slots.put(
            index,
            &Slot {
                // As the data plane has it: the field is free in a slot that nobody has seen.
                last_seen: Moment(next),
                ..Slot::default()
            },
        );
    }
    let mut counts = maps.records_to_fill::<Count<A>>(&name("COUNTS"))?;
    for index in 0..counts.len() {
        let next = next_of(index, layout.lists, layout.max_origins);
        counts.put(
            index,
            &Count {
                next,
                ..Count::default()
            },
        );
    }
    maps.set_range(
        &name("FREE_SLOTS"),
        0,
        &lists(layout.lists, layout.max_flows),
    )?;
    maps.set_range(
        &name("FREE_COUNTS"),
        0,
        &lists(layout.lists, layout.max_origins),
    )
}

/// The record after `index` on a full list: every list holds the records at home there, in ascending order.
fn next_of(index: u32, lists: u32, records: u32) -> u32 {
    match index.checked_add(lists) {
        Some(next) if next < records => next,
        _ => NONE,
    }
}

/// The heads of full lists.
fn lists(lists: u32, records: u32) -> Vec<FreeList> {
    (0..lists)
        .map(|list| {
            debug_assert_eq!(home(list, lists), list);
            FreeList {
                first: if list < records { list } else { NONE },
                tag: 0,
                // How many of 0..records leave the remainder `list`.
                available: u64::from(records / lists + u32::from(list < records % lists)),
            }
        })
        .collect()
}

/// Random numbers nobody can guess.
pub(super) fn random<const N: usize>() -> Result<[u64; N], DataPlaneError> {
    let read = || -> io::Result<[u64; N]> {
        let mut source = File::open("/dev/urandom")?;
        let mut numbers = [0; N];
        for number in &mut numbers {
            let mut bytes = [0; 8];
            source.read_exact(&mut bytes)?;
            *number = u64::from_ne_bytes(bytes);
        }
        Ok(numbers)
    };
    read().map_err(|error| DataPlaneError::failed("drawing random numbers", error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_record_is_on_exactly_its_home_list(lists_wanted in 1u32..70, records in 1u32..500) {
            let mut seen = vec![0; records as usize];
            for (list, head) in lists(lists_wanted, records).iter().enumerate() {
                let mut length = 0;
                let mut index = head.first;
                while index != NONE {
                    prop_assert_eq!(home(index, lists_wanted) as usize, list);
                    seen[index as usize] += 1;
                    length += 1;
                    index = next_of(index, lists_wanted, records);
                }
                prop_assert_eq!(head.available, length);
            }
            prop_assert!(seen.iter().all(|times| *times == 1));
        }
    }
}
