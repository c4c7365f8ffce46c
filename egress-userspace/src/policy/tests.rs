//! Expressions and tables against the slow and obvious: parse what was printed, evaluate the tree.

use std::net::{IpAddr, Ipv4Addr};

use egress_common::policy::Exit;
use ipnet::IpNet;
use proptest::prelude::*;

use super::compile::compile;
use super::expression::{Operator, Test, Values};
use super::field::Field;
use super::*;
use crate::dataplane::api::Protocol;
use crate::desired::{Desired, DesiredExit, DesiredPolicy, DesiredZone, Selectors};

const ZONES: [(&str, &str); 3] = [("z1", "shop"), ("z2", "mail"), ("z3", "other's")];

fn address() -> impl Strategy<Value = IpAddr> {
    // Few, so that they meet.
    prop_oneof![
        (0..4u8, 0..4u8).prop_map(|(a, b)| IpAddr::from([10, a, 0, b])),
        (0..4u16, 0..4u16).prop_map(|(a, b)| IpAddr::from([0x2001, 0xdb8, a, 0, 0, 0, 0, b])),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), 0..=128u8).prop_map(|(address, length)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        // Half of them single addresses.
        let length = if length > 64 { most } else { length.min(most) };
        IpNet::new(address, length).unwrap().trunc()
    })
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        Just(0),
        Just(1),
        440..446u16,
        Just(u16::MAX - 1),
        Just(u16::MAX),
        any::<u16>()
    ]
}

fn comparison() -> impl Strategy<Value = Expression> {
    let addresses = (
        any::<bool>(),
        0..3usize,
        proptest::collection::vec(net(), 1..4),
    )
        .prop_map(|(source, operator, mut nets)| {
            let operator = [Operator::In, Operator::Equal, Operator::NotEqual][operator];
            if operator != Operator::In {
                nets.truncate(1);
                nets[0] = IpNet::from(nets[0].addr());
            }
            Test {
                field: if source {
                    Field::SourceAddress
                } else {
                    Field::DestinationAddress
                },
                operator,
                values: Values::Addresses(nets),
            }
        });
    let ports = (
        any::<bool>(),
        0..7usize,
        proptest::collection::vec((port(), port()), 1..4),
    )
        .prop_map(|(source, operator, ends)| {
            let operator = [
                Operator::In,
                Operator::Equal,
                Operator::NotEqual,
                Operator::Less,
                Operator::AtMost,
                Operator::Greater,
                Operator::AtLeast,
            ][operator];
            let ranges = if operator == Operator::In {
                ends.iter().map(|(a, b)| *a.min(b)..=*a.max(b)).collect()
            } else {
                vec![ends[0].0..=ends[0].0]
            };
            Test {
                field: if source {
                    Field::SourcePort
                } else {
                    Field::DestinationPort
                },
                operator,
                values: Values::Ports(ranges),
            }
        });
    let protocols = (0..3usize, any::<bool>(), any::<bool>()).prop_map(|(operator, udp, both)| {
        let operator = [Operator::In, Operator::Equal, Operator::NotEqual][operator];
        let one = if udp { Protocol::Udp } else { Protocol::Tcp };
        let protocols = if both && operator == Operator::In {
            vec![one, Protocol::Tcp]
        } else {
            vec![one]
        };
        Test {
            field: Field::Protocol,
            operator,
            values: Values::Protocols(protocols),
        }
    });
    let zones = (0..3usize, 0..6usize).prop_map(|(operator, zone)| {
        let (id, name) = ZONES[zone / 2];
        Test {
            field: Field::Zone,
            operator: [Operator::In, Operator::Equal, Operator::NotEqual][operator],
            values: Values::Zones(vec![if zone % 2 == 0 { id } else { name }.to_owned()]),
        }
    });
    prop_oneof![addresses, ports, protocols, zones].prop_map(Expression::Test)
}

/// Any expression as the parser makes them: no `and` directly in an `and`.
fn expression() -> impl Strategy<Value = Expression> {
    comparison().prop_recursive(4, 16, 3, |inner| {
        let flat = |parts: Vec<Expression>, and: bool| {
            let parts: Vec<Expression> = parts
                .into_iter()
                .flat_map(|part| match part {
                    Expression::And(more) if and => more,
                    Expression::Or(more) if !and => more,
                    other => vec![other],
                })
                .collect();
            if and {
                Expression::And(parts)
            } else {
                Expression::Or(parts)
            }
        };
        prop_oneof![
            inner.clone().prop_map(|one| Expression::Not(Box::new(one))),
            (proptest::collection::vec(inner, 2..4), any::<bool>())
                .prop_map(move |(parts, and)| flat(parts, and)),
        ]
    })
}

fn facts() -> impl Strategy<Value = (usize, Facts<'static>)> {
    let packet = (
        address(),
        address(),
        port(),
        port(),
        any::<bool>(),
        0..ZONES.len(),
    );
    packet.prop_map(
        |(source, destination, source_port, destination_port, tcp, zone)| {
            let facts = Facts {
                source,
                source_port,
                destination,
                destination_port,
                protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                zone: ZONES[zone],
            };
            (zone, facts)
        },
    )
}

fn zones() -> Vec<DesiredZone> {
    let zone = |(number, (id, name)): (u16, &(&str, &str))| DesiredZone {
        number,
        id: (*id).to_owned(),
        name: (*name).to_owned(),
        enabled: true,
        pool: Some(1),
        selectors: Selectors::default(),
        realm: false,
        egress_tcp: true,
        egress_udp: true,
    };
    (1..).zip(&ZONES).map(zone).collect()
}

fn policies(expressions: Vec<(Option<Expression>, bool)>) -> Vec<DesiredPolicy> {
    let policy = |(number, (traffic, both)): (usize, (Option<Expression>, bool))| DesiredPolicy {
        name: format!("p{number}"),
        // The last zone is another account's.
        zones: if both { vec![1, 2] } else { vec![3] },
        traffic,
        ipv4: DesiredExit::Default,
        ipv6: DesiredExit::Default,
    };
    expressions.into_iter().enumerate().map(policy).collect()
}

/// A packet of zone shop.
const PACKET: Facts<'_> = Facts {
    source: IpAddr::V4(Ipv4Addr::new(10, 1, 0, 2)),
    source_port: 40_000,
    destination: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 9)),
    destination_port: 443,
    protocol: Protocol::Tcp,
    zone: ("z1", "shop"),
};

#[test]
fn policy_2_expressions_mean_what_they_say() {
    let six = Facts {
        destination: "2001:db8::9".parse().unwrap(),
        protocol: Protocol::Udp,
        zone: ("z2", "mail"),
        ..PACKET
    };
    // Of the first packet, and of the second.
    for (text, expected) in [
        ("net.dst.ip in {203.0.113.0/24 198.51.100.1}", (true, false)),
        ("net.dst.ip in {2001:db8::/32}", (false, true)),
        ("net.dst.ip != 203.0.113.9", (false, true)),
        ("net.dst.ip in {0.0.0.0/0}", (true, false)),
        ("net.src.ip == 10.1.0.2", (true, true)),
        ("net.dst.port in {80 440..443}", (true, true)),
        ("net.dst.port > 443", (false, false)),
        ("net.dst.port >= 443 and net.dst.port <= 443", (true, true)),
        ("net.src.port < 40000 or net.dst.port < 444", (true, true)),
        ("net.protocol == \"tcp\"", (true, false)),
        ("net.protocol in {\"tcp\" \"udp\"}", (true, true)),
        ("zone == \"shop\"", (true, false)),
        ("zone in {\"z2\"}", (false, true)),
        ("zone != \"z1\"", (false, true)),
        // `and` before `or`, `not` before both.
        (
            "net.dst.port == 443 or net.dst.port == 1 and zone == \"nobody\"",
            (true, true),
        ),
        ("not net.dst.port == 1 and zone == \"shop\"", (true, false)),
        ("not (net.dst.port == 1 or zone == \"shop\")", (false, true)),
        ("not not zone == \"shop\"", (true, false)),
    ] {
        let expression = parse(text).unwrap();
        let found = (expression.matches(&PACKET), expression.matches(&six));
        assert_eq!(found, expected, "{text}");
    }
}

proptest! {
    #[test]
    fn the_canonical_form_parses_to_itself(expression in expression()) {
        let text = expression.to_string();
        let parsed = parse(&text);
        prop_assert_eq!(parsed.as_ref(), Ok(&expression), "{}", text);
        prop_assert_eq!(parsed.unwrap().to_string(), text);
    }

    #[test]
    fn whatever_is_written_is_parsed_or_refused_at_a_place_within(text in "[ -~]{0,60}") {
        if let Err(mistake) = parse(&text) {
            prop_assert!(mistake.span.start <= text.len() && mistake.span.end <= text.len());
            prop_assert!(text.get(mistake.span).is_some());
        }
    }

    #[test]
    fn policy_1_the_tables_find_the_first_policy_that_matches(
        expressions in proptest::collection::vec(
            (proptest::option::weighted(0.9, expression()), proptest::bool::weighted(0.8)),
            1..12,
        ),
        packets in proptest::collection::vec(facts(), 1..40),
    ) {
        let desired = Desired {
            zones: zones(),
            policies: policies(expressions),
            ..Desired::default()
        };
        let Ok(tables) = compile(&desired, |_| (Exit::default(), Exit::default())) else {
            // Too many alternatives, once multiplied out.
            return Ok(());
        };
        for (zone, facts) in packets {
            let number = zone as u16 + 1;
            let expected = desired.policies.iter().position(|policy| {
                policy.zones.contains(&number)
                    && policy.traffic.as_ref().is_none_or(|traffic| traffic.matches(&facts))
            });
            let found = tables.first(number, &facts).map(|rule| rule.policy as usize);
            prop_assert_eq!(found, expected, "{:?}", facts);
        }
    }
}

/// The mistake's text, its column, and what is meant.
fn mistake(text: &str) -> (String, usize, String) {
    let mistake = parse(text).unwrap_err();
    let (line, column) = mistake.position(text);
    assert_eq!(line, 1 + text[..mistake.span.start].matches('\n').count());
    (mistake.reason, column, text[mistake.span].to_owned())
}

#[test]
fn policy_2_selectors_that_packets_cannot_answer_are_refused_by_name() {
    for name in [
        "net.fqdn.host",
        "net.dst.geo.country",
        "net.src.geo.country",
        "app.ids[*]",
        "identity.email",
        "device_posture.checks.passed[*]",
        "dns.fqdn",
        "http.request.host",
        "net.sni.host",
    ] {
        let text = format!("net.dst.port == 443 and {name} == \"x\"");
        let (reason, column, meant) = mistake(&text);
        assert_eq!((column, meant.as_str()), (25, name));
        assert!(
            reason.contains(name) && reason.contains("POLICY-2"),
            "{reason}"
        );
    }
}

#[test]
fn mistakes_stand_where_they_are_made() {
    let cases = [
        ("net.dst.prt == 443", 1, "net.dst.prt"),
        ("net.dst.port == 70000", 17, "70000"),
        ("net.dst.port == \"443\"", 17, "\"443\""),
        ("net.dst.port in 443", 17, "443"),
        ("net.dst.port in {}", 18, "}"),
        ("net.dst.port in {80,443}", 20, ","),
        ("net.dst.port in {9..1}", 18, "9..1"),
        ("net.dst.port == 1..9", 17, "1..9"),
        ("net.dst.ip == 203.0.113.0/24", 15, "203.0.113.0/24"),
        ("net.dst.ip in {203.0.113.1/24}", 16, "203.0.113.1/24"),
        ("net.dst.ip in {$offices}", 16, "$offices"),
        ("net.dst.ip > 10.0.0.1", 12, ">"),
        ("net.protocol == \"icmp\"", 17, "\"icmp\""),
        ("net.protocol == tcp", 17, "tcp"),
        ("zone == shop", 9, "shop"),
        ("net.dst.port = 443", 14, "="),
        ("net.dst.port == 443 net.src.port == 1", 21, "net.src.port"),
        ("(net.dst.port == 443", 21, ""),
        ("net.dst.port == 443 and", 24, ""),
        ("\n  net.dst.port ==\n 443)", 5, ")"),
        ("any(net.dst.ip[*] in {10.0.0.1})", 1, "any"),
        (
            "any(identity.groups.name[*] in {\"a\"})",
            5,
            "identity.groups.name[*]",
        ),
        ("zone == \"shop", 9, "\"shop"),
    ];
    for (text, column, meant) in cases {
        let (reason, at, what) = mistake(text);
        assert_eq!((at, what.as_str()), (column, meant), "{text}: {reason}");
    }
}

#[test]
fn spellings_of_wirefilter_mean_the_same() {
    for (text, canonical) in [
        (
            "(net.dst.ip in {203.0.113.0/24 2001:DB8:0::/48} && !(net.dst.port eq 0443 || net.protocol ne \"UDP\"))",
            "net.dst.ip in {203.0.113.0/24 2001:db8::/48} and not (net.dst.port == 443 or net.protocol != \"udp\")",
        ),
        ("net.dst.ip == 203.0.113.7/32", "net.dst.ip == 203.0.113.7"),
        (
            "net.src.port ge 1024 or net.src.port lt 7",
            "net.src.port >= 1024 or net.src.port < 7",
        ),
        ("zone in {\"a \\\"b\\\\\"}", "zone in {\"a \\\"b\\\\\"}"),
    ] {
        assert_eq!(parse(text).unwrap().to_string(), canonical);
    }
}

#[test]
fn nesting_and_length_have_bounds() {
    let deep = format!(
        "{}net.dst.port == 1{}",
        "(".repeat(1_000),
        ")".repeat(1_000)
    );
    assert!(mistake(&deep).0.contains("nested"));
    assert!(mistake(&"not ".repeat(10_000)).0.contains("nested"));
    assert!(
        mistake(&" ".repeat(parse::MAX_LENGTH + 1))
            .0
            .contains("bytes")
    );
    let wide = ["net.dst.port == 1"; 40].join(" or ");
    let square = format!("({wide}) and ({wide})");
    assert!(rules::count(Some(&parse(&square).unwrap())).is_err());
    assert_eq!(rules::count(Some(&parse(&wide).unwrap())), Ok(40));
}

#[test]
fn policy_1_five_hundred_policies_fit() {
    let policy = |n: usize| {
        let text = format!(
            "net.dst.ip in {{203.{}.{}.0/24 2001:db8:{n:x}::/48}} and net.dst.port in {{{n}..{}}}",
            n / 200,
            n % 200,
            n + 100
        );
        (Some(parse(&text).unwrap()), true)
    };
    let desired = Desired {
        zones: zones(),
        policies: policies((0..500).map(policy).collect()),
        ..Desired::default()
    };
    let tables = compile(&desired, |_| (Exit::default(), Exit::default())).unwrap();
    assert_eq!(tables.rules.len(), 500);
    println!("{} sets", tables.sets.len());
    for n in [0, 1, 250, 499] {
        let facts = Facts {
            source: [10, 0, 0, 1].into(),
            source_port: 1,
            destination: [203, (n / 200) as u8, (n % 200) as u8, 9].into(),
            destination_port: n as u16 + 7,
            protocol: Protocol::Tcp,
            zone: ZONES[0],
        };
        assert_eq!(
            tables.first(1, &facts).map(|rule| rule.policy),
            Some(n as u32)
        );
        assert_eq!(tables.first(3, &facts), None, "another account's zone");
    }
}
