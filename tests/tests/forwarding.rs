//! FWD-1 to FWD-4 with real daemons: a new connection at a server that owns nothing of its pool is translated by one
//! that does, and comes back.

#[path = "forwarding/following.rs"]
mod following;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame, Tap},
    cities::{self, Case, Cities, Plan, Walk},
    client::Fetch,
    config::Resources,
    gateway::Gateway,
    leak::{LeakCheck, Rules},
    needs,
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    packet::{Packet, UDP},
    pair::{
        NET, ORIGIN, ORIGIN_ADDRESS, Pair, SHARED, Side, TUNNEL_PORT, UNDERLAY, Underlay, resources,
    },
    path,
    peer::{self, Caller, Peers},
    wait,
};
use nix::{
    libc,
    sys::socket::{setsockopt, sockopt},
};
use serde_json::Value;

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// Where it is one by UDP.
const DATAGRAMS: u16 = 9_001;
/// Bytes of a transfer.
const BYTES: u64 = 16 << 20;
/// How long a transfer, an answer, a count may take.
const TRANSFER_LIMIT: Duration = Duration::from_secs(180);
const LIMIT: Duration = Duration::from_secs(30);

/// All of [`SHARED`] is the second server's; with `cap` connections to an origin.
fn of_the_second(underlay: Underlay, cap: u32) -> Resources {
    let mut all = resources(underlay);
    all.connections_per_origin = cap;
    let second = format!(
        "[[location.data_center.server]]\nname = \"{}\"",
        Side::Two.name()
    );
    all.sections = all
        .sections
        .replace(
            &second,
            &format!("[[location.data_center]]\nname = \"other\"\n{second}"),
        )
        .replace("data_center = \"lab\"", "data_center = \"other\"");
    all
}

fn start(underlay: Underlay, cap: u32) -> Result<Pair> {
    let all = of_the_second(underlay, cap);
    let mtu = if underlay == Underlay::V4 {
        1_500
    } else {
        1_570
    };
    let pair = Pair::start_with(&[all.clone(), all], mtu, |side| match side {
        Side::One => "lab".to_owned(),
        Side::Two => "other".to_owned(),
    })?;
    pair.replies_to(Side::Two)?;
    Ok(pair)
}

/// Packets that a server dropped for a reason.
fn reason(gateway: &Gateway, reason: &str) -> Result<u64> {
    let status = gateway.json(&["status"])?;
    let all = status["reasons"].as_array().context("no reasons")?;
    let found = all.iter().find(|one| one["reason"] == reason);
    found
        .and_then(|one| one["packets"].as_u64())
        .with_context(|| format!("no reason {reason}: {status}"))
}

/// The flows of a server to an origin, one JSON object a line.
fn flows(gateway: &Gateway, origin: SocketAddr) -> Result<Vec<Value>> {
    let text = gateway.text(["flows", "--json"])?;
    let all = text.lines().map(serde_json::from_str::<Value>);
    let all = all.collect::<Result<Vec<_>, _>>()?;
    let origin = origin.to_string();
    Ok(all
        .into_iter()
        .filter(|flow| flow["origin"] == origin.as_str())
        .collect())
}

/// Packets between the servers, by tunnel.
fn tunnelled(frames: &[Frame]) -> usize {
    let is =
        |packet: &Packet| packet.protocol == UDP && packet.destination_port() == Some(TUNNEL_PORT);
    frames.iter().filter_map(Frame::packet).filter(is).count()
}

/// IPv4 packets from or to the origin, and those of them from [`SHARED`].
fn outside(frames: &[Frame]) -> (usize, usize) {
    let origin = IpAddr::from(ORIGIN_ADDRESS);
    let packets = frames.iter().filter_map(Frame::packet);
    let all = packets.filter(|packet| packet.source == origin || packet.destination == origin);
    all.fold((0, 0), |(all, shared), packet| {
        let is = packet.source == IpAddr::from(SHARED);
        (all + 1, shared + usize::from(is))
    })
}

/// A transfer, UDP, and connections of both servers' clients with the very same endpoints, while the captures see which
/// way they go; `egress flows` and `egress why` say the same.
#[test]
fn the_owner_translates_and_the_sender_delivers() -> Result<()> {
    const TEST: &str = "the_owner_translates_and_the_sender_delivers";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for underlay in Underlay::ALL {
        let pair = start(underlay, 40_000)?;
        both_ways(&pair, underlay).with_context(|| {
            let [one, two] = Side::ALL.map(|side| pair.gateway(side).last_words());
            format!("{underlay:?}: {one}\n{two}")
        })?;
    }
    Ok(())
}

fn both_ways(pair: &Pair, underlay: Underlay) -> Result<()> {
    let (one, two) = (pair.gateway(Side::One), pair.gateway(Side::Two));
    let check = LeakCheck::start(
        &pair.node(NET),
        Side::Two.port(),
        Rules::new().allow([SHARED]),
    )?;
    let by_one = Capture::start(&pair.node(NET), Side::One.port())?;
    let by_two = Capture::start(&pair.node(NET), Side::Two.port())?;
    let between = Capture::start(&pair.node(Side::One.server()), UNDERLAY)?;
    let mut client = pair.clients(Side::One)?;
    let fetch = Fetch {
        target: pair.at(HTTP_PORT),
        bytes: BYTES,
        rate: 0,
        timeout_ms: 120_000,
    };
    let outcome = client.fetch(fetch, TRANSFER_LIMIT, |_| Ok(()))?;
    ensure!(outcome.succeeded == 1, "{outcome:?}");
    let outcome = client.udp(pair.at(UDP_PORT), 50, LIMIT, false)?;
    ensure!(outcome.succeeded == 50, "{outcome:?}");
    drop(client);
    let (all, _) = outside(&by_one.finish()?);
    let (seen, shared) = outside(&by_two.finish()?);
    let frames = tunnelled(&between.finish()?);
    println!(
        "by the sender's uplink {all} packets, by the owner's {seen} ({shared} from {SHARED}), {frames} in the tunnel"
    );
    ensure!(all == 0, "{all} packets left by the sender's uplink");
    ensure!(shared > 50 && seen > 2 * shared.min(100), "{seen} {shared}");
    ensure!(frames > 100, "{frames}");

    // The clients of both servers use the same address, and now the same port.
    let at = pair.at(PORT);
    let listener = peer::listen(&pair.node(ORIGIN), at)?;
    let caller = Caller {
        port: Some(33_333),
        ..Caller::default()
    };
    let mut forwarded = Peers::connect(&pair.node(Side::One.client()), caller, &listener)?;
    let mut local = Peers::connect(&pair.node(Side::Two.client()), caller, &listener)?;
    ensure!(
        forwarded.seen.ip() == IpAddr::from(SHARED),
        "{}",
        forwarded.seen
    );
    ensure!(local.seen.ip() == IpAddr::from(SHARED), "{}", local.seen);
    ensure!(forwarded.seen.port() != local.seen.port());
    for _ in 0..3 {
        forwarded.exchange()?;
        local.exchange()?;
    }
    let path = |flow: &Value| flow["path"].as_str().unwrap_or_default().to_owned();
    let inside = "10.1.0.2:33333";
    let at_one = flows(one, at)?;
    let paths: Vec<String> = at_one.iter().map(path).collect();
    ensure!(paths == ["peer lab-s2"], "{at_one:?}");
    let at_two = flows(two, at)?;
    let mut paths: Vec<String> = at_two.iter().map(path).collect();
    paths.sort();
    ensure!(paths == ["from lab-s1", "local"], "{at_two:?}");
    ensure!(
        at_two.iter().all(|flow| flow["inside"] == inside),
        "{at_two:?}"
    );
    for flow in &at_two {
        let expected = if path(flow) == "local" {
            local.seen
        } else {
            forwarded.seen
        };
        ensure!(flow["egress"] == expected.to_string(), "{flow}");
    }
    let why = one.json(&["why", "10.1.0.2", &at.to_string()])?;
    ensure!(
        why["outcome"] == "forwarded" && why["server"] == "lab-s2" && why["path"] == "peer lab-s2",
        "{why}"
    );
    ensure!(why["nearness"] == "location", "{why}");
    let why = two.json(&["why", "10.1.0.2", &at.to_string()])?;
    ensure!(
        why["outcome"] == "admitted" && why["path"] == "local",
        "{why}"
    );
    let origins = one.json(&["origins"])?;
    ensure!(origins.as_array().is_some_and(Vec::is_empty), "{origins}");

    // Replies that come to the sender itself: to the owner, and back again.
    pair.replies_to(Side::One)?;
    forwarded.exchange()?;
    local.exchange()?;
    pair.replies_to(Side::Two)?;
    forwarded.exchange()?;

    // A reset at the origin is one at the inside.
    let Peers {
        mut inside, origin, ..
    } = forwarded;
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&origin, sockopt::Linger, &at_once)?;
    drop(origin);
    peer::was_reset(&mut inside, LIMIT, "the inside")?;
    local.exchange()?;
    wait::until_true("the forwarded flow to be over", LIMIT, || {
        Ok(flows(one, at)?.is_empty() && flows(two, at)?.len() == 1)
    })?;
    following::all(pair, underlay).context("what follows")?;
    for gateway in [one, two] {
        for drop in [
            "tunnel_stranger",
            "tunnel_stray",
            "steered_twice",
            "peer_unreachable",
            "forwarded_fragment",
            "fragment_no_first",
            "forwarded_icmp",
            "claims_egress_ip",
        ] {
            ensure!(reason(gateway, drop)? == 0, "{drop}");
        }
        // Over IPv6 later fragments are, of which nobody is told.
        let too_long = reason(gateway, "forwarded_too_long")?;
        ensure!(underlay == Underlay::V6 || too_long == 0, "{too_long}");
    }
    check.finish()?;
    Ok(())
}

/// CAP-4: the owner's cap holds for what is forwarded to it, and what it refuses is told to the inside at once; it goes to
/// nobody else. Without the owner everything is refused.
#[test]
fn the_owner_refuses_what_it_has_no_place_for() -> Result<()> {
    const TEST: &str = "the_owner_refuses_what_it_has_no_place_for";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let pair = start(Underlay::V4, 5)?;
    let check = LeakCheck::start(
        &pair.node(NET),
        Side::Two.port(),
        Rules::new().allow([SHARED]),
    )?;
    let own = Capture::start(&pair.node(NET), Side::One.port())?;
    let mut client = pair.clients(Side::One)?;
    let outcome = client.open(pair.at(HTTP_PORT), 8, LIMIT)?;
    ensure!(outcome.succeeded == 5, "{outcome:?}");
    let refused = reason(pair.gateway(Side::Two), "cap_reached")?;
    ensure!(refused >= 3, "{refused}");
    ensure!(reason(pair.gateway(Side::One), "cap_reached")? == 0);
    let (all, _) = outside(&own.finish()?);
    ensure!(all == 0, "{all} packets left by the sender's uplink");
    check.finish()?;
    Ok(())
}

/// The cases of the seeds: another server of the data center, another data center of the location, the closest other
/// location; and a live connection stays where it went when another location has become the closest.
#[test]
fn connections_go_to_the_nearest_owner_and_stay_there() -> Result<()> {
    const TEST: &str = "connections_go_to_the_nearest_owner_and_stay_there";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut lab = Cities::start(&Plan {
        // Each server is told something else.
        bgp: needs::has_command("bird"),
        ..Plan::new(cities::resources(7_000, 9_000))
    })?;
    let said = nearest(&mut lab);
    said.with_context(|| {
        let all = lab.gateways.iter().map(Gateway::last_words);
        all.collect::<Vec<_>>().join("\n")
    })
}

fn nearest(lab: &mut Cities) -> Result<()> {
    let at = SocketAddr::from((ORIGIN_ADDRESS, PORT));
    let listener = peer::listen(&lab.lab.node(ORIGIN), at)?;
    let rules = Rules::new().allow((1..=cities::POOLS).map(cities::egress_ip));
    let check = LeakCheck::start(&lab.lab.node(ORIGIN), "eth0", rules)?;
    numbers_are_nobody_elses(lab)?;
    let (owner, other) = lab.owner_and_neighbour(at)?;
    where_it_may(lab, owner, &listener)?;
    let cases = [
        (1, owner, Case::Here),
        (1, other, Case::DataCenter),
        (2, 0, Case::Location),
        (3, 0, Case::Elsewhere),
    ];
    for (pool, from, case) in cases {
        // The network brings the replies to a server that has nothing to do with it.
        lab.replies_to(pool, 7)?;
        let walk = lab.walk(pool, from, &listener);
        let walk = walk.with_context(|| format!("{case:?}, from {}", cities::SERVERS[from].0))?;
        println!("{case:?}: out {:?}, back {:?}", walk.out, walk.back);
        ensure!(walk.case == case, "{case:?}: {walk:?}");
        ensure!(walk.was_steered() && walk.back[0] == 7, "{walk:?}");
        let way = if case == Case::Here {
            vec![from]
        } else {
            vec![from, walk.owner()]
        };
        ensure!(walk.out == way, "{walk:?}");
        if case == Case::Elsewhere {
            ensure!(cities::SERVERS[walk.owner()].2 == "amsterdam", "{walk:?}");
            moves(lab, walk, &listener)?;
        }
    }
    if needs::has_command("bird") {
        comes_and_goes(lab)?;
    }
    check.finish()?;
    Ok(())
}

/// ANN-1: the network brings nothing to a server whose link is gone.
fn comes_and_goes(lab: &Cities) -> Result<()> {
    let has = |server: usize, wanted: bool| {
        let name = cities::SERVERS[server].0;
        wait::until_true("the routes", LIMIT, || {
            Ok(lab.brought_to(2)?.contains(name) == wanted)
        })
    };
    let began = Instant::now();
    lab.link(4, false)?;
    has(4, false)?;
    let gone = began.elapsed();
    lab.link(4, true)?;
    has(4, true)?;
    println!(
        "withdrawn after {gone:?}, back after {:?}",
        began.elapsed() - gone
    );
    Ok(())
}

/// Paris has become the closest: new connections go there, and the live one stays.
fn moves(lab: &mut Cities, walk: Walk, listener: &TcpListener) -> Result<()> {
    let at = listener.local_addr()?;
    let source = cities::inside(3).to_string();
    let nearer = cities::resources(7_000, 3_000);
    let is_paris = |name: &str| name.starts_with("par01-s");
    let told = |gateway: &Gateway| {
        let why = gateway.json(&["why", &source, &at.to_string()])?;
        Ok(why["server"].as_str().is_some_and(is_paris))
    };
    lab.gateways[0].reload(&nearer, told)?;
    let walk_owner = walk.owner();
    let mut live = walk.live;
    live.exchange()?;
    let mut new = lab.connect(3, 0, listener)?;
    new.exchange()?;
    live.exchange()?;
    let path = |flow: &Peers| lab.path_of(0, at, "inside", flow.inside.local_addr()?);
    ensure!(path(&live)? == format!("peer {}", cities::SERVERS[walk_owner].0));
    let now = path(&new)?;
    let new_owner = now.strip_prefix("peer ").filter(|name| is_paris(name));
    let new_owner = new_owner
        .and_then(cities::server_named)
        .context(now.clone())?;
    // POOL-9: their pool is removed where they began and where they are translated.
    for server in [0, walk_owner, new_owner] {
        lab.gateways[server].reload(&cities::resources_of(7_000, 3_000, 2), |gateway| {
            Ok(gateway
                .json(&["pools"])?
                .as_array()
                .is_some_and(|pools| pools.len() == 2))
        })?;
    }
    // The address is nobody's in their resources, so the network brings replies to the owner, or nothing does.
    for (owner, flow) in [(walk_owner, &mut live), (new_owner, &mut new)] {
        lab.replies_to(3, owner)?;
        for _ in 0..3 {
            flow.exchange().context("without its pool")?;
        }
    }
    Ok(())
}

/// SAFE-1: a server that leaves takes its number with it while the owner has flows of it. Another server's client with
/// the very same address and port is another one.
fn numbers_are_nobody_elses(lab: &Cities) -> Result<()> {
    /// The owner, who goes, and who comes; numbered from 0.
    const OWNER: usize = 4;
    const GOES: usize = 0;
    const COMES: usize = 2;
    const CLIENT: u16 = 44_444;

    let at = SocketAddr::from((ORIGIN_ADDRESS, DATAGRAMS));
    let origin = lab.lab.node(ORIGIN).run(move || UdpSocket::bind(at))??;
    origin.set_read_timeout(Some(LIMIT))?;
    let known = |absent: &[usize]| {
        let mut all = cities::resources(7_000, 9_000);
        for server in absent {
            let at = |net: usize| format!("tunnel = \"203.0.{net}.2\"");
            all.sections = all.sections.replace(&at(server + 1), &at(server + 91));
        }
        let expected: BTreeSet<String> = (0..cities::SERVERS.len())
            .filter(|server| *server != OWNER)
            .map(|server| server + if absent.contains(&server) { 91 } else { 1 })
            .map(|net| format!("203.0.{net}.2"))
            .collect();
        lab.gateways[OWNER].reload(&all, |gateway| {
            let status = gateway.json(&["status"])?;
            let peers = status["peers"].as_array().context("no peers")?;
            let found = peers.iter().filter_map(|peer| peer["address"].as_str());
            Ok(found.map(str::to_owned).collect::<BTreeSet<_>>() == expected)
        })
    };
    // A datagram from behind a server: where the origin sees it come from.
    let ask = |server: usize| -> Result<SocketAddr> {
        let from = SocketAddr::from((cities::inside(3), CLIENT));
        let socket = lab.client(server).run(move || UdpSocket::bind(from))??;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let word = format!("from {server}");
        let mut bytes = [0; 64];
        // The first one may wait for a neighbour.
        let seen = wait::until("the datagram to arrive", LIMIT, || {
            socket.send_to(word.as_bytes(), at)?;
            let (length, seen) = origin.recv_from(&mut bytes)?;
            Ok((&bytes[..length] == word.as_bytes()).then_some(seen))
        })?;
        wait::until_true("the answer", LIMIT, || {
            origin.send_to(word.as_bytes(), seen)?;
            Ok(socket.recv(&mut bytes).is_ok())
        })?;
        Ok(seen)
    };
    lab.replies_to(3, 6)?;
    known(&[COMES])?;
    let first = ask(GOES)?;
    known(&[COMES, GOES])?;
    known(&[GOES])?;
    let second = ask(COMES)?;
    println!(
        "a flow of a server that left is seen from {first}, one of a server that came from {second}"
    );
    ensure!(
        first.ip() == second.ip() && first != second,
        "{first} {second}"
    );
    let all = flows(&lab.gateways[OWNER], at)?;
    ensure!(all.len() == 2, "{all:?}");
    known(&[])?;
    Ok(())
}

/// FWD-8: the first zone is confined to Paris, and goes there from where its pool has an address as well; confined to where
/// nobody has one, it is refused. POLICY-3: a policy's address that other servers have is used there.
fn where_it_may(lab: &Cities, owner: usize, listener: &TcpListener) -> Result<()> {
    let at = listener.local_addr()?;
    let source = cities::inside(1).to_string();
    let gateway = &lab.gateways[owner];
    let why = |gateway: &Gateway| gateway.json(&["why", &source, &at.to_string()]);
    let usual = cities::resources(7_000, 9_000);
    for pool in [1, 3] {
        lab.replies_to(pool, 7)?;
    }
    let is_in = |why: &Value, data_center: &str| {
        let server = why["server"].as_str();
        server.is_some_and(|server| server.starts_with(data_center))
    };
    let mut before = lab.connect(1, owner, listener).context("before")?;

    gateway.reload(&cities::confined(usual.clone(), "paris"), |gateway| {
        let why = why(gateway)?;
        Ok(is_in(&why, "par01") && why["regions"] == serde_json::json!(["paris"]))
    })?;
    let mut there = lab.connect(1, owner, listener)?;
    there.exchange()?;
    ensure!(there.seen.ip() == IpAddr::from(cities::egress_ip(1)));
    let path = |live: &Peers| lab.path_of(owner, at, "inside", live.inside.local_addr()?);
    ensure!(path(&there)?.starts_with("peer par01") && path(&before)? == "local");

    gateway.reload(&cities::confined(usual.clone(), "amsterdam"), |gateway| {
        let why = why(gateway)?;
        Ok(why["outcome"] == "refused" && why["reason"] == "no_address")
    })?;
    let refused = lab.connect(1, owner, listener);
    ensure!(refused.is_err(), "it left: {refused:?}");

    // Of another pool, at a server that owns nothing of it: by the one address that the policy names.
    let mut policed = usual.clone();
    let primary = cities::egress_ip(3);
    policed.sections += &format!(
        "[[pool]]\nid = \"six\"\naccount = \"acme\"\nkind = \"leased\"\naddresses = [\"2001:db8:6::/64\"]\n\
         [[policy]]\nname = \"bank\"\naccount = \"acme\"\nprecedence = 1\ntraffic = \"net.dst.port == {PORT}\"\n\
         egress = {{ ipv4 = \"{primary}\", ipv4_fallback = \"0.0.0.0\", ipv6 = \"2001:db8:6::/64\" }}\n"
    );
    let to_amsterdam = |gateway: &Gateway| -> Result<bool> {
        let why = why(gateway)?;
        Ok(is_in(&why, "ams01") && why["policy"] == "bank" && why["pool"] == "pool3")
    };
    for server in [4, 5, owner] {
        lab.gateways[server].reload(&policed, |gateway| {
            let policies = gateway.json(&["why", &source, &at.to_string()])?;
            Ok(policies["policy"] == "bank")
        })?;
    }
    ensure!(to_amsterdam(gateway)?);
    let mut by_policy = lab.connect(1, owner, listener)?;
    by_policy.exchange()?;
    ensure!(
        by_policy.seen.ip() == IpAddr::from(primary),
        "{}",
        by_policy.seen
    );
    ensure!(path(&by_policy)?.starts_with("peer ams01"));

    // Those that live stay where they are (FWD-4).
    for server in [4, 5, owner] {
        lab.gateways[server].reload(&usual, |gateway| {
            Ok(gateway.json(&["why", &source, &at.to_string()])?["policy"].is_null())
        })?;
    }
    for live in [&mut before, &mut there, &mut by_policy] {
        live.exchange()?;
    }
    Ok(())
}

/// NAT-5: between servers whose network takes 1,500 bytes like everything else, TCP's segments fit the tunnel both
/// ways, and a datagram as long as the link takes arrives all the same.
#[test]
fn long_packets_fit_the_tunnel_without_being_cut() -> Result<()> {
    const TEST: &str = "long_packets_fit_the_tunnel_without_being_cut";
    /// Bytes each way.
    const LONG: u64 = 64 << 20;

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let pair = start(Underlay::V4, 40_000)?;
    let check = LeakCheck::start(
        &pair.node(NET),
        Side::Two.port(),
        Rules::new().allow([SHARED]),
    )?;
    let counts = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let seen = Arc::clone(&counts);
    let between = Tap::start(&pair.node(Side::One.server()), UNDERLAY, move |frame| {
        if let Some(packet) = frame.packet().filter(|packet| packet.protocol == UDP) {
            let [all, cut] = &*seen;
            all.fetch_add(1, Ordering::Relaxed);
            cut.fetch_add(packet.later_fragment.into(), Ordering::Relaxed);
        }
    })?;
    let began = Instant::now();
    let client = pair.node(Side::One.client());
    path::echo(&client, pair.at(ECHO_PORT), LONG, || Ok(()))?;
    let took = began.elapsed();
    let lost = between.stop()?.lost;
    let [packets, cut] = [0, 1].map(|nth| counts[nth].load(Ordering::Relaxed));
    println!(
        "{LONG} bytes each way in {took:?}: {packets} packets in the tunnel, {cut} of them cut ({lost} not seen)"
    );
    ensure!(
        packets > 1_000 && cut == 0,
        "{cut} of {packets} packets were cut"
    );

    // As long as the inside's own link takes: what is around it is cut.
    let to = pair.at(UDP_PORT);
    let answer = client.run(move || -> Result<usize> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        for _ in 0..6 {
            socket.send_to(&[7; 1_472], to)?;
            match socket.recv(&mut [0; 2_048]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                answer => return Ok(answer?),
            }
        }
        Ok(0)
    })??;
    ensure!(answer > 0, "no answer to a long datagram");
    check.finish()?;
    Ok(())
}
