//! Floods: of SYNs from inside, of packets nobody asked for, of forged RSTs and ICMP errors. Who has a
//! connection keeps it, and no place is lost for good (CAP-6, SAFE-3, NAT-4, NAT-7; RFC 6888 REQ-11).

use std::{
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    config::Server,
    flood::{self, Hop},
    leak::LeakCheck,
    needs,
    netns::Namespace,
    peer::{self, Caller, Peers},
    seed::Random,
    site::{CONNECT_LIMIT, Plan, Site},
    standard::{A, BOUND, BOUND_ADDRESS, GATEWAY, INSIDE_BOUND, NET, POOL, UPLINK},
    wait,
};

/// Where the tests themselves are the origin.
const PORT: u16 = 9_000;
/// Ports of the origin at which nobody answers.
const SILENT: u16 = 4_000;
const SILENT_PORTS: u64 = 8;
/// Connections that are to survive.
const PEERS: usize = 20;
/// Packets that make a flood, at least.
const FLOOD: u64 = 30_000;
/// What a flood may take on a machine that has others to serve.
const LIMIT: Duration = Duration::from_secs(300);
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn v4(address: SocketAddr) -> Result<SocketAddrV4> {
    match address {
        SocketAddr::V4(address) => Ok(address),
        SocketAddr::V6(_) => bail!("{address} is not IPv4"),
    }
}

/// A site with connections from the bound client to origin A.
struct Held {
    site: Site,
    listener: TcpListener,
    peers: Vec<Peers>,
}

impl Held {
    fn start(max_flows: u32) -> Result<Self> {
        let site = Site::start(&Plan {
            server: Server {
                max_flows,
                ..Server::default()
            },
            ..Plan::default()
        })?;
        let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
        let node = site.node(BOUND);
        let peers = (0..PEERS)
            .map(|_| Peers::connect(&node, Caller::default(), &listener))
            .collect::<Result<_>>()?;
        Ok(Self {
            site,
            listener,
            peers,
        })
    }

    /// All connections work, for as long as `more` says.
    fn work_while(&mut self, mut more: impl FnMut(&Site) -> Result<bool>) -> Result<()> {
        wait::until_true("the flood to do what it can", LIMIT, || {
            for peers in &mut self.peers {
                peers.exchange()?;
            }
            Ok(!more(&self.site)?)
        })
    }

    /// They are still counted, each once, and new ones come about.
    fn check(mut self) -> Result<()> {
        let at = self.site.at_a(PORT);
        ensure!(self.site.active(at, "tcp")? == PEERS as u64);
        let node = self.site.node(BOUND);
        let caller = Caller::default();
        let mut another = None;
        wait::until_true("a new connection to come about", LIMIT, || {
            another = Peers::connect(&node, caller, &self.listener).ok();
            Ok(another.is_some())
        })?;
        for peers in &mut self.peers {
            peers.exchange()?;
        }
        self.peers.clear();
        drop(another);
        self.site.wait_active(at, "tcp", 0, CONNECT_LIMIT)
    }
}

#[test]
fn cap_6_half_open_flows_make_room_and_established_ones_do_not() -> Result<()> {
    const TEST: &str = "cap_6_half_open_flows_make_room_and_established_ones_do_not";

    let Some(_turn) = needs::loud_turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    let mut held = Held::start(4_096)?;
    let check = held.site.watch()?;
    held.site.node(A).nft(&format!(
        "table ip silent {{\n chain input {{\n type filter hook input priority 0;\n tcp dport {SILENT}-{} drop\n }}\n}}",
        SILENT + SILENT_PORTS as u16 - 1
    ))?;
    let node = held.site.node(BOUND);
    let hop = Hop::between((&node, "eth0"), (&held.site.node(GATEWAY), INSIDE_BOUND))?;
    let origin = *v4(held.site.at_a(SILENT))?.ip();
    let next = || {
        let from = SocketAddrV4::new(BOUND_ADDRESS, 1_024 + random.below(60_000) as u16);
        let port = SILENT + random.below(SILENT_PORTS) as u16;
        let number = random.number() as u32;
        hop.segment(from, SocketAddrV4::new(origin, port), SYN, (number, 0))
    };
    let ((), sent) = flood::during((&node, "eth0"), next, |sent| {
        held.work_while(|site| {
            Ok(sent.load(Ordering::Relaxed) < FLOOD || site.counted("table_full")? < 1_000)
        })
    })?;
    println!("{sent} SYNs, {} refused", held.site.counted("table_full")?);
    // With ordinary timers a half-open flow would stay for four minutes.
    held.check()?;
    check.finish()?;
    Ok(())
}

/// Connections, what watches them, and where a flood from outside begins: the router, and its way to the gateway.
fn from_the_wire() -> Result<(Held, LeakCheck, Namespace, Hop)> {
    let held = Held::start(4_096)?;
    let check = held.site.watch()?;
    let node = held.site.node(NET);
    let hop = Hop::between((&node, UPLINK), (&held.site.node(GATEWAY), UPLINK))?;
    Ok((held, check, node, hop))
}

#[test]
fn safe_3_what_nobody_asked_for_takes_no_place_and_is_counted() -> Result<()> {
    const TEST: &str = "safe_3_what_nobody_asked_for_takes_no_place_and_is_counted";

    let Some(_turn) = needs::loud_turn(TEST, &[]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    let (mut held, check, node, hop) = from_the_wire()?;
    let taken: Vec<_> = held.peers.iter().map(|peers| peers.seen).collect();
    let next = || {
        let port = loop {
            let port = random.below(65_536) as u16;
            if taken.iter().all(|seen| seen.port() != port) {
                break port;
            }
        };
        let to = SocketAddrV4::new(POOL[random.below(2) as usize], port);
        let from = Ipv4Addr::from(0xc633_6400 | random.below(256) as u32);
        let from = SocketAddrV4::new(from, random.number() as u16);
        let numbers = (random.number() as u32, random.number() as u32);
        match random.below(4) {
            0 => hop.datagram(from, to),
            1 => hop.segment(from, to, SYN, numbers),
            2 => hop.segment(from, to, RST, numbers),
            _ => hop.segment(from, to, SYN | ACK, numbers),
        }
    };
    let ((), sent) = flood::during((&node, UPLINK), next, |sent| {
        held.work_while(|_| Ok(sent.load(Ordering::Relaxed) < FLOOD))
    })?;
    wait::until_true("all of it to be counted", LIMIT, || {
        Ok(held.site.counted("unsolicited")? == sent)
    })
    .with_context(|| format!("{sent} were sent"))?;
    held.check()?;
    check.finish()?;
    Ok(())
}

/// Floods of packets that name a connection of somebody else's but do not know its numbers.
#[test]
fn nat_7_forged_resets_and_errors_end_nothing() -> Result<()> {
    const TEST: &str = "nat_7_forged_resets_and_errors_end_nothing";

    let Some(_turn) = needs::loud_turn(TEST, &[]) else {
        return Ok(());
    };
    let mut random = Random::announced(TEST);
    let (mut held, check, node, hop) = from_the_wire()?;
    let origin = v4(held.site.at_a(PORT))?;
    let seen: Vec<_> = held
        .peers
        .iter()
        .map(|peers| v4(peers.seen))
        .collect::<Result<_>>()?;
    let errors = AtomicU64::new(0);
    let next = || {
        let egress = seen[random.below(PEERS as u64) as usize];
        let numbers = (random.number() as u32, random.number() as u32);
        if random.below(2) == 0 {
            let flags = RST | (random.below(2) as u8 * ACK);
            return hop.segment(origin, egress, flags, numbers);
        }
        errors.fetch_add(1, Ordering::Relaxed);
        let kind = [(3, 1), (3, 2), (3, 3), (3, 4), (11, 0), (12, 0)][random.below(6) as usize];
        hop.error(origin, kind, (egress, origin), numbers)
    };
    let ((), sent) = flood::during((&node, UPLINK), next, |sent| {
        held.work_while(|_| Ok(sent.load(Ordering::Relaxed) < FLOOD))
    })?;
    let refused = held.site.counted("icmp_implausible")?;
    let errors = errors.load(Ordering::Relaxed);
    println!("{sent} packets, {errors} of them errors, {refused} refused as implausible");
    // Some guesses hit what may be under way.
    ensure!(refused > errors / 2);
    held.check()?;
    check.finish()?;
    Ok(())
}
