//! Ids and names: how objects are called.

use crate::document::{Table, Value};

use super::place::ObjectPlaces;

/// The longest id or name, the length of a DNS name.
const MAX_LENGTH: usize = 253;

/// Reads a required id: letters, digits, `-` and `_`.
pub(super) fn id(
    table: &mut Table<'_, '_>,
    example: &'static str,
    places: &mut ObjectPlaces<'_>,
) -> String {
    let Some(value) = table.require("id", example) else {
        return String::new();
    };
    places.field("id", value.span());
    let Some(text) = value.string() else {
        return String::new();
    };
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || text.len() > MAX_LENGTH || !text.chars().all(fits) {
        value.refuse(
            format!("\"{text}\" cannot be an id: ids are made of letters, digits, - and _"),
            format!("write, for instance, {example}"),
        );
        return String::new();
    }
    text.to_owned()
}

/// Reads an optional name: any text without spaces at its ends or control characters.
pub(super) fn name(
    table: &mut Table<'_, '_>,
    example: &'static str,
    places: &mut ObjectPlaces<'_>,
) -> Option<String> {
    let value = table.get("name", example)?;
    places.field("name", value.span());
    checked(value, example)
}

/// Reads a required reference to another object, by id or name. Empty when it was refused.
pub(super) fn reference(
    table: &mut Table<'_, '_>,
    key: &'static str,
    example: &'static str,
    places: &mut ObjectPlaces<'_>,
) -> String {
    let Some(value) = table.require(key, example) else {
        return String::new();
    };
    places.field(key, value.span());
    checked(value, example).unwrap_or_default()
}

/// The text of a name, if it can be one.
pub(super) fn checked(value: Value<'_, '_>, example: &str) -> Option<String> {
    let text = value.string()?;
    let Some(problem) = unfit(text) else {
        return Some(text.to_owned());
    };
    value.refuse(
        format!("\"{}\" cannot be a name: {problem}", text.escape_debug()),
        format!("write, for instance, {example}"),
    );
    None
}

/// Why a text cannot be a name.
pub fn unfit(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        Some("it is empty")
    } else if text.len() > MAX_LENGTH {
        Some("it is longer than 253 bytes")
    } else if text.trim() != text || text.chars().any(char::is_control) {
        Some("it has spaces at an end, or control characters")
    } else {
        None
    }
}
