//! FWD-5, FWD-6 with two real daemons: the network brings every reply to the wrong server, and it works all the same.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    client::Fetch,
    gateway::Gateway,
    leak::{LeakCheck, Rules},
    needs,
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    packet::{Packet, UDP},
    pair::{
        NET, ORIGIN_ADDRESS, Pair, RANGE, SHARED, Side, TUNNEL_PORT, UNDERLAY, Underlay, resources,
    },
    path,
    peer::{self, Caller, Peers},
    wait,
};
use serde_json::Value;

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// Bytes of a transfer.
const BYTES: u64 = 32 << 20;
/// How long a transfer, an answer, a count may take.
const TRANSFER_LIMIT: Duration = Duration::from_secs(300);
const LIMIT: Duration = Duration::from_secs(60);

/// Packets that a server dropped for a reason.
fn reason(gateway: &Gateway, reason: &str) -> Result<u64> {
    let status = gateway.json(&["status"])?;
    let all = status["reasons"].as_array().context("no reasons")?;
    let found = all.iter().find(|one| one["reason"] == reason);
    found
        .and_then(|one| one["packets"].as_u64())
        .with_context(|| format!("no reason {reason}: {status}"))
}

/// Packets that a server has sent on to the other one, and received from it.
fn sent_on(gateway: &Gateway) -> Result<(u64, u64)> {
    let status = gateway.json(&["status"])?;
    let peers = status["peers"].as_array().context("no peers")?;
    let [peer] = peers.as_slice() else {
        anyhow::bail!("not one peer: {status}")
    };
    let count = |key: &str| peer[key].as_u64().context("no count");
    Ok((count("sent_packets")?, count("received_packets")?))
}

/// Tunnel packets among frames.
fn tunnelled(frames: &[Frame]) -> usize {
    let is =
        |packet: &Packet| packet.protocol == UDP && packet.destination_port() == Some(TUNNEL_PORT);
    frames.iter().filter_map(Frame::packet).filter(is).count()
}

/// Replies to shared addresses that the router has sent by an interface.
fn replies(frames: &[Frame]) -> usize {
    let is = |packet: &Packet| {
        packet.destination == IpAddr::from(SHARED)
            || matches!(packet.destination, IpAddr::V6(address) if RANGE.contains(&address))
    };
    let sent = frames.iter().filter(|frame| !frame.received);
    sent.filter_map(Frame::packet).filter(is).count()
}

fn rules(side: Side) -> Rules {
    Rules::new()
        .allow([SHARED])
        .allow_range(side.range().into())
}

/// A transfer of many megabytes, a crowd of connections and UDP, of both families, by either server, with either
/// underlay; all replies come to the other one.
#[test]
fn replies_that_arrive_at_the_wrong_server_reach_their_owner() -> Result<()> {
    const TEST: &str = "replies_that_arrive_at_the_wrong_server_reach_their_owner";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for underlay in Underlay::ALL {
        let pair = Pair::start(underlay)?;
        for side in Side::ALL {
            wrong_way(&pair, side, underlay).with_context(|| {
                format!(
                    "{side:?}, {underlay:?}: {}",
                    pair.gateway(side).last_words()
                )
            })?;
        }
    }
    Ok(())
}

fn wrong_way(pair: &Pair, side: Side, underlay: Underlay) -> Result<()> {
    pair.replies_to(side.other())?;
    let (own, wrong) = (pair.gateway(side), pair.gateway(side.other()));
    let before = (sent_on(wrong)?, sent_on(own)?);
    let check = LeakCheck::start(&pair.node(NET), side.port(), rules(side))?;
    // Not on the server itself: what comes through the tunnel is seen to arrive on its uplink.
    let towards = |side: Side| Capture::start(&pair.node(NET), side.port());
    let (to_owner, to_wrong) = (towards(side)?, towards(side.other())?);
    let between = Capture::start(&pair.node(side.server()), UNDERLAY)?;
    let mut client = pair.clients(side)?;
    for target in [pair.at(HTTP_PORT), pair.at_v6(HTTP_PORT)] {
        let fetch = Fetch {
            target,
            bytes: BYTES,
            rate: 0,
            timeout_ms: 20_000,
        };
        let outcome = client.fetch(fetch, TRANSFER_LIMIT, |_| Ok(()))?;
        ensure!(outcome.succeeded == 1, "{target}: {outcome:?}");
    }
    for target in [pair.at(UDP_PORT), pair.at_v6(UDP_PORT)] {
        let outcome = client.udp(target, 100, LIMIT, false)?;
        ensure!(outcome.succeeded == 100, "{target}: {outcome:?}");
    }
    drop(client);
    // Everything came by the tunnel and nothing by the uplink.
    let (by_uplink, by_other) = (replies(&to_owner.finish()?), replies(&to_wrong.finish()?));
    ensure!(by_uplink == 0, "{by_uplink} replies came by the uplink");
    ensure!(
        by_other > 200,
        "{by_other} replies came to the other server"
    );
    let seen = tunnelled(&between.finish()?);
    // Connections may still be ending: each packet is sent a little before it is received.
    let (sent, received) = wait::until("what was sent on to be received", LIMIT, || {
        let sent = sent_on(wrong)?.0 - before.0.0;
        let received = sent_on(own)?.1 - before.1.1;
        Ok((received == sent).then_some((sent, received)))
    })?;
    println!("{side:?}: {sent} packets sent on, {received} received, {seen} tunnel packets seen");
    ensure!(sent > 2 * BYTES / 1_500, "{sent} {received}");
    ensure!(seen > 0, "no packet went through the tunnel");
    if underlay == Underlay::V6 {
        shrunk(pair, side)?;
    }
    for gateway in [own, wrong] {
        for drop in [
            "tunnel_stranger",
            "tunnel_stray",
            "steered_twice",
            "peer_unreachable",
        ] {
            ensure!(reason(gateway, drop)? == 0, "{drop}");
        }
    }
    check.finish()?;
    Ok(())
}

/// NAT-5: the servers' network takes less than it did, and over IPv6 nobody cuts what goes through it: the origin is told,
/// of either family, in the midst of a transfer.
fn shrunk(pair: &Pair, side: Side) -> Result<()> {
    let change = |mtu: u32| -> Result<()> {
        for side in Side::ALL {
            let node = pair.node(side.server());
            node.ip(&format!("link set {UNDERLAY} mtu {mtu}"))?;
        }
        Ok(())
    };
    let wrong = pair.gateway(side.other());
    for at in [pair.at(ECHO_PORT), pair.at_v6(ECHO_PORT)] {
        let told = reason(wrong, "path_too_long")?;
        path::echo_across(&pair.node(side.client()), at, || change(1_470))
            .with_context(|| format!("from {at}"))?;
        let now = reason(wrong, "path_too_long")?;
        ensure!(now > told, "{at} was not told");
        change(1_570)?;
    }
    let node = pair.node(egress_tests::pair::ORIGIN);
    ensure!(
        path::learned(&node, SHARED.into(), 1_400)?,
        "the origin has not learned it"
    );
    for family in ["-4", "-6"] {
        node.ip(&format!("{family} route flush cache"))?;
    }
    Ok(())
}

/// A datagram socket on a node.
fn socket(pair: &Pair, node: &str, at: SocketAddr) -> Result<UdpSocket> {
    let socket = pair.node(node).run(move || UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

/// Answers in fragments, and an error about what a flow has sent, follow the same way.
#[test]
fn fragments_and_icmp_errors_reach_their_owner_too() -> Result<()> {
    const TEST: &str = "fragments_and_icmp_errors_reach_their_owner_too";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let pair = Pair::start(Underlay::V4)?;
    pair.replies_to(Side::Two)?;
    let check = LeakCheck::start(&pair.node(NET), Side::One.port(), rules(Side::One))?;
    for (any, at) in [("0.0.0.0:0", pair.at(PORT)), ("[::]:0", pair.at_v6(PORT))] {
        let origin = socket(&pair, egress_tests::pair::ORIGIN, at)?;
        let client = socket(&pair, Side::One.client(), any.parse()?)?;
        client.connect(at)?;
        client.send(b"?")?;
        let mut buffer = vec![0; 65_536];
        let (_, seen) = origin.recv_from(&mut buffer)?;
        let answer: Vec<u8> = (0..20_000_u32).map(|n| n as u8).collect();
        origin.send_to(&answer, seen)?;
        let length = client.recv(&mut buffer)?;
        ensure!(
            buffer[..length] == answer,
            "{at}: {length} bytes of another kind"
        );

        // Nobody listens any more: the origin says so, to the wrong server.
        drop(origin);
        client.send(b"?")?;
        let said = client.recv(&mut buffer);
        ensure!(
            matches!(&said, Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused),
            "{at}: {said:?}"
        );
    }
    check.finish()?;
    Ok(())
}

/// FWD-6: packets of the tunnel come from the other server, or nobody takes them; hosts inside cannot say that they
/// are the other server.
#[test]
fn only_known_servers_are_heard() -> Result<()> {
    const TEST: &str = "only_known_servers_are_heard";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let pair = Pair::start(Underlay::V4)?;
    pair.replies_to(Side::Two)?;
    let (one, two) = (pair.gateway(Side::One), pair.gateway(Side::Two));
    let listener = peer::listen(&pair.node(egress_tests::pair::ORIGIN), pair.at(PORT))?;
    let mut live = Peers::connect(&pair.node(Side::One.client()), Caller::default(), &listener)?;

    // A reply in a tunnel packet, as the other server would send it, but from the router.
    let inner = reply(&live)?;
    let node = pair.node(NET);
    let from_router = socket(&pair, NET, "203.0.1.1:0".parse()?)?;
    let end: SocketAddr = (Side::One.underlay(Underlay::V4), TUNNEL_PORT).into();
    // The router knows no way to the servers' own network.
    node.ip("route add 10.9.0.0/24 via 203.0.1.2")?;
    let strangers = reason(one, "tunnel_stranger")?;
    from_router.send_to(&inner, end)?;
    wait::until_true("the stranger to be counted", LIMIT, || {
        Ok(reason(one, "tunnel_stranger")? == strangers + 1)
    })?;

    // From inside, in the other server's name: it does not even reach the tunnel.
    let client = pair.node(Side::One.client());
    client.ip("address add 10.9.0.2/32 dev eth0")?;
    let forger = socket(&pair, Side::One.client(), "10.9.0.2:0".parse()?)?;
    // Nor is it the kernel that judges it by the way it comes.
    for interface in ["all", "in0"] {
        let name = format!("net/ipv4/conf/{interface}/rp_filter");
        pair.node(Side::One.server()).sysctl(&name, "0")?;
    }
    let unasked = reason(one, "unsolicited")?;
    let between = Capture::start(&pair.node(Side::One.server()), UNDERLAY)?;
    let (_, received) = sent_on(one)?;
    let capture = Capture::start(&pair.node(Side::One.server()), "in0")?;
    forger.send_to(&inner, end)?;
    let forged = |frames: &[Frame]| tunnelled(frames) > 0;
    capture.wait_for("the forged packet", LIMIT, forged)?;
    // What the other server sends itself comes after it.
    live.exchange()?;
    let (_, now) = sent_on(one)?;
    // What came by the servers' own network, never the forged one, which would be a drop besides.
    let came = between.finish()?;
    let came = came.iter().filter(|frame| frame.received).cloned();
    let came = tunnelled(&came.collect::<Vec<_>>()) as u64;
    ensure!(
        now > received && now <= received + came,
        "{received} {now} {came}"
    );
    ensure!(
        reason(one, "unsolicited")? == unasked,
        "the forged packet was heard"
    );
    ensure!(reason(one, "tunnel_stranger")? == strangers + 1);
    ensure!(reason(two, "tunnel_stranger")? == 0);

    // Through the tunnel comes nothing for the host itself.
    let stray = vxlan(&frame([10, 9, 0, 2], [203, 0, 1, 2], 1, 2));
    let from_two = socket(&pair, Side::Two.server(), "10.9.0.2:0".parse()?)?;
    from_two.send_to(&stray, end)?;
    wait::until_true("the stray to be counted", LIMIT, || {
        Ok(reason(one, "tunnel_stray")? == 1)
    })?;
    live.exchange()?;
    Ok(())
}

/// A packet of the tunnel around a frame, id 0.
fn vxlan(frame: &[u8]) -> Vec<u8> {
    [&[8, 0, 0, 0, 0, 0, 0, 0], frame].concat()
}

/// A datagram in a frame. No checksum is looked at before it is dropped.
fn frame(from: [u8; 4], to: [u8; 4], from_port: u16, to_port: u16) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 28, 0, 1, 0x40, 0, 60, 17, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    frame.extend(from_port.to_be_bytes());
    frame.extend(to_port.to_be_bytes());
    frame.extend([0, 8, 0, 0]);
    frame
}

/// A tunnel packet with a reply to a live connection.
fn reply(live: &Peers) -> Result<Vec<u8>> {
    let IpAddr::V4(egress) = live.seen.ip() else {
        anyhow::bail!("not IPv4: {live:?}")
    };
    Ok(vxlan(&frame(
        ORIGIN_ADDRESS.octets(),
        egress.octets(),
        PORT,
        live.seen.port(),
    )))
}

/// FWD-5: two servers that each take the other for the owner send nothing twice.
#[test]
fn nothing_is_sent_on_twice_whatever_two_servers_believe() -> Result<()> {
    const TEST: &str = "nothing_is_sent_on_twice_whatever_two_servers_believe";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    // To the first, everything is the second's; to the second, the first's.
    let owner = |side: Side| {
        let mut all = resources(Underlay::V4);
        let data_center = format!("dc{}", side.number());
        let marker = format!(
            "[[location.data_center.server]]\nname = \"{}\"",
            Side::Two.name()
        );
        all.sections = all
            .sections
            .replace(
                "[[location.data_center]]\nname = \"lab\"",
                "[[location.data_center]]\nname = \"dc1\"",
            )
            .replace(
                &marker,
                &format!("[[location.data_center]]\nname = \"dc2\"\n{marker}"),
            )
            .replace(
                "data_center = \"lab\"",
                &format!("data_center = \"{data_center}\""),
            );
        all
    };
    let pair = Pair::start_with(&[owner(Side::Two), owner(Side::One)], 1_500, |side| {
        format!("dc{}", side.number())
    })?;
    let between = Capture::start(&pair.node(Side::One.server()), UNDERLAY)?;
    let origin = socket(&pair, egress_tests::pair::ORIGIN, pair.at(PORT))?;
    for (nth, port) in (2_048..=65_535).step_by(2_048).enumerate() {
        let side = Side::ALL[nth % 2];
        pair.replies_to(side)?;
        let gateway = pair.gateway(side.other());
        let before = reason(gateway, "steered_twice")?;
        origin.send_to(b"?", (SHARED, port))?;
        wait::until_true(
            "the packet to be dropped by the second server",
            LIMIT,
            || Ok(reason(gateway, "steered_twice")? == before + 1),
        )?;
    }
    let seen = tunnelled(&between.finish()?);
    ensure!(seen == 31, "{seen} packets of the tunnel for 31 replies");
    Ok(())
}

/// SAFE-2, SAFE-4: the tunnel works without a daemon, a new daemon takes it over, a deleted one is made again, and
/// `egress detach` removes it.
#[test]
fn the_tunnel_outlives_the_daemon_and_goes_with_detach() -> Result<()> {
    const TEST: &str = "the_tunnel_outlives_the_daemon_and_goes_with_detach";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut pair = Pair::start(Underlay::V4)?;
    pair.replies_to(Side::Two)?;
    let listener = peer::listen(&pair.node(egress_tests::pair::ORIGIN), pair.at(PORT))?;
    let node = pair.node(Side::One.client());
    let mut live = Peers::connect(&node, Caller::default(), &listener)?;
    for gateway in &mut pair.gateways {
        gateway.kill()?;
    }
    live.exchange()?;
    let mut new = Peers::connect(&node, Caller::default(), &listener)?;
    for gateway in &mut pair.gateways {
        gateway.restart()?;
    }
    live.exchange()?;
    new.exchange()?;
    for side in Side::ALL {
        pair.node(side.server()).ip("link delete egress0")?;
        pair.gateway(side).wait_in_place(LIMIT)?;
    }
    live.exchange()?;
    for side in Side::ALL {
        let node = pair.node(side.server());
        node.ip("link set egress0 down")?;
        wait::until_true("the tunnel to be up again", LIMIT, || {
            Ok(node.ip("-o link show egress0")?.contains(",UP"))
        })?;
    }
    live.exchange()?;

    // Without other servers there is no tunnel; with them it is back.
    let one = pair.gateway(Side::One);
    let mut alone = resources(Underlay::V4);
    alone.sections = alone
        .sections
        .lines()
        .filter(|line| !line.starts_with("tunnel"))
        .collect::<Vec<_>>()
        .join("\n");
    let links = |side: Side| pair.node(side.server()).ip("-o link show");
    let without =
        |gateway: &Gateway| Ok(gateway.json(&["status"])?["peers"] == Value::Array(Vec::new()));
    one.reload(&alone, without)?;
    ensure!(
        !links(Side::One)?.contains("egress0"),
        "{}",
        links(Side::One)?
    );
    one.reload(&resources(Underlay::V4), |gateway| Ok(!without(gateway)?))?;
    live.exchange()?;
    drop((live, new));

    let one = &mut pair.gateways[0];
    one.terminate()?;
    let said = one.text(["detach"])?;
    ensure!(said.contains("tunnel: interface egress0"), "{said}");
    let links = pair.node(Side::One.server()).ip("-o link show")?;
    ensure!(!links.contains("egress0"), "{links}");
    Ok(())
}

/// The tunnel's own packets are nobody's, though they leave by the uplink and a zone covers their source; and the servers
/// need no network of their own.
#[test]
fn the_tunnel_may_cross_the_uplinks_of_a_zone_that_covers_everything() -> Result<()> {
    const TEST: &str = "the_tunnel_may_cross_the_uplinks_of_a_zone_that_covers_everything";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut all = resources(Underlay::V4);
    all.selectors = "sources = [\"0.0.0.0/0\", \"fd00:1::/64\"]".to_owned();
    for side in Side::ALL {
        let underlay = side.underlay(Underlay::V4).to_string();
        let uplink = format!("203.0.{}.2", side.number());
        all.sections = all.sections.replace(&underlay, &uplink);
    }
    let pair = Pair::start_with(&[all.clone(), all], 1_500, |_| "lab".to_owned())?;
    for side in Side::ALL {
        pair.replies_to(side.other())?;
        let mut client = pair.clients(side)?;
        let fetch = Fetch {
            target: pair.at(HTTP_PORT),
            bytes: BYTES,
            rate: 0,
            timeout_ms: 20_000,
        };
        let outcome = client.fetch(fetch, TRANSFER_LIMIT, |_| Ok(()))?;
        ensure!(outcome.succeeded == 1, "{outcome:?}");
        let (sent, _) = sent_on(pair.gateway(side.other()))?;
        ensure!(sent > BYTES / 1_500, "{sent} packets were sent on");
    }
    Ok(())
}
