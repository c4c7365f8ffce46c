//! The data plane's life on real interfaces: made, taken over, killed, repaired, refused, removed.
//!
//! Every test has a network namespace and a pin directory of its own, and the programs that ship.

#[path = "plane/bench.rs"]
mod bench;
#[path = "plane/cgroups.rs"]
mod cgroups;

use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::thread;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, loaded_programs};
use bench::{Bench, desired, ip, map_id, output, run, until};
use egress_userspace::config::{Attach, Dataplane};
use egress_userspace::dataplane::api::{DataPlane as _, DataPlaneError, DataPlaneView as _, Names};
use egress_userspace::dataplane::{Plane, View, detach};
use egress_userspace::desired::DesiredMark;

fn open(bench: &Bench) -> Plane {
    Plane::open_or_create(&bench.config()).unwrap()
}

fn refusal(result: Result<Plane, DataPlaneError>) -> String {
    match result {
        Ok(_) => panic!("this was to be refused"),
        Err(error) => {
            assert!(
                matches!(error, DataPlaneError::Refused { .. }),
                "no refusal: {error:?}"
            );
            format!("{error}; {}", error.remedy().unwrap())
        }
    }
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
fn safe_6_a_recreated_interface_is_hooked_again() {
    run("safe_6_a_recreated_interface_is_hooked_again", |bench| {
        let mut plane = open(bench);
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        for name in ["up0", "in0"] {
            let allowed = allowed(bench);
            ip(&format!("link del {name}"));
            let said = plane.repair().unwrap();
            assert!(said.iter().any(|line| line.contains(name)), "{said:?}");
            assert!(bench.status().hooks.iter().any(|hook| !hook.in_place));
            bench.link(name);
            plane.repair().unwrap();
            bench.assert_in_place();
            assert_ne!(
                allowed,
                self::allowed(bench),
                "the guard knows the new index"
            );
            assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
        }
        // While nobody looks: the next start finds a pin of an interface that is gone.
        drop(plane);
        ip("link del up0");
        bench.link("up0");
        assert_eq!(bench.program("uplink_egress"), None);
        drop(open(bench));
        bench.assert_in_place();
    });
}

/// The guard's rule that says where zone packets may go.
fn allowed(bench: &Bench) -> String {
    let table = format!("{}_guard", bench.pin.file_name().unwrap().to_str().unwrap());
    let rules = output("nft", &format!("-nn list chain inet {table} bound"));
    rules
        .lines()
        .find(|line| line.contains("oif"))
        .unwrap()
        .to_owned()
}

#[test]
fn safe_6_a_removed_program_and_a_flushed_guard_come_back() {
    run(
        "safe_6_a_removed_program_and_a_flushed_guard_come_back",
        |bench| {
            let mut plane = open(bench);
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
                .unwrap();
            fs::remove_file(bench.pin.join("links/up0:uplink_egress")).unwrap();
            until("the link's end", || {
                bench.program("uplink_egress").is_none()
            });
            assert_eq!(
                plane.repair().unwrap(),
                ["uplink_egress on up0 was attached"]
            );
            bench.assert_in_place();
            output("nft", "flush ruleset");
            assert!(!bench.status().guard);
            assert_eq!(plane.repair().unwrap().len(), 1);
            bench.assert_in_place();
            // Somebody else's rules are their own business.
            output("nft", "add table inet other");
            assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
        },
    );
}

#[test]
fn safe_6_the_translation_runs_before_somebody_elses_program() {
    run(
        "safe_6_the_translation_runs_before_somebody_elses_program",
        |bench| {
            let mut plane = open(bench);
            if bench.status().hooks.iter().any(|hook| hook.kind != "tcx") {
                println!(
                    "SKIPPED: safe_6_the_translation_runs_before_somebody_elses_program: no tcx"
                );
                return;
            }
            // Any program of the right type will do.
            let id = bench.program("inside_ingress").unwrap();
            let info = loaded_programs()
                .map(Result::unwrap)
                .find(|program| program.id() == id)
                .unwrap();
            let mut theirs = SchedClassifier::from_program_info(info, "theirs".into()).unwrap();
            let first = TcAttachOptions::TcxOrder(LinkOrder::first());
            theirs
                .attach_with_options("up0", TcAttachType::Egress, first)
                .unwrap();
            let egress = |bench: &Bench| {
                let hooks = bench.status().hooks;
                let hook = hooks.iter().find(|hook| hook.hook == "uplink_egress");
                hook.unwrap().in_place
            };
            assert!(!egress(bench), "it may not get to see every packet");
            assert_eq!(
                plane.repair().unwrap(),
                ["uplink_egress on up0 was attached"]
            );
            assert!(egress(bench));
            assert_eq!(plane.repair().unwrap(), Vec::<String>::new());
            bench.assert_in_place();
        },
    );
}

#[test]
fn safe_2_pins_of_another_layout_are_refused_by_name() {
    run(
        "safe_2_pins_of_another_layout_are_refused_by_name",
        |bench| {
            drop(open(bench));
            let layout = bench.pin.join("maps/LAYOUT");
            let mut map: Array<MapData, [u32; 6]> =
                Map::from_map_data(MapData::from_pin(&layout).unwrap())
                    .unwrap()
                    .try_into()
                    .unwrap();
            let right = map.get(&0, 0).unwrap();
            let mut wrong = right;
            wrong[0] += 1;
            map.set(0, wrong, 0).unwrap();
            let said = refusal(Plane::open_or_create(&bench.config()));
            assert!(said.contains(bench.pin.to_str().unwrap()), "{said}");
            assert!(
                said.contains("egress detach") && said.contains("live flows"),
                "{said}"
            );
            bench.assert_in_place();

            map.set(0, right, 0).unwrap();
            fs::remove_file(bench.pin.join("maps/MARKS")).unwrap();
            let said = refusal(Plane::open_or_create(&bench.config()));
            assert!(said.contains("map MARKS is missing"), "{said}");

            MapData::from_pin(bench.pin.join("maps/ZONES"))
                .unwrap()
                .pin(bench.pin.join("maps/MARKS"))
                .unwrap();
            let said = refusal(Plane::open_or_create(&bench.config()));
            assert!(said.contains("map MARKS has value size"), "{said}");
        },
    );
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
fn a_second_daemon_is_refused_with_the_pid_of_the_first() {
    run(
        "a_second_daemon_is_refused_with_the_pid_of_the_first",
        |bench| {
            let plane = open(bench);
            let said = refusal(Plane::open_or_create(&bench.config()));
            assert!(
                said.contains(&format!("pid {}", std::process::id())),
                "{said}"
            );
            assert!(said.contains(bench.pin.to_str().unwrap()), "{said}");
            assert!(
                detach(&bench.pin).is_err(),
                "nobody takes a running daemon's data plane off"
            );
            drop(plane);
            drop(open(bench));
        },
    );
}

#[test]
fn a_second_instance_on_one_uplink_is_refused_by_the_pins_of_the_first() {
    run(
        "a_second_instance_on_one_uplink_is_refused_by_the_pins_of_the_first",
        |bench| {
            for attach in [Attach::Auto, Attach::Clsact] {
                let first = Dataplane {
                    attach,
                    ..bench.config()
                };
                // With its daemon and without: what is attached counts.
                let plane = Plane::open_or_create(&first).unwrap();
                let second = Dataplane {
                    pin: bench.beside("_second"),
                    ..first.clone()
                };
                let said = refusal(Plane::open_or_create(&second));
                drop(plane);
                assert_eq!(refusal(Plane::open_or_create(&second)), said);
                let expected = format!("pins are in {}, already", bench.pin.display());
                assert!(
                    said.contains(&expected) && said.contains("uplink up0"),
                    "{said}"
                );
                assert!(!second.pin.exists(), "nothing was begun");
                bench.assert_in_place();
                // Another uplink is free, and so is this one once the first is off.
                let elsewhere = Dataplane {
                    uplink: vec!["mgmt0".into()],
                    inside: Vec::new(),
                    ..second.clone()
                };
                drop(Plane::open_or_create(&elsewhere).unwrap());
                detach(&second.pin).unwrap();
                bench.assert_in_place();
                detach(&first.pin).unwrap();
                drop(Plane::open_or_create(&second).unwrap());
                detach(&second.pin).unwrap();
            }
        },
    );
}

#[test]
fn a_reader_without_a_configuration_finds_the_interfaces() {
    run(
        "a_reader_without_a_configuration_finds_the_interfaces",
        |bench| {
            drop(open(bench));
            let blind = Dataplane {
                pin: bench.pin.clone(),
                ..Dataplane::default()
            };
            let hooks = |config: &Dataplane| {
                let view = View::open(config, Names::default()).unwrap();
                let mut hooks = view.status().unwrap().hooks;
                hooks.sort_by(|a, b| (&a.interface, &a.hook).cmp(&(&b.interface, &b.hook)));
                hooks
            };
            assert_eq!(hooks(&blind).len(), 4);
            assert_eq!(hooks(&blind), hooks(&bench.config()));
        },
    );
}

#[test]
fn an_interface_that_does_not_exist_is_named() {
    run("an_interface_that_does_not_exist_is_named", |bench| {
        let config = Dataplane {
            uplink: vec!["up7".into()],
            ..bench.config()
        };
        let said = refusal(Plane::open_or_create(&config));
        assert!(said.contains("up7") && said.contains("uplink"), "{said}");
        assert!(!bench.pin.exists(), "nothing was begun");
    });
}

#[test]
fn an_interface_whose_packets_cannot_be_read_is_refused_by_name() {
    run(
        "an_interface_whose_packets_cannot_be_read_is_refused_by_name",
        |bench| {
            let config = Dataplane {
                uplink: vec!["lo".into()],
                ..bench.config()
            };
            let said = refusal(Plane::open_or_create(&config));
            assert!(
                said.contains("interface lo") && said.contains("hardware type 772"),
                "{said}"
            );
            assert!(!bench.pin.exists(), "nothing was begun");
        },
    );
}

#[test]
fn an_address_of_this_host_is_refused_as_an_egress_ip() {
    run(
        "an_address_of_this_host_is_refused_as_an_egress_ip",
        |bench| {
            ip("addr add 203.0.113.2/24 dev up0");
            ip("addr add 203.0.113.3 peer 203.0.113.4 dev mgmt0");
            let mut plane = open(bench);
            let right = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
            let version = plane.apply(&right).unwrap().version;
            for (address, interface) in [("203.0.113.2", "up0"), ("203.0.113.3", "mgmt0")] {
                let wrong = desired(true, &["10.1.0.0/16"], &["192.0.2.11", address]);
                let error = plane.apply(&wrong).unwrap_err();
                let said = format!("{error}; {}", error.remedy().unwrap());
                assert!(
                    said.contains(&format!("{address} is configured on interface {interface}"))
                        && said.contains(&format!("remove {address} from {interface}")),
                    "{said}"
                );
            }
            let again = plane.apply(&right).unwrap();
            assert_eq!((again.changed, again.version), (0, version));
            assert_eq!(plane.tidy().unwrap(), Vec::<String>::new());
            // The other end of a point-to-point interface is somebody else.
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["203.0.113.4"]))
                .unwrap();
            // An address that was given to an interface later keeps nothing from being repaired.
            ip("addr add 203.0.113.4/32 dev lo");
            ip("link del up0");
            bench.link("up0");
            plane.repair().unwrap();
            bench.assert_in_place();
        },
    );
}

#[test]
fn a_foreign_directory_is_left_alone() {
    run("a_foreign_directory_is_left_alone", |bench| {
        fs::create_dir_all(bench.pin.join("theirs")).unwrap();
        let said = refusal(Plane::open_or_create(&bench.config()));
        assert!(said.contains("did not put there"), "{said}");
        assert!(detach(&bench.pin).is_err());
        assert!(bench.pin.join("theirs").exists());
        fs::remove_dir(bench.pin.join("theirs")).unwrap();
        drop(open(bench));
        bench.assert_in_place();
    });
}

#[test]
fn safe_4_detach_leaves_nothing_and_says_so() {
    run("safe_4_detach_leaves_nothing_and_says_so", |bench| {
        for attach in [Attach::Tcx, Attach::Clsact] {
            let config = Dataplane {
                attach,
                ..bench.config()
            };
            let mut plane = Plane::open_or_create(&config).unwrap();
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
                .unwrap();
            drop(plane);
            bench.assert_in_place();
            let said = detach(&bench.pin).unwrap();
            let programs = said
                .iter()
                .filter(|line| line.starts_with("program: "))
                .count();
            assert_eq!(programs, 6, "{said:?}");
            assert!(
                said.iter().any(|line| line.starts_with("guard: ")),
                "{said:?}"
            );
            assert!(
                said.iter().any(|line| line.starts_with("pins: ")),
                "{said:?}"
            );
            assert!(!bench.pin.exists() && !bench.beside("-gone").exists());
            assert_eq!(bench.tables(), "");
            for name in ["up0", "in0"] {
                assert!(!output("tc", &format!("qdisc show dev {name}")).contains("clsact"));
            }
            assert_eq!(
                detach(&bench.pin).unwrap(),
                Vec::<String>::new(),
                "once more: nothing left"
            );
        }
    });
}

#[test]
fn clsact_filters_are_replaced_in_place_and_exchanged_for_tcx() {
    run(
        "clsact_filters_are_replaced_in_place_and_exchanged_for_tcx",
        |bench| {
            let clsact = Dataplane {
                attach: Attach::Clsact,
                ..bench.config()
            };
            drop(Plane::open_or_create(&clsact).unwrap());
            bench.assert_in_place();
            assert!(
                bench
                    .status()
                    .hooks
                    .iter()
                    .all(|hook| hook.kind == "clsact")
            );
            let before = bench.program("uplink_egress").unwrap();
            let mut plane = Plane::open_or_create(&clsact).unwrap();
            bench.assert_in_place();
            assert_ne!(bench.program("uplink_egress").unwrap(), before);
            let filters = output("tc", "filter show dev up0 egress");
            assert_eq!(
                filters.matches("name uplink_egress ").count(),
                1,
                "{filters}"
            );
            assert!(
                filters.find(" uplink_egress ") < filters.find(" uplink_guard "),
                "the guard runs last: {filters}"
            );
            output("tc", "filter del dev up0 egress");
            assert!(plane.repair().unwrap().len() >= 2);
            bench.assert_in_place();
            drop(plane);

            drop(open(bench));
            assert!(bench.status().hooks.iter().all(|hook| hook.kind == "tcx"));
            assert!(!output("tc", "filter show dev up0 egress").contains("uplink_egress"));
            drop(Plane::open_or_create(&clsact).unwrap());
            assert!(
                bench
                    .status()
                    .hooks
                    .iter()
                    .all(|hook| hook.kind == "clsact")
            );
        },
    );
}

#[test]
fn what_left_the_configuration_is_taken_off() {
    run("what_left_the_configuration_is_taken_off", |bench| {
        let config = Dataplane {
            uplink: vec!["up0".into(), "mgmt0".into()],
            ..bench.config()
        };
        for attach in [Attach::Tcx, Attach::Clsact] {
            let both = Dataplane {
                attach,
                ..config.clone()
            };
            drop(Plane::open_or_create(&both).unwrap());
            let one = Dataplane {
                attach,
                ..bench.config()
            };
            let mut plane = Plane::open_or_create(&one).unwrap();
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
                .unwrap();
            let hooks = View::open(&both, Names::default())
                .unwrap()
                .status()
                .unwrap()
                .hooks;
            for hook in hooks {
                assert_eq!(hook.in_place, hook.interface != "mgmt0", "{hook:?}");
            }
        }
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
fn safe_6_zone_packets_leave_by_no_other_interface() {
    run("safe_6_zone_packets_leave_by_no_other_interface", |bench| {
        ip("addr add 10.1.0.1/24 dev in0");
        ip("addr add 198.51.100.1/24 dev mgmt0");
        let _host = bench.neighbour("mgmt0", "198.51.100.2/24", "198.51.100.1");
        let client = bench.neighbour("in0", "10.1.0.2/24", "10.1.0.1");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let mut plane = open(bench);
        let dropped = |bench: &Bench| {
            bench
                .status()
                .reasons
                .iter()
                .find(|reason| reason.reason == "hook_missing")
                .unwrap()
                .packets
        };
        let ask = "echo x > /dev/udp/198.51.100.2/9";
        let ask = format!("bash -c '{ask}'");

        // Not enabled: forwarded and own packets pass.
        plane
            .apply(&desired(false, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        let own = UdpSocket::bind("10.1.0.1:0").unwrap();
        own.send_to(b"x", "198.51.100.2:9").unwrap();
        assert!(client(&ask));
        assert_eq!(dropped(bench), 0);

        // Enabled: neither does.
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
        assert_eq!(dropped(bench), 1);
        assert!(client(&ask));
        until("the forwarded packet", || dropped(bench) == 2);
        // To the inside and to itself it may.
        own.send_to(b"x", "10.1.0.2:9").unwrap();
        own.send_to(b"x", "127.0.0.1:9").unwrap();

        // An exempt destination is (POLICY-7).
        let mut exempt = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
        exempt.exempt.destinations = vec!["198.51.100.0/24".parse().unwrap()];
        plane.apply(&exempt).unwrap();
        own.send_to(b"x", "198.51.100.2:9").unwrap();
        assert!(client(&ask));

        // A mark selects before the source does (ZONE-3), and a forged tag is none (ZONE-4).
        let mut marked = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
        let mut other = marked.zones[0].clone();
        other.number = 2;
        other.enabled = false;
        other.selectors.sources.clear();
        other.selectors.marks = vec![DesiredMark {
            value: 7,
            mask: 0xffff,
        }];
        marked.zones.push(other);
        plane.apply(&marked).unwrap();
        let before = dropped(bench);
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
        set_mark(&own, 7);
        own.send_to(b"x", "198.51.100.2:9").unwrap();
        set_mark(&own, 0xffff_0000);
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
        assert_eq!(dropped(bench), before + 2);

        // The daemon's end changes nothing.
        drop(plane);
        assert!(own.send_to(b"x", "198.51.100.2:9").is_err());
    });
}

#[test]
fn safe_6_what_entered_unseen_does_not_leave() {
    run("safe_6_what_entered_unseen_does_not_leave", |bench| {
        ip("addr add 10.1.0.1/24 dev in0");
        ip("addr add 203.0.113.1/24 dev up0");
        ip("neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev up0");
        let client = bench.neighbour("in0", "10.1.0.2/24", "10.1.0.1");
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        output("nft", "add table ip nat");
        output(
            "nft",
            "add chain ip nat post { type nat hook postrouting priority 100 ; }",
        );
        output("nft", "add rule ip nat post oifname up0 masquerade");
        let mut plane = open(bench);
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
            .unwrap();
        let ask = "bash -c 'echo x > /dev/udp/203.0.113.9/9'";
        let sent = || -> u64 {
            let text = output("ip", "-s -j link show up0");
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            json[0]["stats64"]["tx"]["packets"].as_u64().unwrap()
        };
        // With everything in place the client's packet is admitted and leaves.
        let before = sent();
        assert!(client(ask));
        until("the packet on the uplink", || sent() > before);
        // Without the program where it enters, masquerade would make it look like one of the host's own.
        fs::remove_file(bench.pin.join("links/in0:inside_ingress")).unwrap();
        until("the link's end", || {
            bench.program("inside_ingress").is_none()
        });
        let before = sent();
        let table = format!("{}_guard", bench.pin.file_name().unwrap().to_str().unwrap());
        assert!(client(ask));
        until("the drop", || {
            output("nft", &format!("list counter inet {table} unseen")).contains("packets 1 ")
        });
        assert_eq!(sent(), before);
        plane.repair().unwrap();
        assert!(client(ask));
        until("the packet on the uplink", || sent() > before);
    });
}

#[test]
fn safe_1_an_own_packets_source_counts_although_it_is_rewritten_and_its_socket_has_none() {
    run(
        "safe_1_an_own_packets_source_counts_although_it_is_rewritten_and_its_socket_has_none",
        |bench| {
            ip("addr add 10.1.0.1/24 dev in0");
            ip("addr add 203.0.113.1/24 dev up0");
            ip("neigh add 203.0.113.9 lladdr 02:00:00:00:00:09 dev up0");
            output("nft", "add table ip nat");
            output(
                "nft",
                "add chain ip nat post { type nat hook postrouting priority 100 ; }",
            );
            output("nft", "add rule ip nat post oifname up0 masquerade");
            let config = Dataplane {
                inside: Vec::new(),
                ..bench.config()
            };
            let mut plane = Plane::open_or_create(&config).unwrap();
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["192.0.2.10"]))
                .unwrap();
            let active = |plane: &Plane| plane.pools().unwrap()[0].addresses[0].active;
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            send_from(&socket, [203, 0, 113, 1], [203, 0, 113, 9]);
            assert_eq!(active(&plane), 0, "this one is of no zone");
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            send_from(&socket, [10, 1, 0, 1], [203, 0, 113, 9]);
            assert_eq!(active(&plane), 1);
            // The tag goes no further than the uplink.
            ip("rule add fwmark 0x10000/0xffff0000 blackhole");
            let here = UdpSocket::bind("127.0.0.1:9").unwrap();
            here.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            send_from(&socket, [10, 1, 0, 1], [127, 0, 0, 1]);
            here.recv(&mut [0; 8]).unwrap();
        },
    );
}

/// Sends a byte to port 9 from a source that only the packet has, not the socket (`IP_PKTINFO`).
fn send_from(socket: &UdpSocket, source: [u8; 4], destination: [u8; 4]) {
    use std::os::fd::AsRawFd as _;

    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        info: libc::in_pktinfo,
    }
    let mut control = Control {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<libc::in_pktinfo>(),
            cmsg_level: libc::IPPROTO_IP,
            cmsg_type: libc::IP_PKTINFO,
        },
        info: libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(source),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        },
    };
    let mut name = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 9_u16.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(destination),
        },
        sin_zero: [0; 8],
    };
    let mut data = libc::iovec {
        iov_base: b"x".as_ptr().cast_mut().cast(),
        iov_len: 1,
    };
    // SAFETY: all zeros is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_name = (&raw mut name).cast();
    message.msg_namelen = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control>();
    // SAFETY: an open socket, and all that the message points to is ours and as long as it says.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    assert_eq!(sent, 1, "{}", std::io::Error::last_os_error());
}

fn shell(script: &str) -> bool {
    Command::new("sh")
        .args(["-c", script])
        .status()
        .unwrap()
        .success()
}

#[test]
fn the_watcher_wakes_when_an_interface_goes_and_the_log_listens() {
    run(
        "the_watcher_wakes_when_an_interface_goes_and_the_log_listens",
        |bench| {
            let plane = open(bench);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut watcher = plane.watcher().unwrap();
                let (_names, known) = tokio::sync::watch::channel(Names::default());
                let log = tokio::spawn(plane.events().unwrap().run(known));
                watcher.next().await;
                ip("link del up0");
                let woken = tokio::time::timeout(Duration::from_millis(50), watcher.next()).await;
                assert!(
                    woken.is_ok(),
                    "the kernel's announcement comes before the next tick"
                );
                assert!(!log.is_finished());
                log.abort();
            });
        },
    );
}

fn set_mark(socket: &UdpSocket, mark: u32) {
    use std::os::fd::AsRawFd as _;

    // SAFETY: an open socket and four bytes of ours.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MARK,
            std::ptr::from_ref(&mark).cast(),
            4,
        )
    };
    assert_eq!(result, 0);
}
