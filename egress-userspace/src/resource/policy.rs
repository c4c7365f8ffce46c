//! Gateway egress policies (POLICY-1 to POLICY-4): read and checked, but refused by this version.

use std::net::{IpAddr, Ipv4Addr};

use super::address::Address;
use super::name;
use crate::document::{Table, Value};

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
            .map(|value| value.string().unwrap_or("refused"));
        catch_all |= traffic.is_none_or(|expression| expression.trim().is_empty());
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
