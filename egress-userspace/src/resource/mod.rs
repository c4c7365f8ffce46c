//! The resource model: who owns which addresses, and which traffic leaves by them. One noun a file.
//!
//! [`read`] takes in a `resources.toml` with a place for every value; [`check`] judges a whole set, wherever its
//! members come from. Both report every mistake.

mod account;
mod address;
pub mod check;
mod lease;
mod location;
mod mark;
mod name;
mod object;
mod overlap;
mod place;
mod placement;
mod policy;
mod pool;
mod prefix;
mod registration;
mod zone;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use account::{Account, POLICY_PERCENT, POOL_PERCENT};
pub use address::{Address, AddressError};
pub use lease::Lease;
pub use location::{DataCenter, Location, Server};
pub use mark::Mark;
pub use name::unfit;
pub use object::{Drain, Object, Owner, Setting};
pub use place::{Kind, Place, Places};
pub use placement::{Placement, Share};
pub use policy::{Egress, FIRST_PRECEDENCE, MAX_PRECEDENCE, Made, Policy};
pub use pool::{Pool, PoolKind, PoolUse};
pub use prefix::{Prefix, Service};
pub use registration::{Binding, Delegation, Registration};
pub use zone::{Aegis, Zone};

use crate::config::Config;
use crate::diagnostic::{Diagnostics, Report, Source};
use crate::document::{self, Table};
use crate::ownership::Ownership;

/// The top-level keys of this kind of file; `egress validate` tells the kinds apart by them.
pub const SECTIONS: [&str; 7] = [
    "account",
    "prefix",
    "pool",
    "zone",
    "policy",
    "location",
    "placement",
];

/// A whole set of resources. References are ids or names, as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Who pays.
    pub accounts: Vec<Account>,
    /// BYOIP prefixes.
    pub prefixes: Vec<Prefix>,
    /// Where servers stand; without any this one is the only one.
    pub locations: Vec<Location>,
    /// Named sets of egress IPs.
    pub pools: Vec<Pool>,
    /// How egress IPs are split over data centers.
    pub placements: Vec<Placement>,
    /// Tenants' traffic.
    pub zones: Vec<Zone>,
    /// Egress policies.
    #[serde(default)]
    pub policies: Vec<Policy>,
    /// Addresses that accounts have through the API.
    #[serde(default)]
    pub leases: Vec<Lease>,
    /// Settings made through API and command line, by zone id; for zones whose file has no `[zone.aegis]`.
    pub settings: BTreeMap<String, Aegis>,
    /// Addresses and ids of pools that drain through API and command line, whatever their pools say; and servers
    /// ([`Drain::of_server`]).
    pub drains: BTreeSet<String>,
    /// Who holds which slices, where servers share a store (CLU-3).
    #[serde(skip)]
    pub ownership: Option<Ownership>,
}

impl Resources {
    /// Whether there is nothing at all, not even somebody who has nothing.
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// The account with this id or name.
    pub fn account(&self, reference: &str) -> Option<&Account> {
        self.accounts
            .iter()
            .find(|account| account.id == reference)
            .or_else(|| {
                self.accounts
                    .iter()
                    .find(|account| account.name == reference)
            })
    }

    /// The pool with this id or, if the file gave it one, this name.
    pub fn pool(&self, reference: &str) -> Option<&Pool> {
        self.pools
            .iter()
            .find(|pool| pool.id == reference)
            .or_else(|| {
                self.pools
                    .iter()
                    .find(|pool| !pool.made && pool.name.as_deref() == Some(reference))
            })
    }

    /// The zone with this id or name.
    pub fn zone(&self, reference: &str) -> Option<&Zone> {
        self.zones
            .iter()
            .find(|zone| zone.id == reference)
            .or_else(|| self.zones.iter().find(|zone| zone.name == reference))
    }

    /// The setting in force for a zone: its file's, else the one made through API or command line, else off.
    pub fn aegis(&self, zone: &Zone) -> Aegis {
        zone.aegis
            .clone()
            .or_else(|| self.settings.get(&zone.id).cloned())
            .unwrap_or_default()
    }

    /// Whether a member of a pool takes no new flows (POOL-9): its pool's file says so, or it was told to.
    pub fn drains(&self, pool: &Pool, address: &Address) -> bool {
        pool.draining.contains(address)
            || self.drains.contains(&pool.id)
            || self.drains.contains(&address.to_string())
    }

    /// Whether a server takes no new flows: it was told to (FWD-7).
    pub fn drains_server(&self, server: &str) -> bool {
        self.drains.contains(&Drain::of_server(server))
    }

    /// The most specific BYOIP prefix around `net`; without one, the address is leased.
    pub fn byoip(&self, net: IpNet) -> Option<&Prefix> {
        self.prefixes
            .iter()
            .filter(|prefix| prefix.cidr.contains(&net))
            .max_by_key(|prefix| prefix.cidr.prefix_len())
    }

    /// Whether two references mean the same account.
    pub fn same_account(&self, one: &str, other: &str) -> bool {
        match (self.account(one), self.account(other)) {
            (Some(one), Some(other)) => one.id == other.id,
            _ => one == other,
        }
    }
}

/// Reads the report's source: the model, and where each part of it stands.
///
/// The model is complete even where values were refused, with stand-ins for them: the report then has errors,
/// and nobody may use the model for more than finding further mistakes.
pub fn read(report: &Report<'_>) -> (Resources, Places) {
    let document = document::parse(report);
    let mut root = Table::root(&document, report);
    let mut places = Places::default();
    let mut resources = Resources::default();
    for (index, table) in root.sections("account").into_iter().enumerate() {
        resources
            .accounts
            .push(Account::read(table, &mut places.of(Kind::Account, index)));
    }
    for (index, table) in root.sections("prefix").into_iter().enumerate() {
        resources
            .prefixes
            .push(Prefix::read(table, &mut places.of(Kind::Prefix, index)));
    }
    for (index, table) in root.sections("pool").into_iter().enumerate() {
        resources
            .pools
            .push(Pool::read(table, &mut places.of(Kind::Pool, index)));
    }
    for (index, table) in root.sections("zone").into_iter().enumerate() {
        resources
            .zones
            .push(Zone::read(table, &mut places.of(Kind::Zone, index)));
    }
    for (index, table) in root.sections("policy").into_iter().enumerate() {
        let highest = |account: &str| {
            let of_account = resources
                .policies
                .iter()
                .filter(|policy| resources.same_account(&policy.account, account));
            of_account.map(|policy| policy.precedence).max()
        };
        let policy = Policy::read(table, &mut places.of(Kind::Policy, index), highest);
        resources.policies.push(policy);
    }
    for (index, table) in root.sections("location").into_iter().enumerate() {
        resources
            .locations
            .push(Location::read(table, &mut places.of(Kind::Location, index)));
    }
    for (index, table) in root.sections("placement").into_iter().enumerate() {
        resources.placements.push(Placement::read(
            table,
            &mut places.of(Kind::Placement, index),
        ));
    }
    root.finish();
    (resources, places)
}

/// Reads and checks a text on its own, and against this server's configuration if that is known.
///
/// `None` when there are errors; warnings come with the resources.
pub fn parse(source: &Source, config: Option<&Config>) -> (Option<Resources>, Diagnostics) {
    let report = Report::new(source);
    let (resources, places) = read(&report);
    check::check(&resources, &places, config, &report);
    if !report.has_errors() && resources.is_nothing() {
        report.error(
            &(0..0),
            "there is nothing in it, and everything that was applied from it would be gone",
            "write [[account]], [[pool]] and [[zone]] sections, or only an [[account]] to have no pools and zones; \
             `egress detach` takes everything off",
        );
    }
    let valid = !report.has_errors();
    (valid.then_some(resources), report.finish())
}

#[cfg(test)]
mod tests;
