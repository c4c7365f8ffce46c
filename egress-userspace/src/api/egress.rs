//! An account's pools as they are, and its drains. The original has no public interface for them; this one is ours.

use serde_json::{Value, json};

use super::body::{Body, invalid, not_found, shown};
use super::envelope::{Answer, ApiError, Code, page};
use super::{Api, Call};
use crate::control::{Failure, Filter};
use crate::inventory::{self, PoolAddress};
use crate::resource::{Address, Kind, Pool, Resources};

/// `GET /accounts/{account_id}/egress/pools`
pub(super) fn pools(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let found = account_pools(api, account)?;
    page(call, found.into_iter().map(|(_, json)| json).collect())
}

/// `GET /accounts/{account_id}/egress/pools/{pool_id}`
pub(super) fn pool(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    Ok(Answer::One(described(
        api,
        account,
        call.parameter("pool_id"),
    )?))
}

/// What is said about a pool of an account.
pub(super) fn described(api: &Api, account: &str, id: &str) -> Result<Value, ApiError> {
    account_pools(api, account)?
        .into_iter()
        .find(|(pool, _)| pool.id == id)
        .map(|(_, json)| json)
        .ok_or_else(|| not_found(format!("this account has no pool {}", shown(id))))
}

/// `GET /accounts/{account_id}/egress/drains`
pub(super) fn drains(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let mut found = Vec::new();
    for (pool, json) in account_pools(api, account)? {
        let addresses = json["addresses"].as_array().cloned().unwrap_or_default();
        for json in addresses {
            if json["draining"] == true {
                found.push(json!({
                    "address": json["address"],
                    "pool_id": pool.id,
                    "active": json["active"],
                }));
            }
        }
    }
    page(call, found)
}

/// `POST /accounts/{account_id}/egress/drains`
pub(super) fn drain(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let body = Body::of(call, &["subject", "reset"])?;
    let Some(subject) = body.get("subject").and_then(Value::as_str) else {
        return Err(invalid("`subject` is an egress IP, or the id of a pool"));
    };
    let reset = match body.get("reset") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(reset)) => *reset,
        Some(_) => return Err(invalid("`reset` is true or false")),
    };
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    let subject = Subject::of(&resources, account, subject)
        .map_err(|error| ApiError::new(Code::InvalidValue, error))?;
    let drained = writer.drain(&subject.name, reset).map_err(failed)?;
    Ok(Answer::Created(json!(drained)))
}

/// `DELETE /accounts/{account_id}/egress/drains/{subject}`
pub(super) fn undrain(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    let subject = Subject::of(&resources, account, call.parameter("subject")).map_err(not_found)?;
    if let Some(by_file) = subject.held(&resources) {
        return Err(ApiError::new(Code::NotModifiable, by_file));
    }
    let drained = writer.undrain(&subject.name).map_err(failed)?;
    Ok(Answer::One(json!(drained)))
}

/// An address of an account's pool, or one of its pools.
struct Subject<'r> {
    name: String,
    pool: &'r Pool,
    address: Option<Address>,
}

impl<'r> Subject<'r> {
    /// Another account's is treated as one that does not exist.
    fn of(resources: &'r Resources, account: &str, text: &str) -> Result<Self, String> {
        let mut pools = resources
            .pools
            .iter()
            .filter(|pool| resources.same_account(&pool.account, account));
        let address = text.parse::<Address>().ok();
        let pool = pools.find(|pool| match &address {
            Some(address) => pool.addresses.contains(address),
            None => pool.id == text,
        });
        let name = match (&address, pool) {
            (Some(address), _) => address.to_string(),
            (None, Some(pool)) => pool.id.clone(),
            (None, None) => shown(text),
        };
        let pool =
            pool.ok_or_else(|| format!("this account has no egress IP and no pool {name:?}"))?;
        Ok(Self {
            name,
            pool,
            address,
        })
    }

    /// What keeps it draining whatever is said here.
    fn held(&self, resources: &Resources) -> Option<String> {
        let Self { name, pool, .. } = self;
        let by_pool = self.address.is_some() && resources.drains.contains(&pool.id);
        if by_pool {
            return Some(format!("all of pool {} drains, {name} with it", pool.id));
        }
        let by_file = match &self.address {
            Some(address) => pool.draining.contains(address),
            None => !pool.draining.is_empty(),
        };
        (by_file && !resources.drains.contains(name))
            .then(|| format!("{name} drains by the operator's resources file"))
    }
}

/// An account's pools, and what is said about each.
pub(super) fn account_pools(api: &Api, account: &str) -> Result<Vec<(Pool, Value)>, ApiError> {
    let live = api
        .service
        .view()
        .and_then(|view| Ok(view.pools()?))
        .map_err(|failure| ApiError::internal(&failure))?;
    let stored = api.service.stored();
    let resources = stored.resources();
    let records = inventory::pools(&stored, &live, &Filter::default())
        .map_err(|failure| ApiError::internal(&failure))?;
    // First those that are stored, in the order of the resources.
    let of_account = resources
        .pools
        .iter()
        .zip(records)
        .filter(|(pool, _)| resources.same_account(&pool.account, account));
    let described = of_account.map(|(pool, record)| {
        let own = resources.zones.iter().filter(|zone| {
            record.zones.contains(&zone.name) && resources.same_account(&zone.account, account)
        });
        let zones: Vec<_> = own
            .map(|zone| json!({ "id": zone.id, "name": zone.name }))
            .collect();
        let json = json!({
            "id": pool.id,
            "name": pool.name,
            "kind": pool.kind,
            "use": pool.used_for,
            "connections_per_origin": pool.connections_per_origin,
            "addresses": record.addresses.iter().map(address).collect::<Vec<_>>(),
            "zones": zones,
            "editable": stored.is_of_api(Kind::Pool, &pool.id),
        });
        (pool.clone(), json)
    });
    Ok(described.collect())
}

fn address(address: &PoolAddress) -> Value {
    json!({
        "address": address.address,
        "draining": address.draining,
        "capacity_per_origin": address.capacity,
        "active": address.active,
    })
}

fn failed(failure: Failure) -> ApiError {
    if failure.usage {
        ApiError::new(Code::InvalidValue, failure.reason)
    } else {
        failure.into()
    }
}
