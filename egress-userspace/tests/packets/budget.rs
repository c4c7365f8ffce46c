//! How much the verifier looks at: growth is a decision, not an accident.

use crate::harness::{DataPlane, Hook};

/// Programs, and the most instructions the verifier may look at.
const BUDGETS: [(&str, u32); 7] = [
    ("inside_ingress", 1_500),
    ("uplink_egress", 240_000),
    ("uplink_guard", 50_000),
    ("uplink_ingress", 200_000),
    ("arm", 24_000),
    ("end_flow", 10_000),
    ("inject", 100),
];

#[test]
fn every_program_loads_within_its_budget() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    assert_eq!(BUDGETS.len(), Hook::ALL.len());
    for (name, budget) in BUDGETS {
        let verified = plane.verified(name);
        println!("{name}: {verified} of {budget}");
        assert!(verified <= budget, "{name}: {verified} > {budget}");
    }
}
