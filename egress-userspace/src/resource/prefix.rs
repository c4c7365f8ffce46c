//! A BYOIP prefix: addresses that an account brought along.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::address;
use super::name;
use super::place::ObjectPlaces;
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
    /// What it is for; `cdn-egress` by default.
    pub service: Service,
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
        };
        table.finish();
        prefix
    }
}
