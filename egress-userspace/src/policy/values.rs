//! The values that a selector is compared with.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::expression::{Operator, Values, protocol_name};
use super::field::Field;
use super::parse::Mistake;
use super::tokens::{Kind, Token};
use crate::dataplane::api::Protocol;

/// Reads those of a field.
pub(super) fn values(
    field: Field,
    operator: Operator,
    tokens: &[Token],
    example: &str,
) -> Result<Values, Mistake> {
    Ok(match field {
        Field::SourceAddress | Field::DestinationAddress => Values::Addresses(
            tokens
                .iter()
                .map(|token| address(token, field, operator, example))
                .collect::<Result<_, _>>()?,
        ),
        Field::SourcePort | Field::DestinationPort => Values::Ports(
            tokens
                .iter()
                .map(|token| ports(token, field, operator, example))
                .collect::<Result<_, _>>()?,
        ),
        Field::Protocol => Values::Protocols(
            tokens
                .iter()
                .map(|token| protocol(token, example))
                .collect::<Result<_, _>>()?,
        ),
        Field::Zone => Values::Zones(
            tokens
                .iter()
                .map(|token| zone(token, example))
                .collect::<Result<_, _>>()?,
        ),
    })
}

fn zone(token: &Token, example: &str) -> Result<String, Mistake> {
    match &token.kind {
        Kind::Text(text) if !text.is_empty() => Ok(text.clone()),
        other => Err(Mistake::new(
            token.span.clone(),
            format!("{other} is no zone: a zone's id or name stands in quotes"),
            format!("write, {example}"),
        )),
    }
}

fn address(
    token: &Token,
    field: Field,
    operator: Operator,
    example: &str,
) -> Result<IpNet, Mistake> {
    let Kind::Word(word) = &token.kind else {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{} is no address: addresses are not quoted", token.kind),
            format!("write, {example}"),
        ));
    };
    if let Ok(address) = word.parse::<IpAddr>() {
        return Ok(address.into());
    }
    if word.starts_with('$') {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{word} is a list, and there are no lists here"),
            "write the addresses of the list between braces",
        ));
    }
    let Ok(net) = word.parse::<IpNet>() else {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{word} is neither an IP address nor a prefix"),
            format!("write, {example}"),
        ));
    };
    if net != net.trunc() {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{net} has bits set outside its prefix"),
            format!("write {}", net.trunc()),
        ));
    }
    if operator != Operator::In && net.prefix_len() != net.max_prefix_len() {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{net} is a prefix: an address is in it or not, and never equals it"),
            format!("write {field} in {{{net}}}"),
        ));
    }
    Ok(net)
}

fn ports(
    token: &Token,
    field: Field,
    operator: Operator,
    example: &str,
) -> Result<RangeInclusive<u16>, Mistake> {
    let refused =
        |reason: String| Mistake::new(token.span.clone(), reason, format!("write, {example}"));
    let Kind::Word(word) = &token.kind else {
        return Err(refused(format!("{} is no port", token.kind)));
    };
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| refused(format!("{text:?} is no port: ports go from 0 to 65535")))
    };
    let Some((first, last)) = word.split_once("..") else {
        let port = port(word)?;
        return Ok(port..=port);
    };
    let range = port(first)?..=port(last)?;
    if range.is_empty() {
        return Err(refused(format!("{word} ends before it begins")));
    }
    if operator != Operator::In {
        return Err(Mistake::new(
            token.span.clone(),
            format!("{word} is a range: a port is in it or not"),
            format!("write {field} in {{{word}}}"),
        ));
    }
    Ok(range)
}

fn protocol(token: &Token, example: &str) -> Result<Protocol, Mistake> {
    let (reason, remedy) = match &token.kind {
        Kind::Text(text) => {
            let lower = text.to_ascii_lowercase();
            let found = [Protocol::Tcp, Protocol::Udp]
                .into_iter()
                .find(|protocol| protocol_name(*protocol) == lower);
            if let Some(protocol) = found {
                return Ok(protocol);
            }
            let exempt = matches!(lower.as_str(), "icmp" | "icmpv6");
            if exempt {
                (
                    format!(
                        "protocol {text:?} is no policy's: ICMP queries are exempt or dropped, as [exempt] icmp_queries says (POLICY-7)"
                    ),
                    "policies are about \"tcp\" and \"udp\"".to_owned(),
                )
            } else {
                (
                    format!("protocol {text:?} is never translated"),
                    "policies are about \"tcp\" and \"udp\"".to_owned(),
                )
            }
        }
        other => (
            format!("{other} is no protocol: protocols stand in quotes"),
            format!("write, {example}"),
        ),
    };
    Err(Mistake::new(token.span.clone(), reason, remedy))
}
