//! POLICY-1 to POLICY-7 and ZONE-5 as `egress why` tells them.

use super::*;
use crate::desired::DesiredPolicy;
use crate::policy::parse;

fn policy(name: &str, zones: &[u16], traffic: &str, ipv4: DesiredExit) -> DesiredPolicy {
    DesiredPolicy {
        name: name.into(),
        zones: zones.to_vec(),
        traffic: (!traffic.is_empty()).then(|| parse(traffic).unwrap()),
        ipv4,
        ipv6: DesiredExit::Default,
    }
}

fn by(pool: u16, last: u8) -> DesiredExit {
    DesiredExit::By {
        pool,
        address: Address::V4(v4(last)),
    }
}

fn with(policies: Vec<DesiredPolicy>) -> Desired {
    let mut desired = desired();
    desired.pools.push(DesiredPool {
        number: 2,
        id: "bank".into(),
        candidates: vec![candidate(20), candidate(21)],
        prefixes: Vec::new(),
    });
    desired.policies = policies;
    desired
}

/// The policy, the pool and what becomes of the packet.
fn told(desired: &Desired, query: &Query) -> (Option<String>, Option<String>, Outcome) {
    let found = explain(desired, query, &Fake::default());
    (found.policy, found.pool, found.outcome)
}

fn admitted(last: u8) -> Outcome {
    Outcome::Admitted {
        egress_ip: ip(last),
    }
}

#[test]
fn policy_1_the_first_that_matches_decides_and_names_the_address() {
    let desired = with(vec![
        policy("other port", &[2], "net.dst.port == 80", by(2, 20)),
        policy("other zone", &[1], "", by(2, 20)),
        policy(
            "meant",
            &[1, 2],
            "net.dst.ip in {203.0.113.0/24}",
            by(2, 21),
        ),
        policy("late", &[2], "", by(2, 20)),
    ]);
    assert_eq!(
        told(&desired, &query()),
        (Some("meant".into()), Some("bank".into()), admitted(21))
    );
    let found = explain(&desired, &query(), &Fake::default());
    assert_eq!(found.candidates.len(), 1, "a policy names one address");
    let text = found.to_string();
    assert!(text.contains("policy      meant\n"), "{text}");
    // A full address refuses: there is no other.
    let full = Fake {
        active: HashMap::from([(ip(21), 100)]),
        ..Fake::default()
    };
    let found = explain(&desired, &query(), &full);
    assert_eq!(reason(&found.outcome), Reason::CapReached.label());
    // POLICY-5: what none matches leaves by the zone's pool.
    let udp = Query {
        destination: "198.51.100.1".parse().unwrap(),
        source: "10.2.0.2".parse().unwrap(),
        ..query()
    };
    let desired = with(vec![policy("p", &[2], "", by(2, 20))]);
    assert_eq!(
        told(&desired, &udp),
        (None, Some("partners".into()), admitted(10))
    );
}

#[test]
fn policy_3_the_default_egress_and_an_address_that_is_elsewhere() {
    let desired = with(vec![policy("off", &[2], "", DesiredExit::Default)]);
    let (policy_name, pool, outcome) = told(&desired, &query());
    assert_eq!((policy_name.as_deref(), pool), (Some("off"), None));
    assert!(
        matches!(&outcome, Outcome::DefaultEgress { text } if text.contains("policy off")),
        "{outcome:?}"
    );
    let desired = with(vec![policy(
        "far",
        &[2],
        "",
        DesiredExit::Nowhere { pool: 2 },
    )]);
    let (_, pool, outcome) = told(&desired, &query());
    assert_eq!(pool.as_deref(), Some("bank"));
    assert_eq!(reason(&outcome), Reason::NoAddress.label());
}

#[test]
fn policies_are_asked_after_what_is_exempt_and_not_for_pings_or_zones_that_are_off() {
    let mut desired = with(vec![policy("all", &[2], "", by(2, 20))]);
    let ping = Query {
        protocol: Traffic::Icmp,
        destination_port: 0,
        ..query()
    };
    let (policy_name, _, outcome) = told(&desired, &ping);
    assert_eq!(policy_name, None);
    assert!(
        matches!(outcome, Outcome::DefaultEgress { .. }),
        "{outcome:?}"
    );
    desired.zones[1].egress_tcp = false;
    let (policy_name, _, outcome) = told(&desired, &query());
    assert_eq!(policy_name, None);
    assert!(
        matches!(&outcome, Outcome::DefaultEgress { text } if text.contains("POLICY-6")),
        "{outcome:?}"
    );
    desired.zones[1].enabled = false;
    let (policy_name, ..) = told(&desired, &query());
    assert_eq!(policy_name, None);
}

#[test]
fn without_a_source_port_it_says_what_each_one_meets() {
    let ports = "net.src.port in {40000..50000} and net.dst.port == 443";
    let desired = with(vec![
        policy("some", &[2], ports, by(2, 20)),
        policy("low", &[2], "net.src.port < 1024", by(2, 21)),
    ]);
    let found = explain(&desired, &query(), &Fake::default());
    let stretch = |from, policy: Option<&str>| ByPort {
        from,
        policy: policy.map(str::to_owned),
    };
    assert_eq!(
        found.by_source_port,
        [
            stretch(0, Some("low")),
            stretch(1_024, None),
            stretch(40_000, Some("some")),
            stretch(50_001, None),
        ]
    );
    assert_eq!(
        (found.policy.as_deref(), &found.outcome),
        (None, &admitted(10))
    );
    let text = found.to_string();
    assert!(
        text.contains("asked as from source port 32768")
            && text.contains("from source port 40000 on: policy some")
            && text.contains("from source port 50001 on: no policy"),
        "{text}"
    );
    // With one, and where it makes no difference, there is nothing to say.
    let told = explain(
        &desired,
        &Query {
            source_port: Some(41_000),
            ..query()
        },
        &Fake::default(),
    );
    assert_eq!(
        (told.policy.as_deref(), told.outcome),
        (Some("some"), admitted(20))
    );
    assert!(told.by_source_port.is_empty());
    let same = Query {
        destination: "198.51.100.1".parse().unwrap(),
        destination_port: 80,
        ..query()
    };
    let desired = with(vec![policy("some", &[2], ports, by(2, 20))]);
    let found = explain(&desired, &same, &Fake::default());
    assert!(found.by_source_port.is_empty() && found.policy.is_none());
    assert!(!found.to_string().contains("32768"));
}
