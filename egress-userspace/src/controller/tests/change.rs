//! Changes by API: judged with what the file says, made wholly or not at all.

use super::*;
use crate::resource::{Drain, Lease, Object, Pool, PoolKind, PoolUse};

fn put(object: Object) -> Change {
    Change::Put {
        owner: Owner::Api,
        object,
    }
}

fn lease(address: &str, account: &str) -> Change {
    put(Object::Lease(Lease {
        address: address.parse().unwrap(),
        account: account.into(),
    }))
}

fn pool(id: &str, address: &str) -> Change {
    put(Object::Pool(Pool {
        id: id.into(),
        name: None,
        account: "acme".into(),
        kind: Some(PoolKind::Leased),
        addresses: vec![address.parse().unwrap()],
        draining: Vec::new(),
        connections_per_origin: 100,
        used_for: PoolUse::Cdn,
        allow_empty: false,
        made: true,
    }))
}

#[test]
fn a_change_holds_at_once_and_outlives_the_file() {
    let bench = Bench::new(&file(ZONE));
    let drain = put(Object::Drain(Drain {
        subject: "made".into(),
    }));
    bench
        .writer()
        .change(
            "acme",
            &[lease("192.0.2.7", "acme"), pool("made", "192.0.2.7"), drain],
        )
        .unwrap();
    assert_eq!(bench.in_force().pools.len(), 2);
    let made = bench.stored();
    let applied = bench
        .writer()
        .apply(&Source::new("r.toml", file("")), false)
        .unwrap();
    assert_eq!(applied.plan.to_string(), "- zone shop.example");
    let resources = bench.stored().resources();
    assert_eq!(resources.leases, made.resources().leases);
    assert!(resources.pool("made").is_some() && resources.drains.contains("made"));
    drop(bench.service);
    let again = start(bench.directory.path(), bench.dataplane.clone()).unwrap();
    assert!(again.stored().resources().pool("made").is_some());
}

#[test]
fn a_change_is_judged_with_all_there_is_and_made_wholly_or_not() {
    let bench = Bench::new(&file(ZONE));
    let before = bench.stored();
    for (changes, why) in [
        (
            vec![lease("192.0.2.7", "acme"), pool("b", "192.0.2.1")],
            "POOL-4",
        ),
        (vec![lease("192.0.2.1", "nobody")], "no account"),
        (
            vec![
                lease("192.0.2.7", "acme"),
                lease("2001:db8::/64", "acme"),
                lease("2001:db8::1", "acme"),
            ],
            "leased already",
        ),
        (vec![pool("own", OWN)], "configured on interface up0"),
    ] {
        let account = if why == "no account" {
            "nobody"
        } else {
            "acme"
        };
        let error = bench.writer().change(account, &changes).unwrap_err();
        assert!(
            matches!(&error, ChangeError::Invalid(failure) if failure.reason.contains(why)),
            "{error:?}"
        );
        assert_eq!(bench.stored(), before);
    }
    bench.dataplane.0.lock().unwrap().broken = true;
    let error = bench.writer().change("acme", &[pool("b", "192.0.2.7")]);
    assert!(matches!(error, Err(ChangeError::Failed(_))), "{error:?}");
    // The number that was given is nobody else's for now.
    assert_eq!(bench.stored().objects, before.objects);
    let kept = bench.writer().store.load().unwrap();
    assert_eq!(kept, *bench.stored());
}

#[test]
fn pool_4_an_address_that_is_leased_to_one_account_is_in_no_other_ones_pool() {
    let accounts = "account = [{ id = \"acme\" }, { id = \"other\" }]";
    let both = file("").replace("account = [{ id = \"acme\" }]", accounts);
    let bench = Bench::new(&both);
    bench
        .writer()
        .change("acme", &[lease("192.0.2.7", "other")])
        .unwrap();
    let error = bench
        .writer()
        .change("acme", &[pool("b", "192.0.2.7")])
        .unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("what another account has is in the way") && !error.contains("other\""),
        "{error}"
    );
    let taken = both.replace("192.0.2.1", "192.0.2.7");
    let failure = bench.writer().apply(&Source::new("r.toml", taken), false);
    assert!(
        failure
            .unwrap_err()
            .to_string()
            .contains("leased to another account")
    );
}

/// Two accounts' pools of one name are two pools: names of those that were made here are no references.
#[test]
fn a_name_that_another_account_uses_is_no_secret_to_be_found_out() {
    let accounts = "account = [{ id = \"acme\" }, { id = \"other\" }]";
    let both = file("").replace("account = [{ id = \"acme\" }]", accounts);
    let bench = Bench::new(&both);
    let named = |id: &str, account: &str, address: &str| {
        let Change::Put {
            object: Object::Pool(pool),
            ..
        } = pool(id, address)
        else {
            unreachable!()
        };
        put(Object::Pool(Pool {
            name: Some("same".into()),
            account: account.into(),
            ..pool
        }))
    };
    for (id, account, address) in [("b", "acme", "192.0.2.7"), ("c", "other", "192.0.2.8")] {
        bench
            .writer()
            .change(
                account,
                &[lease(address, account), named(id, account, address)],
            )
            .unwrap();
    }
    let resources = bench.writer().stored().resources();
    assert!(resources.pool("same").is_none() && resources.pool("c").is_some());
}

/// A prefix of an account's own has addresses for all tables; what it takes of them is bounded, and others find room.
#[test]
fn one_account_cannot_use_the_tables_up() {
    let accounts = r#"account = [{ id = "acme", pool_percent = 1 }, { id = "other" }]
prefix = [
    { cidr = "2001:db8:a::/48", account = "acme" },
    { cidr = "2001:db8:b::/48", account = "other" },
]"#;
    let with = |accounts: &str| file("").replace("account = [{ id = \"acme\" }]", accounts);
    let bench = Bench::new(&with(accounts));
    // 655 of 65,536; at most 256 a pool.
    let of = |account: &str, id: usize, count: usize| {
        let letter = if account == "acme" { 'a' } else { 'b' };
        put(Object::Pool(Pool {
            id: format!("{account}{id}"),
            name: None,
            account: account.into(),
            kind: Some(PoolKind::Byoip),
            addresses: (0..count)
                .map(|n| format!("2001:db8:{letter}:{id:x}::{n:x}").parse().unwrap())
                .collect(),
            draining: Vec::new(),
            connections_per_origin: 100,
            used_for: PoolUse::Cdn,
            allow_empty: false,
            made: true,
        }))
    };
    let change = |change: Change| {
        let account = match &change {
            Change::Put {
                object: Object::Pool(pool),
                ..
            } => pool.account.clone(),
            other => panic!("{other:?}"),
        };
        bench.writer().change(&account, &[change])
    };
    change(of("acme", 1, 256)).unwrap();
    change(of("acme", 2, 256)).unwrap();
    let before = bench.stored();
    let Err(ChangeError::Invalid(why)) = change(of("acme", 3, 144)) else {
        panic!("656 addresses");
    };
    assert!(
        why.reason
            .contains("would have 656 IPv6 addresses and ranges in pools, and 655 may be made")
            && why.reason.contains("pool_percent"),
        "{why}"
    );
    assert_eq!(bench.stored(), before);
    change(of("acme", 3, 143)).unwrap();
    // Whoever else there is has room of its own: by default for 7,864.
    for id in 0..3 {
        change(of("other", id, 256)).unwrap();
    }
    // With less than it has it may change and shrink, and not grow.
    let less = Source::new(
        "r.toml",
        with(accounts).replace("pool_percent = 1", "pool_percent = 0"),
    );
    bench.writer().apply(&less, false).unwrap();
    change(of("acme", 3, 142)).unwrap();
    assert!(change(of("acme", 3, 143)).is_err());
    assert!(change(of("acme", 4, 1)).is_err());
    // More than all of it is promised: that is said.
    let all = with(accounts).replace("id = \"other\"", "id = \"other\", pool_percent = 100");
    let applied = bench
        .writer()
        .apply(&Source::new("r.toml", all), false)
        .unwrap();
    let warnings = applied.warnings.to_string();
    assert!(
        warnings.contains("promised 101 percent of the tables for egress IPs"),
        "{warnings}"
    );
}
