//! BYOIP prefixes as the original's public interface has them: `/accounts/{account_id}/addressing`.
//!
//! Who owns a prefix binds it and delegates it; making and removing prefixes takes the operator's permission, because
//! nobody here asks a registry whose the addresses are. Prefixes of the resources file are shown and are read-only.

pub(super) mod bgp;
pub(super) mod bindings;
pub(super) mod delegations;
pub(super) mod prefixes;

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::body::{invalid, not_found, of_file, shown};
use super::envelope::{Answer, ApiError};
use super::{Api, Call};
use crate::controller::Writer;
use crate::resource::{Object, Owner, Prefix, Registration, Resources, Service};
use crate::store::{Change, Stored};

/// `GET /accounts/{account_id}/addressing/services`
pub(super) fn services(_: &Api, call: &Call) -> Result<Answer, ApiError> {
    call.account()?;
    let services =
        SERVICES.map(|service| json!({ "id": service_id(service), "name": name(service) }));
    Ok(Answer::One(services.to_vec().into()))
}

const SERVICES: [Service; 2] = [Service::CdnEgress, Service::CdnIngress];

const fn name(service: Service) -> &'static str {
    match service {
        Service::CdnEgress => "CDN Egress",
        Service::CdnIngress => "CDN Ingress",
    }
}

fn service_id(service: Service) -> String {
    id(&["service", service.word()])
}

/// An id that is the same whenever it is asked for: 32 hexadecimal digits, as the original's.
fn id(parts: &[&str]) -> String {
    let hash = Sha256::digest(parts.join(" ").as_bytes());
    hash[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn prefix_id(cidr: IpNet) -> String {
    id(&["prefix", &cidr.to_string()])
}

/// A prefix that was found, and who may change it.
struct Found {
    prefix: Prefix,
    owner: Owner,
    /// When it was changed last, µs since 1970.
    modified: Option<i64>,
}

impl Found {
    /// All of an account.
    fn all(stored: &Stored, account: &str) -> Vec<Self> {
        let resources = stored.resources();
        let mut found = Vec::new();
        for ((kind, id), (owner, object)) in &stored.objects {
            if let Object::Prefix(prefix) = object
                && resources.same_account(&prefix.account, account)
            {
                found.push(Self {
                    prefix: prefix.clone(),
                    owner: *owner,
                    modified: stored.modified.get(&(*kind, id.clone())).copied(),
                });
            }
        }
        found
    }

    /// The one of the path.
    fn of(stored: &Stored, call: &Call) -> Result<Self, ApiError> {
        let id = call.parameter("prefix_id");
        let mut all = Self::all(stored, call.account()?).into_iter();
        all.find(|found| prefix_id(found.prefix.cidr) == id)
            .ok_or_else(|| not_found(format!("this account has no prefix {}", shown(id))))
    }

    /// The same, to be changed.
    fn changeable(self) -> Result<(Prefix, Registration), ApiError> {
        match (self.owner, self.prefix.registration.clone()) {
            (Owner::Api, Some(registration)) => Ok((self.prefix, registration)),
            _ => Err(of_file(&format!("prefix {}", self.prefix.cidr))),
        }
    }
}

/// Puts what the API has of a prefix.
fn put(
    writer: &mut Writer<'_>,
    prefix: Prefix,
    registration: Registration,
) -> Result<(), ApiError> {
    let account = prefix.account.clone();
    Ok(writer.change(
        &account,
        &[Change::Put {
            owner: Owner::Api,
            object: Object::Prefix(Prefix {
                registration: Some(registration),
                ..prefix
            }),
        }],
    )?)
}

/// A prefix without bits set outside it.
fn cidr(text: &str) -> Result<IpNet, ApiError> {
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
    match net {
        Ok(net) if net == net.trunc() => Ok(net),
        Ok(net) => Err(invalid(format!(
            "{net} has bits set outside its prefix: write {}",
            net.trunc()
        ))),
        Err(_) => Err(invalid(format!(
            "`cidr` is an IP prefix like 198.51.100.0/24, not {:?}",
            shown(text)
        ))),
    }
}

/// A part of a prefix.
fn part(prefix: &Prefix, text: &str) -> Result<IpNet, ApiError> {
    let part = cidr(text)?;
    if prefix.cidr.contains(&part) {
        return Ok(part);
    }
    Err(invalid(format!("{part} is not in {}", prefix.cidr)))
}

/// The id of an account that is referred to by id or name.
fn account_id(resources: &Resources, reference: &str) -> String {
    let account = resources.account(reference);
    account.map_or_else(|| reference.to_owned(), |account| account.id.clone())
}
