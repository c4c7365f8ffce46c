//! Programs on interfaces: where they run, how they are exchanged, and that they come off again (SAFE-4).

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, loaded_programs};
use egress_userspace::config::{Attach, Dataplane};
use egress_userspace::dataplane::api::{DataPlane as _, DataPlaneView as _, Names};
use egress_userspace::dataplane::{Plane, View, detach};

use super::open;
use super::refusals::refusal;
use crate::bench::{Bench, desired, has_tcx, needs_tcx, output, run};

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

/// A data plane with an enabled zone.
fn with_a_zone(config: &Dataplane) -> Plane {
    let mut plane = Plane::open_or_create(config).unwrap();
    let zone = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
    plane.apply(&zone).unwrap();
    plane
}

#[test]
fn safe_4_detach_leaves_nothing_and_says_so() {
    run("safe_4_detach_leaves_nothing_and_says_so", |bench| {
        for attach in [Attach::Tcx, Attach::Clsact] {
            let config = Dataplane {
                attach,
                ..bench.config()
            };
            drop(with_a_zone(&config));
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

            if !needs_tcx("clsact_filters_are_exchanged_for_tcx") {
                return;
            }
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
fn auto_attaches_as_the_kernel_can_and_demanding_tcx_is_refused_without_it() {
    run(
        "auto_attaches_as_the_kernel_can_and_demanding_tcx_is_refused_without_it",
        |bench| {
            let kind = if has_tcx() { "tcx" } else { "clsact" };
            drop(open(bench));
            bench.assert_in_place();
            let status = bench.status();
            assert!(
                status.hooks.iter().all(|hook| hook.kind == kind),
                "{kind}: {status:?}"
            );
            detach(&bench.pin).unwrap();
            let demanded = Plane::open_or_create(&Dataplane {
                attach: Attach::Tcx,
                ..bench.config()
            });
            if has_tcx() {
                drop(demanded.unwrap());
                return bench.assert_in_place();
            }
            let said = refusal(demanded);
            assert!(said.contains("6.6"), "{said}");
            assert!(!bench.pin.exists(), "nothing is left of the attempt");
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
            let _plane = with_a_zone(&one);
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
