//! How much the verifier looks at: growth is a decision, not an accident.
//!
//! Verifiers differ: each kernel that is tested has a column of its own (`cargo xtask test --kernels`).

use crate::harness::{DataPlane, Hook, kernel};
use crate::world::World;

/// Linux versions, in order. One in between, or a newer one, goes by the last that is not newer.
const KERNELS: [(u32, u32); 4] = [(6, 1), (6, 12), (6, 18), (7, 2)];

/// Programs, and the most instructions the verifier may look at on each of [`KERNELS`]; it gives up at a million.
const BUDGETS: [(&str, [u32; KERNELS.len()]); 9] = [
    ("inside_ingress", [160_000, 160_000, 90_000, 90_000]),
    // Fragments and errors that follow a forwarded flow, one-second maxima and the tag's number took the last of 260,000.
    ("uplink_egress", [450_000, 400_000, 300_000, 400_000]),
    // It asks which configuration a packet was found unbound by, ahead of everything else that it looks at.
    ("uplink_guard", [200_000, 180_000, 70_000, 70_000]),
    ("uplink_ingress", [300_000, 300_000, 200_000, 200_000]),
    // The same steps as `uplink_egress`, for IPv4 alone.
    ("tunnel_ingress", [300_000, 300_000, 200_000, 300_000]),
    ("tunnel_egress", [200_000, 200_000, 120_000, 200_000]),
    // Records of what closes, and times of what was connected: the oldest and the newest kernel look at more of it.
    ("arm", [120_000, 60_000, 32_000, 120_000]),
    ("end_flow", [60_000, 30_000, 14_000, 16_000]),
    ("inject", [100, 100, 100, 100]),
];

#[test]
fn every_program_loads_within_its_budget() {
    // With everything a program can do.
    let all = World {
        accelerate: true,
        ..World::default()
    };
    let Some(plane) = DataPlane::of(all) else {
        return;
    };
    assert_eq!(BUDGETS.len(), Hook::ALL.len());
    let (major, minor) = kernel();
    let column = KERNELS
        .iter()
        .rposition(|kernel| *kernel <= (major, minor))
        .unwrap_or(0);
    // All of them, before any of them fails the test.
    let over: Vec<String> = BUDGETS
        .iter()
        .filter_map(|(name, budgets)| {
            let (verified, budget) = (plane.verified(name), budgets[column]);
            println!("VERIFIED: {name}: {verified} of {budget}, Linux {major}.{minor}");
            (verified > budget).then(|| format!("{name}: {verified} > {budget}"))
        })
        .collect();
    assert!(
        over.is_empty(),
        "on Linux {major}.{minor}: {}",
        over.join(", ")
    );
}
