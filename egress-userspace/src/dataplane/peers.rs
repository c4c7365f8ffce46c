//! The other servers and what is theirs, as the maps hold it (FWD-5, FWD-6).
//!
//! Not versioned: who owns a reply is no part of what a packet from inside is admitted by. A server keeps its number
//! as long as it keeps its address, and what points to a number is written after it and taken out before it. So a
//! reply goes to its owner, or to who owned it a moment ago, who drops it. A number that some flow carries still is
//! given to nobody else (`carried.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aya::maps::MapError;
use egress_common::family::V4;
use egress_common::peer::{
    MAX_PEERS, Owners, Peer, PeerNumber, Traffic, Tunnel, Underlay, mapped, unmapped,
};
use egress_common::placement;

use super::carried::Carried;
use super::exits::ExitNumbers;
use super::forwards;
use super::maps::Maps;
use crate::dataplane::api::{DataPlaneError, PeerStatus};
use crate::desired::DesiredTunnel;
use crate::resource::Address;

/// The numbers of servers, by their addresses.
pub(super) type Numbers = BTreeMap<Underlay, u32>;

/// This server's end: its interface and the uplink at which packets arrive; `None` where there is no tunnel.
pub(super) fn end(maps: &Maps) -> Result<Option<Tunnel>, DataPlaneError> {
    let tunnel: Tunnel = maps.only("TUNNEL")?;
    Ok((tunnel.interface != 0).then_some(tunnel))
}

/// Notes where this server's end is; true if that is new.
pub(super) fn set_end(maps: &Maps, tunnel: Tunnel) -> Result<bool, DataPlaneError> {
    if maps.only::<Tunnel>("TUNNEL")? == tunnel {
        return Ok(false);
    }
    maps.set("TUNNEL", 0, tunnel)?;
    Ok(true)
}

/// Enters the servers and who owns which slices; returns their numbers, and how many entries changed. What is not
/// wanted any more stays until [`forget`].
pub(super) fn enter(
    maps: &Maps,
    tunnel: &DesiredTunnel,
    exits: &ExitNumbers,
) -> Result<(Numbers, u64), DataPlaneError> {
    let known = numbers(maps)?;
    let wanted: Vec<Underlay> = tunnel
        .peers
        .iter()
        .map(|peer| underlay(peer.address))
        .collect();
    let carried = if wanted.iter().all(|address| known.contains_key(address)) {
        Carried::default()
    } else {
        Carried::read(maps)?
    };
    let numbers =
        assign(&known, &carried.peers, &wanted).ok_or_else(|| DataPlaneError::Refused {
            reason: format!(
                "there are {} other servers and flows of {} that are none any more, and there may be {} together",
                wanted.len(),
                carried.peers.difference(&known.values().copied().collect()).count(),
                MAX_PEERS - 1
            ),
            remedy:
                "nothing was changed; remove some, or wait a moment if many were exchanged for others"
                    .to_owned(),
        })?;
    let mut changed = 0;
    let mut by_address = maps.hash::<Underlay, PeerNumber>("PEER_NUMBERS")?;
    for (address, &number) in &numbers {
        if known.get(address) != Some(&number) {
            maps.set("PEERS", number, Peer { address: *address })?;
            by_address
                .insert(address, PeerNumber { number }, 0)
                .map_err(failed("PEER_NUMBERS"))?;
            changed += 1;
        }
    }
    let owners = owners(tunnel, &numbers);
    let before = read_owners(maps)?;
    let mut slices = maps.hash::<V4, Owners>("SLICES4")?;
    for (address, owners) in &owners {
        if before.get(address) != Some(owners) {
            slices
                .insert(address, owners, 0)
                .map_err(failed("SLICES4"))?;
            changed += 1;
        }
    }
    changed += forwards::enter(maps, tunnel, &numbers, exits)?;
    Ok((numbers, changed))
}

/// Takes out what is not wanted any more; returns how many entries.
pub(super) fn forget(
    maps: &Maps,
    tunnel: Option<&DesiredTunnel>,
    exits: &ExitNumbers,
) -> Result<u64, DataPlaneError> {
    let known = numbers(maps)?;
    let (mut addresses, mut owned) = (BTreeSet::new(), BTreeSet::new());
    for peer in tunnel.into_iter().flat_map(|tunnel| &tunnel.peers) {
        addresses.insert(underlay(peer.address));
        owned.extend(peer.slices.iter().map(|(address, _)| address.octets()));
    }
    let mut removed = 0;
    removed += forwards::forget(maps, tunnel, exits)?;
    let mut slices = maps.hash::<V4, Owners>("SLICES4")?;
    for address in read_owners(maps)?.keys() {
        if !owned.contains(address) {
            slices.remove(address).map_err(failed("SLICES4"))?;
            removed += 1;
        }
    }
    let mut by_address = maps.hash::<Underlay, PeerNumber>("PEER_NUMBERS")?;
    for (address, number) in &known {
        if !addresses.contains(address) {
            by_address.remove(address).map_err(failed("PEER_NUMBERS"))?;
            maps.set("PEERS", *number, Peer::default())?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What is sent to and comes from each server.
pub(super) fn status(maps: &Maps) -> Result<Vec<PeerStatus>, DataPlaneError> {
    let traffic = maps.per_cpu::<Traffic>("PEER_TRAFFIC")?;
    let mut found = Vec::new();
    for (address, number) in numbers(maps)? {
        let all = traffic.get(&number, 0).map_err(failed("PEER_TRAFFIC"))?;
        let sum = |part: fn(&Traffic) -> u64| all.iter().map(part).sum();
        found.push(PeerStatus {
            address: address_of(address),
            sent_packets: sum(|one| one.sent_packets),
            sent_bytes: sum(|one| one.sent_bytes),
            received_packets: sum(|one| one.received_packets),
            received_bytes: sum(|one| one.received_bytes),
        });
    }
    Ok(found)
}

/// The ranges of IPv6 that are other servers', with these servers' numbers.
pub(super) fn ranges(tunnel: &DesiredTunnel, numbers: &Numbers) -> BTreeMap<Address, u32> {
    let of = |address| numbers.get(&underlay(address)).copied().unwrap_or(0);
    tunnel
        .peers
        .iter()
        .flat_map(|peer| {
            let number = of(peer.address);
            peer.ranges
                .iter()
                .map(move |range| (Address::V6(*range), number))
        })
        .collect()
}

/// The IPv4 egress IPs that are other servers', in part or as a whole.
pub(super) fn shared(tunnel: &DesiredTunnel) -> BTreeSet<Address> {
    let all = tunnel.peers.iter().flat_map(|peer| &peer.slices);
    all.map(|(address, _)| Address::V4(*address)).collect()
}

/// Gives numbers to servers: those they have, else such as neither a server nor a flow has; `None` if there are not
/// enough.
fn assign(known: &Numbers, carried: &BTreeSet<u32>, wanted: &[Underlay]) -> Option<Numbers> {
    let taken: BTreeSet<u32> = known.values().copied().collect();
    let is_free = |number: &u32| !taken.contains(number) && !carried.contains(number);
    let mut free = (1..MAX_PEERS).filter(is_free);
    let mut numbers = Numbers::new();
    for address in wanted {
        let number = match known.get(address) {
            Some(number) => *number,
            None => free.next()?,
        };
        numbers.insert(*address, number);
    }
    Some(numbers)
}

/// Who owns the slices of each IPv4 egress IP that is not this server's alone.
fn owners(tunnel: &DesiredTunnel, numbers: &Numbers) -> BTreeMap<V4, Owners> {
    let mut all: BTreeMap<V4, Owners> = BTreeMap::new();
    for peer in &tunnel.peers {
        let number = numbers.get(&underlay(peer.address)).copied().unwrap_or(0);
        for (address, slices) in &peer.slices {
            let owners = all.entry(address.octets()).or_default();
            for slice in placement::slices(*slices) {
                if let Some(owner) = owners.peers.get_mut(slice as usize) {
                    // Numbers are below MAX_PEERS.
                    *owner = u16::try_from(number).unwrap_or(0);
                }
            }
        }
    }
    all
}

pub(super) fn numbers(maps: &Maps) -> Result<Numbers, DataPlaneError> {
    let map = maps.hash::<Underlay, PeerNumber>("PEER_NUMBERS")?;
    map.iter()
        .map(|entry| entry.map(|(address, number)| (address, number.number)))
        .collect::<Result<_, _>>()
        .map_err(failed("PEER_NUMBERS"))
}

fn read_owners(maps: &Maps) -> Result<BTreeMap<V4, Owners>, DataPlaneError> {
    let map = maps.hash::<V4, Owners>("SLICES4")?;
    map.iter()
        .collect::<Result<_, _>>()
        .map_err(failed("SLICES4"))
}

/// An address as the maps hold it.
pub(super) fn underlay(address: IpAddr) -> Underlay {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

pub(super) fn address_of(underlay: Underlay) -> IpAddr {
    unmapped(&underlay).map_or_else(|| underlay.into(), IpAddr::from)
}

fn failed(name: &'static str) -> impl Fn(MapError) -> DataPlaneError {
    move |error| DataPlaneError::failed(format!("using map {name}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::DesiredPeer;

    fn at(last: u8) -> Underlay {
        underlay(IpAddr::from([10, 9, 0, last]))
    }

    #[test]
    fn a_server_keeps_its_number_while_it_is_known() {
        let free = BTreeSet::new();
        let first = assign(&Numbers::new(), &free, &[at(1), at(2)]).unwrap();
        assert_eq!(first, [(at(1), 1), (at(2), 2)].into());
        // One left and one came before it was forgotten.
        let second = assign(&first, &free, &[at(3), at(2)]).unwrap();
        assert_eq!(second, [(at(2), 2), (at(3), 3)].into());
        let third = assign(&second, &free, &[at(4)]).unwrap();
        assert_eq!(third, [(at(4), 1)].into());
        // SAFE-1: as long as flows have the number of one that left, it is nobody's.
        let third = assign(&second, &[1, 4].into(), &[at(4), at(5)]).unwrap();
        assert_eq!(third, [(at(4), 5), (at(5), 6)].into());
        let all: Vec<Underlay> = (0..MAX_PEERS)
            .map(|n| underlay(IpAddr::from(n.to_be_bytes())))
            .collect();
        assert!(assign(&Numbers::new(), &free, &all[1..]).is_some());
        assert!(assign(&Numbers::new(), &free, &all).is_none());
        assert!(assign(&Numbers::new(), &[7].into(), &all[1..]).is_none());
    }

    #[test]
    fn slices_become_the_numbers_of_their_owners() {
        let peer = |last: u8, slices| DesiredPeer {
            name: format!("s{last}"),
            address: [10, 9, 0, last].into(),
            slices: vec![([192, 0, 2, 10].into(), slices)],
            ranges: Vec::new(),
        };
        let tunnel = DesiredTunnel {
            own: [10, 9, 0, 1].into(),
            device: "egress0".into(),
            port: 4789,
            peers: vec![peer(2, 1 << 1 | 1 << 31), peer(3, 1 << 5)],
            pools: Vec::new(),
            exits: Vec::new(),
        };
        let numbers = [(at(2), 7), (at(3), 9)].into();
        let found = owners(&tunnel, &numbers);
        let peers = found[&[192, 0, 2, 10]].peers;
        let mut expected = [0; 32];
        (expected[1], expected[31], expected[5]) = (7, 7, 9);
        assert_eq!(peers, expected);
    }
}
