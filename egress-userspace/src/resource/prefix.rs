//! A BYOIP prefix: addresses that an account brought along.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Resources;
use super::address;
use super::name;
use super::place::ObjectPlaces;
use super::registration::Registration;
use crate::document::Table;

/// What a prefix is bound to; one of them, never both (POOL-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Service {
    /// Egress IPs may come from it.
    CdnEgress,
    /// It receives traffic for somebody else; no egress IP may come from it.
    CdnIngress,
}

/// A BYOIP prefix: an address inside any of them is `byoip`, every other is `leased`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The addresses.
    pub cidr: IpNet,
    /// The owner, by id or name.
    pub account: String,
    /// Other accounts that may use it, by id or name (POOL-7).
    pub delegated_to: Vec<String>,
    /// What it is for; `cdn-egress` by default. Of one that was made through the API its bindings say it.
    pub service: Service,
    /// Whether routes to egress IPs in it are kept from the network (ANN-1).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withdrawn: bool,
    /// What only those made through the API have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registration: Option<Registration>,
}

impl Service {
    /// The word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::CdnEgress => "cdn-egress",
            Self::CdnIngress => "cdn-ingress",
        }
    }
}

impl Prefix {
    pub(super) fn read(mut table: Table<'_, '_>, places: &mut ObjectPlaces<'_>) -> Self {
        places.whole(table.span());
        let example = "cidr = \"198.51.100.0/24\"";
        let cidr = table.require("cidr", example);
        if let Some(value) = cidr {
            places.field("cidr", value.span());
        }
        let mut delegated_to = Vec::new();
        let example = "delegated_to = [\"acme\"]";
        for value in table.list("delegated_to", example) {
            if let Some(account) = name::checked(value, example) {
                places.item("delegated_to", delegated_to.len(), value.span());
                delegated_to.push(account);
            }
        }
        let service = table.get("service", "service = \"cdn-egress\"");
        if let Some(value) = service {
            places.field("service", value.span());
        }
        let advertised = table
            .get("advertised", "advertised = true")
            .and_then(|value| value.boolean());
        let prefix = Self {
            // The stand-in for a refused prefix holds no address that a pool may have.
            cidr: cidr
                .and_then(address::net)
                .unwrap_or_else(|| IpNet::from(std::net::IpAddr::from([0; 4]))),
            account: name::reference(&mut table, "account", "account = \"acme\"", places),
            delegated_to,
            service: service
                .and_then(|value| {
                    value.choice(&[
                        ("cdn-egress", Service::CdnEgress),
                        ("cdn-ingress", Service::CdnIngress),
                    ])
                })
                .unwrap_or(Service::CdnEgress),
            withdrawn: advertised == Some(false),
            registration: None,
        };
        table.finish();
        prefix
    }

    /// What addresses of it are bound to; `None` while they are bound to nothing.
    pub fn service_of(&self, net: IpNet) -> Option<Service> {
        match &self.registration {
            None => Some(self.service),
            Some(registration) => registration.service_of(net),
        }
    }

    /// What it is bound to, all of it or in parts.
    pub fn services(&self) -> impl Iterator<Item = Service> {
        let bindings = self.registration.iter().flat_map(|one| &one.bindings);
        let whole = self.registration.is_none().then_some(self.service);
        whole
            .into_iter()
            .chain(bindings.map(|binding| binding.service))
    }

    /// The accounts that may use these addresses of it: who owns it, and to whom they were delegated.
    pub fn users(&self, net: IpNet) -> impl Iterator<Item = &String> {
        let delegations = self.registration.iter().flat_map(|one| &one.delegations);
        let delegated = delegations.filter(move |one| one.cidr.contains(&net));
        std::iter::once(&self.account)
            .chain(&self.delegated_to)
            .chain(delegated.map(|one| &one.account))
    }

    /// Whether an account may use these addresses of it (POOL-7).
    pub fn is_for(&self, resources: &Resources, account: &str, net: IpNet) -> bool {
        self.users(net)
            .any(|user| resources.same_account(user, account))
    }
}
