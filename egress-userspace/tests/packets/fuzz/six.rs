//! IPv6 in the fuzzed data plane: how it is configured, and whether its counts are right.

use std::collections::HashMap;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use egress_common::clock::Moment;
use egress_common::count::Count;
use egress_common::family::V6;
use egress_common::free::{self, FreeList};
use egress_common::port::ALL_SLICES;
use egress_common::settings::{
    Candidate, EgressAddress, MAX_POOLS, Pool, Prefixed as _, Selected, VERSION_BITS, egress_flag,
};
use egress_common::slot::{Slot, State};

use crate::harness::DataPlane;
use crate::world::{POOL, ZONE};

/// Sources of the bound zone: a /48.
pub(crate) const BOUND: V6 = [0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// The pool's ranges: a whole /64, and one of three addresses.
pub(crate) const RANGES: [(V6, u32); 2] = [
    (
        [0x20, 1, 0x0d, 0xb8, 0, 0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        64,
    ),
    (
        [0x20, 1, 0x0d, 0xb8, 0, 0xaa, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        126,
    ),
];
/// Connections per origin of each address: a small range is full soon.
const CAPACITY: u32 = 40;

/// Whether an address lies in a prefix.
pub(crate) fn within(address: V6, (prefix, length): (V6, u32)) -> bool {
    let differing = u128::from_be_bytes(address) ^ u128::from_be_bytes(prefix);
    length == 0 || differing >> (128 - length) == 0
}

/// Fills the tables and binds [`BOUND`] to the pool's ranges.
pub(crate) fn configure(plane: &mut DataPlane) {
    let (flows, origins) = (plane.world.max_flows, plane.world.max_origins);
    list(plane, "SLOTS6", "FREE_SLOTS6", flows, |next| Slot::<V6> {
        last_seen: Moment(next),
        ..Slot::default()
    });
    list(plane, "COUNTS6", "FREE_COUNTS6", origins, |next| Count::<
        V6,
    > {
        next,
        ..Count::default()
    });
    let source = Key::new(VERSION_BITS + 48, V6::data(0, BOUND));
    plane.prefix("SOURCES6", &source, Selected { zone: ZONE });
    for (nth, (address, length)) in RANGES.into_iter().enumerate() {
        let candidate = Candidate::<V6> {
            address,
            slices: ALL_SLICES,
            capacity: CAPACITY,
            flags: 0,
            length,
        };
        plane.array("CANDIDATES6", nth as u32, candidate);
        let key = Key::new(VERSION_BITS + length, V6::data(0, address));
        let flags = egress_flag::ANSWER;
        plane.prefix("EGRESS6", &key, EgressAddress { flags, owner: 0 });
    }
    let pools = plane.elements::<Pool>("POOLS");
    let pool = Pool {
        first6: 0,
        count6: RANGES.len() as u32,
        ..pools[POOL as usize]
    };
    assert!(POOL < MAX_POOLS && pool.count > 0);
    plane.array("POOLS", POOL, pool);
}

/// Puts all elements of an array on their free lists.
fn list<T: Pod>(
    plane: &mut DataPlane,
    elements: &str,
    heads: &str,
    total: u32,
    linked_to: impl Fn(u32) -> T,
) {
    let lists = plane.world.lists;
    for list in 0..lists {
        let mut head = FreeList {
            first: free::NONE,
            tag: 0,
            available: 0,
        };
        let members = (0..total).filter(|index| free::home(*index, lists) == list);
        for index in members {
            plane.array(elements, index, linked_to(head.first));
            head.first = index;
            head.available += 1;
        }
        plane.array(heads, list, head);
    }
}

/// Connections in all counters, which agree with the slots.
pub(crate) fn counted(plane: &DataPlane) -> u32 {
    let mut of_slots = HashMap::new();
    for slot in plane.elements::<Slot<V6>>("SLOTS6") {
        if slot.word().state.is_counted() {
            *of_slots.entry(slot.counted()).or_insert(0) += 1;
        }
    }
    let counts = plane.elements::<Count<V6>>("COUNTS6");
    let active = counts.iter().filter(|count| count.active != 0);
    let of_counts: HashMap<_, u32> = active.map(|count| (count.key, count.active)).collect();
    assert_eq!(of_counts, of_slots, "counters against slots");
    of_counts.values().sum()
}

/// Whether nothing is left of any flow.
pub(crate) fn is_idle(plane: &DataPlane) -> bool {
    let slots = plane.elements::<Slot<V6>>("SLOTS6");
    let lists = plane.elements::<FreeList>("FREE_SLOTS6");
    slots.iter().all(|slot| slot.word().state == State::Free)
        && lists.iter().map(|list| list.available).sum::<u64>() == slots.len() as u64
        && plane
            .elements::<Count<V6>>("COUNTS6")
            .iter()
            .all(|count| count.active == 0)
}
