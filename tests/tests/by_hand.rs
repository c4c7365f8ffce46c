//! SAFE-1 and SAFE-6: what administrators do to the gateway by hand, under load and watched where packets arrive.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use egress_tests::{
    config::{Resources, Server},
    leak::{LeakCheck, Report, Rules},
    load::{seen_from_pool, total, under_load},
    needs,
    netns::run,
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{
        BOUND, BOUND_ADDRESS, DEFAULT_EGRESS, GATEWAY, INSIDE_BOUND, Masquerade, NET, Options,
        POOL, SECOND_UPLINK, UPLINK,
    },
    wait,
};

/// What a daemon that looks after its hooks may take on a machine that has others to serve.
const HOOK_LIMIT: Duration = Duration::from_secs(30);
/// Time between two packets of a steady sender.
const PACE: Duration = Duration::from_micros(500);
/// How often something is taken away.
const ROUNDS: usize = 20;

/// Both families, so that IPv6 is the zone's as well; pings would take the default egress (POLICY-7).
fn plan() -> Plan {
    Plan {
        server: Server {
            sections: "[exempt]\nicmp_queries = \"drop\"".to_owned(),
            ..Server::default()
        },
        resources: Resources {
            selectors: "sources = [\"10.1.0.0/16\", \"fd00:1::/64\"]".to_owned(),
            ..Resources::default()
        },
        ..Plan::default()
    }
}

/// Sends a packet of the zone every half a millisecond to an origin while `fault` happens.
fn steadily(site: &Site, fault: impl FnOnce(&Site) -> Result<()>) -> Result<()> {
    let origin: SocketAddr = site.at_b(UDP_PORT);
    let socket = site
        .node(BOUND)
        .run(|| UdpSocket::bind((BOUND_ADDRESS, 0)))??;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                // Refusals come back as errors, and are what is wanted where the guard is.
                drop(socket.send_to(b"x", origin));
                thread::sleep(PACE);
            }
        });
        let result = fault(site);
        stop.store(true, Ordering::SeqCst);
        sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        result
    })
}

/// Whether this kernel has tables that can be held and outlive their holder.
fn can_hold() -> Result<bool> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    Ok((numbers.next(), numbers.next()) >= (Some(6), Some(9)))
}

/// Flushes the ruleset over and over, with the default route on an interface that is no uplink of ours: only the
/// guard keeps the zone's packets off it. Tells what left there, and how long the guard was gone: each time at most, and
/// altogether.
fn flushed(dataplane: &str) -> Result<(Report, Duration, Duration)> {
    let mut plan = plan();
    plan.server.dataplane = dataplane.to_owned();
    plan.network = Options {
        second_uplink: true,
        ..Options::default()
    };
    let site = Site::start(&plan)?;
    let uplink = site.watch()?;
    let gateway = site.node(GATEWAY);
    seen_from_pool(&site, site.at_a(HTTP_PORT))?;
    // By an uplink of ours it makes no difference at all: the programs there decide.
    steadily(&site, |_| {
        (0..ROUNDS).try_for_each(|_| flush_and_wait(&site).map(drop))
    })?;
    uplink.finish()?;

    gateway.ip("route replace default via 172.31.0.1 dev up1")?;
    let second = LeakCheck::start(&site.node(NET), SECOND_UPLINK, Rules::new())?;
    let (mut longest, mut all) = (Duration::ZERO, Duration::ZERO);
    steadily(&site, |site| {
        for _ in 0..ROUNDS {
            let gone = flush_and_wait(site)?;
            longest = longest.max(gone);
            all += gone;
        }
        Ok(())
    })?;
    Ok((second.report()?, longest, all))
}

/// Whether no more packets left than were sent while nobody kept them: how long that is depends on the machine, and
/// that the daemon does not wait for its next look is tested where it listens.
fn only_meanwhile(report: &Report, gone: Duration) -> Result<()> {
    let sent = gone.as_micros() / PACE.as_micros() + ROUNDS as u128;
    ensure!(
        u128::from(report.leaks) <= sent,
        "{} packets left, and {sent} were sent in {gone:?}: {report:?}",
        report.leaks
    );
    Ok(())
}

/// Flushes the ruleset and waits for the guard; tells how long that took.
fn flush_and_wait(site: &Site) -> Result<Duration> {
    let gateway = site.node(GATEWAY);
    let since = Instant::now();
    run(gateway.command("nft")?.args(["flush", "ruleset"]))?;
    wait::until_true("the guard", HOOK_LIMIT, || {
        let tables = run(gateway.command("nft")?.args(["list", "tables"]))?;
        Ok(tables.contains("_guard"))
    })?;
    Ok(since.elapsed())
}

#[test]
fn flushed_ruleset() -> Result<()> {
    const TEST: &str = "flushed_ruleset";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    if !can_hold()? {
        println!("SKIPPED: {TEST}: this kernel is older than 6.9");
        return Ok(());
    }
    let (report, ..) = flushed("")?;
    ensure!(report.leaks == 0, "{report:?}");
    Ok(())
}

/// On kernels before 6.9 the table goes, and comes back when the kernel has told the daemon.
#[test]
fn flushed_ruleset_of_an_older_kernel() -> Result<()> {
    let Some(_turn) = needs::turn("flushed_ruleset_of_an_older_kernel", &["nft"]) else {
        return Ok(());
    };
    let (report, longest, gone) = flushed("hold_guard = false")?;
    println!(
        "{ROUNDS} times the guard was gone; it was back after {longest:?} at the most, and {} packets of one in \
         {PACE:?} left by an interface that is no uplink",
        report.leaks
    );
    only_meanwhile(&report, gone)
}

/// Where there is no tcx, one command takes both programs off an uplink.
#[test]
fn clsact_removed_by_hand() -> Result<()> {
    let Some(_turn) = needs::turn("clsact_removed_by_hand", &["nft", "tc"]) else {
        return Ok(());
    };
    let mut plan = plan();
    plan.server.dataplane = "attach = \"clsact\"".to_owned();
    let site = Site::start(&plan)?;
    let check = site.watch()?;
    let gateway = site.node(GATEWAY);
    let mut gone = Duration::ZERO;
    steadily(&site, |site| {
        for _ in 0..ROUNDS {
            let since = Instant::now();
            run(gateway
                .command("tc")?
                .args(["qdisc", "del", "dev", UPLINK, "clsact"]))?;
            site.gateway.wait_in_place(HOOK_LIMIT)?;
            gone += since.elapsed();
        }
        Ok(())
    })?;
    seen_from_pool(&site, site.at_a(HTTP_PORT))?;
    let report = check.report()?;
    println!(
        "{ROUNDS} times the programs were gone; {} packets of one in {PACE:?} left as they were",
        report.leaks
    );
    only_meanwhile(&report, gone)
}

/// Removes a program while the daemon looks after it, and while it is dead.
fn without_program(attach: &str, masquerade: Masquerade) -> Result<()> {
    let mut plan = plan();
    plan.network.masquerade = masquerade;
    plan.server.dataplane = format!("attach = \"{attach}\"");
    let mut site = Site::start(&plan)?;
    let case = format!("{attach}, masquerade {masquerade:?}");
    // Without `uplink_ingress`, a reply looks to the gateway like a packet to forward to somebody who is not there.
    let check = site.watch_for(
        Rules::new()
            .allow(POOL)
            .allow_errors_about(DEFAULT_EGRESS, &POOL),
    )?;
    let echo = site.at_a(ECHO_PORT);
    let mut holder = site.clients(BOUND, 1)?;
    all_succeeded(&holder.open(echo, 20, CONNECT_LIMIT)?, 20)?;
    let kinds = site.gateway.json(&["status"])?;
    ensure!(
        kinds["hooks"].as_array().is_some_and(
            |hooks| hooks.len() >= 4 && hooks.iter().all(|hook| hook["kind"] == attach)
        ),
        "{case}: {kinds}"
    );

    let outcomes = under_load(&mut site, |site| {
        for (interface, program) in [
            (UPLINK, "uplink_egress"),
            (UPLINK, "uplink_guard"),
            (UPLINK, "uplink_ingress"),
            (INSIDE_BOUND, "inside_ingress"),
        ] {
            site.gateway
                .remove_program(interface, program)
                .with_context(|| case.clone())?;
            site.gateway
                .wait_in_place(HOOK_LIMIT)
                .with_context(|| format!("{case}: {program}"))?;
            seen_from_pool(site, site.at_a(HTTP_PORT))
                .with_context(|| format!("{case}: {program}"))?;
        }
        Ok(())
    })?;
    ensure!(total(&outcomes) > 0, "{case}: {outcomes:?}");

    if attach == "tcx" {
        // Where both programs of the uplink go at once nothing is translated until they are back: nobody sends meanwhile.
        std::fs::remove_dir_all(site.gateway.pin().join("links"))?;
        std::fs::remove_dir_all(site.gateway.pin().join("maps"))?;
        site.gateway
            .wait_in_place(HOOK_LIMIT)
            .with_context(|| format!("{case}: without pins"))?;
        seen_from_pool(&site, site.at_a(HTTP_PORT)).with_context(|| format!("{case}: no pins"))?;
    }

    // Nobody is there to put it back.
    site.gateway.kill()?;
    for (interface, program) in [(UPLINK, "uplink_egress"), (INSIDE_BOUND, "inside_ingress")] {
        site.gateway.remove_program(interface, program)?;
        under_load(&mut site, |site| {
            let seen = site.curl_in_vain(BOUND, site.at_a(HTTP_PORT));
            ensure!(seen.is_err(), "{case}, without {program}: seen as {seen:?}");
            Ok(())
        })?;
        let status = site.gateway.egress(["status"])?;
        ensure!(
            !status.status.success(),
            "{case}: status finds all in place without {program}"
        );
        site.gateway.restart()?;
        seen_from_pool(&site, site.at_a(HTTP_PORT))
            .with_context(|| format!("{case}: after {program}"))?;
        site.gateway.kill()?;
    }
    site.gateway.restart()?;
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 20)?;
    check.finish().context(case)?;
    Ok(())
}

#[test]
fn programs_removed_by_hand() -> Result<()> {
    let Some(_turn) = needs::turn("programs_removed_by_hand", &["nft", "bpftool"]) else {
        return Ok(());
    };
    for masquerade in [Masquerade::Nobody, Masquerade::Everybody] {
        without_program("tcx", masquerade)?;
    }
    Ok(())
}

#[test]
fn filters_removed_by_hand() -> Result<()> {
    let Some(_turn) = needs::turn("filters_removed_by_hand", &["nft", "tc"]) else {
        return Ok(());
    };
    without_program("clsact", Masquerade::Everybody)
}
