//! A value with its place: what it is, or why it will not do.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

use toml::Spanned;
use toml::de::DeValue;

use super::{Table, nearest};
use crate::diagnostic::{Report, Span};

/// A value with its place.
#[derive(Clone, Copy, Debug)]
pub struct Value<'a, 's> {
    pub(super) value: &'a Spanned<DeValue<'s>>,
    pub(super) key: &'static str,
    pub(super) example: &'static str,
    pub(super) report: &'a Report<'s>,
}

impl<'a, 's> Value<'a, 's> {
    /// Where the value stands.
    pub fn span(&self) -> Span {
        self.value.span()
    }

    /// What collects the mistakes.
    pub fn report(&self) -> &'a Report<'s> {
        self.report
    }

    /// Reports that this value does not do.
    pub fn refuse(&self, reason: impl Into<String>, remedy: impl Into<String>) {
        self.report.error(&self.span(), reason, remedy);
    }

    /// Reports that the value is of another type than `expected`.
    pub fn wrong_type(&self, expected: &str) {
        let remedy = if self.example.is_empty() {
            format!("`{}` takes {expected}", self.key)
        } else {
            format!("write, for instance, {}", self.example)
        };
        let found = self.value.get_ref().type_str();
        self.refuse(
            format!(
                "`{}` must be {expected}, not {}",
                self.key,
                with_article(found)
            ),
            remedy,
        );
    }

    /// A string.
    pub fn string(&self) -> Option<&'a str> {
        let found = self.value.get_ref().as_str();
        if found.is_none() {
            self.wrong_type("a string");
        }
        found
    }

    /// A string that is not empty.
    pub fn name(&self) -> Option<String> {
        let name = self.string()?;
        if name.trim().is_empty() {
            self.refuse(
                format!("`{}` is empty", self.key),
                format!("write, for instance, {}", self.example),
            );
            return None;
        }
        Some(name.to_owned())
    }

    /// `true` or `false`.
    pub fn boolean(&self) -> Option<bool> {
        let found = self.value.get_ref().as_bool();
        if found.is_none() {
            self.wrong_type("true or false");
        }
        found
    }

    /// An integer, if the value is one; does not report.
    pub fn as_integer(&self) -> Option<i64> {
        let integer = self.value.get_ref().as_integer()?;
        i64::from_str_radix(integer.as_str(), integer.radix()).ok()
    }

    /// Whether the value is a string; does not report.
    pub fn is_string(&self) -> bool {
        self.value.get_ref().is_str()
    }

    /// Whether the value is a table; does not report.
    pub fn is_table(&self) -> bool {
        self.value.get_ref().is_table()
    }

    /// An integer within `range`, of `unit` (empty for a bare count).
    pub fn integer(&self, range: RangeInclusive<u32>, unit: &str) -> Option<u32> {
        if !self.value.get_ref().is_integer() {
            self.wrong_type("an integer");
            return None;
        }
        let fits = self
            .as_integer()
            .and_then(|n| u32::try_from(n).ok())
            .filter(|n| range.contains(n));
        if fits.is_none() {
            let unit = if unit.is_empty() {
                String::new()
            } else {
                format!(" {unit}")
            };
            self.refuse(
                format!(
                    "`{}` must be from {} to {}{unit}",
                    self.key,
                    range.start(),
                    range.end()
                ),
                format!("write, for instance, {}", self.example),
            );
        }
        fits
    }

    /// The elements of an array.
    pub fn array(&self) -> Option<Vec<Self>> {
        let Some(array) = self.value.get_ref().as_array() else {
            self.wrong_type("an array");
            return None;
        };
        Some(array.iter().map(|value| Self { value, ..*self }).collect())
    }

    /// How many elements the array has, if the value is one; does not report.
    pub fn array_len(&self) -> Option<usize> {
        self.value
            .get_ref()
            .as_array()
            .map(|array| array.iter().len())
    }

    /// A table, to be called `name` in messages.
    pub fn table(&self, name: &str) -> Option<Table<'a, 's>> {
        let Some(entries) = self.value.get_ref().as_table() else {
            self.wrong_type("a table");
            return None;
        };
        Some(Table {
            entries,
            span: self.span(),
            name: name.to_owned(),
            known: Vec::new(),
            missing: Vec::new(),
            report: self.report,
        })
    }

    /// A string that `T` can be made of; `expected` says what that is.
    pub fn parsed<T>(&self, expected: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        let text = self.string()?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.refuse(
                    format!("\"{text}\" is not {expected}: {error}"),
                    format!("write, for instance, {}", self.example),
                );
                None
            }
        }
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, choices: &[(&'static str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = choices
            .iter()
            .find(|(word, _)| *word == text)
            .map(|(_, value)| *value);
        if found.is_none() {
            let words = choices
                .iter()
                .map(|(word, _)| format!("\"{word}\""))
                .collect::<Vec<_>>()
                .join(" or ");
            let remedy = nearest(text, choices.iter().map(|(word, _)| *word)).map_or_else(
                || format!("write, for instance, {}", self.example),
                |like| format!("did you mean \"{like}\"?"),
            );
            self.refuse(
                format!("`{}` must be {words}, not \"{text}\"", self.key),
                remedy,
            );
        }
        found
    }
}

fn with_article(noun: &str) -> String {
    let article = if noun.starts_with(['a', 'e', 'i', 'o', 'u']) {
        "an"
    } else {
        "a"
    };
    format!("{article} {noun}")
}
