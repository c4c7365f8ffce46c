//! What every store must show, whatever keeps the bytes.

use super::{Change, Limits, StateStore, StoreError};
use crate::ownership::{Row, Step};
use crate::resource::{
    Account, Aegis, Kind, Object, Owner, Prefix, Registration, Service, Setting, Zone,
};

const WIDE: Limits = Limits {
    last_zone: 100,
    last_pool: 100,
};

fn account(id: &str) -> Object {
    Object::Account(Account {
        id: id.into(),
        name: id.into(),
        egress_tcp: true,
        egress_udp: false,
        policy_percent: None,
        pool_percent: None,
    })
}

fn zone(id: &str) -> Object {
    Object::Zone(Zone {
        id: id.into(),
        name: id.into(),
        account: "a".into(),
        sources: vec!["10.0.0.0/8".parse().unwrap()],
        marks: vec!["0x50/0xf0".parse().unwrap()],
        cgroups: Vec::new(),
        interfaces: Vec::new(),
        regions: Vec::new(),
        require_probe: Vec::new(),
        aegis: None,
    })
}

/// One that is announced is stored as before there was a choice.
fn prefix(withdrawn: bool) -> Object {
    Object::Prefix(Prefix {
        cidr: "198.51.100.0/24".parse().unwrap(),
        account: "a".into(),
        delegated_to: Vec::new(),
        service: Service::CdnEgress,
        withdrawn,
        registration: Some(Registration {
            asn: 64_500,
            advertised_modified: withdrawn.then_some(7),
            ..Registration::default()
        }),
    })
}

fn put(object: Object) -> Change {
    Change::Put {
        owner: Owner::File,
        object,
    }
}

fn remove(kind: Kind, id: &str) -> Change {
    Change::Remove {
        kind,
        id: id.into(),
    }
}

pub(super) fn keeps_what_was_committed(store: &mut dyn StateStore) {
    let setting = Object::Setting(Setting {
        zone: "z".into(),
        aegis: Aegis {
            enabled: true,
            pool_id: Some("p".into()),
        },
    });
    let changes = [
        put(account("a")),
        put(zone("z")),
        Change::Put {
            owner: Owner::Api,
            object: setting.clone(),
        },
    ];
    store.commit(&changes, WIDE).unwrap();
    let stored = store.load().unwrap();
    assert_eq!(stored.objects.len(), 3);
    assert_eq!(
        stored.objects[&(Kind::Zone, "z".into())],
        (Owner::File, zone("z"))
    );
    assert_eq!(
        stored.objects[&(Kind::Setting, "z".into())],
        (Owner::Api, setting)
    );
    assert!(stored.resources().settings["z"].enabled);
    for withdrawn in [true, false] {
        let change = Change::Put {
            owner: Owner::Api,
            object: prefix(withdrawn),
        };
        store.commit(&[change], WIDE).unwrap();
        let stored = store.load().unwrap();
        assert_eq!(
            stored.objects[&(Kind::Prefix, "198.51.100.0/24".into())],
            (Owner::Api, prefix(withdrawn))
        );
    }
    let before = serde_json::to_string(&prefix(false)).unwrap();
    assert!(
        !before.contains("withdrawn") && !before.contains("advertised"),
        "{before}"
    );
}

/// A store that servers share makes a step on top of what it was made from, once; one that is a server's own makes none.
pub(super) fn hands_over_what_nobody_else_has_changed(store: &mut dyn StateStore) {
    store.commit(&[put(account("a"))], WIDE).unwrap();
    let address = "192.0.2.10".parse().unwrap();
    let row = |before: Option<&Row>, after: &Row| Step::Row {
        address,
        before: before.cloned(),
        after: after.clone(),
        fenced: Default::default(),
    };
    let first = Row::first(&[("s1", 0xff00), ("s2", 0xff)]);
    let made = store.hand_over(&[row(None, &first)]);
    let Some(stored) = store.load().unwrap().ownership else {
        assert!(matches!(made, Err(StoreError::NotShared)), "{made:?}");
        return;
    };
    made.unwrap();
    assert_eq!(stored.rows[&address], first);
    let again = store.hand_over(&[row(None, &first)]);
    assert!(matches!(again, Err(StoreError::Conflict)), "{again:?}");
    let moving = first.given(&[("s2", 0xffff)]).unwrap();
    let moved = moving.released("s1", 0xff00).unwrap();
    store.hand_over(&[row(Some(&first), &moving)]).unwrap();
    // Of two steps one was made from another row: neither is made.
    store.load().unwrap();
    let fence = store.load().unwrap().ownership.unwrap().fence("s3", 7);
    let both = store.hand_over(&[fence.clone(), row(Some(&first), &moved)]);
    assert!(matches!(both, Err(StoreError::Conflict)), "{both:?}");
    assert!(!store.load().unwrap().ownership.unwrap().is_fenced("s3"));
    store
        .hand_over(&[row(Some(&moving), &moved), fence])
        .unwrap();
    let stored = store.load().unwrap().ownership.unwrap();
    assert_eq!(stored.rows[&address], moved);
    assert_eq!(stored.open("s2", address), 0xfffe);
    assert!(stored.is_fenced("s3"));
    // What is configured meanwhile has nothing to do with it.
    store.commit(&[put(account("b"))], WIDE).unwrap();
    store
        .hand_over(&[stored.may_return("s3").unwrap()])
        .unwrap();
    assert!(!store.load().unwrap().ownership.unwrap().is_fenced("s3"));
}

pub(super) fn removes_what_was_removed(store: &mut dyn StateStore) {
    store
        .commit(&[put(account("a")), put(account("b"))], WIDE)
        .unwrap();
    store
        .commit(
            &[remove(Kind::Account, "a"), remove(Kind::Account, "never")],
            WIDE,
        )
        .unwrap();
    let stored = store.load().unwrap();
    assert_eq!(
        stored.objects.keys().cloned().collect::<Vec<_>>(),
        [(Kind::Account, "b".into())]
    );
}

pub(super) fn numbers_are_stable_and_reused_last(store: &mut dyn StateStore) {
    let limits = Limits {
        last_zone: 4,
        last_pool: 4,
    };
    let number =
        |store: &mut dyn StateStore, id: &str| store.load().unwrap().numbers.zones.get(id).copied();
    for id in ["a", "b", "c"] {
        store.commit(&[put(zone(id))], limits).unwrap();
    }
    store.commit(&[remove(Kind::Zone, "b")], limits).unwrap();
    store.commit(&[remove(Kind::Zone, "a")], limits).unwrap();
    store.commit(&[put(zone("d"))], limits).unwrap();
    assert_eq!(
        number(store, "d"),
        Some(4),
        "a fresh number while there is one"
    );
    store.commit(&[put(zone("a"))], limits).unwrap();
    assert_eq!(
        number(store, "a"),
        Some(1),
        "an object that comes back gets its old number"
    );
    store.commit(&[put(zone("e"))], limits).unwrap();
    assert_eq!(
        number(store, "e"),
        Some(2),
        "then the number that was released first"
    );
    assert_eq!(number(store, "b"), None);
    assert!(matches!(
        store.commit(&[put(zone("f"))], limits),
        Err(StoreError::Exhausted {
            noun: "zone",
            last: 4
        })
    ));
    store.commit(&[put(zone("a"))], limits).unwrap();
    assert_eq!(
        number(store, "a"),
        Some(1),
        "changing an object keeps its number"
    );
}

pub(super) fn a_commit_that_fails_changes_nothing(store: &mut dyn StateStore) {
    let limits = Limits {
        last_zone: 1,
        last_pool: 1,
    };
    store.commit(&[put(zone("a"))], limits).unwrap();
    let before = store.load().unwrap();
    store
        .commit(
            &[
                remove(Kind::Zone, "never"),
                put(account("x")),
                put(zone("b")),
            ],
            limits,
        )
        .unwrap_err();
    assert_eq!(store.load().unwrap(), before);
}
