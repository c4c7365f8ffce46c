//! Leased IPs: addresses that an account has from the operator. Giving them takes the operator's permission.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::body::{self, Body, invalid, not_found, of_file};
use super::egress::account_pools;
use super::envelope::{Answer, ApiError, page};
use super::{Api, Call};
use crate::control::Failure;
use crate::resource::{Address, Kind, Lease, Object, Owner, Resources};
use crate::store::Change;

/// `GET /accounts/{account_id}/egress/leased_ips`: those in pools, then those that wait for one.
pub(super) fn list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let pools = account_pools(api, account)?;
    let resources = api.service.stored().resources();
    let mut found = Vec::new();
    let mut used = Vec::new();
    for (pool, json) in pools {
        let addresses = json["addresses"].as_array().cloned().unwrap_or_default();
        for (address, mut json) in pool.addresses.iter().zip(addresses) {
            if resources.byoip(address.net()).is_none() {
                json["pool_id"] = pool.id.clone().into();
                found.push(json);
                used.push(*address);
            }
        }
    }
    used.sort_unstable();
    let waiting = resources.leases.iter().filter(|lease| {
        resources.same_account(&lease.account, account)
            && used.binary_search(&lease.address).is_err()
    });
    found.extend(waiting.map(|lease| unused(lease.address)));
    page(call, found)
}

/// `POST /accounts/{account_id}/egress/leased_ips`
pub(super) fn create(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let body = Body::of(call, &["address"])?;
    let address = body::address(body.needs("address", "\"192.0.2.10\"")?)?;
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    if is_anothers(&resources, account, address.net()) {
        return Err(invalid(format!(
            "{address} is another account's, or a part of what is, or around it"
        )));
    }
    if resources
        .leases
        .iter()
        .any(|lease| lease.address == address)
    {
        return Err(invalid(format!("{address} is leased already")));
    }
    api.service
        .controller()
        .dataplane()
        .check(&[address])
        .map_err(|error| invalid(Failure::from(error).reason))?;
    let lease = Lease {
        address,
        account: account.to_owned(),
    };
    writer.change(
        account,
        &[Change::Put {
            owner: Owner::Api,
            object: Object::Lease(lease),
        }],
    )?;
    Ok(Answer::Created(unused(address)))
}

/// `DELETE /accounts/{account_id}/egress/leased_ips/{address}`
pub(super) fn delete(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    let unknown = || not_found("this account has no such leased IP");
    let address: Address = call.parameter("address").parse().map_err(|_| unknown())?;
    let net = address.net();
    let pool = resources.pools.iter().find(|pool| {
        let mut members = pool.addresses.iter();
        resources.same_account(&pool.account, account)
            && members.any(|member| net.contains(&member.net()))
    });
    let lease = resources
        .leases
        .iter()
        .find(|lease| lease.address == address && resources.same_account(&lease.account, account));
    match (lease, pool) {
        (None, None) => return Err(unknown()),
        (None, Some(_)) => return Err(of_file(&address.to_string())),
        (Some(_), Some(pool)) => {
            return Err(invalid(format!(
                "{address} is in pool {}: take it out there first",
                pool.id
            )));
        }
        (Some(_), None) => {}
    }
    writer.change(
        account,
        &[Change::Remove {
            kind: Kind::Lease,
            id: address.to_string(),
        }],
    )?;
    Ok(Answer::Gone)
}

/// Whether another account has any of these addresses: leased, brought along, or in a pool. One answer for all of them.
pub(super) fn is_anothers(resources: &Resources, account: &str, net: IpNet) -> bool {
    let leases = resources.leases.iter();
    let leases = leases.map(|lease| (&lease.account, lease.address.net()));
    let prefixes = resources.prefixes.iter();
    let prefixes = prefixes.map(|prefix| (&prefix.account, prefix.cidr));
    let pools = resources.pools.iter().flat_map(|pool| {
        let members = pool.addresses.iter();
        members.map(move |member| (&pool.account, member.net()))
    });
    leases.chain(prefixes).chain(pools).any(|(owner, other)| {
        (other.contains(&net) || net.contains(&other)) && !resources.same_account(owner, account)
    })
}

/// A leased address that is in no pool yet.
fn unused(address: Address) -> Value {
    json!({
        "address": address,
        "draining": false,
        "capacity_per_origin": null,
        "active": null,
        "pool_id": null,
    })
}
