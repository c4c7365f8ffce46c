//! The configuration as it stands in the maps: made from what is desired, and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use egress_common::family::{V4, V6};
use egress_common::key::realm;
use egress_common::policy::Exit;
use egress_common::settings::{
    Candidate, MAX_CANDIDATES, MAX_MARKS, MAX_POOLS, MAX_ZONES, MarkSelector, NO_EXIT, Pool,
    Settings, Timers, Zone, candidate_flag, zone_flag,
};
use egress_common::tag::TagField;
use ipnet::{IpNet, Ipv6Net};

use super::cgroups::{self, Cgroups};
use super::exits::ExitNumbers;
use crate::config::{DNS_PORT, Dataplane, IcmpQueries, Refuse};
use crate::dataplane::api::DataPlaneError;
use crate::desired::{Confinement, Desired, DesiredExit, DesiredPolicy, DesiredZone, Part};
use crate::policy::compile;
use crate::resource::Address;

/// Entries of the maps that are not arrays; `egress-ebpf/src/maps.rs`.
mod capacity {
    pub(super) const SELECTORS: usize = 8_192;
    pub(super) const SOURCES: usize = 131_072;
    pub(super) const EXEMPT: usize = 16_384;
}

/// Prefix length and address.
pub(super) type Prefixes<A> = BTreeMap<(u32, A), u32>;

/// One version of the configuration, as the maps hold it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) settings: Settings,
    pub(super) zones: BTreeMap<u32, Zone>,
    pub(super) pools: BTreeMap<u32, Pool>,
    pub(super) candidates: Vec<Candidate<V4>>,
    pub(super) candidates6: Vec<Candidate<V6>>,
    pub(super) marks: Vec<MarkSelector>,
    /// By path: the cgroups that are selected, existing or not.
    pub(super) paths: BTreeMap<String, u32>,
    /// By id: those that exist. The data plane adds to them by itself, so they do not make one configuration differ
    /// from another.
    pub(super) cgroups: BTreeMap<u64, u32>,
    /// By interface index.
    pub(super) interfaces: BTreeMap<u32, u32>,
    pub(super) sources4: Prefixes<V4>,
    pub(super) sources6: Prefixes<V6>,
    pub(super) exempt4: Prefixes<V4>,
    pub(super) exempt6: Prefixes<V6>,
    /// Egress policies.
    pub(super) policies: compile::Tables,
}

impl Tables {
    /// Zones whose packets are looked up in another realm than with `old`, with the one they are looked up in now. One
    /// that is gone leaves the common one to its addresses.
    pub(super) fn moved_realms(&self, old: &Self) -> BTreeMap<u16, u16> {
        let has_realm = |tables: &Self, number: &u32| {
            let zone = tables.zones.get(number);
            zone.is_some_and(|zone| zone.flags & zone_flag::REALM != 0)
        };
        let moved = old.zones.keys().filter_map(|number| {
            let now = has_realm(self, number);
            let number16 = u16::try_from(*number).ok()?;
            (now != has_realm(old, number)).then_some(if now {
                (number16, realm::of_zone(number16))
            } else {
                (number16, realm::COMMON)
            })
        });
        moved.collect()
    }

    /// What the maps must hold for `desired`. Interfaces that do not exist now have no entries.
    ///
    /// # Errors
    /// Something does not fit; the error names it and how many there may be.
    pub(super) fn of(
        desired: &Desired,
        config: &Dataplane,
        field: TagField,
        interfaces: &BTreeMap<String, u32>,
        cgroups: &Cgroups,
        exits: &ExitNumbers,
    ) -> Result<Self, DataPlaneError> {
        let mut tables = Self::default();
        for zone in &desired.zones {
            let number = u32::from(zone.number);
            let last = field.last_zone().min(MAX_ZONES - 1);
            if number == 0 || number > last {
                return Err(too_many(&format!(
                    "zone {} has number {number}, and the reserved mark bits {:#010x} carry numbers up to {last}",
                    zone.name, field.mask
                )));
            }
            let confined = desired.confined.get(&zone.number);
            tables.zones.insert(number, record(zone, confined, exits));
            tables.select(zone, interfaces, cgroups);
        }
        for pool in &desired.pools {
            let number = u32::from(pool.number);
            if number == 0 || number >= MAX_POOLS {
                return Err(too_many(&format!(
                    "pool {} has number {number}, and there may be {} pools",
                    pool.id,
                    MAX_POOLS - 1
                )));
            }
            if pool.candidates.is_empty() && pool.prefixes.is_empty() {
                // An element of zeros, like one that was never written: no address, so refused (SAFE-1).
                continue;
            }
            let first = tables.candidates.len() as u32;
            tables
                .candidates
                .extend(pool.candidates.iter().map(|candidate| Candidate {
                    address: candidate.address.octets(),
                    slices: candidate.slices,
                    capacity: candidate.cap,
                    flags: draining(candidate.draining),
                    length: 32,
                }));
            let count = pool.candidates.len() as u32;
            let first6 = tables.candidates6.len() as u32;
            tables
                .candidates6
                .extend(pool.prefixes.iter().map(|range| Candidate {
                    address: range.prefix.network().octets(),
                    // Every port is used: what bounds a range is its size (NAT-3).
                    slices: u32::MAX,
                    capacity: range.cap,
                    flags: draining(range.draining),
                    length: u32::from(range.prefix.prefix_len()),
                }));
            let count6 = pool.prefixes.len() as u32;
            tables.pools.insert(
                number,
                Pool {
                    first: if count == 0 { 0 } else { first },
                    count,
                    first6: if count6 == 0 { 0 } else { first6 },
                    count6,
                },
            );
        }
        tables.parts(desired, exits);
        tables.exempt(desired);
        tables.policies = compile::compile(desired, |policy| tables.exits(policy, exits))
            .map_err(|error| too_many(&error.to_string()))?;
        // The more bits a selector looks at, the earlier it is asked; equal ones never overlap (ZONE-3).
        tables
            .marks
            .sort_by_key(|mark| (u32::MAX - mark.mask.count_ones(), mark.mask, mark.value));
        tables.settings = Settings {
            timers: Timers {
                tcp_established: nanoseconds(desired.timers.tcp_established),
                tcp_transitory: nanoseconds(desired.timers.tcp_transitory),
                tcp_closing: nanoseconds(desired.timers.tcp_closing),
                quarantine: nanoseconds(desired.timers.quarantine),
                udp: nanoseconds(desired.timers.udp),
            },
            refuse_reset: u32::from(desired.refuse == Refuse::Reset),
            icmp_queries: u32::from(desired.exempt.icmp_queries == IcmpQueries::Default),
            marks: tables.marks.len() as u32,
            cgroup_levels: tables
                .paths
                .keys()
                .fold(0, |levels, path| levels | 1 << cgroups::level(path)),
            answer_arp: u32::from(config.answer_arp),
            exempt: (tables.exempt4.len() + tables.exempt6.len()) as u32,
            interfaces: tables.interfaces.len() as u32,
            enabled: desired.zones.iter().filter(|zone| zone.enabled).count() as u32,
            reset_idle: u32::from(desired.timers.reset_idle),
            rules: tables.policies.rules.len() as u32,
            log: desired.log,
            pad: 0,
        };
        tables.check()?;
        Ok(tables)
    }

    /// Exits stand among the pools, with what may leave here by them.
    fn parts(&mut self, desired: &Desired, exits: &ExitNumbers) {
        let all = desired.tunnel.iter().flat_map(|tunnel| &tunnel.exits);
        for (nth, exit) in all.enumerate().filter(|(_, exit)| exit.here) {
            let whole = self.pools.get(&u32::from(exit.pool)).copied();
            let candidate = exit.only.map(|only| self.candidate(Address::V4(only)));
            let part = match (whole, candidate) {
                (_, Some(1..)) => Pool {
                    first: candidate.unwrap_or(1) - 1,
                    count: 1,
                    ..Pool::default()
                },
                (Some(whole), None) if whole.count6 > 0 => Pool {
                    first: 0,
                    count: 0,
                    ..whole
                },
                _ => continue,
            };
            self.pools.insert(exits.of(nth), part);
        }
    }

    /// How a policy's flows of either family leave.
    fn exits(&self, policy: &DesiredPolicy, exits: &ExitNumbers) -> (Exit, Exit) {
        let of = |exit: DesiredExit| match exit {
            DesiredExit::Default => Exit::default(),
            // No pool is not the default egress.
            DesiredExit::Nowhere { pool } => Exit {
                pool: if pool == 0 { NO_EXIT } else { u32::from(pool) },
                candidate: 0,
            },
            DesiredExit::Elsewhere { pool, exit } => Exit {
                pool: u32::from(pool),
                candidate: Exit::ELSEWHERE | exits.of(exit),
            },
            DesiredExit::By { pool, address } => Exit {
                pool: u32::from(pool),
                candidate: self.candidate(address),
            },
        };
        (of(policy.ipv4), of(policy.ipv6))
    }

    /// The number of the candidate that this address, or range, is; 0 if there is none.
    fn candidate(&self, address: Address) -> u32 {
        let found = match address {
            Address::V4(_) => self
                .candidates
                .iter()
                .position(|one| single(one) == address),
            Address::V6(_) => self
                .candidates6
                .iter()
                .position(|one| range(one) == Some(address)),
        };
        found.map_or(0, |at| at as u32 + 1)
    }

    fn select(
        &mut self,
        zone: &DesiredZone,
        interfaces: &BTreeMap<String, u32>,
        cgroups: &Cgroups,
    ) {
        let number = u32::from(zone.number);
        let selectors = &zone.selectors;
        self.marks
            .extend(selectors.marks.iter().map(|mark| MarkSelector {
                mask: mark.mask,
                value: mark.value,
                zone: number,
            }));
        for path in &selectors.cgroups {
            self.paths.insert(path.clone(), number);
            if let Some(cgroup) = cgroups.get(path) {
                self.cgroups.insert(cgroup.id, number);
            }
        }
        for index in selectors
            .interfaces
            .iter()
            .filter_map(|name| interfaces.get(name))
        {
            self.interfaces.insert(*index, number);
        }
        for source in &selectors.sources {
            match source {
                IpNet::V4(net) => self.sources4.insert(
                    (u32::from(net.prefix_len()), net.network().octets()),
                    number,
                ),
                IpNet::V6(net) => self.sources6.insert(
                    (u32::from(net.prefix_len()), net.network().octets()),
                    number,
                ),
            };
        }
    }

    /// Exempt destinations carry 0, resolvers the one port that is exempt. A resolver inside an exempt
    /// destination needs no entry, and would shadow it.
    fn exempt(&mut self, desired: &Desired) {
        let resolvers = desired
            .exempt
            .resolvers
            .iter()
            .filter(|address| {
                !desired
                    .exempt
                    .destinations
                    .iter()
                    .any(|net| net.contains(*address))
            })
            .map(|address| (IpNet::from(*address), u32::from(DNS_PORT)));
        let destinations = desired.exempt.destinations.iter().map(|net| (*net, 0));
        for (net, port) in destinations.chain(resolvers) {
            let length = u32::from(net.prefix_len());
            match net.network() {
                IpAddr::V4(address) => self.exempt4.insert((length, address.octets()), port),
                IpAddr::V6(address) => self.exempt6.insert((length, address.octets()), port),
            };
        }
    }

    fn check(&self) -> Result<(), DataPlaneError> {
        let counts = [
            (
                "IPv4 addresses in all pools",
                self.candidates.len(),
                MAX_CANDIDATES as usize,
            ),
            (
                "IPv6 prefixes in all pools",
                self.candidates6.len(),
                MAX_CANDIDATES as usize,
            ),
            ("mark selectors", self.marks.len(), MAX_MARKS as usize),
            // Two versions share the maps below.
            (
                "cgroup selectors",
                self.paths.len(),
                // Half of the room is for those that were removed while sockets of theirs are open.
                capacity::SELECTORS / 4,
            ),
            (
                "interface selectors",
                self.interfaces.len(),
                capacity::SELECTORS / 2,
            ),
            (
                "IPv4 source prefixes",
                self.sources4.len(),
                capacity::SOURCES / 2,
            ),
            (
                "IPv6 source prefixes",
                self.sources6.len(),
                capacity::SOURCES / 2,
            ),
            (
                "exempt IPv4 prefixes",
                self.exempt4.len(),
                capacity::EXEMPT / 2,
            ),
            (
                "exempt IPv6 prefixes",
                self.exempt6.len(),
                capacity::EXEMPT / 2,
            ),
        ];
        match counts.into_iter().find(|(_, count, most)| count > most) {
            Some((what, count, most)) => Err(too_many(&format!(
                "there are {count} {what}, and there may be {most}"
            ))),
            None => Ok(()),
        }
    }

    /// The addresses of all pools.
    pub(super) fn addresses(&self) -> BTreeSet<Address> {
        let ranges = self.candidates6.iter().filter_map(range);
        self.candidates.iter().map(single).chain(ranges).collect()
    }

    /// The pools with their candidates of both families; exits are none.
    pub(super) fn pools(&self) -> impl Iterator<Item = (u32, &[Candidate<V4>], &[Candidate<V6>])> {
        let pools = self.pools.range(..MAX_POOLS);
        pools.map(|(number, pool)| {
            (
                *number,
                part(&self.candidates, pool.first, pool.count),
                part(&self.candidates6, pool.first6, pool.count6),
            )
        })
    }

    /// Number of entries that differ.
    pub(super) fn differences(&self, other: &Self) -> u64 {
        let candidates = changed(&self.candidates, &other.candidates)
            + changed(&self.candidates6, &other.candidates6);
        let marks: BTreeSet<_> = self.marks.iter().map(mark_key).collect();
        let others: BTreeSet<_> = other.marks.iter().map(mark_key).collect();
        let count = usize::from(self.settings != other.settings)
            + differing(&self.zones, &other.zones)
            + differing(&self.pools, &other.pools)
            + candidates
            + marks.symmetric_difference(&others).count()
            + differing(&self.paths, &other.paths)
            + differing(&self.interfaces, &other.interfaces)
            + differing(&self.sources4, &other.sources4)
            + differing(&self.sources6, &other.sources6)
            + differing(&self.exempt4, &other.exempt4)
            + differing(&self.exempt6, &other.exempt6)
            + changed(&self.policies.rules, &other.policies.rules)
            + usize::from(self.policies != other.policies);
        count as u64
    }
}

/// An IPv4 candidate as a pool names it.
pub(super) fn single(candidate: &Candidate<V4>) -> Address {
    Address::V4(candidate.address.into())
}

/// An IPv6 candidate as a pool names it; nothing for a length that no prefix has.
pub(super) fn range(candidate: &Candidate<V6>) -> Option<Address> {
    let length = u8::try_from(candidate.length).ok()?;
    Ipv6Net::new(candidate.address.into(), length)
        .ok()
        .map(Address::V6)
}

fn part<T>(all: &[T], first: u32, count: u32) -> &[T] {
    let first = first as usize;
    all.get(first..first + count as usize).unwrap_or_default()
}

fn draining(draining: bool) -> u32 {
    if draining {
        candidate_flag::DRAINING
    } else {
        0
    }
}

/// Elements that differ.
fn changed<T: PartialEq>(a: &[T], b: &[T]) -> usize {
    a.iter().zip(b).filter(|(a, b)| a != b).count() + a.len().abs_diff(b.len())
}

fn record(zone: &DesiredZone, confined: Option<&Confinement>, exits: &ExitNumbers) -> Zone {
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    Zone {
        flags: zone_flag::KNOWN
            | flag(zone.enabled, zone_flag::ENABLED)
            | flag(zone.realm, zone_flag::REALM)
            | flag(zone.egress_tcp, zone_flag::TCP)
            | flag(zone.egress_udp, zone_flag::UDP),
        pool: zone.pool.map_or(0, u32::from),
        exit: match confined.map(|confined| confined.part) {
            None | Some(Part::All) => 0,
            Some(Part::Exit(exit)) => exits.of(exit),
            Some(Part::Nothing) => NO_EXIT,
        },
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn mark_key(mark: &MarkSelector) -> (u32, u32, u32) {
    (mark.mask, mark.value, mark.zone)
}

/// Keys whose values differ or that only one side has.
fn differing<K: Ord, V: PartialEq>(a: &BTreeMap<K, V>, b: &BTreeMap<K, V>) -> usize {
    let missing = b.keys().filter(|key| !a.contains_key(key)).count();
    a.iter()
        .filter(|(key, value)| b.get(key) != Some(value))
        .count()
        + missing
}

fn too_many(reason: &str) -> DataPlaneError {
    DataPlaneError::Refused {
        reason: reason.to_owned(),
        remedy: "nothing was changed; remove some".to_owned(),
    }
}

#[cfg(test)]
mod tests;
