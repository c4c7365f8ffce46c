//! Numbers of this daemon's own that flows carry: none is given again while one does (SAFE-1).
//!
//! A flow that another server translates has that server's number, one that another server sent here is in the realm
//! of that number. Who has forgotten the server does not end them, so the number would make them another's.

use std::collections::BTreeSet;

use egress_common::family::V4;
use egress_common::key::realm;
use egress_common::slot::{Slot, SlotWord, State, flag, server_and_exit};

use super::maps::Maps;
use super::sys;
use crate::dataplane::api::DataPlaneError;

/// Numbers that some flow has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Carried {
    /// Of servers.
    pub(super) peers: BTreeSet<u32>,
    /// Of exits; 0 stands for none.
    pub(super) exits: BTreeSet<u32>,
}

impl Carried {
    /// Asks every flow. IPv6 is never forwarded (FWD-1).
    pub(super) fn read(maps: &Maps) -> Result<Self, DataPlaneError> {
        // A program that has read a number before it was taken out may be about to admit a flow.
        sys::wait_for_running_programs();
        let mut carried = Self::default();
        let slots = maps.records::<Slot<V4>>("SLOTS4")?;
        for index in 0..slots.len() {
            let live = slots.word(index).is_some_and(|word| {
                let state = SlotWord::from_bits(word).state;
                state.is_linked() || state == State::Opening
            });
            if live && let Some(slot) = slots.copy(index) {
                carried.add(&slot);
            }
        }
        Ok(carried)
    }

    fn add(&mut self, slot: &Slot<V4>) {
        self.peers.extend(realm::peer(slot.flow.realm));
        if slot.word().has(flag::FORWARDED) {
            let (server, exit) = server_and_exit(slot.interface);
            self.peers.insert(server);
            self.exits.insert(exit);
        }
    }
}

#[cfg(test)]
mod tests {
    use egress_common::slot::forwarded_by;

    use super::*;

    #[test]
    fn a_flow_carries_the_number_of_its_server_whichever_way_it_goes() {
        let local = Slot::<V4> {
            state: State::TcpEstablished as u8,
            interface: 5,
            ..Slot::default()
        };
        let forwarded = Slot {
            flags: flag::FORWARDED,
            interface: forwarded_by(7, 20_000),
            ..local
        };
        let mut visitor = local;
        visitor.flags = flag::VISITOR;
        visitor.flow.realm = realm::of_peer(9);
        let mut carried = Carried::default();
        for slot in [local, forwarded, visitor] {
            carried.add(&slot);
        }
        assert_eq!(carried.peers, [7, 9].into());
        assert_eq!(carried.exits, [20_000].into());
    }
}
