use std::collections::HashMap;

use super::*;
use crate::desired::{ALL_SLICES, DesiredMark, DesiredPool, Selectors};

mod policies;

#[derive(Default)]
struct Fake {
    active: HashMap<IpAddr, u64>,
    flow: Option<FlowRecord>,
    order: Option<Vec<IpAddr>>,
    way: Way,
}

impl LiveView for Fake {
    fn flow(&self, key: &FlowKey) -> Option<FlowRecord> {
        self.flow
            .clone()
            .filter(|flow| flow.inside == key.inside && flow.origin == key.origin)
    }

    fn active(&self, egress_ip: IpAddr, _: SocketAddr, _: Protocol) -> Option<u64> {
        Some(self.active.get(&egress_ip).copied().unwrap_or(0))
    }

    fn order(&self, _: u16, _: IpAddr, _: Option<u16>) -> Option<Vec<IpAddr>> {
        self.order.clone()
    }

    fn way(&self, _: &Query) -> Way {
        self.way.clone()
    }
}

fn v4(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, last)
}

fn ip(last: u8) -> IpAddr {
    v4(last).into()
}

fn zone(number: u16, name: &str, selectors: Selectors) -> DesiredZone {
    DesiredZone {
        number,
        id: name.into(),
        name: name.into(),
        enabled: true,
        pool: Some(1),
        selectors,
        realm: false,
        egress_tcp: true,
        egress_udp: true,
    }
}

fn sources(nets: &[&str]) -> Selectors {
    Selectors {
        sources: nets.iter().map(|net| net.parse().unwrap()).collect(),
        ..Selectors::default()
    }
}

fn candidate(last: u8) -> Candidate {
    Candidate {
        address: v4(last),
        slices: ALL_SLICES,
        cap: 100,
        draining: false,
    }
}

fn desired() -> Desired {
    let marks = vec![DesiredMark {
        value: 0x50,
        mask: 0xf0,
    }];
    let cgroups = vec!["a.slice".into(), "a.slice/b.service".into()];
    Desired {
        zones: vec![
            zone(1, "wide", sources(&["10.0.0.0/8"])),
            zone(2, "narrow", sources(&["10.1.0.0/16"])),
            zone(
                3,
                "marked",
                Selectors {
                    marks,
                    ..Selectors::default()
                },
            ),
            zone(
                4,
                "grouped",
                Selectors {
                    cgroups,
                    ..Selectors::default()
                },
            ),
            zone(
                5,
                "entering",
                Selectors {
                    interfaces: vec!["in0".into()],
                    ..Selectors::default()
                },
            ),
        ],
        pools: vec![DesiredPool {
            number: 1,
            id: "partners".into(),
            candidates: vec![candidate(10), candidate(11)],
            prefixes: Vec::new(),
        }],
        ..Desired::default()
    }
}

fn query() -> Query {
    Query {
        source: "10.1.0.2".parse().unwrap(),
        source_port: None,
        destination: "203.0.113.5".parse().unwrap(),
        destination_port: 443,
        protocol: Traffic::Tcp,
        mark: 0,
        interface: None,
        cgroup: None,
    }
}

fn zones_of(explanation: &Explanation) -> Vec<&str> {
    explanation
        .rule
        .iter()
        .chain(&explanation.also_matching)
        .map(|rule| rule.zone.as_str())
        .collect()
}

fn reason(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Refused { reason, .. } => reason,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn zone_3_mark_then_cgroup_then_interface_then_longest_source() {
    let all = Query {
        mark: 0xdead_0051,
        cgroup: Some("/a.slice/b.service/worker".into()),
        interface: Some("in0".into()),
        ..query()
    };
    let found = explain(&desired(), &all, &NothingLive);
    assert_eq!(
        zones_of(&found),
        ["marked", "grouped", "grouped", "entering", "narrow", "wide"]
    );
    assert_eq!(found.rule.unwrap().selector, "0x50/0xf0");
    assert_eq!(
        found.also_matching[0].selector, "a.slice/b.service",
        "the deepest cgroup first"
    );
}

#[test]
fn a_cgroup_selects_descendants_and_no_namesakes() {
    let of = |path: &str| {
        let query = Query {
            source: "192.168.0.1".parse().unwrap(),
            cgroup: Some(path.into()),
            ..query()
        };
        explain(&desired(), &query, &NothingLive).zone
    };
    assert_eq!(of("a.slice").as_deref(), Some("grouped"));
    assert_eq!(of("a.slice/x").as_deref(), Some("grouped"));
    assert_eq!(of("a.slice2"), None);
    assert_eq!(of("x/a.slice"), None);
}

#[test]
fn an_unbound_packet_takes_the_default_egress() {
    let found = explain(
        &desired(),
        &Query {
            source: "172.16.0.1".parse().unwrap(),
            ..query()
        },
        &NothingLive,
    );
    assert_eq!(found.rule, None);
    assert!(matches!(found.outcome, Outcome::DefaultEgress { .. }));
    assert!(
        found
            .to_string()
            .ends_with("outcome     default egress: no zone selects this packet")
    );
}

#[test]
fn a_new_flow_takes_the_first_free_candidate_in_the_data_planes_order() {
    let live = Fake {
        order: Some(vec![ip(11), ip(10)]),
        ..Fake::default()
    };
    let found = explain(&desired(), &query(), &live);
    assert_eq!(found.outcome, Outcome::Admitted { egress_ip: ip(11) });
    assert_eq!(
        found
            .candidates
            .iter()
            .map(|c| c.egress_ip)
            .collect::<Vec<_>>(),
        [ip(11), ip(10)]
    );
    assert_eq!(found.path.as_deref(), Some("local"));
    let full = Fake {
        active: [(ip(11), 100)].into(),
        ..live
    };
    assert_eq!(
        explain(&desired(), &query(), &full).outcome,
        Outcome::Admitted { egress_ip: ip(10) }
    );
}

#[test]
fn refusals_use_the_data_planes_reasons() {
    let full = Fake {
        active: [(ip(10), 100), (ip(11), 100)].into(),
        ..Fake::default()
    };
    assert_eq!(
        reason(&explain(&desired(), &query(), &full).outcome),
        "cap_reached"
    );

    let mut draining = desired();
    draining.pools[0]
        .candidates
        .iter_mut()
        .for_each(|candidate| candidate.draining = true);
    assert_eq!(
        reason(&explain(&draining, &query(), &NothingLive).outcome),
        "no_address"
    );

    let mut empty = desired();
    empty.pools[0].candidates.clear();
    assert_eq!(
        reason(&explain(&empty, &query(), &NothingLive).outcome),
        "no_address"
    );

    let mut unknown = desired();
    unknown.pools.clear();
    assert_eq!(
        reason(&explain(&unknown, &query(), &NothingLive).outcome),
        "blocked"
    );

    for nobodys in [
        "224.0.0.1",
        "255.255.255.255",
        "127.0.0.1",
        "0.0.0.0",
        "::1",
    ] {
        let query = Query {
            destination: nobodys.parse().unwrap(),
            ..query()
        };
        let outcome = explain(&desired(), &query, &NothingLive).outcome;
        assert_eq!(reason(&outcome), "multicast", "{nobodys}");
    }
}

#[test]
fn nat_3_a_flow_leaves_from_the_first_free_address_of_a_range() {
    let mut all = desired();
    all.zones[0]
        .selectors
        .sources
        .push("2001:db8::/32".parse().unwrap());
    let v6 = Query {
        source: "2001:db8::1".parse().unwrap(),
        destination: "2001:db8:1::1".parse().unwrap(),
        ..query()
    };
    let unserved = explain(&all, &v6, &NothingLive).outcome;
    assert_eq!(reason(&unserved), "no_address", "the pool has no range");
    all.pools[0].prefixes = vec![DesiredPrefix {
        prefix: "2001:db8:aa::/64".parse().unwrap(),
        cap: 100,
        draining: false,
    }];
    let [first, second] = ["2001:db8:aa::77", "2001:db8:aa::78"].map(|ip| ip.parse().unwrap());
    let live = Fake {
        order: Some(vec![first, second]),
        ..Fake::default()
    };
    let found = explain(&all, &v6, &live);
    assert_eq!(found.outcome, Outcome::Admitted { egress_ip: first });
    assert_eq!(found.candidates.len(), 1, "a range is not listed whole");
    let full = Fake {
        active: [(first, 100)].into(),
        ..live
    };
    assert_eq!(
        explain(&all, &v6, &full).outcome,
        Outcome::Admitted { egress_ip: second }
    );
    let link_local = Query {
        destination: "fe80::1".parse().unwrap(),
        ..v6.clone()
    };
    assert_eq!(reason(&explain(&all, &link_local, &full).outcome), "ipv6");
    let claimed = Query {
        source: second,
        ..v6
    };
    let outcome = explain(&all, &claimed, &full).outcome;
    assert_eq!(reason(&outcome), "claims_egress_ip");
}

#[test]
fn a_claimed_egress_ip_is_refused() {
    let all = desired();
    let claimed = Query {
        source: ip(10),
        ..query()
    };
    assert_eq!(
        reason(&explain(&all, &claimed, &NothingLive).outcome),
        "claims_egress_ip"
    );
}

#[test]
fn nat_8_what_goes_to_an_egress_ip_is_not_said_to_arrive() {
    let all = desired();
    for source in ["10.1.0.2", "172.16.0.1"] {
        for protocol in [Traffic::Tcp, Traffic::Udp, Traffic::Icmp] {
            let hairpin = Query {
                source: source.parse().unwrap(),
                destination: ip(11),
                protocol,
                ..query()
            };
            let found = explain(&all, &hairpin, &NothingLive);
            assert_eq!(reason(&found.outcome), "unsolicited", "{source} {protocol}");
            assert!(found.to_string().contains("hairpinned"), "{found}");
        }
    }
}

#[test]
fn the_realm_is_that_of_the_zone_where_a_packet_entered() {
    let mut all = desired();
    all.zones[4].realm = true;
    let realm_of = |query: &Query| realm(&matching(&all, query), query);
    let entering = Query {
        interface: Some("in0".into()),
        mark: 0x51,
        ..query()
    };
    assert_eq!(
        realm_of(&entering),
        Some(5),
        "whatever its mark selects later"
    );
    assert_eq!(realm_of(&query()), None);
}

#[test]
fn the_default_egress_is_taken_for_disabled_zones_exemptions_and_switched_off_protocols() {
    let text =
        |desired: &Desired, query: &Query| match explain(desired, query, &NothingLive).outcome {
            Outcome::DefaultEgress { text } => text,
            other => panic!("{other:?}"),
        };
    let mut off = desired();
    off.zones[1].enabled = false;
    assert!(text(&off, &query()).contains("zone narrow is not enabled"));

    let mut exempt = desired();
    exempt.exempt.destinations = vec!["203.0.113.0/24".parse().unwrap()];
    assert!(text(&exempt, &query()).contains("POLICY-7"));

    let mut resolver = desired();
    resolver.exempt.resolvers = vec!["203.0.113.5".parse().unwrap()];
    let dns = Query {
        destination_port: 53,
        protocol: Traffic::Udp,
        ..query()
    };
    assert!(text(&resolver, &dns).contains("POLICY-7"));
    assert!(matches!(
        explain(&resolver, &query(), &NothingLive).outcome,
        Outcome::Admitted { .. }
    ));

    let mut tcp_off = desired();
    tcp_off.zones[1].egress_tcp = false;
    assert!(text(&tcp_off, &query()).contains("POLICY-6"));

    let ping = Query {
        protocol: Traffic::Icmp,
        destination_port: 0,
        ..query()
    };
    assert!(text(&desired(), &ping).contains("ICMP queries"));
    let mut drop = desired();
    drop.exempt.icmp_queries = IcmpQueries::Drop;
    assert_eq!(
        reason(&explain(&drop, &ping, &NothingLive).outcome),
        "ping_dropped"
    );
}

#[test]
fn a_live_flow_stays_as_it_is_whatever_is_configured_now() {
    let flow = FlowRecord {
        protocol: Protocol::Tcp,
        inside: "10.1.0.2:4000".parse().unwrap(),
        egress: "192.0.2.10:4000".parse().unwrap(),
        origin: "203.0.113.5:443".parse().unwrap(),
        zone: "narrow".into(),
        pool: "partners".into(),
        state: "established".into(),
        age_s: 1,
        idle_s: 1,
        packets_out: 1,
        packets_in: 1,
        bytes_out: 1,
        bytes_in: 1,
        path: "local".into(),
    };
    let live = Fake {
        flow: Some(flow),
        ..Fake::default()
    };
    let mut off = desired();
    off.zones[1].enabled = false;
    let found = explain(
        &off,
        &Query {
            source_port: Some(4000),
            ..query()
        },
        &live,
    );
    assert!(matches!(found.outcome, Outcome::LiveFlow { .. }));
    assert!(
        found
            .to_string()
            .contains("live flow (established): leaves as 192.0.2.10:4000")
    );
}

#[test]
fn an_explanation_is_json_too() {
    let json = serde_json::to_value(explain(&desired(), &query(), &NothingLive)).unwrap();
    assert_eq!(json["outcome"], "admitted");
    assert_eq!(json["egress_ip"], "192.0.2.10");
    assert_eq!(json["rule"]["selector"], "10.1.0.0/16");
    assert_eq!(json["candidates"][0]["verdict"], "free");
    let back: Explanation = serde_json::from_value(json).unwrap();
    assert_eq!(back.zone.as_deref(), Some("narrow"));
}

#[test]
fn ann_1_a_candidate_that_is_not_advertised_is_said_to_be() {
    let text = r#"
account = [{ id = "acme" }]
[[prefix]]
cidr = "192.0.2.0/24"
account = "acme"
advertised = false
"#;
    let source = crate::diagnostic::Source::new("r.toml", text);
    let resources = crate::resource::parse(&source, None).0.unwrap();
    let withdrawn = Desired {
        withdrawn: crate::desired::Withdrawn::of(&resources),
        ..desired()
    };
    let explained = |desired: &Desired| explain(desired, &query(), &NothingLive);
    let prefix = Some("192.0.2.0/24".parse().unwrap());
    let said = explained(&withdrawn);
    assert_eq!(said.candidates.len(), 2);
    assert!(said.candidates.iter().all(|one| one.withdrawn == prefix));
    let line = "not advertised: 192.0.2.0/24 is withdrawn";
    assert!(said.to_string().contains(line), "{said}");
    let silent = explained(&desired());
    assert!(silent.candidates.iter().all(|one| one.withdrawn.is_none()));
    assert!(!silent.to_string().contains(line), "{silent}");
    // It decides nothing.
    assert_eq!(said.outcome, silent.outcome);
}
