//! What an egress policy matches: an expression over a packet's fields, its canonical form, and its meaning.

use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::field::Field;
use crate::dataplane::api::Protocol;

/// An expression of the Gateway form. Printing it gives the canonical form, which parses to the same expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// A comparison.
    Test(Test),
    /// Not this.
    Not(Box<Self>),
    /// All of these, two at least and none of them an `And`.
    And(Vec<Self>),
    /// Any of these, two at least and none of them an `Or`.
    Or(Vec<Self>),
}

/// A field compared with values of its own kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// What is compared.
    pub field: Field,
    /// How.
    pub operator: Operator,
    /// With what; one value but for [`Operator::In`], which has one at least.
    pub values: Values,
}

/// How a field is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `in`
    In,
    /// `<`, of ports.
    Less,
    /// `<=`, of ports.
    AtMost,
    /// `>`, of ports.
    Greater,
    /// `>=`, of ports.
    AtLeast,
}

impl Operator {
    /// How it is written.
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Equal => "==",
            Self::NotEqual => "!=",
            Self::In => "in",
            Self::Less => "<",
            Self::AtMost => "<=",
            Self::Greater => ">",
            Self::AtLeast => ">=",
        }
    }
}

/// Values of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// Prefixes; a single address is one of full length.
    Addresses(Vec<IpNet>),
    /// Ports, and ranges of them.
    Ports(Vec<RangeInclusive<u16>>),
    /// Protocols.
    Protocols(Vec<Protocol>),
    /// Zones, by id or name.
    Zones(Vec<String>),
}

/// A packet as policies see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts<'a> {
    /// Inside address.
    pub source: IpAddr,
    /// Inside port.
    pub source_port: u16,
    /// Origin address.
    pub destination: IpAddr,
    /// Origin port.
    pub destination_port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Id and name of its zone.
    pub zone: (&'a str, &'a str),
}

impl Expression {
    /// Whether the packet matches.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Test(test) => test.matches(facts),
            Self::Not(inner) => !inner.matches(facts),
            Self::And(all) => all.iter().all(|one| one.matches(facts)),
            Self::Or(any) => any.iter().any(|one| one.matches(facts)),
        }
    }

    /// The zones that it names, by id or name.
    pub fn zones(&self) -> Vec<&str> {
        match self {
            Self::Test(Test {
                values: Values::Zones(zones),
                ..
            }) => zones.iter().map(String::as_str).collect(),
            Self::Test(_) => Vec::new(),
            Self::Not(inner) => inner.zones(),
            Self::And(parts) | Self::Or(parts) => parts.iter().flat_map(Self::zones).collect(),
        }
    }

    /// The source ports that it compares with.
    pub fn source_ports(&self) -> Vec<RangeInclusive<u16>> {
        match self {
            Self::Test(Test {
                field: Field::SourcePort,
                values: Values::Ports(ranges),
                ..
            }) => ranges.clone(),
            Self::Test(_) => Vec::new(),
            Self::Not(inner) => inner.source_ports(),
            Self::And(parts) | Self::Or(parts) => {
                parts.iter().flat_map(Self::source_ports).collect()
            }
        }
    }
}

impl Test {
    /// Whether the packet matches.
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        match &self.values {
            Values::Addresses(nets) => {
                let address = match self.field {
                    Field::SourceAddress => facts.source,
                    _ => facts.destination,
                };
                (self.operator != Operator::NotEqual)
                    == nets.iter().any(|net| net.contains(&address))
            }
            Values::Ports(ranges) => {
                let port = match self.field {
                    Field::SourcePort => facts.source_port,
                    _ => facts.destination_port,
                };
                let first = ranges.first().map_or(0, |range| *range.start());
                match self.operator {
                    Operator::Equal | Operator::In => {
                        ranges.iter().any(|range| range.contains(&port))
                    }
                    Operator::NotEqual => !ranges.iter().any(|range| range.contains(&port)),
                    Operator::Less => port < first,
                    Operator::AtMost => port <= first,
                    Operator::Greater => port > first,
                    Operator::AtLeast => port >= first,
                }
            }
            Values::Protocols(protocols) => {
                (self.operator != Operator::NotEqual) == protocols.contains(&facts.protocol)
            }
            Values::Zones(zones) => {
                let (id, name) = facts.zone;
                (self.operator != Operator::NotEqual)
                    == zones.iter().any(|zone| zone == id || zone == name)
            }
        }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let joined = |f: &mut fmt::Formatter<'_>, parts: &[Self], word: &str| {
            for (at, part) in parts.iter().enumerate() {
                if at > 0 {
                    write!(f, " {word} ")?;
                }
                // `and` binds more tightly than `or`.
                match part {
                    Self::Or(_) | Self::And(_) if word == "and" => write!(f, "({part})")?,
                    _ => write!(f, "{part}")?,
                }
            }
            Ok(())
        };
        match self {
            Self::Test(test) => write!(f, "{test}"),
            Self::Not(inner) => match **inner {
                Self::And(_) | Self::Or(_) => write!(f, "not ({inner})"),
                _ => write!(f, "not {inner}"),
            },
            Self::And(parts) => joined(f, parts, "and"),
            Self::Or(parts) => joined(f, parts, "or"),
        }
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.to_string();
        write!(f, "{} {} ", self.field, self.operator.symbol())?;
        match self.operator {
            Operator::In => write!(f, "{{{values}}}"),
            _ => f.write_str(&values),
        }
    }
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<String> = match self {
            Self::Addresses(nets) => nets.iter().map(address).collect(),
            Self::Ports(ranges) => ranges
                .iter()
                .map(|range| match range.start() == range.end() {
                    true => range.start().to_string(),
                    false => format!("{}..{}", range.start(), range.end()),
                })
                .collect(),
            Self::Protocols(protocols) => protocols
                .iter()
                .map(|protocol| quoted(protocol_name(*protocol)))
                .collect(),
            Self::Zones(zones) => zones.iter().map(|zone| quoted(zone)).collect(),
        };
        f.write_str(&values.join(" "))
    }
}

/// A single address without its length.
fn address(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// The word for a protocol.
pub(super) const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        if matches!(character, '"' | '\\') {
            quoted.push('\\');
        }
        let _ = quoted.write_char(character);
    }
    quoted.push('"');
    quoted
}
