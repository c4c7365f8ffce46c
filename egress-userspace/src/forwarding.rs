//! Where new connections go whose pool other servers own (FWD-1 to FWD-3): the decision, made for every share of the
//! inside addresses from locations and placements alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use egress_common::family::V4;
use egress_common::forward::{MAX_REGIONS, Regions, Site};
use egress_common::placement::digest;
use egress_common::share::{self, END_OF_TARGETS, FIRST_TARGET, Offer, SHARES};

use crate::desired::{DesiredForward, DesiredPart, DesiredPeer, Part, Tier};
use crate::liveness::{Healths, State};
use crate::placed::{self, Standing};
use crate::resource::{Address, Pool, Resources};
use crate::store::Numbers;

/// Decides where this server's new connections go.
pub struct Planner<'r> {
    resources: &'r Resources,
    server: &'r str,
    peers: &'r [DesiredPeer],
    sites: BTreeMap<&'r str, Site>,
    known: Known<'r>,
    targets: BTreeMap<String, u32>,
    /// What certain traffic may use of pools, once it was asked for.
    pub exits: Vec<DesiredPart>,
}

/// Where a policy's IPv4 address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whereabouts {
    /// This server has it.
    Here,
    /// Others have it: by this one of [`Planner::exits`].
    Elsewhere(usize),
    /// Others have it, whom this server cannot send anything.
    OutOfReach,
    /// Nobody may open connections by it now: its slices are on their way (CLU-3), or nobody who has it may translate.
    Nobody,
    /// It drains, or nobody who has it answers (POLICY-4).
    Down,
}

impl<'r> Planner<'r> {
    /// Begins with what is known of the others: none of them, if the servers do not reach each other.
    pub fn new(
        resources: &'r Resources,
        server: &'r str,
        peers: &'r [DesiredPeer],
        healths: &Healths,
    ) -> Self {
        Self {
            resources,
            server,
            peers,
            sites: sites(resources),
            known: Known::of(resources, peers, healths),
            targets: targets(resources),
            exits: Vec::new(),
        }
    }

    /// What this server does with the new connections of each pool.
    pub fn pools(&self, numbers: &Numbers) -> Vec<DesiredForward> {
        let pools = self.resources.pools.iter();
        pools
            .filter_map(|pool| {
                Some(DesiredForward {
                    pool: *numbers.pools.get(&pool.id)?,
                    target: *self.targets.get(&pool.id)?,
                    shares: self.shares(&self.usable(pool), &[]),
                })
            })
            .collect()
    }

    /// What a zone may use of its pool that is confined to these locations (FWD-8).
    pub fn confined(&mut self, pool: &Pool, number: u16, regions: &[String]) -> Part {
        let here = self.allows_here(regions);
        let usable = self.usable(pool);
        if here && (self.peers.is_empty() || usable.iter().any(|one| self.owns(*one))) {
            return Part::All;
        }
        let shares = self.shares(&usable, regions);
        let Some(target) = self.targets.get(&pool.id).copied() else {
            return Part::Nothing;
        };
        if self.peers.is_empty() || !here && shares.is_none() {
            return Part::Nothing;
        }
        Part::Exit(self.exit(DesiredPart {
            pool: number,
            only: None,
            regions: regions.to_vec(),
            target,
            here,
            shares,
        }))
    }

    /// Where a policy's address of a pool is, for zones that are confined to these locations.
    pub fn address(
        &mut self,
        (pool, number): (&Pool, u16),
        address: Ipv4Addr,
        regions: &[String],
    ) -> Whereabouts {
        if self.resources.drains(pool, &Address::V4(address)) {
            return Whereabouts::Down;
        }
        if self.owns(address) && self.allows_here(regions) {
            return Whereabouts::Here;
        }
        let owners = placed::holders(self.resources, address);
        let allowed = |owner: &&Standing<'_>| is_among(regions, &owner.location.name);
        let reached = |owner: &&Standing<'_>| {
            let name = &owner.server.name;
            self.peers.iter().any(|peer| peer.name == *name)
        };
        let allowed: Vec<_> = owners
            .iter()
            .map(|(owner, _)| owner)
            .filter(allowed)
            .collect();
        if !allowed.is_empty() && !allowed.iter().any(reached) {
            return Whereabouts::OutOfReach;
        }
        let target = self.targets.get(&called(address)).copied();
        let Some((target, shares)) = target.zip(self.shares(&[address], regions)) else {
            let is_out = |owner: &&Standing<'_>| {
                let name = owner.server.name.as_str();
                self.known.out.contains(name)
            };
            // Of several servers none answers: this one is cut off, and no location is known to be down.
            let is_alone = self.peers.len() > 1
                && self
                    .peers
                    .iter()
                    .all(|peer| self.known.out.contains(peer.name.as_str()));
            return if !is_alone && !allowed.is_empty() && allowed.iter().all(is_out) {
                Whereabouts::Down
            } else {
                Whereabouts::Nobody
            };
        };
        Whereabouts::Elsewhere(self.exit(DesiredPart {
            pool: number,
            only: Some(address),
            regions: regions.to_vec(),
            target,
            here: false,
            shares: Some(shares),
        }))
    }

    /// Has a policy's address ready for others who forward to this server.
    pub fn serve(&mut self, number: u16, address: Ipv4Addr) {
        if self.peers.is_empty() || !self.owns(address) {
            return;
        }
        if let Some(target) = self.targets.get(&called(address)).copied() {
            self.exit(DesiredPart {
                pool: number,
                only: Some(address),
                regions: Vec::new(),
                target,
                here: true,
                shares: None,
            });
        }
    }

    /// Whether what is confined to these locations may leave here.
    pub fn allows_here(&self, regions: &[String]) -> bool {
        let here = placed::servers(self.resources).find(|one| one.server.name == self.server);
        regions.is_empty() || here.is_some_and(|here| is_among(regions, &here.location.name))
    }

    /// The number of an exit, which is noted once.
    fn exit(&mut self, wanted: DesiredPart) -> usize {
        let found = self.exits.iter().position(|one| *one == wanted);
        found.unwrap_or_else(|| {
            self.exits.push(wanted);
            self.exits.len() - 1
        })
    }

    fn owns(&self, address: Ipv4Addr) -> bool {
        placed::open_slices(self.resources, self.server, address) != 0
    }

    /// A pool's IPv4 addresses that take anything new: what drains does not, here and elsewhere (POOL-9).
    fn usable(&self, pool: &Pool) -> Vec<Ipv4Addr> {
        let all = pool.addresses.iter();
        all.filter(|address| !self.resources.drains(pool, address))
            .filter_map(|address| match *address {
                Address::V4(single) => Some(single),
                Address::V6(_) => None,
            })
            .collect()
    }

    /// Where the shares of these addresses go; `None` if this server may translate by one of them, or nobody else may.
    fn shares(&self, addresses: &[Ipv4Addr], regions: &[String]) -> Option<Vec<(usize, Tier)>> {
        let here = *self.sites.get(self.server)?;
        let may_stay = self.allows_here(regions);
        let mut offers = Vec::new();
        for address in addresses {
            if may_stay && self.owns(*address) {
                return None;
            }
            for (owner, _) in placed::holders(self.resources, *address) {
                let name = &owner.server.name;
                let slices = placed::open_slices(self.resources, name, *address);
                // Who has no tunnel cannot be reached.
                if self.peers.iter().any(|peer| peer.name == owner.server.name)
                    && let Some(site) = self.sites.get(owner.server.name.as_str())
                {
                    offers.push(Offer {
                        owner: Site {
                            out: u16::from(self.known.out.contains(owner.server.name.as_str())),
                            ..*site
                        },
                        address: u64::from(address.to_bits()),
                        slices,
                        distance: self.known.distance(self.resources, self.server, &owner),
                    });
                }
            }
        }
        let regions = self.regions(regions)?;
        let peer_of = |number: u16| {
            let (name, _) = self.sites.iter().find(|(_, site)| site.server == number)?;
            self.peers.iter().position(|peer| peer.name == *name)
        };
        (0..SHARES)
            .map(|share| {
                let choice = share::decide::<V4>(here, regions, &offers, share)?;
                Some((peer_of(choice.server)?, choice.tier))
            })
            .collect()
    }

    /// Locations by their numbers; `None` if there is none of these, since no number means everywhere.
    fn regions(&self, names: &[String]) -> Option<Regions> {
        let mut regions = Regions::default();
        let numbers: BTreeSet<u16> = placed::servers(self.resources)
            .filter(|one| names.contains(&one.location.name))
            .filter_map(|one| Some(self.sites.get(one.server.name.as_str())?.location))
            .collect();
        for (place, number) in regions.0.iter_mut().zip(&numbers) {
            *place = *number;
        }
        let fits = numbers.len() <= MAX_REGIONS && (names.is_empty() || !numbers.is_empty());
        fits.then_some(regions)
    }
}

fn is_among(regions: &[String], location: &str) -> bool {
    regions.is_empty() || regions.iter().any(|one| one == location)
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

/// The tunnel id of a pool, by its id, or of a policy's address, by what it is [`called`]: a digest of that and of nothing
/// else, because a server may know of other pools than another one does, and pools' numbers are each server's own.
pub fn target(name: &str) -> u32 {
    let room = END_OF_TARGETS - FIRST_TARGET;
    FIRST_TARGET + (digest(name) % u64::from(room)) as u32
}

/// What a policy's address is called in the tunnel.
pub fn called(address: Ipv4Addr) -> String {
    format!("address {address}")
}

/// The IPv4 addresses that policies name, each once.
pub fn named(resources: &Resources) -> BTreeSet<Ipv4Addr> {
    let egress = resources
        .policies
        .iter()
        .filter_map(|one| one.egress.as_ref());
    let both = egress.flat_map(|egress| [egress.ipv4, egress.ipv4_fallback]);
    both.filter(|address| !address.is_unspecified()).collect()
}

/// Tunnel ids of pools and of policies' addresses. Two that meet are refused when resources are checked; had they come
/// here all the same, neither would have one.
fn targets(resources: &Resources) -> BTreeMap<String, u32> {
    let pools = resources.pools.iter().map(|pool| pool.id.clone());
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for name in pools.chain(named(resources).into_iter().map(called)) {
        found.entry(target(&name)).or_default().push(name);
    }
    let single = found.into_iter().filter_map(|(target, names)| {
        let [name] = <[String; 1]>::try_from(names).ok()?;
        Some((name, target))
    });
    single.collect()
}

#[cfg(test)]
mod tests;
