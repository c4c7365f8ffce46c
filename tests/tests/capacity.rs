//! CAP-1, CAP-2, CAP-5, PERF-9: 40,000 connections to each of two origins from one egress IP, and not one
//! more.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use egress_tests::{
    client::Outcome,
    config::Resources,
    needs,
    origin::{ECHO_PORT, HTTP_PORT},
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded, refused_at_once},
    standard::{BOUND, POOL},
};

const CAP: usize = 40_000;
/// The protocol's number.
const TCP: u8 = 6;
/// Enough client processes for [`CAP`] connections at 20,000 files each.
const PROCESSES: usize = 3;
/// How many more are tried at the cap.
const REFUSALS: usize = 9;
/// How long opening or closing everything may take.
const CROWD_LIMIT: Duration = Duration::from_secs(300);

#[test]
fn forty_thousand_to_each_origin_and_not_one_more() -> Result<()> {
    const TEST: &str = "forty_thousand_to_each_origin_and_not_one_more";

    let Some(_turn) = needs::loud_turn(TEST, &["bpftool"]) else {
        return Ok(());
    };
    let address = POOL[0];
    let resources = Resources {
        addresses: vec![address.to_string()],
        ..Resources::default()
    };
    let mut site = Site::start(&Plan {
        resources,
        ..Plan::default()
    })?;
    let check = site.watch()?;
    let (at_a, at_b) = (site.at_a(ECHO_PORT), site.at_b(ECHO_PORT));
    let mut to_a = site.crowd(PROCESSES)?;
    let mut to_b = site.crowd(PROCESSES)?;

    let begin = Instant::now();
    let (opened_a, opened_b) = both(
        || to_a.open(at_a, CAP, CONNECT_LIMIT),
        || to_b.open(at_b, CAP, CONNECT_LIMIT),
    )?;
    for opened in [&opened_a, &opened_b] {
        all_succeeded(opened, CAP)?;
    }
    // The gateway has let none wait for a second SYN: it has dropped nothing.
    let reasons = &site.gateway.json(&["status"])?["reasons"];
    let mut dropped = reasons.as_array().context("no reasons")?.iter();
    ensure!(
        dropped.all(|reason| reason["packets"] == 0),
        "a first SYN was lost: {reasons}"
    );
    for origin in [&mut site.a, &mut site.b] {
        let stats = origin.accepted(CAP)?;
        ensure!(
            stats.callers.get(&address.into()) == Some(&CAP),
            "{stats:?}"
        );
    }

    println!(
        "{CAP} + {CAP} connections up after {:.1} s; the slowest took {} us",
        begin.elapsed().as_secs_f32(),
        opened_a.success_us.max.max(opened_b.success_us.max)
    );
    let mut one_more = site.clients(BOUND, 1)?;
    for origin in [at_a, at_b] {
        let took = refused(|| one_more.open(origin, REFUSALS, CONNECT_LIMIT))?;
        println!("one more to {origin}: RST after {took} us");
        counted(&site, origin, CAP as u64)?;
    }
    // Every other origin has a count of its own.
    all_succeeded(&one_more.open(site.at_a(HTTP_PORT), 1, CONNECT_LIMIT)?, 1)?;

    let (alive_a, alive_b) = both(|| to_a.check(CROWD_LIMIT), || to_b.check(CROWD_LIMIT))?;
    all_succeeded(&alive_a, CAP)?;
    all_succeeded(&alive_b, CAP)?;

    // A place that is given back is free at once, and only that one.
    to_a.close(1, false)?;
    site.wait_active(at_a, "tcp", CAP as u64 - 1, CONNECT_LIMIT)?;
    all_succeeded(&one_more.open(at_a, 1, CONNECT_LIMIT)?, 1)?;
    refused(|| one_more.open(at_a, REFUSALS, CONNECT_LIMIT))?;

    both(|| to_a.close_all(false), || to_b.close_all(true))?;
    one_more.close_all(false)?;
    for origin in [at_a, at_b, site.at_a(HTTP_PORT)] {
        site.wait_active(origin, "tcp", 0, CROWD_LIMIT)?;
        counted(&site, origin, 0)?;
    }
    check.finish()?;
    Ok(())
}

/// Does two things at once.
fn both(
    one: impl FnOnce() -> Result<Outcome> + Send,
    other: impl FnOnce() -> Result<Outcome> + Send,
) -> Result<(Outcome, Outcome)> {
    thread::scope(|scope| {
        let one = scope.spawn(one);
        let other = other()?;
        let one = one
            .join()
            .map_err(|_| anyhow!("a client's driver panicked"))??;
        Ok((one, other))
    })
}

fn refused(attempt: impl FnMut() -> Result<Outcome>) -> Result<u64> {
    refused_at_once("ECONNREFUSED", REFUSALS, attempt)
}

/// Whether `egress origins` and `bpftool map dump` both say `expected`, from the one egress IP.
fn counted(site: &Site, origin: SocketAddr, expected: u64) -> Result<()> {
    let said = site.active(origin, "tcp")?;
    let SocketAddr::V4(address) = origin else {
        bail!("{origin} is not IPv4");
    };
    let mapped = site.gateway.mapped(address, TCP)?;
    ensure!(
        said == expected && mapped == BTreeMap::from([(POOL[0], expected)]),
        "expected {expected} to {origin}; egress origins says {said}, bpftool {mapped:?}"
    );
    Ok(())
}

#[test]
fn udp_is_counted_apart_and_refused_by_icmp() -> Result<()> {
    const CAP: usize = 500;
    const TEST: &str = "udp_is_counted_apart_and_refused_by_icmp";

    let Some(_turn) = needs::timed_turn(TEST, &[]) else {
        return Ok(());
    };
    let resources = Resources {
        addresses: vec![POOL[0].to_string()],
        connections_per_origin: CAP as u32,
        ..Resources::default()
    };
    let site = Site::start(&Plan {
        resources,
        ..Plan::default()
    })?;
    let check = site.watch()?;
    // The echo service has the same port for both protocols, so this is one origin with two counts.
    let origin: SocketAddr = site.at_a(ECHO_PORT);
    let mut clients = site.clients(BOUND, 2)?;
    all_succeeded(&clients.open(origin, CAP, CONNECT_LIMIT)?, CAP)?;
    let answered = clients.udp(origin, CAP, CONNECT_LIMIT, true)?;
    all_succeeded(&answered, CAP)?;
    ensure!(
        answered.seen.len() == 1 && answered.seen.contains_key(&POOL[0].to_string()),
        "{answered:?}"
    );
    ensure!(site.active(origin, "udp")? == CAP as u64 && site.active(origin, "tcp")? == CAP as u64);
    let mut one_more = site.clients(BOUND, 1)?;
    // ICMP 3/13 reaches the application as this error.
    refused_at_once("EHOSTUNREACH", REFUSALS, || {
        one_more.udp(origin, REFUSALS, CONNECT_LIMIT, false)
    })?;
    check.finish()?;
    Ok(())
}
