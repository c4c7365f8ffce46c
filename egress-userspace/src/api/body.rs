//! What a body says, key by key.

use serde_json::{Map, Value};

use super::Call;
use super::envelope::{ApiError, Code};
use crate::controller::ChangeError;
use crate::resource::{Address, AddressError, unfit};

/// The longest id.
const MAX_ID: usize = 253;

/// An object with keys that are known.
pub(super) struct Body(Map<String, Value>);

impl Body {
    /// The body of a call, if it says nothing but these.
    pub(super) fn of(call: &Call, known: &[&str]) -> Result<Self, ApiError> {
        Self::read(call.json()?, "the body", known)
    }

    /// A part of a body.
    pub(super) fn read(value: Value, what: &str, known: &[&str]) -> Result<Self, ApiError> {
        let Value::Object(map) = value else {
            return Err(invalid(format!("{what} is a JSON object")));
        };
        if let Some(key) = map.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(invalid(format!(
                "unknown key {:?} in {what}; there are: {}",
                shown(key),
                known.join(", ")
            )));
        }
        Ok(Self(map))
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is said of a key; null counts.
    pub(super) fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// A text, or nothing, or null.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ApiError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(format!("`{key}` is a text"))),
        }
    }

    /// A text that must be there.
    pub(super) fn needs(&self, key: &str, example: &str) -> Result<&str, ApiError> {
        self.text(key)?.ok_or_else(|| {
            invalid(format!(
                "`{key}` is missing: write, for instance, {example}"
            ))
        })
    }

    /// A number within bounds, or nothing, or null.
    pub(super) fn number(&self, key: &str, least: u32, most: u32) -> Result<Option<u32>, ApiError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_u64()
                .and_then(|number| u32::try_from(number).ok())
                .filter(|number| (least..=most).contains(number))
                .map(Some)
                .ok_or_else(|| invalid(format!("`{key}` is a number from {least} to {most}"))),
        }
    }

    /// A list, or nothing.
    pub(super) fn list(&self, key: &str) -> Result<Option<&[Value]>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(_) => Err(invalid(format!("`{key}` is a list"))),
        }
    }
}

/// An address, or a range of IPv6.
pub(super) fn address(text: &str) -> Result<Address, ApiError> {
    text.parse()
        .map_err(|error: AddressError| invalid(format!("{error}: {}", error.remedy())))
}

/// Whether a text can be an id.
pub(super) fn is_id(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.len() <= MAX_ID && text.bytes().all(fits)
}

/// A name.
pub(super) fn name(text: &str) -> Result<String, ApiError> {
    match unfit(text) {
        None => Ok(text.to_owned()),
        Some(why) => Err(invalid(format!(
            "`name` cannot be {:?}: {why}",
            shown(text)
        ))),
    }
}

/// The beginning of what somebody else wrote, for messages.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

pub(super) fn invalid(why: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidValue, why)
}

pub(super) fn not_found(why: impl Into<String>) -> ApiError {
    ApiError::new(Code::NotFound, why)
}

/// Something that the resources file owns.
pub(super) fn of_file(what: &str) -> ApiError {
    ApiError::new(
        Code::NotModifiable,
        format!("{what} belongs to the operator's resources file, and is changed there"),
    )
}

impl From<ChangeError> for ApiError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Invalid(failure) if failure.remedy.is_empty() => invalid(failure.reason),
            ChangeError::Invalid(failure) => {
                invalid(format!("{}: {}", failure.reason, failure.remedy))
            }
            ChangeError::Failed(failure) => failure.into(),
        }
    }
}
