//! Pools that are made through the API (POOL-1 to POOL-4). Those of the resources file are read-only here: every object
//! has one owner.

use super::body::{self, Body, invalid, is_id, not_found, of_file, shown};
use super::egress::described;
use super::envelope::{Answer, ApiError};
use super::{Api, Call};
use crate::controller::Writer;
use crate::desired::CONNECTIONS_PER_ORIGIN;
use crate::resource::{Address, Kind, Object, Owner, Policy, Pool, PoolKind, PoolUse, Resources};
use crate::store::{Change, Permission, Stored, random};

/// What a body may say of a pool that is new.
const KEYS: [&str; 6] = [
    "id",
    "name",
    "kind",
    "use",
    "connections_per_origin",
    "addresses",
];
/// What may change later.
const CHANGEABLE: [&str; 3] = ["name", "connections_per_origin", "addresses"];

/// `POST /accounts/{account_id}/egress/pools`
pub(super) fn create(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let body = Body::of(call, &KEYS)?;
    let id = match body.text("id")? {
        Some(_) if !call.allows(Permission::AccountAddressesWrite) => {
            return Err(invalid(
                "`id` is chosen by whoever gives addresses (account-addresses:write), since ids are unique over all accounts: \
                 leave it out to get one",
            ));
        }
        Some(id) if is_id(id) => id.to_owned(),
        Some(_) => return Err(invalid("`id` is a text of letters, digits, - and _")),
        None => hex(random().map_err(|error| ApiError::internal(&error))?),
    };
    let kind = match body.text("kind")? {
        None => None,
        Some("leased") => Some(PoolKind::Leased),
        Some("byoip") => Some(PoolKind::Byoip),
        Some(_) => return Err(invalid("`kind` is \"leased\" or \"byoip\"")),
    };
    let used_for = match body.text("use")? {
        None | Some("cdn") => PoolUse::Cdn,
        Some("gateway") => PoolUse::Gateway,
        Some(_) => return Err(invalid("`use` is \"cdn\" or \"gateway\"")),
    };
    let addresses = addresses(&body)?
        .ok_or_else(|| invalid("`addresses` is missing: write, for instance, [\"192.0.2.10\"]"))?;
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    // Its kind is kept: should a prefix come or go around its addresses, the pool does not become another one.
    let found = addresses
        .first()
        .map(|first| match resources.byoip(first.net()) {
            Some(_) => PoolKind::Byoip,
            None => PoolKind::Leased,
        });
    let pool = Pool {
        name: body.text("name")?.map(body::name).transpose()?,
        account: account.to_owned(),
        kind: kind.or(found),
        addresses,
        draining: Vec::new(),
        connections_per_origin: connections(&body)?.unwrap_or(CONNECTIONS_PER_ORIGIN),
        used_for,
        allow_empty: false,
        made: true,
        id,
    };
    if resources.pools.iter().any(|other| other.id == pool.id) {
        return Err(invalid(format!("there is a pool {} already", pool.id)));
    }
    put(&mut writer, &resources, pool.clone())?;
    drop(writer);
    Ok(Answer::Created(described(api, account, &pool.id)?))
}

/// `PATCH /accounts/{account_id}/egress/pools/{pool_id}`: what is said changes, all at once. Live connections stay on
/// their addresses.
pub(super) fn edit(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let body = Body::of(call, &CHANGEABLE)?;
    if body.is_empty() {
        return Err(invalid("the body is empty: nothing would change"));
    }
    let mut writer = api.service.writer()?;
    let mut pool = own(writer.stored(), account, call.parameter("pool_id"))?;
    if body.get("name").is_some() {
        pool.name = body.text("name")?.map(body::name).transpose()?;
    }
    if let Some(connections) = connections(&body)? {
        pool.connections_per_origin = connections;
    }
    if let Some(addresses) = addresses(&body)? {
        pool.addresses = addresses;
    }
    let resources = writer.stored().resources();
    not_of_a_rule(&resources, &pool.id, &pool.addresses)?;
    put(&mut writer, &resources, pool.clone())?;
    drop(writer);
    Ok(Answer::One(described(api, account, &pool.id)?))
}

/// `DELETE /accounts/{account_id}/egress/pools/{pool_id}`
pub(super) fn delete(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let mut writer = api.service.writer()?;
    let pool = own(writer.stored(), account, call.parameter("pool_id"))?;
    let resources = writer.stored().resources();
    let uses = |aegis: &crate::resource::Aegis| {
        let reference = aegis.pool_id.as_deref();
        aegis.enabled && reference.is_some_and(|one| resources.pool(one) == Some(&pool))
    };
    let users: Vec<_> = resources
        .zones
        .iter()
        .filter(|zone| uses(&resources.aegis(zone)))
        .collect();
    if !users.is_empty() {
        // Another account's zone is nobody's business.
        let known = users
            .iter()
            .find(|zone| resources.same_account(&zone.account, account));
        let whose = known.map_or_else(
            || "a zone of another account is".to_owned(),
            |zone| format!("zone {} is", zone.name),
        );
        return Err(invalid(format!(
            "{whose} enabled on pool {}: switch it off, or to another pool, first",
            pool.id
        )));
    }
    not_of_a_rule(&resources, &pool.id, &[])?;
    // What was to drain with it goes with it.
    let members = pool.addresses.iter().map(ToString::to_string);
    let drains = members
        .chain([pool.id.clone()])
        .filter(|subject| resources.drains.contains(subject))
        .map(|id| Change::Remove {
            kind: Kind::Drain,
            id,
        });
    let mut changes: Vec<_> = drains.collect();
    changes.push(Change::Remove {
        kind: Kind::Pool,
        id: pool.id,
    });
    writer.change(account, &changes)?;
    Ok(Answer::Gone)
}

/// Refuses to leave a pool no more than `rest` where a rule names what goes: a rule names its own account's addresses only.
fn not_of_a_rule(resources: &Resources, pool: &str, rest: &[Address]) -> Result<(), ApiError> {
    let before = resources.pools.iter().find(|one| one.id == pool);
    let gone = before.into_iter().flat_map(|pool| &pool.addresses);
    for address in gone.filter(|address| !rest.contains(address)) {
        let names = |policy: &&Policy| {
            let egress = policy.egress.as_ref();
            egress.is_some_and(|egress| match address {
                Address::V4(address) => egress.ipv4 == *address || egress.ipv4_fallback == *address,
                Address::V6(range) => egress.ipv6 == *range,
            })
        };
        if let Some(policy) = resources.policies.iter().find(names) {
            return Err(invalid(format!(
                "rule {} uses {address} of pool {pool}: give the rule another address, or delete it, first",
                policy.name
            )));
        }
    }
    Ok(())
}

/// A pool of the account that the API may change.
fn own(stored: &Stored, account: &str, id: &str) -> Result<Pool, ApiError> {
    let resources = stored.resources();
    match stored.objects.get(&(Kind::Pool, id.to_owned())) {
        Some((owner, Object::Pool(pool))) if resources.same_account(&pool.account, account) => {
            match owner {
                Owner::Api => Ok(pool.clone()),
                Owner::File => Err(of_file(&format!("pool {id}"))),
            }
        }
        _ => Err(not_found(format!("this account has no pool {}", shown(id)))),
    }
}

/// Puts a pool, if its account has the addresses.
fn put(writer: &mut Writer<'_>, resources: &Resources, pool: Pool) -> Result<(), ApiError> {
    for address in &pool.addresses {
        let net = address.net();
        let brought = resources
            .byoip(net)
            .is_some_and(|prefix| prefix.is_for(resources, &pool.account, net));
        let leased = || {
            resources.leases.iter().any(|lease| {
                resources.same_account(&lease.account, &pool.account)
                    && lease.address.net().contains(&net)
            })
        };
        // Whether it is anybody else's is nobody's business.
        if !brought && !leased() {
            return Err(invalid(format!(
                "{address} is not leased to this account, nor in a BYOIP prefix that it owns or was delegated: ask the \
                 operator for addresses"
            )));
        }
    }
    let mut own = resources.pools.iter().filter(|other| {
        other.id != pool.id && resources.same_account(&other.account, &pool.account)
    });
    if let Some(name) = &pool.name
        && own.any(|other| other.name.as_ref() == Some(name) || other.id == *name)
    {
        return Err(invalid(format!("there is a pool {name} already")));
    }
    let account = pool.account.clone();
    Ok(writer.change(
        &account,
        &[Change::Put {
            owner: Owner::Api,
            object: Object::Pool(pool),
        }],
    )?)
}

fn addresses(body: &Body) -> Result<Option<Vec<Address>>, ApiError> {
    let Some(list) = body.list("addresses")? else {
        return Ok(None);
    };
    if list.is_empty() {
        return Err(invalid("`addresses` is empty: a pool has at least one"));
    }
    let read = |value: &serde_json::Value| {
        let text = value.as_str();
        text.map_or_else(
            || Err(invalid("`addresses` is a list of texts")),
            body::address,
        )
    };
    list.iter().map(read).collect::<Result<_, _>>().map(Some)
}

fn connections(body: &Body) -> Result<Option<u32>, ApiError> {
    body.number("connections_per_origin", 1, CONNECTIONS_PER_ORIGIN)
}

fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
