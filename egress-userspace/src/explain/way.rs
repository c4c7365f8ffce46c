//! Routes, hooks and tables: what else can become of a packet than rules and counts say.

use egress_common::reason::Reason;

use super::{Explanation, Outcome, refused};
use crate::dataplane::api::{Exit, Way};

/// What becomes of the packet otherwise than the rules say, because of routes, hooks and tables.
pub(super) fn on_its_way(explanation: &Explanation, way: &Way) -> Option<Outcome> {
    let stays = |text: String| Some(Outcome::StaysInside { text });
    let bound = !matches!(explanation.outcome, Outcome::DefaultEgress { .. });
    match way.exit.as_ref()? {
        Exit::NoRoute { text } => {
            return Some(Outcome::NoRoute { text: text.clone() });
        }
        Exit::Here => return stays("it is for this host itself".to_owned()),
        Exit::Inside { interface } => {
            return stays(format!("it leaves by {interface}, an inside interface"));
        }
        Exit::Elsewhere { interface } if bound => {
            return Some(dropped(format!(
                "it would leave by {interface}, which is no uplink: the guard drops it (SAFE-6)"
            )));
        }
        Exit::Uplink {
            unusable: Some(text),
            ..
        } if bound => {
            return Some(dropped(format!("{text}: the guard drops it (SAFE-6)")));
        }
        Exit::Uplink {
            interface, missing, ..
        } if bound && !missing.is_empty() => {
            return Some(dropped(format!(
                "{} is not in place on {interface}: the guard drops it until it is (SAFE-6)",
                missing.join(", ")
            )));
        }
        Exit::Uplink { .. } | Exit::Elsewhere { .. } => {}
    }
    if way.lapsed && needs_an_address(explanation) {
        return Some(refused(Reason::Lapsed));
    }
    let Outcome::Admitted { egress_ip } = explanation.outcome else {
        return None;
    };
    let counted = explanation
        .candidates
        .iter()
        .any(|candidate| candidate.egress_ip == egress_ip && candidate.active != Some(0));
    if way.flows_full {
        Some(refused(Reason::TableFull))
    } else if way.origins_full && !counted {
        Some(refused(Reason::OriginTableFull))
    } else {
        None
    }
}

/// Whether the packet would leave by an egress IP of this server, or does not since all of them drain.
fn needs_an_address(explanation: &Explanation) -> bool {
    match &explanation.outcome {
        Outcome::Admitted { .. } => true,
        Outcome::LiveFlow { flow } => flow.path == "local",
        Outcome::Refused { reason, .. } => reason == Reason::NoAddress.label(),
        _ => false,
    }
}

fn dropped(text: String) -> Outcome {
    Outcome::Refused {
        reason: Reason::HookMissing.label().into(),
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CandidateVerdict, Query, Traffic, Verdict, default_egress};
    use super::*;

    fn explained(outcome: Outcome) -> Explanation {
        Explanation {
            query: Query {
                source: "10.1.0.2".parse().unwrap(),
                source_port: None,
                destination: "203.0.113.5".parse().unwrap(),
                destination_port: 443,
                protocol: Traffic::Tcp,
                mark: 0,
                interface: None,
                cgroup: None,
            },
            rule: None,
            also_matching: Vec::new(),
            zone: None,
            policy: None,
            by_source_port: Vec::new(),
            regions: Vec::new(),
            pool: None,
            candidates: vec![CandidateVerdict {
                egress_ip: [192, 0, 2, 1].into(),
                active: Some(0),
                capacity: 10,
                draining: false,
                withdrawn: None,
                verdict: Verdict::Free,
            }],
            path: None,
            exit: None,
            outcome,
        }
    }

    fn admitted() -> Outcome {
        Outcome::Admitted {
            egress_ip: [192, 0, 2, 1].into(),
        }
    }

    fn by(exit: Exit) -> Way {
        Way {
            exit: Some(exit),
            ..Way::default()
        }
    }

    fn uplink(missing: &[&str]) -> Exit {
        Exit::Uplink {
            interface: "up0".into(),
            missing: missing.iter().map(|name| (*name).to_owned()).collect(),
            unusable: None,
        }
    }

    fn reason(outcome: Option<Outcome>) -> String {
        match outcome {
            Some(Outcome::Refused { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_bound_leaves_by_a_whole_uplink_only() {
        let elsewhere = by(Exit::Elsewhere {
            interface: "eth9".into(),
        });
        let whole = by(uplink(&[]));
        let broken = by(uplink(&["uplink_egress"]));
        let port = by(Exit::Uplink {
            interface: "up0".into(),
            missing: Vec::new(),
            unusable: Some("up0 is a port of br0".into()),
        });
        assert_eq!(on_its_way(&explained(admitted()), &whole), None);
        assert_eq!(on_its_way(&explained(admitted()), &Way::default()), None);
        for way in [&elsewhere, &broken, &port] {
            assert_eq!(
                reason(on_its_way(&explained(admitted()), way)),
                "hook_missing"
            );
            let unbound = explained(default_egress("no zone selects this packet"));
            assert_eq!(on_its_way(&unbound, way), None);
        }
    }

    #[test]
    fn what_has_no_route_or_stays_is_not_translated() {
        let gone = by(Exit::NoRoute {
            text: "network unreachable".into(),
        });
        let inside = by(Exit::Inside {
            interface: "in0".into(),
        });
        for outcome in [admitted(), default_egress("no zone selects this packet")] {
            let explained = explained(outcome);
            assert!(matches!(
                on_its_way(&explained, &gone),
                Some(Outcome::NoRoute { .. })
            ));
            for way in [&inside, &by(Exit::Here)] {
                assert!(matches!(
                    on_its_way(&explained, way),
                    Some(Outcome::StaysInside { .. })
                ));
            }
        }
    }

    #[test]
    fn clu_3_what_may_be_anothers_is_not_used() {
        let mut way = by(uplink(&[]));
        way.lapsed = true;
        for outcome in [admitted(), refused(Reason::NoAddress)] {
            assert_eq!(reason(on_its_way(&explained(outcome), &way)), "lapsed");
        }
        for outcome in [refused(Reason::Blocked), refused(Reason::CapReached)] {
            assert_eq!(on_its_way(&explained(outcome), &way), None);
        }
    }

    #[test]
    fn full_tables_refuse_what_needs_a_place_in_them() {
        let mut way = by(uplink(&[]));
        way.origins_full = true;
        let mut explained = explained(admitted());
        assert_eq!(reason(on_its_way(&explained, &way)), "origin_table_full");
        explained.candidates[0].active = Some(3);
        assert_eq!(
            on_its_way(&explained, &way),
            None,
            "this origin has its counter"
        );
        way.flows_full = true;
        assert_eq!(reason(on_its_way(&explained, &way)), "table_full");
    }
}
