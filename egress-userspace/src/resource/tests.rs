mod mutations;
mod placements;
mod policies;
mod sample;

use std::path::Path;

use sample::SAMPLE;

use super::*;
use crate::diagnostic::Severity;

fn found(text: &str) -> Diagnostics {
    parse(&Source::new("resources.toml", text), None).1
}

/// `line: reason` of every error.
fn errors(text: &str) -> Vec<String> {
    let of = |d: &crate::diagnostic::Diagnostic| format!("{}: {}", d.line, d.reason);
    found(text)
        .0
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .map(of)
        .collect()
}

fn remedies(text: &str) -> Vec<String> {
    found(text).0.into_iter().map(|d| d.remedy).collect()
}

/// An account, then `rest` from line 2 on.
fn acme(rest: &str) -> String {
    format!("account = [{{ id = \"acme\" }}, {{ id = \"other\" }}]\n{rest}")
}

#[test]
fn the_sample_of_the_interface_is_valid() {
    let (resources, found) = parse(&Source::new("resources.toml", SAMPLE), None);
    let resources = resources.unwrap();
    assert!(found.is_empty(), "{found}");
    assert_eq!(resources.pools[0].addresses.len(), 3);
    assert_eq!(resources.pools[0].kind, Some(PoolKind::Leased));
    assert_eq!(
        resources.zones[0].marks,
        [
            Mark {
                value: 161,
                mask: None
            },
            Mark {
                value: 0x50,
                mask: Some(0xf0)
            }
        ]
    );
    assert_eq!(
        resources.aegis(&resources.zones[0]).pool_id.as_deref(),
        Some("partners")
    );
}

#[test]
fn pool_2_a_mixed_pool_is_refused_naming_both_members() {
    let text = acme(
        "[[prefix]]\ncidr = \"198.51.100.0/24\"\naccount = \"acme\"\n[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [\"192.0.2.1\",\n\"198.51.100.7\"]\n",
    );
    assert_eq!(
        errors(&text),
        [
            "9: pool p is mixed: 192.0.2.1 is leased (inside no [[prefix]]), 198.51.100.7 is byoip (inside 198.51.100.0/24) (POOL-2)"
        ]
    );
}

#[test]
fn a_pool_is_what_it_says_it_is() {
    let text = acme(
        "[[pool]]\nid = \"p\"\naccount = \"acme\"\nkind = \"byoip\"\naddresses = [\"192.0.2.1\"]\n",
    );
    assert_eq!(
        errors(&text),
        ["5: pool p says it is byoip, but 192.0.2.1 is leased (inside no [[prefix]])"]
    );
}

#[test]
fn pool_3_a_prefix_serves_ingress_or_egress() {
    let both = acme(
        "[[prefix]]\ncidr = \"198.51.100.0/24\"\naccount = \"acme\"\nservice = \"cdn-egress\"\n[[prefix]]\ncidr = \"198.51.100.0/24\"\naccount = \"acme\"\nservice = \"cdn-ingress\"\n",
    );
    assert_eq!(
        errors(&both),
        [
            "9: 198.51.100.0/24 is bound to both cdn-ingress and cdn-egress: 198.51.100.0/24 is there on line 3 (POOL-3)"
        ]
    );
    let ingress = acme(
        "[[prefix]]\ncidr = \"198.51.100.0/24\"\naccount = \"acme\"\nservice = \"cdn-ingress\"\n[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [\"198.51.100.1\"]\n",
    );
    assert_eq!(
        errors(&ingress),
        ["9: 198.51.100.1 lies in 198.51.100.0/24, which is bound to cdn-ingress (POOL-3)"]
    );
}

#[test]
fn pool_4_an_address_in_two_pools_is_refused_naming_both() {
    let text = acme(
        "[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"192.0.2.1\"]\n[[pool]]\nid = \"b\"\naccount = \"acme\"\naddresses = [\"192.0.2.2\", \"192.0.2.1\"]\n",
    );
    assert_eq!(
        errors(&text),
        ["9: 192.0.2.1 is in two pools: in a (on line 5) and in b (POOL-4)"]
    );
    let v6 = acme(
        "[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"2001:db8::/64\"]\n[[pool]]\nid = \"b\"\naccount = \"acme\"\naddresses = [\"2001:db8::/48\"]\n",
    );
    assert_eq!(
        errors(&v6).len(),
        1,
        "a prefix inside another pool's prefix is that address twice"
    );
}

#[test]
fn pool_7_a_zone_is_enabled_only_where_its_account_has_addresses() {
    let zone = "[[zone]]\nid = \"z\"\naccount = \"other\"\nsources = [\"10.0.0.0/8\"]\naegis = { enabled = true, pool_id = \"p\" }\n";
    let pool = "[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [\"192.0.2.1\"]\n";
    let none = acme(&format!("{pool}{zone}"));
    assert_eq!(
        errors(&none),
        [
            "10: zone z may not be enabled on pool p: account other owns no leased IPs and was delegated no BYOIP prefix (POOL-7)"
        ]
    );
    // POOL-4: across accounts, once the account has addresses of its own.
    let own = "[[pool]]\nid = \"q\"\naccount = \"other\"\naddresses = [\"192.0.2.9\"]\n";
    assert!(errors(&acme(&format!("{pool}{zone}{own}"))).is_empty());
    let prefix = |to: &str| {
        format!("[[prefix]]\ncidr = \"192.0.2.0/24\"\naccount = \"acme\"\ndelegated_to = [{to}]\n")
    };
    assert!(
        errors(&acme(&format!("{pool}{zone}{}", prefix(""))))
            .iter()
            .any(|e| e.contains("POOL-7"))
    );
    assert!(errors(&acme(&format!("{pool}{zone}{}", prefix("\"other\"")))).is_empty());
}

#[test]
fn pool_8_few_gateway_addresses_are_warned_about() {
    let text = acme(
        "[[pool]]\nid = \"p\"\naccount = \"acme\"\nuse = \"gateway\"\naddresses = [\"192.0.2.1\"]\n",
    );
    let found = found(&text);
    assert!(!found.has_errors());
    assert!(
        found.0[0].reason.contains("holds 1 gateway addresses"),
        "{found}"
    );
}

#[test]
fn an_empty_pool_is_refused_unless_it_says_so() {
    let pool = |line: &str| {
        acme(&format!(
            "[[pool]]\nid = \"p\"\naccount = \"acme\"\n{line}\n"
        ))
    };
    assert_eq!(errors(&pool("addresses = []")), ["5: pool p is empty"]);
    assert_eq!(errors(&pool("")), ["2: [[pool]] has no `addresses`"]);
    assert!(errors(&pool("addresses = []\nallow_empty = true")).is_empty());
}

#[test]
fn draining_addresses_are_members() {
    let pool = |drain: &str| {
        acme(&format!(
            "[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [\"192.0.2.1\"]\ndraining = [\"{drain}\"]\n"
        ))
    };
    assert!(errors(&pool("192.0.2.1")).is_empty());
    assert_eq!(errors(&pool("192.0.2.2")).len(), 1);
}

#[test]
fn a_zone_without_selector_is_refused() {
    let text = acme("[[zone]]\nid = \"z\"\naccount = \"acme\"\n");
    assert_eq!(
        errors(&text),
        ["2: zone z has no selector: nothing says which traffic is its own"]
    );
}

#[test]
fn zone_3_the_same_selector_in_two_zones_is_refused() {
    let two = |one: &str, other: &str| {
        errors(&acme(&format!(
            "[[zone]]\nid = \"y\"\naccount = \"acme\"\n{one}\n[[zone]]\nid = \"z\"\naccount = \"acme\"\n{other}\n"
        )))
    };
    for selector in [
        "sources = [\"10.0.0.0/8\"]",
        "marks = [7]",
        "cgroups = [\"a.slice\"]",
        "interfaces = [\"in0\"]",
    ] {
        let found = two(selector, selector);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with("9: ") && found[0].contains("y (on line 5) and z"),
            "{found:?}"
        );
    }
    assert_eq!(
        two("cgroups = [\"/a.slice/\"]", "cgroups = [\"a.slice\"]").len(),
        1,
        "slashes do not matter"
    );
    assert!(
        two("sources = [\"10.0.0.0/8\"]", "sources = [\"10.1.0.0/16\"]").is_empty(),
        "the longest wins"
    );
    assert!(
        two("marks = [\"0x50/0xf0\"]", "marks = [\"0x51\"]").is_empty(),
        "the longer mask wins"
    );
    let crossing = two("marks = [\"0x50/0xf0\"]", "marks = [\"0x1/0xf\"]");
    assert_eq!(
        crossing,
        ["9: mark 0x51 selects two zones: y by 0x50/0xf0 (on line 5) and z by 0x1/0xf (ZONE-3)"]
    );
}

/// A file that was cut off does not let everybody go (SAFE-5).
#[test]
fn a_file_with_nothing_in_it_is_refused() {
    for text in ["", "\n# later\n"] {
        assert!(errors(text)[0].contains("nothing in it"), "{text:?}");
    }
    assert!(errors(&acme("")).is_empty());
}

#[test]
fn transient_scopes_and_the_root_cgroup_are_refused() {
    let zone = |path: &str| {
        acme(&format!(
            "[[zone]]\nid = \"z\"\naccount = \"acme\"\ncgroups = [\"{path}\"]\n"
        ))
    };
    assert!(errors(&zone("system.slice/run-1.scope"))[0].contains("transient scope run-1.scope"));
    assert!(errors(&zone("/"))[0].contains("is the root"));
    assert_eq!(errors(&zone("../x")).len(), 1);
    assert!(errors(&zone("/sys/fs/cgroup/system.slice/proxy.service"))[0].contains("mounted"));
    assert!(errors(&zone("system.slice/proxy.service")).is_empty());
}

#[test]
fn unknown_references_and_keys_suggest_the_nearest() {
    let text = acme(
        "[[pool]]\nid = \"partners\"\naccount = \"acne\"\naddresses = [\"192.0.2.1\"]\nconections_per_origin = 1\n[[zone]]\nid = \"z\"\naccount = \"acme\"\nsources = [\"10.0.0.0/8\"]\naegis = { enabled = true, pool_id = \"partner\" }\n",
    );
    assert_eq!(
        errors(&text),
        [
            "4: there is no account \"acne\"",
            "6: unknown key `conections_per_origin` in [[pool]]",
            "11: there is no pool \"partner\""
        ]
    );
    assert_eq!(
        remedies(&text),
        [
            "did you mean \"acme\"?",
            "did you mean `connections_per_origin`?",
            "did you mean \"partners\"?"
        ]
    );
}

#[test]
fn ipv6_members_are_checked_like_ipv4_ones() {
    let pool = |addresses: &str| {
        acme(&format!(
            "[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [\n{addresses}]\n"
        ))
    };
    let good = "\"192.0.2.1\",\n\"2001:db8:aa::/64\",\n\"2001:db8:bb::7\",\n";
    assert_eq!(errors(&pool(good)), [""; 0]);
    for (address, reason) in [
        (
            "2001:db8:aa::7",
            "7: 2001:db8:aa::7 is in pool p twice, first on line 6",
        ),
        (
            "2001:db8:aa::/80",
            "7: 2001:db8:aa::/80 is in pool p twice, first on line 6",
        ),
        (
            "2001:db8::/32",
            "7: 2001:db8:aa::/64 is in pool p twice, first on line 6",
        ),
        (
            "2001:db8::/31",
            "7: 2001:db8::/31 is too large: IPv6 prefixes of a pool are /32 to /128",
        ),
        (
            "2001:db8:cc::1/64",
            "7: 2001:db8:cc::1/64 has bits set outside its prefix",
        ),
        (
            "fe80::/64",
            "7: fe80::/64 cannot be a source address on a network: it is link-local",
        ),
    ] {
        let text = pool(&format!("\"2001:db8:aa::/64\",\n\"{address}\",\n"));
        assert_eq!(errors(&text), [reason]);
    }
}

#[test]
fn pool_2_an_ipv6_member_mixes_a_pool_as_well() {
    let text = acme(
        "[[prefix]]\ncidr = \"2001:db8:aa::/48\"\naccount = \"acme\"\n[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [\"2001:db8:aa::/64\", \"2001:db8:bb::/64\"]\n",
    );
    assert_eq!(
        errors(&text),
        [
            "8: pool p is mixed: 2001:db8:aa::/64 is byoip (inside 2001:db8:aa::/48), 2001:db8:bb::/64 is leased (inside no [[prefix]]) (POOL-2)"
        ]
    );
}

#[test]
fn sources_of_a_family_that_the_pool_lacks_are_warned_of() {
    let zone = |addresses: &str, enabled: bool| {
        let text = acme(&format!(
            "[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [{addresses}]\n[[zone]]\nid = \"z\"\naccount = \"acme\"\nsources = [\"10.0.0.0/8\",\n  \"fd00:1::/64\"]\naegis = {{ enabled = {enabled}, pool_id = \"p\" }}\n"
        ));
        let found = found(&text);
        assert!(errors(&text).is_empty(), "{found}");
        let at =
            |d: &crate::diagnostic::Diagnostic| format!("{}:{}: {}", d.line, d.column, d.reason);
        found.0.iter().map(at).collect::<Vec<_>>()
    };
    assert_eq!(zone("\"192.0.2.1\", \"2001:db8::/64\"", true), [""; 0]);
    assert_eq!(
        zone("\"192.0.2.1\"", true),
        ["10:3: zone z has IPv6 sources, but pool p has no IPv6 address: that traffic is refused"]
    );
    assert_eq!(
        zone("\"2001:db8::/64\"", true),
        ["9:12: zone z has IPv4 sources, but pool p has no IPv4 address: that traffic is refused"]
    );
    assert_eq!(zone("\"192.0.2.1\"", false), [""; 0]);
}

#[test]
fn ids_and_names_are_unique() {
    let text = "account = [{ id = \"a\", name = \"b\" }, { id = \"b\" }]\n";
    assert_eq!(
        errors(text),
        ["1: account \"b\" is there twice, first on line 1"]
    );
}

#[test]
fn wrong_addresses_and_bounds_are_all_reported() {
    let text = acme(
        "[[pool]]\nid = \"p q\"\naccount = \"acme\"\naddresses = [\"192.0.2.0/24\", \"2001:db8::1/64\", 7]\nconnections_per_origin = 40001\n[[zone]]\nid = \"z\"\naccount = \"acme\"\nsources = [\"10.0.0.1/8\"]\naegis = { enabled = true }\n",
    );
    let found = errors(&text);
    assert_eq!(found.len(), 7, "{found:?}");
}

#[test]
fn interfaces_and_marks_are_checked_against_the_server() {
    let config = Config::parse(
        &Source::new(
            "egress.toml",
            "[dataplane]\nuplink = [\"up0\"]\ninside = [\"in0\"]\n",
        ),
        Path::new("/"),
    )
    .0
    .unwrap();
    let text = acme(
        "[[zone]]\nid = \"z\"\naccount = \"acme\"\ninterfaces = [\"in0\", \"in1\"]\nmarks = [\"0x10001\", \"0xa1/0xffff\"]\n[[zone]]\nid = \"y\"\naccount = \"acme\"\nmarks = [161]\n",
    );
    let found: Vec<String> = parse(&Source::new("r.toml", text), Some(&config))
        .1
        .0
        .into_iter()
        .map(|d| d.reason)
        .collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("interface in1 of zone z is no inside interface"));
    assert!(found[1].contains("uses bits 0x10000"));
    assert!(
        found[2].contains("selects two zones"),
        "161 looks at all unreserved bits: {found:?}"
    );
}

#[test]
fn the_documented_sample_is_valid() {
    let found = found(include_str!("../../../docs/resources.toml"));
    assert!(found.is_empty(), "{found}");
}
