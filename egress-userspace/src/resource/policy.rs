//! Gateway egress policies (POLICY-1 to POLICY-4): read and checked, their expressions too, but refused by this version.

use std::net::{IpAddr, Ipv4Addr};

use super::address::Address;
use super::name;
use crate::diagnostic::Span;
use crate::document::{Table, Value};
use crate::policy;

/// Precedences go up to here, so that a generated one still fits.
const MAX_PRECEDENCE: u32 = 1_000_000_000;

/// Checks the fields of every policy and refuses each by name: none is ever ignored (POLICY-2).
pub(super) fn refuse_all(tables: Vec<Table<'_, '_>>) {
    let mut catch_all = tables.is_empty();
    let mut last = None;
    for mut table in tables {
        let name = table
            .require("name", "name = \"bank\"")
            .and_then(|value| name::checked(value, "name = \"bank\""));
        table
            .require("account", "account = \"acme\"")
            .and_then(|value| value.name());
        table
            .get("precedence", "precedence = 1000")
            .and_then(|value| value.integer(0..=MAX_PRECEDENCE, ""));
        table
            .get("enabled", "enabled = true")
            .and_then(|value| value.boolean());
        let traffic = table
            .get("traffic", "traffic = \"net.dst.ip in {203.0.113.0/24}\"")
            .map(|value| canonical(value).unwrap_or_else(|| "refused".to_owned()));
        catch_all |= traffic.is_none_or(|expression| expression.is_empty());
        if let Some(egress) = table.section("egress") {
            check_egress(egress);
        }
        table.report().error(
            table.span(),
            format!(
                "policy {} cannot be enforced: egress policies are not available in this version",
                name.as_deref().unwrap_or("without a name")
            ),
            "remove the [[policy]]; a zone's traffic leaves by the pool of its setting",
        );
        last = Some((table.report(), table.span().clone()));
        table.finish();
    }
    if let (false, Some((report, span))) = (catch_all, last) {
        report.warning(
            &span,
            "no policy matches all traffic: what matches none takes the default egress (POLICY-5)",
            "add a last policy without `traffic`",
        );
    }
}

fn check_egress(mut table: Table<'_, '_>) {
    let v4 = |value: Value<'_, '_>| {
        value.parsed::<Ipv4Addr>("an IPv4 address");
    };
    if let Some(value) = table.require("ipv4", "ipv4 = \"192.0.2.10\"") {
        v4(value);
    }
    // The secondary is mandatory (POLICY-3).
    if let Some(value) = table.require("ipv4_fallback", "ipv4_fallback = \"0.0.0.0\"") {
        v4(value);
    }
    if let Some(value) = table.require("ipv6", "ipv6 = \"2001:db8:aa::/64\"")
        && let Some(text) = value.string()
    {
        match text.parse::<Address>() {
            Ok(Address::V6(_)) => {}
            Ok(Address::V4(address)) => value.refuse(
                format!("{} is not an IPv6 prefix", IpAddr::V4(address)),
                "write, for instance, ipv6 = \"2001:db8:aa::/64\"",
            ),
            Err(error) => value.refuse(error.to_string(), error.remedy()),
        }
    }
    table.finish();
}

/// The expression, if it is one; a mistake stands at its own column.
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
