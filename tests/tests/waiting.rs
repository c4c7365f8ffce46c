//! SAFE-1: what waits for its next hop's ARP answer, while the gateway already routes and the daemon starts or puts another
//! configuration in force, leaves as the configuration says that is in force then.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    config::Resources,
    gateway::Gateway,
    needs,
    netns::Namespace,
    packet::UDP,
    site::{Plan, Site},
    standard::{BOUND, BOUND_ADDRESS, GATEWAY, NET, POOL, UPLINK},
    wait,
};

/// A port where nobody listens.
const PORT: u16 = 9_099;
/// Between two datagrams: each is a flow of its own.
const PAUSE: Duration = Duration::from_millis(2);
/// What a busy machine may take for anything.
const LIMIT: Duration = Duration::from_secs(120);
/// Datagrams that are sent before something happens, and after it.
const SOME: u32 = 50;
/// Ethernet, IP, UDP.
const HEADERS: usize = 14 + 20 + 8;

/// Numbered datagrams on their way.
#[derive(Default)]
struct Sent {
    count: AtomicU32,
    done: AtomicBool,
}

impl Sent {
    /// Sends them, each from a port of its own, until they are enough.
    fn send(&self, from: &Namespace, to: SocketAddr) -> Result<()> {
        from.run(|| {
            while !self.done.load(Ordering::SeqCst) {
                let number = self.count.load(Ordering::SeqCst);
                UdpSocket::bind(("0.0.0.0", 0))?.send_to(&number.to_be_bytes(), to)?;
                self.count.store(number + 1, Ordering::SeqCst);
                thread::sleep(PAUSE);
            }
            anyhow::Ok(())
        })?
    }

    fn some(&self) -> Result<()> {
        let from = self.count.load(Ordering::SeqCst);
        wait::until_true("datagrams to be sent", LIMIT, || {
            Ok(self.count.load(Ordering::SeqCst) >= from + SOME)
        })
    }
}

/// The number and the source of a datagram of ours.
fn datagram(frame: &Frame) -> Option<(u32, IpAddr)> {
    let packet = frame.packet()?;
    let ours = !frame.received && packet.protocol == UDP && packet.destination_port() == Some(PORT);
    let number = frame.bytes.get(HEADERS..)?.first_chunk()?;
    ours.then(|| (u32::from_be_bytes(*number), packet.source))
}

/// Datagrams are sent and wait from before something happens until after it; then the next hop answers, and every one of
/// them leaves from the pool.
fn wait_while(site: &mut Site, happens: impl FnOnce(&mut Gateway) -> Result<()>) -> Result<()> {
    let to = site.at_a(PORT);
    let (inside, gateway, router) = (site.node(BOUND), site.node(GATEWAY), site.node(NET));
    // Here, behind all programs: farther on so many at once would be too many for a queue.
    let capture = Capture::start(&gateway, UPLINK)?;
    router.ip(&format!("link set {UPLINK} arp off"))?;
    gateway.ip(&format!("neigh flush dev {UPLINK}"))?;
    let sent = Sent::default();
    thread::scope(|scope| {
        let sending = scope.spawn(|| sent.send(&inside, to));
        let step = || {
            sent.some()?;
            happens(&mut site.gateway)?;
            sent.some()
        };
        let done = step();
        sent.done.store(true, Ordering::SeqCst);
        sending
            .join()
            .map_err(|_| anyhow!("the sender panicked"))??;
        done
    })?;
    let count = sent.count.into_inner();
    ensure!(
        !capture.frames().iter().any(|one| datagram(one).is_some()),
        "the next hop was known"
    );
    router.ip(&format!("link set {UPLINK} arp on"))?;
    capture.wait_for("all datagrams", LIMIT, |frames| {
        frames.iter().filter_map(datagram).count() >= count as usize
    })?;
    let mut sources: BTreeMap<IpAddr, Vec<u32>> = BTreeMap::new();
    for (number, source) in capture.finish()?.iter().filter_map(datagram) {
        sources.entry(source).or_default().push(number);
    }
    let foreign = sources.iter().find(|(source, _)| {
        let of_pool = POOL.map(IpAddr::from);
        !of_pool.contains(source)
    });
    ensure!(
        foreign.is_none(),
        "of {count} datagrams that waited these left with a foreign source: {foreign:?}"
    );
    println!("{count} datagrams waited, and all left from the pool");
    Ok(())
}

#[test]
fn safe_1_what_waits_leaves_as_the_configuration_in_force_says() -> Result<()> {
    const TEST: &str = "safe_1_what_waits_leaves_as_the_configuration_in_force_says";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut site = Site::prepare(&Plan::default())?;
    let gateway = site.node(GATEWAY);
    // Nothing is given up, and nothing is displaced.
    for (name, value) in [("mcast_solicit", "1000"), ("unres_qlen_bytes", "100000000")] {
        gateway.sysctl(&format!("net.ipv4.neigh.{UPLINK}.{name}"), value)?;
    }
    wait_while(&mut site, Gateway::restart)?;

    let others = Resources {
        selectors: "sources = [\"10.99.0.0/16\"]".to_owned(),
        ..Resources::default()
    };
    let at = site.at_a(PORT).to_string();
    let bound = |gateway: &Gateway| -> Result<bool> {
        let why = gateway.json(&["why", &BOUND_ADDRESS.to_string(), &at])?;
        Ok(why["outcome"] == "admitted")
    };
    site.gateway
        .reload(&others, |gateway| Ok(!bound(gateway)?))?;
    // While another zone is enabled, it gets a source that was nobody's.
    wait_while(&mut site, |gateway| {
        gateway.reload(&Resources::default(), bound)
    })
}
