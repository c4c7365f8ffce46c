//! What a BYOIP prefix has when it was made through the API: bindings and delegations of parts of it.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Service;

/// What the API keeps of a prefix besides the prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The autonomous system that announces it.
    pub asn: u32,
    /// What people call it.
    pub description: String,
    /// When it was made, µs since 1970.
    pub created: i64,
    /// When it was withdrawn, or announced again, the last time, µs since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertised_modified: Option<i64>,
    /// What its parts are bound to, the whole of it first; the most specific one counts.
    pub bindings: Vec<Binding>,
    /// Who else may use its parts (POOL-7).
    pub delegations: Vec<Delegation>,
}

/// A part of a prefix, or all of it, and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// The addresses.
    pub cidr: IpNet,
    /// What they are for.
    pub service: Service,
}

/// A part of a prefix, or all of it, that another account may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delegation {
    /// The addresses.
    pub cidr: IpNet,
    /// Who may, by id.
    pub account: String,
    /// When it was made, µs since 1970.
    pub created: i64,
}

impl Registration {
    /// What addresses are bound to; `None` while they are bound to nothing.
    pub fn service_of(&self, net: IpNet) -> Option<Service> {
        self.bindings
            .iter()
            .filter(|binding| binding.cidr.contains(&net))
            .max_by_key(|binding| binding.cidr.prefix_len())
            .map(|binding| binding.service)
    }
}
