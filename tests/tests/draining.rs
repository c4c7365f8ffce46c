//! POOL-9, ZONE-1 with real sockets: addresses that take no new flows, and what becomes of those they have.

use std::{net::Shutdown, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    config::{POOL_NAME, Resources},
    leak::Rules,
    needs,
    path::Family,
    peer::{self, Caller, Peers, was_reset},
    site::{CONNECT_LIMIT, Plan, Site},
    standard::{A, BOUND, INSIDE_BOUND, NET, POOL, RANGE, UPLINK, ZONE_PREFIX, ZONE_PREFIX_V6},
};
use ipnet::Ipv6Net;
use nix::sys::signal::Signal;

/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;
/// How long a count may take to fall: a round of the sweep, and a machine that has others to serve.
const COUNT_LIMIT: Duration = Duration::from_secs(60);

/// What a family's pool consists of, and what takes its place.
fn members(family: Family) -> [String; 2] {
    match family {
        Family::V4 => POOL.map(|address| address.to_string()),
        Family::V6 => [RANGE.to_string(), "2001:db8:bb::/64".to_owned()],
    }
}

/// A pool of one member.
fn only(member: &str) -> Resources {
    Resources {
        addresses: vec![member.to_owned()],
        selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
        ..Resources::default()
    }
}

/// POOL-9: a drained address takes no new flows and finishes its own; a reset ends them at both ends.
#[test]
fn a_drained_address_finishes_or_is_reset() -> Result<()> {
    const TEST: &str = "a_drained_address_finishes_or_is_reset";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for family in Family::ALL {
        finishes_or_is_reset(family).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

fn finishes_or_is_reset(family: Family) -> Result<()> {
    let [address, _] = members(family);
    let site = Site::start(&Plan {
        resources: only(&address),
        ..Plan::default()
    })?;
    let check = site.watch_for(family.rules())?;
    let node = site.node(BOUND);
    let origin = family.at(&site, A, PORT);
    let active = |expected| site.wait_active(origin, "tcp", expected, COUNT_LIMIT);
    let listener = peer::listen(&site.node(A), origin)?;
    let caller = Caller::default();
    let mut stays = Peers::connect(&node, caller, &listener)?;
    let goes = Peers::connect(&node, caller, &listener)?;

    let drained = site.gateway.json(&["pool", "drain", &address])?;
    ensure!(drained["addresses"][0]["active"] == 2, "{drained}");
    let refused = caller.connect(&node, origin);
    ensure!(refused.is_err(), "a drained address took a flow");
    stays.exchange()?;
    let status = site.gateway.json(&["status"])?;
    ensure!(status["draining"][0]["egress_ip"] == address, "{status}");
    let pools = site.gateway.json(&["pools"])?;
    ensure!(pools[0]["addresses"][0]["draining"] == true, "{pools}");
    goes.inside.shutdown(Shutdown::Both)?;
    goes.origin.shutdown(Shutdown::Both)?;
    active(1)?;

    // By name: the whole pool. Then all of it is there again.
    site.gateway.text(["pool", "undrain", &address])?;
    let whole = site.gateway.json(&["pool", "drain", POOL_NAME])?;
    ensure!(whole["subject"] == POOL_NAME, "{whole}");
    ensure!(caller.connect(&node, origin).is_err());
    let part = site.gateway.egress(["pool", "undrain", &address])?;
    ensure!(!part.status.success(), "the pool drains as a whole");
    let again = site.gateway.json(&["pool", "undrain", POOL_NAME])?;
    ensure!(again["addresses"].as_array().is_some_and(Vec::is_empty));
    let mut more = Peers::connect(&node, caller, &listener)?;

    // Not out of the file, which knows nothing of it: it holds over a reload.
    site.gateway.text(["pool", "drain", &address])?;
    site.gateway.signal(Signal::SIGHUP)?;
    stays.exchange()?;
    ensure!(caller.connect(&node, origin).is_err());
    let reset = site.gateway.json(&["pool", "drain", &address, "--reset"])?;
    ensure!(reset["ended"] == 2, "{reset}");
    for peers in [&mut stays, &mut more] {
        was_reset(&mut peers.inside, CONNECT_LIMIT, "the inside")?;
        was_reset(&mut peers.origin, CONNECT_LIMIT, "the origin")?;
    }
    active(0)?;
    let nobody = site
        .gateway
        .egress(["pool", "drain", "192.0.2.99", "--reset"])?;
    ensure!(nobody.status.code() == Some(2), "{nobody:?}");
    check.finish()?;
    Ok(())
}

/// POOL-9, ZONE-1: what is taken out of the configuration keeps its live flows, until they are reset by name.
#[test]
fn an_address_that_left_its_pool_keeps_its_flows_until_it_is_reset() -> Result<()> {
    const TEST: &str = "an_address_that_left_its_pool_keeps_its_flows_until_it_is_reset";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for family in Family::ALL {
        keeps_its_flows(family).with_context(|| format!("{family:?}"))?;
    }
    Ok(())
}

fn keeps_its_flows(family: Family) -> Result<()> {
    let [address, other] = members(family);
    let site = Site::start(&Plan {
        resources: only(&address),
        ..Plan::default()
    })?;
    let mut rules = family.rules();
    if family == Family::V6 {
        let range: Ipv6Net = other.parse()?;
        rules = rules.allow_range(range.into());
        // Its way back, as that of the first one.
        site.node(NET)
            .ip(&format!("-6 route add {range} dev {UPLINK}"))?;
    }
    let check = site.watch_for(rules)?;
    let node = site.node(BOUND);
    let origin = family.at(&site, A, PORT);
    let active = |expected| site.wait_active(origin, "tcp", expected, COUNT_LIMIT);
    let listener = peer::listen(&site.node(A), origin)?;
    let mut old = Peers::connect(&node, Caller::default(), &listener)?;
    site.gateway.reload(&only(&other), |gateway| {
        let pools = gateway.json(&["pools"])?;
        Ok(pools[0]["addresses"][0]["address"] == other)
    })?;
    old.exchange()?;
    let mut new = Peers::connect(&node, Caller::default(), &listener)?;
    ensure!(new.seen.ip() != old.seen.ip(), "{new:?}");
    let status = site.gateway.json(&["status"])?;
    let left = &status["draining"][0];
    ensure!(
        left["egress_ip"] == address && left["active"] == 1 && left["retired"] == true,
        "{status}"
    );
    let plain = site.gateway.egress(["pool", "drain", &address])?;
    ensure!(plain.status.code() == Some(2), "{plain:?}");
    let reset = site.gateway.json(&["pool", "drain", &address, "--reset"])?;
    ensure!(reset["ended"] == 1, "{reset}");
    was_reset(&mut old.inside, CONNECT_LIMIT, "the inside")?;
    was_reset(&mut old.origin, CONNECT_LIMIT, "the origin")?;
    new.exchange()?;
    active(1)?;
    check.finish()?;
    Ok(())
}

/// ZONE-1, ZONE-2: addresses of a zone that is selected by interface are kept apart from all others. So its live flows
/// end where such a selector comes or goes, and do not linger under the cap.
#[test]
fn connections_end_at_both_ends_where_a_zone_becomes_one_of_interfaces() -> Result<()> {
    const TEST: &str = "connections_end_at_both_ends_where_a_zone_becomes_one_of_interfaces";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let by_source = Resources {
        addresses: Family::ALL.map(|family| members(family)[0].clone()).into(),
        ..only("")
    };
    let by_interface = Resources {
        selectors: format!("{}\ninterfaces = [\"{INSIDE_BOUND}\"]", by_source.selectors),
        ..by_source.clone()
    };
    let site = Site::start(&Plan {
        resources: by_source.clone(),
        ..Plan::default()
    })?;
    let check = site.watch_for(Rules::new().allow(POOL).allow_range(RANGE.into()))?;
    let node = site.node(BOUND);
    for resources in [&by_interface, &by_source] {
        let mut all = Vec::new();
        for family in Family::ALL {
            let listener = peer::listen(&site.node(A), family.at(&site, A, PORT))?;
            all.push(Peers::connect(&node, Caller::default(), &listener)?);
        }
        site.gateway.reload(resources, |gateway| {
            let pools = gateway.json(&["pools"])?;
            let addresses = pools[0]["addresses"].as_array();
            Ok(addresses.is_some_and(|all| all.iter().all(|address| address["active"] == 0)))
        })?;
        for peers in &mut all {
            was_reset(&mut peers.inside, CONNECT_LIMIT, "the inside")?;
            was_reset(&mut peers.origin, CONNECT_LIMIT, "the origin")?;
        }
    }
    check.finish()?;
    Ok(())
}
