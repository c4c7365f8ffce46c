mod beats;
mod change;
mod kept;

use std::net::IpAddr;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::control::protocol::Applied;
use crate::control::{Client, Filter, Handler, Request, Server};
use crate::dataplane::api::{
    ApplyReport, DataPlaneStatus, DataPlaneView, Deadline, FlowFilter, FlowKey, FlowRecord, Meter,
    OriginFilter, OriginRecord, PoolLive, Traveller, UsageLook, Way,
};
use crate::inventory::{DaemonState, PoolRecord, Status, ZoneRecord};
use crate::ownership::Slices;
use crate::probe::Permit;
use crate::resource::{Address, Owner};
use crate::store::{Change, Limits, SqliteStore, StateStore};

mod policies;
mod slow;

/// An address of the host.
const OWN: &str = "192.0.2.99";

/// A data plane that remembers what it was told, and fails when it is told to.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    applied: Vec<Desired>,
    reset: Vec<ipnet::IpNet>,
    broken: bool,
    /// As after a boot.
    unconfigured: bool,
    /// Where ports are in use, or rest.
    occupied: Slices,
    /// The slices whose flows were ended, and from when on they were not used then.
    ended: Vec<(Slices, u64)>,
    /// What time it is, ns.
    now: u64,
    /// From when on nothing of its slices is used.
    lapse: u64,
}

impl DataPlaneView for Fake {
    fn status(&self) -> Result<DataPlaneStatus, DataPlaneError> {
        Ok(DataPlaneStatus {
            configured: !self.0.lock().unwrap().unconfigured,
            ..DataPlaneStatus::default()
        })
    }

    fn flows(
        &self,
        _: &FlowFilter,
        _: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
    ) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn flow(&self, _: &FlowKey) -> Result<Option<FlowRecord>, DataPlaneError> {
        Ok(None)
    }

    fn origins(&self, _: &OriginFilter) -> Result<Vec<OriginRecord>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn usage(&self) -> Result<UsageLook, DataPlaneError> {
        Ok(UsageLook::default())
    }

    fn meters(&self, _: &mut dyn FnMut(Meter)) -> Result<(), DataPlaneError> {
        Ok(())
    }

    fn pools(&self) -> Result<Vec<PoolLive>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn candidate_order(
        &self,
        _: u16,
        _: IpAddr,
        _: Option<u16>,
    ) -> Result<Vec<IpAddr>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn way(&self, _: &Traveller) -> Result<Way, DataPlaneError> {
        Ok(Way::default())
    }
}

impl DataPlane for Fake {
    fn bound(&self) -> Result<usize, DataPlaneError> {
        let state = self.0.lock().unwrap();
        let last = state.applied.last();
        Ok(last.map_or(0, |last| {
            last.zones.iter().filter(|zone| zone.enabled).count()
        }))
    }

    fn check(&self, addresses: &[Address]) -> Result<(), DataPlaneError> {
        match addresses.iter().find(|one| one.to_string() == OWN) {
            None => Ok(()),
            Some(address) => Err(DataPlaneError::Refused {
                reason: format!("{address} is configured on interface up0 of this host"),
                remedy: "remove it".into(),
            }),
        }
    }

    fn apply(&mut self, desired: &Desired) -> Result<ApplyReport, DataPlaneError> {
        let mut state = self.0.lock().unwrap();
        if state.broken {
            return Err(DataPlaneError::failed("filling maps", "no memory"));
        }
        state.applied.push(desired.clone());
        Ok(ApplyReport::default())
    }

    fn repair(&mut self) -> Result<Vec<String>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn tidy(&mut self) -> Result<Vec<String>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn reset(&mut self, addresses: &[ipnet::IpNet]) -> Result<u64, DataPlaneError> {
        self.0.lock().unwrap().reset.extend(addresses);
        Ok(7)
    }

    fn occupied(&self, asked: &Slices) -> Result<Slices, DataPlaneError> {
        let occupied = &self.0.lock().unwrap().occupied;
        let found = asked.iter().filter_map(|(address, slices)| {
            let found = occupied.get(address).copied().unwrap_or(0) & slices;
            (found != 0).then_some((*address, found))
        });
        Ok(found.collect())
    }

    fn reset_slices(&mut self, slices: &Slices) -> Result<u64, DataPlaneError> {
        let mut state = self.0.lock().unwrap();
        let lapse = state.lapse;
        state.ended.push((slices.clone(), lapse));
        Ok(0)
    }

    fn deadline(&self) -> Arc<dyn Deadline> {
        Arc::new(self.clone())
    }

    fn detach(&mut self) -> Result<Vec<String>, DataPlaneError> {
        Ok(vec!["everything".into()])
    }
}

/// Its clock stands still until somebody sets it.
impl Deadline for Fake {
    fn now(&self) -> u64 {
        self.0.lock().unwrap().now
    }

    fn get(&self) -> Result<u64, DataPlaneError> {
        Ok(self.0.lock().unwrap().lapse)
    }

    fn set(&self, at: u64) -> Result<(), DataPlaneError> {
        self.0.lock().unwrap().lapse = at;
        Ok(())
    }

    fn check(&self) -> Result<(), DataPlaneError> {
        Ok(())
    }
}

mod probing;

const ZONE: &str = "[[zone]]\nid = \"z1\"\nname = \"shop.example\"\naccount = \"acme\"\nsources = [\"10.0.0.0/8\"]\n";

fn file(rest: &str) -> String {
    format!(
        "account = [{{ id = \"acme\" }}]\n[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"192.0.2.1\"]\n{rest}"
    )
}

struct Bench {
    directory: tempfile::TempDir,
    dataplane: Fake,
    service: Service,
}

/// A second look at a data plane that is not there.
const VIEW: OpenView = |_, _| Ok(Box::new(Fake::default()));

impl Bench {
    fn new(resources: &str) -> Self {
        Self::with("", resources)
    }

    /// With more sections of the configuration.
    fn with(sections: &str, resources: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = format!(
            "[dataplane]\nuplink = [\"up0\"]\ninside = [\"in0\"]\n[resources]\nfile = \"r.toml\"\n[store]\nsqlite = \"egress.db\"\n{sections}"
        );
        std::fs::write(directory.path().join("egress.toml"), config).unwrap();
        std::fs::write(directory.path().join("r.toml"), resources).unwrap();
        let dataplane = Fake::default();
        let service = start(directory.path(), dataplane.clone()).unwrap();
        Self {
            directory,
            dataplane,
            service,
        }
    }

    /// Whoever changes something.
    fn writer(&self) -> Writer<'_> {
        self.service.writer().unwrap()
    }

    fn stored(&self) -> Arc<Stored> {
        self.service.stored()
    }

    fn zone_set(
        &self,
        zone: &str,
        enabled: bool,
        pool: Option<&str>,
    ) -> Result<ZoneRecord, Failure> {
        Ok(self.writer().zone_set(zone, enabled, pool, &Permit::None)?)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).unwrap();
    }

    fn in_force(&self) -> Desired {
        self.dataplane
            .0
            .lock()
            .unwrap()
            .applied
            .last()
            .cloned()
            .unwrap()
    }
}

fn start(directory: &Path, dataplane: Fake) -> Result<Service, Failure> {
    let path = directory.join("egress.toml");
    let (config, _) = Config::load(&path).unwrap();
    let store = SqliteStore::open(&config.store.sqlite).unwrap();
    Ok(Service::start(&path, config, Box::new(store), Box::new(dataplane), VIEW)?.0)
}

#[test]
fn a_start_applies_the_resources_file_and_a_restart_finds_the_same_numbers() {
    let bench = Bench::new(&file(ZONE));
    assert_eq!(bench.in_force().zones[0].number, 1);
    let first = bench.in_force();
    drop(bench.service);
    let again = start(bench.directory.path(), bench.dataplane.clone()).unwrap();
    assert_eq!(*again.controller().desired(), first);
}

#[test]
fn an_invalid_file_stops_a_start_before_anything_changes() {
    let bench = Bench::new(&file(ZONE));
    bench.write("r.toml", "[[zone]]\nid = \"z\"\n");
    drop(bench.service);
    let before = bench.dataplane.0.lock().unwrap().applied.len();
    let failure = start(bench.directory.path(), bench.dataplane.clone())
        .err()
        .unwrap();
    assert!(
        failure.usage && failure.diagnostics.0.len() == 2,
        "{failure}"
    );
    assert_eq!(bench.dataplane.0.lock().unwrap().applied.len(), before);
}

#[test]
fn a_dry_run_plans_and_changes_nothing() {
    let bench = Bench::new(&file(""));
    let before = bench.stored();
    let applied = bench
        .writer()
        .apply(&Source::new("r.toml", file(ZONE)), true)
        .unwrap();
    assert!(!applied.applied);
    assert_eq!(applied.plan.to_string(), "+ zone shop.example");
    assert_eq!(bench.stored(), before);
    assert!(bench.in_force().zones.is_empty());
}

#[test]
fn a_dry_run_refuses_an_address_of_the_host_as_an_apply_would() {
    let bench = Bench::new(&file(ZONE));
    let taken = file(ZONE).replace("192.0.2.1", OWN);
    let failure = bench
        .writer()
        .apply(&Source::new("r.toml", taken), true)
        .unwrap_err();
    assert!(
        failure.to_string().contains("configured on interface up0"),
        "{failure}"
    );
}

#[test]
fn an_enabled_zone_that_a_file_takes_away_is_named() {
    const SECOND: &str = "[[zone]]\nid = \"z2\"\nname = \"off.example\"\naccount = \"acme\"\nsources = [\"172.16.0.0/12\"]\n";
    let aegis = "[zone.aegis]\nenabled = true\npool_id = \"a\"\n";
    let bench = Bench::new(&file(&format!("{ZONE}{aegis}{SECOND}")));
    bench.write("r.toml", &file(""));
    let applied = bench.service.reload().unwrap();
    let said: Vec<String> = applied.warnings.0.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("zone shop.example, which is enabled")
            && said[0].contains("default egress"),
        "{said:?}"
    );
}

#[test]
fn zone_2_a_plan_says_whose_live_connections_end() {
    let bench = Bench::new(&file(ZONE));
    let by_interface = format!("{ZONE}interfaces = [\"in0\"]\n");
    let warned = |bench: &Bench, rest: &str, dry_run| {
        let source = Source::new("r.toml", file(rest));
        let applied = bench.writer().apply(&source, dry_run).unwrap();
        let warnings = applied.warnings.0.iter().map(ToString::to_string);
        warnings
            .filter(|warning| warning.contains("live connections end"))
            .collect::<Vec<_>>()
    };
    let said = warned(&bench, &by_interface, true);
    assert!(
        said.len() == 1 && said[0].contains("is selected by interface from now on"),
        "{said:?}"
    );
    assert_eq!(warned(&bench, &by_interface, false).len(), 1);
    assert_eq!(warned(&bench, &by_interface, false), Vec::<String>::new());
    let said = warned(&bench, ZONE, true);
    assert!(said[0].contains("not selected by interface"), "{said:?}");
    let said = warned(&bench, "", true);
    assert!(said[0].contains("goes"), "{said:?}");
}

#[test]
fn a_zone_is_enabled_and_disabled_by_command() {
    let bench = Bench::new(&file(ZONE));
    assert!(!bench.in_force().zones[0].enabled);
    assert!(
        bench
            .zone_set("shop.example", true, None)
            .unwrap_err()
            .usage,
        "no pool yet"
    );
    let record = bench.zone_set("shop.example", true, Some("a")).unwrap();
    assert!(record.enabled && record.setting_owner == Some(Owner::Api));
    assert!(bench.in_force().zones[0].enabled);
    let record = bench.zone_set("z1", false, None).unwrap();
    assert_eq!(
        (record.enabled, record.pool_id.as_deref()),
        (false, Some("a")),
        "the pool is remembered"
    );
    assert!(!bench.in_force().zones[0].enabled);
    assert!(bench.zone_set("z1", true, None).unwrap().enabled);
}

#[test]
fn a_zone_that_is_off_forgets_a_pool_that_is_gone() {
    let bench = Bench::new(&file(ZONE));
    bench.zone_set("z1", true, Some("a")).unwrap();
    bench.zone_set("z1", false, None).unwrap();
    let without = format!("account = [{{ id = \"acme\" }}]\n{ZONE}");
    let applied = bench.writer().apply(&Source::new("r.toml", without), false);
    assert!(applied.unwrap().applied);

    let on = bench.zone_set("z1", true, None).unwrap_err();
    assert!(
        on.usage && on.reason == "pool a, which zone shop.example had, is gone",
        "{on}"
    );
    let unknown = bench.zone_set("z1", false, Some("b"));
    assert_eq!(unknown.unwrap_err().reason, "there is no pool b");
    let off = AegisPatch {
        enabled: Some(Some(false)),
        pool_id: None,
    };
    bench
        .writer()
        .patch_aegis("z1", &off, &Permit::None, |_, _, _| false)
        .unwrap();
    let zone = bench.zone_set("z1", false, None).unwrap();
    assert_eq!((zone.enabled, zone.pool_id), (false, None));
    let on = bench.zone_set("z1", true, None).unwrap_err();
    assert_eq!(on.reason, "zone shop.example has no pool yet");
}

#[test]
fn a_setting_that_the_file_owns_is_refused_by_name() {
    let setting = "aegis = { enabled = true, pool_id = \"a\" }\n";
    let bench = Bench::new(&file(&format!("{ZONE}{setting}")));
    let failure = bench.zone_set("shop.example", false, None).unwrap_err();
    assert!(
        failure
            .reason
            .contains("shop.example belongs to the resources file"),
        "{failure}"
    );
    assert!(failure.remedy.contains("[zone.aegis]"), "{failure}");
    assert!(bench.in_force().zones[0].enabled);
}

#[test]
fn a_pool_in_use_by_command_cannot_vanish_from_the_file() {
    let bench = Bench::new(&file(ZONE));
    bench.zone_set("z1", true, Some("a")).unwrap();
    let without = format!("account = [{{ id = \"acme\" }}]\n{ZONE}");
    let failure = bench
        .writer()
        .apply(&Source::new("r.toml", without), false)
        .unwrap_err();
    assert!(
        failure.diagnostics.0[0]
            .reason
            .contains("that pool is gone from this file"),
        "{failure}"
    );
    assert!(bench.in_force().zones[0].enabled);
}

#[test]
fn a_change_that_cannot_be_put_in_force_is_not_kept() {
    let bench = Bench::new(&file(ZONE));
    let before = bench.stored().objects.clone();
    bench.dataplane.0.lock().unwrap().broken = true;
    let failure = bench
        .writer()
        .apply(&Source::new("r.toml", file("")), false)
        .unwrap_err();
    assert_eq!(failure.reason, "filling maps: no memory");
    assert!(!failure.usage);
    assert_eq!(bench.stored().objects, before);
    bench.dataplane.0.lock().unwrap().broken = false;
    drop(bench.service);
    let again = start(bench.directory.path(), bench.dataplane.clone()).unwrap();
    assert_eq!(again.stored().objects, before);
    assert_eq!(
        again.controller().desired().zones[0].number,
        1,
        "numbers too"
    );
}

/// What a commit leaves is read before it is made.
#[test]
fn safe_5_a_change_that_cannot_be_read_back_is_not_kept() {
    let bench = Bench::new(&file(ZONE));
    let before = bench.stored();
    let path = bench.directory.path().join("egress.db");
    let damage = |was: &str, is: &str| {
        let other = rusqlite::Connection::open(&path).unwrap();
        let changed = other.execute(
            "UPDATE object SET value = ?2 || substr(value, 2) WHERE kind = 'account' AND substr(value, 1, 1) = ?1",
            [was, is],
        );
        assert_eq!(changed.unwrap(), 1);
    };
    damage("{", "x");
    let failure = bench
        .writer()
        .apply(&Source::new("r.toml", file("")), false)
        .unwrap_err();
    assert!(
        failure.reason.contains("account acme cannot be read"),
        "{failure}"
    );
    assert_eq!(bench.stored(), before);
    damage("x", "{");
    // What the next start would find.
    let stored = SqliteStore::open(&path).unwrap().load().unwrap();
    assert_eq!(stored, *before);
}

#[test]
fn a_reload_takes_both_files_or_nothing() {
    let bench = Bench::new(&file(""));
    let head = "[dataplane]\nuplink = [\"up0\"]\nrefuse = \"drop\"\nmax_flows = 1000\n[resources]\nfile = \"r.toml\"\n[store]\nsqlite = \"egress.db\"\n";
    bench.write("egress.toml", head);
    bench.write("r.toml", "nonsense");
    assert!(bench.service.reload().unwrap_err().usage);
    assert_eq!(
        bench.service.controller().config().dataplane.refuse,
        crate::config::Refuse::Reset,
        "as it was"
    );
    bench.write("r.toml", &file(ZONE));
    let applied = bench.service.reload().unwrap();
    assert_eq!(applied.plan.to_string(), "+ zone shop.example");
    assert_eq!(bench.in_force().refuse, crate::config::Refuse::Drop);
    assert_eq!(
        applied.notes,
        ["[dataplane] has changed: that takes effect when the daemon is restarted"]
    );
    assert_eq!(
        bench.service.controller().config().dataplane.max_flows,
        262_144
    );
}

#[test]
fn whoever_takes_over_another_servers_addresses_is_warned() {
    let resources = |here: u16, there: u16| {
        format!(
            "{}[[pool]]\nid = \"six\"\naccount = \"acme\"\naddresses = [\"2001:db8:aa::/64\"]\n\
             [[location]]\nname = \"local\"\n[[location.data_center]]\nname = \"local\"\n\
             server = [{{ name = \"here\", number = {here} }}, {{ name = \"there\", number = {there} }}]\n\
             [[placement]]\naddress = \"192.0.2.1\"\nshares = [{{ data_center = \"local\", share = 1 }}]\n",
            file("")
        )
    };
    let bench = Bench::with("[server]\nname = \"here\"\n", &resources(1, 2));
    let apply = |here, there| {
        let source = Source::new("r.toml", resources(here, there));
        let applied = bench.writer().apply(&source, false).unwrap();
        let found = applied.warnings.0.into_iter();
        found
            .map(|warning| warning.reason)
            .filter(|reason| reason.contains("takes over"))
            .collect::<Vec<_>>()
    };
    assert_eq!(apply(3, 2), [""; 0]);
    assert_eq!(
        apply(2, 3),
        ["here takes over 2001:db8:aa:0:2::/80 from there"]
    );
}

#[test]
fn requests_over_the_socket_reach_the_controller() {
    let bench = Bench::new(&file(ZONE));
    let mut server = Server::bind(&bench.directory.path().join("egress.sock")).unwrap();
    let service: Arc<dyn Handler> = Arc::new(bench.service);
    server.serve(service).unwrap();
    let client = || Client::connect(server.path()).unwrap();

    let status: Status = serde_json::from_value(client().call(&Request::Status).unwrap()).unwrap();
    assert_eq!(
        (status.daemon, status.pid),
        (DaemonState::Up, Some(std::process::id()))
    );

    let set = Request::ZoneSet {
        zone: "z1".into(),
        enabled: true,
        pool: Some("a".into()),
        force: false,
    };
    client().call(&set).unwrap();

    let mut pools = Vec::new();
    client()
        .stream(
            &Request::Pools {
                filter: Filter::default(),
            },
            &mut |item| {
                pools.push(serde_json::from_value::<PoolRecord>(item)?);
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(pools[0].zones, ["shop.example"]);

    let query = serde_json::json!({"source": "10.1.1.1", "source_port": null, "destination": "203.0.113.5",
        "destination_port": 80, "protocol": "tcp", "mark": 0, "interface": null, "cgroup": null});
    let why = Request::Why {
        query: serde_json::from_value(query).unwrap(),
    };
    assert_eq!(client().call(&why).unwrap()["outcome"], "admitted");

    let dry = Request::Apply {
        file: "r.toml".into(),
        text: file(""),
        dry_run: true,
    };
    let applied: Applied = serde_json::from_value(client().call(&dry).unwrap()).unwrap();
    assert_eq!(
        applied.plan.to_string(),
        "- setting of zone z1 (of API and command line)\n- zone shop.example"
    );
    assert!(client().call(&Request::Reload).is_ok());
    assert_eq!(
        client().call(&Request::Detach).unwrap(),
        serde_json::json!(["everything"])
    );
}
