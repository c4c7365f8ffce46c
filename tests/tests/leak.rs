//! SAFE-1 and SAFE-6: from the moment the daemon is ready, nothing of the zone leaves with a foreign source,
//! whatever happens to the gateway. Every test runs under load and is watched where the packets arrive.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    config::{Resources, Server},
    leak::{LeakCheck, Rules},
    load::{seen_from_pool, total, under_load},
    needs, odd,
    origin::{ECHO_PORT, HTTP_PORT},
    seed::Random,
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{
        A, B, BOUND, BOUND_ADDRESS, DEFAULT_EGRESS, GATEWAY, INSIDE_BOUND, INSIDE_UNBOUND,
        Masquerade, NET, Options, POOL, ROUTER_ADDRESSES, SECOND_UPLINK, UNBOUND, UPLINK,
    },
    topology::End,
    wait,
};
use nix::sys::signal::Signal;

/// Hooks are back within this time after their interface is.
const HOOK_LIMIT: Duration = Duration::from_secs(60);
/// Both families, so that IPv6 is the zone's as well; pings would take the default egress (POLICY-7).
const SELECTORS: &str = "sources = [\"10.1.0.0/16\", \"fd00:1::/64\"]";
const EXEMPT: &str = "[exempt]\nicmp_queries = \"drop\"";

fn plan() -> Plan {
    Plan {
        server: Server {
            sections: EXEMPT.to_owned(),
            ..Server::default()
        },
        resources: resources(),
        ..Plan::default()
    }
}

fn resources() -> Resources {
    Resources {
        selectors: SELECTORS.to_owned(),
        ..Resources::default()
    }
}

#[test]
fn reload() -> Result<()> {
    let Some(_turn) = needs::turn("reload", &["nft"]) else {
        return Ok(());
    };
    for masquerade in [Masquerade::Nobody, Masquerade::Everybody] {
        reloads(masquerade)?;
    }
    Ok(())
}

fn reloads(masquerade: Masquerade) -> Result<()> {
    let mut plan = plan();
    plan.network.masquerade = masquerade;
    let mut site = Site::start(&plan)?;
    let check = site.watch()?;
    let outcomes = under_load(&mut site, |site| {
        for round in 0..10 {
            let addresses: Vec<_> = POOL
                .iter()
                .skip(round % 2)
                .map(ToString::to_string)
                .collect();
            let expected = addresses.len();
            let resources = Resources {
                addresses,
                ..resources()
            };
            site.gateway.reload(&resources, |gateway| {
                let text = gateway.text(["pools", "--json"])?;
                Ok(POOL
                    .iter()
                    .filter(|address| text.contains(&format!("\"{address}\"")))
                    .count()
                    == expected)
            })?;
        }
        Ok(())
    })?;
    ensure!(total(&outcomes) > 0, "{outcomes:?}");
    check.finish()?;
    Ok(())
}

/// As with Docker: the zone is a source prefix, no inside interface is named, and netfilter rewrites the source
/// before the uplink's program sees it.
#[test]
fn masquerade_without_inside() -> Result<()> {
    let Some(_turn) = needs::turn("masquerade_without_inside", &["nft"]) else {
        return Ok(());
    };
    for inside in [Vec::new(), vec![INSIDE_UNBOUND.to_owned()]] {
        let mut plan = plan();
        plan.network.masquerade = Masquerade::Everybody;
        plan.server.inside = inside;
        let mut site = Site::start(&plan)?;
        let check = site.watch()?;
        let outcomes = under_load(&mut site, |site| {
            for _ in 0..20 {
                seen_from_pool(site, site.at_a(HTTP_PORT))?;
                seen_from_pool(site, site.at_b(HTTP_PORT))?;
            }
            Ok(())
        })?;
        ensure!(total(&outcomes) > 0, "{outcomes:?}");
        check.finish()?;
        // Who belongs to no zone takes the default egress as before.
        let seen = site.curl(UNBOUND, site.at_a(HTTP_PORT))?;
        ensure!(seen == DEFAULT_EGRESS.to_string(), "unbound seen as {seen}");
    }
    Ok(())
}

#[test]
fn killed_daemon() -> Result<()> {
    let Some(_turn) = needs::turn("killed_daemon", &[]) else {
        return Ok(());
    };
    let mut site = Site::start(&plan())?;
    let check = site.watch()?;
    let outcomes = under_load(&mut site, |site| {
        for _ in 0..5 {
            site.gateway.kill()?;
            site.gateway.restart()?;
        }
        Ok(())
    })?;
    let failed: usize = outcomes
        .iter()
        .map(|outcome| outcome.refusals() + outcome.timed_out)
        .sum();
    ensure!(
        total(&outcomes) > 0 && failed == 0,
        "connections failed while the daemon was restarted: {outcomes:?}"
    );
    check.finish()?;
    Ok(())
}

#[test]
fn full_flow_table() -> Result<()> {
    const FLOWS: u32 = 1000;

    let Some(_turn) = needs::turn("full_flow_table", &[]) else {
        return Ok(());
    };
    let mut plan = plan();
    plan.server.max_flows = FLOWS;
    let mut site = Site::start(&plan)?;
    let check = site.watch()?;
    let echo = site.at_a(ECHO_PORT);
    let mut holder = site.clients(BOUND, 2)?;
    let opened = holder.open(echo, 3 * FLOWS as usize, CONNECT_LIMIT)?;
    ensure!(
        opened.succeeded <= FLOWS as usize
            && opened.succeeded >= FLOWS as usize * 9 / 10
            && opened.timed_out == 0,
        "{opened:?}"
    );
    ensure!(
        opened.succeeded + opened.refusals() == 3 * FLOWS as usize,
        "{opened:?}"
    );
    under_load(&mut site, |_| Ok(()))?;
    // CAP-6: a full table evicts nobody.
    all_succeeded(&holder.check(CONNECT_LIMIT)?, opened.succeeded)?;
    check.finish()?;
    Ok(())
}

#[test]
fn emptied_pool() -> Result<()> {
    let Some(_turn) = needs::turn("emptied_pool", &[]) else {
        return Ok(());
    };
    let mut site = Site::start(&plan())?;
    let check = site.watch()?;
    let echo = site.at_a(ECHO_PORT);
    let mut holder = site.clients(BOUND, 1)?;
    all_succeeded(&holder.open(echo, 20, CONNECT_LIMIT)?, 20)?;
    let empty = Resources {
        addresses: Vec::new(),
        pool: "allow_empty = true".to_owned(),
        ..resources()
    };
    under_load(&mut site, |site| {
        site.gateway.reload(&empty, |gateway| {
            Ok(!POOL.iter().any(|address| {
                gateway
                    .text(["pools", "--json"])
                    .is_ok_and(|text| text.contains(&address.to_string()))
            }))
        })
    })?;
    let refused = site.clients(BOUND, 1)?.open(echo, 5, CONNECT_LIMIT)?;
    ensure!(
        refused.refused.get("ECONNREFUSED") == Some(&5),
        "{refused:?}"
    );
    // ZONE-1: live flows stay on the address they were admitted with.
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 20)?;
    check.finish()?;
    Ok(())
}

#[test]
fn recreated_uplink() -> Result<()> {
    let Some(_turn) = needs::turn("recreated_uplink", &["nft"]) else {
        return Ok(());
    };
    let mut plan = plan();
    plan.network.masquerade = Masquerade::Everybody;
    let mut site = Site::start(&plan)?;
    // The other end of the uplink goes with it, so this looks where packets end up: at the origins.
    // The router on the way says so when it has no way back.
    let rules = Rules::new().allow(POOL).allow(ROUTER_ADDRESSES);
    let checks = [A, B].map(|node| LeakCheck::start(&site.node(node), "eth0", rules.clone()));
    let outcomes = under_load(&mut site, |site| {
        for _ in 0..3 {
            site.node(GATEWAY).ip(&format!("link del {UPLINK}"))?;
            site.node(GATEWAY).ip(&format!(
                "link add {UPLINK} type veth peer name {UPLINK} netns {}",
                site.node(NET).name()
            ))?;
            site.lab
                .configure(&End::new(NET, UPLINK).address("203.0.113.1/24"))?;
            site.lab
                .configure(&End::new(GATEWAY, UPLINK).address("203.0.113.2/24"))?;
            site.node(GATEWAY).ip("route add default via 203.0.113.1")?;
            site.node(NET)
                .ip(&format!("route add 10.0.0.0/8 via {DEFAULT_EGRESS}"))?;
            site.gateway.wait_in_place(HOOK_LIMIT)?;
            // Both, so that both checks have something to see.
            for origin in [site.at_a(HTTP_PORT), site.at_b(HTTP_PORT)] {
                seen_from_pool(site, origin)?;
            }
        }
        Ok(())
    })?;
    // That connections succeed again was asked above, one by one; the load may still wait for its
    // retransmissions.
    ensure!(!outcomes.is_empty(), "no load was running");
    for check in checks {
        check?.finish()?;
    }
    Ok(())
}

#[test]
fn second_default_route() -> Result<()> {
    let Some(_turn) = needs::turn("second_default_route", &["nft"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        let mut plan = plan();
        plan.network = Options {
            masquerade,
            second_uplink: true,
            ..Options::default()
        };
        let mut site = Site::start(&plan)?;
        let uplink = site.watch()?;
        // By the second interface nothing of the zone may leave at all.
        let second = LeakCheck::start(&site.node(NET), SECOND_UPLINK, Rules::new())?;
        under_load(&mut site, |site| {
            let gateway = site.node(GATEWAY);
            for route in [
                "via 172.31.0.1 dev up1",
                "via 203.0.113.1 dev up0",
                "via 172.31.0.1 dev up1",
            ] {
                gateway.ip(&format!("route replace default {route}"))?;
                let origin = site.at_a(HTTP_PORT);
                if route.contains("up1") {
                    let seen = site.curl_in_vain(BOUND, origin);
                    ensure!(seen.is_err(), "default {route}: the origin saw {seen:?}");
                } else {
                    site.curl(BOUND, origin)
                        .with_context(|| format!("default {route}"))?;
                }
            }
            Ok(())
        })?;
        uplink.finish()?;
        let report = second.report()?;
        ensure!(report.leaks == 0, "masquerade {masquerade:?}: {report:?}");
    }
    Ok(())
}

#[test]
fn odd_packets() -> Result<()> {
    const PACKETS: usize = 13_500;
    const PINGS: usize = 5;

    let Some(_turn) = needs::turn("odd_packets", &["nft"]) else {
        return Ok(());
    };
    let mut random = Random::announced("odd_packets");
    let mut plan = plan();
    plan.network.masquerade = Masquerade::Everybody;
    let site = Site::start(&plan)?;
    let check = site.watch()?;
    let echo = site.at_a(ECHO_PORT);
    let mut holder = site.clients(BOUND, 1)?;
    all_succeeded(&holder.open(echo, 50, CONNECT_LIMIT)?, 50)?;
    let path = odd::Path {
        from: odd::mac(&site.node(BOUND), "eth0")?,
        to: odd::mac(&site.node(GATEWAY), INSIDE_BOUND)?,
        source: BOUND_ADDRESS,
        destination: site.kind.origin_a(),
    };
    let frames: Vec<_> = (0..PACKETS)
        .map(|_| odd::packet(&path, &mut random))
        .collect();
    let taken = odd::send(&site.node(BOUND), "eth0", &frames)?;
    ensure!(
        taken > PACKETS / 2,
        "the client's own kernel took only {taken} of {PACKETS} packets"
    );
    // Whether one has left all the same, the watch says.
    let before = site.counted("ping_dropped")?;
    let pings: Vec<_> = (0..PINGS).map(|nth| odd::ping(&path, nth as u16)).collect();
    let taken = odd::send(&site.node(BOUND), "eth0", &pings)?;
    ensure!(taken == PINGS, "{taken} pings went out");
    wait::until_true("pings to be dropped, see [exempt]", HOOK_LIMIT, || {
        Ok(site.counted("ping_dropped")? == before + PINGS as u64)
    })?;
    let six = format!("http://[{}]/ip", site.kind.origin_v6(A));
    let curl = site
        .lab
        .exec(BOUND, &["curl", "--silent", "--max-time", "2", &six]);
    ensure!(
        curl.is_err(),
        "the pool has no IPv6 address, so IPv6 of the zone must not leave: {curl:?}"
    );
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 50)?;
    ensure!(site.active(echo, "tcp")? == 50);
    check.finish().context("odd packets")?;
    Ok(())
}

#[test]
fn stopped_daemon_and_changed_files() -> Result<()> {
    let Some(_turn) = needs::turn("stopped_daemon_and_changed_files", &[]) else {
        return Ok(());
    };
    let mut site = Site::start(&plan())?;
    let check = site.watch()?;
    under_load(&mut site, |site| {
        // A reload of a broken file changes nothing, and the daemon says so instead of ending.
        std::fs::write(site.gateway.files().resources(), "[[pool]]\nid = ")?;
        site.gateway.signal(Signal::SIGHUP)?;
        site.gateway.wait_in_place(HOOK_LIMIT)?;
        site.gateway.files().write_resources(&resources())?;
        site.gateway.terminate()?;
        site.gateway.restart()
    })?;
    check.finish()?;
    Ok(())
}

/// ZONE-1: connections from before the daemon cannot be moved to an address of the pool, so they end.
#[test]
fn connections_from_before() -> Result<()> {
    const HELD: usize = 20;

    let Some(_turn) = needs::turn("connections_from_before", &["nft"]) else {
        return Ok(());
    };
    for masquerade in [Masquerade::Nobody, Masquerade::Everybody] {
        let mut plan = plan();
        plan.network.masquerade = masquerade;
        let mut site = Site::prepare(&plan)?;
        let echo = site.at_a(ECHO_PORT);
        let mut holder = site.clients(BOUND, 1)?;
        all_succeeded(&holder.open(echo, HELD, CONNECT_LIMIT)?, HELD)?;
        site.gateway.restart()?;
        let check = site.watch()?;
        let checked = holder.check(CONNECT_LIMIT)?;
        ensure!(
            checked.refused.get("ECONNRESET") == Some(&HELD),
            "masquerade {masquerade:?}: {checked:?}"
        );
        seen_from_pool(&site, site.at_a(HTTP_PORT))?;
        check
            .finish()
            .with_context(|| format!("masquerade {masquerade:?}"))?;
    }
    Ok(())
}
