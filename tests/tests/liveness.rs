//! FWD-7: a server that is gone gets no new connections within three seconds, those that are elsewhere do not notice, and
//! one that is back gets some after a while.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    cities::{self, Cities, Plan},
    leak::{LeakCheck, Rules},
    needs,
    pair::{ORIGIN, ORIGIN_ADDRESS},
    peer, wait,
};

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// What a busy machine may take for anything.
const LIMIT: Duration = Duration::from_secs(60);
/// The pool that Amsterdam and Paris have, and Frankfurt has not.
const POOL: usize = 3;

/// What the first server knows of another one.
fn state(lab: &Cities, server: usize) -> Result<String> {
    let status = lab.gateways[0].json(&["status"])?;
    let address = cities::server_address(server).to_string();
    let state = status["servers"][&address]["state"].as_str();
    Ok(state
        .with_context(|| format!("no {address}: {status}"))?
        .to_owned())
}

/// The server that the first one sends the zone's new connections to, numbered from 0.
fn chosen(lab: &Cities) -> Result<Option<usize>> {
    let source = cities::inside(POOL).to_string();
    let destination = format!("{ORIGIN_ADDRESS}:{PORT}");
    let why = lab.gateways[0].json(&["why", &source, &destination])?;
    Ok(why["server"].as_str().and_then(cities::server_named))
}

fn wait_state(lab: &Cities, server: usize, wanted: &str) -> Result<()> {
    wait::until_true(wanted, LIMIT, || Ok(state(lab, server)? == wanted))
        .with_context(|| lab.gateways[0].last_words())
}

#[test]
fn a_server_that_is_gone_gets_no_new_connections() -> Result<()> {
    const TEST: &str = "a_server_that_is_gone_gets_no_new_connections";

    let Some(_turn) = needs::timed_turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let lab = Cities::start(&Plan {
        sections: String::new(),
        ..Plan::new(cities::resources(7_000, 9_000))
    })?;
    for server in 1..cities::SERVERS.len() {
        wait_state(&lab, server, "alive")?;
    }
    // Whatever the origin gets is from one of the pools, whoever sends it.
    let rules = Rules::new().allow((1..=3).map(cities::egress_ip));
    let check = LeakCheck::start(&lab.lab.node(ORIGIN), "eth0", rules)?;
    let first = chosen(&lab)?.context("no server is chosen")?;
    ensure!(first >= 4, "{first}");
    // Neither that server nor one of its data center: the first of the other city.
    let other = if first < 6 { 6 } else { 4 };
    // Replies find their owner from anywhere (FWD-5).
    lab.replies_to(POOL, other)?;
    let listener = peer::listen(&lab.lab.node(ORIGIN), (ORIGIN_ADDRESS, PORT).into())?;
    let mut before = lab.connect(POOL, 0, &listener)?;
    before.exchange()?;
    // One that is elsewhere: this server's own.
    lab.replies_to(1, 0)?;
    let mut elsewhere = lab.connect(1, 0, &listener)?;

    lab.link(first, false)?;
    let began = Instant::now();
    wait::until_true("new connections to go elsewhere", LIMIT, || {
        Ok(chosen(&lab)?.is_some_and(|now| now != first))
    })
    .with_context(|| lab.gateways[0].last_words())?;
    println!("noticed, and in force, after {:?}", began.elapsed());
    ensure!(state(&lab, first)? == "silent");
    let mut after = lab.connect(POOL, 0, &listener)?;
    after.exchange()?;
    elsewhere.exchange()?;

    // Back: not at once.
    let began = Instant::now();
    lab.link(first, true)?;
    wait_state(&lab, first, "returning")?;
    wait_state(&lab, first, "alive")?;
    let took = began.elapsed();
    println!("returned after {took:?}");
    ensure!(took > Duration::from_secs(8), "no damping: {took:?}");
    // Those that went elsewhere stay there (FWD-4).
    after.exchange()?;
    elsewhere.exchange()?;
    check.finish()?;
    Ok(())
}
