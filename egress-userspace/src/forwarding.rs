//! Where new connections go whose pool other servers own (FWD-1 to FWD-3): the decision, made for every share of the
//! inside addresses from locations and placements alone.

use std::collections::{BTreeMap, BTreeSet};

use egress_common::family::V4;
use egress_common::forward::{Regions, Site};
use egress_common::placement::digest;
use egress_common::share::{self, END_OF_TARGETS, FIRST_TARGET, Offer, SHARES};

use crate::desired::{DesiredForward, DesiredPeer, Tier};
use crate::liveness::{Healths, State};
use crate::placed::{self, Standing};
use crate::resource::{Address, Pool, Resources};
use crate::store::Numbers;

/// What this server does with the new connections of each pool.
pub fn pools(
    resources: &Resources,
    server: &str,
    peers: &[DesiredPeer],
    numbers: &Numbers,
    healths: &Healths,
) -> Vec<DesiredForward> {
    let known = Known::of(resources, peers, healths);
    let targets = targets(resources);
    let sites = sites(resources);
    resources
        .pools
        .iter()
        .filter_map(|pool| {
            Some(DesiredForward {
                pool: *numbers.pools.get(&pool.id)?,
                target: *targets.get(pool.id.as_str())?,
                shares: shares(resources, pool, server, peers, &sites, &known),
            })
        })
        .collect()
}

/// Where the shares of a pool go; `None` if this server may use something of it, or nobody else may.
fn shares(
    resources: &Resources,
    pool: &Pool,
    server: &str,
    peers: &[DesiredPeer],
    sites: &BTreeMap<&str, Site>,
    known: &Known<'_>,
) -> Option<Vec<(usize, Tier)>> {
    let here = *sites.get(server)?;
    let mut offers = Vec::new();
    for address in &pool.addresses {
        let Address::V4(single) = *address else {
            continue;
        };
        // What drains takes nothing new, here and elsewhere (POOL-9).
        if resources.drains(pool, address) {
            continue;
        }
        if placed::slices_of(resources, server, single) != 0 {
            return None;
        }
        for (owner, slices) in placed::owners(resources, single) {
            // Who has no tunnel cannot be reached.
            if peers.iter().any(|peer| peer.name == owner.server.name)
                && let Some(site) = sites.get(owner.server.name.as_str())
            {
                offers.push(Offer {
                    owner: Site {
                        out: u16::from(known.out.contains(owner.server.name.as_str())),
                        ..*site
                    },
                    address: u64::from(single.to_bits()),
                    slices,
                    distance: known.distance(resources, server, &owner),
                });
            }
        }
    }
    let peer_of = |number: u16| {
        let (name, _) = sites.iter().find(|(_, site)| site.server == number)?;
        peers.iter().position(|peer| peer.name == *name)
    };
    (0..SHARES)
        .map(|share| {
            let choice = share::decide::<V4>(here, Regions::default(), &offers, share)?;
            Some((peer_of(choice.server)?, choice.tier))
        })
        .collect()
}

/// What probes say about the other servers.
struct Known<'r> {
    /// Those that take no new connections (FWD-7).
    out: BTreeSet<&'r str>,
    /// Microseconds to locations: to the nearest server there that answers (FWD-3).
    measured: BTreeMap<&'r str, u32>,
}

impl<'r> Known<'r> {
    fn of(resources: &'r Resources, peers: &'r [DesiredPeer], healths: &Healths) -> Self {
        let mut known = Self {
            out: BTreeSet::new(),
            measured: BTreeMap::new(),
        };
        let health = |peer: &DesiredPeer| healths.get(&peer.address).copied();
        // After a moment of its own without a network this server would else have nobody: better one that has just
        // come back than none.
        let nobody = peers
            .iter()
            .all(|peer| health(peer).is_some_and(|health| !health.takes()));
        for peer in peers {
            let Some(health) = health(peer) else {
                continue;
            };
            let back = nobody && health.state == State::Returning;
            if !health.takes() && !back {
                known.out.insert(&peer.name);
                continue;
            }
            let standing = placed::servers(resources).find(|one| one.server.name == peer.name);
            if let Some((standing, measured)) = standing.zip(health.round_trip_us) {
                let nearest = known
                    .measured
                    .entry(&standing.location.name)
                    .or_insert(measured);
                *nearest = measured.min(*nearest);
            }
        }
        known
    }

    /// Microseconds from a server's location to an owner's: measured, else configured.
    fn distance(&self, resources: &Resources, server: &str, owner: &Standing<'_>) -> u32 {
        let here = placed::servers(resources).find(|one| one.server.name == server);
        let configured = here.and_then(|here| here.location.distances.get(&owner.location.name));
        let measured = self.measured.get(owner.location.name.as_str());
        measured.or(configured).copied().unwrap_or(Offer::UNKNOWN)
    }
}

/// Numbers for servers, data centers and locations, by their names: all servers come to the same.
fn sites(resources: &Resources) -> BTreeMap<&str, Site> {
    let all: Vec<Standing<'_>> = placed::servers(resources).collect();
    let servers: BTreeSet<&str> = all.iter().map(|one| one.server.name.as_str()).collect();
    let data_centers: BTreeSet<&str> = all
        .iter()
        .map(|one| one.data_center.name.as_str())
        .collect();
    let locations: BTreeSet<&str> = all.iter().map(|one| one.location.name.as_str()).collect();
    let number = |names: &BTreeSet<&str>, name: &str| {
        u16::try_from(names.range(..=name).count()).unwrap_or(u16::MAX)
    };
    all.iter()
        .map(|one| {
            let site = Site {
                server: number(&servers, &one.server.name),
                data_center: number(&data_centers, &one.data_center.name),
                location: number(&locations, &one.location.name),
                out: 0,
            };
            (one.server.name.as_str(), site)
        })
        .collect()
}

/// The tunnel id of a pool: a digest of the pool's id and of nothing else, because a server may know of other pools than
/// another one does, and pools' numbers are each server's own.
pub fn target(pool: &str) -> u32 {
    let room = END_OF_TARGETS - FIRST_TARGET;
    FIRST_TARGET + (digest(pool) % u64::from(room)) as u32
}

/// Tunnel ids by the pools' ids. Two that meet are refused when resources are checked; had they come here all the
/// same, neither would have one.
fn targets(resources: &Resources) -> BTreeMap<&str, u32> {
    let mut pools: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    for pool in &resources.pools {
        pools.entry(target(&pool.id)).or_default().push(&pool.id);
    }
    let single = pools
        .into_iter()
        .filter_map(|(target, pools)| match *pools {
            [pool] => Some((pool, target)),
            _ => None,
        });
    single.collect()
}

#[cfg(test)]
mod tests;
