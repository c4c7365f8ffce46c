//! NAT-7, CAP-7, ZONE-1 with real sockets: how connections end, and who learns of it.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    config::{Resources, Server, ZONE_NAME},
    leak::{LeakCheck, Rules},
    needs,
    path::Family,
    peer::{self, Caller, Peers, was_reset},
    site::{CONNECT_LIMIT, HOST, Plan, Site},
    standard::{
        A, BOUND, INSIDE_BOUND, Masquerade, Options, POOL, RANGE, ZONE_PREFIX, ZONE_PREFIX_V6,
    },
};

/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;
/// What idle connections are given, in seconds: long enough for a busy machine to count them before they end.
const IDLE: u64 = 5;
/// How long it may take until an idle connection was ended: its time, a round of the sweep, a round of the
/// daemon, and a machine that has others to serve.
const TOLD_LIMIT: Duration = Duration::from_secs(IDLE + 60);

fn impatient() -> Server {
    Server {
        sections: format!("[timers]\ntcp_established = {IDLE}\ntcp_transitory = {IDLE}"),
        ..Server::default()
    }
}

/// A pool of both families, and what selects the zone's traffic.
fn resources(selectors: String) -> Resources {
    Resources {
        selectors,
        ..Resources::both_families()
    }
}

fn by_source() -> String {
    format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]")
}

fn at_a(site: &Site, family: Family) -> SocketAddr {
    family.at(site, A, PORT)
}

fn watch(site: &Site) -> Result<LeakCheck> {
    site.watch_for(Rules::new().allow(POOL).allow_range(RANGE.into()))
}

/// Waits until each family's count is this.
fn active(site: &Site, expected: u64) -> Result<()> {
    for family in Family::ALL {
        site.wait_active(at_a(site, family), "tcp", expected, TOLD_LIMIT)?;
    }
    Ok(())
}

/// Waits until both ends of each connection were told that it is over.
fn all_reset(peers: &mut [Peers], when: &str) -> Result<()> {
    for peers in peers {
        let seen = peers.seen;
        let who = |end: &str| format!("the {end} of {seen}, {when}");
        was_reset(&mut peers.inside, TOLD_LIMIT, &who("inside"))?;
        was_reset(&mut peers.origin, TOLD_LIMIT, &who("origin"))?;
    }
    Ok(())
}

/// Who calls, and by what the gateway knows the zone.
struct Case {
    name: &'static str,
    node: &'static str,
    mark: Option<u32>,
    selectors: String,
    masquerade: Masquerade,
}

fn cases() -> [Case; 4] {
    [
        Case {
            name: "forwarded",
            node: BOUND,
            mark: None,
            selectors: by_source(),
            masquerade: Masquerade::Nobody,
        },
        Case {
            name: "masqueraded",
            node: BOUND,
            mark: None,
            selectors: by_source(),
            masquerade: Masquerade::Everybody,
        },
        Case {
            name: "a realm's",
            node: BOUND,
            mark: None,
            selectors: format!("interfaces = [\"{INSIDE_BOUND}\"]"),
            masquerade: Masquerade::Nobody,
        },
        Case {
            name: "the gateway's own",
            node: HOST,
            mark: Some(161),
            selectors: "marks = [161]".to_owned(),
            masquerade: Masquerade::Nobody,
        },
    ]
}

#[test]
fn both_ends_of_an_idle_connection_are_told() -> Result<()> {
    const TEST: &str = "both_ends_of_an_idle_connection_are_told";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for case in cases() {
        told(&case).with_context(|| case.name.to_owned())?;
    }
    Ok(())
}

fn told(case: &Case) -> Result<()> {
    let mut site = Site::start(&Plan {
        network: Options {
            masquerade: case.masquerade,
            ..Options::default()
        },
        server: impatient(),
        resources: resources(case.selectors.clone()),
        ..Plan::default()
    })?;
    let check = watch(&site)?;
    let node = site.node(case.node);
    let listeners = Family::ALL.map(|family| peer::listen(&site.node(A), at_a(&site, family)));
    let caller = Caller {
        mark: case.mark,
        ..Caller::default()
    };
    // One of each family.
    let connect = || -> Result<Vec<Peers>> {
        let listeners = listeners.iter().map(|listener| listener.as_ref());
        listeners
            .map(|listener| {
                let listener = listener.map_err(|error| anyhow::anyhow!("{error:#}"))?;
                Peers::connect(&node, caller, listener)
            })
            .collect()
    };
    // Neither end does anything.
    let mut peers = connect()?;
    ensure!(
        peers
            .iter()
            .zip(Family::ALL)
            .all(|(peers, family)| family.is_egress(peers.seen.ip())),
        "{peers:?}"
    );
    all_reset(&mut peers, "idle")?;
    active(&site, 0)?;

    // Without a daemon whoever speaks is told, and the other end of it as well.
    let mut speaks = connect()?;
    let mut hears = connect()?;
    active(&site, 2)?;
    site.gateway.kill()?;
    active(&site, 0)?;
    for peers in &mut speaks {
        peers.inside.write_all(b"anybody there?")?;
        was_reset(&mut peers.inside, TOLD_LIMIT, "the inside that spoke")?;
    }
    for peers in &mut hears {
        peers.origin.write_all(b"anybody there?")?;
        was_reset(&mut peers.origin, TOLD_LIMIT, "the origin that spoke")?;
    }

    // What ended meanwhile the next daemon tells.
    let mut quiet = connect()?;
    active(&site, 1)?;
    active(&site, 0)?;
    site.gateway.restart()?;
    all_reset(&mut quiet, "later")?;
    check.finish()?;
    Ok(())
}

/// A site with the ordinary timers.
fn ordinary() -> Result<Site> {
    Site::start(&Plan {
        resources: resources(by_source()),
        ..Plan::default()
    })
}

fn read_all(socket: &mut TcpStream) -> Result<usize> {
    let mut got = Vec::new();
    socket.read_to_end(&mut got)?;
    Ok(got.len())
}

#[test]
fn a_half_closed_connection_counts_until_both_have_said_all() -> Result<()> {
    const TEST: &str = "a_half_closed_connection_counts_until_both_have_said_all";
    const BYTES: usize = 300_000;

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = ordinary()?;
    let check = watch(&site)?;
    let node = site.node(BOUND);
    for (family, inside_first) in Family::ALL
        .into_iter()
        .flat_map(|family| [(family, true), (family, false)])
    {
        let active = |expected| site.wait_active(at_a(&site, family), "tcp", expected, TOLD_LIMIT);
        let listener = peer::listen(&site.node(A), at_a(&site, family))?;
        let mut peers = Peers::connect(&node, Caller::default(), &listener)?;
        let (first, second) = if inside_first {
            (&mut peers.inside, &mut peers.origin)
        } else {
            (&mut peers.origin, &mut peers.inside)
        };
        first.shutdown(Shutdown::Write)?;
        ensure!(read_all(second)? == 0);
        active(1)?;
        std::thread::scope(|scope| -> Result<()> {
            let sending = scope.spawn(|| -> Result<()> {
                second.write_all(&vec![7; BYTES])?;
                second.shutdown(Shutdown::Write)?;
                Ok(())
            });
            ensure!(read_all(first)? == BYTES, "cut off");
            sending
                .join()
                .map_err(|_| anyhow::anyhow!("the sender panicked"))?
        })?;
        active(0)?;
    }
    check.finish()?;
    Ok(())
}

#[test]
fn a_port_may_be_used_again_at_once_by_the_same_client() -> Result<()> {
    const TEST: &str = "a_port_may_be_used_again_at_once_by_the_same_client";
    const OWN: u16 = 40_123;

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = ordinary()?;
    let check = watch(&site)?;
    let node = site.node(BOUND);
    let caller = Caller {
        port: Some(OWN),
        ..Caller::default()
    };
    for family in Family::ALL {
        let active = |expected| site.wait_active(at_a(&site, family), "tcp", expected, TOLD_LIMIT);
        let listener = peer::listen(&site.node(A), at_a(&site, family))?;
        let mut seen = Vec::new();
        // The origin closes first and holds TIME_WAIT: each SYN comes to a flow that is closed.
        for _ in 0..20 {
            let mut peers = Peers::connect(&node, caller, &listener)?;
            active(1)?;
            seen.push(peers.seen);
            drop(peers.origin);
            ensure!(read_all(&mut peers.inside)? == 0);
            drop(peers.inside);
            // And so that the clock of its timestamps, a millisecond exact, has gone on.
            active(0)?;
        }
        ensure!(
            seen.iter().all(|seen| seen.port() == OWN),
            "ahead of what the origin remembers, so the port is kept: {seen:?}"
        );
    }
    check.finish()?;
    Ok(())
}

#[test]
fn half_open_connections_end_and_refused_ones_at_once() -> Result<()> {
    const TEST: &str = "half_open_connections_end_and_refused_ones_at_once";
    const SILENT: u16 = 4_444;
    const CLOSED: u16 = 4_445;

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan {
        server: impatient(),
        resources: resources(by_source()),
        ..Plan::default()
    })?;
    site.node(A).nft(&format!(
        "table inet silent {{\n chain input {{\n type filter hook input priority 0;\n tcp dport {SILENT} drop\n }}\n}}"
    ))?;
    let mut clients = site.clients(BOUND, 1)?;
    for family in Family::ALL {
        let (closed, silent_at) = (family.at(&site, A, CLOSED), family.at(&site, A, SILENT));
        let refused = clients.open(closed, 10, CONNECT_LIMIT)?;
        ensure!(refused.refusals() == 10, "{refused:?}");
        site.wait_active(closed, "tcp", 0, CONNECT_LIMIT)?;
        let silent = clients.open(silent_at, 10, Duration::from_millis(300))?;
        ensure!(silent.timed_out == 10, "{silent:?}");
        site.wait_active(silent_at, "tcp", 10, CONNECT_LIMIT)?;
        site.wait_active(silent_at, "tcp", 0, TOLD_LIMIT)?;
    }
    Ok(())
}

/// ZONE-1, with a daemon that runs: the zone is enabled while its client talks to the origin by the default way.
#[test]
fn enabling_a_zone_resets_what_was_open_before() -> Result<()> {
    const TEST: &str = "enabling_a_zone_resets_what_was_open_before";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let on = resources(by_source());
    let off = Resources {
        enabled: false,
        ..on.clone()
    };
    let site = Site::start(&Plan {
        resources: off.clone(),
        ..Plan::default()
    })?;
    let node = site.node(BOUND);
    let listeners = Family::ALL
        .into_iter()
        .map(|family| Ok((family, peer::listen(&site.node(A), at_a(&site, family))?)))
        .collect::<Result<Vec<_>>>()?;
    let connect = |from_pool: bool| {
        let each = listeners.iter().map(|(family, listener)| {
            let peers = Peers::connect(&node, Caller::default(), listener)?;
            ensure!(family.is_egress(peers.seen.ip()) == from_pool, "{peers:?}");
            Ok(peers)
        });
        each.collect::<Result<Vec<_>>>()
    };
    let mut before = connect(false)?;
    let is = |enabled: bool| {
        move |gateway: &egress_tests::gateway::Gateway| {
            let zones = gateway.json(&["zones"])?;
            Ok(zones[0]["name"] == ZONE_NAME && zones[0]["enabled"] == enabled)
        }
    };
    site.gateway.reload(&on, is(true))?;
    let check = watch(&site)?;
    for peers in &mut before {
        peers.inside.write_all(b"?")?;
        was_reset(&mut peers.inside, CONNECT_LIMIT, "the inside")?;
    }
    let mut during = connect(true)?;
    // Disabling leaves it where it was admitted.
    check.finish()?;
    site.gateway.reload(&off, is(false))?;
    for peers in &mut during {
        peers.exchange()?;
    }
    active(&site, 1)
}
