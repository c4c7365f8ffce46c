//! POOL-10: what a zone requires to be probed, is probed before it is enabled by API or command line.

use std::sync::Mutex;

use super::*;
use crate::controller::{SettingError, probing::RunProbes};
use crate::probe::{Each, Outcome, ProbeRecord, Task};

const ORIGINS: &str = "require_probe = [\"198.51.100.10:443\", \"198.51.100.11:443\"]\n";

/// What was probed, and whether origins let pools in: of one thread.
struct Origins {
    tasks: Vec<Task>,
    outcome: Outcome,
}

thread_local! {
    static STATE: Mutex<Origins> = const {
        Mutex::new(Origins { tasks: Vec::new(), outcome: Outcome::Connected })
    };
}

const PROBES: RunProbes = |_: &Config, task: &Task, each: Each<'_>| {
    let outcome = STATE.with(|state| {
        let mut state = state.lock().unwrap();
        state.tasks.push(task.clone());
        state.outcome
    });
    for origin in &task.origins {
        each(ProbeRecord {
            origin: *origin,
            address: "192.0.2.10".parse().unwrap(),
            egress_ip: None,
            outcome,
            ms: None,
            detail: None,
        });
    }
    Ok(())
};

fn service(rest: &str) -> (Service, tempfile::TempDir) {
    let bench = Bench::new(&file(&format!("{ZONE}{rest}")));
    let mut service = bench.service;
    service.run_probes = PROBES;
    (service, bench.directory)
}

fn answer(outcome: Outcome) {
    STATE.with(|state| state.lock().unwrap().outcome = outcome);
}

/// How many tasks there were since the last time somebody asked, and the last one.
fn tasks() -> (usize, Option<Task>) {
    STATE.with(|state| {
        let mut tasks = std::mem::take(&mut state.lock().unwrap().tasks);
        (tasks.len(), tasks.pop())
    })
}

fn set(service: &Service, enabled: bool, force: bool) -> Result<ZoneRecord, Failure> {
    let request = Request::ZoneSet {
        zone: "z1".into(),
        enabled,
        pool: enabled.then(|| "a".into()),
        force,
    };
    let answer = service.handle(request, &mut |_| Ok(()))?;
    Ok(serde_json::from_value(answer).unwrap())
}

#[test]
fn pool_10_a_zone_is_enabled_only_when_its_origins_let_the_pool_in() {
    let (service, _directory) = service(ORIGINS);
    answer(Outcome::TimedOut);
    let failure = set(&service, true, false).unwrap_err();
    assert_eq!(
        failure.reason,
        "zone shop.example stays as it is: 198.51.100.10:443 does not let in 192.0.2.10: timed out; \
         198.51.100.11:443 does not let in 192.0.2.10: timed out"
    );
    let (count, task) = tasks();
    let task = task.unwrap();
    assert_eq!((count, task.name.as_str(), task.origins.len()), (1, "a", 2));
    let off = set(&service, false, false).unwrap();
    assert!(!off.enabled);

    answer(Outcome::Connected);
    assert!(set(&service, true, false).unwrap().enabled);
    assert_eq!(tasks().0, 1);
    // It is enabled: nothing changes, so nobody is asked.
    answer(Outcome::Refused);
    assert!(set(&service, true, false).unwrap().enabled);
    // Nor are they for switching it off.
    assert!(!set(&service, false, false).unwrap().enabled);
    assert_eq!(tasks().0, 0);
    // Who insists has it so.
    assert!(set(&service, true, true).unwrap().enabled);
    assert_eq!(tasks().0, 0);
}

#[test]
fn pool_10_addresses_that_all_drain_have_shown_nothing() {
    let (service, _directory) = service(ORIGINS);
    answer(Outcome::Draining);
    let failure = set(&service, true, false).unwrap_err();
    assert!(failure.reason.contains("pool a drain"), "{failure}");
}

#[test]
fn pool_10_zones_that_require_nothing_are_not_probed() {
    let (service, _directory) = service("");
    answer(Outcome::Refused);
    assert!(set(&service, true, false).unwrap().enabled);
    assert_eq!(tasks().0, 0);
}

#[test]
fn pool_10_what_was_probed_must_be_what_is_needed() {
    let (service, _directory) = service(ORIGINS);
    answer(Outcome::Connected);
    // Each time the change is tried, the pool is another one.
    let mut round = 0;
    let changed = service.permitted(Permit::None, |writer, permit| {
        round += 1;
        let pools = format!(
            "account = [{{ id = \"acme\" }}]\n[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"192.0.2.{round}\"]\n{ZONE}{ORIGINS}"
        );
        writer.apply(&Source::new("r.toml", pools), false).unwrap();
        writer.zone_set("z1", true, Some("a"), permit)
    });
    let error = changed.unwrap_err();
    assert!(
        matches!(&error, SettingError::Failed(failure) if failure.reason.contains("the pool changes")),
        "{error:?}"
    );
    assert_eq!(round, 3);
}
