//! From policies to the data plane's tables: for every value of a field the rules that it satisfies.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use egress_common::policy::{Exit, MAX_RULES, MAX_SETS, PORTS_OF_A_SIDE, Rule, RuleSet, Sets, set};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::expression::{Facts, Values};
use super::field::Field;
use super::rules::{Alternative, Condition, TooManyAlternatives, alternatives};
use crate::dataplane::api::Protocol;
use crate::desired::{Desired, DesiredPolicy, DesiredZone};

/// Prefixes of one field and family in one version of the tables.
pub const MAX_PREFIXES: usize = 32_768;

/// Prefixes with the number of the set that their addresses belong to, but for those in a longer one.
pub type Prefixes = BTreeMap<IpNet, u32>;

/// One version of the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    /// By precedence; none where no policy applies to any zone.
    pub rules: Vec<Rule>,
    /// By number.
    pub sets: Vec<RuleSet>,
    /// By zone number; those without policies are missing.
    pub zones: BTreeMap<u32, u32>,
    /// Of source addresses.
    pub from: Prefixes,
    /// Of destination addresses.
    pub to: Prefixes,
    /// Of source ports, then of destination ports.
    pub ports: Vec<u32>,
}

/// Policies do not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    /// One of them.
    #[error("policy {name}: {why}")]
    Alternatives {
        /// Its name.
        name: String,
        /// Why.
        why: TooManyAlternatives,
    },
    /// All of them together.
    #[error("all policies together make {count} {what}, and there may be {most}")]
    Together {
        /// Rules, prefixes, or sets.
        what: &'static str,
        /// How many there are.
        count: usize,
        /// How many there may be.
        most: usize,
    },
}

/// Compiles the policies of `desired`, which are in order of precedence. `exit` tells how a policy's flows leave.
///
/// # Errors
/// They do not fit.
pub fn compile(
    desired: &Desired,
    exit: impl Fn(&DesiredPolicy) -> (Exit, Exit),
) -> Result<Tables, TooMuch> {
    let mut rules = Vec::new();
    let mut all: Vec<(usize, Alternative)> = Vec::new();
    for (number, policy) in desired.policies.iter().enumerate() {
        let (exit4, exit6) = exit(policy);
        let found = alternatives(policy.traffic.as_ref()).map_err(|why| TooMuch::Alternatives {
            name: policy.name.clone(),
            why,
        })?;
        for alternative in found {
            rules.push(Rule {
                policy: u32::try_from(number).unwrap_or(u32::MAX),
                exit4,
                exit6,
            });
            all.push((number, alternative));
        }
    }
    fits(
        "rules (one for each alternative)",
        rules.len(),
        MAX_RULES as usize,
    )?;
    if rules.is_empty() {
        return Ok(Tables::default());
    }
    let mut tables = Tables {
        rules,
        ..Tables::default()
    };
    let mut shared = Shared::default();
    let having = |field, holds: &dyn Fn(&Values) -> bool| accepting(&all, field, holds);
    shared.sets = vec![RuleSet::default()];
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let holds = |values: &Values| matches!(values, Values::Protocols(protocols) if protocols.contains(&protocol));
        shared.sets.push(having(Field::Protocol, &holds));
    }
    for zone in &desired.zones {
        let of_zone = of_zone(desired, &all, zone);
        if of_zone != RuleSet::default() {
            let number = shared.number(of_zone);
            tables.zones.insert(u32::from(zone.number), number);
        }
    }
    tables.from = addresses(&all, Field::SourceAddress, &mut shared)?;
    tables.to = addresses(&all, Field::DestinationAddress, &mut shared)?;
    for field in [Field::SourcePort, Field::DestinationPort] {
        ports(&all, field, &mut shared, &mut tables.ports);
    }
    tables.sets = shared.sets;
    fits("sets of rules", tables.sets.len(), MAX_SETS as usize)?;
    Ok(tables)
}

fn fits(what: &'static str, count: usize, most: usize) -> Result<(), TooMuch> {
    if count > most {
        return Err(TooMuch::Together { what, count, most });
    }
    Ok(())
}

/// Sets, each once.
#[derive(Default)]
struct Shared {
    sets: Vec<RuleSet>,
    numbers: HashMap<RuleSet, u32>,
}

impl Shared {
    fn number(&mut self, set: RuleSet) -> u32 {
        *self.numbers.entry(set).or_insert_with(|| {
            self.sets.push(set);
            u32::try_from(self.sets.len() - 1).unwrap_or(u32::MAX)
        })
    }
}

/// The rules whose conditions on a field all hold, where `holds` says whether the value is among some values.
fn accepting(
    all: &[(usize, Alternative)],
    field: Field,
    holds: impl Fn(&Values) -> bool,
) -> RuleSet {
    let mut set = RuleSet::default();
    for (rule, (_, alternative)) in (0..).zip(all) {
        let accepted = |condition: &Condition| {
            condition.field != field || holds(&condition.values) != condition.negated
        };
        if alternative.iter().all(accepted) {
            set.insert(rule);
        }
    }
    set
}

/// The rules of policies that apply to a zone (ZONE-5).
fn of_zone(desired: &Desired, all: &[(usize, Alternative)], zone: &DesiredZone) -> RuleSet {
    let named = accepting(
        all,
        Field::Zone,
        |values| matches!(values, Values::Zones(zones) if zones.iter().any(|one| *one == zone.id || *one == zone.name)),
    );
    let mut set = RuleSet::default();
    for (rule, (policy, _)) in (0..).zip(all) {
        let applies = desired
            .policies
            .get(*policy)
            .is_some_and(|policy| policy.zones.contains(&zone.number));
        if applies && named.contains(rule) {
            set.insert(rule);
        }
    }
    set
}

/// The prefixes that any rule names, each with the rules that accept an address of it that is in no longer one.
fn addresses(
    all: &[(usize, Alternative)],
    field: Field,
    shared: &mut Shared,
) -> Result<Prefixes, TooMuch> {
    // Every address is in one of these, so that no look-up finds nothing.
    let mut nets: BTreeSet<IpNet> =
        [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].into();
    // Where each prefix is named: rule, and which of its conditions.
    let mut named: HashMap<IpNet, Vec<(usize, usize)>> = HashMap::new();
    for (rule, (_, alternative)) in all.iter().enumerate() {
        for (nth, condition) in alternative.iter().enumerate() {
            if let (true, Values::Addresses(of)) = (condition.field == field, &condition.values) {
                for net in of {
                    nets.insert(*net);
                    named.entry(*net).or_default().push((rule, nth));
                }
            }
        }
    }
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        let count = nets
            .iter()
            .filter(|net| matches!(net, IpNet::V6(_)) == ipv6)
            .count();
        let what = match (field, family) {
            (Field::SourceAddress, "IPv4") => "IPv4 source prefixes",
            (Field::SourceAddress, _) => "IPv6 source prefixes",
            (_, "IPv4") => "IPv4 destination prefixes",
            _ => "IPv6 destination prefixes",
        };
        fits(what, count, MAX_PREFIXES)?;
    }
    let mut found = Prefixes::new();
    for net in nets {
        let mut holding: BTreeSet<(usize, usize)> = BTreeSet::new();
        let mut around = Some(net);
        while let Some(one) = around {
            holding.extend(named.get(&one).into_iter().flatten());
            around = one.supernet();
        }
        let mut set = RuleSet::default();
        for (rule, (_, alternative)) in all.iter().enumerate() {
            let accepted = alternative.iter().enumerate().all(|(nth, condition)| {
                condition.field != field || holding.contains(&(rule, nth)) != condition.negated
            });
            if accepted {
                set.insert(u32::try_from(rule).unwrap_or(u32::MAX));
            }
        }
        found.insert(net, shared.number(set));
    }
    Ok(found)
}

/// The set of every port, between each two at which some range begins or ends.
fn ports(all: &[(usize, Alternative)], field: Field, shared: &mut Shared, table: &mut Vec<u32>) {
    let mut starts: BTreeSet<u32> = [0, PORTS_OF_A_SIDE].into();
    for (_, alternative) in all {
        for condition in alternative.iter().filter(|one| one.field == field) {
            if let Values::Ports(ranges) = &condition.values {
                for range in ranges {
                    starts.insert(u32::from(*range.start()));
                    starts.insert(u32::from(*range.end()) + 1);
                }
            }
        }
    }
    let starts: Vec<u32> = starts.into_iter().collect();
    for pair in starts.windows(2) {
        let &[start, end] = pair else { continue };
        let port = u16::try_from(start).unwrap_or(u16::MAX);
        let set = accepting(
            all,
            field,
            |values| matches!(values, Values::Ports(ranges) if ranges.iter().any(|range| range.contains(&port))),
        );
        let number = shared.number(set);
        table.extend((start..end).map(|_| number));
    }
}

impl Tables {
    /// The first rule that a packet of the zone with this number meets: what the data plane finds, looked up in the
    /// same tables.
    pub fn first(&self, zone: u16, facts: &Facts<'_>) -> Option<&Rule> {
        let port = |side: u32, port: u16| {
            let at = side * PORTS_OF_A_SIDE + u32::from(port);
            self.ports.get(at as usize).copied()
        };
        let sets = Sets {
            zone: *self.zones.get(&u32::from(zone))?,
            source: longest(&self.from, facts.source)?,
            destination: longest(&self.to, facts.destination)?,
            source_port: port(0, facts.source_port)?,
            destination_port: port(1, facts.destination_port)?,
            protocol: match facts.protocol {
                Protocol::Tcp => set::TCP,
                Protocol::Udp => set::UDP,
            },
        };
        let of = |number: u32| self.sets.get(number as usize);
        let rule = RuleSet::first_of_all([
            of(sets.zone)?,
            of(sets.source)?,
            of(sets.destination)?,
            of(sets.source_port)?,
            of(sets.destination_port)?,
            of(sets.protocol)?,
        ])?;
        self.rules.get(rule as usize)
    }
}

fn longest(prefixes: &Prefixes, address: IpAddr) -> Option<u32> {
    let mut around = Some(IpNet::from(address));
    while let Some(net) = around {
        if let Some(number) = prefixes.get(&net) {
            return Some(*number);
        }
        around = net.supernet();
    }
    None
}
