//! Gateway rules of action `egress`: the egress policies of an account (POLICY-1 to POLICY-5, ZONE-5).
//!
//! Those of the resources file are shown too, and are read-only here: every object has one owner.

mod rule;

use serde_json::{Value, json};

use super::envelope::{Answer, ApiError, Code};
use super::time::rfc3339;
use super::{Api, Call};
use crate::controller::{PolicyError, Writer};
use crate::resource::{FIRST_PRECEDENCE, Kind, MAX_PRECEDENCE, Made, Object, Policy};
use crate::store::{Stored, now, random};
use rule::{Patch, Rule};
use sha2::{Digest, Sha256};

/// Between the precedence of a rule that is given one and the highest so far: there is room for others.
const STEP: u32 = 100;

/// `GET /accounts/{account_id}/gateway/rules`: all of them, by precedence. The original does not cut this list into
/// pages either.
pub(super) fn list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = account(api, call)?;
    let rules = rules(&api.service.stored(), account);
    Ok(Answer::One(rules.iter().map(Known::json).collect()))
}

/// `GET /accounts/{account_id}/gateway/rules/{rule_id}`
pub(super) fn get(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = account(api, call)?;
    let rule = rule(&api.service.stored(), account, call)?;
    Ok(Answer::One(rule.json()))
}

/// `POST /accounts/{account_id}/gateway/rules`
pub(super) fn create(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = account(api, call)?;
    let wanted = Rule::read(&call.json()?)?;
    let mut writer = api.service.writer()?;
    let precedence = match wanted.precedence {
        Some(precedence) => precedence,
        None => next_precedence(writer.stored(), account)?,
    };
    let now = now();
    let made = Made {
        id: new_id()?,
        description: wanted.description.clone(),
        version: 1,
        created_at: now,
        updated_at: now,
    };
    let policy = wanted.policy(account, precedence, made);
    change(&mut writer, account, &policy)
}

/// `PUT /accounts/{account_id}/gateway/rules/{rule_id}`: the whole rule. Without a precedence it keeps its place.
pub(super) fn put(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = account(api, call)?;
    let wanted = Rule::read(&call.json()?)?;
    let mut writer = api.service.writer()?;
    let (before, made) = rule(writer.stored(), account, call)?.changeable()?;
    let made = Made {
        description: wanted.description.clone(),
        ..changed(made)
    };
    let precedence = wanted.precedence.unwrap_or(before.precedence);
    change(
        &mut writer,
        account,
        &wanted.policy(account, precedence, made),
    )
}

/// `PATCH /accounts/{account_id}/gateway/rules/{rule_id}`: what is there of name, description, precedence and whether it
/// is enabled.
pub(super) fn patch(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = account(api, call)?;
    let patch = Patch::read(&call.json()?)?;
    let mut writer = api.service.writer()?;
    let (mut policy, made) = rule(writer.stored(), account, call)?.changeable()?;
    let mut made = changed(made);
    patch.onto(&mut policy, &mut made);
    policy.made = Some(made);
    change(&mut writer, account, &policy)
}

/// `DELETE /accounts/{account_id}/gateway/rules/{rule_id}`
pub(super) fn delete(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let account = account(api, call)?;
    let mut writer = api.service.writer()?;
    let (_, made) = rule(writer.stored(), account, call)?.changeable()?;
    writer.remove_policy(&made.id)?;
    Ok(Answer::One(json!({})))
}

/// Puts a policy in force, and says what it is then.
fn change(writer: &mut Writer<'_>, account: &str, policy: &Policy) -> Result<Answer, ApiError> {
    let id = policy.made.as_ref().map(|made| made.id.clone());
    let warnings = writer.put_policy(policy).map_err(|error| match error {
        PolicyError::Invalid(why) => invalid(why),
        PolicyError::Failed(failure) => failure.into(),
    })?;
    let rule = rules(writer.stored(), account)
        .into_iter()
        .find(|rule| Some(&rule.id) == id.as_ref())
        .ok_or_else(|| ApiError::internal(&"a rule that was put is not there"))?;
    Ok(Answer::Noted(rule.json(), warnings))
}

/// A policy as this API knows it.
struct Known {
    id: String,
    policy: Policy,
    /// When the resources file changed it last, µs since 1970.
    modified: Option<i64>,
}

impl Known {
    /// The policy and what only those made here have.
    fn changeable(self) -> Result<(Policy, Made), ApiError> {
        let made = self.policy.made.clone();
        made.map(|made| (self.policy, made)).ok_or_else(|| {
            ApiError::new(
                Code::NotModifiable,
                format!(
                    "rule {} is read-only here: the operator's resources file says what it is",
                    self.id
                ),
            )
        })
    }

    fn json(&self) -> Value {
        let policy = &self.policy;
        let made = policy.made.as_ref();
        let (created, updated) = match made {
            Some(made) => (Some(made.created_at), Some(made.updated_at)),
            None => (self.modified, self.modified),
        };
        json!({
            "id": self.id,
            "name": policy.name,
            "description": made.map_or("", |made| made.description.as_str()),
            "precedence": policy.precedence,
            "enabled": policy.enabled,
            "action": rule::ACTION,
            "filters": [rule::ACTION],
            "traffic": policy.traffic,
            "identity": "",
            "device_posture": "",
            "rule_settings": { "egress": policy.egress },
            "version": made.map_or(1, |made| made.version),
            "created_at": created.map(rfc3339),
            "updated_at": updated.map(rfc3339),
            "deleted_at": null,
            "read_only": made.is_none(),
        })
    }
}

/// An account's policies, the first to be asked first.
fn rules(stored: &Stored, account: &str) -> Vec<Known> {
    let resources = stored.resources();
    let mut found: Vec<Known> = resources
        .policies
        .iter()
        .filter(|policy| resources.same_account(&policy.account, account))
        .map(|policy| {
            let object = Object::Policy(policy.clone()).id();
            let modified = stored
                .modified
                .get(&(Kind::Policy, object.clone()))
                .copied();
            let id = match &policy.made {
                Some(made) => made.id.clone(),
                None => file_id(&object),
            };
            Known {
                id,
                policy: policy.clone(),
                modified,
            }
        })
        .collect();
    found.sort_by_key(|rule| rule.policy.precedence);
    found
}

/// The rule of the path.
fn rule(stored: &Stored, account: &str, call: &Call) -> Result<Known, ApiError> {
    let id = call.parameter("rule_id");
    let mut rules = rules(stored, account).into_iter();
    rules.find(|rule| rule.id == id).ok_or_else(|| {
        let shown: String = id.chars().take(64).collect();
        ApiError::new(
            Code::NotFound,
            format!("this account has no rule {shown:?}"),
        )
    })
}

/// The account of the path, which must exist: a token may outlive it.
fn account<'c>(api: &Api, call: &'c Call) -> Result<&'c str, ApiError> {
    let id = call.account()?;
    let resources = api.service.stored().resources();
    if resources.accounts.iter().any(|account| account.id == id) {
        return Ok(id);
    }
    Err(ApiError::forbidden(format!("there is no account {id}")))
}

/// After all others.
fn next_precedence(stored: &Stored, account: &str) -> Result<u32, ApiError> {
    let last = rules(stored, account).pop();
    let next = last.map_or(FIRST_PRECEDENCE, |last| last.policy.precedence + STEP);
    if next > MAX_PRECEDENCE {
        return Err(invalid(format!(
            "`precedence` is missing, and after the last rule there is none left: they go up to {MAX_PRECEDENCE}"
        )));
    }
    Ok(next)
}

/// One version further.
fn changed(made: Made) -> Made {
    Made {
        version: made.version + 1,
        updated_at: now(),
        ..made
    }
}

/// A random UUID (RFC 9562, version 4).
fn new_id() -> Result<String, ApiError> {
    random()
        .map(|bytes| uuid(bytes, 4))
        .map_err(|error| ApiError::internal(&error))
}

/// The same for the same policy of a file, whenever it is asked (RFC 9562, version 8).
fn file_id(object: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(object.as_bytes()).into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    uuid(bytes, 8)
}

fn uuid(mut bytes: [u8; 16], version: u8) -> String {
    bytes[6] = bytes[6] & 0x0f | version << 4;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let (a, b, c, d, e) = (
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}

fn invalid(why: impl std::fmt::Display) -> ApiError {
    ApiError::new(Code::InvalidValue, format!("invalid Gateway rule: {why}"))
}

#[cfg(test)]
mod tests;
