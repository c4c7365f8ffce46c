//! Which egress policy a packet meets (POLICY-1, ZONE-5).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{Query, translated};
use crate::desired::{Desired, DesiredPolicy, DesiredZone};
use crate::policy::{Expression, Facts};

/// The source port of a question that names none: the first that Linux gives to connections.
pub const UNKNOWN_PORT: u16 = 32_768;

/// What policies decide from a source port on, up to the next one that is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByPort {
    /// The first port.
    pub from: u16,
    /// The policy; none leaves it to the zone's pool.
    pub policy: Option<String>,
}

/// The policy that a packet meets first, among those of its zone's account.
pub(super) fn decided<'d>(
    desired: &'d Desired,
    zone: &DesiredZone,
    query: &Query,
) -> Option<&'d DesiredPolicy> {
    from(
        desired,
        zone,
        query,
        query.source_port.unwrap_or(UNKNOWN_PORT),
    )
}

/// What policies decide for every source port, if the question names none and it is not the same for all.
pub(super) fn by_port(desired: &Desired, zone: &DesiredZone, query: &Query) -> Vec<ByPort> {
    if query.source_port.is_some() {
        return Vec::new();
    }
    let asked = desired
        .policies
        .iter()
        .filter(|policy| policy.zones.contains(&zone.number));
    let mut starts = BTreeSet::from([0]);
    for range in asked
        .filter_map(|policy| policy.traffic.as_ref())
        .flat_map(Expression::source_ports)
    {
        starts.insert(*range.start());
        starts.extend(range.start().checked_add(1));
        starts.extend(range.end().checked_add(1));
    }
    let mut found: Vec<ByPort> = Vec::new();
    for port in starts {
        let policy = from(desired, zone, query, port).map(|policy| policy.name.clone());
        if found.last().is_none_or(|last| last.policy != policy) {
            found.push(ByPort { from: port, policy });
        }
    }
    if found.len() > 1 { found } else { Vec::new() }
}

fn from<'d>(
    desired: &'d Desired,
    zone: &DesiredZone,
    query: &Query,
    source_port: u16,
) -> Option<&'d DesiredPolicy> {
    let facts = Facts {
        source: query.source,
        source_port,
        destination: query.destination,
        destination_port: query.destination_port,
        protocol: translated(query.protocol)?,
        zone: (&zone.id, &zone.name),
    };
    desired.policies.iter().find(|policy| {
        policy.zones.contains(&zone.number)
            && policy
                .traffic
                .as_ref()
                .is_none_or(|traffic| traffic.matches(&facts))
    })
}
