//! NAT-5: path MTU discovery through the gateway, with real kernels and no help from probing (RFC 4821): a hop
//! behind the uplink and hops inside that take less than the interfaces' 1,500 bytes.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    client::Fetch,
    needs,
    netns::Namespace,
    offload::{self, Offload},
    origin::{ECHO_PORT, HTTP_PORT, Origin},
    packet::{ICMP, Transport},
    pattern, programs, service,
    site::{Plan, Site},
    standard::{
        A, B, BOUND, BOUND_ADDRESS, GATEWAY, INSIDE_BOUND, Masquerade, NET, Options, POOL, UPLINK,
    },
};

/// What the hop behind the uplink takes, and what the gateway's route to the inside takes.
const BEHIND: u32 = 1_400;
const INSIDE: u32 = 1_300;
/// What the path takes after it has changed.
const FALLEN: u32 = 1_280;
/// How long a byte may be missing before a transfer counts as stuck.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes at a time.
const BLOCK: usize = 1 << 16;

fn start(masquerade: Masquerade) -> Result<Site> {
    let site = Site::start(&Plan {
        network: Options {
            masquerade,
            ..Options::default()
        },
        ..Plan::default()
    })?;
    for node in [BOUND, A] {
        // Whoever gets through does so by being told.
        site.node(node).sysctl("net.ipv4.tcp_mtu_probing", "0")?;
    }
    Ok(site)
}

/// Lowers what the router behind the uplink takes towards an origin.
fn narrow_behind(site: &Site, origin: &str, mtu: u32) -> Result<()> {
    let route = match origin {
        A => "198.51.100.0/24 dev a0 proto kernel scope link src 198.51.100.1",
        _ => "192.0.2.0/24 dev b0 proto kernel scope link src 192.0.2.1",
    };
    site.node(NET)
        .ip(&format!("route replace {route} mtu lock {mtu}"))?;
    Ok(())
}

/// Lowers what the gateway takes towards the bound client.
fn narrow_inside(site: &Site, mtu: u32) -> Result<()> {
    let route = format!(
        "route replace 10.1.0.0/24 dev {INSIDE_BOUND} proto kernel scope link src 10.1.0.1"
    );
    site.node(GATEWAY).ip(&format!("{route} mtu lock {mtu}"))?;
    Ok(())
}

/// Whether a node has learned that packets to an address may have `mtu` bytes.
fn learned(node: &Namespace, to: IpAddr, mtu: u32) -> Result<bool> {
    Ok(node
        .ip(&format!("route get {to}"))?
        .contains(&format!("mtu {mtu}")))
}

/// Sends the pattern to an echo server and reads it back, each byte compared; `midway` is called once.
fn echo(
    node: &Namespace,
    target: SocketAddr,
    bytes: u64,
    midway: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let stream = node.run(|| TcpStream::connect_timeout(&target, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut midway = Some(midway);
    thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<()> {
            let mut block = vec![0; BLOCK];
            let mut at = 0;
            while at < bytes {
                let length = BLOCK.min(usize::try_from(bytes - at)?);
                pattern::fill(&mut block[..length], at);
                (&stream)
                    .write_all(&block[..length])
                    .with_context(|| format!("sending after {at} of {bytes} bytes"))?;
                at += length as u64;
            }
            Ok(())
        });
        let mut block = vec![0; BLOCK];
        let mut at = 0;
        let received = (|| {
            while at < bytes {
                let got = (&stream)
                    .read(&mut block)
                    .with_context(|| format!("reading after {at} of {bytes} bytes"))?;
                ensure!(got > 0, "the echo ended after {at} of {bytes} bytes");
                ensure!(pattern::matches(&block[..got], at), "wrong data at {at}");
                at += got as u64;
                if at >= bytes / 2
                    && let Some(midway) = midway.take()
                {
                    midway()?;
                }
            }
            Ok(())
        })();
        if received.is_err() {
            // The sender is not to wait for somebody who has given up.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let sent = sender.join().map_err(|_| anyhow!("the sender panicked"))?;
        received.and(sent)
    })
}

/// ICMP errors that left the gateway and name nobody inside: how many say that a packet was too big.
fn complaints(frames: &[Frame]) -> Result<usize> {
    let inside = [BOUND_ADDRESS.octets(), [10, 1, 0, 1]];
    let mut count = 0;
    for frame in frames.iter().filter(|frame| frame.received) {
        let Some(packet) = frame.packet().filter(|packet| packet.protocol == ICMP) else {
            continue;
        };
        ensure!(
            POOL.iter().any(|address| packet.source == *address),
            "{packet}"
        );
        let named = frame
            .bytes
            .windows(4)
            .any(|bytes| inside.iter().any(|address| address == bytes));
        ensure!(!named, "an inside address left: {:02x?}", frame.bytes);
        count += usize::from(matches!(
            packet.transport,
            Transport::Icmp {
                kind: 3,
                code: 4,
                ..
            }
        ));
    }
    Ok(count)
}

#[test]
fn nat_5_the_path_mtu_is_found_both_ways() -> Result<()> {
    const TEST: &str = "nat_5_the_path_mtu_is_found_both_ways";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        for segmentation in [true, false] {
            let site = start(masquerade)?;
            if !segmentation {
                for (node, interface) in [(BOUND, "eth0"), (A, "eth0")] {
                    offload::set(&site.node(node), interface, Offload::TxChecksum, false)?;
                }
            }
            narrow_behind(&site, A, BEHIND)?;
            narrow_inside(&site, INSIDE)?;
            let check = site.watch()?;
            let capture = Capture::start(&site.node(NET), UPLINK)?;
            let origin = site.at_a(ECHO_PORT);
            let case = format!("masquerade {masquerade:?}, offload {segmentation}");
            echo(&site.node(BOUND), origin, 8 << 20, || Ok(())).context(case.clone())?;
            ensure!(
                learned(&site.node(BOUND), origin.ip(), BEHIND)?,
                "{case}: the client was not told"
            );
            let told = POOL.iter().try_fold(false, |told, address| {
                anyhow::Ok(told || learned(&site.node(A), (*address).into(), INSIDE)?)
            })?;
            ensure!(told, "{case}: the origin was not told");
            ensure!(complaints(&capture.finish()?)? > 0, "{case}");
            check.finish()?;
        }
    }
    Ok(())
}

/// Who does not discover sends packets that may be fragmented on the way: behind the gateway, or by it.
#[test]
fn nat_5_packets_that_may_be_fragmented_need_no_discovery() -> Result<()> {
    const TEST: &str = "nat_5_packets_that_may_be_fragmented_need_no_discovery";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        let mut site = start(masquerade)?;
        for node in [BOUND, A] {
            site.node(node).sysctl("net.ipv4.ip_no_pmtu_disc", "1")?;
        }
        // Sockets that were made before go on as they were.
        site.a = Origin::start(&site.node(A), &site.kind.addresses(A), 1)?;
        narrow_behind(&site, A, BEHIND)?;
        narrow_inside(&site, INSIDE)?;
        let check = site.watch()?;
        let capture = Capture::start(&site.node(NET), UPLINK)?;
        let origin = site.at_a(ECHO_PORT);
        echo(&site.node(BOUND), origin, 8 << 20, || Ok(()))?;
        ensure!(!learned(&site.node(BOUND), origin.ip(), BEHIND)?);
        ensure!(complaints(&capture.finish()?)? == 0);
        check.finish()?;
    }
    Ok(())
}

#[test]
fn nat_5_a_transfer_goes_on_when_the_path_narrows() -> Result<()> {
    const TEST: &str = "nat_5_a_transfer_goes_on_when_the_path_narrows";
    const GIB: u64 = 1 << 30;

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    for masquerade in [Masquerade::Nobody, Masquerade::Everybody] {
        let site = start(masquerade)?;
        for node in [BOUND, A] {
            let probing = site
                .node(node)
                .run(|| fs::read_to_string("/proc/sys/net/ipv4/tcp_mtu_probing"))??;
            ensure!(probing.trim() == "0");
        }
        let check = site.watch()?;
        // To the inside: the gateway's own kernel tells the origin.
        let fetch = Fetch {
            target: site.at_a(HTTP_PORT),
            bytes: GIB,
            rate: 0,
            timeout_ms: PATIENCE.as_millis() as u64,
        };
        let mut narrowed = false;
        let outcome = site
            .clients(BOUND, 1)?
            .fetch(fetch, Duration::from_secs(300), |done| {
                if done >= GIB / 2 && !narrowed {
                    narrowed = true;
                    narrow_inside(&site, FALLEN)?;
                }
                Ok(())
            })?;
        println!(
            "masquerade {masquerade:?}: 1 GiB to the inside in {} ms",
            outcome.elapsed_us / 1_000
        );
        let told = POOL.iter().try_fold(false, |told, address| {
            anyhow::Ok(told || learned(&site.node(A), (*address).into(), FALLEN)?)
        })?;
        ensure!(narrowed && told, "the origin was not told");
        // From the inside, and back: a router behind the uplink tells the client. Another origin, since A would
        // ask for segments that fit.
        let origin = site.at_b(ECHO_PORT);
        echo(&site.node(BOUND), origin, GIB / 4, || {
            narrow_behind(&site, B, FALLEN)
        })?;
        ensure!(
            learned(&site.node(BOUND), origin.ip(), FALLEN)?,
            "the client was not told"
        );
        check.finish()?;
    }
    Ok(())
}

#[test]
fn nat_5_tracepath_reports_the_path_mtu() -> Result<()> {
    const TEST: &str = "nat_5_tracepath_reports_the_path_mtu";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    if programs::find("tracepath").is_none() {
        needs::skip(TEST, "tracepath is not installed");
        return Ok(());
    }
    for masquerade in Masquerade::ALL {
        let site = start(masquerade)?;
        narrow_behind(&site, A, BEHIND)?;
        let check = site.watch()?;
        let origin = site.at_a(0).ip().to_string();
        let printed = service::client(&site.node(BOUND), &["tracepath", "-n", &origin], "")?;
        println!("masquerade {masquerade:?}:\n{printed}");
        ensure!(
            printed.contains(&format!("Resume: pmtu {BEHIND} hops 3")),
            "{printed}"
        );
        // The gateway, the router, and the origin at the end.
        for hop in ["10.1.0.1", "203.0.113.1", &format!("{origin} ")] {
            ensure!(printed.contains(hop), "no {hop}: {printed}");
        }
        check.finish()?;
    }
    Ok(())
}
