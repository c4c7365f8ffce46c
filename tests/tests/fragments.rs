//! NAT-6 with real sockets: datagrams longer than the link, in both directions and in any order, leave with
//! an egress IP and arrive whole; a flood of fragments of one host does not stop another one's.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    config::Resources,
    fragment::{Datagram, ETHERNET_PIECE},
    leak::{LeakCheck, Rules},
    needs,
    netns::Namespace,
    odd,
    seed::Random,
    site::{HOST, Plan, Site},
    standard::{
        A, BOUND, BOUND_ADDRESS, BOUND_ADDRESS_V6, CROWD_ADDRESSES, GATEWAY, INSIDE_BOUND, Kind,
        Masquerade, NET, Options, POOL, RANGE, UPLINK, ZONE_PREFIX, ZONE_PREFIX_V6,
    },
};

/// Port of the origin's echo server.
const PORT: u16 = 9_009;
/// What a datagram may take.
const LIMIT: Duration = Duration::from_secs(60);
/// The mark that a proxy on the gateway sets.
const MARK: u32 = 161;
/// Lengths of datagrams: from two fragments to forty-one.
const LENGTHS: [usize; 6] = [1_600, 2_952, 2_953, 9_000, 30_000, 60_000];

/// A socket in a namespace.
fn socket(namespace: &Namespace, address: SocketAddr, mark: Option<u32>) -> Result<UdpSocket> {
    namespace.run(|| {
        let socket = UdpSocket::bind(address).with_context(|| format!("binding {address}"))?;
        socket.set_read_timeout(Some(LIMIT))?;
        if let Some(mark) = mark {
            // SAFETY: the value is as long as said and lives until the call returns.
            let status = unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_MARK,
                    (&raw const mark).cast(),
                    size_of_val(&mark) as u32,
                )
            };
            ensure!(status == 0, "setting the mark");
        }
        Ok(socket)
    })?
}

/// Bytes that no other datagram has.
fn payload(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.number() as u8).collect()
}

/// A shuffled copy.
fn shuffled<T: Clone>(items: &[T], random: &mut Random) -> Vec<T> {
    let mut items = items.to_vec();
    for nth in (1..items.len()).rev() {
        items.swap(nth, random.below(nth as u64 + 1) as usize);
    }
    items
}

/// An echo server on origin A that notes whom it saw; it ends when the value is dropped.
struct Echo {
    address: SocketAddr,
    stop: std::sync::Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<BTreeMap<IpAddr, u64>>>>,
}

impl Echo {
    fn start(site: &Site, address: SocketAddr) -> Result<Self> {
        let socket = socket(&site.node(A), address, None)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let should_stop = std::sync::Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut seen = BTreeMap::new();
            let mut bytes = vec![0; 65_536];
            loop {
                match socket.recv_from(&mut bytes) {
                    Ok((length, from)) => {
                        *seen.entry(from.ip()).or_default() += 1;
                        socket.send_to(&bytes[..length], from)?;
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if should_stop.load(Ordering::SeqCst) {
                            return Ok(seen);
                        }
                    }
                    Err(error) => bail!("the echo server: {error}"),
                }
            }
        });
        Ok(Self {
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the server: whom it saw, and how often.
    fn finish(mut self) -> Result<BTreeMap<IpAddr, u64>> {
        self.stop.store(true, Ordering::SeqCst);
        let thread = self.thread.take().context("it runs")?;
        thread.join().ok().context("the echo server panicked")?
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

fn of_the_pool(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => POOL.contains(&address),
        IpAddr::V6(address) => RANGE.contains(&address),
    }
}

fn only_the_pool(seen: &BTreeMap<IpAddr, u64>) -> Result<()> {
    ensure!(
        !seen.is_empty() && seen.keys().all(|address| of_the_pool(*address)),
        "the origin saw {seen:?}"
    );
    Ok(())
}

/// A pool of both families, and a zone by source, or by the mark that a proxy sets.
fn plan(kind: Kind, masquerade: Masquerade) -> Plan {
    Plan {
        network: Options {
            kind,
            masquerade,
            ..Options::default()
        },
        resources: Resources {
            selectors: format!(
                "sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]\nmarks = [{MARK}]\n"
            ),
            ..Resources::both_families()
        },
        ..Plan::default()
    }
}

fn watch(site: &Site) -> Result<LeakCheck> {
    site.watch_for(Rules::new().allow(POOL).allow_range(RANGE.into()))
}

/// An origin's port and an inside address for each family.
fn families(site: &Site) -> [(SocketAddr, IpAddr); 2] {
    [
        (site.at_a(PORT), BOUND_ADDRESS.into()),
        (site.at_a_v6(PORT), BOUND_ADDRESS_V6.into()),
    ]
}

/// Any address of the family, and a port that is free.
fn any(of: SocketAddr) -> SocketAddr {
    let address: IpAddr = if of.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    SocketAddr::new(address, 0)
}

/// Sends a datagram and waits for the very same one.
fn echo(socket: &UdpSocket, origin: SocketAddr, payload: &[u8]) -> Result<()> {
    socket.send_to(payload, origin)?;
    answer(socket, origin, payload)
}

/// Waits for a datagram.
fn answer(socket: &UdpSocket, origin: SocketAddr, payload: &[u8]) -> Result<()> {
    let mut bytes = vec![0; 65_536];
    let (length, from) = socket
        .recv_from(&mut bytes)
        .with_context(|| format!("no answer to {} bytes", payload.len()))?;
    ensure!(from == origin, "an answer from {from}");
    ensure!(bytes[..length] == *payload, "another {length} bytes");
    Ok(())
}

/// Whether a datagram comes, after others or not.
fn came(socket: &UdpSocket, payload: &[u8]) -> Result<bool> {
    let mut bytes = vec![0; 65_536];
    loop {
        match socket.recv(&mut bytes) {
            Ok(length) if bytes[..length] == *payload => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[test]
fn long_datagrams_arrive_whole_both_ways() -> Result<()> {
    const TEST: &str = "long_datagrams_arrive_whole_both_ways";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    for (kind, masquerade) in [
        (Kind::Routed, Masquerade::Nobody),
        (Kind::Segment, Masquerade::Everybody),
    ] {
        let site = Site::start(&plan(kind, masquerade))?;
        let check = watch(&site)?;
        for (origin, _) in families(&site) {
            let server = Echo::start(&site, origin)?;
            for (node, mark) in [(BOUND, None), (HOST, Some(MARK))] {
                let client = socket(&site.node(node), any(origin), mark)?;
                for length in LENGTHS {
                    echo(&client, origin, &payload(&mut random, length))
                        .with_context(|| format!("{node}, {kind:?}, {masquerade:?}, {origin}"))?;
                }
            }
            only_the_pool(&server.finish()?)?;
        }
        check.finish()?;
    }
    Ok(())
}

/// Addresses of the wire between a client and the gateway, or an origin and its router.
fn link(site: &Site, node: &str, peer: &str, interface: &str) -> Result<([u8; 6], [u8; 6])> {
    Ok((
        odd::mac(&site.node(node), "eth0")?,
        odd::mac(&site.node(peer), interface)?,
    ))
}

/// What left of a capture: how many fragments each datagram had, by its identification.
fn left(frames: &[Frame], egress: IpAddr) -> Result<BTreeMap<u32, usize>> {
    let mut datagrams: BTreeMap<u32, BTreeSet<u16>> = BTreeMap::new();
    for frame in frames.iter().filter(|frame| frame.received) {
        let ip = &frame.bytes[14..];
        let (source, id, field): (IpAddr, _, _) = match frame.bytes[12..14] {
            [0x08, 0x00] if ip[9] == 17 => (
                <[u8; 4]>::try_from(&ip[12..16])?.into(),
                u32::from(u16::from_be_bytes([ip[4], ip[5]])),
                u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff,
            ),
            [0x86, 0xdd] if ip[6] == 44 => (
                <[u8; 16]>::try_from(&ip[8..24])?.into(),
                u32::from_be_bytes(ip[44..48].try_into()?),
                u16::from_be_bytes([ip[42], ip[43]]),
            ),
            _ => continue,
        };
        ensure!(source == egress, "{source} on the wire");
        if field != 0 {
            let new = datagrams.entry(id).or_default().insert(field);
            ensure!(new, "fragment {field:#x} of {id} left twice");
        }
    }
    let counts = datagrams.into_iter().map(|(id, all)| (id, all.len()));
    Ok(counts.collect())
}

#[test]
fn fragments_in_any_order_arrive_whole_both_ways() -> Result<()> {
    const TEST: &str = "fragments_in_any_order_arrive_whole_both_ways";
    const ROUNDS: u32 = 10;

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    let site = Site::start(&plan(Kind::Routed, Masquerade::Nobody))?;
    let check = watch(&site)?;
    let (client_mac, gateway_mac) = link(&site, BOUND, GATEWAY, INSIDE_BOUND)?;
    let (origin_mac, router_mac) = link(&site, A, NET, "a0")?;
    for (origin, address) in families(&site) {
        let server = socket(&site.node(A), origin, None)?;
        let inside = SocketAddr::new(address, 40_404);
        let client = socket(&site.node(BOUND), inside, None)?;
        client.send_to(b"hello", origin)?;
        let (_, egress) = server.recv_from(&mut [0; 8])?;
        ensure!(of_the_pool(egress.ip()), "seen as {egress}");
        server.send_to(b"hello", egress)?;
        answer(&client, origin, b"hello")?;

        let capture = Capture::start(&site.node(NET), UPLINK)?;
        let mut sent = 0;
        for round in 0..ROUNDS {
            for (nth, length) in LENGTHS.into_iter().enumerate() {
                let payload = payload(&mut random, length);
                let out = Datagram {
                    from: client_mac,
                    to: gateway_mac,
                    source: inside,
                    destination: origin,
                    id: round << 8 | nth as u32,
                    payload: &payload,
                };
                let back = Datagram {
                    from: origin_mac,
                    to: router_mac,
                    source: origin,
                    destination: egress,
                    ..out
                };
                for (datagram, node, receiver, from) in
                    [(&out, BOUND, &server, egress), (&back, A, &client, origin)]
                {
                    let mut frames = datagram.fragments(ETHERNET_PIECE);
                    match round {
                        0 => frames.reverse(),
                        1 => {
                            // Every one twice.
                            frames = frames.iter().flat_map(|one| [one, one]).cloned().collect();
                        }
                        _ => frames = shuffled(&frames, &mut random),
                    }
                    sent += frames.len();
                    let taken = odd::send(&site.node(node), "eth0", &frames)?;
                    ensure!(taken == frames.len(), "{taken} of {}", frames.len());
                    answer(receiver, from, &payload).with_context(|| {
                        format!("{length} bytes from {node} to {origin}, round {round}")
                    })?;
                }
            }
        }
        // Only the pool's address was on the wire, and every datagram under an identification of its own.
        let datagrams = left(&capture.finish()?, egress.ip())?;
        ensure!(
            datagrams.len() == ROUNDS as usize * LENGTHS.len(),
            "{} identifications",
            datagrams.len()
        );
        let left: usize = datagrams.values().sum();
        println!("{origin}: {sent} fragments sent both ways; {left} left");
    }
    check.finish()?;
    Ok(())
}

/// The gateway's kernel cuts fragments that are too long for the uplink into smaller ones. That one of them waits
/// must not cost the others.
#[test]
fn fragments_that_are_cut_again_arrive_in_any_order() -> Result<()> {
    const TEST: &str = "fragments_that_are_cut_again_arrive_in_any_order";
    /// What the uplink takes: less than what fragments on the inside's link are long.
    const NARROW: u32 = 1_400;

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    let site = Site::start(&plan(Kind::Routed, Masquerade::Nobody))?;
    for node in [GATEWAY, NET] {
        let narrow = format!("link set {UPLINK} mtu {NARROW}");
        site.node(node).ip(&narrow)?;
    }
    let check = watch(&site)?;
    let (client_mac, gateway_mac) = link(&site, BOUND, GATEWAY, INSIDE_BOUND)?;
    let origin = site.at_a(PORT);
    let server = Echo::start(&site, origin)?;
    let inside = SocketAddr::new(BOUND_ADDRESS.into(), 40_404);
    let client = socket(&site.node(BOUND), inside, None)?;
    // Cut again, the longest one has more fragments than may wait for one source.
    let lengths = LENGTHS.into_iter().filter(|length| *length < 60_000);
    for (nth, length) in lengths.enumerate() {
        let payload = payload(&mut random, length);
        let datagram = Datagram {
            from: client_mac,
            to: gateway_mac,
            source: inside,
            destination: origin,
            id: nth as u32 + 1,
            payload: &payload,
        };
        let mut frames = datagram.fragments(ETHERNET_PIECE);
        frames.reverse();
        odd::send(&site.node(BOUND), "eth0", &frames)?;
        answer(&client, origin, &payload).with_context(|| format!("{length} bytes"))?;
    }
    only_the_pool(&server.finish()?)?;
    check.finish()?;
    Ok(())
}

#[test]
fn a_flood_of_fragments_of_one_host_does_not_stop_another() -> Result<()> {
    const TEST: &str = "a_flood_of_fragments_of_one_host_does_not_stop_another";
    /// Datagrams of other hosts: half of them in order, half not.
    const DATAGRAMS: usize = 240;
    /// Fragments of the flood before each of them.
    const FLOOD: usize = 512;
    /// What a datagram may take that may also be lost.
    const PATIENCE: Duration = Duration::from_secs(2);

    let Some(_turn) = needs::loud_turn(TEST, &[]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let server = Echo::start(&site, site.at_a(PORT))?;
    let (client_mac, gateway_mac) = link(&site, BOUND, GATEWAY, INSIDE_BOUND)?;
    let origin = server.address;
    // The flood goes to another origin: this one's kernel would be its first victim, since it keeps at most
    // ipfrag_high_thresh bytes.
    let other = site.at_b(PORT);
    let fragments = |source: SocketAddr, destination, id: u16, payload: &[u8], piece| {
        let datagram = Datagram {
            from: client_mac,
            to: gateway_mac,
            source,
            destination,
            id: id.into(),
            payload,
        };
        datagram.fragments(piece)
    };
    let namespace = site.node(BOUND);
    // One host sends first fragments alone, and later ones alone, before each datagram of the others. Not beside them:
    // then it would be the machine's queues that lose datagrams.
    let mut id = 0u16;
    let mut flood = || -> Result<usize> {
        let small = [0; 24];
        let frames: Vec<_> = (0..FLOOD)
            .map(|nth| {
                id = id.wrapping_add(1);
                let source = SocketAddr::new(BOUND_ADDRESS.into(), 50_000);
                fragments(source, other, id, &small, 16).swap_remove(nth % 2)
            })
            .collect();
        odd::send(&namespace, "eth0", &frames)
    };
    let clients = CROWD_ADDRESSES
        .iter()
        .map(|address| {
            let inside = SocketAddr::new((*address).into(), 40_404);
            let client = socket(&namespace, inside, None)?;
            client.set_read_timeout(Some(PATIENCE))?;
            Ok((inside, client))
        })
        .collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let (mut sent, mut lost) = (0, [0; 2]);
    for nth in 0..DATAGRAMS {
        sent += flood()?;
        let (inside, client) = &clients[nth / 2 % clients.len()];
        let payload = payload(&mut random, LENGTHS[nth % LENGTHS.len()]);
        let mut frames = fragments(*inside, origin, nth as u16, &payload, ETHERNET_PIECE);
        if nth % 2 == 1 {
            frames = shuffled(&frames, &mut random);
        }
        odd::send(&namespace, "eth0", &frames)?;
        // What was given up before may come all the same.
        lost[nth % 2] += usize::from(!came(client, &payload)?);
    }
    let ([in_order, shuffled], time) = (lost, begun.elapsed());
    let status = site.gateway.json(&["status"])?;
    let reasons: Vec<String> = status["reasons"]
        .as_array()
        .context("reasons")?
        .iter()
        .filter(|reason| reason["packets"] != 0)
        .map(|reason| format!("{} {}", reason["reason"], reason["packets"]))
        .collect();
    println!(
        "beside {sent} fragments in {time:?}, of {} datagrams each {in_order} were lost in order and \
         {shuffled} in disorder; {reasons:?}",
        DATAGRAMS / 2
    );
    // A busy machine drops some packets anywhere on the way. And a host may share the room where fragments
    // wait with the one that floods: one in sixteen does.
    ensure!(
        in_order <= DATAGRAMS / 2 / 10,
        "{in_order} lost: {reasons:?}"
    );
    ensure!(
        shuffled <= DATAGRAMS / 2 * 3 / 4,
        "{shuffled} lost: {reasons:?}"
    );
    ensure!(sent > 100_000, "{sent} fragments are no flood");
    only_the_pool(&server.finish()?)?;
    check.finish()?;
    Ok(())
}
