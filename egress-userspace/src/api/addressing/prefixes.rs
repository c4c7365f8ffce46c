//! Prefixes: made, shown, described, removed.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::super::body::{Body, invalid};
use super::super::envelope::{Answer, ApiError};
use super::super::leases::is_anothers;
use super::super::time::rfc3339;
use super::super::{Api, Call};
use super::bgp::Advertisement;
use super::{Found, account_id, cidr, prefix_id, put};
use crate::resource::{Address, Kind, Pool, Prefix, Registration, Service};
use crate::store::{Change, Stored, now};

/// The smallest prefix that networks accept from each other, as the original has it: /24 and /48.
const LONGEST: [u8; 2] = [24, 48];
/// The largest: a whole registry allocation.
const SHORTEST: [u8; 2] = [8, 19];
/// The longest description, in characters.
const MAX_DESCRIPTION: usize = 1024;
/// What is said of what nobody here looks at.
const NOT_VALIDATED: &str = "not_validated";

/// `GET /accounts/{account_id}/addressing/prefixes`
pub(in crate::api) fn list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let stored = api.service.stored();
    let all = Found::all(&stored, account);
    Ok(Answer::One(
        all.iter().map(|found| json(api, &stored, found)).collect(),
    ))
}

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}`
pub(in crate::api) fn get(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let stored = api.service.stored();
    let found = Found::of(&stored, call)?;
    Ok(Answer::One(json(api, &stored, &found)))
}

/// `POST /accounts/{account_id}/addressing/prefixes`
pub(in crate::api) fn create(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = call.account()?;
    let known = [
        "asn",
        "cidr",
        "description",
        "delegate_loa_creation",
        "loa_document_id",
    ];
    let body = Body::of(call, &known)?;
    let cidr = cidr(body.needs("cidr", "\"198.51.100.0/24\"")?)?;
    fits(cidr)?;
    let asn = body.number("asn", 1, u32::MAX)?;
    let asn = asn.ok_or_else(|| invalid("`asn` is missing: the number of an autonomous system"))?;
    let description = description(&body)?.unwrap_or_default();
    letters(&body)?;
    let mut writer = api.service.writer()?;
    let resources = writer.stored().resources();
    if is_anothers(&resources, account, cidr) {
        return Err(invalid(format!(
            "{cidr} is another account's, or a part of what is, or around it"
        )));
    }
    let overlaps = |other: &IpNet| cidr.contains(other) || other.contains(&cidr);
    if let Some(other) = resources.prefixes.iter().find(|one| overlaps(&one.cidr)) {
        return Err(invalid(format!(
            "{cidr} overlaps with prefix {}, which there is already",
            other.cidr
        )));
    }
    let members = resources
        .pools
        .iter()
        .flat_map(|pool| pool.addresses.iter().map(move |member| (pool, member)));
    for (pool, member) in members {
        if overlaps(&member.net()) {
            return Err(invalid(format!(
                "{member} of pool {} is leased, and in {cidr}: an address is leased or byoip, never both",
                pool.id
            )));
        }
    }
    let prefix = Prefix {
        cidr,
        account: account.to_owned(),
        delegated_to: Vec::new(),
        // Its bindings say it.
        service: Service::CdnEgress,
        withdrawn: false,
        registration: None,
    };
    let registration = Registration {
        asn,
        description,
        created: now(),
        ..Registration::default()
    };
    put(&mut writer, prefix, registration)?;
    shown(api, writer.stored(), call, cidr).map(Answer::Created)
}

/// `PATCH /accounts/{account_id}/addressing/prefixes/{prefix_id}`: the description.
pub(in crate::api) fn edit(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let body = Body::of(call, &["description"])?;
    let description =
        description(&body)?.ok_or_else(|| invalid("`description` is missing: a text"))?;
    let mut writer = api.service.writer()?;
    let (prefix, registration) = Found::of(writer.stored(), call)?.changeable()?;
    let cidr = prefix.cidr;
    let registration = Registration {
        description,
        ..registration
    };
    put(&mut writer, prefix, registration)?;
    shown(api, writer.stored(), call, cidr).map(Answer::One)
}

/// `DELETE /accounts/{account_id}/addressing/prefixes/{prefix_id}`
pub(in crate::api) fn delete(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let mut writer = api.service.writer()?;
    let (prefix, _) = Found::of(writer.stored(), call)?.changeable()?;
    let cidr = prefix.cidr;
    let resources = writer.stored().resources();
    let inside = |address: &Address| cidr.contains(&address.net());
    let is_own = |pool: &Pool| resources.same_account(&pool.account, &prefix.account);
    let users = resources.pools.iter();
    let users = users.filter(|pool| pool.addresses.iter().any(inside));
    // Its own first, which it may be told of.
    if let Some(pool) = users.max_by_key(|pool| is_own(pool)) {
        let whose = if is_own(pool) {
            format!("pool {}", pool.id)
        } else {
            "a pool of another account".to_owned()
        };
        return Err(invalid(format!(
            "{cidr} is in use by {whose}: remove that first"
        )));
    }
    // Placements of its addresses go with it.
    let placements = resources.placements.iter().map(|one| one.address);
    let placements = placements.filter(|address| inside(&Address::V4(*address)));
    let mut changes: Vec<_> = placements
        .map(|address| Change::Remove {
            kind: Kind::Placement,
            id: address.to_string(),
        })
        .collect();
    changes.push(Change::Remove {
        kind: Kind::Prefix,
        id: cidr.to_string(),
    });
    writer.change(&prefix.account, &changes)?;
    Ok(Answer::Gone)
}

/// Whether a prefix is of a size that can be brought along, of addresses that are somebody's.
fn fits(cidr: IpNet) -> Result<(), ApiError> {
    let family = usize::from(matches!(cidr, IpNet::V6(_)));
    if !(SHORTEST[family]..=LONGEST[family]).contains(&cidr.prefix_len()) {
        return Err(invalid(format!(
            "{cidr} is not from /{} to /{}",
            SHORTEST[family], LONGEST[family]
        )));
    }
    let address = cidr.addr();
    if address.is_loopback() || address.is_multicast() || address.is_unspecified() {
        return Err(invalid(format!("{cidr} is nobody's to bring along")));
    }
    Ok(())
}

fn description(body: &Body) -> Result<Option<String>, ApiError> {
    match body.text("description")? {
        Some(text) if text.chars().count() > MAX_DESCRIPTION => Err(invalid(format!(
            "`description` has more than {MAX_DESCRIPTION} characters"
        ))),
        text => Ok(text.map(str::to_owned)),
    }
}

/// Letters of authorization: nobody here writes or reads them.
fn letters(body: &Body) -> Result<(), ApiError> {
    match body.get("delegate_loa_creation") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(_) => {
            return Err(invalid(
                "`delegate_loa_creation` is false: this gateway writes no letters of authorization",
            ));
        }
    }
    if body.text("loa_document_id")?.is_some() {
        return Err(invalid(
            "`loa_document_id` is null: this gateway reads no letters of authorization",
        ));
    }
    Ok(())
}

/// What is said of a prefix of the account of the path, after a change.
fn shown(api: &Api, stored: &Stored, call: &Call, cidr: IpNet) -> Result<Value, ApiError> {
    let mut all = Found::all(stored, call.account()?).into_iter();
    all.find(|found| found.prefix.cidr == cidr)
        .map(|found| json(api, stored, &found))
        .ok_or_else(|| ApiError::internal(&"a prefix that was put is not there"))
}

fn json(api: &Api, stored: &Stored, found: &Found) -> Value {
    let prefix = &found.prefix;
    let advertisement = Advertisement::of(api, found);
    let registration = prefix.registration.as_ref();
    let modified = found.modified.map(rfc3339);
    let created = registration.map(|one| rfc3339(one.created));
    json!({
        "id": prefix_id(prefix.cidr),
        "account_id": account_id(&stored.resources(), &prefix.account),
        "asn": registration.map(|one| one.asn),
        "cidr": prefix.cidr,
        "description": registration.map_or("", |one| one.description.as_str()),
        "approved": "V",
        "irr_validation_state": NOT_VALIDATED,
        "rpki_validation_state": NOT_VALIDATED,
        "ownership_validation_state": NOT_VALIDATED,
        "delegate_loa_creation": false,
        "loa_document_id": null,
        "created_at": created.or_else(|| modified.clone()),
        "modified_at": modified,
        "advertised": advertisement.advertised,
        "advertised_modified_at": advertisement.modified_at,
        "on_demand_enabled": advertisement.on_demand,
        "on_demand_locked": !advertisement.on_demand,
    })
}
