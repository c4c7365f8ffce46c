//! What the maps say: flows, counters, reasons, and whether all of it agrees.

use aya::Pod;
use egress_common::count::Count;
use egress_common::free;
use egress_common::key::{FlowKey, OriginKey, ReverseKey};
use egress_common::reason::{Counter, Reason, of_effort};
use egress_common::slot::{Slot, State, flag};
use egress_common::usage::Area;

use super::Plane;
use crate::family::Family;
use crate::index::HASH_KEY;
use crate::packet::Endpoint;

impl<A: Family> Plane<A>
where
    Slot<A>: Pod,
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    /// Packets counted under a reason.
    pub(crate) fn reason(&self, reason: Reason) -> u64 {
        let counters = self.reasons.get(&(reason as u32), 0).unwrap();
        counters.iter().map(|counter| counter.packets).sum()
    }

    /// Flows that got a port, and the ports they tried, by [`egress_common::port::effort`] (OBS-3).
    pub(crate) fn efforts(&self) -> Vec<(u64, u64)> {
        (0..egress_common::port::EFFORTS)
            .map(|group| {
                let counters = self.reasons.get(&of_effort(group), 0).unwrap();
                let sum = |of: fn(&Counter) -> u64| counters.iter().map(of).sum();
                (sum(|one| one.packets), sum(|one| one.bytes))
            })
            .collect()
    }

    /// Packets counted under every reason.
    pub(crate) fn all_reasons(&self) -> Vec<(Reason, u64)> {
        Reason::ALL
            .iter()
            .map(|reason| (*reason, self.reason(*reason)))
            .filter(|(_, n)| *n != 0)
            .collect()
    }

    /// The counter of an egress IP, an origin and a protocol.
    pub(crate) fn count(&self, egress: A, origin: Endpoint<A>, protocol: u8) -> Option<Count<A>> {
        let key = OriginKey {
            egress,
            origin: origin.0,
            origin_port: origin.1,
            protocol,
            pad: 0,
        };
        let reference = self.origins.get(&key, 0).ok()?;
        let count = self.counts.get(&reference.index, 0).unwrap();
        assert_eq!((count.key, count.generation), (key, reference.generation));
        Some(count)
    }

    /// Connections of an egress IP to an origin.
    pub(crate) fn active(&self, egress: A, origin: Endpoint<A>, protocol: u8) -> u32 {
        self.count(egress, origin, protocol)
            .map_or(0, |count| count.active)
    }

    /// Connections in all counters.
    pub(crate) fn all_active(&self) -> u32 {
        self.counts.iter().map(|count| count.unwrap().active).sum()
    }

    /// The slot number of a flow.
    pub(crate) fn index(
        &self,
        inside: Endpoint<A>,
        origin: Endpoint<A>,
        protocol: u8,
    ) -> Option<u32> {
        self.index_in(0, inside, origin, protocol)
    }

    /// The slot number of a flow of a realm.
    pub(crate) fn index_in(
        &self,
        realm: u16,
        inside: Endpoint<A>,
        origin: Endpoint<A>,
        protocol: u8,
    ) -> Option<u32> {
        let key = FlowKey {
            inside: inside.0,
            origin: origin.0,
            inside_port: inside.1,
            origin_port: origin.1,
            protocol,
            realm,
            ..FlowKey::default()
        };
        self.flow(&key)
    }

    /// The slot number of a flow.
    pub(crate) fn flow(&self, key: &FlowKey<A>) -> Option<u32> {
        self.flows.find(key.hash(&HASH_KEY), |slot| {
            self.slots.get(&slot, 0).unwrap().flow == *key
        })
    }

    /// The slot number of a flow, as its origin names it.
    pub(crate) fn holder(&self, key: &ReverseKey<A>) -> Option<u32> {
        self.reverse.find(key.hash(&HASH_KEY), |slot| {
            self.slots.get(&slot, 0).unwrap().reverse() == *key
        })
    }

    /// The record of a flow.
    pub(crate) fn slot(
        &self,
        inside: Endpoint<A>,
        origin: Endpoint<A>,
        protocol: u8,
    ) -> Option<Slot<A>> {
        let index = self.index(inside, origin, protocol)?;
        Some(self.slots.get(&index, 0).unwrap())
    }

    /// The state of a flow.
    pub(crate) fn state(
        &self,
        inside: Endpoint<A>,
        origin: Endpoint<A>,
        protocol: u8,
    ) -> Option<State> {
        self.slot(inside, origin, protocol)
            .map(|slot| slot.word().state)
    }

    /// Slots on the free lists, counted one by one.
    pub(crate) fn free(&self) -> usize {
        let mut seen = std::collections::HashSet::new();
        for list in 0..self.world.lists {
            let mut next = self.free_slots.get(&list, 0).unwrap().first;
            while next != free::NONE {
                assert!(seen.insert(next), "slot {next} is on a list twice");
                next = self.slots.get(&next, 0).unwrap().last_seen.0;
            }
        }
        seen.len()
    }

    /// Whether everything agrees: counters with slots, indexes with slots, free lists with states.
    #[track_caller]
    pub(crate) fn consistent(&self) {
        let mut counted = std::collections::HashMap::new();
        let (mut linked, mut owners, mut free) = (0, 0, 0);
        for (index, slot) in self.slots.iter().enumerate() {
            let slot = slot.unwrap();
            let state = slot.word().state;
            let index = index as u32;
            if state.is_counted() {
                *counted.entry(slot.counted()).or_insert(0u32) += 1;
            }
            if state.is_linked() {
                linked += 1;
                assert_eq!(self.holder(&slot.reverse()), Some(index), "{slot:?}");
                if !slot.word().has(flag::ORPHAN) {
                    owners += 1;
                    assert_eq!(self.flow(&slot.flow), Some(index), "{slot:?}");
                }
            }
            free += usize::from(state == State::Free);
        }
        assert_eq!(self.reverse.len(), linked, "entries of no slot");
        assert_eq!(self.flows.len(), owners, "entries of no flow");
        self.reverse.at_rest();
        self.flows.at_rest();
        assert_eq!(free, self.free(), "free slots");
        let known: std::collections::HashMap<OriginKey<A>, u32> = self
            .origins
            .iter()
            .map(|entry| {
                let (key, reference) = entry.unwrap();
                (key, self.counts.get(&reference.index, 0).unwrap().active)
            })
            .filter(|(_, active)| *active != 0)
            .collect();
        assert_eq!(known, counted, "counters against slots");
        for count in self.counts.iter().map(Result::unwrap) {
            if count.key.egress == A::default() {
                // Forwarded to a server: of no origin.
                continue;
            }
            let level = Area::from_bits(count.usage.area).level;
            assert_eq!(u32::from(level), count.active, "{count:?}");
        }
    }
}
