//! CAP-2: the cap is exact while both CPUs open and close around it, and every place comes back.

use std::time::Duration;

use anyhow::{Result, ensure};
use egress_tests::{
    client::{Churn, Closer},
    config::{Resources, Server},
    needs,
    origin::{ECHO_PORT, HTTP_PORT},
    seed::Random,
    site::{CONNECT_LIMIT, Plan, Site},
    standard::{BOUND, POOL},
    worker::cpus,
};

const CAP: usize = 1000;
const ROUNDS: usize = 200;
/// Attempts beyond the free places, at most.
const MOST_EXTRA: u64 = 200;
/// Closed ports rest for a short time only, so that quarantine holds far less than 90 % of the ports (CAP-2).
const TIMERS: &str = "[timers]\nquarantine = 2";

fn plan() -> Plan {
    Plan {
        server: Server {
            sections: TIMERS.to_owned(),
            ..Server::default()
        },
        resources: Resources {
            addresses: vec![POOL[0].to_string()],
            connections_per_origin: CAP as u32,
            ..Resources::default()
        },
        ..Plan::default()
    }
}

#[test]
fn never_one_too_many_and_never_a_free_place_refused() -> Result<()> {
    const TEST: &str = "never_one_too_many_and_never_a_free_place_refused";

    let Some(_turn) = needs::loud_turn(TEST, &[]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    let mut site = Site::start(&plan())?;
    let check = site.watch()?;
    let origin = site.at_a(ECHO_PORT);
    // A process on each CPU, so that both open at once.
    let mut clients = site.clients(BOUND, cpus())?;
    let mut held = 0;
    for round in 0..ROUNDS {
        let free = CAP - held;
        let attempts = free + random.below(MOST_EXTRA) as usize;
        let opened = clients.open(origin, attempts, CONNECT_LIMIT)?;
        ensure!(
            opened.succeeded == free && opened.refusals() == attempts - free,
            "round {round}: {free} places were free, {attempts} attempts: {opened:?}"
        );
        ensure!(opened.held == CAP, "round {round}: {opened:?}");
        let stats = site.a.stats()?;
        ensure!(
            stats.open <= CAP,
            "round {round}: the origin has {} connections",
            stats.open
        );
        let closing = 1 + random.below(CAP as u64) as usize;
        let closed = clients.close(closing, random.below(2) == 0)?;
        held = closed.held;
        site.wait_active(origin, "tcp", held as u64, CONNECT_LIMIT)?;
    }
    clients.close_all(false)?;
    site.wait_active(origin, "tcp", 0, CONNECT_LIMIT)?;
    check.finish()?;
    Ok(())
}

#[test]
fn short_connections_from_both_cpus_leave_nothing_behind() -> Result<()> {
    const TEST: &str = "short_connections_from_both_cpus_leave_nothing_behind";

    let Some(_turn) = needs::loud_turn(TEST, &[]) else {
        return Ok(());
    };
    let site = Site::start(&plan())?;
    // Whoever closes first remembers the port for a minute: on a fast machine the ordinary 28,000 ports would run out.
    site.node(BOUND)
        .sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    let check = site.watch()?;
    let mut clients = site.clients(BOUND, cpus())?;
    for closer in [Closer::Server, Closer::Client] {
        let churn = Churn {
            target: site.at_a(HTTP_PORT),
            duration_ms: 3000,
            parallel: 50,
            closer,
        };
        let churned = clients.churn(churn)?;
        ensure!(
            churned.refusals() + churned.failures() + churned.timed_out == 0,
            "{closer:?} closes first: {churned:?}"
        );
        ensure!(
            churned.seen.keys().all(|seen| *seen == POOL[0].to_string()),
            "{churned:?}"
        );
        println!("{closer:?} closes first: {} connections", churned.succeeded);
        // What was cut off when the time was up ends as well.
        site.wait_active(site.at_a(HTTP_PORT), "tcp", 0, Duration::from_secs(60))?;
    }
    check.finish()?;
    Ok(())
}
