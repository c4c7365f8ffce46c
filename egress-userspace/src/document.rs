//! Reading TOML with a place for every value, and a word about every mistake.
//!
//! A [`Table`] knows which keys were asked for; the rest is unknown and reported with the nearest known key.
//! Getters return `None` both for an absent value and for one that was reported: the caller goes on with its
//! default, so that one run finds every mistake.

mod value;

use toml::Spanned;
use toml::de::DeTable;

pub use value::Value;

use crate::diagnostic::{Report, Span};

/// Parses the text of the report's source and reports every syntax error: once a line, and nothing after a mistake
/// that leaves an array open, since everything then looks like a wrong element.
pub fn parse<'s>(report: &Report<'s>) -> Spanned<DeTable<'s>> {
    let (table, mut errors) = DeTable::parse_recoverable(report.source().text());
    errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if report.is_incomplete() && error.message().contains("array") {
            report.mark_broken_from(&span);
            break;
        }
        report.error(
            &span,
            format!("not valid TOML: {}", error.message().replace('\n', "; ")),
            SYNTAX,
        );
        report.mark_broken(&span);
    }
    table
}

const SYNTAX: &str =
    "values are written as key = \"text\", key = 1, key = true or key = [\"a\", \"b\"]";

/// The known name most like `given`, if one is like it at all.
pub fn nearest<'n>(given: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    known
        .into_iter()
        .map(|name| {
            (
                strsim::jaro_winkler(&given.to_lowercase(), &name.to_lowercase()),
                name,
            )
        })
        .filter(|(likeness, _)| *likeness >= 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// A table under examination.
#[derive(Debug)]
pub struct Table<'a, 's> {
    entries: &'a DeTable<'s>,
    span: Span,
    name: String,
    known: Vec<&'static str>,
    /// What is missing: said at the end, unless it is there under a misspelt name.
    missing: Vec<Missing>,
    report: &'a Report<'s>,
}

/// A key that has to be there, or one of several, and what to say if none is.
#[derive(Debug)]
struct Missing {
    keys: Vec<&'static str>,
    reason: String,
    remedy: String,
}

impl<'a, 's> Table<'a, 's> {
    /// The whole document.
    pub fn root(document: &'a Spanned<DeTable<'s>>, report: &'a Report<'s>) -> Self {
        Self {
            entries: document.get_ref(),
            span: 0..0,
            name: String::new(),
            known: Vec::new(),
            missing: Vec::new(),
            report,
        }
    }

    /// Where the table starts.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// What collects the mistakes.
    pub fn report(&self) -> &'a Report<'s> {
        self.report
    }

    /// The value of `key`, if it is there. `example` is how the line is written properly.
    pub fn get(&mut self, key: &'static str, example: &'static str) -> Option<Value<'a, 's>> {
        self.known.push(key);
        let value = self.entries.get(key)?;
        Some(Value {
            value,
            key,
            example,
            report: self.report,
        })
    }

    /// The value of `key`; reports that it is missing.
    pub fn require(&mut self, key: &'static str, example: &'static str) -> Option<Value<'a, 's>> {
        let value = self.get(key, example);
        if value.is_none() {
            let reason = if self.name.is_empty() {
                format!("`{key}` is missing")
            } else {
                format!("{} has no `{key}`", self.name)
            };
            self.lacks([key], reason, format!("add, for instance, {example}"));
        }
        value
    }

    /// Notes that none of `keys` is there, though one has to be. It is said by [`Self::finish`], unless one is there
    /// under a misspelt name, which is said then.
    pub fn lacks(
        &mut self,
        keys: impl Into<Vec<&'static str>>,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.missing.push(Missing {
            keys: keys.into(),
            reason: reason.into(),
            remedy: remedy.into(),
        });
    }

    /// The elements of the array `key`; none when it is absent.
    pub fn list(&mut self, key: &'static str, example: &'static str) -> Vec<Value<'a, 's>> {
        self.get(key, example)
            .and_then(|value| value.array())
            .unwrap_or_default()
    }

    /// The section `[key]`, if it is there.
    pub fn section(&mut self, key: &'static str) -> Option<Self> {
        let value = self.get(key, "")?;
        let name = if self.name.is_empty() {
            format!("[{key}]")
        } else {
            format!("{} {key}", self.name)
        };
        value.table(&name)
    }

    /// The entries of `[[key]]`; none when it is absent.
    pub fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let name = format!("[[{key}]]");
        let Some(value) = self.get(key, "") else {
            return Vec::new();
        };
        if value.value.get_ref().is_table() {
            value.report.error(
                &value.span(),
                format!("`{key}` is a list of tables"),
                format!("write {name} instead of [{key}]"),
            );
            return Vec::new();
        }
        value
            .array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.table(&name))
            .collect()
    }

    /// Reports every key that nobody asked for, and what is missing.
    pub fn finish(self) {
        let mut meant = Vec::new();
        let top = self.name.is_empty();
        for key in self.entries.keys() {
            let given = key.get_ref().as_ref();
            if self.known.contains(&given) {
                continue;
            }
            let place = if self.name.is_empty() {
                "this file".to_owned()
            } else {
                self.name.clone()
            };
            let like = nearest(given, self.known.iter().copied());
            meant.extend(like);
            let remedy = like.map_or_else(
                || {
                    let mut known = self.known.clone();
                    known.sort_unstable();
                    known.dedup();
                    format!("known here: {}", known.join(", "))
                },
                |like| format!("did you mean `{like}`?"),
            );
            self.report.error(
                &key.span(),
                format!("unknown key `{given}` in {place}"),
                remedy,
            );
        }
        for Missing {
            keys,
            reason,
            remedy,
        } in self.missing
        {
            let misspelt = keys.iter().any(|key| meant.contains(key));
            if !misspelt && !self.report.is_incomplete() {
                self.report.error(&self.span, reason, remedy);
            }
        }
        if top && !meant.is_empty() {
            // Perhaps a whole section: what refers to it is not wrong.
            self.report.mark_incomplete();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;

    fn messages(text: &str, read: impl FnOnce(&mut Table<'_, '_>)) -> Vec<String> {
        let source = Source::new("t.toml", text);
        let report = Report::new(&source);
        let document = parse(&report);
        let mut table = Table::root(&document, &report);
        read(&mut table);
        table.finish();
        drop(document);
        report
            .finish()
            .0
            .iter()
            .map(|d| format!("{}:{}: {} / {}", d.line, d.column, d.reason, d.remedy))
            .collect()
    }

    #[test]
    fn an_unknown_key_suggests_the_nearest_known_one() {
        let found = messages("adress = 1\nzzz = 2\n", |table| {
            table.get("address", "");
        });
        assert_eq!(
            found,
            [
                "1:1: unknown key `adress` in this file / did you mean `address`?",
                "2:1: unknown key `zzz` in this file / known here: address"
            ]
        );
    }

    #[test]
    fn a_wrong_type_says_what_was_expected_and_shows_an_example() {
        let found = messages("count = \"x\"\nname = 3\n", |table| {
            let count = table.get("count", "count = 3").unwrap();
            assert_eq!(count.integer(1..=9, ""), None);
            assert_eq!(table.get("name", "name = \"a\"").unwrap().string(), None);
        });
        assert_eq!(
            found,
            [
                "1:9: `count` must be an integer, not a string / write, for instance, count = 3",
                "2:8: `name` must be a string, not an integer / write, for instance, name = \"a\""
            ]
        );
    }

    #[test]
    fn numbers_are_bounded_and_may_be_hexadecimal() {
        let found = messages(
            "a = 0xff\nb = 1_000\nc = -1\nd = 99999999999999999999\n",
            |table| {
                assert_eq!(table.get("a", "").unwrap().integer(1..=255, ""), Some(255));
                assert_eq!(
                    table.get("b", "").unwrap().integer(1..=1000, ""),
                    Some(1000)
                );
                assert_eq!(
                    table
                        .get("c", "c = 1")
                        .unwrap()
                        .integer(1..=1000, "seconds"),
                    None
                );
                assert_eq!(table.get("d", "d = 1").unwrap().integer(1..=1000, ""), None);
            },
        );
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("from 1 to 1000 seconds"), "{found:?}");
    }

    #[test]
    fn every_syntax_error_of_a_file_is_reported() {
        let found = messages("a = = 1\nb = 2\nc = \"open\nd == 4\n", |table| {
            for key in ["a", "b", "c", "d"] {
                table.get(key, "");
            }
        });
        assert!(found.iter().any(|m| m.starts_with("1:")), "{found:?}");
        assert!(found.iter().any(|m| m.starts_with("4:")), "{found:?}");
    }

    #[test]
    fn one_mistake_is_said_once() {
        // What is missing because its name is misspelt.
        let found = messages("adress = 1\n", |table| {
            table.require("address", "address = 1");
            table.require("port", "port = 2");
        });
        assert_eq!(
            found,
            [
                "1:1: unknown key `adress` in this file / did you mean `address`?",
                "1:1: `port` is missing / add, for instance, port = 2",
            ]
        );
        // A value that is neither valid nor of the right type.
        let found = messages("a = 12x\nb = 3\n", |table| {
            for key in ["a", "b"] {
                if let Some(value) = table.get(key, "a = 1") {
                    value.string();
                }
            }
        });
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("1:5: not valid TOML"), "{found:?}");
        assert!(
            found[1].starts_with("2:5: `b` must be a string"),
            "{found:?}"
        );
        // A quotation mark that is missing in an array: the rest of the file is taken for its elements.
        let found = messages("a = [\"x]\nb = 1\nc = true\n[d]\ne = 2\n", |table| {
            for value in table.list("a", "") {
                value.integer(1..=2, "");
            }
        });
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("1:"), "{found:?}");
    }

    #[test]
    fn a_list_of_tables_written_as_one_table_says_how_to_write_it() {
        let found = messages("[pool]\n", |table| {
            table.sections("pool");
        });
        assert_eq!(
            found,
            ["1:1: `pool` is a list of tables / write [[pool]] instead of [pool]"]
        );
    }
}
