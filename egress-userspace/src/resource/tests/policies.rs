//! POLICY-1, POLICY-2, POLICY-3, POLICY-5, ZONE-5: policies as they are read and checked.

use super::sample::{POLICY, SAMPLE};
use super::*;

/// The sample with these policies of acme; each line goes into a section of its own.
fn with(policies: &[&str]) -> String {
    let section = |(nth, lines): (usize, &&str)| {
        let name = if lines.contains("name =") {
            String::new()
        } else {
            format!("name = \"p{nth}\"\n")
        };
        format!("[[policy]]\n{name}account = \"acme\"\n{lines}\n")
    };
    let sections: Vec<String> = policies.iter().enumerate().map(section).collect();
    format!("{SAMPLE}{}", sections.concat())
}

fn reasons(policies: &[&str]) -> Vec<String> {
    let text = with(policies);
    let found = found(&text);
    found.0.iter().map(|d| d.reason.clone()).collect()
}

const CATCH_ALL: &str = "precedence = 999999";

#[test]
fn the_samples_policy_is_accepted_in_its_canonical_form() {
    let (resources, found) = parse(&Source::new("r", format!("{SAMPLE}{POLICY}")), None);
    assert!(!found.has_errors(), "{found}");
    let policies = resources.unwrap().policies;
    assert_eq!(policies.len(), 1);
    assert_eq!(
        policies[0].traffic,
        "net.dst.ip in {203.0.113.0/24} and net.dst.port == 443"
    );
    assert_eq!(policies[0].egress.unwrap().ipv4.octets(), [192, 0, 2, 10]);
}

#[test]
fn policy_5_a_set_without_catch_all_is_warned_about() {
    let warned = |policies: &[&str]| {
        let found = reasons(policies);
        found.iter().any(|reason| reason.contains("POLICY-5"))
    };
    assert!(warned(&["traffic = \"net.dst.port == 1\""]));
    assert!(warned(&["enabled = false"]), "it matches nothing");
    assert!(!warned(&["traffic = \"net.dst.port == 1\"", CATCH_ALL]));
    assert!(!warned(&[]));
}

#[test]
fn policy_2_a_mistake_is_shown_in_its_own_line_and_column() {
    let text = with(&[
        "traffic = 'net.dst.port == 443 and identity.email == \"x\"'",
        CATCH_ALL,
        "traffic = '''\n  net.dst.port == 443\n  or net.dst.prot == 1'''",
    ]);
    let found = found(&text);
    let at: Vec<(usize, String)> = found
        .0
        .iter()
        .map(|d| (d.column, d.reason.clone()))
        .collect();
    assert_eq!(at.len(), 2, "{at:?}");
    assert_eq!(at[0].0, 36);
    assert!(at[0].1.contains("identity.email"), "{at:?}");
    assert_eq!(at[1].0, 6);
    assert!(at[1].1.contains("net.dst.prot"), "{at:?}");
}

#[test]
fn policy_1_names_and_precedences_are_there_once() {
    let twice = reasons(&[
        "precedence = 7\nname = \"a\"",
        "precedence = 7\nname = \"a\"",
    ]);
    assert_eq!(twice.len(), 2, "{twice:?}");
    assert!(twice[1].starts_with("name a is there twice"), "{twice:?}");
    assert!(
        twice[0].starts_with("precedence 7 is there twice"),
        "{twice:?}"
    );
    let text = with(&["precedence = 7", "", "", "precedence = 5000", ""]);
    let resources = parse(&Source::new("r", text), None).0.unwrap();
    let given: Vec<u32> = resources
        .policies
        .iter()
        .map(|policy| policy.precedence)
        .collect();
    assert_eq!(given, [7, 8, 9, 5000, 5001]);
}

#[test]
fn zone_5_a_policy_names_its_own_accounts_zones_and_addresses() {
    let egress = |ipv4: &str, fallback: &str, ipv6: &str| {
        format!(
            "egress = {{ ipv4 = \"{ipv4}\", ipv4_fallback = \"{fallback}\", ipv6 = \"{ipv6}\" }}"
        )
    };
    let own = "2001:db8:aa::/64";
    for (lines, expected) in [
        (
            egress("192.0.2.99", "0.0.0.0", own),
            "192.0.2.99 is in no pool",
        ),
        (
            egress("192.0.2.10", "0.0.0.0", "2001:db8:aa::/72"),
            "2001:db8:aa::/72 is in no pool",
        ),
        (
            egress("192.0.2.10", "192.0.2.10", own),
            "both primary and secondary",
        ),
        (
            egress("192.0.2.10", "192.0.2.11", own),
            "only while that one drains",
        ),
        (
            egress("203.0.113.7", "0.0.0.0", own),
            "account rival, and policy p0 belongs to acme",
        ),
        (
            "traffic = \"zone == 'x'\"".replace('\'', "\\\""),
            "there is no zone",
        ),
        (
            "traffic = 'zone == \"rivals\"'".to_owned(),
            "belongs to account rival",
        ),
    ] {
        let mut text = with(&[&lines, CATCH_ALL]);
        text += "[[account]]\nid = \"rival\"\n[[pool]]\nid = \"theirs\"\naccount = \"rival\"\naddresses = [\"203.0.113.7\"]\n\
                 [[zone]]\nid = \"rivals\"\naccount = \"rival\"\nsources = [\"10.99.0.0/16\"]\n";
        let found = found(&text);
        assert_eq!(found.0.len(), 1, "{lines}: {found}");
        assert!(found.0[0].reason.contains(expected), "{found}");
    }
}

#[test]
fn policy_3_the_secondary_is_mandatory() {
    let found = reasons(&[
        "egress = { ipv4 = \"192.0.2.10\", ipv6 = \"2001:db8:aa::/64\" }",
        CATCH_ALL,
    ]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("ipv4_fallback"), "{found:?}");
}
