//! From resources and configuration to what the data plane shall do: a pure function.

pub use crate::desired::{
    Candidate, Confinement, Desired, DesiredExit, DesiredMark, DesiredPeer, DesiredPolicy,
    DesiredPool, DesiredPrefix, DesiredTunnel, DesiredZone, Selectors, Withdrawn,
};

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use egress_common::port;
use egress_common::settings::MAX_POOLS;

use ipnet::Ipv6Net;

use crate::config::Config;
use crate::desired::Part;
use crate::forwarding::{self, Planner, Whereabouts};
use crate::liveness::Healths;
use crate::placed;
use crate::policy::Mistake;
use crate::resource::{Address, Policy, Pool, Resources, Zone};
use crate::store::{Limits, Numbers};

/// Why resources cannot be put in force on this server, though they are valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The store gave no number.
    #[error("{noun} {id} has no number in the store")]
    Unnumbered {
        /// Zone or pool.
        noun: &'static str,
        /// Its id.
        id: String,
    },
    /// The number was given while more mark bits were reserved.
    #[error(
        "{noun} {id} has number {number}, but only {last} fit (mark_mask was wider when it was numbered)"
    )]
    NumberTooHigh {
        /// Zone or pool.
        noun: &'static str,
        /// Its id.
        id: String,
        /// Its number.
        number: u16,
        /// The last that fits.
        last: u16,
    },
    /// The resources tell of several servers, and this is none of them.
    #[error("this server, {name}, is in no location")]
    NoServer {
        /// Its name.
        name: String,
    },
    /// A policy's expression is none: another version wrote it.
    #[error("policy {policy}: {mistake}")]
    NoExpression {
        /// The policy's name.
        policy: String,
        /// What is wrong.
        mistake: Mistake,
    },
    /// A policy names an address of no pool.
    #[error("policy {policy} names {address}, which is in no pool")]
    NoMember {
        /// The policy's name.
        policy: String,
        /// The address.
        address: Address,
    },
    /// A setting refers to a pool that does not exist.
    #[error("zone {zone} is enabled on pool {pool}, which does not exist")]
    NoPool {
        /// The zone's name.
        zone: String,
        /// The reference.
        pool: String,
    },
}

impl ResolveError {
    /// What to do about it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unnumbered { .. } => "apply the resources again: `egress apply -f FILE`".into(),
            Self::NumberTooHigh { .. } => {
                "reserve as many bits as before under [dataplane] mark_mask".into()
            }
            Self::NoServer { .. } => {
                "give it its name under [server] again, or add it to a [[location]]".into()
            }
            Self::NoExpression { mistake, .. } => mistake.remedy.clone(),
            Self::NoMember { .. } => "add the address to a pool again, or remove the policy".into(),
            Self::NoPool { zone, .. } => {
                format!("`egress zone disable {zone}`, or add the pool again")
            }
        }
    }
}

/// The highest numbers that fit this server.
pub fn limits(config: &Config) -> Limits {
    Limits {
        last_zone: config.dataplane.max_zone(),
        last_pool: u16::try_from(MAX_POOLS - 1).unwrap_or(u16::MAX),
    }
}

/// Boils `resources` down to numbers and addresses, where all other servers are there.
///
/// # Errors
/// As [`resolve_among`].
pub fn resolve(
    resources: &Resources,
    config: &Config,
    numbers: &Numbers,
) -> Result<Desired, ResolveError> {
    resolve_among(resources, config, numbers, &Healths::new())
}

/// Boils `resources` down to numbers and addresses. They have been checked; what cannot be resolved all the
/// same is an error, never left out: a missing zone would leak (SAFE-1).
///
/// # Errors
/// Where a number or another object is missing.
pub fn resolve_among(
    resources: &Resources,
    config: &Config,
    numbers: &Numbers,
    healths: &Healths,
) -> Result<Desired, ResolveError> {
    let limits = limits(config);
    let name = &config.server.name;
    let known = || placed::servers(resources).any(|one| one.server.name == *name);
    if !resources.locations.is_empty() && !known() {
        return Err(ResolveError::NoServer { name: name.clone() });
    }
    let mut zones = Vec::with_capacity(resources.zones.len());
    for zone in &resources.zones {
        zones.push(resolve_zone(resources, zone, config, numbers, limits)?);
    }
    let mut pools = Vec::with_capacity(resources.pools.len());
    for pool in &resources.pools {
        pools.push(resolve_pool(
            resources,
            pool,
            pool_number(numbers, &pool.id, limits)?,
            &config.server.name,
            placed::open_slices,
            placed::held_slices,
        ));
    }
    zones.sort_by_key(|zone| zone.number);
    pools.sort_by_key(|pool| pool.number);
    let (own, peers) = match placed::others(resources, name) {
        Some((own, peers)) => (Some(own), peers),
        None => (None, Vec::new()),
    };
    let mut planner = Planner::new(resources, name, &peers, healths);
    let confined = confine(resources, &zones, &mut planner);
    let policies = resolve_policies(resources, &zones, &pools, &mut planner)?;
    let forwards = planner.pools(numbers);
    let exits = planner.exits;
    Ok(Desired {
        zones,
        pools,
        policies,
        exempt: config.exempt.clone(),
        timers: config.timers,
        log: config.flow_log.as_ref().map_or(0, |log| log.events),
        refuse: config.dataplane.refuse,
        tunnel: own.map(|own| DesiredTunnel {
            own,
            device: config.tunnel.device.clone(),
            port: config.tunnel.port,
            pools: forwards,
            exits,
            peers,
        }),
        confined,
        withdrawn: Withdrawn::of(resources),
    })
}

/// What is left of their pools to zones that are confined to locations (FWD-8).
fn confine(
    resources: &Resources,
    zones: &[DesiredZone],
    planner: &mut Planner<'_>,
) -> BTreeMap<u16, Confinement> {
    let mut confined = BTreeMap::new();
    for zone in zones {
        let regions = regions(resources, zone);
        if regions.is_empty() {
            continue;
        }
        let setting = resources.zone(&zone.id).map(|found| resources.aegis(found));
        let pool = setting.and_then(|setting| resources.pool(setting.pool_id.as_deref()?));
        let part = match pool.zip(zone.pool) {
            Some((pool, number)) => planner.confined(pool, number, regions),
            None => Part::Nothing,
        };
        let regions = regions.to_vec();
        confined.insert(zone.number, Confinement { regions, part });
    }
    confined
}

fn regions<'r>(resources: &'r Resources, zone: &DesiredZone) -> &'r [String] {
    let found = resources.zone(&zone.id);
    found.map_or(&[], |found| found.regions.as_slice())
}

/// The addresses and ranges that would be this server's egress IPs.
pub fn addresses(resources: &Resources, config: &Config) -> Vec<Address> {
    // By the division: who holds what of it so far does not matter.
    let pool = |pool| {
        resolve_pool(
            resources,
            pool,
            0,
            &config.server.name,
            placed::slices_of,
            placed::slices_of,
        )
    };
    Desired {
        pools: resources.pools.iter().map(pool).collect(),
        ..Desired::default()
    }
    .addresses()
    .collect()
}

fn resolve_zone(
    resources: &Resources,
    zone: &Zone,
    config: &Config,
    numbers: &Numbers,
    limits: Limits,
) -> Result<DesiredZone, ResolveError> {
    let number = fits(
        "zone",
        &zone.id,
        numbers.zones.get(&zone.id),
        limits.last_zone,
    )?;
    let setting = resources.aegis(zone);
    let missing = |pool: &str| ResolveError::NoPool {
        zone: zone.name.clone(),
        pool: pool.to_owned(),
    };
    let pool = match setting.pool_id.as_deref() {
        Some(reference) => match resources.pool(reference) {
            Some(pool) => Some(pool_number(numbers, &pool.id, limits)?),
            None if setting.enabled => return Err(missing(reference)),
            None => None,
        },
        None if setting.enabled => return Err(missing("")),
        None => None,
    };
    let account = resources.account(&zone.account);
    let reserved = config.dataplane.mark_mask;
    Ok(DesiredZone {
        number,
        id: zone.id.clone(),
        name: zone.name.clone(),
        enabled: setting.enabled,
        pool,
        selectors: Selectors {
            marks: zone
                .marks
                .iter()
                .map(|mark| DesiredMark {
                    value: mark.value,
                    mask: mark.effective_mask(reserved),
                })
                .collect(),
            cgroups: zone.cgroups.clone(),
            interfaces: zone.interfaces.clone(),
            sources: zone.sources.clone(),
        },
        realm: zone.is_realm(),
        egress_tcp: account.is_none_or(|account| account.egress_tcp),
        egress_udp: account.is_none_or(|account| account.egress_udp),
    })
}

/// The pool as this server may use it: what others own alone is not in it (POOL-5, POOL-6).
fn resolve_pool(
    resources: &Resources,
    pool: &Pool,
    number: u16,
    server: &str,
    slices_of: impl Fn(&Resources, &str, Ipv4Addr) -> u32,
    held_of: impl Fn(&Resources, &str, Ipv4Addr) -> u32,
) -> DesiredPool {
    let mut resolved = DesiredPool {
        number,
        id: pool.id.clone(),
        candidates: Vec::new(),
        prefixes: Vec::new(),
    };
    for address in &pool.addresses {
        let draining = resources.drains(pool, address);
        match *address {
            Address::V4(address) => {
                let open = slices_of(resources, server, address);
                // What is to be passed on takes nothing new, and is still answered for and announced (CLU-3, POOL-9).
                let slices = match open {
                    0 => held_of(resources, server, address),
                    open => open,
                };
                if slices != 0 {
                    resolved.candidates.push(Candidate {
                        address,
                        slices,
                        cap: port::capacity_of(pool.connections_per_origin, slices),
                        draining: draining || open == 0,
                    });
                }
            }
            Address::V6(range) => {
                if let Some(prefix) = placed::part_of(resources, server, range) {
                    resolved.prefixes.push(DesiredPrefix {
                        prefix,
                        cap: pool.connections_per_origin,
                        draining: draining || resources.drains_server(server),
                    });
                }
            }
        }
    }
    resolved
}

/// The policies that are asked, by precedence. Those of several accounts never meet (ZONE-5), so their order among each
/// other is nobody's business. One that does not leave in the same way for all of its zones, since some are confined to
/// locations, is there once for each way.
fn resolve_policies(
    resources: &Resources,
    zones: &[DesiredZone],
    pools: &[DesiredPool],
    planner: &mut Planner<'_>,
) -> Result<Vec<DesiredPolicy>, ResolveError> {
    let mut asked: Vec<&Policy> = resources
        .policies
        .iter()
        .filter(|policy| policy.enabled)
        .collect();
    asked.sort_by_key(|policy| (policy.precedence, &policy.account));
    let mut resolved = Vec::with_capacity(asked.len());
    for policy in asked {
        let traffic = policy
            .expression()
            .map_err(|mistake| ResolveError::NoExpression {
                policy: policy.name.clone(),
                mistake,
            })?;
        let of_account = zones.iter().filter(|zone| {
            resources
                .zone(&zone.id)
                .is_some_and(|zone| resources.same_account(&zone.account, &policy.account))
        });
        // One of no zone is there as well: it is listed, and nothing meets it.
        let mut ways: Vec<(&[String], Vec<u16>)> = vec![(&[], Vec::new())];
        for zone in of_account {
            let regions = regions(resources, zone);
            match ways.iter_mut().find(|(one, _)| *one == regions) {
                Some((_, zones)) => zones.push(zone.number),
                None => ways.push((regions, vec![zone.number])),
            }
        }
        let mut found: Vec<DesiredPolicy> = Vec::new();
        for (regions, zones) in ways {
            let (ipv4, ipv6) = exits(resources, pools, policy, regions, planner)?;
            let same = found
                .iter_mut()
                .find(|one| one.zones.is_empty() || (one.ipv4, one.ipv6) == (ipv4, ipv6));
            match same {
                Some(same) if !zones.is_empty() => {
                    (same.ipv4, same.ipv6) = (ipv4, ipv6);
                    same.zones.extend(zones);
                    same.zones.sort_unstable();
                }
                Some(_) => {}
                None => found.push(DesiredPolicy {
                    name: policy.name.clone(),
                    zones,
                    traffic: traffic.clone(),
                    ipv4,
                    ipv6,
                }),
            }
        }
        resolved.append(&mut found);
    }
    for address in forwarding::named(resources) {
        if let Some((_, number)) = member(resources, pools, Address::V4(address)) {
            planner.serve(number, address);
        }
    }
    Ok(resolved)
}

/// How a policy's flows of both families leave, from zones that are confined to these locations.
fn exits(
    resources: &Resources,
    pools: &[DesiredPool],
    policy: &Policy,
    regions: &[String],
    planner: &mut Planner<'_>,
) -> Result<(DesiredExit, DesiredExit), ResolveError> {
    let here = planner.allows_here(regions);
    let Some(egress) = &policy.egress else {
        // The default egress is here, wherever else it would be allowed (FWD-8).
        let exit = if here {
            DesiredExit::Default
        } else {
            DesiredExit::Nowhere { pool: NO_POOL }
        };
        return Ok((exit, exit));
    };
    let mut of = |address: Ipv4Addr| -> Result<(DesiredExit, Whereabouts), ResolveError> {
        let (pool, number) = member(resources, pools, Address::V4(address))
            .ok_or_else(|| no_member(policy, Address::V4(address)))?;
        let nowhere = DesiredExit::Nowhere { pool: number };
        let at = planner.address((pool, number), address, regions);
        let exit = match at {
            Whereabouts::Here => DesiredExit::By {
                pool: number,
                address: Address::V4(address),
            },
            Whereabouts::Elsewhere(exit) => DesiredExit::Elsewhere { pool: number, exit },
            Whereabouts::OutOfReach | Whereabouts::Nobody | Whereabouts::Down => nowhere,
        };
        Ok((exit, at))
    };
    // The secondary takes the place of a primary that drains, or whose locations are down (POLICY-4).
    let (primary, at) = of(egress.ipv4)?;
    let ipv4 = match at {
        Whereabouts::Here | Whereabouts::Elsewhere(_) | Whereabouts::OutOfReach => primary,
        // Another address of the pool does no harm; the default egress is for what is down alone (SAFE-1).
        Whereabouts::Nobody | Whereabouts::Down if !egress.ipv4_fallback.is_unspecified() => {
            of(egress.ipv4_fallback)?.0
        }
        Whereabouts::Down if here => DesiredExit::Default,
        Whereabouts::Down => DesiredExit::Nowhere { pool: NO_POOL },
        Whereabouts::Nobody => primary,
    };
    Ok((ipv4, range(resources, pools, policy, egress.ipv6, here)?))
}

/// Where nothing leaves and no pool is to blame: the number of no pool.
const NO_POOL: u16 = 0;

/// The pool that has an address, and its number.
fn member<'r>(
    resources: &'r Resources,
    pools: &[DesiredPool],
    address: Address,
) -> Option<(&'r Pool, u16)> {
    let all = resources.pools.iter();
    let pool = all
        .into_iter()
        .find(|pool| pool.addresses.contains(&address))?;
    let resolved = pools.iter().find(|resolved| resolved.id == pool.id)?;
    Some((pool, resolved.number))
}

fn no_member(policy: &Policy, address: Address) -> ResolveError {
    ResolveError::NoMember {
        policy: policy.name.clone(),
        address,
    }
}

/// How IPv6 leaves by a range: this server may have no part of it. It is never forwarded (FWD-1).
fn range(
    resources: &Resources,
    pools: &[DesiredPool],
    policy: &Policy,
    range: Ipv6Net,
    here: bool,
) -> Result<DesiredExit, ResolveError> {
    let address = Address::V6(range);
    let (_, number) =
        member(resources, pools, address).ok_or_else(|| no_member(policy, address))?;
    let parts = pools.iter().filter(|pool| pool.number == number);
    let mut parts = parts.flat_map(|pool| &pool.prefixes);
    let part = parts.find(|part| range.contains(&part.prefix));
    Ok(match part.filter(|_| here) {
        Some(part) => DesiredExit::By {
            pool: number,
            address: Address::V6(part.prefix),
        },
        None => DesiredExit::Nowhere { pool: number },
    })
}

fn pool_number(numbers: &Numbers, id: &str, limits: Limits) -> Result<u16, ResolveError> {
    fits("pool", id, numbers.pools.get(id), limits.last_pool)
}

fn fits(
    noun: &'static str,
    id: &str,
    number: Option<&u16>,
    last: u16,
) -> Result<u16, ResolveError> {
    match number.copied() {
        Some(number) if number <= last => Ok(number),
        Some(number) => Err(ResolveError::NumberTooHigh {
            noun,
            id: id.to_owned(),
            number,
            last,
        }),
        None => Err(ResolveError::Unnumbered {
            noun,
            id: id.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;
    use crate::resource;

    const FILE: &str = r#"
account = [{ id = "acme", egress_udp = false }]
[[pool]]
id = "small"
account = "acme"
addresses = ["192.0.2.1", "2001:db8::/64", "192.0.2.2"]
draining = ["192.0.2.2"]
connections_per_origin = 1000
[[pool]]
id = "full"
account = "acme"
addresses = ["192.0.2.3"]
[[zone]]
id = "z"
account = "acme"
marks = [161, "0x50/0xf0"]
interfaces = ["in0"]
aegis = { enabled = true, pool_id = "small" }
[[zone]]
id = "off"
account = "acme"
sources = ["10.0.0.0/8"]
"#;

    fn numbers() -> Numbers {
        Numbers {
            zones: [("z".to_owned(), 7), ("off".to_owned(), 2)].into(),
            pools: [("small".to_owned(), 3), ("full".to_owned(), 1)].into(),
        }
    }

    fn model() -> Resources {
        resource::parse(&Source::new("r.toml", FILE), None)
            .0
            .unwrap()
    }

    #[test]
    fn names_become_numbers_and_defaults_are_filled_in() {
        let desired = resolve(&model(), &Config::default(), &numbers()).unwrap();
        assert_eq!(
            desired
                .zones
                .iter()
                .map(|zone| zone.number)
                .collect::<Vec<_>>(),
            [2, 7]
        );
        let zone = &desired.zones[1];
        assert!(zone.enabled && zone.realm && zone.egress_tcp && !zone.egress_udp);
        assert_eq!(zone.pool, Some(3));
        assert_eq!(
            zone.selectors.marks,
            [
                DesiredMark {
                    value: 161,
                    mask: 0xffff
                },
                DesiredMark {
                    value: 0x50,
                    mask: 0xf0
                }
            ],
            "a mark without a mask looks at all bits that are not reserved"
        );
        let off = &desired.zones[0];
        assert!(!off.enabled && off.pool.is_none() && !off.realm);
    }

    #[test]
    fn caps_are_the_lesser_of_quota_and_setting() {
        let desired = resolve(&model(), &Config::default(), &numbers()).unwrap();
        let caps: Vec<u32> = desired
            .pools
            .iter()
            .flat_map(|pool| &pool.candidates)
            .map(|c| c.cap)
            .collect();
        assert_eq!(caps, [40_000, 1000, 1000]);
        let small = desired.pool(3).unwrap();
        assert_eq!(
            small
                .candidates
                .iter()
                .map(|c| c.draining)
                .collect::<Vec<_>>(),
            [false, true]
        );
        assert_eq!(small.prefixes.len(), 1);
    }

    #[test]
    fn what_cannot_be_resolved_is_an_error_and_never_left_out() {
        let config = Config::default();
        let mut few = numbers();
        few.zones.remove("off");
        assert_eq!(
            resolve(&model(), &config, &few),
            Err(ResolveError::Unnumbered {
                noun: "zone",
                id: "off".into()
            })
        );
        let mut dangling = model();
        dangling.pools.remove(0);
        assert_eq!(
            resolve(&dangling, &config, &numbers()),
            Err(ResolveError::NoPool {
                zone: "z".into(),
                pool: "small".into()
            })
        );
        let mut high = numbers();
        high.zones.insert("z".into(), 20_000);
        assert!(matches!(
            resolve(&model(), &config, &high),
            Err(ResolveError::NumberTooHigh { .. })
        ));
    }
}
