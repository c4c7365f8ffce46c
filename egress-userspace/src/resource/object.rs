//! An object: what has an owner and a row in the store.

use serde::{Deserialize, Serialize};

use super::{
    Account, Aegis, Kind, Lease, Location, Placement, Policy, Pool, Prefix, Resources, Zone,
};

/// Who may change an object; either side refuses to change the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The resources file, by `egress apply` or the daemon's own file.
    File,
    /// API and command line.
    Api,
}

impl Owner {
    /// The word in the store.
    pub const fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Api => "api",
        }
    }
}

/// Any object of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "lowercase")]
pub enum Object {
    /// An account.
    Account(Account),
    /// A BYOIP prefix.
    Prefix(Prefix),
    /// A location.
    Location(Location),
    /// A pool.
    Pool(Pool),
    /// A placement.
    Placement(Placement),
    /// A zone.
    Zone(Zone),
    /// An egress policy.
    Policy(Policy),
    /// A leased address.
    Lease(Lease),
    /// A zone's setting that is an object of its own.
    Setting(Setting),
    /// An address or pool that drains though its pool does not say so.
    Drain(Drain),
}

/// New flows are kept from an address, or from all of a pool's, or from a server, through API or command line (POOL-9,
/// FWD-7).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// The address, or the pool's id, or what [`Self::of_server`] makes; no id can be read as an address.
    pub subject: String,
}

/// Before the name of a server that drains: there is no blank in any id.
const SERVER: &str = "server ";

impl Drain {
    /// The subject that stands for a server.
    pub fn of_server(name: &str) -> String {
        format!("{SERVER}{name}")
    }

    /// The server, if it is one.
    pub fn server(subject: &str) -> Option<&str> {
        subject.strip_prefix(SERVER)
    }
}

/// A zone's setting, made through API or command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// The zone's id.
    pub zone: String,
    /// The setting.
    pub aegis: Aegis,
}

impl Object {
    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Account(_) => Kind::Account,
            Self::Prefix(_) => Kind::Prefix,
            Self::Location(_) => Kind::Location,
            Self::Pool(_) => Kind::Pool,
            Self::Placement(_) => Kind::Placement,
            Self::Zone(_) => Kind::Zone,
            Self::Policy(_) => Kind::Policy,
            Self::Lease(_) => Kind::Lease,
            Self::Setting(_) => Kind::Setting,
            Self::Drain(_) => Kind::Drain,
        }
    }

    /// What tells it from others of its kind.
    pub fn id(&self) -> String {
        match self {
            Self::Account(account) => account.id.clone(),
            Self::Prefix(prefix) => prefix.cidr.to_string(),
            Self::Location(location) => location.name.clone(),
            Self::Pool(pool) => pool.id.clone(),
            Self::Placement(placement) => placement.address.to_string(),
            Self::Zone(zone) => zone.id.clone(),
            // Names are their account's own.
            Self::Policy(policy) => policy.made.as_ref().map_or_else(
                || format!("{}/{}", policy.account, policy.name),
                |made| made.id.clone(),
            ),
            Self::Lease(lease) => lease.address.to_string(),
            Self::Setting(setting) => setting.zone.clone(),
            Self::Drain(drain) => drain.subject.clone(),
        }
    }

    /// What people call it.
    pub fn label(&self) -> String {
        match self {
            Self::Account(account) => account.name.clone(),
            Self::Pool(pool) => pool.name.clone().unwrap_or_else(|| pool.id.clone()),
            Self::Zone(zone) => zone.name.clone(),
            Self::Policy(policy) => policy.name.clone(),
            Self::Prefix(_)
            | Self::Location(_)
            | Self::Placement(_)
            | Self::Lease(_)
            | Self::Setting(_)
            | Self::Drain(_) => self.id(),
        }
    }
}

impl Resources {
    /// Every object of the model, in the order of the lists.
    pub fn objects(&self) -> Vec<Object> {
        let settings = self.settings.iter().map(|(zone, aegis)| {
            Object::Setting(Setting {
                zone: zone.clone(),
                aegis: aegis.clone(),
            })
        });
        let drains = self.drains.iter().map(|subject| {
            Object::Drain(Drain {
                subject: subject.clone(),
            })
        });
        self.accounts
            .iter()
            .cloned()
            .map(Object::Account)
            .chain(self.prefixes.iter().cloned().map(Object::Prefix))
            .chain(self.locations.iter().cloned().map(Object::Location))
            .chain(self.pools.iter().cloned().map(Object::Pool))
            .chain(self.placements.iter().cloned().map(Object::Placement))
            .chain(self.zones.iter().cloned().map(Object::Zone))
            .chain(self.policies.iter().cloned().map(Object::Policy))
            .chain(self.leases.iter().cloned().map(Object::Lease))
            .chain(settings)
            .chain(drains)
            .collect()
    }

    /// Adds an object at the end of its list.
    pub fn push(&mut self, object: Object) {
        match object {
            Object::Account(account) => self.accounts.push(account),
            Object::Prefix(prefix) => self.prefixes.push(prefix),
            Object::Location(location) => self.locations.push(location),
            Object::Pool(pool) => self.pools.push(pool),
            Object::Placement(placement) => self.placements.push(placement),
            Object::Zone(zone) => self.zones.push(zone),
            Object::Policy(policy) => self.policies.push(policy),
            Object::Lease(lease) => self.leases.push(lease),
            Object::Setting(setting) => {
                self.settings.insert(setting.zone, setting.aegis);
            }
            Object::Drain(drain) => {
                self.drains.insert(drain.subject);
            }
        }
    }
}
