//! What an established transfer keeps while somebody inside floods the gateway with SYNs: each opens a flow,
//! nobody answers, and soon the table is full (CAP-6).

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, ensure};
use egress_tests::{
    flood::Hop,
    odd::Sender,
    peer::{self, Caller, Peers},
    seed::Random,
    standard::{GATEWAY, INSIDE_BOUND},
};

use super::rig::{ORIGIN_ADDRESS, Rig};

/// How long a sample takes: a minute of flood.
pub(super) const TIME: Duration = Duration::from_secs(60);
/// SYNs a second.
pub(super) const RATE: u32 = 50_000;
/// How often a second some are sent.
const BURSTS: u32 = 1_000;
/// SYNs sent at a stretch, at most, when some are overdue.
const MOST: usize = 1_024;
/// Of the rate, what must have been sent for samples to be compared.
const LEAST_SENT: f64 = 0.95;
/// Where the transfer goes.
const PORT: u16 = 9_000;
/// Ports at which nobody answers, enough for all flows the table has room for.
const SILENT: u16 = 4_000;
const SILENT_PORTS: u16 = 64;
const SYN: u8 = 0x02;
/// What is written at a time.
const CHUNK: usize = 1 << 17;

/// Megabytes a second of one connection from origin to client during [`TIME`] of flood.
pub(super) fn speed(rig: &Rig) -> Result<f64> {
    rig.origin().nft(&format!(
        "table ip silent\ndelete table ip silent\ntable ip silent {{\n chain early {{\n \
         type filter hook prerouting priority -300;\n tcp dport {SILENT}-{} drop\n }}\n}}",
        SILENT + SILENT_PORTS - 1
    ))?;
    let listener = peer::listen(&rig.origin(), SocketAddr::from((ORIGIN_ADDRESS, PORT)))?;
    let Peers { inside, origin, .. } = Peers::connect(&rig.client(), Caller::default(), &listener)?;
    let received = AtomicU64::new(0);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let mut socket = &origin;
            let chunk = vec![7; CHUNK];
            // It ends when the socket is shut down.
            while socket.write_all(&chunk).is_ok() {}
        });
        let receiver = scope.spawn(|| {
            let mut socket = &inside;
            let mut buffer = vec![0; CHUNK];
            while let Ok(length @ 1..) = socket.read(&mut buffer) {
                received.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
        let flooded = flood(rig, &received);
        // Both threads end, whatever they wait for.
        for socket in [&inside, &origin] {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in [sender, receiver] {
            thread.join().map_err(|_| anyhow!("a thread panicked"))?;
        }
        flooded
    })
}

/// Floods for [`TIME`]; megabytes a second that were received meanwhile.
fn flood(rig: &Rig, received: &AtomicU64) -> Result<f64> {
    let hop = Hop::between((&rig.client(), "eth0"), (&rig.node(GATEWAY), INSIDE_BOUND))?;
    let sender = Sender::open(&rig.client(), "eth0")?;
    let mut random = Random::announced("flood");
    let pause = Duration::from_secs(1) / BURSTS;
    let begin = Instant::now();
    let before = received.load(Ordering::Relaxed);
    let mut sent = 0;
    while begin.elapsed() < TIME {
        let due = begin.elapsed().as_secs_f64() * f64::from(RATE);
        let frames: Vec<_> = (sent..due as usize)
            .take(MOST)
            .map(|_| syn(&hop, &mut random))
            .collect();
        sent += sender.send(&frames);
        thread::sleep(pause);
    }
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(
        sent as f64 >= LEAST_SENT * seconds * f64::from(RATE),
        "only {sent} SYNs in {seconds:.0} s"
    );
    let bytes = received.load(Ordering::Relaxed) - before;
    Ok(bytes as f64 / 1e6 / seconds)
}

/// A SYN of some host of the zone.
fn syn(hop: &Hop, random: &mut Random) -> Vec<u8> {
    let host = Ipv4Addr::from(0x0a01_0000 | random.below(0x1_0000) as u32);
    let from = SocketAddrV4::new(host, random.number() as u16);
    let port = SILENT + random.below(SILENT_PORTS.into()) as u16;
    let to = SocketAddrV4::new(ORIGIN_ADDRESS, port);
    hop.segment(from, to, SYN, (random.number() as u32, 0))
}
