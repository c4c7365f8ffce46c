//! What a filter by names means: zones and pools found, numbers and addresses looked up.

use ipnet::IpNet;

use crate::control::protocol::{Failure, Filter};
use crate::dataplane::api::{FlowFilter, OriginFilter};
use crate::document::nearest;
use crate::resource::{Pool, Resources, Zone};
use crate::store::Stored;

/// The zone and the pool that a filter names.
pub(super) struct Scope {
    zone: Option<String>,
    pool: Option<String>,
    pool_of_zone: Option<Option<String>>,
}

impl Scope {
    /// Finds them; an unknown one is an error.
    pub(super) fn of(resources: &Resources, filter: &Filter) -> Result<Self, Failure> {
        let zone = filter
            .zone
            .as_deref()
            .map(|reference| find_zone(resources, reference))
            .transpose()?;
        let pool = filter
            .pool
            .as_deref()
            .map(|reference| find_pool(resources, reference))
            .transpose()?;
        let pool_of = |zone: &Zone| {
            let setting = resources.aegis(zone);
            setting
                .pool_id
                .as_deref()
                .and_then(|reference| resources.pool(reference))
                .map(|pool| pool.id.clone())
        };
        Ok(Self {
            zone: zone.map(|zone| zone.id.clone()),
            pool: pool.map(|pool| pool.id.clone()),
            pool_of_zone: zone.map(pool_of),
        })
    }

    /// Whether the zone is the one asked for.
    pub(super) fn zone(&self, zone: &Zone) -> bool {
        self.zone.as_ref().is_none_or(|id| *id == zone.id)
    }

    /// Whether the zone uses the pool asked for.
    pub(super) fn uses(&self, resources: &Resources, zone: &Zone) -> bool {
        self.pool.as_ref().is_none_or(|id| {
            let setting = resources.aegis(zone);
            setting
                .pool_id
                .as_deref()
                .and_then(|reference| resources.pool(reference))
                .is_some_and(|pool| pool.id == *id)
        })
    }

    /// Whether the pool is the one asked for, or that of the zone asked for.
    pub(super) fn pool(&self, pool: &str) -> bool {
        self.pool.as_ref().is_none_or(|id| id == pool)
            && self
                .pool_of_zone
                .as_ref()
                .is_none_or(|of_zone| of_zone.as_deref() == Some(pool))
    }
}

/// The zone with this id or name.
pub fn find_zone<'r>(resources: &'r Resources, reference: &str) -> Result<&'r Zone, Failure> {
    resources.zone(reference).ok_or_else(|| {
        let known = resources
            .zones
            .iter()
            .flat_map(|zone| [zone.id.as_str(), zone.name.as_str()]);
        unknown_reference("zone", reference, known)
    })
}

/// The pool with this id or name.
pub fn find_pool<'r>(resources: &'r Resources, reference: &str) -> Result<&'r Pool, Failure> {
    resources.pool(reference).ok_or_else(|| {
        let known = resources
            .pools
            .iter()
            .flat_map(|pool| std::iter::once(pool.id.as_str()).chain(pool.name.as_deref()));
        unknown_reference("pool", reference, known)
    })
}

fn unknown_reference<'n>(
    noun: &str,
    reference: &str,
    known: impl Iterator<Item = &'n str>,
) -> Failure {
    let remedy = nearest(reference, known).map_or_else(
        || format!("`egress {noun}s` lists the {noun}s there are"),
        |like| format!("did you mean {like}?"),
    );
    Failure::usage(format!("there is no {noun} {reference}"), remedy)
}

/// A number written as `#7`, as names print when nobody knows them.
fn by_number(reference: &str) -> Option<u16> {
    reference.strip_prefix('#')?.parse().ok()
}

/// The filter of flows that a filter by names means.
pub fn flow_filter(stored: &Stored, filter: &Filter) -> Result<FlowFilter, Failure> {
    let resources = stored.resources();
    let zone = filter
        .zone
        .as_deref()
        .map(|reference| match by_number(reference) {
            Some(number) => Ok(number),
            None => find_zone(&resources, reference)
                .map(|zone| stored.numbers.zones.get(&zone.id).copied().unwrap_or(0)),
        });
    let pool = filter
        .pool
        .as_deref()
        .map(|reference| match by_number(reference) {
            Some(number) => Ok(number),
            None => find_pool(&resources, reference)
                .map(|pool| stored.numbers.pools.get(&pool.id).copied().unwrap_or(0)),
        });
    Ok(FlowFilter {
        zone: zone.transpose()?,
        pool: pool.transpose()?,
        origin: filter.origin,
        egress_ip: filter.egress_ip,
        protocol: None,
    })
}

/// The filter of connection counts that a filter by names means: zones and pools stand for their addresses.
pub fn origin_filter(stored: &Stored, filter: &Filter) -> Result<OriginFilter, Failure> {
    let resources = stored.resources();
    let scope = Scope::of(&resources, filter)?;
    let egress_ips = if filter.zone.is_some() || filter.pool.is_some() {
        let of_scope = resources
            .pools
            .iter()
            .filter(|pool| scope.pool(&pool.id))
            .flat_map(|pool| &pool.addresses);
        let nets = of_scope.map(|address| address.net());
        Some(match filter.egress_ip {
            None => nets.collect(),
            Some(wanted) => nets
                .filter(|net| net.contains(&wanted))
                .map(|_| IpNet::from(wanted))
                .collect(),
        })
    } else {
        filter.egress_ip.map(|wanted| vec![IpNet::from(wanted)])
    };
    Ok(OriginFilter {
        egress_ips,
        origin: filter.origin,
        protocol: None,
    })
}
