//! Pools in force: their addresses and ranges, what is live on each, and in which order a flow tries them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use egress_common::family::{self, V4, V6};
use egress_common::key::realm;
use egress_common::port::preferred;
use egress_common::range::{Inside, Range};
use egress_common::settings::{Candidate, MAX_TRIED, candidate_flag};
use egress_common::siphash::Secret;

use super::View;
use crate::dataplane::addresses;
use crate::dataplane::api::{DataPlaneError, DrainingStatus, PoolAddressLive, PoolLive};
use crate::dataplane::flows;
use crate::dataplane::tables::{self, Tables};
use crate::resource::Address;

/// Live flows over all origins, by egress IP.
#[derive(Debug, Default)]
struct Active {
    ipv4: BTreeMap<V4, u64>,
    ipv6: BTreeMap<V6, u64>,
}

impl Active {
    /// Of an address, or of all addresses of a range.
    fn on(&self, address: Address) -> u64 {
        match address {
            Address::V4(address) => self.ipv4.get(&address.octets()).copied().unwrap_or(0),
            Address::V6(net) => {
                let range: RangeInclusive<V6> = net.network().octets()..=net.broadcast().octets();
                self.ipv6.range(range).map(|(_, active)| active).sum()
            }
        }
    }
}

impl View {
    fn active(&self) -> Result<Active, DataPlaneError> {
        let mut active = Active::default();
        flows::visit_counts::<V4>(&self.maps, |_, count| {
            *active.ipv4.entry(count.key.egress).or_default() += u64::from(count.active);
        })?;
        flows::visit_counts::<V6>(&self.maps, |_, count| {
            *active.ipv6.entry(count.key.egress).or_default() += u64::from(count.active);
        })?;
        Ok(active)
    }

    /// The pools as they are in force.
    pub(super) fn live_pools(&self) -> Result<Vec<PoolLive>, DataPlaneError> {
        let tables = self.tables_in_force()?;
        let active = self.active()?;
        Ok(tables
            .pools()
            .map(|(number, single, ranges)| PoolLive {
                number: u16::try_from(number).unwrap_or(u16::MAX),
                addresses: single
                    .iter()
                    .map(|one| live(one, tables::single(one), &active))
                    .chain(
                        ranges
                            .iter()
                            .filter_map(|one| Some(live(one, tables::range(one)?, &active))),
                    )
                    .collect(),
            })
            .collect())
    }

    /// Addresses and ranges that take no new flows (POOL-9).
    pub(super) fn draining(&self) -> Result<Vec<DrainingStatus>, DataPlaneError> {
        let retired = addresses::retired(&self.maps)?;
        let mut found: BTreeMap<Address, bool> =
            retired.into_iter().map(|address| (address, true)).collect();
        for (_, single, ranges) in self.tables_in_force()?.pools() {
            let single = single.iter().filter(|one| drains(one)).map(tables::single);
            let ranges = ranges.iter().filter(|one| drains(one));
            let both = single.chain(ranges.filter_map(tables::range));
            found.extend(both.map(|address| (address, false)));
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let active = self.active()?;
        Ok(found
            .into_iter()
            .map(|(address, retired)| DrainingStatus {
                egress_ip: address,
                active: active.on(address),
                retired,
            })
            .collect())
    }

    /// The addresses of a pool in the order in which a new flow of `inside` tries them.
    pub(super) fn order_of(
        &self,
        pool: u16,
        inside: IpAddr,
        realm: Option<u16>,
    ) -> Result<Vec<IpAddr>, DataPlaneError> {
        let secret: Secret = self.maps.only("SECRET")?;
        let tables = self.tables_in_force()?;
        let Some((_, single, ranges)) = tables
            .pools()
            .find(|(number, ..)| *number == u32::from(pool))
        else {
            return Ok(Vec::new());
        };
        let realm = realm.map_or(realm::COMMON, realm::of_zone);
        Ok(match inside {
            IpAddr::V4(address) => {
                let address = address.octets();
                order(single, secret, Inside { address, realm })
            }
            IpAddr::V6(address) => {
                let address = address.octets();
                order(ranges, secret, Inside { address, realm })
            }
        })
    }
}

fn drains<A>(candidate: &Candidate<A>) -> bool {
    candidate.flags & candidate_flag::DRAINING != 0
}

fn live<A>(candidate: &Candidate<A>, address: Address, active: &Active) -> PoolAddressLive {
    PoolAddressLive {
        egress_ip: address,
        slices: candidate.slices,
        cap: candidate.capacity,
        draining: drains(candidate),
        active: active.on(address),
    }
}

/// What `egress-ebpf/src/allocate.rs` tries, draining candidates included.
fn order<A>(candidates: &[Candidate<A>], secret: Secret, inside: Inside<A>) -> Vec<IpAddr>
where
    A: Range + family::Address + Into<IpAddr>,
{
    // As many as fit a map: a u32 holds them, and a usize what comes of it.
    let count = candidates.len() as u32;
    if count == 0 {
        return Vec::new();
    }
    let start = preferred(secret, inside.address.digest(), inside.realm, count);
    (0..MAX_TRIED)
        .map(|nth| (nth / count, nth % count))
        .take_while(|(round, _)| *round < A::ROUNDS)
        .filter_map(|(round, nth)| {
            let candidate = candidates.get(((start + nth) % count) as usize)?;
            A::address(candidate, secret, inside, round)
        })
        .map(Into::into)
        .collect()
}

/// Connections per origin that each egress IP may carry.
#[derive(Debug)]
pub(super) struct Caps {
    ipv4: BTreeMap<V4, u32>,
    /// Ranges by where they begin; none is in another.
    ipv6: BTreeMap<V6, (Address, u32)>,
}

impl Caps {
    /// The caps in force.
    pub(super) fn of(tables: &Tables) -> Self {
        let mut caps = Self {
            ipv4: BTreeMap::new(),
            ipv6: BTreeMap::new(),
        };
        for (_, single, ranges) in tables.pools() {
            caps.ipv4
                .extend(single.iter().map(|one| (one.address, one.capacity)));
            for one in ranges {
                if let Some(range @ Address::V6(net)) = tables::range(one) {
                    let value = (range, one.capacity);
                    caps.ipv6.insert(net.network().octets(), value);
                }
            }
        }
        caps
    }

    /// Of an egress IP; `None` if it is in no pool any more.
    pub(super) fn on(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => self.ipv4.get(&address.octets()).copied(),
            IpAddr::V6(begin) => self
                .ipv6
                .range(..=begin.octets())
                .next_back()
                .filter(|(_, (range, _))| range.net().contains(&address))
                .map(|(_, (_, cap))| *cap),
        }
    }
}
