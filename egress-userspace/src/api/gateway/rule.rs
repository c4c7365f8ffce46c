//! A Gateway rule as a body says it.

use std::net::Ipv4Addr;

use ipnet::Ipv6Net;
use serde_json::{Map, Value};

use super::super::envelope::ApiError;
use super::invalid;
use crate::policy;
use crate::resource::{Address, Egress, MAX_PRECEDENCE, Made, Policy, unfit};

/// The only action, and the only filter, that there is here.
pub(super) const ACTION: &str = "egress";
/// The longest description, in characters.
const MAX_DESCRIPTION: usize = 1_024;
/// What an answer says and nobody sets; a client that sends back what it got means nothing by them.
const READ_ONLY: [&str; 6] = [
    "id",
    "version",
    "created_at",
    "updated_at",
    "deleted_at",
    "read_only",
];
const KEYS: &str = "name, description, precedence, enabled, action, filters, traffic, identity, device_posture, rule_settings";

/// A whole rule, but for what nobody sets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Rule {
    name: String,
    pub(super) description: String,
    pub(super) precedence: Option<u32>,
    /// False unless it is said: so it is with the original.
    enabled: bool,
    /// In canonical form.
    traffic: String,
    egress: Option<Egress>,
}

impl Rule {
    /// The rule that a body is.
    pub(super) fn read(body: &Value) -> Result<Self, ApiError> {
        let body = object(body, "the body")?;
        let mut rule = Self {
            name: String::new(),
            description: String::new(),
            precedence: None,
            enabled: false,
            traffic: String::new(),
            egress: None,
        };
        for (key, value) in body {
            match key.as_str() {
                "name" => rule.name = name(value)?,
                "description" => rule.description = description(value)?,
                "precedence" if value.is_null() => {}
                "precedence" => rule.precedence = Some(precedence(value)?),
                "enabled" => rule.enabled = !value.is_null() && boolean(key, value)?,
                "action" if value == ACTION => {}
                "action" => return Err(invalid("`action` is \"egress\": this is no firewall")),
                "filters" if value.is_null() || is_list_of_action(value) => {}
                "filters" => return Err(invalid("`filters` is [\"egress\"]")),
                "traffic" => rule.traffic = traffic(text(key, value)?)?,
                "identity" | "device_posture" => nothing_but_packets(key, text(key, value)?)?,
                "rule_settings" => rule.egress = settings(value)?,
                "schedule" | "expiration" if value.is_null() => {}
                "schedule" | "expiration" => {
                    return Err(invalid(format!(
                        "`{key}` cannot be decided by the data plane"
                    )));
                }
                key if READ_ONLY.contains(&key) => {}
                _ => return Err(unknown(key, KEYS)),
            }
        }
        for key in ["name", "action"] {
            if !body.contains_key(key) {
                return Err(invalid(format!("`{key}` is missing")));
            }
        }
        Ok(rule)
    }

    /// The policy that it is.
    pub(super) fn policy(self, account: &str, precedence: u32, made: Made) -> Policy {
        Policy {
            name: self.name,
            account: account.to_owned(),
            precedence,
            enabled: self.enabled,
            traffic: self.traffic,
            egress: self.egress,
            made: Some(made),
        }
    }
}

/// Some of what a rule has, to be changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Patch {
    name: Option<String>,
    description: Option<String>,
    precedence: Option<u32>,
    enabled: Option<bool>,
}

impl Patch {
    /// The change that a body is.
    pub(super) fn read(body: &Value) -> Result<Self, ApiError> {
        let mut patch = Self::default();
        for (key, value) in object(body, "the body")? {
            match key.as_str() {
                "name" => patch.name = Some(name(value)?),
                "description" => patch.description = Some(description(value)?),
                "precedence" => patch.precedence = Some(precedence(value)?),
                "enabled" => patch.enabled = Some(boolean(key, value)?),
                _ => {
                    return Err(unknown(
                        key,
                        "name, description, precedence, enabled; PUT changes all of a rule",
                    ));
                }
            }
        }
        if patch == Self::default() {
            return Err(invalid("the body is empty: nothing would change"));
        }
        Ok(patch)
    }

    /// Makes the change.
    pub(super) fn onto(self, policy: &mut Policy, made: &mut Made) {
        if let Some(name) = self.name {
            policy.name = name;
        }
        if let Some(description) = self.description {
            made.description = description;
        }
        if let Some(precedence) = self.precedence {
            policy.precedence = precedence;
        }
        if let Some(enabled) = self.enabled {
            policy.enabled = enabled;
        }
    }
}

fn object<'v>(value: &'v Value, what: &str) -> Result<&'v Map<String, Value>, ApiError> {
    value
        .as_object()
        .ok_or_else(|| invalid(format!("{what} is a JSON object")))
}

/// A text; null is as good as none.
fn text<'v>(key: &str, value: &'v Value) -> Result<&'v str, ApiError> {
    match value {
        Value::Null => Ok(""),
        Value::String(text) => Ok(text),
        _ => Err(invalid(format!("`{key}` is a text"))),
    }
}

fn boolean(key: &str, value: &Value) -> Result<bool, ApiError> {
    value
        .as_bool()
        .ok_or_else(|| invalid(format!("`{key}` is true or false")))
}

fn name(value: &Value) -> Result<String, ApiError> {
    let text = text("name", value)?;
    match unfit(text) {
        None => Ok(text.to_owned()),
        Some(why) => Err(invalid(format!("`name` cannot be that: {why}"))),
    }
}

fn description(value: &Value) -> Result<String, ApiError> {
    let text = text("description", value)?;
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(invalid(format!(
            "`description` has at most {MAX_DESCRIPTION} characters"
        )));
    }
    Ok(text.to_owned())
}

fn precedence(value: &Value) -> Result<u32, ApiError> {
    let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
    number
        .filter(|number| *number <= MAX_PRECEDENCE)
        .ok_or_else(|| {
            invalid(format!(
                "`precedence` is a whole number from 0 to {MAX_PRECEDENCE}"
            ))
        })
}

fn is_list_of_action(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|list| matches!(list.as_slice(), [one] if one == ACTION))
}

/// Whether a value switches nothing on.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// The canonical form of an expression; none for all traffic.
fn traffic(text: &str) -> Result<String, ApiError> {
    if text.trim().is_empty() {
        return Ok(String::new());
    }
    match policy::parse(text) {
        Ok(expression) => Ok(expression.to_string()),
        Err(mistake) => Err(misplaced("traffic", text, &mistake)),
    }
}

fn misplaced(key: &str, text: &str, mistake: &policy::Mistake) -> ApiError {
    let (line, column) = mistake.position(text);
    let line = if line > 1 {
        format!("line {line}, ")
    } else {
        String::new()
    };
    invalid(format!(
        "`{key}`, {line}column {column}: {mistake}: {}",
        mistake.remedy
    ))
}

/// Who a user is and what a device is like, no packet says (POLICY-2).
fn nothing_but_packets(key: &str, text: &str) -> Result<(), ApiError> {
    if text.trim().is_empty() {
        return Ok(());
    }
    Err(match policy::parse(text) {
        Err(mistake) => misplaced(key, text, &mistake),
        Ok(_) => invalid(format!(
            "what packets say stands in `traffic`, not in `{key}`"
        )),
    })
}

/// What `rule_settings` says of addresses; nothing is the default egress. Whatever else is in it must be off.
fn settings(value: &Value) -> Result<Option<Egress>, ApiError> {
    if value.is_null() {
        return Ok(None);
    }
    let mut found = None;
    for (key, value) in object(value, "`rule_settings`")? {
        match key.as_str() {
            "egress" if value.is_null() => {}
            "egress" => found = Some(egress(value)?),
            _ if is_nothing(value) => {}
            _ => return Err(unknown(key, "egress, in `rule_settings`")),
        }
    }
    Ok(found)
}

fn egress(value: &Value) -> Result<Egress, ApiError> {
    const WHAT: &str = "`rule_settings.egress`";
    let (mut ipv4, mut ipv4_fallback, mut ipv6) = (None, None, None);
    for (key, value) in object(value, WHAT)? {
        match key.as_str() {
            "ipv4" => ipv4 = Some(address(key, value)?),
            "ipv4_fallback" => ipv4_fallback = Some(address(key, value)?),
            "ipv6" => ipv6 = Some(range(value)?),
            _ => return Err(unknown(key, "ipv4, ipv4_fallback, ipv6")),
        }
    }
    let missing = |key: &str| {
        invalid(format!(
            "{WHAT} has ipv4, ipv4_fallback (\"0.0.0.0\" for the default egress) and ipv6, and {key} is missing (POLICY-3)"
        ))
    };
    Ok(Egress {
        ipv4: ipv4.ok_or_else(|| missing("ipv4"))?,
        ipv4_fallback: ipv4_fallback.ok_or_else(|| missing("ipv4_fallback"))?,
        ipv6: ipv6.ok_or_else(|| missing("ipv6"))?,
    })
}

fn address(key: &str, value: &Value) -> Result<Ipv4Addr, ApiError> {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| invalid(format!("`{key}` is an IPv4 address")))
}

fn range(value: &Value) -> Result<Ipv6Net, ApiError> {
    let read = value.as_str().map(str::parse::<Address>);
    match read {
        Some(Ok(Address::V6(range))) => Ok(range),
        Some(Err(error)) => Err(invalid(format!("`ipv6`: {error}"))),
        Some(Ok(Address::V4(_))) | None => Err(invalid("`ipv6` is an IPv6 prefix")),
    }
}

fn unknown(key: &str, known: &str) -> ApiError {
    let shown: String = key.chars().take(64).collect();
    invalid(format!("unknown key {shown:?}; there are: {known}"))
}
