//! Where addresses are (POOL-5): locations, as the operator's file says, and each address' shares.

use std::net::Ipv4Addr;

use egress_common::placement::MAX_SHARE;
use serde_json::{Value, json};

use super::body::{Body, invalid, not_found, of_file};
use super::envelope::{Answer, ApiError, page};
use super::{Api, Call};
use crate::resource::{Address, Kind, Object, Owner, Placement, Resources, Share};
use crate::store::Change;

/// `GET /accounts/{account_id}/egress/locations`
pub(super) fn locations(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    call.account()?;
    let resources = api.service.stored().resources();
    let locations = resources.locations.iter().map(|location| {
        let data_centers = location.data_centers.iter().map(|one| {
            let servers: Vec<_> = one.servers.iter().map(|server| &server.name).collect();
            json!({ "name": one.name, "servers": servers })
        });
        json!({ "name": location.name, "data_centers": data_centers.collect::<Vec<_>>() })
    });
    page(call, locations.collect())
}

/// `GET /accounts/{account_id}/egress/placements`
pub(super) fn list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let resources = api.service.stored().resources();
    let own = resources
        .placements
        .iter()
        .filter(|one| has(&resources, account, one.address));
    page(call, own.map(shown).collect())
}

/// `PUT /accounts/{account_id}/egress/placements/{address}`: all shares of an address.
pub(super) fn put(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let body = Body::of(call, &["shares"])?;
    let shares = body.list("shares")?;
    let shares = shares.ok_or_else(|| invalid("`shares` is missing"))?;
    let shares = shares.iter().map(share).collect::<Result<_, _>>()?;
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    let address = placed(&resources, account, call)?;
    let key = (Kind::Placement, address.to_string());
    if let Some((Owner::File, _)) = writer.stored().objects.get(&key) {
        return Err(of_file(&format!("the placement of {address}")));
    }
    let placement = Placement { address, shares };
    let answer = shown(&placement);
    writer.change(
        account,
        &[Change::Put {
            owner: Owner::Api,
            object: Object::Placement(placement),
        }],
    )?;
    Ok(Answer::One(answer))
}

/// `DELETE /accounts/{account_id}/egress/placements/{address}`
pub(super) fn delete(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    let address = placed(&resources, account, call)?;
    let (kind, id) = (Kind::Placement, address.to_string());
    match writer.stored().objects.get(&(kind, id.clone())) {
        None => return Err(not_found(format!("{address} has no placement"))),
        Some((Owner::File, _)) => {
            return Err(of_file(&format!("the placement of {address}")));
        }
        Some((Owner::Api, _)) => {}
    }
    writer.change(account, &[Change::Remove { kind, id }])?;
    Ok(Answer::Gone)
}

/// The address of the path, which the account must have.
fn placed(resources: &Resources, account: &str, call: &Call) -> Result<Ipv4Addr, ApiError> {
    let address = call.parameter("address").parse().ok();
    address
        .filter(|address| has(resources, account, *address))
        .ok_or_else(|| not_found("this account has no such IPv4 address"))
}

/// Whether an account has an address: in a pool, leased, or in a prefix of its own.
fn has(resources: &Resources, account: &str, address: Ipv4Addr) -> bool {
    let member = Address::V4(address);
    let is_its = |owner: &str| resources.same_account(owner, account);
    let mut pools = resources.pools.iter();
    let mut leases = resources.leases.iter();
    let prefix = resources.byoip(member.net());
    pools.any(|pool| is_its(&pool.account) && pool.addresses.contains(&member))
        || leases.any(|lease| is_its(&lease.account) && lease.address == member)
        || prefix.is_some_and(|prefix| is_its(&prefix.account))
}

fn share(value: &Value) -> Result<Share, ApiError> {
    let part = Body::read(value.clone(), "a share", &["data_center", "share"])?;
    let data_center = part.needs("data_center", "\"fra01\"")?.to_owned();
    let share = part.number("share", 0, MAX_SHARE)?;
    let share = share.ok_or_else(|| invalid("`share` is missing: a number, 0 for none"))?;
    Ok(Share { data_center, share })
}

fn shown(placement: &Placement) -> Value {
    json!({ "address": placement.address, "shares": placement.shares })
}
