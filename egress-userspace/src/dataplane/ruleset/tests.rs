//! The rules' text. That the kernel does what they say is shown on packets, in `tests/plane.rs`.

use super::*;
use crate::config::IcmpQueries;
use crate::dataplane::cgroups::Cgroup;
use crate::desired::{DesiredMark, Selectors};

fn zone(number: u16, enabled: bool, selectors: Selectors) -> DesiredZone {
    DesiredZone {
        number,
        id: format!("z{number}"),
        name: format!("z{number}"),
        enabled,
        pool: Some(1),
        realm: !selectors.interfaces.is_empty(),
        selectors,
        egress_tcp: true,
        egress_udp: true,
    }
}

fn desired() -> Desired {
    Desired {
        zones: vec![
            zone(
                1,
                true,
                Selectors {
                    sources: vec![
                        "10.0.0.0/8".parse().unwrap(),
                        "2001:db8::/32".parse().unwrap(),
                    ],
                    cgroups: vec!["a".into(), "missing".into()],
                    ..Selectors::default()
                },
            ),
            zone(
                2,
                false,
                Selectors {
                    sources: vec!["10.1.0.0/16".parse().unwrap()],
                    marks: vec![DesiredMark {
                        value: 0x50,
                        mask: 0xf0,
                    }],
                    cgroups: vec!["a/b".into()],
                    ..Selectors::default()
                },
            ),
            zone(
                3,
                true,
                Selectors {
                    interfaces: vec!["in1".into()],
                    marks: vec![DesiredMark {
                        value: 0xa1,
                        mask: 0xffff,
                    }],
                    ..Selectors::default()
                },
            ),
        ],
        ..Desired::default()
    }
}

fn text(desired: &Desired) -> String {
    let cgroup = |id, level, nft: &str| Cgroup {
        id,
        level,
        nft: nft.into(),
    };
    let surroundings = Surroundings {
        uplinks: BTreeSet::from([7]),
        insides: BTreeSet::from([3, 4]),
        inside_names: BTreeSet::from(["in0".to_owned(), "in1".to_owned()]),
        cgroups: Cgroups::from([
            ("a".to_owned(), cgroup(1, 1, "unified/a")),
            ("a/b".to_owned(), cgroup(2, 2, "unified/a/b")),
        ]),
    };
    script(
        "g",
        TagField::new(0xffff_0000).unwrap(),
        desired,
        &surroundings,
    )
}

/// The rules of a chain, in order.
fn rules(text: &str, chain: &str) -> Vec<String> {
    let prefix = format!("add rule inet g {chain} ");
    text.lines()
        .filter_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
        .collect()
}

#[test]
fn zone_3_selectors_are_asked_in_the_data_planes_order() {
    let text = text(&desired());
    assert_eq!(
        rules(&text, "own")[1..],
        [
            "meta mark & 0x0000ffff vmap { 0x000000a1 : goto bound }",
            "meta mark & 0x000000f0 vmap { 0x00000050 : accept }",
            "socket cgroupv2 level 2 vmap { \"unified/a/b\" : accept }",
            "socket cgroupv2 level 1 vmap { \"unified/a\" : goto bound }",
            "goto sources",
        ]
    );
    assert_eq!(
        rules(&text, "sources"),
        [
            "ip6 saddr & ffff:ffff:: vmap { 2001:db8:: : goto low_1 }",
            "ip saddr & 255.255.0.0 vmap { 10.1.0.0 : accept }",
            "ip saddr & 255.0.0.0 vmap { 10.0.0.0 : goto low_1 }",
        ]
    );
}

#[test]
fn safe_6_forwarded_packets_go_by_their_tag_and_untagged_ones_do_not_leave() {
    let text = text(&desired());
    assert_eq!(
        rules(&text, "forwarding"),
        [
            "meta mark & 0xffff0000 != 0 oif 7 accept",
            "meta mark & 0x0000ffff vmap { 0x000000a1 : goto bound }",
            "meta mark & 0x000000f0 vmap { 0x00000050 : accept }",
            "meta mark & 0xffff0000 vmap { 0x00020000 : accept }",
            "meta mark & 0xffff0000 >= 0xfbff0000 accept",
            "meta mark & 0xffff0000 != 0 goto bound",
            "iifname vmap { \"in1\" : goto unseen }",
            "goto sources",
        ]
    );
    assert_eq!(
        rules(&text, "sourced"),
        [
            "oif != { 7 } meta mark set meta mark & 0x0000ffff",
            "iifname { \"in0\", \"in1\" } goto unseen",
            "goto bound"
        ]
    );
    assert_eq!(
        rules(&text, "unseen")[2..],
        ["oif { 1, 3, 4 } accept", "counter name \"unseen\" drop"]
    );
}

#[test]
fn safe_6_uplinks_are_allowed_by_index() {
    assert_eq!(
        rules(&text(&desired()), "bound"),
        [
            "icmp type { 0, 8, 13-18 } accept",
            "icmpv6 type { 128-129 } accept",
            "oif { 1, 3, 4, 7 } accept",
            "counter name \"elsewhere\" drop"
        ]
    );
}

#[test]
fn policy_7_a_ping_is_let_go_in_both_families_or_in_neither() {
    let mut desired = desired();
    let pings = |desired: &Desired, chain| {
        let rules = rules(&text(desired), chain);
        rules.iter().filter(|rule| rule.starts_with("icmp")).count()
    };
    for chain in ["bound", "unseen"] {
        assert_eq!(pings(&desired, chain), 2);
    }
    desired.exempt.icmp_queries = IcmpQueries::Drop;
    for chain in ["bound", "unseen"] {
        assert_eq!(pings(&desired, chain), 0);
    }
}

#[test]
fn what_never_crosses_a_router_is_what_the_data_plane_takes_for_it() {
    assert_eq!(
        rules(&text(&desired()), "own")[0],
        "icmpv6 type { 130-137, 141-143, 148-149, 151-153 } accept"
    );
}

#[test]
fn policy_7_exempt_destinations_pass_and_do_not_overlap() {
    let mut desired = desired();
    desired.exempt.destinations = vec![
        "192.0.2.0/24".parse().unwrap(),
        "192.0.2.128/25".parse().unwrap(),
        "2001:db8:1::/48".parse().unwrap(),
    ];
    desired.exempt.resolvers = vec!["9.9.9.9".parse().unwrap()];
    desired.exempt.icmp_queries = IcmpQueries::Drop;
    assert_eq!(
        rules(&text(&desired), "bound")[..4],
        [
            "ip daddr { 192.0.2.0/24 } accept",
            "ip6 daddr { 2001:db8:1::/48 } accept",
            "ip daddr { 9.9.9.9 } meta l4proto { tcp, udp } th dport 53 accept",
            "oif { 1, 3, 4, 7 } accept",
        ]
    );
}

#[test]
fn policy_6_a_protocol_that_is_switched_off_passes() {
    let mut desired = desired();
    desired.zones[0].egress_udp = false;
    let text = text(&desired);
    assert!(rules(&text, "low_1_tcp")[0].ends_with(" goto sourced_tcp"));
    assert_eq!(
        rules(&text, "bound_tcp"),
        ["meta l4proto udp accept", "goto bound"]
    );
}

#[test]
fn zone_4_own_sockets_cannot_forge_a_tag() {
    assert_eq!(
        rules(&text(&desired()), "early"),
        ["meta mark & 0xffff0000 != 0 meta mark set meta mark & 0x0000ffff"]
    );
}

#[test]
fn zone_4_who_is_found_by_source_gets_the_zones_tag_before_the_source_is_rewritten() {
    let text = text(&desired());
    assert_eq!(
        rules(&text, "low_1"),
        ["meta mark set meta mark & 0x0000ffff ^ 0x00010000 goto sourced"]
    );
    assert!(text.contains("add chain inet g low_1\n") && !text.contains("high"));
    // Not enabled, or not selected by a source.
    assert!(!text.contains("low_2") && !text.contains("low_3"));
}

#[test]
fn zone_4_numbers_of_more_than_eight_bits_are_stamped_in_two_steps() {
    let mut desired = desired();
    desired.zones[2].number = 0x1234;
    desired.zones[2].selectors.sources = vec!["10.2.0.0/16".parse().unwrap()];
    let text = text(&desired);
    assert_eq!(
        rules(&text, "sources"),
        [
            "ip6 saddr & ffff:ffff:: vmap { 2001:db8:: : jump high_0 }",
            "ip6 saddr & ffff:ffff:: vmap { 2001:db8:: : goto low_1 }",
            "ip saddr & 255.255.0.0 vmap { 10.2.0.0 : jump high_4608 }",
            "ip saddr & 255.255.0.0 vmap { 10.1.0.0 : accept, 10.2.0.0 : goto low_52 }",
            "ip saddr & 255.0.0.0 vmap { 10.0.0.0 : jump high_0 }",
            "ip saddr & 255.0.0.0 vmap { 10.0.0.0 : goto low_1 }",
        ]
    );
    assert_eq!(
        rules(&text, "high_4608"),
        ["meta mark set meta mark & 0x0000ffff ^ 0x12000000"]
    );
    assert_eq!(
        rules(&text, "low_52"),
        ["meta mark set meta mark | 0x00340000 goto sourced"]
    );
    assert_eq!(
        rules(&text, "high_0"),
        ["meta mark set meta mark & 0x0000ffff ^ 0x00000000"]
    );
}

#[test]
fn safe_6_without_an_enabled_zone_nothing_is_bound() {
    let mut desired = desired();
    for zone in &mut desired.zones {
        zone.enabled = false;
    }
    let text = text(&desired);
    assert_eq!(
        rules(&text, "leaving").last().unwrap(),
        "meta mark & 0xffff0000 != 0 accept"
    );
}

#[test]
fn a_prefix_of_everything_needs_no_mask() {
    let mut desired = desired();
    desired.zones[0].selectors.sources = vec!["0.0.0.0/0".parse().unwrap()];
    assert_eq!(
        rules(&text(&desired), "sources"),
        [
            "ip saddr & 255.255.0.0 vmap { 10.1.0.0 : accept }",
            "meta nfproto vmap { ipv4 : goto low_1 }"
        ]
    );
}
