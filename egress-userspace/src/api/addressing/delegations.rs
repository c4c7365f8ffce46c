//! Delegations: which other accounts may use a prefix, or a part of it (POOL-7).

use serde_json::{Value, json};

use super::super::body::{Body, invalid, is_id, not_found, of_file, shown};
use super::super::envelope::{Answer, ApiError};
use super::super::time::rfc3339;
use super::super::{Api, Call};
use super::{Found, account_id, id, part, prefix_id, put};
use crate::resource::{Delegation, Prefix, Resources};
use crate::store::now;

/// `GET /accounts/{account_id}/addressing/prefixes/{prefix_id}/delegations`
pub(in crate::api) fn list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let stored = api.service.stored();
    let found = Found::of(&stored, call)?;
    let resources = stored.resources();
    let all = all(&resources, &found);
    Ok(Answer::One(
        all.iter().map(|one| json(&found.prefix, one)).collect(),
    ))
}

/// `POST /accounts/{account_id}/addressing/prefixes/{prefix_id}/delegations`
pub(in crate::api) fn create(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let body = Body::of(call, &["cidr", "delegated_account_id"])?;
    let cidr = body.needs("cidr", "\"198.51.100.0/24\"")?;
    let account = body.needs("delegated_account_id", "the id of an account")?;
    let mut writer = api.service.writer()?;
    let (prefix, mut registration) = Found::of(writer.stored(), call)?.changeable()?;
    let delegation = Delegation {
        cidr: part(&prefix, cidr)?,
        account: account.to_owned(),
        created: now(),
    };
    // Whether there is such an account is not told: ids are what their owners tell.
    if !is_id(account) {
        return Err(invalid(format!("{:?} is no id", shown(account))));
    }
    let resources = writer.stored().resources();
    if resources.same_account(&prefix.account, account) {
        return Err(invalid("the prefix is this account's own"));
    }
    let same = |one: &Delegation| one.cidr == delegation.cidr && one.account == account;
    if registration.delegations.iter().any(same) {
        return Err(invalid(format!(
            "{} is delegated to that account already",
            delegation.cidr
        )));
    }
    registration.delegations.push(delegation.clone());
    let answer = json(&prefix, &delegation);
    put(&mut writer, prefix, registration)?;
    Ok(Answer::One(answer))
}

/// `DELETE /accounts/{account_id}/addressing/prefixes/{prefix_id}/delegations/{delegation_id}`
pub(in crate::api) fn delete(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let wanted = call.parameter("delegation_id");
    let mut writer = api.service.writer()?;
    let found = Found::of(writer.stored(), call)?;
    let is_wanted = |one: &Delegation| delegation_id(&found.prefix, one) == wanted;
    if !all(&writer.stored().resources(), &found)
        .iter()
        .any(is_wanted)
    {
        return Err(not_found(format!(
            "prefix {} has no delegation {}",
            found.prefix.cidr,
            shown(wanted)
        )));
    }
    let registration = found.prefix.registration.clone();
    let mut registration =
        registration.ok_or_else(|| of_file(&format!("prefix {}", found.prefix.cidr)))?;
    registration.delegations.retain(|one| !is_wanted(one));
    put(&mut writer, found.changeable()?.0, registration)?;
    Ok(Answer::One(json!({ "id": wanted })))
}

/// The delegations of a prefix; those of the file are of the whole of it.
fn all(resources: &Resources, found: &Found) -> Vec<Delegation> {
    let prefix = &found.prefix;
    let of_file = prefix.delegated_to.iter().map(|account| Delegation {
        cidr: prefix.cidr,
        account: account_id(resources, account),
        created: found.modified.unwrap_or(0),
    });
    let made = prefix.registration.iter().flat_map(|one| &one.delegations);
    of_file.chain(made.cloned()).collect()
}

fn delegation_id(prefix: &Prefix, delegation: &Delegation) -> String {
    let (prefix, cidr) = (prefix.cidr.to_string(), delegation.cidr.to_string());
    id(&["delegation", &prefix, &cidr, &delegation.account])
}

fn json(prefix: &Prefix, delegation: &Delegation) -> Value {
    json!({
        "id": delegation_id(prefix, delegation),
        "cidr": delegation.cidr,
        "delegated_account_id": delegation.account,
        "parent_prefix_id": prefix_id(prefix.cidr),
        "created_at": rfc3339(delegation.created),
        "modified_at": rfc3339(delegation.created),
    })
}
