//! Where new connections go whose pool other servers own, as the maps hold it (FWD-2).
//!
//! Not versioned, like everything about other servers: what is wanted is entered before a configuration counts, and
//! what is not is taken out after it. In between a new connection goes where it went before or goes now: what becomes this
//! server's own is forwarded until this server may open it.

use std::collections::{BTreeMap, BTreeSet};

use aya::Pod;
use aya::maps::MapError;
use egress_common::share::{Forward, SHARES, Target};

use super::exits::{self, ExitNumbers};
use super::maps::Maps;
use super::peers::{self, Numbers};
use crate::dataplane::api::DataPlaneError;
use crate::desired::{DesiredTunnel, Tier};

/// The map of what is forwarded.
const FORWARDS: &str = "FORWARDS";

/// Enters what tunnel ids mean and where new connections go; returns how many entries changed.
pub(super) fn enter(
    maps: &Maps,
    tunnel: &DesiredTunnel,
    numbers: &Numbers,
    exits: &ExitNumbers,
) -> Result<u64, DataPlaneError> {
    let before = maps.entries(FORWARDS)?.into_iter().collect();
    let forwards = for_now(&before, forwards(tunnel, numbers, exits));
    Ok(put(maps, "TARGETS", &targets(tunnel, exits))? + put(maps, FORWARDS, &forwards)?)
}

/// The same, but that what is forwarded and is not to be any more still is.
fn for_now(
    before: &BTreeMap<u32, Forward>,
    mut wanted: BTreeMap<u32, Forward>,
) -> BTreeMap<u32, Forward> {
    for (key, forward) in &mut wanted {
        let old = before
            .get(key)
            .filter(|old| (old.target, old.regions) == (forward.target, forward.regions));
        if let Some(old) = old.filter(|_| forward.peers == [0; SHARES]) {
            forward.peers = old.peers;
        }
    }
    wanted
}

/// Takes out what is not wanted any more; returns how many entries.
pub(super) fn forget(
    maps: &Maps,
    tunnel: Option<&DesiredTunnel>,
    exits: &ExitNumbers,
) -> Result<u64, DataPlaneError> {
    let targets = tunnel.map(|tunnel| targets(tunnel, exits));
    // The servers' numbers do not matter here.
    let forwards = tunnel.map(|tunnel| forwards(tunnel, &Numbers::new(), exits));
    let mut forwards = forwards.unwrap_or_default();
    let removed =
        keep(maps, "TARGETS", &targets.unwrap_or_default())? + keep(maps, FORWARDS, &forwards)?;
    let kept = tunnel.map(|tunnel| forwarded(tunnel, exits));
    let kept = kept.unwrap_or_default();
    forwards.retain(|key, _| !kept.contains(key));
    Ok(removed + put(maps, FORWARDS, &forwards)?)
}

/// What is forwarded, by its key.
fn forwarded(tunnel: &DesiredTunnel, exits: &ExitNumbers) -> BTreeSet<u32> {
    let pools = tunnel.pools.iter().filter(|one| one.shares.is_some());
    let pools = pools.map(|one| u32::from(one.pool));
    let parts = tunnel.exits.iter().enumerate();
    let parts = parts.filter(|(_, one)| one.shares.is_some());
    pools.chain(parts.map(|(nth, _)| exits.of(nth))).collect()
}

fn targets(tunnel: &DesiredTunnel, exits: &ExitNumbers) -> BTreeMap<u32, Target> {
    let pools = tunnel.pools.iter().map(|one| {
        let pool = u32::from(one.pool);
        (one.target, Target { pool, exit: 0 })
    });
    let served = tunnel.exits.iter().enumerate().filter_map(|(nth, one)| {
        let pool = u32::from(one.pool);
        let exit = exits.of(nth);
        (one.only.is_some() && one.here).then_some((one.target, Target { pool, exit }))
    });
    pools.chain(served).collect()
}

fn forwards(
    tunnel: &DesiredTunnel,
    numbers: &Numbers,
    exits: &ExitNumbers,
) -> BTreeMap<u32, Forward> {
    let number = |peer: usize| {
        let peer = tunnel.peers.get(peer)?;
        let number = numbers.get(&peers::underlay(peer.address))?;
        u16::try_from(*number).ok()
    };
    let forward = |target, regions, shares: &Option<Vec<(usize, Tier)>>| {
        let mut peers = [0; SHARES];
        // What this server owns something of has its entry too: flows that were forwarded before stay where they are
        // (FWD-4).
        for (place, (peer, _)) in peers.iter_mut().zip(shares.iter().flatten()) {
            *place = number(*peer).unwrap_or(0);
        }
        Forward {
            target,
            regions,
            peers,
        }
    };
    let pools = tunnel.pools.iter();
    let pools = pools.map(|one| (u32::from(one.pool), forward(one.target, 0, &one.shares)));
    let parts = tunnel.exits.iter().enumerate().map(|(nth, one)| {
        let forward = forward(one.target, exits::regions(one), &one.shares);
        (exits.of(nth), forward)
    });
    pools.chain(parts).collect()
}

fn put<T: Pod + PartialEq>(
    maps: &Maps,
    name: &'static str,
    wanted: &BTreeMap<u32, T>,
) -> Result<u64, DataPlaneError> {
    let before: BTreeMap<u32, T> = maps.entries(name)?.into_iter().collect();
    let mut map = maps.hash::<u32, T>(name)?;
    let mut changed = 0;
    for (key, value) in wanted {
        if before.get(key) != Some(value) {
            map.insert(key, value, 0).map_err(failed(name))?;
            changed += 1;
        }
    }
    Ok(changed)
}

fn keep<T: Pod>(
    maps: &Maps,
    name: &'static str,
    wanted: &BTreeMap<u32, T>,
) -> Result<u64, DataPlaneError> {
    let mut map = maps.hash::<u32, T>(name)?;
    let mut removed = 0;
    for (key, _) in maps.entries::<u32, T>(name)? {
        if !wanted.contains_key(&key) {
            map.remove(&key).map_err(failed(name))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn failed(name: &'static str) -> impl Fn(MapError) -> DataPlaneError {
    move |error| DataPlaneError::failed(format!("using map {name}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{DesiredForward, DesiredPart, DesiredPeer};

    /// FWD-4: what was forwarded before this server got something of the pool needs the pool's tunnel id still.
    #[test]
    fn a_pool_of_this_server_keeps_its_tunnel_id_and_forwards_nothing_new() {
        let peer = DesiredPeer {
            name: "s2".into(),
            address: [10, 9, 0, 2].into(),
            slices: Vec::new(),
            ranges: Vec::new(),
        };
        let one = |pool, target, shares| DesiredForward {
            pool,
            target,
            shares,
        };
        let part = |only, target, here| DesiredPart {
            pool: 3,
            only,
            regions: Vec::new(),
            target,
            here,
            shares: (!here).then(|| vec![(0, Tier::Location); SHARES]),
        };
        let tunnel = DesiredTunnel {
            own: [10, 9, 0, 1].into(),
            device: "egress0".into(),
            port: 4789,
            peers: vec![peer],
            pools: vec![
                one(3, 77, Some(vec![(0, Tier::Location); SHARES])),
                one(4, 88, None),
            ],
            exits: vec![
                part(None, 77, false),
                part(Some([192, 0, 2, 1].into()), 99, true),
            ],
        };
        let numbers = [(peers::underlay([10, 9, 0, 2].into()), 9)].into();
        let exits = ExitNumbers(vec![20_000, 20_001]);
        let found = forwards(&tunnel, &numbers, &exits);
        let expected = |target, peer| Forward {
            target,
            regions: 0,
            peers: [peer; SHARES],
        };
        let all = [
            (3, expected(77, 9)),
            (4, expected(88, 0)),
            (20_000, expected(77, 9)),
            (20_001, expected(99, 0)),
        ];
        assert_eq!(found, all.into());
        assert_eq!(forwarded(&tunnel, &exits), [3, 20_000].into());
        // What was forwarded, and is this server's own soon: until that is in force.
        let before = [
            (4, expected(88, 9)),
            (20_001, expected(98, 9)),
            (3, expected(77, 8)),
        ];
        let mut meanwhile = found.clone();
        meanwhile.insert(4, expected(88, 9));
        assert_eq!(for_now(&before.into(), found), meanwhile);
        let of = |pool, exit| Target { pool, exit };
        // What is only sent elsewhere means nothing here.
        let known = [(77, of(3, 0)), (88, of(4, 0)), (99, of(3, 20_001))];
        assert_eq!(targets(&tunnel, &exits), known.into());
    }
}
