//! What a filter lets through.

use std::net::{IpAddr, SocketAddr};

use async_graphql_value::ConstValue;
use async_graphql_value::indexmap::IndexMap;

use super::Problem;
use crate::api::time::{parse, rfc3339_seconds};
use crate::utilization::Row;

/// Filters within `AND` and `OR`.
const MAX_DEPTH: usize = 8;
/// Microseconds of a second.
const MICROS: i64 = 1_000_000;

/// What groups are made by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dimension {
    Time,
    Pop,
    EgressIp,
    Origin,
    Key,
}

impl Dimension {
    const ALL: [Self; 5] = [
        Self::Time,
        Self::Pop,
        Self::EgressIp,
        Self::Origin,
        Self::Key,
    ];

    /// Its name in queries.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Time => "datetimeFiveMinutes",
            Self::Pop => "popName",
            Self::EgressIp => "egressIp",
            Self::Origin => "origin",
            Self::Key => "popUtilizationKey",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// All names, for messages.
    pub(super) fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    /// Its value of a row.
    pub(super) fn of(self, row: &Row) -> Part {
        let pop = &row.pop;
        match self {
            Self::Time => Part::Time(row.start * MICROS),
            Self::Pop => Part::Text(pop.clone()),
            Self::EgressIp => Part::Text(row.egress_ip.clone()),
            Self::Origin => Part::Text(row.origin.clone()),
            Self::Key => Part::Text(format!("{pop} {} {}", row.egress_ip, row.origin)),
        }
    }
}

/// A value of a dimension.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Part {
    /// µs since 1970.
    Time(i64),
    Text(String),
}

impl Part {
    /// As it is answered.
    pub(super) fn shown(&self) -> ConstValue {
        ConstValue::String(match self {
            Self::Time(micros) => rfc3339_seconds(micros.div_euclid(MICROS)),
            Self::Text(text) => text.clone(),
        })
    }

    fn read(dimension: Dimension, value: &ConstValue) -> Result<Self, Problem> {
        let text = text(value)?;
        let canonical = match dimension {
            Dimension::Time => {
                let shown: String = text.chars().take(64).collect();
                let wrong = || {
                    Problem::new(format!(
                        "{shown:?} is no time; one is \"2025-01-10T00:05:00Z\""
                    ))
                };
                return parse(&text).map(Self::Time).ok_or_else(wrong);
            }
            Dimension::EgressIp => text.parse::<IpAddr>().ok().map(|ip| ip.to_string()),
            Dimension::Origin => text
                .parse::<SocketAddr>()
                .ok()
                .map(|origin| origin.to_string()),
            Dimension::Pop | Dimension::Key => None,
        };
        Ok(Self::Text(canonical.unwrap_or(text)))
    }
}

/// A text, also where an enum value was written.
pub(super) fn text(value: &ConstValue) -> Result<String, Problem> {
    match value {
        ConstValue::String(text) => Ok(text.clone()),
        ConstValue::Enum(name) => Ok(name.to_string()),
        _ => Err(Problem::new("a value is not a text")),
    }
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    All(Vec<Self>),
    Any(Vec<Self>),
    Compare(Dimension, Comparison),
}

/// A comparison with a dimension's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal(Part),
    NotEqual(Part),
    Greater(Part),
    Less(Part),
    AtLeast(Part),
    AtMost(Part),
    In(Vec<Part>),
    NotIn(Vec<Part>),
    /// `%` stands for any text.
    Like(String),
}

impl Condition {
    /// Reads an argument `filter`.
    pub(super) fn read(value: &ConstValue) -> Result<Self, Problem> {
        Self::read_within(value, MAX_DEPTH)
    }

    fn read_within(value: &ConstValue, depth: usize) -> Result<Self, Problem> {
        let ConstValue::Object(object) = value else {
            return Err(Problem::new("a filter is an object"));
        };
        let depth = depth
            .checked_sub(1)
            .ok_or_else(|| Problem::new("filters within too many filters"))?;
        Self::read_object(object, depth)
    }

    fn read_object<K: AsRef<str>>(
        object: &IndexMap<K, ConstValue>,
        depth: usize,
    ) -> Result<Self, Problem> {
        let mut all = Vec::new();
        for (key, value) in object {
            let key = key.as_ref();
            let several = || match value {
                ConstValue::List(list) => list
                    .iter()
                    .map(|one| Self::read_within(one, depth))
                    .collect(),
                one => Self::read_within(one, depth).map(|one| vec![one]),
            };
            all.push(match (key, value) {
                // Nothing is asked.
                (_, ConstValue::Null) => continue,
                ("AND", _) => Self::All(several()?),
                ("OR", _) => Self::Any(several()?),
                _ => Self::compare(key, value)?,
            });
        }
        Ok(Self::All(all))
    }

    fn compare(key: &str, value: &ConstValue) -> Result<Self, Problem> {
        let (name, operator) = key.split_once('_').unwrap_or((key, ""));
        let Some(dimension) = Dimension::named(name) else {
            let shown: String = key.chars().take(64).collect();
            return Err(Problem::new(format!(
                "unknown filter {shown}; there are: {}, AND, OR",
                Dimension::names()
            )));
        };
        let one = || Part::read(dimension, value);
        let several = || match value {
            ConstValue::List(list) => list.iter().map(|one| Part::read(dimension, one)).collect(),
            one => Part::read(dimension, one).map(|one| vec![one]),
        };
        let comparison = match operator {
            "" => Comparison::Equal(one()?),
            "neq" => Comparison::NotEqual(one()?),
            "gt" => Comparison::Greater(one()?),
            "lt" => Comparison::Less(one()?),
            "geq" => Comparison::AtLeast(one()?),
            "leq" => Comparison::AtMost(one()?),
            "in" => Comparison::In(several()?),
            "notin" => Comparison::NotIn(several()?),
            "like" if dimension != Dimension::Time => Comparison::Like(text(value)?),
            _ => {
                return Err(Problem::new(format!(
                    "unknown comparison of {name}; there are: _gt, _lt, _geq, _leq, _neq, _in, _notin, _like (of texts)"
                )));
            }
        };
        Ok(Self::Compare(dimension, comparison))
    }

    /// Whether a row is asked for.
    pub(super) fn holds(&self, row: &Row) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.holds(row)),
            Self::Any(any) => any.iter().any(|one| one.holds(row)),
            Self::Compare(dimension, comparison) => comparison.holds(&dimension.of(row)),
        }
    }

    /// The buckets among which all rows are that are asked for, by their starts in seconds since 1970.
    pub(super) fn buckets(&self) -> (i64, i64) {
        let whole = (i64::MIN, i64::MAX);
        match self {
            Self::All(all) => all
                .iter()
                .map(Self::buckets)
                .fold(whole, |(from, to), one| (from.max(one.0), to.min(one.1))),
            Self::Compare(Dimension::Time, comparison) => {
                let seconds = |part: &Part| match part {
                    Part::Time(micros) => micros.div_euclid(MICROS),
                    Part::Text(_) => 0,
                };
                match comparison {
                    Comparison::Equal(time) => (seconds(time), seconds(time)),
                    Comparison::Greater(time) | Comparison::AtLeast(time) => {
                        (seconds(time), i64::MAX)
                    }
                    Comparison::Less(time) | Comparison::AtMost(time) => (i64::MIN, seconds(time)),
                    _ => whole,
                }
            }
            _ => whole,
        }
    }
}

impl Comparison {
    fn holds(&self, value: &Part) -> bool {
        match self {
            Self::Equal(other) => value == other,
            Self::NotEqual(other) => value != other,
            Self::Greater(other) => value > other,
            Self::Less(other) => value < other,
            Self::AtLeast(other) => value >= other,
            Self::AtMost(other) => value <= other,
            Self::In(others) => others.contains(value),
            Self::NotIn(others) => !others.contains(value),
            Self::Like(pattern) => match value {
                Part::Text(text) => like(text, pattern),
                Part::Time(_) => false,
            },
        }
    }
}

/// Whether a text is of this pattern, in which `%` stands for any text.
fn like(text: &str, pattern: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('%') else {
        return text == pattern;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('%').collect();
    let tail = parts.pop().unwrap_or_default();
    // Each part where it is first: what is left for the others is then longest.
    for part in parts {
        let Some(at) = text.find(part) else {
            return false;
        };
        text = &text[at + part.len()..];
    }
    text.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_slow_search_does() {
        fn slow(text: &[u8], pattern: &[u8]) -> bool {
            match pattern.split_first() {
                None => text.is_empty(),
                Some((b'%', rest)) => (0..=text.len()).any(|at| slow(&text[at..], rest)),
                Some((first, rest)) => text
                    .split_first()
                    .is_some_and(|(one, text)| one == first && slow(text, rest)),
            }
        }
        let words = |alphabet: &[char], length: usize| -> Vec<String> {
            let mut words = vec![String::new()];
            let mut last = words.clone();
            for _ in 0..length {
                last = last
                    .iter()
                    .flat_map(|word| alphabet.iter().map(move |letter| format!("{word}{letter}")))
                    .collect();
                words.extend(last.clone());
            }
            words
        };
        let mut matches = 0;
        for pattern in words(&['a', 'b', '%'], 5) {
            for text in words(&['a', 'b'], 5) {
                let expected = slow(text.as_bytes(), pattern.as_bytes());
                assert_eq!(like(&text, &pattern), expected, "{text:?} {pattern:?}");
                matches += usize::from(expected);
            }
        }
        assert!(matches > 1000);
    }
}
