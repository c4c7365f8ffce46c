//! A Gateway egress policy: which traffic of an account's zones leaves by which of its addresses (POLICY-1 to POLICY-4).

use std::net::Ipv4Addr;

use ipnet::Ipv6Net;
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::name;
use super::place::ObjectPlaces;
use crate::diagnostic::Span;
use crate::document::{Table, Value};
use crate::policy::{self, Expression};

/// Precedences go up to here, so that a generated one still fits.
pub const MAX_PRECEDENCE: u32 = 1_000_000_000;

/// The precedence of an account's first policy, where none is written.
pub const FIRST_PRECEDENCE: u32 = 1_000;

/// An egress policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name, unique in its account.
    pub name: String,
    /// The owner, by id or name.
    pub account: String,
    /// The lowest is asked first; unique in its account.
    pub precedence: u32,
    /// Whether it is asked at all. True by default.
    pub enabled: bool,
    /// What it matches, in canonical form; empty for all traffic.
    pub traffic: String,
    /// By which addresses its traffic leaves; none for the default egress.
    pub egress: Option<Egress>,
    /// What it has if it was made through the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
}

/// What a policy has that was made through the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// Its id, a UUID.
    pub id: String,
    /// What its makers say about it.
    pub description: String,
    /// 1, and one more with every change.
    pub version: u64,
    /// When it was made, µs since 1970.
    pub created_at: i64,
    /// When it was changed last, µs since 1970.
    pub updated_at: i64,
}

/// The addresses of a policy (POLICY-3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Egress {
    /// The primary.
    pub ipv4: Ipv4Addr,
    /// What takes the place of a primary that is not available; `0.0.0.0` for the default egress.
    pub ipv4_fallback: Ipv4Addr,
    /// The range of IPv6.
    pub ipv6: Ipv6Net,
}

impl Policy {
    /// What it matches; `None` for all traffic.
    ///
    /// # Errors
    /// It is no expression: it came from a store that another version wrote.
    pub fn expression(&self) -> Result<Option<Expression>, policy::Mistake> {
        if self.traffic.is_empty() {
            return Ok(None);
        }
        policy::parse(&self.traffic).map(Some)
    }

    /// `highest` is the highest precedence of an account's policies further up.
    pub(super) fn read(
        mut table: Table<'_, '_>,
        places: &mut ObjectPlaces<'_>,
        highest: impl Fn(&str) -> Option<u32>,
    ) -> Self {
        places.whole(table.span());
        let name = name::name(&mut table, "name = \"bank\"", places);
        if name.is_none() {
            // Reports the missing key, unless it was written and refused.
            table.require("name", "name = \"bank\"");
        }
        let account = name::reference(&mut table, "account", "account = \"acme\"", places);
        let precedence = table.get("precedence", "precedence = 1000");
        if let Some(value) = precedence {
            places.field("precedence", value.span());
        }
        let precedence = precedence
            .and_then(|value| value.integer(0..=MAX_PRECEDENCE, ""))
            .unwrap_or_else(|| highest(&account).map_or(FIRST_PRECEDENCE, |last| last + 1));
        let enabled = table
            .get("enabled", "enabled = true")
            .and_then(|value| value.boolean())
            .unwrap_or(true);
        let traffic = table
            .get("traffic", "traffic = \"net.dst.ip in {203.0.113.0/24}\"")
            .and_then(|value| {
                places.field("traffic", value.span());
                canonical(value)
            })
            .unwrap_or_default();
        let egress = table.get("egress", "egress = { ipv4 = \"192.0.2.10\", ... }");
        if let Some(value) = egress {
            places.field("egress", value.span());
        }
        let egress = egress
            .and_then(|value| value.table("egress"))
            .and_then(|section| Egress::read(section, places));
        table.finish();
        Self {
            name: name.unwrap_or_default(),
            account,
            precedence,
            enabled,
            traffic,
            egress,
            made: None,
        }
    }
}

impl Egress {
    fn read(mut table: Table<'_, '_>, places: &mut ObjectPlaces<'_>) -> Option<Self> {
        let mut address = |key, example| {
            let value = table.require(key, example)?;
            places.field(key, value.span());
            value.parsed::<Ipv4Addr>("an IPv4 address")
        };
        let ipv4 = address("ipv4", "ipv4 = \"192.0.2.10\"");
        // The secondary is mandatory (POLICY-3).
        let ipv4_fallback = address("ipv4_fallback", "ipv4_fallback = \"0.0.0.0\"");
        let ipv6 = table
            .require("ipv6", "ipv6 = \"2001:db8:aa::/64\"")
            .and_then(|value| {
                places.field("ipv6", value.span());
                range(value)
            });
        table.finish();
        Some(Self {
            ipv4: ipv4?,
            ipv4_fallback: ipv4_fallback?,
            ipv6: ipv6?,
        })
    }
}

fn range(value: Value<'_, '_>) -> Option<Ipv6Net> {
    match value.string()?.parse::<Address>() {
        Ok(Address::V6(range)) => Some(range),
        Ok(Address::V4(address)) => {
            value.refuse(
                format!("{address} is not an IPv6 prefix"),
                "write, for instance, ipv6 = \"2001:db8:aa::/64\"",
            );
            None
        }
        Err(error) => {
            value.refuse(error.to_string(), error.remedy());
            None
        }
    }
}

/// The canonical form of an expression; every mistake stands at its own column.
fn canonical(value: Value<'_, '_>) -> Option<String> {
    let text = value.string()?;
    if text.trim().is_empty() {
        return Some(String::new());
    }
    match policy::parse(text) {
        Ok(expression) => Some(expression.to_string()),
        Err(mistake) => {
            let report = value.report();
            let span = inside(report.source().text(), &value.span(), text, &mistake.span);
            report.error(&span, mistake.reason, mistake.remedy);
            None
        }
    }
}

/// Where a part of a string stands in the file; the whole string if it is written with escapes.
fn inside(file: &str, whole: &Span, text: &str, part: &Span) -> Span {
    let written = file.get(whole.clone()).unwrap_or_default();
    let opened = ["\"\"\"", "'''", "\"", "'"]
        .into_iter()
        .find(|quote| written.starts_with(quote))
        .map_or(0, str::len);
    // A line end after three quotes is no part of the string.
    let first = written.get(opened..).unwrap_or_default();
    let skipped = match opened {
        3 if first.starts_with("\r\n") => 2,
        3 if first.starts_with('\n') => 1,
        _ => 0,
    };
    let start = opened + skipped;
    if !written
        .get(start..)
        .is_some_and(|rest| rest.starts_with(text))
    {
        return whole.clone();
    }
    let at = whole.start + start;
    at + part.start..at + part.end.max(part.start)
}
