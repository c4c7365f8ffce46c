use super::*;
use crate::diagnostic::Source;
use crate::resource;
use crate::store::{Limits, SqliteStore, StateStore};

const LIMITS: Limits = Limits {
    last_zone: 100,
    last_pool: 100,
};

fn model(rest: &str) -> Resources {
    let text = format!("account = [{{ id = \"acme\" }}]\n{rest}");
    let (model, found) = resource::parse(&Source::new("r.toml", text), None);
    model.unwrap_or_else(|| panic!("{found}"))
}

const POOLS: &str = "[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"192.0.2.1\", \"192.0.2.2\"]\n[[pool]]\nid = \"b\"\naccount = \"acme\"\naddresses = [\"192.0.2.3\"]\n";

fn zone(setting: &str) -> String {
    format!(
        "{POOLS}[[zone]]\nid = \"z1\"\nname = \"shop.example\"\naccount = \"acme\"\nsources = [\"10.0.0.0/8\"]\n{setting}\n"
    )
}

fn enabled(pool: &str) -> String {
    zone(&format!(
        "aegis = {{ enabled = true, pool_id = \"{pool}\" }}"
    ))
}

/// A store in memory that `file` was applied to.
fn applied(file: &str) -> SqliteStore {
    let mut store = SqliteStore::in_memory();
    apply(&mut store, file);
    store
}

fn apply(store: &mut SqliteStore, file: &str) -> Plan {
    let (plan, conflicts) = Plan::new(&store.load().unwrap(), &model(file));
    assert!(conflicts.is_empty(), "{conflicts:?}");
    store.commit(plan.changes(), LIMITS).unwrap();
    plan
}

fn set(store: &mut SqliteStore, enabled: bool, pool: &str) {
    let aegis = Aegis {
        enabled,
        pool_id: Some(pool.into()),
    };
    let object = Object::Setting(Setting {
        zone: "z1".into(),
        aegis,
    });
    store
        .commit(
            &[Change::Put {
                owner: Owner::Api,
                object,
            }],
            LIMITS,
        )
        .unwrap();
}

#[test]
fn a_plan_prints_additions_changes_and_removals_in_a_stable_order() {
    let mut store = SqliteStore::in_memory();
    let plan = apply(&mut store, &enabled("a"));
    assert_eq!(
        plan.to_string(),
        "+ account acme\n+ pool a\n+ pool b\n+ zone shop.example"
    );
    assert!(
        apply(&mut store, &enabled("a")).is_empty(),
        "applying again changes nothing"
    );
    let changed = enabled("b").replace(
        "\"192.0.2.1\", \"192.0.2.2\"",
        "\"192.0.2.2\", \"192.0.2.9\"",
    );
    assert_eq!(
        apply(&mut store, &changed).to_string(),
        "~ pool a: addresses: -192.0.2.1 +192.0.2.9\n~ zone shop.example: aegis.pool_id: a -> b"
    );
    assert_eq!(
        apply(&mut store, "").to_string(),
        "- zone shop.example\n- pool b\n- pool a"
    );
    assert_eq!(Plan::default().to_string(), "nothing to change");
}

#[test]
fn what_the_api_owns_is_neither_changed_nor_pruned() {
    let mut store = SqliteStore::in_memory();
    let theirs = model(POOLS).pools.remove(0);
    store
        .commit(
            &[Change::Put {
                owner: Owner::Api,
                object: Object::Pool(theirs),
            }],
            LIMITS,
        )
        .unwrap();
    let (plan, conflicts) = Plan::new(&store.load().unwrap(), &model(""));
    assert!(conflicts.is_empty());
    assert_eq!(plan.to_string(), "+ account acme");
    assert_eq!(
        plan.after().pools.len(),
        1,
        "it still counts when the set is checked"
    );
    let (_, conflicts) = Plan::new(&store.load().unwrap(), &model(POOLS));
    assert_eq!(conflicts.len(), 1);
    assert_eq!(
        conflicts[0].reason,
        "pool a belongs to the API: a file cannot change it"
    );
}

#[test]
fn a_zone_without_a_setting_in_the_file_leaves_it_to_api_and_command_line() {
    let mut store = applied(&zone(""));
    set(&mut store, true, "b");
    let plan = apply(&mut store, &zone(""));
    assert!(plan.is_empty());
    assert!(plan.after().aegis(&plan.after().zones[0]).enabled);
}

#[test]
fn a_file_does_not_overrule_a_setting_of_the_command_line() {
    let mut store = applied(&zone(""));
    set(&mut store, true, "b");
    let (_, conflicts) = Plan::new(&store.load().unwrap(), &model(&enabled("a")));
    assert_eq!(conflicts.len(), 1);
    assert!(
        conflicts[0]
            .reason
            .contains("shop.example was enabled on pool b by API or command line")
    );
    assert!(
        conflicts[0]
            .remedy
            .contains("egress zone disable shop.example")
    );
}

#[test]
fn an_equal_setting_or_one_that_is_off_passes_to_the_file() {
    for (on, pool) in [(true, "a"), (false, "b")] {
        let mut store = applied(&zone(""));
        set(&mut store, on, pool);
        let plan = apply(&mut store, &enabled("a"));
        assert!(
            plan.to_string().contains("- setting of zone shop.example"),
            "{plan}"
        );
        assert!(store.load().unwrap().resources().settings.is_empty());
    }
}

#[test]
fn a_setting_that_the_file_lets_go_of_stays_as_it_is() {
    let mut store = applied(&enabled("a"));
    let plan = apply(&mut store, &zone(""));
    assert!(
        plan.to_string().contains("+ setting of zone shop.example"),
        "{plan}"
    );
    let after = store.load().unwrap().resources();
    assert!(
        after.aegis(&after.zones[0]).enabled,
        "a zone is not switched off by an omission"
    );
}

#[test]
fn a_zone_that_goes_takes_its_setting_along() {
    let mut store = applied(&zone(""));
    set(&mut store, true, "a");
    let plan = apply(&mut store, POOLS);
    assert_eq!(
        plan.to_string(),
        "- setting of zone z1 (of API and command line)\n- zone shop.example"
    );
}

#[test]
fn a_plan_is_json_too() {
    let mut store = applied(&enabled("a"));
    let json = serde_json::to_string(&apply(&mut store, &enabled("b"))).unwrap();
    assert_eq!(
        json,
        r#"{"steps":[{"action":"change","kind":"zone","id":"z1","name":"shop.example","fields":[{"field":"aegis.pool_id","from":"a","to":"b"}]}]}"#
    );
}
