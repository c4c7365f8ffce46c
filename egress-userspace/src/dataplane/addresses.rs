//! Which addresses are egress IPs to this server (`EGRESS4`), and when one stops being one.
//!
//! Not versioned: an address becomes an egress IP before the first flow can leave by it, and stays one until its
//! last flow has ended, so that replies find it. In between it is retired: answered for and translated, and used
//! by no new flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use aya::maps::{HashMap, MapData, MapError};
use egress_common::family::V4;
use egress_common::settings::{EgressAddress, egress_flag};
use egress_common::slot::{Slot, SlotWord, State};

use super::interfaces;
use super::maps::Maps;
use super::sys;
use crate::dataplane::api::DataPlaneError;
use crate::desired::Desired;

const NAME: &str = "EGRESS4";
/// Elements of the map; `egress-ebpf/src/maps.rs`.
const CAPACITY: usize = 65_536;

fn open(maps: &Maps) -> Result<HashMap<MapData, V4, EgressAddress>, DataPlaneError> {
    maps.hash(NAME)
}

fn failed(error: MapError) -> DataPlaneError {
    DataPlaneError::failed(format!("changing map {NAME}"), error)
}

fn read(maps: &Maps) -> Result<BTreeMap<Ipv4Addr, u32>, DataPlaneError> {
    open(maps)?
        .iter()
        .map(|entry| entry.map(|(address, value)| (Ipv4Addr::from(address), value.flags)))
        .collect::<Result<_, _>>()
        .map_err(|error| DataPlaneError::failed(format!("reading map {NAME}"), error))
}

/// Addresses that left their pools and still have flows, or ports that rest.
pub(super) fn retired(maps: &Maps) -> Result<BTreeSet<Ipv4Addr>, DataPlaneError> {
    Ok(read(maps)?
        .into_iter()
        .filter(|(_, flags)| flags & egress_flag::RETIRED != 0)
        .map(|(address, _)| address)
        .collect())
}

/// Refuses addresses that are configured on this host: replies to the host's own connections would be taken for
/// an egress IP's and dropped, and what it sends for a forgery.
pub(super) fn check_not_own(desired: &Desired) -> Result<(), DataPlaneError> {
    let own = interfaces::addresses()?;
    let mut wanted = desired
        .pools
        .iter()
        .flat_map(|pool| &pool.candidates)
        .map(|candidate| candidate.address);
    let Some((address, interface)) = wanted.find_map(|address| Some((address, own.get(&address)?)))
    else {
        return Ok(());
    };
    Err(DataPlaneError::Refused {
        reason: format!(
            "egress IP {address} is configured on interface {interface} of this host, which would be cut off"
        ),
        remedy: format!(
            "egress IPs need no configuration on the host: remove {address} from {interface}, or from the pool; nothing was changed"
        ),
    })
}

fn flags(answer: bool) -> u32 {
    if answer { egress_flag::ANSWER } else { 0 }
}

/// Refuses more addresses than fit, before anything is changed.
pub(super) fn check(maps: &Maps, wanted: &BTreeSet<Ipv4Addr>) -> Result<(), DataPlaneError> {
    let retired = read(maps)?
        .keys()
        .filter(|address| !wanted.contains(address))
        .count();
    if wanted.len() + retired > CAPACITY {
        return Err(DataPlaneError::Refused {
            reason: format!(
                "there are {} egress IPs, {retired} more still have flows, and there may be {CAPACITY} together",
                wanted.len()
            ),
            remedy: "nothing was changed; wait until flows have ended, or use fewer addresses"
                .to_owned(),
        });
    }
    Ok(())
}

/// What [`add`] changed: addresses and the flags they had, if they were there.
pub(super) type Added = Vec<(Ipv4Addr, Option<u32>)>;

/// Makes the addresses egress IPs; returns those that were not, or not in the same way. After a failure all is as
/// it was, as far as possible.
pub(super) fn add(
    maps: &Maps,
    wanted: &BTreeSet<Ipv4Addr>,
    answer: bool,
) -> Result<Added, DataPlaneError> {
    let known = read(maps)?;
    let mut map = open(maps)?;
    let mut added = Added::new();
    let value = EgressAddress {
        flags: flags(answer),
    };
    for address in wanted {
        let before = known.get(address).copied();
        if before == Some(value.flags) {
            continue;
        }
        if let Err(error) = map.insert(address.octets(), value, 0) {
            take_out(maps, &added);
            return Err(failed(error));
        }
        added.push((*address, before));
    }
    Ok(added)
}

/// Undoes what [`add`] did, where the configuration that needed it does not come into force.
pub(super) fn take_out(maps: &Maps, added: &Added) {
    let undone = open(maps).and_then(|mut map| {
        for (address, before) in added {
            match before {
                Some(flags) => map.insert(address.octets(), EgressAddress { flags: *flags }, 0),
                None => map.remove(&address.octets()),
            }
            .map_err(failed)?;
        }
        Ok(())
    });
    if let Err(error) = undone {
        tracing::warn!(%error, "addresses that are in no pool remain egress IPs until the next change");
    }
}

/// Retires all other addresses.
pub(super) fn retire(
    maps: &Maps,
    wanted: &BTreeSet<Ipv4Addr>,
    answer: bool,
) -> Result<u64, DataPlaneError> {
    let value = EgressAddress {
        flags: flags(answer) | egress_flag::RETIRED,
    };
    let mut map = open(maps)?;
    let mut changed = 0;
    for (address, known) in read(maps)? {
        if !wanted.contains(&address) && known != value.flags {
            map.insert(address.octets(), value, 0).map_err(failed)?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Forgets retired addresses that no flow leaves by any more; returns them.
pub(super) fn forget_unused(maps: &Maps) -> Result<Vec<Ipv4Addr>, DataPlaneError> {
    let mut unused: BTreeSet<Ipv4Addr> = read(maps)?
        .into_iter()
        .filter(|(_, flags)| flags & egress_flag::RETIRED != 0)
        .map(|(address, _)| address)
        .collect();
    if unused.is_empty() {
        return Ok(Vec::new());
    }
    // A program that chose the address before it was retired may be about to admit a flow.
    sys::wait_for_running_programs();
    let slots = maps.records::<Slot<V4>>("SLOTS4")?;
    for index in 0..slots.len() {
        if unused.is_empty() {
            break;
        }
        let live = slots.word(index).is_some_and(|word| {
            let state = SlotWord::from_bits(word).state;
            state.is_linked() || state == State::Opening
        });
        if live && let Some(slot) = slots.copy(index) {
            unused.remove(&Ipv4Addr::from(slot.egress));
        }
    }
    let mut map = open(maps)?;
    for address in &unused {
        map.remove(&address.octets()).map_err(failed)?;
    }
    Ok(unused.into_iter().collect())
}
