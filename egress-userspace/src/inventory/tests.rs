use super::*;
use crate::dataplane::api::{HookStatus, PoolAddressLive};
use crate::diagnostic::Source;
use crate::plan::Plan;
use crate::resource;
use crate::store::{Limits, SqliteStore, StateStore};

const FILE: &str = r#"
account = [{ id = "acme" }]
[[pool]]
id = "a"
account = "acme"
addresses = ["192.0.2.1", "2001:db8::/64"]
[[pool]]
id = "b"
account = "acme"
addresses = ["192.0.2.3"]
[[zone]]
id = "z1"
name = "shop.example"
account = "acme"
sources = ["10.0.0.0/8"]
aegis = { enabled = true, pool_id = "a" }
[[zone]]
id = "z2"
name = "lan"
account = "acme"
marks = [7]
"#;

fn stored() -> Stored {
    let mut store = SqliteStore::in_memory();
    let model = resource::parse(&Source::new("r.toml", FILE), None)
        .0
        .unwrap();
    let plan = Plan::new(&store.load().unwrap(), &model).0;
    store
        .commit(
            plan.changes(),
            Limits {
                last_zone: 9,
                last_pool: 9,
            },
        )
        .unwrap();
    store.load().unwrap()
}

fn live() -> Vec<PoolLive> {
    let address = |ip: &str| PoolAddressLive {
        egress_ip: ip.parse().unwrap(),
        slices: 2,
        cap: 1290,
        draining: false,
        active: 5,
    };
    vec![
        PoolLive {
            number: 1,
            addresses: vec![address("192.0.2.1"), address("2001:db8::/64")],
        },
        PoolLive {
            number: 8,
            addresses: vec![address("192.0.2.200")],
        },
    ]
}

fn by(zone: Option<&str>, pool: Option<&str>) -> Filter {
    Filter {
        zone: zone.map(Into::into),
        pool: pool.map(Into::into),
        ..Filter::default()
    }
}

#[test]
fn zones_tell_their_setting_and_who_owns_it() {
    let all = zones(&stored(), &Filter::default()).unwrap();
    let owners: Vec<_> = all
        .iter()
        .map(|zone| (zone.name.as_str(), zone.enabled, zone.setting_owner))
        .collect();
    assert_eq!(
        owners,
        [
            ("lan", false, None),
            ("shop.example", true, Some(Owner::File))
        ]
    );
    assert_eq!(zones(&stored(), &by(None, Some("a"))).unwrap().len(), 1);
    let error = zones(&stored(), &by(Some("shop.exmaple"), None)).unwrap_err();
    assert!(
        error.usage && error.remedy == "did you mean shop.example?",
        "{error}"
    );
}

#[test]
fn pools_join_what_is_stored_with_what_is_in_force() {
    let all = pools(&stored(), &live(), &Filter::default()).unwrap();
    assert_eq!(
        all.iter().map(|pool| pool.id.as_str()).collect::<Vec<_>>(),
        ["a", "b", "#8"]
    );
    assert_eq!(all[0].addresses[0].active, Some(5));
    assert_eq!(all[0].addresses[1].address, "2001:db8::/64");
    assert_eq!(all[0].addresses[1].active, Some(5));
    assert_eq!(all[1].addresses[0].active, None, "not in force");
    assert_eq!(all[0].zones, ["shop.example"]);
    assert_eq!(
        pools(&stored(), &live(), &by(Some("shop.example"), None))
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        pools(&stored(), &live(), &by(Some("lan"), None))
            .unwrap()
            .len(),
        0
    );
    let of = |ip: &str| Filter {
        egress_ip: Some(ip.parse().unwrap()),
        ..Filter::default()
    };
    assert_eq!(
        pools(&stored(), &live(), &of("2001:db8::7")).unwrap()[0].id,
        "a"
    );
    assert_eq!(
        pools(&stored(), &live(), &of("192.0.2.9")).unwrap().len(),
        0
    );
}

#[test]
fn without_a_store_what_is_in_force_is_still_listed() {
    let all = pools(&Stored::default(), &live(), &Filter::default()).unwrap();
    assert_eq!(
        all.iter().map(|pool| pool.id.as_str()).collect::<Vec<_>>(),
        ["#1", "#8"]
    );
    assert_eq!(
        flow_filter(&Stored::default(), &by(Some("#3"), None))
            .unwrap()
            .zone,
        Some(3)
    );
}

#[test]
fn filters_by_name_become_numbers_and_addresses() {
    let stored = stored();
    let flows = flow_filter(&stored, &by(Some("shop.example"), Some("b"))).unwrap();
    assert_eq!((flows.zone, flows.pool), (Some(1), Some(2)));
    let origins = origin_filter(&stored, &by(Some("z1"), None)).unwrap();
    let members = ["192.0.2.1/32", "2001:db8::/64"].map(|net| net.parse().unwrap());
    assert_eq!(origins.egress_ips, Some(members.to_vec()));
    let one = Filter {
        egress_ip: Some("2001:db8::5".parse().unwrap()),
        ..by(Some("z1"), None)
    };
    assert_eq!(
        origin_filter(&stored, &one).unwrap().egress_ips,
        Some(vec!["2001:db8::5/128".parse().unwrap()]),
        "an address of the pool's range"
    );
    let foreign = Filter {
        egress_ip: Some("2001:db8:0:1::5".parse().unwrap()),
        ..by(Some("z1"), None)
    };
    assert_eq!(
        origin_filter(&stored, &foreign).unwrap().egress_ips,
        Some(Vec::new()),
        "none of the pool's"
    );
    assert_eq!(
        origin_filter(&stored, &Filter::default())
            .unwrap()
            .egress_ips,
        None
    );
    assert!(flow_filter(&stored, &by(None, Some("c"))).is_err());
}

#[test]
fn a_status_is_ready_when_hooks_guard_and_configuration_are_in_force() {
    let hook = |in_place| HookStatus {
        hook: "uplink_egress".into(),
        interface: "up0".into(),
        kind: "tcx".into(),
        program_id: Some(7),
        in_place,
    };
    let status = |hooks, guard| {
        Status::new(
            DataPlaneStatus {
                hooks,
                guard,
                configured: true,
                ..DataPlaneStatus::default()
            },
            Some(1),
        )
    };
    assert!(status(vec![hook(true)], true).ready);
    assert!(!status(vec![hook(true), hook(false)], true).ready);
    assert!(!status(vec![hook(true)], false).ready);
    assert!(
        !status(Vec::new(), true).ready,
        "no hooks are not all hooks"
    );
    let json = serde_json::to_value(status(vec![hook(true)], true)).unwrap();
    assert_eq!(json["daemon"], "up");
    assert_eq!(json["ready"], true);
    assert_eq!(json["hooks"][0]["program_id"], 7);
}
