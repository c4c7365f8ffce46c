//! A zone's settings (API-1): there is one, `aegis`.

use serde_json::{Map, Value, json};

use super::body::is_id;
use super::envelope::{Answer, ApiError, Code};
use super::time::rfc3339;
use super::{Api, Call};
use crate::controller::{AegisPatch, SettingError};
use crate::probe::Permit;
use crate::resource::check::eligible;
use crate::resource::{Address, Kind, Pool, Resources, Zone};
use crate::store::Stored;

/// The setting's name.
const AEGIS: &str = "aegis";

/// `GET /zones/{zone_id}/settings/{setting_id}`
pub(super) fn get(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    known(call.parameter("setting_id"))?;
    Ok(Answer::One(setting(&api.service.stored(), call)?))
}

/// `PATCH /zones/{zone_id}/settings/{setting_id}`
pub(super) fn patch(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    known(call.parameter("setting_id"))?;
    let body = object(call.json()?)?;
    let id = body.get("id");
    if id.is_some_and(|id| *id != AEGIS) {
        return Err(invalid("`id`, where it is given, is \"aegis\""));
    }
    let patch = value(body.get("value"))?;
    Ok(Answer::One(change(api, call, Some(&patch))?))
}

/// `GET /zones/{zone_id}/settings`
pub(super) fn list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let setting = setting(&api.service.stored(), call)?;
    Ok(Answer::One(json!([setting])))
}

/// `PATCH /zones/{zone_id}/settings`: all items, or none.
pub(super) fn patch_list(api: &Api, call: &Call) -> Result<Answer, ApiError> {
    let body = object(call.json()?)?;
    let Some(items) = body.get("items").and_then(Value::as_array) else {
        return Err(ApiError::new(
            Code::MissingItems,
            "`items` is missing: a list of {\"id\", \"value\"}",
        ));
    };
    let mut wanted = None;
    for item in items {
        let id = item.get("id").and_then(Value::as_str).unwrap_or_default();
        known(id)?;
        if wanted.replace(value(item.get("value"))?).is_some() {
            return Err(invalid("the setting aegis is there twice"));
        }
    }
    let setting = change(api, call, wanted.as_ref())?;
    let changed = if wanted.is_some() {
        json!([setting])
    } else {
        json!([])
    };
    Ok(Answer::One(changed))
}

fn known(setting: &str) -> Result<(), ApiError> {
    if setting == AEGIS {
        return Ok(());
    }
    let shown: String = setting.chars().take(64).collect();
    Err(ApiError::new(
        Code::UnknownSetting,
        format!("unrecognized zone setting name {shown:?}; there is: aegis"),
    ))
}

/// The setting as it is now.
fn setting(stored: &Stored, call: &Call) -> Result<Value, ApiError> {
    let resources = stored.resources();
    let zone = call.zone(&resources)?;
    let kind = if zone.aegis.is_some() {
        Kind::Zone
    } else {
        Kind::Setting
    };
    let modified = stored.modified.get(&(kind, zone.id.clone()));
    Ok(json!({
        "id": AEGIS,
        "editable": zone.aegis.is_none(),
        "modified_on": modified.map(|micros| rfc3339(*micros)),
        "value": resources.aegis(zone),
    }))
}

/// Changes the setting, and says what it is then; without a patch only the latter. Writers come one after the
/// other, so that the merge of each begins with what the one before left. What the zone requires to be probed is probed
/// in between, while nobody waits (POOL-10).
fn change(api: &Api, call: &Call, patch: Option<&AegisPatch>) -> Result<Value, ApiError> {
    let Some(patch) = patch else {
        return setting(&api.service.stored(), call);
    };
    // Also for a zone that is not there, or not the token's.
    let zone = {
        let stored = api.service.stored();
        call.zone(&stored.resources())?.id.clone()
    };
    api.service
        .permitted(Permit::None, |writer, permit| {
            writer.patch_aegis(&zone, patch, permit, |resources, zone, pool| {
                may_use(call, resources, zone, pool)
            })?;
            Ok(setting(writer.stored(), call))
        })
        .map_err(|error| match error {
            SettingError::NoZone(failure) => ApiError::forbidden(failure.reason),
            SettingError::FileOwned(failure) => ApiError::new(
                Code::NotModifiable,
                format!("cannot be modified for this zone: {}", failure.reason),
            ),
            SettingError::Invalid(failure) => invalid(failure.reason),
            SettingError::NotLetIn(failure) => ApiError::new(Code::NotLetIn, failure.reason),
            SettingError::Failed(failure) => failure.into(),
            SettingError::Unprobed(_) => ApiError::internal(&error),
        })?
}

/// Whether a caller may choose a pool for a zone: one of its own accounts, or BYOIP that the zone's account owns or
/// was delegated (POOL-7). Another account's leased pool is that one's, or the operator's, to share (POOL-4).
fn may_use(call: &Call, resources: &Resources, zone: &Zone, pool: &Pool) -> bool {
    let byoip = |address: &Address| resources.byoip(address.net()).is_some();
    call.is_for(resources, &pool.account)
        || (!pool.addresses.is_empty()
            && pool.addresses.iter().all(byoip)
            && eligible(resources, zone, pool).is_ok())
}

/// The merge patch that a `value` is.
fn value(value: Option<&Value>) -> Result<AegisPatch, ApiError> {
    let Some(value) = value.and_then(Value::as_object) else {
        return Err(invalid(
            "`value` is an object like {\"enabled\": true, \"pool_id\": \"ID\"}",
        ));
    };
    let mut patch = AegisPatch::default();
    for (key, value) in value {
        match (key.as_str(), value) {
            ("enabled", Value::Null) => patch.enabled = Some(None),
            ("enabled", Value::Bool(enabled)) => patch.enabled = Some(Some(*enabled)),
            ("enabled", _) => return Err(invalid("`enabled` is true or false")),
            ("pool_id", Value::Null) => patch.pool_id = Some(None),
            ("pool_id", Value::String(id)) if is_id(id) => {
                patch.pool_id = Some(Some(id.clone()));
            }
            ("pool_id", _) => {
                return Err(invalid("`pool_id` is a text of letters, digits, - and _"));
            }
            _ => {
                let shown: String = key.chars().take(64).collect();
                return Err(invalid(format!(
                    "unknown key {shown:?}; there are: enabled, pool_id"
                )));
            }
        }
    }
    if patch == AegisPatch::default() {
        return Err(invalid("`value` is empty: nothing would change"));
    }
    Ok(patch)
}

fn object(body: Value) -> Result<Map<String, Value>, ApiError> {
    match body {
        Value::Object(body) => Ok(body),
        _ => Err(invalid("the body is a JSON object")),
    }
}

fn invalid(why: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        Code::InvalidValue,
        format!("invalid value for zone setting: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;

    use super::*;
    use crate::diagnostic::Source;
    use crate::resource;
    use crate::store::Token;

    const FILE: &str = r#"
account = [{ id = "acme" }, { id = "other" }]
prefix = [
  { cidr = "198.51.100.0/24", account = "other", service = "cdn-egress", delegated_to = ["acme"] },
  { cidr = "203.0.113.0/24", account = "other", service = "cdn-egress" },
]
pool = [
  { id = "own", account = "acme", addresses = ["192.0.2.1"] },
  { id = "leased", account = "other", addresses = ["192.0.2.2"] },
  { id = "delegated", account = "other", addresses = ["198.51.100.1"] },
  { id = "private", account = "other", addresses = ["203.0.113.1"] },
  { id = "empty", account = "other", addresses = [], allow_empty = true },
]
[[zone]]
id = "z1"
name = "shop.example"
account = "acme"
sources = ["10.0.0.0/8"]
"#;

    #[test]
    fn pool_7_a_token_takes_its_own_pools_and_prefixes_that_were_delegated_to_the_zones_account() {
        let (resources, found) = resource::parse(&Source::new("r.toml", FILE), None);
        let resources = resources.unwrap_or_else(|| panic!("{found}"));
        let call = Call {
            token: Some(Token {
                id: "t".into(),
                name: String::new(),
                permissions: Vec::new(),
                accounts: vec!["acme".into()],
                created: 0,
            }),
            parameters: Vec::new(),
            query: String::new(),
            body: Bytes::new(),
        };
        let zone = resources.zone("z1").unwrap();
        let may: Vec<&str> = resources
            .pools
            .iter()
            .filter(|pool| may_use(&call, &resources, zone, pool))
            .map(|pool| pool.id.as_str())
            .collect();
        assert_eq!(may, ["own", "delegated"]);
    }
}
