//! PERF-1: the fast path. A live flow's packets pass routing and netfilter by, and arrive as they would otherwise.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    client::Fetch,
    config::{Resources, Server},
    leak::Rules,
    needs, netns,
    offload::{self, Offload},
    origin::{ECHO_PORT, HTTP_PORT},
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{A, BOUND, GATEWAY, INSIDE_BOUND, POOL, RANGE, ZONE_PREFIX, ZONE_PREFIX_V6},
};
use serde_json::Value;

/// Connections held open.
const HELD: usize = 20;
/// Bytes of a transfer: without offloads, thousands of packets.
const BYTES: u64 = 8 << 20;
/// Fewest packets that a transfer without offloads takes.
const PACKETS: u64 = BYTES / 1_500;

/// A site whose gateway counts what netfilter forwards.
fn start(accelerate: bool) -> Result<Site> {
    let site = Site::start(&Plan {
        server: Server {
            accelerate,
            ..Server::default()
        },
        resources: Resources {
            addresses: POOL
                .iter()
                .map(ToString::to_string)
                .chain([RANGE.to_string()])
                .collect(),
            selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
            ..Resources::default()
        },
        ..Plan::default()
    })?;
    site.node(GATEWAY).nft(
        "table inet probe {\n counter forwarded { }\n chain forward {\n \
         type filter hook forward priority 0;\n counter name forwarded\n }\n}",
    )?;
    // Each packet is to be seen as it is on a wire.
    for (node, interface) in [(BOUND, "eth0"), (A, "eth0"), (GATEWAY, INSIDE_BOUND)] {
        for kind in [Offload::Tso, Offload::Gso, Offload::Gro] {
            offload::set(&site.node(node), interface, kind, false)?;
        }
    }
    Ok(site)
}

/// Packets that netfilter has forwarded.
fn forwarded(site: &Site) -> Result<u64> {
    let text = netns::run(site.node(GATEWAY).command("nft")?.args([
        "-j",
        "list",
        "counter",
        "inet",
        "probe",
        "forwarded",
    ]))?;
    let listed: Value = serde_json::from_str(&text)?;
    listed
        .pointer("/nftables/1/counter/packets")
        .and_then(Value::as_u64)
        .with_context(|| format!("no counter in {text}"))
}

fn fetch(site: &Site, target: SocketAddr) -> Result<()> {
    let fetch = Fetch {
        target,
        bytes: BYTES,
        rate: 0,
        timeout_ms: 5000,
    };
    site.clients(BOUND, 1)?
        .fetch(fetch, Duration::from_secs(60), |_| Ok(()))?;
    Ok(())
}

/// Hop limits with which an origin sees packets of the zone arrive while connections are checked.
fn hops(site: &Site) -> Result<BTreeSet<u8>> {
    let capture = Capture::start(&site.node(A), "eth0")?;
    let mut clients = site.clients(BOUND, 1)?;
    for origin in [site.at_a(ECHO_PORT), site.at_a_v6(ECHO_PORT)] {
        all_succeeded(&clients.open(origin, HELD, CONNECT_LIMIT)?, HELD)?;
    }
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 2 * HELD)?;
    let frames = capture.finish()?;
    Ok(frames
        .iter()
        .filter_map(Frame::packet)
        .filter(|packet| packet.destination_port() == Some(ECHO_PORT))
        .map(|packet| packet.hops)
        .collect())
}

#[test]
fn live_flows_pass_netfilter_by_and_arrive_the_same() -> Result<()> {
    const TEST: &str = "live_flows_pass_netfilter_by_and_arrive_the_same";
    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for accelerate in [true, false] {
        let site = start(accelerate)?;
        let check = site.watch_for(Rules::new().allow(POOL).allow_range(RANGE.into()))?;
        for origin in [site.at_a(HTTP_PORT), site.at_a_v6(HTTP_PORT)] {
            let before = forwarded(&site)?;
            fetch(&site, origin)?;
            let packets = forwarded(&site)? - before;
            println!("accelerate = {accelerate}, {origin}: netfilter forwarded {packets} packets");
            ensure!(
                if accelerate {
                    // The SYN that opens the flow and whatever else is not plain.
                    (1..PACKETS / 100).contains(&packets)
                } else {
                    packets >= PACKETS
                },
                "accelerate = {accelerate}, {origin}: netfilter forwarded {packets} packets"
            );
        }
        // One hop further than the client's 64, either way.
        let hops = hops(&site)?;
        ensure!(hops == BTreeSet::from([62]), "hop limits {hops:?}");
        let report = check.report()?;
        ensure!(report.leaks == 0, "{report:?}");
    }
    Ok(())
}
