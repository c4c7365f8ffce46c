//! `[exempt]`: traffic that takes the default egress whatever its zone says (POLICY-7).

use std::net::IpAddr;

use ipnet::IpNet;

use crate::document::{Table, Value};

/// Where resolvers are asked: queries to a listed resolver's port 53, TCP and UDP, are exempt (RFC 1035).
pub const DNS_PORT: u16 = 53;

/// What becomes of ICMP queries (ping) of an enabled zone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IcmpQueries {
    /// They take the default egress.
    #[default]
    Default,
    /// They are dropped.
    Drop,
}

/// Traffic on the default egress; both lists are empty by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    /// Destination prefixes, any protocol and port.
    pub destinations: Vec<IpNet>,
    /// DNS resolvers: port [`DNS_PORT`] of these addresses.
    pub resolvers: Vec<IpAddr>,
    /// ICMP queries.
    pub icmp_queries: IcmpQueries,
}

impl Exempt {
    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        let exempt = Self {
            destinations: table
                .list("destinations", "destinations = [\"10.0.0.0/8\"]")
                .into_iter()
                .filter_map(destination)
                .collect(),
            resolvers: table
                .list("resolvers", "resolvers = [\"192.0.2.53\"]")
                .into_iter()
                .filter_map(|value| value.parsed::<IpAddr>("an IP address"))
                .collect(),
            icmp_queries: table
                .get("icmp_queries", "icmp_queries = \"default\"")
                .and_then(|value| {
                    value.choice(&[
                        ("default", IcmpQueries::Default),
                        ("drop", IcmpQueries::Drop),
                    ])
                })
                .unwrap_or_default(),
        };
        table.finish();
        exempt
    }
}

/// A prefix, or an address that stands for itself; host bits are refused.
fn destination(value: Value<'_, '_>) -> Option<IpNet> {
    if let Ok(address) = value.string()?.parse::<IpAddr>() {
        return Some(address.into());
    }
    let net: IpNet = value.parsed("an IP prefix")?;
    if net != net.trunc() {
        value.refuse(
            format!("{net} has bits set outside its prefix"),
            format!("write \"{}\"", net.trunc()),
        );
        return None;
    }
    Some(net)
}
