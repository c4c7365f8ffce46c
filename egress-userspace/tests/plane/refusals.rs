//! What a start refuses, and by what name.

use std::fs;

use aya::maps::{Array, Map, MapData};
use egress_userspace::config::{Attach, Dataplane};
use egress_userspace::dataplane::api::{DataPlane as _, DataPlaneError};
use egress_userspace::dataplane::{Plane, detach};

use super::open;
use crate::bench::{Bench, device, ip, run};

/// What was refused, and the remedy.
pub(super) fn refusal(result: Result<Plane, DataPlaneError>) -> String {
    match result {
        Ok(_) => panic!("this was to be refused"),
        Err(error) => {
            assert!(
                matches!(error, DataPlaneError::Refused { .. }),
                "no refusal: {error:?}"
            );
            said(&error)
        }
    }
}

/// An error and its remedy.
pub(super) fn said(error: &DataPlaneError) -> String {
    format!("{error}; {}", error.remedy().unwrap())
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
            assert!(said.contains("map MARKS has "), "{said}");
        },
    );
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
                    mark_mask: OTHER_BITS,
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

/// Bits of the mark that are not those of the default.
const OTHER_BITS: u32 = 0x0000_ffff;

/// A second instance on `mgmt0`, which shares nothing with the first.
fn apart(bench: &Bench, attach: Attach) -> Dataplane {
    Dataplane {
        attach,
        uplink: vec!["mgmt0".into()],
        inside: Vec::new(),
        pin: bench.beside("_second"),
        mark_mask: OTHER_BITS,
        ..bench.config()
    }
}

#[test]
fn safe_1_instances_whose_tags_would_be_taken_for_each_others_are_refused() {
    run(
        "safe_1_instances_whose_tags_would_be_taken_for_each_others_are_refused",
        |bench| {
            for attach in [Attach::Auto, Attach::Clsact] {
                let first = Dataplane {
                    attach,
                    ..bench.config()
                };
                drop(Plane::open_or_create(&first).unwrap());
                let second = apart(bench, attach);
                for mark_mask in [first.mark_mask, 0x00ff_ff00] {
                    let said = refusal(Plane::open_or_create(&Dataplane {
                        mark_mask,
                        ..second.clone()
                    }));
                    let theirs = format!("pins are in {} and", bench.pin.display());
                    let bits = format!("bits {mark_mask:#010x}");
                    assert!(
                        said.contains(&theirs)
                            && said.contains("bits 0xffff0000")
                            && said.contains(&bits)
                            && said.contains("mark_mask of its own, for instance \"0x0000ffff\""),
                        "{said}"
                    );
                }
                // Its own bits, but the same inside interface: both would write where a packet enters.
                let said = refusal(Plane::open_or_create(&Dataplane {
                    inside: first.inside.clone(),
                    ..second.clone()
                }));
                assert!(
                    said.contains("already has programs on inside in0")
                        && said.contains("another [dataplane] inside"),
                    "{said}"
                );
                assert!(!second.pin.exists(), "nothing was begun");
                bench.assert_in_place();
                drop(Plane::open_or_create(&second).unwrap());
                // Now the first one would be refused, had it bits of the second: it has none.
                drop(Plane::open_or_create(&first).unwrap());
                detach(&second.pin).unwrap();
                detach(&first.pin).unwrap();
            }
        },
    );
}

/// Starts two instances at one time; returns what the one was told that may not.
fn start_together(configs: &[Dataplane; 2]) -> String {
    let outcomes = std::thread::scope(|scope| {
        let starts = configs
            .each_ref()
            .map(|config| scope.spawn(|| Plane::open_or_create(config).map(drop)));
        starts.map(|start| start.join().unwrap())
    });
    let refused: Vec<_> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().err())
        .collect();
    assert_eq!(refused.len(), 1, "{outcomes:?}");
    let said = refused[0].to_string();
    for config in configs {
        detach(&config.pin).unwrap();
    }
    said
}

#[test]
fn of_two_instances_that_start_together_one_is_refused() {
    run(
        "of_two_instances_that_start_together_one_is_refused",
        |bench| {
            for attach in [Attach::Auto, Attach::Clsact] {
                let first = Dataplane {
                    attach,
                    ..bench.config()
                };
                let same_uplink = Dataplane {
                    pin: bench.beside("_second"),
                    ..first.clone()
                };
                let said = start_together(&[first.clone(), same_uplink]);
                assert!(
                    said.contains("already has programs on uplink up0"),
                    "{said}"
                );
                let same_bits = Dataplane {
                    mark_mask: first.mark_mask,
                    ..apart(bench, attach)
                };
                let said = start_together(&[first, same_bits]);
                assert!(said.contains("keeps its tags in bits 0xffff0000"), "{said}");
            }
        },
    );
}

#[test]
fn an_interface_that_turns_out_to_be_another_instances_is_left_to_it() {
    run(
        "an_interface_that_turns_out_to_be_another_instances_is_left_to_it",
        |bench| {
            for attach in [Attach::Auto, Attach::Clsact] {
                let first = Dataplane {
                    attach,
                    ..bench.config()
                };
                drop(Plane::open_or_create(&first).unwrap());
                let hooks = |bench: &Bench| {
                    let hooks = bench.status().hooks;
                    hooks
                        .into_iter()
                        .map(|hook| (hook.hook, hook.program_id))
                        .collect::<Vec<_>>()
                };
                let before = hooks(bench);
                let second = apart(bench, attach);
                let mut plane = Plane::open_or_create(&second).unwrap();
                // Somebody gives the first one's uplink the name of the second one's.
                ip("link del mgmt0");
                ip("link set up0 down");
                ip("link set up0 name mgmt0");
                ip("link set mgmt0 up");
                for _ in 0..3 {
                    let said = plane.repair().unwrap_err().to_string();
                    assert!(
                        said.contains("already has programs on uplink mgmt0"),
                        "{said}"
                    );
                }
                ip("link set mgmt0 down");
                ip("link set mgmt0 name up0");
                ip("link set up0 up");
                assert_eq!(
                    hooks(bench),
                    before,
                    "nothing of the first one was replaced"
                );
                bench.link("mgmt0");
                plane.repair().unwrap();
                drop(plane);
                detach(&second.pin).unwrap();
                bench.assert_in_place();
                detach(&first.pin).unwrap();
            }
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

/// What a port receives is its bridge's to routing and netfilter: as an inside interface the guard would not know its
/// packets, as an uplink it would let none out.
#[test]
fn safe_6_a_port_is_refused_by_the_name_of_its_bridge() {
    const TEST: &str = "safe_6_a_port_is_refused_by_the_name_of_its_bridge";

    run(TEST, |bench| {
        if !device(TEST, "br0 type bridge") {
            return;
        }
        for (port, key) in [("up0", "uplink"), ("in0", "inside")] {
            ip(&format!("link set {port} master br0"));
            let said = refusal(Plane::open_or_create(&bench.config()));
            assert!(
                said.contains(&format!("interface {port} is a port of the bridge br0"))
                    && said.contains("name br0 instead"),
                "{key}: {said}"
            );
            assert!(!bench.pin.exists(), "nothing was begun");
            // The bridge itself serves.
            let mut config = bench.config();
            let names = match key {
                "uplink" => &mut config.uplink,
                _ => &mut config.inside,
            };
            *names = vec!["br0".to_owned()];
            drop(Plane::open_or_create(&config).unwrap());
            detach(&bench.pin).unwrap();
            ip(&format!("link set {port} nomaster"));
        }
        // One that becomes a port while the daemon runs is no uplink meanwhile.
        let mut plane = open(bench);
        ip("link set up0 master br0");
        let error = plane.repair().unwrap_err().to_string();
        assert!(error.contains("up0 is a port of the bridge br0"), "{error}");
        ip("link set up0 nomaster");
        plane.repair().unwrap();
        bench.assert_in_place();
        // A VRF's interfaces keep their packets.
        if device(TEST, "vrf0 type vrf table 77") {
            ip("link set in0 master vrf0");
            plane.repair().unwrap();
        }
    });
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
