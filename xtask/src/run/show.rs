//! What a run prints.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use egress_tests::{
    config::{POOL_NAME, ZONE_NAME},
    gateway::{COUNTS, COUNTS_V6},
    needs,
    site::Site,
    standard::{
        A, B, BOUND_ADDRESS, BOUND_ADDRESS_V6, DEFAULT_EGRESS, DEFAULT_EGRESS_V6, POOL, RANGE,
        UNBOUND_ADDRESS, UNBOUND_ADDRESS_V6, ZONE_PREFIX, ZONE_PREFIX_V6,
    },
};
use serde_json::Value;

use super::traffic::Sight;

/// Lines of a list that are shown; the commands print all.
const SHOWN: usize = 12;

/// What stands.
pub(crate) fn intro(site: &Site, took: Duration) {
    println!(
        "The lab is up and the daemon ready, after {:.1} s:\n",
        took.as_secs_f32()
    );
    let both = |node: &str| {
        let [ipv4, ipv6] = site.kind.addresses(node);
        format!("{ipv4}, {ipv6}")
    };
    let bound = format!("{BOUND_ADDRESS}, {BOUND_ADDRESS_V6}");
    let unbound = format!("{UNBOUND_ADDRESS}, {UNBOUND_ADDRESS_V6}");
    println!(
        "  bound    {bound:<21} ┐             ┌ origin A  {}",
        both(A)
    );
    println!("  {:<31}├── gateway ──┤", "");
    println!(
        "  unbound  {unbound:<21} ┘             └ origin B  {}\n",
        both(B)
    );
    println!(
        "  zone {ZONE_NAME} ({ZONE_PREFIX}, {ZONE_PREFIX_V6}) leaves from pool {POOL_NAME}: {}, {}, {RANGE}",
        POOL[0], POOL[1]
    );
    println!(
        "  everything else leaves from the gateway's own addresses, {DEFAULT_EGRESS} and {DEFAULT_EGRESS_V6}\n"
    );
}

/// What the origins saw, as a table.
pub(crate) fn sights(sights: &[Sight]) {
    println!("== What the origins saw");
    println!(
        "{:<9}{:<9}{:<22}{:<38}it should be",
        "client", "protocol", "origin", "seen"
    );
    for sight in sights {
        let seen = match &sight.seen {
            Ok(seen) => seen.to_string(),
            Err(_) => "nothing".to_owned(),
        };
        let mark = if sight.is_right() { "ok" } else { "WRONG" };
        println!(
            "{:<9}{:<9}{:<22}{seen:<38}{}: {mark}",
            sight.client,
            sight.protocol,
            sight.origin.to_string(),
            sight.expected()
        );
        if let Err(error) = &sight.seen {
            println!("         {error:#}");
        }
    }
}

/// What the data plane counts: the map itself, and what the commands make of it.
pub(crate) fn state(site: &Site) -> Result<()> {
    for map in [COUNTS, COUNTS_V6] {
        print!("{}", counts_map(site, map)?);
    }
    for command in [&["origins"][..], &["flows"]] {
        println!("\n== egress {}", command.join(" "));
        print!("{}", cut(&site.gateway.text(command)?));
    }
    Ok(())
}

/// One picture of the live view.
pub(crate) fn live(site: &Site) -> Result<String> {
    let mut view = String::new();
    for command in [&["status"][..], &["origins"], &["flows"]] {
        writeln!(
            view,
            "== egress {}\n{}",
            command.join(" "),
            cut(&site.gateway.text(command)?)
        )?;
    }
    Ok(view)
}

/// The entries of the connection counts in use, as bpftool names their fields.
fn counts_map(site: &Site, map: &str) -> Result<String> {
    let mut text = format!(
        "\n== bpftool map dump pinned {}/maps/{map}\n",
        site.gateway.pin().display()
    );
    if !needs::has_bpftool() {
        text.push_str("(bpftool is not installed)\n");
        return Ok(text);
    }
    let dump = site.gateway.map_dump(map)?;
    let used: Vec<_> = dump
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| &entry["formatted"])
        .filter(in_use)
        .collect();
    for entry in used.iter().take(SHOWN) {
        writeln!(text, "{entry}")?;
    }
    writeln!(text, "({} entries in use)", used.len())?;
    Ok(text)
}

fn in_use(entry: &&Value) -> bool {
    entry["value"]["active"]
        .as_u64()
        .is_some_and(|active| active > 0)
        || entry["value"]["admitted"]
            .as_u64()
            .is_some_and(|admitted| admitted > 0)
}

/// The first lines of a list.
fn cut(text: &str) -> String {
    let lines = text.lines().count();
    let mut shown: String = text
        .lines()
        .take(SHOWN)
        .flat_map(|line| [line, "\n"])
        .collect();
    if lines > SHOWN {
        // Writing to a String does not fail.
        let _ = writeln!(shown, "... and {} more", lines - SHOWN);
    }
    shown
}
