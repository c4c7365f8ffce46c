//! A store that takes its time, or that others use as well: nobody but those who change something waits for it.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::*;
use crate::liveness::{Health, State};
use crate::resource::{Object, Zone};

/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// A real store with a gate before each commit.
struct Gated {
    store: SqliteStore,
    /// Somebody stands before the gate.
    here: Sender<()>,
    /// What becomes of the commit; nothing said in time lets nobody through.
    verdict: Receiver<Verdict>,
}

enum Verdict {
    Pass,
    Conflict,
}

impl StateStore for Gated {
    fn load(&self) -> Result<Stored, StoreError> {
        self.store.load()
    }

    fn commit_if(
        &mut self,
        changes: &[Change],
        limits: Limits,
        agrees: &mut dyn FnMut(&Stored) -> bool,
    ) -> Result<Stored, StoreError> {
        self.here.send(()).unwrap();
        match self.verdict.recv_timeout(LIMIT).unwrap() {
            Verdict::Pass => self.store.commit_if(changes, limits, agrees),
            Verdict::Conflict => Err(StoreError::Conflict),
        }
    }
}

/// A service on such a store, and both ends of its gate.
fn gated() -> (Bench, Receiver<()>, Sender<Verdict>) {
    let mut bench = Bench::new(&file(ZONE));
    bench.write(
        "egress.toml",
        "[dataplane]\nuplink = [\"up0\"]\ninside = [\"in0\"]\n[store]\nsqlite = \"egress.db\"\n",
    );
    let path = bench.directory.path().join("egress.toml");
    let (config, _) = Config::load(&path).unwrap();
    let (here, arrived) = channel();
    let (told, verdict) = channel();
    let store = Gated {
        store: SqliteStore::open(&config.store.sqlite).unwrap(),
        here,
        verdict,
    };
    let dataplane = Box::new(bench.dataplane.clone());
    bench.service = Service::start(&path, config, Box::new(store), dataplane, VIEW)
        .unwrap()
        .0;
    (bench, arrived, told)
}

fn dead(last: u8) -> Healths {
    let address = IpAddr::from(Ipv4Addr::new(198, 51, 100, last));
    let health = Health {
        state: State::Silent,
        round_trip_us: None,
    };
    Healths::from([(address, health)])
}

#[test]
fn clu_2_while_a_commit_takes_its_time_everything_else_goes_on() {
    let (bench, arrived, told) = gated();
    let (service, before) = (&bench.service, bench.stored());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let change = scope.spawn(|| {
            let applied = service
                .writer()?
                .apply(&Source::new("r.toml", file("")), false);
            done.store(true, Ordering::SeqCst);
            applied
        });
        arrived.recv_timeout(LIMIT).unwrap();
        // Looking after the hooks, the other servers' health, answers: while the commit stands before its gate.
        service.controller().dataplane_mut().repair().unwrap();
        service.controller().heard(dead(1)).unwrap();
        assert_eq!(service.stored(), before);
        assert!(service.handle(Request::Status, &mut |_| Ok(())).unwrap()["behind"].is_null());
        let follower = scope.spawn(|| service.follow());
        assert!(!done.load(Ordering::SeqCst), "it waits for its verdict");
        told.send(Verdict::Pass).unwrap();
        assert!(change.join().unwrap().unwrap().applied);
        // It came after the commit, whose outcome it found in force.
        assert!(!follower.join().unwrap().unwrap());
    });
    assert!(bench.in_force().zones.is_empty());
    assert_eq!(
        *service.controller().healths(),
        dead(1),
        "kept by the commit"
    );
}

#[test]
fn safe_5_detached_in_the_middle_of_a_commit_nothing_is_put_in_force() {
    let (bench, arrived, told) = gated();
    let service = &bench.service;
    let applied = bench.dataplane.0.lock().unwrap().applied.len();
    thread::scope(|scope| {
        let change = scope.spawn(|| {
            service
                .writer()?
                .apply(&Source::new("r.toml", file("")), false)
        });
        arrived.recv_timeout(LIMIT).unwrap();
        service.controller().detach().unwrap();
        told.send(Verdict::Pass).unwrap();
        told.send(Verdict::Pass).unwrap();
        let failure = change.join().unwrap().unwrap_err();
        assert!(failure.reason.contains("taken off"), "{failure}");
    });
    assert_eq!(bench.dataplane.0.lock().unwrap().applied.len(), applied);
}

#[test]
fn clu_1_what_another_server_made_of_a_commit_is_not_undone() {
    let (bench, _arrived, told) = gated();
    let service = &bench.service;
    bench.dataplane.0.lock().unwrap().broken = true;
    told.send(Verdict::Pass).unwrap();
    told.send(Verdict::Conflict).unwrap();
    let source = Source::new("r.toml", file(""));
    let failure = bench.writer().apply(&source, false).unwrap_err();
    assert!(
        failure.reason.contains("no memory") && failure.reason.contains("stored all the same"),
        "{failure}"
    );
    let status =
        |word: &str| service.handle(Request::Status, &mut |_| Ok(())).unwrap()[word].clone();
    assert_eq!(status("behind"), "filling maps: no memory");
    assert!(status("frozen").is_null() && service.controller().is_behind());
    assert!(service.follow().is_err());
    assert_eq!(bench.in_force().zones.len(), 1);
    bench.dataplane.0.lock().unwrap().broken = false;
    assert!(service.follow().unwrap());
    assert!(status("behind").is_null() && !service.controller().is_behind());
    assert!(bench.in_force().zones.is_empty());
}

#[test]
fn clu_1_whoever_was_too_late_is_told_so_and_has_changed_nothing() {
    let (bench, _arrived, told) = gated();
    let before = bench.stored();
    told.send(Verdict::Conflict).unwrap();
    let source = Source::new("r.toml", file(""));
    let failure = bench.writer().apply(&source, false).unwrap_err();
    assert_eq!(failure.cause, Cause::Conflict, "{failure}");
    assert_eq!(bench.stored(), before);
    assert_eq!(bench.service.controller().behind(), None);
}

#[test]
fn fwd_7_a_server_that_is_behind_follows_the_others_health_by_what_is_in_force() {
    // Of another server, whose numbers go further.
    const WIDE: Limits = Limits {
        last_zone: 1_000,
        last_pool: 1_000,
    };

    let mut bench = Bench::new(&file(ZONE));
    let narrow = "[dataplane]\nuplink = [\"up0\"]\ninside = [\"in0\"]\nmark_mask = \"0xff000000\"\n[store]\nsqlite = \"egress.db\"\n";
    bench.write("egress.toml", narrow);
    bench.service = start(bench.directory.path(), bench.dataplane.clone()).unwrap();
    let path = bench.directory.path().join("egress.db");
    let numbers = resolve::limits(bench.service.controller().config());
    let many: Vec<Change> = (0..numbers.last_zone)
        .map(|at| Change::Put {
            owner: Owner::Api,
            object: Object::Zone(Zone {
                id: format!("n{at}"),
                name: format!("n{at}.example"),
                account: "acme".into(),
                sources: vec![format!("10.{}.{}.0/24", at >> 8, at & 255).parse().unwrap()],
                marks: Vec::new(),
                cgroups: Vec::new(),
                interfaces: Vec::new(),
                require_probe: Vec::new(),
                regions: Vec::new(),
                aegis: None,
            }),
        })
        .collect();
    SqliteStore::open(&path)
        .unwrap()
        .commit(&many, WIDE)
        .unwrap();
    let service = &bench.service;
    let failure = service.follow().unwrap_err();
    let said = service.controller().behind().unwrap().to_owned();
    assert_eq!(said, failure.reason);
    assert!(said.contains("number"), "{said}");
    let applied = bench.dataplane.0.lock().unwrap().applied.len();
    service.controller().heard(dead(2)).unwrap();
    assert_eq!(bench.dataplane.0.lock().unwrap().applied.len(), applied + 1);
    assert_eq!(bench.in_force().zones.len(), 1);
    assert!(service.controller().behind().is_some());
}
