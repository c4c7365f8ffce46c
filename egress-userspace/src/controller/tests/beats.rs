//! Signs of life (CLU-3, `takeover_after`): what is told to the data plane when, whatever the store answers.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use super::*;
use crate::ownership::tests::make;
use crate::ownership::{Ownership, Promise, Row, Step};
use crate::store::Pulse;

const SECOND: u64 = 1_000_000_000;
/// Its only egress IP.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Who owns what, as etcd has it.
#[derive(Default)]
struct Etcd {
    ownership: Ownership,
    beats: BTreeMap<String, String>,
    /// What was sent, under which promise, and the data plane's time then.
    sent: Vec<(Promise, u64)>,
    fenced: Vec<Step>,
    answer: Answer,
    /// The server shares nothing any more.
    given_up: bool,
    /// It can be read, and takes nothing.
    full: bool,
}

/// What becomes of what is sent.
#[derive(Clone, Copy, Default)]
enum Answer {
    #[default]
    Taken,
    /// It is taken, and nobody hears of it.
    Lost,
    /// There is no way there.
    Away,
}

/// A store that servers share, and the place where they say that they are there.
#[derive(Clone)]
struct Shared {
    etcd: Arc<Mutex<Etcd>>,
    dataplane: Fake,
}

impl Shared {
    fn unavailable() -> StoreError {
        StoreError::Unavailable {
            store: "etcd".into(),
            reason: "it does not answer".to_owned(),
        }
    }
}

struct Store(SqliteStore, Shared);

impl StateStore for Store {
    fn load(&self) -> Result<Stored, StoreError> {
        let mut stored = self.0.load()?;
        let etcd = self.1.etcd.lock().unwrap();
        stored.ownership = (!etcd.given_up).then(|| etcd.ownership.clone());
        Ok(stored)
    }

    fn commit_if(
        &mut self,
        changes: &[Change],
        limits: Limits,
        agrees: &mut dyn FnMut(&Stored) -> bool,
    ) -> Result<Stored, StoreError> {
        self.0.commit_if(changes, limits, agrees)?;
        self.load()
    }

    fn hand_over(&mut self, steps: &[Step]) -> Result<(), StoreError> {
        let all = &mut self.1.etcd.lock().unwrap().ownership;
        let made = steps.iter().all(|step| make(all, step));
        if !made {
            return Err(StoreError::Conflict);
        }
        Ok(())
    }

    fn pulse(&self) -> Option<Arc<dyn Pulse>> {
        Some(Arc::new(self.1.clone()))
    }
}

impl Pulse for Shared {
    fn beat(&self, server: &str, promise: Promise, mark: Option<i64>) -> Result<(), StoreError> {
        let lapse = self.dataplane.0.lock().unwrap().lapse;
        let mut etcd = self.etcd.lock().unwrap();
        if matches!(etcd.answer, Answer::Away) {
            return Err(Self::unavailable());
        }
        let is = etcd.ownership.promises.get(server);
        if is != Some(&promise) || etcd.ownership.forgotten.get(server).copied() != mark {
            return Err(StoreError::Conflict);
        }
        etcd.sent.push((promise, lapse));
        let beat = promise.beat(etcd.sent.len() as u64);
        etcd.beats.insert(server.to_owned(), beat);
        match etcd.answer {
            Answer::Taken => Ok(()),
            _ => Err(Self::unavailable()),
        }
    }

    fn beats(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let etcd = self.etcd.lock().unwrap();
        match etcd.answer {
            Answer::Taken => Ok(etcd.beats.clone()),
            _ => Err(Self::unavailable()),
        }
    }

    fn take_over(&self, step: &Step) -> Result<(), StoreError> {
        let mut etcd = self.etcd.lock().unwrap();
        if etcd.full {
            return Err(Self::unavailable());
        }
        etcd.fenced.push(step.clone());
        Ok(())
    }
}

/// A server that shares everything with others, and promises what its configuration says.
struct Life {
    bench: Bench,
    etcd: Arc<Mutex<Etcd>>,
}

fn sections(takeover_after: &str) -> String {
    format!(
        "[dataplane]\nuplink = [\"up0\"]\n[resources]\nfile = \"r.toml\"\n[store]\nsqlite = \"egress.db\"\n\
         [server]\nname = \"s1\"\n[handover]\n{takeover_after}\n"
    )
}

impl Life {
    fn begin() -> Self {
        let mut bench = Bench::new(&file(ZONE));
        bench.write("egress.toml", &sections("takeover_after = 3600"));
        let etcd = Arc::new(Mutex::new(Etcd::default()));
        {
            let ownership = &mut etcd.lock().unwrap().ownership;
            let row = Row::first(&[("s1", 0xff00), ("s2", 0x00fe)]);
            ownership.rows.insert(ADDRESS, row);
        }
        bench.dataplane = Fake::default();
        bench.dataplane.0.lock().unwrap().now = 1_000 * SECOND;
        bench.service = Self::daemon(&bench, &etcd);
        let life = Self { bench, etcd };
        life.hand_over();
        life
    }

    fn daemon(bench: &Bench, etcd: &Arc<Mutex<Etcd>>) -> Service {
        let path = bench.directory.path().join("egress.toml");
        let (config, _) = Config::load(&path).unwrap();
        let store = SqliteStore::open(&config.store.sqlite).unwrap();
        let dataplane = bench.dataplane.clone();
        let shared = Shared {
            etcd: Arc::clone(etcd),
            dataplane: dataplane.clone(),
        };
        let store = Box::new(Store(store, shared));
        let started = Service::start(&path, config, store, Box::new(dataplane), VIEW);
        started.unwrap().0
    }

    /// As the daemon does each second.
    fn hand_over(&self) {
        if self.bench.service.controller().has_to_hand_over() {
            self.bench.service.hand_over().unwrap();
        }
    }

    fn etcd(&self) -> std::sync::MutexGuard<'_, Etcd> {
        self.etcd.lock().unwrap()
    }

    fn plane(&self) -> std::sync::MutexGuard<'_, FakeState> {
        self.bench.dataplane.0.lock().unwrap()
    }

    /// From when on nothing is used, s.
    fn lapse(&self) -> u64 {
        self.plane().lapse / SECOND
    }

    fn at(&self, second: u64) {
        self.plane().now = second * SECOND;
    }

    fn pulse(&self) -> bool {
        self.bench.service.pulse().is_ok()
    }

    fn set(&self, takeover_after: &str) {
        self.bench.write("egress.toml", &sections(takeover_after));
        self.bench.service.reload().unwrap();
        self.hand_over();
    }

    /// The other server, which has promised something, says that it is there, and nothing more; this one promises nothing.
    fn other_falls_silent(&self) -> Promise {
        self.set("");
        let promise = Promise {
            version: 1,
            after: 60_000,
        };
        {
            let mut etcd = self.etcd();
            etcd.ownership.promises.insert("s2".to_owned(), promise);
            etcd.beats.insert("s2".to_owned(), promise.beat(1));
        }
        self.bench.service.follow().unwrap();
        promise
    }

    /// Whether it opens anything.
    fn is_open(&self) -> bool {
        let desired = self.bench.in_force();
        let mut all = desired.pools.iter().flat_map(|pool| &pool.candidates);
        all.any(|candidate| !candidate.draining)
    }
}

#[test]
fn clu_3_the_data_plane_stops_in_time_whatever_becomes_of_a_sign_of_life() {
    let life = Life::begin();
    assert_eq!(life.lapse(), 0, "nobody counts yet");
    assert!(life.pulse());
    assert_eq!(life.lapse(), 1_000 + 2_700);
    // The next one is due after a sixth of the time.
    life.at(1_500);
    assert!(life.pulse());
    assert_eq!(life.lapse(), 3_700);
    life.at(1_600);
    assert!(life.pulse());
    assert_eq!(life.lapse(), 1_600 + 2_700);

    // Who does not hear that it was taken goes on as before.
    life.at(2_200);
    for answer in [Answer::Away, Answer::Lost] {
        life.etcd().answer = answer;
        assert!(!life.pulse());
        assert_eq!(life.lapse(), 4_300);
        life.at(2_210);
    }

    // Less time than before, by a sign of life that is taken without this server's knowing.
    life.etcd().answer = Answer::Taken;
    life.set("takeover_after = 40");
    life.etcd().answer = Answer::Lost;
    assert!(!life.pulse());
    let (promise, stops) = *life.etcd().sent.last().unwrap();
    assert_eq!(promise.after, 40_000);
    assert_eq!(stops / SECOND, 2_210 + 30, "before it was sent");
    assert_eq!(life.lapse(), 2_210 + 30);
    life.etcd().answer = Answer::Away;
    for second in [2_220, 2_230, 2_239] {
        life.at(second);
        assert!(!life.pulse());
        assert!(!life.bench.service.controller().has_lapsed());
    }
    assert!(life.is_open());

    // New connections go to others meanwhile.
    life.at(2_240);
    assert!(!life.pulse());
    assert!(life.bench.service.controller().has_lapsed());
    life.bench.service.controller().follow_lapse().unwrap();
    assert!(!life.is_open());
    life.etcd().answer = Answer::Taken;
    life.at(2_250);
    assert!(life.pulse());
    assert_eq!(life.lapse(), 2_280);
    assert!(life.is_open(), "nobody has taken anything");
    let held = life.etcd().ownership.held("s1", ADDRESS);
    assert_eq!(held, 0xff00);

    // Nobody takes over any more.
    life.set("");
    assert_eq!(life.lapse(), 0);
    life.at(9_000);
    assert!(life.pulse() && life.is_open());
}

#[test]
fn clu_3_after_a_boot_nothing_is_used_before_a_sign_of_life_was_taken() {
    let mut life = Life::begin();
    assert!(life.pulse());
    life.plane().lapse = 0;
    life.etcd().answer = Answer::Away;
    life.bench.service = Life::daemon(&life.bench, &life.etcd);
    assert_eq!(life.plane().lapse, 1);
    // Not before it has looked what is left of what it may have had.
    assert!(life.pulse() && !life.is_open());
    life.hand_over();
    assert!(!life.pulse() && !life.is_open());
    life.etcd().answer = Answer::Taken;
    life.at(1_002);
    assert!(life.pulse() && life.is_open());
    assert_eq!(life.lapse(), 1_002 + 2_700);
}

#[test]
fn clu_3_what_was_lost_has_ended_and_rested_before_anything_is_used_again() {
    let life = Life::begin();
    assert!(life.pulse());
    // Cut off, while its operator has it promise nothing any more; others take over first.
    life.at(4_000);
    let row = life.etcd().ownership.rows[&ADDRESS].clone();
    {
        let ownership = &mut life.etcd().ownership;
        ownership.forgotten.insert("s1".to_owned(), 7);
        let row = row.without("s1").unwrap();
        ownership
            .rows
            .insert(ADDRESS, row.given(&[("s2", 0xfffe)]).unwrap());
    }
    life.plane().occupied = Slices::from([(ADDRESS, 0x0300)]);
    life.bench.write("egress.toml", &sections(""));
    life.bench.service.reload().unwrap();
    life.bench.service.follow().unwrap();
    let ended = life.plane().ended.clone();
    let (slices, stopped) = ended.last().unwrap();
    assert_eq!(slices[&ADDRESS] & 0xff00, 0xff00);
    assert_eq!(*stopped, 3_700 * SECOND, "stopped while they were ended");
    // What rests keeps it from coming back, and from being used.
    for second in 4_001..4_005 {
        life.at(second);
        life.plane().now = second * SECOND;
        life.bench.service.controller().next_look = None;
        life.hand_over();
        assert!(life.pulse());
        assert_eq!(life.lapse(), 3_700);
        assert!(life.etcd().ownership.is_fenced("s1"));
        assert_eq!(
            life.etcd().ownership.promised("s1").unwrap().after,
            3_600_000
        );
    }
    life.plane().occupied.clear();
    life.bench.service.controller().next_look = None;
    for _ in 0..4 {
        life.hand_over();
    }
    assert!(!life.etcd().ownership.is_fenced("s1"));
    assert_eq!(life.etcd().ownership.promised("s1"), None);
    assert_eq!(life.lapse(), 0, "nobody takes over from it any more");
}

/// The data plane of a server that has another name by now, and has promised nothing under it.
#[test]
fn clu_3_what_another_name_had_is_not_used_before_it_has_rested() {
    let mut life = Life::begin();
    assert!(life.pulse());
    life.plane().occupied = Slices::from([(ADDRESS, 0x0300)]);
    let renamed = sections("").replace("\"s1\"", "\"s3\"");
    life.bench.write("egress.toml", &renamed);
    life.bench.service = Life::daemon(&life.bench, &life.etcd);
    life.hand_over();
    assert_eq!(life.lapse(), 3_700);
    life.plane().occupied.clear();
    life.bench.service.controller().next_look = None;
    life.hand_over();
    assert_eq!(life.lapse(), 0);
}

/// What it passes on itself it has let go of: it is heard of meanwhile.
#[test]
fn clu_3_a_server_that_passes_slices_on_is_heard_of() {
    let life = Life::begin();
    assert!(life.pulse());
    let row = life.etcd().ownership.rows[&ADDRESS].clone();
    let leaving = row.given(&[("s2", 0xfffe)]).unwrap();
    life.etcd().ownership.rows.insert(ADDRESS, leaving);
    life.bench.service.follow().unwrap();
    for second in (1_600..4_000).step_by(600) {
        life.at(second);
        // One after the other.
        life.plane().occupied = Slices::from([(ADDRESS, 0xff00 << (second / 600))]);
        life.bench.service.controller().next_look = None;
        life.hand_over();
        assert!(life.pulse());
        assert_eq!(life.lapse(), second + 2_700);
    }
    let held = life.etcd().ownership.held("s1", ADDRESS);
    assert!(held != 0xff00 && held != 0, "{held:#x}");
}

/// Nobody hears of a server that shares nothing: there is nothing to be done, for ever.
#[test]
fn a_server_of_its_own_has_nothing_to_say() {
    let bench = Bench::new(&file(ZONE));
    bench.service.pulse().unwrap();
    assert!(bench.service.until_pulse() >= std::time::Duration::from_secs(10));
}

/// Another host was this server, and has promised something that it does not keep any more.
#[test]
fn clu_3_who_takes_a_name_uses_nothing_before_a_sign_of_life_was_taken() {
    let life = Life::begin();
    life.set("");
    let other = crate::ownership::Impostor {
        server: "s1".to_owned(),
        own: crate::ownership::Host::default(),
        other: None,
    };
    life.etcd().ownership.impostor = Some(other);
    life.bench.service.follow().unwrap();
    assert!(!life.is_open());
    let promise = Promise {
        version: 9,
        after: 60_000,
    };
    {
        let all = &mut life.etcd().ownership;
        all.promises.insert("s1".to_owned(), promise);
        all.impostor = None;
    }
    life.bench.service.follow().unwrap();
    assert_eq!(life.plane().lapse, 1);
    assert!(!life.is_open());
    life.hand_over();
    assert!(life.pulse());
    life.bench.service.controller().follow_lapse().unwrap();
    assert!(life.is_open());
}

/// Others have what it had by now, for all that it knows.
#[test]
fn clu_3_who_gives_etcd_up_does_not_go_on_for_that() {
    let mut life = Life::begin();
    assert!(life.pulse());
    life.etcd().given_up = true;
    life.bench.service = Life::daemon(&life.bench, &life.etcd);
    life.hand_over();
    assert_eq!(life.lapse(), 3_700);
}

/// A store that is full takes no sign of life of anybody: that nobody was heard of says nothing.
#[test]
fn clu_3_a_store_that_takes_nothing_is_no_witness() {
    let life = Life::begin();
    life.etcd().full = true;
    life.other_falls_silent();
    let mut refused = 0;
    for second in 0..200 {
        life.at(2_000 + second);
        refused += u32::from(!life.pulse());
    }
    assert!(
        (2..=4).contains(&refused),
        "{refused} take-overs were tried"
    );
    life.etcd().full = false;
    // As soon as it takes something, who is there has its time to say so.
    for second in 200..230 {
        life.at(2_000 + second);
        assert!(life.pulse());
    }
    assert_eq!(life.etcd().fenced, []);
}

#[test]
fn clu_3_others_are_watched_by_who_has_promised_nothing_too() {
    let life = Life::begin();
    let promise = life.other_falls_silent();
    for second in 0..70 {
        life.at(2_000 + second);
        assert!(life.pulse());
        let found = !life.etcd().fenced.is_empty();
        assert!(!found || second >= 60, "after {second} s");
    }
    let fenced = life.etcd().fenced.clone();
    let Some(Step::Forgotten {
        server,
        silence: Some(silence),
        ..
    }) = fenced.first()
    else {
        panic!("{fenced:?}");
    };
    assert_eq!(server, "s2");
    assert_eq!(
        (silence.promise, &silence.beat),
        (promise, &promise.beat(1))
    );
}
