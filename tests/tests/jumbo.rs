//! NAT-1: jumbo frames, and packets that are not in one piece of memory: what `sendfile` sends are pages of a file,
//! and super-packets of up to 64 KiB where devices cut them. Every byte is compared, both ways, for both families.

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    config::Resources,
    needs,
    offload::{self, Offload},
    path::{Family, PATIENCE},
    pattern,
    peer::{self, Caller, Peers},
    site::{Plan, Site},
    standard::{A, BOUND, GATEWAY, INSIDE_BOUND, NET, UPLINK},
};

/// What every link between the client and the origin takes.
const MTU: usize = 9_000;
const ETHERNET: usize = 14;
/// Bytes of a transfer, each way.
const BYTES: usize = 8 << 20;
const PORT: u16 = 9_000;
/// The ends of those links.
const DEVICES: [(&str, &str); 6] = [
    (BOUND, "eth0"),
    (GATEWAY, INSIDE_BOUND),
    (GATEWAY, UPLINK),
    (NET, UPLINK),
    (NET, "a0"),
    (A, "eth0"),
];

fn start(offloads: bool) -> Result<Site> {
    let site = Site::start(&Plan {
        resources: Resources::both_families(),
        ..Plan::default()
    })?;
    for (node, device) in DEVICES {
        let node = site.node(node);
        node.ip(&format!("link set {device} mtu {MTU}"))?;
        if !offloads {
            for what in [
                Offload::TxChecksum,
                Offload::Tso,
                Offload::Gso,
                Offload::Gro,
            ] {
                offload::set(&node, device, what, false)?;
            }
        }
    }
    Ok(site)
}

/// A file that holds the pattern.
fn file(site: &Site) -> Result<File> {
    let path = site.lab.directory().join("pattern");
    let mut bytes = vec![0; BYTES];
    pattern::fill(&mut bytes, 0);
    std::fs::write(&path, bytes)?;
    Ok(File::open(path)?)
}

/// Sends the whole file from the page cache.
fn send_file(file: &File, to: &TcpStream) -> io::Result<()> {
    let mut at: libc::off_t = 0;
    while (at as usize) < BYTES {
        // SAFETY: two open descriptors and an offset of our own.
        let sent = unsafe {
            libc::sendfile(
                to.as_raw_fd(),
                file.as_raw_fd(),
                &raw mut at,
                BYTES - at as usize,
            )
        };
        if sent <= 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The file through a connection, each byte compared.
fn transfer(file: &File, from: &TcpStream, mut to: &TcpStream) -> Result<()> {
    from.set_write_timeout(Some(PATIENCE))?;
    to.set_read_timeout(Some(PATIENCE))?;
    thread::scope(|scope| {
        let sender = scope.spawn(|| send_file(file, from));
        let mut block = vec![0; 1 << 16];
        let mut at = 0;
        let received = (|| {
            while at < BYTES {
                let got = to.read(&mut block).context("reading")?;
                ensure!(got > 0, "the transfer ended after {at} bytes");
                ensure!(
                    pattern::matches(&block[..got], at as u64),
                    "wrong data at {at}"
                );
                at += got;
            }
            Ok(())
        })();
        if received.is_err() {
            // The sender is not to wait for somebody who has given up.
            let _ = to.shutdown(std::net::Shutdown::Both);
        }
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        received.and(sent.context("sending"))
    })
}

/// A datagram as long as a frame may be, there and back.
fn datagram(site: &Site, family: Family) -> Result<()> {
    let at = family.at(site, A, PORT);
    let origin = site.node(A).run(|| UdpSocket::bind(at))??;
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = site.node(BOUND).run(|| UdpSocket::bind((any, 0)))??;
    for socket in [&origin, &client] {
        socket.set_read_timeout(Some(PATIENCE))?;
    }
    client.connect(at)?;
    let mut sent = vec![0; MTU - header(family) - 8];
    pattern::fill(&mut sent, 0);
    let mut got = vec![0; MTU];
    client.send(&sent)?;
    let (length, from) = origin.recv_from(&mut got).context("at the origin")?;
    ensure!(family.is_egress(from.ip()), "seen as {from}");
    ensure!(got[..length] == sent, "at the origin: {length} bytes");
    origin.send_to(&sent, from)?;
    let length = client.recv(&mut got).context("at the client")?;
    ensure!(got[..length] == sent, "at the client: {length} bytes");
    Ok(())
}

/// Bytes of a network header.
const fn header(family: Family) -> usize {
    match family {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}

/// The longest frame that went by the uplink.
fn longest(frames: &[Frame]) -> usize {
    frames.iter().map(|frame| frame.length).max().unwrap_or(0)
}

fn exchange(site: &Site, family: Family, offloads: bool) -> Result<()> {
    let check = site.watch_for(family.rules())?;
    let capture = Capture::start(&site.node(NET), UPLINK)?;
    datagram(site, family).context("a datagram")?;
    let frames = capture.finish()?;
    ensure!(
        longest(&frames) == MTU + ETHERNET,
        "{} bytes at most: the datagram was cut",
        longest(&frames)
    );
    let file = file(site)?;
    let listener = peer::listen(&site.node(A), family.at(site, A, PORT))?;
    let peers = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
    ensure!(family.is_egress(peers.seen.ip()), "seen as {}", peers.seen);
    for (way, from, to) in [
        ("out", &peers.inside, &peers.origin),
        ("back", &peers.origin, &peers.inside),
    ] {
        let capture = Capture::start(&site.node(NET), UPLINK)?;
        transfer(&file, from, to).context(way)?;
        let longest = longest(&capture.finish()?);
        println!("{family:?}, offloads {offloads}, {way}: frames of up to {longest} bytes");
        if offloads {
            ensure!(
                longest > 2 * MTU,
                "{way}: no super-packets: {longest} bytes"
            );
        } else {
            ensure!(longest == MTU + ETHERNET, "{way}: {longest} bytes");
        }
    }
    let mut peers = peers;
    peers.exchange().context("afterwards")?;
    check.finish()?;
    Ok(())
}

#[test]
fn nat_1_jumbo_frames_and_files_both_ways() -> Result<()> {
    const TEST: &str = "nat_1_jumbo_frames_and_files_both_ways";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for offloads in [true, false] {
        let site = start(offloads)?;
        for family in Family::ALL {
            exchange(&site, family, offloads)
                .with_context(|| format!("{family:?}, offloads {offloads}"))?;
        }
    }
    Ok(())
}
