//! PERF-1: the fast path. A live flow's packets pass routing and netfilter by, and arrive as they would otherwise.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    client::{Churn, Closer, Fetch},
    config::{Resources, Server},
    fragment::{Datagram, ETHERNET_PIECE},
    leak::Rules,
    needs, netns, odd,
    offload::{self, Offload},
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    packet::Transport,
    path::Family,
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{
        A, BOUND, BOUND_ADDRESS, BOUND_ADDRESS_V6, GATEWAY, INSIDE_BOUND, Masquerade, NET, POOL,
        RANGE, UPLINK,
    },
    wait,
};
use serde_json::Value;

/// How long a change of the routing rules may go unnoticed on a busy machine.
const ROUTED_LIMIT: Duration = Duration::from_secs(60);

/// How long a busy machine may take for a few hundred short connections.
const CHURN_LIMIT: Duration = Duration::from_secs(120);
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
        resources: Resources::both_families(),
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
        timeout_ms: 60_000,
    };
    site.clients(BOUND, 1)?
        .fetch(fetch, Duration::from_secs(300), |_| Ok(()))?;
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

/// Netfilter sends a flow elsewhere on its way out, as whoever redirects DNS does: what it changes it must be able to
/// change back. And it drops what it takes for invalid.
#[test]
fn flows_that_netfilter_redirects_are_answered() -> Result<()> {
    const TEST: &str = "flows_that_netfilter_redirects_are_answered";
    const NAMED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(true)?;
    site.node(GATEWAY).nft(&format!(
        "table ip detour {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {NAMED} dnat to {}
            }}
            chain forward {{
                type filter hook forward priority 0;
                ct state invalid drop
            }}
        }}",
        site.at_a(0).ip()
    ))?;
    let check = site.watch_for(Rules::new().allow(POOL).allow_range(RANGE.into()))?;
    fetch(&site, SocketAddr::new(NAMED.into(), HTTP_PORT))?;
    // Another flow, to the same place by its own name, passes netfilter by.
    let before = forwarded(&site)?;
    fetch(&site, site.at_a(HTTP_PORT))?;
    ensure!(forwarded(&site)? - before < PACKETS / 100);
    let report = check.report()?;
    ensure!(report.leaks == 0, "{report:?}");
    Ok(())
}

/// What an older flow left behind is no guide for a new one whose source netfilter rewrites by now: all packets of a
/// connection leave from one address.
#[test]
fn a_masquerade_that_begins_later_ends_no_new_connection() -> Result<()> {
    const TEST: &str = "a_masquerade_that_begins_later_ends_no_new_connection";
    /// Few, so that each new connection has the endpoints of an older one.
    const CLIENT_PORTS: &str = "30000 30099";
    /// Enough to have used each of them.
    const ENOUGH: usize = 400;

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(true)?;
    site.node(BOUND)
        .sysctl("net.ipv4.ip_local_port_range", CLIENT_PORTS)?;
    let check = site.watch_for(Rules::new().allow(POOL).allow_range(RANGE.into()))?;
    let mut clients = site.clients(BOUND, 1)?;
    let mut churn = |target| -> Result<()> {
        let churn = Churn {
            target,
            duration_ms: 500,
            parallel: 8,
            closer: Closer::Server,
        };
        let mut succeeded = 0;
        wait::until("enough connections", CHURN_LIMIT, || {
            let outcome = clients.churn(churn)?;
            ensure!(
                outcome.refusals() == 0 && outcome.timed_out == 0 && outcome.failed.is_empty(),
                "{target}: {outcome:?}"
            );
            succeeded += outcome.succeeded;
            Ok((succeeded >= ENOUGH).then_some(()))
        })
    };
    let origins = [site.at_a(HTTP_PORT), site.at_a_v6(HTTP_PORT)];
    origins.into_iter().try_for_each(&mut churn)?;
    let masquerade = Masquerade::Everybody.script().context("no script")?;
    site.node(GATEWAY).nft(&masquerade)?;
    origins.into_iter().try_for_each(churn)?;
    let report = check.report()?;
    ensure!(report.leaks == 0, "{report:?}");
    Ok(())
}

/// A promiscuous interface takes frames that are another router's to forward.
#[test]
fn frames_for_another_host_are_left_alone() -> Result<()> {
    const TEST: &str = "frames_for_another_host_are_left_alone";
    const ANOTHER: [u8; 6] = [2, 0, 0, 0, 0, 0x77];

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(true)?;
    site.node(GATEWAY)
        .ip(&format!("link set {INSIDE_BOUND} promisc on"))?;
    let origin = site.at_a(9_000);
    let inside = SocketAddr::new(BOUND_ADDRESS.into(), 40_404);
    let socket = |node: &str, address| -> Result<UdpSocket> {
        let socket = site.node(node).run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(CONNECT_LIMIT))?;
        Ok(socket)
    };
    let (client, server) = (socket(BOUND, inside)?, socket(A, origin)?);
    let said = |expected: &str| -> Result<()> {
        let mut bytes = [0; 64];
        let (length, from) = server.recv_from(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes[..length]);
        ensure!(text == expected, "{text} arrived before {expected}");
        server.send_to(&bytes[..length], from)?;
        let length = client.recv(&mut bytes)?;
        ensure!(&bytes[..length] == expected.as_bytes());
        Ok(())
    };
    for round in 0..10 {
        let text = format!("mine {round}");
        client.send_to(text.as_bytes(), origin)?;
        said(&text)?;
        let others = Datagram {
            from: odd::mac(&site.node(BOUND), "eth0")?,
            to: ANOTHER,
            source: inside,
            destination: origin,
            id: round,
            payload: b"another's",
        };
        odd::send(&site.node(BOUND), "eth0", &others.fragments(ETHERNET_PIECE))?;
    }
    Ok(())
}

/// The kernel is told that its neighbours are in use, so it asks whether they are there.
#[test]
fn a_router_that_was_replaced_is_found_by_live_flows() -> Result<()> {
    const TEST: &str = "a_router_that_was_replaced_is_found_by_live_flows";
    /// Retransmissions wait longer and longer: the first few are enough to see that nobody answers, and to ask.
    const LIMIT: Duration = Duration::from_secs(60);

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(true)?;
    for family in ["ipv4", "ipv6"] {
        for (knob, value) in [
            ("base_reachable_time_ms", "500"),
            ("delay_first_probe_time", "1"),
            ("retrans_time_ms", "100"),
        ] {
            site.node(GATEWAY)
                .sysctl(&format!("net.{family}.neigh.{UPLINK}.{knob}"), value)?;
        }
    }
    let mut clients = site.clients(BOUND, 1)?;
    for origin in [site.at_a(ECHO_PORT), site.at_a_v6(ECHO_PORT)] {
        all_succeeded(&clients.open(origin, 1, CONNECT_LIMIT)?, 1)?;
    }
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 2)?;
    // Whoever is not asked for is believed to be there.
    let router = odd::mac(&site.node(NET), UPLINK)?.map(|byte| format!("{byte:02x}"));
    for address in ["203.0.113.1", "2001:db8:113::1"] {
        site.node(GATEWAY).ip(&format!(
            "neighbour replace {address} lladdr {} dev {UPLINK} nud stale",
            router.join(":")
        ))?;
    }
    site.node(NET)
        .ip(&format!("link set {UPLINK} address 02:00:00:00:77:01"))?;
    let outcome = clients.check(LIMIT)?;
    println!("it took {} ms", outcome.elapsed_us / 1000);
    all_succeeded(&outcome, 2)
}

/// The address of the gateway towards its clients.
fn gateway(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 1, 0, 1).into(),
        Family::V6 => {
            let mut segments = BOUND_ADDRESS_V6.segments();
            segments[7] = 1;
            segments.into()
        }
    }
}

/// Datagrams of this socket have one hop left.
fn limit_to_one_hop(socket: &UdpSocket, family: Family) -> Result<()> {
    let (level, name) = match family {
        Family::V4 => (libc::IPPROTO_IP, libc::IP_TTL),
        Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    };
    let one: libc::c_int = 1;
    // SAFETY: the value is as long as said.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const one).cast(),
            size_of_val(&one) as u32,
        )
    };
    ensure!(status == 0, "{}", io::Error::last_os_error());
    Ok(())
}

/// A packet of a live flow that may go no hop further is the kernel's, which says so with its own address.
#[test]
fn the_last_hop_of_a_live_flow_is_the_gateways() -> Result<()> {
    const TEST: &str = "the_last_hop_of_a_live_flow_is_the_gateways";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for accelerate in [true, false] {
        let site = start(accelerate)?;
        for family in Family::ALL {
            last_hop(&site, family)
                .with_context(|| format!("{family:?}, accelerate = {accelerate}"))?;
        }
    }
    Ok(())
}

fn last_hop(site: &Site, family: Family) -> Result<()> {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = site.node(BOUND).run(|| UdpSocket::bind((any, 0)))??;
    client.set_read_timeout(Some(CONNECT_LIMIT))?;
    client.connect(family.at(site, A, UDP_PORT))?;
    for _ in 0..3 {
        client.send(b"who am I?")?;
        client.recv(&mut [0; 100]).context("no answer")?;
    }
    let inside = Capture::start(&site.node(BOUND), "eth0")?;
    let uplink = Capture::start(&site.node(NET), UPLINK)?;
    limit_to_one_hop(&client, family)?;
    client.send(b"not far")?;
    // Time exceeded.
    let too_late = match family {
        Family::V4 => 11,
        Family::V6 => 3,
    };
    inside.wait_for("the gateway's answer", CONNECT_LIMIT, |frames| {
        let mut packets = frames.iter().filter_map(Frame::packet);
        packets.any(|packet| {
            packet.source == gateway(family)
                && matches!(packet.transport, Transport::Icmp { kind, .. } if kind == too_late)
        })
    })?;
    let left = uplink.finish()?;
    let mut left = left.iter().filter_map(Frame::packet);
    let left = left.find(|packet| packet.destination_port() == Some(UDP_PORT));
    ensure!(left.is_none(), "it left: {left:?}");
    Ok(())
}

/// A rule that goes by a mark of others sends live flows the ordinary way, on which that mark is set.
#[test]
fn live_flows_take_the_ordinary_way_while_routing_goes_by_marks_of_others() -> Result<()> {
    const TEST: &str = "live_flows_take_the_ordinary_way_while_routing_goes_by_marks_of_others";
    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(true)?;
    let check = site.watch_for(Rules::new().allow(POOL).allow_range(RANGE.into()))?;
    let node = site.node(GATEWAY);
    for (change, ordinary) in [
        ("rule add fwmark 1/0xffff lookup 100", true),
        ("rule del fwmark 1/0xffff lookup 100", false),
        ("-6 rule add fwmark 1 lookup 100", true),
    ] {
        node.ip(change)?;
        wait::until(change, ROUTED_LIMIT, || {
            let status = site.gateway.json(&["status"])?;
            Ok((status["routed"] == ordinary).then_some(()))
        })?;
        let before = forwarded(&site)?;
        fetch(&site, site.at_a(HTTP_PORT))?;
        let packets = forwarded(&site)? - before;
        println!("{change}: netfilter forwarded {packets} packets");
        ensure!(
            (packets >= PACKETS) == ordinary,
            "{change}: netfilter forwarded {packets} packets"
        );
    }
    check.finish()?;
    Ok(())
}

/// Whatever makes packets of live flows take the ordinary way again, connection tracking knows them.
#[test]
fn neighbours_that_were_flushed_end_no_flow_behind_a_stateful_firewall() -> Result<()> {
    const TEST: &str = "neighbours_that_were_flushed_end_no_flow_behind_a_stateful_firewall";
    /// Longer than connection tracking waits for the end of a handshake.
    const LATER: Duration = Duration::from_secs(4);

    let Some(_turn) = needs::timed_turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let site = start(true)?;
    let gateway = site.node(GATEWAY);
    gateway.nft(&format!(
        "table inet firewall {{
            chain forward {{
                type filter hook forward priority 0; policy drop;
                ct state invalid counter drop
                ct state established,related accept
                iifname \"{INSIDE_BOUND}\" ct state new tcp flags syn accept
            }}
        }}"
    ))?;
    gateway.sysctl("net.netfilter.nf_conntrack_tcp_timeout_syn_recv", "2")?;
    let mut clients = site.clients(BOUND, 1)?;
    for origin in [site.at_a(ECHO_PORT), site.at_a_v6(ECHO_PORT)] {
        all_succeeded(&clients.open(origin, HELD, CONNECT_LIMIT)?, HELD)?;
    }
    let began = Instant::now();
    while began.elapsed() < LATER {
        all_succeeded(&clients.check(CONNECT_LIMIT)?, 2 * HELD)?;
    }
    for _ in 0..3 {
        gateway.ip("neighbour flush all")?;
        all_succeeded(&clients.check(CONNECT_LIMIT)?, 2 * HELD)?;
    }
    Ok(())
}
