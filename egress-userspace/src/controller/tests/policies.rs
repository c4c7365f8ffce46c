//! Policies made through the API (POLICY-1, ZONE-5): all that is wrong with one is found before anything changes.

use super::*;
use crate::controller::PolicyError;
use crate::resource::{Egress, Made, Policy};

const TWO_ACCOUNTS: &str = r#"
account = [{ id = "a1", name = "acme" }, { id = "a2", name = "other" }]
[[pool]]
id = "own"
account = "acme"
addresses = ["192.0.2.1", "2001:db8:aa::/64"]
[[pool]]
id = "secret"
account = "other"
addresses = ["192.0.2.2"]
[[zone]]
id = "z1"
name = "shop.example"
account = "a1"
sources = ["10.0.0.0/8"]
[zone.aegis]
enabled = true
pool_id = "own"
[[zone]]
id = "z2"
name = "hidden.example"
account = "a2"
sources = ["10.0.0.0/9"]
[[policy]]
name = "filed"
account = "acme"
traffic = "net.dst.port == 1"
"#;

fn policy(id: &str, precedence: u32, traffic: &str) -> Policy {
    Policy {
        name: format!("policy {id}"),
        account: "a1".into(),
        precedence,
        enabled: true,
        traffic: traffic.into(),
        egress: Some(Egress {
            ipv4: [192, 0, 2, 1].into(),
            ipv4_fallback: [0, 0, 0, 0].into(),
            ipv6: "2001:db8:aa::/64".parse().unwrap(),
        }),
        made: Some(Made {
            id: id.into(),
            description: String::new(),
            version: 1,
            created_at: 1,
            updated_at: 1,
        }),
    }
}

fn asked(bench: &Bench) -> Vec<String> {
    let policies = bench.in_force().policies;
    policies.into_iter().map(|policy| policy.name).collect()
}

#[test]
fn they_are_put_replaced_and_removed_and_live_beside_those_of_the_file() {
    let bench = Bench::new(TWO_ACCOUNTS);
    assert_eq!(asked(&bench), ["filed"]);
    let put = |bench: &Bench, policy: &Policy| bench.writer().put_policy(policy);
    let warnings = put(&bench, &policy("x", 2_000, "net.dst.port == 2")).unwrap();
    assert!(
        warnings.len() == 1 && warnings[0].contains("POLICY-5"),
        "{warnings:?}"
    );
    assert_eq!(asked(&bench), ["filed", "policy x"]);
    assert_eq!(
        put(&bench, &policy("y", 10, "")).unwrap(),
        Vec::<String>::new()
    );
    assert_eq!(asked(&bench), ["policy y", "filed", "policy x"]);
    // In its own place, under its own name.
    put(&bench, &policy("x", 2_000, "net.dst.port == 3")).unwrap();
    put(&bench, &policy("x", 1, "net.dst.port == 3")).unwrap();
    assert_eq!(asked(&bench), ["policy x", "policy y", "filed"]);
    assert_eq!(
        bench.in_force().policies[0].zones,
        [1],
        "its account's zones"
    );

    bench
        .writer()
        .apply(
            &Source::new("r.toml", TWO_ACCOUNTS.replace("== 1", "== 4")),
            false,
        )
        .unwrap();
    assert_eq!(asked(&bench), ["policy x", "policy y", "filed"]);
    let without = TWO_ACCOUNTS.replace("2001:db8:aa::/64", "2001:db8:bb::/64");
    let failure = bench
        .writer()
        .apply(&Source::new("r.toml", without), false)
        .unwrap_err();
    assert!(
        failure
            .to_string()
            .contains("policy policy x: 2001:db8:aa::/64 is in no pool"),
        "{failure}"
    );
    let taken = TWO_ACCOUNTS.replace("traffic", "precedence = 10\ntraffic");
    assert!(
        bench
            .writer()
            .apply(&Source::new("r.toml", taken), false)
            .is_err()
    );

    bench.writer().remove_policy("x").unwrap();
    assert_eq!(asked(&bench), ["policy y", "filed"]);
}

#[test]
fn what_cannot_be_is_refused_and_tells_nothing_of_other_accounts() {
    let bench = Bench::new(TWO_ACCOUNTS);
    bench.writer().put_policy(&policy("x", 5, "")).unwrap();
    let (before, asked_before) = (bench.stored(), asked(&bench));
    let named = |name: &str| Policy {
        name: name.into(),
        ..policy("y", 7, "")
    };
    let leaving_by = |last: u8, fallback: u8| {
        let mut policy = policy("y", 7, "");
        policy.egress.as_mut().unwrap().ipv4 = [192, 0, 2, last].into();
        policy.egress.as_mut().unwrap().ipv4_fallback = match fallback {
            0 => [0, 0, 0, 0].into(),
            last => [192, 0, 2, last].into(),
        };
        policy
    };
    for (policy, said) in [
        (named("filed"), "already"),
        (named("policy x"), "already"),
        (policy("y", 5, ""), "that of policy policy x"),
        (policy("y", 1_000, ""), "that of policy filed"),
        (leaving_by(2, 0), "192.0.2.2 is in no pool"),
        (leaving_by(9, 0), "192.0.2.9 is in no pool"),
        (leaving_by(1, 2), "192.0.2.2 is in no pool"),
        (leaving_by(1, 1), "both primary and secondary"),
        (
            policy("y", 7, "zone == \"hidden.example\""),
            "there is no zone",
        ),
        (policy("y", 7, "zone == \"z2\""), "there is no zone"),
    ] {
        let Err(PolicyError::Invalid(why)) = bench.writer().put_policy(&policy) else {
            panic!("{said}: {policy:?}");
        };
        assert!(why.contains(said), "{why}");
        assert!(!why.contains("secret") && !why.contains("other"), "{why}");
        assert_eq!(bench.stored().objects, before.objects);
        assert_eq!(asked(&bench), asked_before);
    }
}

#[test]
fn an_account_takes_its_part_of_the_tables_and_not_the_others() {
    let bench = Bench::new(TWO_ACCOUNTS);
    let ports = |count: u32| {
        let all: Vec<String> = (1..=count)
            .map(|port| format!("net.dst.port == {port}"))
            .collect();
        all.join(" or ")
    };
    // 12 percent of 1,024 rules are 122; the file's policy is one of them, and what is off counts.
    let mut off = policy("off", 1, &ports(64));
    off.enabled = false;
    bench.writer().put_policy(&off).unwrap();
    let refused = bench.writer().put_policy(&policy("more", 2, &ports(58)));
    let Err(PolicyError::Invalid(why)) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        why.contains("123 rules") && why.contains("may have 122"),
        "{why}"
    );
    bench
        .writer()
        .put_policy(&policy("more", 2, &ports(57)))
        .unwrap();
    let full = bench.writer().put_policy(&policy("last", 3, ""));
    assert!(matches!(full, Err(PolicyError::Invalid(_))), "{full:?}");
    // Another account has room, and this one may change what it has.
    let others = |id: &str, precedence, traffic: &str| Policy {
        account: "a2".into(),
        egress: None,
        ..policy(id, precedence, traffic)
    };
    bench
        .writer()
        .put_policy(&others("a", 1, &ports(64)))
        .unwrap();
    bench
        .writer()
        .put_policy(&policy("more", 2, &ports(56)))
        .unwrap();

    // The operator gives more, or less: then what there is may stay and shrink, and not grow.
    let percent = |percent: u32| {
        let with = format!("name = \"acme\", policy_percent = {percent}");
        Source::new("r.toml", TWO_ACCOUNTS.replace("name = \"acme\"", &with))
    };
    bench.writer().apply(&percent(13), false).unwrap();
    bench
        .writer()
        .put_policy(&policy("last", 3, &ports(10)))
        .unwrap();
    bench.writer().apply(&percent(1), false).unwrap();
    bench
        .writer()
        .put_policy(&policy("more", 2, &ports(50)))
        .unwrap();
    assert!(
        bench
            .writer()
            .put_policy(&policy("more", 2, &ports(51)))
            .is_err()
    );
}

#[test]
fn more_rules_than_fit_are_refused_and_those_that_are_there_stay() {
    let all = TWO_ACCOUNTS
        .replace("name = \"acme\"", "name = \"acme\", policy_percent = 100")
        .replace("name = \"other\"", "name = \"other\", policy_percent = 100");
    let bench = Bench::new(&all);
    // 64 alternatives each; the file's policy has one.
    let alternatives: Vec<String> = (1..=64)
        .map(|port| format!("net.dst.port == {port}"))
        .collect();
    let traffic = alternatives.join(" or ");
    for n in 0..15 {
        let mut full = policy(&n.to_string(), n, &traffic);
        if n % 2 == 0 {
            // The tables are everybody's.
            full.account = "a2".into();
            full.egress = None;
        }
        bench.writer().put_policy(&full).unwrap();
    }
    let before = bench.stored().objects.clone();
    for traffic in [
        traffic.as_str(),
        &format!("{traffic} or net.dst.port == 65"),
    ] {
        let refused = bench.writer().put_policy(&policy("z", 99, traffic));
        let Err(PolicyError::Invalid(why)) = refused else {
            panic!("{refused:?}");
        };
        assert!(why.contains("alternative"), "{why}");
        assert!(
            !why.contains("1025"),
            "it tells how much others have: {why}"
        );
    }
    assert_eq!(bench.stored().objects, before);
    let fits = alternatives[..63].join(" or ");
    bench.writer().put_policy(&policy("z", 99, &fits)).unwrap();
}

#[test]
fn safe_5_a_policy_that_cannot_be_put_in_force_is_not_kept() {
    let bench = Bench::new(TWO_ACCOUNTS);
    bench.writer().put_policy(&policy("x", 5, "")).unwrap();
    let before = bench.stored().objects.clone();
    bench.dataplane.0.lock().unwrap().broken = true;
    let failed = bench
        .writer()
        .put_policy(&policy("x", 6, "net.dst.port == 1"));
    assert!(matches!(failed, Err(PolicyError::Failed(_))), "{failed:?}");
    assert!(bench.writer().remove_policy("x").is_err());
    assert_eq!(bench.stored().objects, before);
    bench.dataplane.0.lock().unwrap().broken = false;
    drop(bench.service);
    let again = start(bench.directory.path(), bench.dataplane.clone()).unwrap();
    assert_eq!(again.stored().objects, before);
}
