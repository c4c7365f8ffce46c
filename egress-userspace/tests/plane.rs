//! The data plane's life on real interfaces: made, taken over, killed, repaired, refused, removed.
//!
//! Every test has a network namespace and a pin directory of its own, and the programs that ship.

#[path = "plane/bench.rs"]
mod bench;
#[path = "plane/cgroups.rs"]
mod cgroups;
#[path = "plane/guard.rs"]
mod guard;
#[path = "plane/hooks.rs"]
mod hooks;
#[path = "plane/refusals.rs"]
mod refusals;
#[path = "plane/taken.rs"]
mod taken;

use std::fs;
use std::net::Ipv6Addr;
use std::process::Command;
use std::thread;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use bench::{Bench, desired, map_id, output, run, until};
use egress_common::family::V6;
use egress_common::slot::{Slot, State};
use egress_userspace::config::Dataplane;
use egress_userspace::dataplane::api::{DataPlane as _, DataPlaneError, DataPlaneView as _, Names};
use egress_userspace::dataplane::{Plane, View, detach};
use egress_userspace::desired::DesiredPrefix;

fn open(bench: &Bench) -> Plane {
    Plane::open_or_create(&bench.config()).unwrap()
}

#[test]
fn safe_2_a_second_start_takes_everything_over() {
    run("safe_2_a_second_start_takes_everything_over", |bench| {
        let wanted = desired(true, &["10.1.0.0/16"], &["192.0.2.10", "192.0.2.11"]);
        let mut plane = open(bench);
        assert!(!plane.status().unwrap().configured);
        let first = plane.apply(&wanted).unwrap();
        assert!(first.changed > 0);
        assert_eq!(
            first.version, 1,
            "the other version was filled and switched to"
        );
        assert_eq!(plane.apply(&wanted).unwrap().changed, 0);
        drop(plane);

        // No daemon: everything still stands.
        bench.assert_in_place();
        assert!(bench.status().configured);
        let programs: Vec<_> = bench
            .status()
            .hooks
            .iter()
            .map(|hook| hook.program_id)
            .collect();
        let slots = map_id(&bench.pin, "SLOTS4");

        let mut plane = open(bench);
        bench.assert_in_place();
        assert_eq!(map_id(&bench.pin, "SLOTS4"), slots, "live flows are kept");
        for (hook, before) in bench.status().hooks.iter().zip(programs) {
            assert_ne!(hook.program_id, before, "{} is the new program", hook.hook);
        }
        let again = plane.apply(&wanted).unwrap();
        assert_eq!(
            (again.changed, again.version),
            (0, 1),
            "nothing to do, and no switch"
        );
        assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
        let pools = plane.pools().unwrap();
        assert_eq!(pools[0].addresses.len(), 2);
        assert_eq!(
            plane
                .candidate_order(1, "10.1.0.2".parse().unwrap(), None)
                .unwrap()
                .len(),
            2
        );
    });
}

#[test]
fn safe_2_left_overs_of_every_stage_are_understood() {
    run("safe_2_left_overs_of_every_stage_are_understood", |bench| {
        // Killed before anything was pinned.
        fs::create_dir_all(bench.beside("-new").join("maps")).unwrap();
        drop(open(bench));
        assert!(!bench.beside("-new").exists());
        bench.assert_in_place();

        // Killed while maps were pinned: some are there.
        detach(&bench.pin).unwrap();
        drop(open(bench));
        remove_links(bench);
        fs::rename(&bench.pin, bench.beside("-new")).unwrap();
        fs::remove_file(bench.beside("-new").join("maps/SLOTS4")).unwrap();
        drop(open(bench));
        assert!(!bench.beside("-new").exists());
        bench.assert_in_place();

        // Killed after the renaming, with some hooks attached and some not.
        fs::remove_file(bench.pin.join("links/up0:uplink_egress")).unwrap();
        fs::remove_file(bench.pin.join("links/in0:inside_ingress")).unwrap();
        until("the links' end", || {
            bench.program("uplink_egress").is_none()
        });
        drop(open(bench));
        bench.assert_in_place();

        // Killed while detaching: the pins were moved and half of them removed.
        let maps = map_id(&bench.pin, "SLOTS4");
        remove_links(bench);
        fs::rename(&bench.pin, bench.beside("-gone")).unwrap();
        fs::remove_file(bench.beside("-gone").join("maps/ZONES")).unwrap();
        assert!(matches!(
            View::open(&bench.config(), Names::default()),
            Err(DataPlaneError::Absent { .. })
        ));
        drop(open(bench));
        assert!(!bench.beside("-gone").exists());
        assert_ne!(map_id(&bench.pin, "SLOTS4"), maps);
        bench.assert_in_place();
    });
}

fn remove_links(bench: &Bench) {
    for entry in fs::read_dir(bench.pin.join("links")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}

/// Tells a copy of this test binary to make a first start and then wait to be killed.
const VICTIM: &str = "EGRESS_PLANE_VICTIM";

#[test]
fn victim() {
    if let Some(pin) = std::env::var_os(VICTIM) {
        let config = Dataplane {
            uplink: vec!["up0".into()],
            inside: vec!["in0".into()],
            max_flows: 1_024,
            max_origins: 1_024,
            pin: pin.into(),
            ..Dataplane::default()
        };
        let mut plane = Plane::open_or_create(&config).unwrap();
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn safe_2_sigkill_at_any_instant() {
    run("safe_2_sigkill_at_any_instant", |bench| {
        for round in 0..40 {
            let mut victim = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "victim", "--test-threads", "1"])
                .env(VICTIM, &bench.pin)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap();
            // A first start and apply take some tens of milliseconds: the kills are spread over all of it.
            thread::sleep(Duration::from_millis(5 * round));
            victim.kill().unwrap();
            victim.wait().unwrap();
            if round % 2 == 0 {
                let mut plane = open(bench);
                plane
                    .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
                    .unwrap();
                drop(plane);
                bench.assert_in_place();
            }
            detach(&bench.pin).unwrap();
            assert!(!bench.pin.exists(), "round {round}");
        }
    });
}

#[test]
fn safe_2_sizes_stay_those_of_the_pins() {
    run("safe_2_sizes_stay_those_of_the_pins", |bench| {
        drop(open(bench));
        let config = Dataplane {
            max_flows: 2_048,
            ..bench.config()
        };
        let plane = Plane::open_or_create(&config).unwrap();
        let tables = plane.status().unwrap().tables;
        assert_eq!((tables[0].used, tables[0].capacity), (0, 1_024));
    });
}

#[test]
fn pool_changes_retire_addresses_and_tidy_forgets_them() {
    run(
        "pool_changes_retire_addresses_and_tidy_forgets_them",
        |bench| {
            let mut plane = open(bench);
            plane
                .apply(&desired(
                    true,
                    &["10.1.0.0/16"],
                    &["192.0.2.10", "192.0.2.11"],
                ))
                .unwrap();
            assert_eq!(plane.tidy().unwrap(), Vec::<String>::new());
            let report = plane
                .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.11"]))
                .unwrap();
            assert!(report.changed > 0);
            let said = plane.tidy().unwrap();
            assert_eq!(said.len(), 1);
            assert!(said[0].starts_with("192.0.2.10 "), "{said:?}");
            assert_eq!(plane.pools().unwrap()[0].addresses.len(), 1);
        },
    );
}

#[test]
fn pool_6_a_retired_range_is_forgotten_though_it_contains_the_range_in_use() {
    run(
        "pool_6_a_retired_range_is_forgotten_though_it_contains_the_range_in_use",
        |bench| {
            let with = |range: &str| {
                let mut wanted = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
                wanted.pools[0].prefixes.push(DesiredPrefix {
                    prefix: range.parse().unwrap(),
                    cap: 40_000,
                    draining: false,
                });
                wanted
            };
            let mut plane = open(bench);
            // A server's whole range; then others are listed, and it has its part.
            plane.apply(&with("2001:db8:aa::/64")).unwrap();
            plane.apply(&with("2001:db8:aa:0:1::/80")).unwrap();
            let mut slots: Array<MapData, Slot<V6>> =
                Map::from_map_data(MapData::from_pin(bench.pin.join("maps/SLOTS6")).unwrap())
                    .unwrap()
                    .try_into()
                    .unwrap();
            let mut live = |index, egress: &str| {
                let slot = Slot::<V6> {
                    state: State::TcpEstablished as u8,
                    egress: egress.parse::<Ipv6Addr>().unwrap().octets(),
                    ..Slot::default()
                };
                slots.set(index, slot, 0).unwrap();
            };
            live(0, "2001:db8:aa:0:2::7");
            live(1, "2001:db8:aa:0:1::7");
            assert_eq!(plane.tidy().unwrap(), Vec::<String>::new());
            // Its last flow outside of that part ends; those within go on.
            live(0, "2001:db8:aa:0:1::8");
            let said = plane.tidy().unwrap();
            assert_eq!(said.len(), 1);
            assert!(said[0].starts_with("2001:db8:aa::/64 "), "{said:?}");
        },
    );
}

#[test]
fn routing_rules_that_go_by_marks_of_others_are_followed() {
    run(
        "routing_rules_that_go_by_marks_of_others_are_followed",
        |bench| {
            let mut plane = open(bench);
            let mut wanted = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
            for (family, rule, routed) in [
                ("", "fwmark 1/0xffff lookup 100", true),
                ("", "fwmark 1 lookup 100", true),
                ("-6 ", "fwmark 1/0xffff lookup 100", true),
                ("", "from 10.1.0.0/16 lookup 100", false),
                // Bits that are ours, which nobody else writes.
                ("", "fwmark 0x10000/0xffff0000 lookup 100", false),
            ] {
                bench::ip(&format!("{family}rule add {rule}"));
                assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
                assert_eq!(bench.status().routed, routed, "{family}{rule}");
                wanted.pools[0].candidates[0].cap -= 1;
                plane.apply(&wanted).unwrap();
                assert_eq!(bench.status().routed, routed, "another version, {rule}");
                // Who comes later looks as well.
                drop(plane);
                plane = open(bench);
                assert_eq!(bench.status().routed, routed, "a restart, {rule}");
                bench::ip(&format!("{family}rule del {rule}"));
                plane.repair().unwrap();
                assert!(!bench.status().routed, "{rule} is gone");
            }
        },
    );
}

fn shell(script: &str) -> bool {
    Command::new("sh")
        .args(["-c", script])
        .status()
        .unwrap()
        .success()
}

#[test]
fn safe_6_the_watcher_wakes_at_once_and_the_log_listens() {
    run(
        "safe_6_the_watcher_wakes_at_once_and_the_log_listens",
        |bench| {
            let plane = open(bench);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut watcher = plane.watcher().unwrap();
                let (_names, known) = tokio::sync::watch::channel(Names::default());
                let log = tokio::spawn(plane.events().open().unwrap().run(known));
                for (program, arguments) in [
                    ("tc", "qdisc add dev in0 clsact"),
                    ("tc", "qdisc del dev in0 clsact"),
                    ("nft", "add table inet other"),
                    ("nft", "flush ruleset"),
                    ("ip", "rule add fwmark 1 lookup 100"),
                    ("ip", "-6 rule add fwmark 1 lookup 100"),
                    ("ip", "link del up0"),
                ] {
                    // A tick, with nothing left to say.
                    while tokio::time::timeout(Duration::from_millis(50), watcher.next())
                        .await
                        .is_ok()
                    {}
                    watcher.next().await;
                    output(program, arguments);
                    let woken =
                        tokio::time::timeout(Duration::from_millis(50), watcher.next()).await;
                    assert!(
                        woken.is_ok(),
                        "{program} {arguments}: the kernel's announcement comes before the next tick"
                    );
                }
                assert!(!log.is_finished());
                log.abort();
            });
        },
    );
}
