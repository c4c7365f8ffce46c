//! What egress policies cost the first packet of a flow.

use std::fmt::Write as _;

use anyhow::Result;
use egress_tests::{
    config::Resources,
    standard::{POOL, RANGE},
};

use super::{
    NEW_FLOWS, Setting, cost, rig,
    rig::{ORIGIN_ADDRESS, Variant},
    table::Table,
};

/// How many are many (POLICY-1).
const MANY: usize = 500;

/// The cost of a packet that opens a flow, which only the last of all policies matches.
pub(super) fn first_packets(setting: &Setting) -> Result<Table> {
    let one = Variant::Policies(1);
    let mut variants = vec![Variant::Egress, one, Variant::Policies(MANY)];
    let mut table = Table::new(
        "policies",
        format!(
            "64-byte UDP, every packet opens a flow by the last policy, whole path, {} x {NEW_FLOWS} packets",
            setting.rounds
        ),
        "ns/packet",
        "POLICY-1: 500 policies <= 1.10 x one",
    )
    .against([("none", Variant::Egress), ("one", one)]);
    if setting.daemon.is_none() {
        variants.clear();
    }
    for round in 0..setting.rounds {
        // Who comes first changes, so that nobody always has the machine that another one left behind.
        let count = variants.len();
        for at in 0..count {
            let variant = variants[(at + round) % count];
            let rig = rig(setting, variant)?.drop_at_origin()?;
            table.add(variant, cost(variant, &rig, NEW_FLOWS, NEW_FLOWS, 0)?);
        }
    }
    Ok(table)
}

/// All but the last are near misses: the origin's own prefix with other ports, prefixes around it, other sources.
pub(super) fn resources(count: usize) -> Resources {
    let mut text = String::new();
    for n in 0..count.saturating_sub(1) {
        let traffic = match n % 3 {
            0 => format!(
                "net.dst.ip in {{{ORIGIN_ADDRESS}}} and net.dst.port == {}",
                n + 1
            ),
            1 => format!(
                "net.dst.ip in {{203.0.{}.0/24}} and net.dst.port > {n}",
                114 + n % 100
            ),
            _ => format!(
                "net.src.ip in {{10.1.{}.0/24}} and net.protocol == \"udp\"",
                1 + n % 250
            ),
        };
        // Writing to a String does not fail.
        let _ = write!(
            text,
            "[[policy]]\nname = \"p{n}\"\naccount = \"acme\"\nprecedence = {n}\ntraffic = '{traffic}'\n"
        );
    }
    let _ = write!(
        text,
        "[[policy]]\nname = \"all\"\naccount = \"acme\"\nprecedence = 10000\n\
         egress = {{ ipv4 = \"{}\", ipv4_fallback = \"0.0.0.0\", ipv6 = \"{RANGE}\" }}\n",
        POOL[0]
    );
    Resources {
        sections: text,
        ..Resources::both_families()
    }
}
