//! Which addresses are egress IPs to this server (`EGRESS4`, `EGRESS6`), and when one stops being one.
//!
//! Not versioned: an address becomes an egress IP before the first flow can leave by it, and stays one until its
//! last flow has ended, so that replies find it. In between it is retired: answered for and translated, and used
//! by no new flow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::Pod;
use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, MapData, MapError};
use egress_common::family::{V4, V6};
use egress_common::settings::{EgressAddress, PrefixV6, Prefixed as _, VERSION_BITS, egress_flag};
use egress_common::slot::{Slot, SlotWord, State};
use ipnet::Ipv6Net;

use super::maps::Maps;
use super::sys;
use super::versions::Versioned as _;
use crate::dataplane::api::DataPlaneError;
use crate::resource::Address;

/// Elements of each of the maps; `egress-ebpf/src/maps.rs`.
const CAPACITY: usize = 65_536;

/// Both maps: addresses of IPv4, and prefixes of IPv6.
struct Known {
    ipv4: HashMap<MapData, V4, EgressAddress>,
    ipv6: LpmTrie<MapData, PrefixV6, EgressAddress>,
}

impl Known {
    fn open(maps: &Maps) -> Result<Self, DataPlaneError> {
        Ok(Self {
            ipv4: maps.hash("EGRESS4")?,
            ipv6: maps.trie("EGRESS6")?,
        })
    }

    fn insert(&mut self, address: &Address, value: EgressAddress) -> Result<(), DataPlaneError> {
        match address {
            Address::V4(address) => self.ipv4.insert(address.octets(), value, 0),
            Address::V6(net) => self.ipv6.insert(&key(net), value, 0),
        }
        .map_err(failed)
    }

    fn remove(&mut self, address: &Address) -> Result<(), DataPlaneError> {
        match address {
            Address::V4(address) => self.ipv4.remove(&address.octets()),
            Address::V6(net) => self.ipv6.remove(&key(net)),
        }
        .map_err(failed)
    }
}

/// The trie's key: of version 0, since these addresses are not versioned.
fn key(net: &Ipv6Net) -> Key<PrefixV6> {
    let length = VERSION_BITS + u32::from(net.prefix_len());
    Key::new(length, V6::data(0, net.network().octets()))
}

fn failed(error: MapError) -> DataPlaneError {
    DataPlaneError::failed("changing the maps of egress IPs", error)
}

/// Egress IPs and what each is to this server.
pub(super) type Addresses = BTreeMap<Address, EgressAddress>;

fn read(maps: &Maps) -> Result<Addresses, DataPlaneError> {
    let known = Known::open(maps)?;
    let single = known
        .ipv4
        .iter()
        .map(|entry| entry.map(|(address, value)| (Address::V4(address.into()), value)));
    let mut found = single
        .collect::<Result<BTreeMap<_, _>, _>>()
        .map_err(reading)?;
    for entry in &known.ipv6 {
        let (key, value) = entry.map_err(reading)?;
        let length = key.prefix_len().saturating_sub(VERSION_BITS);
        if let Some((_, address)) = V6::split(key.data())
            && let Ok(length) = u8::try_from(length)
            && let Ok(net) = Ipv6Net::new(address.into(), length)
        {
            found.insert(Address::V6(net), value);
        }
    }
    Ok(found)
}

fn reading(error: MapError) -> DataPlaneError {
    DataPlaneError::failed("reading the maps of egress IPs", error)
}

/// Addresses that left their pools and still have flows, or ports that rest.
pub(super) fn retired(maps: &Maps) -> Result<BTreeSet<Address>, DataPlaneError> {
    Ok(read(maps)?
        .into_iter()
        .filter(|(_, known)| known.flags & egress_flag::RETIRED != 0)
        .map(|(address, _)| address)
        .collect())
}

/// The egress IPs and ranges that new flows may have, here or at other servers.
pub(super) fn in_use(maps: &Maps) -> Result<Vec<Address>, DataPlaneError> {
    Ok(read(maps)?
        .into_iter()
        .filter(|(_, known)| known.flags & egress_flag::RETIRED == 0)
        .map(|(address, _)| address)
        .collect())
}

/// What the addresses are to this server: those of its own pools, and those that are other servers', in part or as
/// a whole. Of IPv6 ranges these have numbers.
pub(super) fn wanted(
    own: impl IntoIterator<Item = Address>,
    answer: bool,
    shared: &BTreeSet<Address>,
    ranges: &BTreeMap<Address, u32>,
) -> Addresses {
    let flags = if answer { egress_flag::ANSWER } else { 0 };
    let mut all: Addresses = own
        .into_iter()
        .map(|address| (address, EgressAddress { flags, owner: 0 }))
        .collect();
    for address in shared {
        all.entry(*address).or_default().flags |= egress_flag::SHARED;
    }
    for (range, owner) in ranges {
        let value = all.entry(*range).or_default();
        value.flags |= egress_flag::SHARED;
        value.owner = *owner;
    }
    all
}

/// Refuses more addresses than fit, before anything is changed.
pub(super) fn check(maps: &Maps, wanted: &Addresses) -> Result<(), DataPlaneError> {
    let retired = read(maps)?
        .keys()
        .filter(|address| !wanted.contains_key(address))
        .count();
    // Together, though each family has its own map: nobody has so many.
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

/// What [`add`] changed: addresses and what they were, if they were there.
pub(super) type Added = Vec<(Address, Option<EgressAddress>)>;

/// Makes the addresses egress IPs; returns those that were not, or not in the same way. After a failure all is as
/// it was, as far as possible.
pub(super) fn add(maps: &Maps, wanted: &Addresses) -> Result<Added, DataPlaneError> {
    let known = read(maps)?;
    let mut map = Known::open(maps)?;
    let mut added = Added::new();
    for (address, value) in wanted {
        let before = known.get(address).copied();
        if before == Some(*value) {
            continue;
        }
        if let Err(error) = map.insert(address, *value) {
            take_out(maps, &added);
            return Err(error);
        }
        added.push((*address, before));
    }
    Ok(added)
}

/// Undoes what [`add`] did, where the configuration that needed it does not come into force.
pub(super) fn take_out(maps: &Maps, added: &Added) {
    let undone = Known::open(maps).and_then(|mut map| {
        for (address, before) in added {
            match before {
                Some(value) => map.insert(address, *value),
                None => map.remove(address),
            }?;
        }
        Ok(())
    });
    if let Err(error) = undone {
        tracing::warn!(%error, "addresses that are in no pool remain egress IPs until the next change");
    }
}

/// Retires all other addresses. What was answered for still is, if anything is at all.
pub(super) fn retire(maps: &Maps, wanted: &Addresses, answer: bool) -> Result<u64, DataPlaneError> {
    let answer = if answer { egress_flag::ANSWER } else { 0 };
    let mut map = Known::open(maps)?;
    let mut changed = 0;
    for (address, known) in read(maps)? {
        let retired = EgressAddress {
            flags: known.flags & answer | egress_flag::RETIRED,
            owner: 0,
        };
        if !wanted.contains_key(&address) && known != retired {
            map.insert(&address, retired)?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Forgets retired addresses that no flow leaves by any more; returns them.
pub(super) fn forget_unused(maps: &Maps) -> Result<Vec<Address>, DataPlaneError> {
    let known = read(maps)?;
    let mut unused: BTreeSet<Address> = known
        .iter()
        .filter(|(_, known)| known.flags & egress_flag::RETIRED != 0)
        .map(|(address, _)| *address)
        .collect();
    if unused.is_empty() {
        return Ok(Vec::new());
    }
    let ranges = Ranges::of(known.into_keys());
    // A program that chose the address before it was retired may be about to admit a flow.
    sys::wait_for_running_programs();
    forget_used::<V4>(maps, "SLOTS4", &ranges, &mut unused)?;
    forget_used::<V6>(maps, "SLOTS6", &ranges, &mut unused)?;
    let mut map = Known::open(maps)?;
    for address in &unused {
        map.remove(address)?;
    }
    Ok(unused.into_iter().collect())
}

/// The known addresses, to be found as the data plane finds them: by the longest match. Where servers share a range,
/// what this one had before all of them were listed contains what it has now.
struct Ranges {
    known: BTreeSet<Address>,
    /// The lengths of IPv6 ranges that there are.
    lengths: BTreeSet<u8>,
}

impl Ranges {
    fn of(known: impl IntoIterator<Item = Address>) -> Self {
        let known: BTreeSet<Address> = known.into_iter().collect();
        let lengths = known
            .iter()
            .filter_map(|address| match address {
                Address::V4(_) => None,
                Address::V6(net) => Some(net.prefix_len()),
            })
            .collect();
        Self { known, lengths }
    }

    /// What an egress IP is one of.
    fn find(&self, egress: IpAddr) -> Option<Address> {
        match egress {
            IpAddr::V4(address) => self.known.get(&Address::V4(address)).copied(),
            IpAddr::V6(address) => self.lengths.iter().rev().find_map(|length| {
                let net = Ipv6Net::new(address, *length).ok()?.trunc();
                self.known.get(&Address::V6(net)).copied()
            }),
        }
    }
}

/// Takes out of `unused` what a flow of this family leaves by.
fn forget_used<A>(
    maps: &Maps,
    name: &str,
    ranges: &Ranges,
    unused: &mut BTreeSet<Address>,
) -> Result<(), DataPlaneError>
where
    A: Copy + Into<IpAddr>,
    Slot<A>: Pod,
{
    let slots = maps.records::<Slot<A>>(name)?;
    for index in 0..slots.len() {
        if unused.is_empty() {
            break;
        }
        let live = slots.word(index).is_some_and(|word| {
            let state = SlotWord::from_bits(word).state;
            state.is_linked() || state == State::Opening
        });
        if live
            && let Some(slot) = slots.copy(index)
            && let Some(address) = ranges.find(slot.egress.into())
        {
            unused.remove(&address);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_longest_range_that_has_it() {
        let ranges = ["2001:db8::/64", "2001:db8:0:0:1::/80", "192.0.2.1"];
        let ranges = Ranges::of(ranges.map(|range| range.parse().unwrap()));
        let find = |address: &str| {
            let found = ranges.find(address.parse().unwrap());
            found.map(|address| address.to_string())
        };
        assert_eq!(
            find("2001:db8::1:2:3:4").unwrap(),
            "2001:db8:0:0:1::/80",
            "the part in use"
        );
        assert_eq!(find("2001:db8::2:2:3:4").unwrap(), "2001:db8::/64");
        assert_eq!(find("2001:db8:0:1::1"), None);
        assert_eq!(find("192.0.2.1").unwrap(), "192.0.2.1");
        assert_eq!(find("192.0.2.2"), None);
    }
}
