use super::*;
use crate::api::page::{POLICY, headers};
use crate::dataplane::api::{
    DataPlaneStatus, HookStatus, PeerStatus, PoolAddressLive, Protocol, ReasonCount, TableStatus,
};
use crate::inventory::PoolAddress;
use crate::liveness::{Health, Healths};

/// A look in which everything that has a name has this one.
fn look(name: &str, known: bool) -> Look {
    let name = || name.to_owned();
    let peer = "10.9.0.2".parse().unwrap();
    let egress_ip = "192.0.2.10".parse().unwrap();
    let dataplane = DataPlaneStatus {
        hooks: vec![HookStatus {
            hook: name(),
            interface: name(),
            kind: name(),
            program_id: None,
            in_place: false,
        }],
        tables: vec![TableStatus {
            table: name(),
            used: 1,
            capacity: 4,
        }],
        reasons: vec![
            ReasonCount {
                reason: name(),
                packets: 9,
            },
            ReasonCount {
                reason: "cap_reached".into(),
                packets: 7,
            },
        ],
        peers: vec![PeerStatus {
            address: peer,
            sent_packets: 3,
            sent_bytes: 300,
            received_packets: 4,
            received_bytes: 400,
        }],
        announced: vec!["192.0.2.10/32".parse().unwrap()],
        ..DataPlaneStatus::default()
    };
    let silent = Health {
        state: State::Silent,
        round_trip_us: Some(1_500),
    };
    Look {
        server: name(),
        data_center: name(),
        status: Status {
            frozen: Some(name()),
            stuck: Some(name()),
            servers: Healths::from([(peer, silent)]),
            ..Status::new(dataplane, Some(1))
        },
        pools: vec![PoolRecord {
            id: name(),
            name: Some(format!("{} too", name())),
            account: Some(name()),
            kind: None,
            used_for: None,
            connections_per_origin: None,
            addresses: vec![PoolAddress {
                address: name(),
                capacity: None,
                active: Some(5),
                draining: false,
                slices: None,
                owners: Vec::new(),
            }],
            zones: vec![name(); 10],
        }],
        live: vec![PoolLive {
            number: 1,
            addresses: vec![PoolAddressLive {
                egress_ip,
                slices: 3,
                cap: 40_000,
                draining: true,
                active: 5,
            }],
        }],
        origins: vec![OriginRecord {
            egress_ip: "192.0.2.10".parse().unwrap(),
            origin: "203.0.113.9:443".parse().unwrap(),
            protocol: Protocol::Tcp,
            active: 5,
            peak: 6,
            capacity: 40_000,
            utilization: 93.5,
            refused: 2,
        }],
        names: Names {
            pools: [(1, name())].into(),
            servers: [(peer, name())].into(),
            ..Names::default()
        },
        known,
    }
}

/// The markup alone.
fn tags(html: &str) -> Vec<&str> {
    let (_, body) = html.split_once("<body>").unwrap();
    let rest = body.split('<').skip(1);
    rest.map(|tag| tag.split_once('>').unwrap().0).collect()
}

#[test]
fn names_of_others_change_nothing_but_text() {
    let benign = look("shop", true).html();
    for hostile in [
        "<script src=//evil.example/x></script>",
        "\"><img src=x onerror=alert(1)>",
        "</style></title><b onclick='x'>",
        "<!-- ",
        "&lt;script&gt;",
    ] {
        let html = look(hostile, true).html();
        assert_eq!(tags(&html), tags(&benign), "{hostile}");
        assert!(!html.contains(hostile), "{hostile}");
    }
}

#[test]
fn nothing_is_fetched_run_or_changed() {
    let html = look("shop", true).html();
    let anonymous = look("shop", false).html();
    for page in [&html, &anonymous] {
        for word in [
            "<script", "http:", "https:", "src=", "style=", "url(", "@import", "<form", "<input",
            "<link", "<iframe",
        ] {
            assert!(!page.contains(word), "{word}");
        }
        let links: Vec<_> = page.split("href=").skip(1).collect();
        assert!(links.iter().all(|link| link.starts_with("\"/status?all\"")));
    }
    let policy = headers()[axum::http::header::CONTENT_SECURITY_POLICY]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(policy, *POLICY);
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
    assert!(!policy.contains("unsafe") && !policy.contains('*'));
}

#[test]
fn every_tag_is_closed() {
    for known in [true, false] {
        let html = look("shop", known).html();
        let mut open = Vec::new();
        for tag in tags(&html) {
            match tag.strip_prefix('/') {
                Some("body" | "html") => {}
                Some(name) => assert_eq!(open.pop(), Some(name), "in {html}"),
                None if tag.ends_with('/') => {}
                None => open.push(tag.split(' ').next().unwrap()),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }
}

#[test]
fn it_says_what_is_and_origins_and_zones_to_a_token_alone() {
    let html = look("shop", true).html();
    for word in [
        "not ready",
        "203.0.113.9:443",
        "93.50 %",
        "bar bad",
        "drains",
        "silent",
        "1500 µs",
        "cap_reached",
        Reason::CapReached.text(),
        "25.00 %",
        "Announced by routes: 192.0.2.10/32.",
        "the guard is missing",
        "shop, shop, shop, shop, shop, shop, shop, shop, and 2 more",
    ] {
        assert!(html.contains(word), "{word}\n{html}");
    }
    let anonymous = look("shop", false).html();
    assert!(!anonymous.contains("203.0.113.9") && !anonymous.contains("shop, shop"));
    assert!(anonymous.contains("93.50 %") && anonymous.contains("192.0.2.10"));
}
