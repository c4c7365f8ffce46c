//! `cargo xtask run --topology three-locations`: where a connection goes whose pool other servers own.
//!
//! It ends with success only if each of the four cases was met, the captures, `egress why` and `egress flows` agree
//! about each, no foreign source reached an origin, and new connections went elsewhere when a server was gone.

use std::{
    fmt::Write as _,
    io::{IsTerminal as _, stdout},
    net::{SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    cities::{self, Case, Cities, Plan, SERVERS, Walk},
    interrupt,
    leak::{LeakCheck, Rules},
    peer::{self, Caller},
    wait,
};
use serde_json::Value;

use super::{daemon, helpers, watch_with};
use crate::{programs, workspace::Workspace};

/// The port at which the origin listens.
const PORT: u16 = 9_000;
/// Connections that are tried until the network brings an answer to a server that does not own the flow.
const TRIES: usize = 64;
/// How long an attempt to connect may take while a server is gone.
const PATIENCE: Duration = Duration::from_millis(300);
/// What a busy machine may take for anything.
const LIMIT: Duration = Duration::from_secs(60);
/// The pool that Frankfurt's second data center shares with Amsterdam.
const SECOND: usize = 2;

/// Sets the lab up and shows everything.
pub(super) fn show(workspace: &Workspace, once: bool) -> Result<()> {
    programs::provide(workspace, &["etcd", "bird"])?;
    let binary = daemon(workspace)?;
    helpers(workspace, false)?;
    let live = !once && stdout().is_terminal();
    interrupt::defer();
    let start = Instant::now();
    let lab = Cities::start(&Plan {
        binary: Some(binary),
        ..Plan::whole(cities::resources(7_000, 9_000))
    })?;
    intro(&lab, start.elapsed())?;
    let (node, address) = cities::ORIGINS[0];
    let origin = lab.lab.node(node);
    let rules = Rules::new().allow((1..=cities::POOLS).map(cities::egress_ip));
    let check = LeakCheck::start(&origin, "eth0", rules)?;
    let listener = peer::listen(&origin, SocketAddr::from((address, PORT)))?;

    let walks = four_cases(&lab, &listener)?;
    steered(&lab, &listener)?;
    if interrupt::caught() {
        bail!("interrupted");
    }
    let took = a_server_goes(&lab, &listener, walks)?;
    if live {
        watch_with("the lab", || table(&lab))?;
    }
    let report = check.finish()?;
    drop(lab);
    println!("\n== Summary");
    println!(
        "  each of the four cases was met; captures, egress why and egress flows agree about all of them"
    );
    println!(
        "  {} packets reached the origin, all of them from the pools' egress IPs",
        report.packets
    );
    println!(
        "  a server gone: {} until its address was no longer routed there, {} until new connections succeeded",
        seconds(took.withdrawn),
        seconds(took.connected)
    );
    Ok(())
}

/// What stands.
fn intro(lab: &Cities, took: Duration) -> Result<()> {
    let [(_, a), (_, b)] = cities::ORIGINS;
    println!(
        "The lab is up after {}: eight servers, each with a client behind it; a router for each data center, which spreads\n\
         what is for an egress IP over its servers (ECMP) as they announce it by BGP; one etcd that all servers share.\n\n\
         \x20 frankfurt  fra01  fra01-s1  fra01-s2 ┐\n\
         \x20            fra02  fra02-s1  fra02-s2 ┤       ┌ origin a  {a}\n\
         \x20 amsterdam  ams01  ams01-s1  ams01-s2 ┼─ net ─┤\n\
         \x20 paris      par01  par01-s1  par01-s2 ┘       └ origin b  {b}\n",
        seconds(took)
    );
    println!("  pool  egress IP   who owns its 31 slices of source ports, 2,048 each");
    let pools = lab.gateways[0].json(&["pools"])?;
    let addresses = pools.as_array().into_iter().flatten();
    let addresses = addresses.flat_map(|pool| pool["addresses"].as_array().into_iter().flatten());
    let mut lines: Vec<String> = addresses.map(owners).collect();
    lines.sort();
    for (number, line) in (1..).zip(lines) {
        println!("  {number:<6}{line}");
    }
    println!("\n  round trips from fra01-s1, measured (here everybody is next door):");
    // All have been asked at least once by then.
    let servers = wait::until("distances", LIMIT, || {
        let status = lab.gateways[0].json(&["status"])?;
        let all = (1..SERVERS.len()).map(|server| distance(&status, server));
        Ok(all.collect::<Option<Vec<_>>>())
    })?;
    println!("  {}", servers.join(", "));
    Ok(())
}

fn owners(address: &Value) -> String {
    let owners = address["owners"].as_array().into_iter().flatten();
    let owners: Vec<String> = owners
        .map(|owner| {
            let slices = owner["slices"].as_array().map_or(0, Vec::len);
            format!("{} {slices}", owner["server"].as_str().unwrap_or("?"))
        })
        .filter(|owner| !owner.ends_with(" 0"))
        .collect();
    let name = address["address"].as_str().unwrap_or("?");
    format!("{name:<12}{}", owners.join(", "))
}

fn distance(status: &Value, server: usize) -> Option<String> {
    let of = &status["servers"][cities::server_address(server).to_string()];
    let microseconds = of["round_trip_us"].as_f64()?;
    Some(format!(
        "{} {:.2} ms",
        SERVERS[server].0,
        microseconds / 1_000.0
    ))
}

/// The cases of FWD-2, one after the other; their connections stay open.
fn four_cases(lab: &Cities, listener: &TcpListener) -> Result<Vec<Walk>> {
    let (owner, neighbour) = lab.owner_and_neighbour(listener.local_addr()?)?;
    let places = [(1, owner), (1, neighbour), (SECOND, 0), (3, 0)];
    let mut walks = Vec::new();
    for (number, (case, (pool, from))) in (1..).zip(Case::ALL.into_iter().zip(places)) {
        println!("\n== {number}. Who translates: {}", case.words());
        let walk = lab.walk(pool, from, listener)?;
        ensure!(walk.case == case, "it was {}", walk.case.words());
        tell(&walk)?;
        walks.push(walk);
    }
    Ok(walks)
}

/// A fifth one: the network brings the answer to a server that knows nothing of the flow.
fn steered(lab: &Cities, listener: &TcpListener) -> Result<()> {
    println!(
        "\n== 5. The network brings the answer to another server than the one that translates"
    );
    let (owner, _) = lab.owner_and_neighbour(listener.local_addr()?)?;
    for _ in 0..TRIES {
        let walk = lab.walk(1, owner, listener)?;
        if walk.was_steered() {
            return tell(&walk);
        }
    }
    bail!("of {TRIES} connections every answer came to its owner: ECMP does not spread them")
}

fn tell(walk: &Walk) -> Result<()> {
    let name = |server: &usize| SERVERS[*server].0;
    let way = |servers: &[usize]| {
        servers
            .iter()
            .map(name)
            .collect::<Vec<_>>()
            .join(" ═tunnel═▶ ")
    };
    let from = walk.out.first().map_or("?", name);
    println!(
        "  client    {} behind {from}, pool {}, to {}",
        walk.live.inside.local_addr()?,
        walk.pool,
        walk.live.origin.local_addr()?
    );
    println!(
        "  way out   client ─▶ {} ─▶ origin, which saw {}",
        way(&walk.out),
        walk.live.seen
    );
    println!("  way back  origin ─▶ {} ─▶ client", way(&walk.back));
    let [first, last] = &walk.listed;
    let owner = SERVERS[walk.owner()].0;
    let listed = if owner == from {
        format!("{from} has it as \"{first}\"")
    } else {
        format!("{from} has it as \"{first}\", {owner} as \"{last}\"")
    };
    println!("  egress    why said \"{}\"; flows: {listed}: ok", walk.why);
    Ok(())
}

/// How long it took.
struct Took {
    withdrawn: Duration,
    connected: Duration,
}

/// The server that translates in the third case loses its link, and gets it back.
fn a_server_goes(lab: &Cities, listener: &TcpListener, walks: Vec<Walk>) -> Result<Took> {
    let gone = walks
        .iter()
        .find(|walk| walk.pool == SECOND)
        .context("no such case")?
        .owner();
    let name = SERVERS[gone].0;
    println!("\n== 6. {name} is cut off");
    let at = listener.local_addr()?;
    let source = cities::inside(SECOND).to_string();
    let ask = || lab.gateways[0].json(&["why", &source, &at.to_string()]);
    let routed = |wanted: bool| {
        wait::until_true("the routes", LIMIT, || {
            Ok(lab.brought_to(SECOND)?.contains(name) == wanted)
        })
    };
    lab.link(gone, false)?;
    let began = Instant::now();
    routed(false)?;
    let withdrawn = began.elapsed();
    let left: Vec<&str> = lab.brought_to(SECOND)?.into_iter().collect();
    println!(
        "  {:>7}  what is for {} is no longer brought there, but to {}",
        seconds(withdrawn),
        cities::egress_ip(SECOND),
        left.join(", ")
    );
    let caller = Caller {
        address: Some(cities::inside(SECOND).into()),
        patience: Some(PATIENCE),
        ..Caller::default()
    };
    let mut failed = 0;
    wait::until_true("a new connection", LIMIT, || {
        let done = caller.connect(&lab.client(0), at).is_ok();
        failed += usize::from(!done);
        Ok(done)
    })?;
    let connected = began.elapsed();
    let server = ask()?["server"].as_str().unwrap_or("?").to_owned();
    println!(
        "  {:>7}  new connections succeed again, by {server}; {failed} attempts had failed until then",
        seconds(connected)
    );
    let (mut alive, mut lost) = (0, 0);
    let mut kept = Vec::new();
    for mut walk in walks {
        if walk.owner() == gone {
            lost += 1;
        } else {
            walk.live.exchange()?;
            alive += 1;
            kept.push(walk);
        }
    }
    println!(
        "           of the four connections above {lost} was translated there; the other {alive} go on"
    );

    lab.link(gone, true)?;
    let began = Instant::now();
    routed(true)?;
    println!(
        "  and back:\n  {:>7}  routed there again",
        seconds(began.elapsed())
    );
    wait::until_true("the server to count as there", LIMIT, || {
        let status = lab.gateways[0].json(&["status"])?;
        let address = cities::server_address(gone).to_string();
        Ok(status["servers"][address]["state"] == "alive")
    })?;
    println!(
        "  {:>7}  gets new connections again: it has to answer for ten seconds first",
        seconds(began.elapsed())
    );
    for walk in &mut kept {
        walk.live.exchange()?;
    }
    Ok(Took {
        withdrawn,
        connected,
    })
}

/// One picture of the live view.
fn table(lab: &Cities) -> Result<String> {
    let mut view = format!(
        "{:<10}{:>8}{:>10}{:>12}{:>12}{:>14}\n",
        "SERVER", "LOCAL", "FORWARDED", "FOR OTHERS", "SENT ON", "FROM OTHERS"
    );
    for (gateway, (name, ..)) in lab.gateways.iter().zip(SERVERS) {
        let flows = gateway.text(["flows", "--json"])?;
        let count = |beginning: &str| {
            let with = format!("\"path\":\"{beginning}");
            flows.lines().filter(|line| line.contains(&with)).count()
        };
        let status = gateway.json(&["status"])?;
        let peers = status["peers"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let sum = |key: &str| {
            peers
                .iter()
                .filter_map(|peer| peer[key].as_u64())
                .sum::<u64>()
        };
        writeln!(
            view,
            "{name:<10}{:>8}{:>10}{:>12}{:>12}{:>14}",
            count("local"),
            count("peer "),
            count("from "),
            sum("sent_packets"),
            sum("received_packets")
        )?;
    }
    Ok(view + "flows by path, and packets through the tunnel\n")
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f32())
}
