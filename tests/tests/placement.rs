//! POOL-5, POOL-6, CAP-3 with a real daemon and real sockets: a server among several gives out what is its own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    client::Outcome,
    config::Resources,
    leak::Rules,
    needs,
    origin::{ECHO_PORT, HTTP_PORT},
    peer::{self, Caller, Peers},
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{A, BOUND, POOL, RANGE, ZONE_PREFIX, ZONE_PREFIX_V6},
};
use ipnet::IpNet;
use serde_json::Value;

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// The cap of the pool: a hundred for each of 31 slices.
const TOTAL: u32 = 3_100;
/// How long a count may take to fall.
const COUNT_LIMIT: Duration = Duration::from_secs(60);

/// Slices of an address.
type Slices = BTreeSet<u64>;

/// This server and another one in another city share an address, `here` to `there`.
fn shared(here: u32, there: u32) -> Resources {
    Resources {
        addresses: vec![POOL[0].to_string(), RANGE.to_string()],
        connections_per_origin: TOTAL,
        selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
        sections: format!(
            r#"
[[location]]
name = "lab"
[[location.data_center]]
name = "lab"
server = [{{ name = "lab-s1", number = 5 }}]
[[location]]
name = "elsewhere"
[[location.data_center]]
name = "els01"
server = [{{ name = "els01-s1", number = 6 }}]
[[placement]]
address = "{}"
shares = [{{ data_center = "lab", share = {here} }}, {{ data_center = "els01", share = {there} }}]
"#,
            POOL[0]
        ),
        ..Resources::default()
    }
}

fn start(here: u32, there: u32) -> Result<Site> {
    Site::start(&Plan {
        resources: shared(here, there),
        ..Plan::default()
    })
}

/// The slices of the address that are in force here, and those that `egress pools` says each server owns.
fn slices(site: &Site) -> Result<(Slices, Vec<(String, Slices)>)> {
    let pools = site.gateway.json(&["pools"])?;
    let address = &pools[0]["addresses"][0];
    let set = |list: &Value| -> Slices {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(Value::as_u64).collect()
    };
    let owners = address["owners"].as_array().context("no owners")?;
    let owners = owners
        .iter()
        .map(|owner| {
            let name = owner["server"].as_str().unwrap_or_default();
            (name.to_owned(), set(&owner["slices"]))
        })
        .collect();
    Ok((set(&address["slices"]), owners))
}

fn slice(at: SocketAddr) -> u64 {
    u64::from(at.port() >> 11)
}

fn refused(outcome: &Outcome, expected: usize) -> Result<()> {
    ensure!(
        outcome.succeeded == 0 && outcome.refusals() == expected,
        "{outcome:?}"
    );
    Ok(())
}

/// CAP-3: with eight of 31 parts only ports of eight slices leave, and the cap is the quota of these slices.
#[test]
fn a_share_of_eight_slices_is_eight_slices_of_ports_and_quota() -> Result<()> {
    const TEST: &str = "a_share_of_eight_slices_is_eight_slices_of_ports_and_quota";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(8, 23)?;
    let check = site.watch_for(Rules::new().allow([POOL[0]]).allow_range(RANGE.into()))?;
    let (mine, owners) = slices(&site)?;
    ensure!(mine.len() == 8, "{mine:?}");
    ensure!(owners.len() == 2, "{owners:?}");
    let all: Slices = owners.iter().flat_map(|(_, owned)| owned.clone()).collect();
    ensure!(all == (1..=31).collect(), "{owners:?}");
    for (name, owned) in &owners {
        ensure!((*owned == mine) == (name == "lab-s1"), "{owners:?}");
    }

    // What the origin itself sees.
    let node = site.node(BOUND);
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let mut peers = Vec::new();
    for _ in 0..100 {
        let peer = Peers::connect(&node, Caller::default(), &listener)?;
        ensure!(
            peer.seen.ip() == POOL[0] && mine.contains(&slice(peer.seen)),
            "{peer:?}"
        );
        peers.push(peer);
    }

    // The quota, exactly; then the other server's ports would have to be used.
    let at = site.at_a(ECHO_PORT);
    let mut clients = site.clients(BOUND, 1)?;
    all_succeeded(&clients.open(at, 800, CONNECT_LIMIT)?, 800)?;
    let mut more = site.clients(BOUND, 1)?;
    refused(&more.open(at, 9, CONNECT_LIMIT)?, 9)?;
    let origins = site.gateway.json(&["origins"])?;
    let found = origins.as_array().context("no origins")?;
    let found = found.iter().find(|one| one["origin"] == at.to_string());
    ensure!(
        found.is_some_and(|one| one["capacity"] == 800 && one["active"] == 800),
        "{origins}"
    );
    let flows = site.gateway.text(["flows", "--json"])?;
    let mut seen = BTreeSet::new();
    for line in flows.lines() {
        let flow: Value = serde_json::from_str(line)?;
        let egress = flow["egress"].as_str().unwrap_or_default();
        let egress: SocketAddr = egress.parse().with_context(|| line.to_owned())?;
        seen.insert(slice(egress));
    }
    ensure!(seen == mine, "ports of {seen:?}, not of {mine:?}");
    clients.close_all(false)?;
    for peer in &mut peers {
        peer.exchange()?;
    }
    check.finish()?;
    Ok(())
}

/// POOL-5: a share changes while running; flows on slices that went go on, new ones open on what is left.
#[test]
fn a_share_changes_while_running() -> Result<()> {
    const TEST: &str = "a_share_changes_while_running";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(8, 23)?;
    let check = site.watch_for(Rules::new().allow([POOL[0]]).allow_range(RANGE.into()))?;
    let node = site.node(BOUND);
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    // Some on each slice: a source port that is free is kept.
    let (mine, _) = slices(&site)?;
    let mut old = Vec::new();
    for nth in 0..40 {
        let slice = mine.iter().copied().cycle().nth(usize::from(nth));
        let slice = u16::try_from(slice.context("it owns nothing")?)?;
        let caller = Caller {
            port: Some((slice << 11) + 1_000 + nth),
            ..Caller::default()
        };
        old.push(Peers::connect(&node, caller, &listener)?);
    }
    let has = |count: usize| {
        move |gateway: &egress_tests::gateway::Gateway| {
            let pools = gateway.json(&["pools"])?;
            let slices = &pools[0]["addresses"][0]["slices"];
            Ok(slices.as_array().map_or(0, Vec::len) == count)
        }
    };
    site.gateway.reload(&shared(2, 29), has(2))?;
    let (mine, _) = slices(&site)?;
    for _ in 0..20 {
        let new = Peers::connect(&node, Caller::default(), &listener)?;
        ensure!(mine.contains(&slice(new.seen)), "{new:?} of {mine:?}");
    }
    let gone = old.iter().filter(|peer| !mine.contains(&slice(peer.seen)));
    ensure!(gone.count() > 0, "no flow was on a slice that went");
    for peer in &mut old {
        peer.exchange()?;
    }

    // Nothing is left: live flows go on, new ones are refused, and the default egress is never the way out.
    site.gateway.reload(&shared(0, 31), has(0))?;
    ensure!(Caller::default().connect(&node, site.at_a(PORT)).is_err());
    for peer in &mut old {
        peer.exchange()?;
    }
    // More than before: what comes back was the other server's, and the log says so.
    site.gateway.reload(&shared(31, 0), has(31))?;
    ensure!(
        site.gateway
            .log()
            .contains("lab-s1 takes over 31 of the 31 slices"),
        "{}",
        site.gateway.last_words()
    );
    let new = Peers::connect(&node, Caller::default(), &listener)?;
    ensure!(new.seen.ip() == POOL[0]);
    drop((old, new));
    site.wait_active(site.at_a(PORT), "tcp", 0, COUNT_LIMIT)?;
    check.finish()?;
    Ok(())
}

/// POOL-6: a server's IPv6 addresses are those that begin with its number.
#[test]
fn an_ipv6_range_is_divided_by_the_servers_number() -> Result<()> {
    const TEST: &str = "an_ipv6_range_is_divided_by_the_servers_number";

    let Some(_turn) = needs::turn(TEST, &["curl", "nft"]) else {
        return Ok(());
    };
    let site = start(8, 23)?;
    let part: IpNet = "2001:db8:aa:0:5::/80".parse()?;
    let check = site.watch_for(Rules::new().allow([POOL[0]]).allow_range(part))?;
    let seen = site.curl(BOUND, site.at_a_v6(HTTP_PORT))?;
    let seen: IpAddr = seen.parse()?;
    ensure!(part.contains(&seen), "{seen} is not of {part}");
    let pools = site.gateway.json(&["pools"])?;
    let range = &pools[0]["addresses"][1];
    ensure!(range["capacity"] == TOTAL, "{pools}");
    ensure!(
        range["owners"][1]["range"] == "2001:db8:aa:0:5::/80"
            || range["owners"][0]["range"] == "2001:db8:aa:0:5::/80",
        "{pools}"
    );
    check.finish()?;
    Ok(())
}
