//! What bodies are read as, and what is said about those that cannot be.

use serde_json::{Value, json};

use super::rule::{Patch, Rule};
use super::{Made, file_id, new_id};
use crate::api::envelope::ApiError;
use crate::resource::Policy;

fn made() -> Made {
    Made {
        id: "x".into(),
        description: String::new(),
        version: 1,
        created_at: 0,
        updated_at: 0,
    }
}

fn read(body: &Value) -> Result<Policy, String> {
    let rule = Rule::read(body).map_err(|error| message(&error))?;
    let precedence = rule.precedence.unwrap_or(7);
    Ok(rule.policy("acme", precedence, made()))
}

fn message(error: &ApiError) -> String {
    format!("{error:?}")
}

/// A rule with one of its keys set.
fn with(key: &str, value: Value) -> Value {
    let mut body = json!({ "name": "x", "action": "egress" });
    body[key] = value;
    body
}

#[test]
fn the_documented_rule_is_read() {
    let body = json!({
        "name": "x", "action": "egress", "filters": ["egress"], "enabled": true, "precedence": 1000,
        "traffic": "net.dst.ip in {203.0.113.0/24}&&(net.dst.port eq 443)", "identity": "", "device_posture": "",
        "rule_settings": { "egress": {
            "ipv4": "192.0.2.2", "ipv4_fallback": "0.0.0.0", "ipv6": "2001:db8::/64"
        } },
    });
    let policy = read(&body).unwrap();
    assert_eq!(
        policy.traffic,
        "net.dst.ip in {203.0.113.0/24} and net.dst.port == 443"
    );
    assert!(policy.enabled);
    assert_eq!(policy.precedence, 1000);
    assert_eq!(
        json!(policy.egress),
        json!({ "ipv4": "192.0.2.2", "ipv4_fallback": "0.0.0.0", "ipv6": "2001:db8::/64" })
    );
}

#[test]
fn what_is_not_said_is_off_and_the_default_egress() {
    let least = json!({ "name": "x", "action": "egress" });
    let policy = read(&least).unwrap();
    assert!(!policy.enabled && policy.traffic.is_empty() && policy.egress.is_none());
    for (key, value) in [
        ("rule_settings", json!(null)),
        ("rule_settings", json!({})),
        ("rule_settings", json!({ "egress": null })),
        (
            "rule_settings",
            json!({ "block_page_enabled": false, "audit_ssh": null }),
        ),
        ("traffic", json!(null)),
        ("traffic", json!("  ")),
        ("precedence", json!(null)),
        ("enabled", json!(null)),
        ("schedule", json!(null)),
        // What an answer had is sent back.
        ("version", json!(5)),
        ("deleted_at", json!(null)),
    ] {
        assert_eq!(
            read(&with(key, value.clone())),
            Ok(policy.clone()),
            "{key} {value}"
        );
    }
}

#[test]
fn policy_2_what_packets_do_not_say_is_refused_by_name_with_its_column() {
    for (key, text, named, column) in [
        (
            "traffic",
            "net.dst.port == 443 and net.fqdn.hosts == \"a\"",
            "net.fqdn",
            25,
        ),
        ("traffic", "net.dst.geo.country == \"DE\"", "net.dst.geo", 1),
        ("traffic", "not app.ids == 1", "app", 5),
        (
            "identity",
            "any(identity.groups.name[*] in {\"a\"})",
            "identity",
            5,
        ),
        (
            "device_posture",
            " device_posture.checks.passed == 1",
            "device_posture",
            2,
        ),
    ] {
        let said = read(&with(key, json!(text))).unwrap_err();
        assert!(
            said.contains(&format!("`{key}`, column {column}: ")) && said.contains(named),
            "{text}: {said}"
        );
    }
    let said = read(&with("identity", json!("net.dst.port == 1"))).unwrap_err();
    assert!(said.contains("stands in `traffic`"), "{said}");
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let egress = |value: Value| json!({ "egress": value });
    for (key, value, named) in [
        ("name", json!(""), "empty"),
        ("name", json!(1), "text"),
        ("name", json!(" x"), "spaces"),
        ("action", json!("block"), "action"),
        ("filters", json!(["dns"]), "filters"),
        ("filters", json!(["egress", "l4"]), "filters"),
        ("enabled", json!("yes"), "enabled"),
        ("precedence", json!(-1), "precedence"),
        ("precedence", json!(1.5), "precedence"),
        ("precedence", json!(1_000_000_001), "precedence"),
        ("schedule", json!({ "mon": "08:00-12:00" }), "schedule"),
        ("expiration", json!({ "duration": 10 }), "expiration"),
        ("color", json!(1), "color"),
        ("description", json!("x".repeat(1_025)), "1024"),
        ("rule_settings", json!([]), "rule_settings"),
        (
            "rule_settings",
            json!({ "insecure_disable_dnssec_validation": true }),
            "insecure",
        ),
        ("rule_settings", egress(json!(1)), "egress"),
        ("rule_settings", egress(json!({})), "ipv4 is missing"),
        (
            "rule_settings",
            egress(json!({ "ipv4": "192.0.2.1", "ipv6": "2001:db8::/64" })),
            "ipv4_fallback is missing",
        ),
        (
            "rule_settings",
            egress(json!({ "ipv4": "2001:db8::1" })),
            "`ipv4` is an IPv4 address",
        ),
        (
            "rule_settings",
            egress(json!({ "ipv6": "192.0.2.1" })),
            "`ipv6` is an IPv6 prefix",
        ),
        (
            "rule_settings",
            egress(json!({ "ipv6": "2001:db8::1/64" })),
            "`ipv6`",
        ),
        ("rule_settings", egress(json!({ "ipv5": "x" })), "ipv5"),
    ] {
        let said = read(&with(key, value.clone())).unwrap_err();
        assert!(said.contains(named), "{key} {value}: {said}");
    }
    assert!(read(&json!([])).unwrap_err().contains("JSON object"));
    for key in ["name", "action"] {
        let mut body = json!({ "name": "x", "action": "egress" });
        body.as_object_mut().unwrap().remove(key);
        let said = read(&body).unwrap_err();
        assert!(said.contains(&format!("`{key}` is missing")), "{said}");
    }
}

#[test]
fn a_patch_changes_what_it_says_and_nothing_else() {
    let mut policy =
        read(&json!({ "name": "x", "action": "egress", "traffic": "net.dst.port == 1" })).unwrap();
    let (before, mut about) = (policy.clone(), made());
    let read = |body: Value| Patch::read(&body).map_err(|error| message(&error));
    read(json!({ "enabled": true }))
        .unwrap()
        .onto(&mut policy, &mut about);
    assert_eq!(
        policy,
        Policy {
            enabled: true,
            ..before.clone()
        }
    );
    read(json!({ "name": "y", "precedence": 0, "description": "z", "enabled": false }))
        .unwrap()
        .onto(&mut policy, &mut about);
    assert_eq!(
        policy,
        Policy {
            name: "y".into(),
            precedence: 0,
            ..before
        }
    );
    assert_eq!(about.description, "z");
    for (body, named) in [
        (json!({}), "empty"),
        (json!({ "traffic": "" }), "traffic"),
        (json!({ "name": null }), "empty"),
        (json!({ "enabled": null }), "enabled"),
        (json!([]), "JSON object"),
    ] {
        let said = read(body.clone()).unwrap_err();
        assert!(said.contains(named), "{body}: {said}");
    }
}

#[test]
fn ids_are_uuids_that_differ_and_a_files_stay() {
    assert_ne!(new_id().unwrap(), new_id().unwrap());
    let id = file_id("acme/bank");
    assert_eq!(id, file_id("acme/bank"));
    assert_ne!(id, file_id("acme/bang"));
    for id in [id, new_id().unwrap()] {
        let lengths: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!(lengths, [8, 4, 4, 4, 12], "{id}");
        assert!(
            matches!(id.as_bytes()[19], b'8' | b'9' | b'a' | b'b'),
            "{id}"
        );
    }
}
