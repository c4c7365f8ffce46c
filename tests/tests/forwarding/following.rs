//! What follows a forwarded connection through the tunnel: fragments (NAT-6) and ICMP errors (NAT-4), both ways, and
//! what tells the ends how long a packet may be (NAT-5).

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Result, ensure};
use egress_tests::{
    capture::Capture,
    fragment::{Datagram, ETHERNET_PIECE},
    netns::Namespace,
    odd,
    origin::ECHO_PORT,
    pair::{NET, ORIGIN, ORIGIN_ADDRESS, Pair, SHARED, Side, TUNNEL_PORT, UNDERLAY, Underlay},
    path, wait,
};
use nix::libc;

use super::{DATAGRAMS, LIMIT, outside};

/// How long one answer is waited for before the question is asked again.
const ANSWER: Duration = Duration::from_secs(2);
/// The same where it is likely to be lost.
const SOON: Duration = Duration::from_millis(200);
/// The client's own address, and a port of the origin where nobody is.
const INSIDE: &str = "10.1.0.2";
const NOBODY: u16 = 9_099;
/// Bytes of a datagram in a fragment that fits the tunnel wherever.
const SHORT_PIECE: usize = 1_200;
/// The last byte of the tunnel id of what opens nothing.
const GOING_ON: u8 = 2;
/// Bytes of a transfer.
const BYTES: u64 = 1 << 20;
/// What a hop inside and one behind the owner take.
const NARROW_INSIDE: u32 = 1_320;
const NARROW_BEHIND: u32 = 1_290;
/// What the path between the servers takes, less than their interfaces.
const FURTHER_ON: u32 = 1_450;

fn socket(node: &Namespace, at: SocketAddr) -> Result<UdpSocket> {
    let socket = node.run(move || UdpSocket::bind(at))??;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|nth| (nth * 7 + nth / 256) as u8).collect()
}

/// What `send` sends arrives whole: from where.
fn arrives(
    at: &UdpSocket,
    payload: &[u8],
    mut send: impl FnMut() -> Result<()>,
) -> Result<SocketAddr> {
    let mut buffer = vec![0; 65_536];
    wait::until("a datagram to arrive", LIMIT, || {
        send()?;
        // Behind it may be what was asked for before.
        while let Ok((length, from)) = at.recv_from(&mut buffer) {
            if buffer[..length] == *payload {
                return Ok(Some(from));
            }
        }
        Ok(None)
    })
}

/// A datagram of this length arrives whole, and so does one back: from where the origin sees it come.
fn there_and_back(client: &UdpSocket, origin: &UdpSocket, length: usize) -> Result<SocketAddr> {
    let payload = bytes(length);
    let to = origin.local_addr()?;
    let seen = arrives(origin, &payload, || {
        match client.send_to(&payload, to) {
            // What it was told a moment ago.
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(()),
            sent => Ok(sent.map(drop)?),
        }
    })?;
    ensure!(seen.ip() == IpAddr::from(SHARED), "seen from {seen}");
    let from = arrives(client, &payload, || {
        origin.send_to(&payload, seen)?;
        Ok(())
    })?;
    ensure!(from == to, "answered from {from}");
    Ok(seen)
}

/// Whoever asks is told that nobody is there.
fn is_refused(socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    socket.connect(to)?;
    let is = |error: std::io::Error| error.kind() == ErrorKind::ConnectionRefused;
    wait::until_true("the refusal", LIMIT, || {
        Ok(socket.send(b"anybody?").is_err_and(is) || socket.recv(&mut [0; 64]).is_err_and(is))
    })
}

/// All of it, in a scene where the second server translates what the first one's client sends.
pub(super) fn all(pair: &Pair, underlay: Underlay) -> Result<()> {
    let own = Capture::start(&pair.node(NET), Side::One.port())?;
    let client = pair.node(Side::One.client());
    let inside = socket(&client, SocketAddr::new(INSIDE.parse()?, 40_404))?;
    let origin = socket(&pair.node(ORIGIN), pair.at(DATAGRAMS))?;
    fragments(pair, &inside, &origin)?;
    overtaking(pair, underlay, &origin)?;
    lengths(pair, underlay, &inside, &origin)?;
    let seen = there_and_back(&inside, &origin, 100)?;
    // From the inside, about what came through the tunnel; and from the origin.
    drop(inside);
    is_refused(&origin, seen)?;
    let inside = socket(&client, SocketAddr::new(INSIDE.parse()?, 40_405))?;
    is_refused(&inside, pair.at(NOBODY))?;
    narrow(pair)?;
    let (all, _) = outside(&own.finish()?);
    ensure!(all == 0, "{all} packets left by the sender's uplink");
    Ok(())
}

/// Datagrams longer than the link, in order and the first fragment last.
fn fragments(pair: &Pair, inside: &UdpSocket, origin: &UdpSocket) -> Result<()> {
    let mut seen = None;
    for length in [4_000, 1_600, 30_000, 60_000] {
        let now = there_and_back(inside, origin, length)?;
        ensure!(*seen.get_or_insert(now) == now, "{seen:?} {now}");
    }
    let client = pair.node(Side::One.client());
    let macs = (
        odd::mac(&client, "eth0")?,
        odd::mac(&pair.node(Side::One.server()), "in0")?,
    );
    let payload = bytes(9_001);
    for (port, id) in [(40_404, 1), (40_406, 2)] {
        let mut frames = Datagram {
            from: macs.0,
            to: macs.1,
            source: SocketAddr::new(INSIDE.parse()?, port),
            destination: origin.local_addr()?,
            id,
            payload: &payload,
        }
        .fragments(ETHERNET_PIECE);
        frames.reverse();
        let from = arrives(origin, &payload, || {
            odd::send(&client, "eth0", &frames)?;
            Ok(())
        })?;
        ensure!(from.ip() == IpAddr::from(SHARED), "{from}");
    }
    Ok(())
}

/// Fragments that overtook the first one between the servers: the owner lets them wait.
fn overtaking(pair: &Pair, underlay: Underlay, origin: &UdpSocket) -> Result<()> {
    let [one, two] = Side::ALL.map(|side| side.underlay(underlay));
    // As the first server sends them, under an id that opens nothing.
    let server = socket(&pair.node(Side::One.server()), SocketAddr::new(one, 0))?;
    let payload = bytes(9_001);
    let mut id = 100;
    // All of them, and only one of them.
    for all in [true, false] {
        let from = arrives(origin, &payload, || {
            id += 1;
            let mut frames = Datagram {
                from: [2, 0, 0, 0, 0, 1],
                to: [2, 0, 0, 0, 0, 2],
                source: SocketAddr::new(INSIDE.parse()?, 40_404),
                destination: origin.local_addr()?,
                id,
                payload: &payload,
            }
            .fragments(SHORT_PIECE);
            if all {
                frames.reverse();
            } else {
                frames.swap(0, 1);
            }
            for frame in frames {
                let packet = [&[8, 0, 0, 0, 0, 0, GOING_ON, 0], &frame[..]].concat();
                server.send_to(&packet, SocketAddr::new(two, TUNNEL_PORT))?;
            }
            Ok(())
        })?;
        ensure!(from.ip() == IpAddr::from(SHARED), "{from}");
    }
    Ok(())
}

/// Who must not be cut is told what fits the tunnel, also when that has just changed.
fn lengths(pair: &Pair, underlay: Underlay, inside: &UdpSocket, origin: &UdpSocket) -> Result<()> {
    let (before, around) = match underlay {
        Underlay::V4 => (1_500, 50),
        Underlay::V6 => (1_570, 70),
    };
    let client = pair.node(Side::One.client());
    // By datagrams of this length, which fit what it knew before and so must not be cut.
    let told = |mtu: u32, length: usize| {
        wait::until_true("the client to be told", LIMIT, || {
            if path::learned(&client, ORIGIN_ADDRESS.into(), mtu)? {
                return Ok(true);
            }
            let _ = inside.send_to(&bytes(length), origin.local_addr()?);
            Ok(false)
        })
    };
    if underlay == Underlay::V4 {
        told(before - around, 1_472)?;
    }
    there_and_back(inside, origin, 1_472)?;
    let change = |mtu: u32| -> Result<()> {
        for side in Side::ALL {
            let node = pair.node(side.server());
            node.ip(&format!("link set {UNDERLAY} mtu {mtu}"))?;
        }
        Ok(())
    };
    change(before - 100)?;
    told(before - 100 - around, 1_400)?;
    there_and_back(inside, origin, 1_472)?;
    there_and_back(inside, origin, 4_000)?;
    if underlay == Underlay::V6 {
        // What the origin sends is longer than that, and over IPv6 nobody cuts it.
        let room = before - 100 - around;
        let learned = |mtu: u32| path::learned(&pair.node(ORIGIN), SHARED.into(), mtu);
        ensure!(learned(room)?, "the origin was not told");
        forget(pair, Side::One)?;
        may_be_cut(pair, inside)?;
        // A connection whose ends know nothing of it yet.
        change(before)?;
        is_wide(pair, inside, origin)?;
        path::echo_across(&client, pair.at(ECHO_PORT), || change(before - 100))?;
        ensure!(learned(room)?, "the origin was not told of its segments");
        change(before)?;
        is_wide(pair, inside, origin)?;
        further_on(pair, true)?;
        told(FURTHER_ON - around, 1_400)?;
        there_and_back(inside, origin, 1_472)?;
        ensure!(learned(FURTHER_ON - around)?, "the origin was not told");
        further_on(pair, false)?;
    }
    change(before)
}

/// The path between the servers takes less than their interfaces: a route says so, as one does where a router has told.
fn further_on(pair: &Pair, is: bool) -> Result<()> {
    let what = if is { "add" } else { "delete" };
    for side in Side::ALL {
        let other = side.other().underlay(Underlay::V6);
        let route = format!("-6 route {what} {other}/128 dev {UNDERLAY} mtu {FURTHER_ON}");
        pair.node(side.server()).ip(&route)?;
    }
    Ok(())
}

/// What both ends have been told is forgotten.
fn forget(pair: &Pair, side: Side) -> Result<()> {
    for node in [ORIGIN, side.client()] {
        pair.node(node).ip("-4 route flush cache")?;
    }
    Ok(())
}

/// Both servers have noticed that there is room again: neither end is told anything, and both have forgotten.
fn is_wide(pair: &Pair, inside: &UdpSocket, origin: &UdpSocket) -> Result<()> {
    let both = [inside, origin];
    for socket in both {
        socket.set_read_timeout(Some(SOON))?;
    }
    let wide = wait::until_true("the room to be noticed", LIMIT, || {
        forget(pair, Side::One)?;
        there_and_back(inside, origin, 1_472)?;
        let ends = [(ORIGIN, SHARED), (Side::One.client(), ORIGIN_ADDRESS)];
        for (node, to) in ends {
            if pair
                .node(node)
                .ip(&format!("route get {to}"))?
                .contains("mtu")
            {
                return Ok(false);
            }
        }
        Ok(true)
    });
    for socket in both {
        socket.set_read_timeout(Some(ANSWER))?;
    }
    wide
}

/// An origin that lets its datagrams be cut is told like any other.
fn may_be_cut(pair: &Pair, inside: &UdpSocket) -> Result<()> {
    let node = pair.node(ORIGIN);
    node.sysctl("net.ipv4.ip_no_pmtu_disc", "1")?;
    let origin = socket(&node, pair.at(DATAGRAMS + 1));
    node.sysctl("net.ipv4.ip_no_pmtu_disc", "0")?;
    there_and_back(inside, &origin?, 1_472)?;
    Ok(())
}

/// A hop inside and one behind the owner that take less than the tunnel: both ends are told.
fn narrow(pair: &Pair) -> Result<()> {
    let client = pair.node(Side::One.client());
    let hops = [
        (
            Side::One.server(),
            "10.1.0.0/24 dev in0 proto kernel scope link src 10.1.0.1",
            NARROW_INSIDE,
        ),
        (
            NET,
            "198.51.100.0/24 dev a0 proto kernel scope link src 198.51.100.1",
            NARROW_BEHIND,
        ),
    ];
    for (node, route, mtu) in hops {
        let node = pair.node(node);
        node.ip(&format!("route replace {route} mtu lock {mtu}"))?;
    }
    path::echo(&client, pair.at(ECHO_PORT), BYTES, || Ok(()))?;
    ensure!(
        path::learned(&client, ORIGIN_ADDRESS.into(), NARROW_BEHIND)?,
        "the client was not told"
    );
    ensure!(
        path::learned(&pair.node(ORIGIN), SHARED.into(), NARROW_INSIDE)?,
        "the origin was not told"
    );
    for (node, route, _) in hops {
        pair.node(node).ip(&format!("route replace {route}"))?;
    }
    Ok(())
}
