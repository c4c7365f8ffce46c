//! What a run prints.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use egress_tests::{
    config::{POOL_NAME, ZONE_NAME},
    gateway::COUNTS,
    needs,
    site::Site,
    standard::{A, B, BOUND_ADDRESS, DEFAULT_EGRESS, POOL, UNBOUND_ADDRESS, ZONE_PREFIX},
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
    let [bound, unbound] = [BOUND_ADDRESS, UNBOUND_ADDRESS].map(|address| address.to_string());
    let [a, b] = [A, B].map(|node| site.kind.origin(node));
    println!("  bound    {bound:<12}┐             ┌ origin A  {a}");
    println!("  {:<21}├── gateway ──┤", "");
    println!("  unbound  {unbound:<12}┘             └ origin B  {b}\n");
    println!(
        "  zone {ZONE_NAME} ({ZONE_PREFIX}) leaves from pool {POOL_NAME}: {}, {}",
        POOL[0], POOL[1]
    );
    println!("  everything else leaves from the gateway's own address, {DEFAULT_EGRESS}\n");
}

/// What the origins saw, as a table.
pub(crate) fn sights(sights: &[Sight]) {
    println!("== What the origins saw");
    println!(
        "{:<9}{:<9}{:<24}{:<18}it should be",
        "client", "protocol", "origin", "seen"
    );
    for sight in sights {
        let seen = match &sight.seen {
            Ok(seen) => seen.to_string(),
            Err(_) => "nothing".to_owned(),
        };
        let mark = if sight.is_right() { "ok" } else { "WRONG" };
        println!(
            "{:<9}{:<9}{:<24}{seen:<18}{}: {mark}",
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
    print!("{}", counts_map(site)?);
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
fn counts_map(site: &Site) -> Result<String> {
    let mut text = format!(
        "\n== bpftool map dump pinned {}/maps/{COUNTS}\n",
        site.gateway.pin().display()
    );
    if !needs::has_bpftool() {
        text.push_str("(bpftool is not installed)\n");
        return Ok(text);
    }
    let dump = site.gateway.map_dump(COUNTS)?;
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
        || entry["value"]["peak"].as_u64().is_some_and(|peak| peak > 0)
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
