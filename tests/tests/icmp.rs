//! NAT-4 with real kernels at both ends: they believe an ICMP error only if the packet that it quotes is one of
//! theirs and every checksum is right. And nothing that leaves names anybody inside (SAFE-1).

use std::{
    fs, io,
    mem::size_of_val,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    client::Outcome,
    config::Resources,
    needs,
    netns::Namespace,
    packet::ICMP,
    site::{Plan, Site},
    standard::{
        A, BOUND, BOUND_ADDRESS, GATEWAY, Masquerade, NET, Options, POOL, UPLINK, ZONE_PREFIX,
    },
};

/// The mark that binds the gateway's own sockets.
const MARK: u32 = 0x42;
/// Errors wanted of each kind.
const ERRORS: usize = 5;
/// What an error may take.
const LIMIT: Duration = Duration::from_secs(60);
/// A host behind the bound client, which is its router.
const DEEP: &str = "deep";
const DEEP_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 1, 5, 2);
/// Addresses behind the router `net` of which it says that they are prohibited and unreachable.
const PROHIBITED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);
const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 67);

fn start(masquerade: Masquerade) -> Result<Site> {
    let site = Site::start(&Plan {
        network: Options {
            masquerade,
            ..Options::default()
        },
        resources: Resources {
            selectors: format!("sources = [\"{ZONE_PREFIX}\"]\nmarks = [{MARK}]"),
            ..Resources::default()
        },
        ..Plan::default()
    })?;
    Ok(site)
}

/// Whether the kept bytes of a frame hold an address of somebody inside, wherever.
fn names_the_inside(frame: &Frame) -> bool {
    let inside = [
        BOUND_ADDRESS,
        DEEP_ADDRESS,
        Ipv4Addr::new(10, 1, 0, 1),
        Ipv4Addr::new(10, 1, 5, 1),
    ];
    frame
        .bytes
        .windows(4)
        .any(|bytes| inside.iter().any(|address| address.octets() == bytes))
}

/// Nothing that left the gateway names the inside; the ICMP errors among it came from the pool: how many.
fn discreet(frames: &[Frame]) -> Result<usize> {
    let mut errors = 0;
    for frame in frames.iter().filter(|frame| frame.received) {
        ensure!(
            !names_the_inside(frame),
            "an inside address left: {:02x?}",
            frame.bytes
        );
        let Some(packet) = frame.packet() else {
            continue;
        };
        if packet.protocol == ICMP {
            ensure!(
                POOL.iter().any(|address| packet.source == *address),
                "{packet}"
            );
            errors += 1;
        }
    }
    Ok(errors)
}

fn refused(site: &Site, outcome: &Outcome, error: &str, case: &str) -> Result<()> {
    ensure!(
        outcome.refused.get(error) == Some(&ERRORS),
        "{case}: expected {ERRORS} x {error}: {outcome:?}\n{}",
        counters(site)?
    );
    Ok(())
}

/// What the gateway dropped, and what kernels say of the ICMP messages that they sent and received.
fn counters(site: &Site) -> Result<String> {
    const FILE: &str = "/proc/thread-self/net/snmp";
    let mut text = format!("gateway: {}", site.gateway.json(&["status"])?["reasons"]);
    for node in [NET, A, GATEWAY, BOUND] {
        let all = site.node(node).run(|| fs::read_to_string(FILE))??;
        // A line of names, then one of numbers.
        let mut lines = all.lines().filter(|line| line.starts_with("Icmp:"));
        let (Some(names), Some(numbers)) = (lines.next(), lines.next()) else {
            continue;
        };
        for (name, number) in names.split(' ').zip(numbers.split(' ')).skip(1) {
            if number != "0" {
                text.push_str(&format!("\n{node}: {name} {number}"));
            }
        }
    }
    Ok(text)
}

#[test]
fn nat_4_errors_from_outside_reach_whoever_sent_what_they_quote() -> Result<()> {
    const TEST: &str = "nat_4_errors_from_outside_reach_whoever_sent_what_they_quote";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        let site = start(masquerade)?;
        // Not by routes: about those a kernel sends one error a second.
        site.node(NET).nft(&format!(
            "table ip router {{
                chain forward {{
                    type filter hook forward priority 0;
                    ip daddr {PROHIBITED} reject with icmp admin-prohibited
                    ip daddr {UNREACHABLE} reject with icmp host-unreachable
                }}
            }}"
        ))?;
        let check = site.watch()?;
        for on in [true, false] {
            for (who, mut clients) in site.forwarded_and_own(MARK, on)? {
                let case = format!("{who}, masquerade {masquerade:?}, offload {on}");
                // The origin's own: nobody listens at that port.
                let outcome = clients.udp(site.at_a(9), ERRORS, LIMIT, false)?;
                refused(&site, &outcome, "ECONNREFUSED", &case)?;
                // A router's on the way, about datagrams and about SYNs.
                let at = |address: Ipv4Addr| SocketAddr::new(address.into(), 7);
                let outcome = clients.udp(at(PROHIBITED), ERRORS, LIMIT, false)?;
                refused(&site, &outcome, "EHOSTUNREACH", &case)?;
                // That a host is out of reach may pass: only a SYN's sender tells.
                for address in [PROHIBITED, UNREACHABLE] {
                    let outcome = clients.open(at(address), ERRORS, LIMIT)?;
                    refused(&site, &outcome, "EHOSTUNREACH", &case)?;
                }
            }
        }
        check.finish()?;
    }
    Ok(())
}

/// A socket of `node`, that tells of errors which applications need not know about.
fn socket(node: &Namespace, address: SocketAddrV4) -> Result<UdpSocket> {
    let socket = node.run(|| UdpSocket::bind(address))??;
    socket.set_read_timeout(Some(LIMIT))?;
    let on = 1i32;
    // SAFETY: the value lives until the call returns.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
    ensure!(status == 0, "IP_RECVERR: {}", io::Error::last_os_error());
    Ok(socket)
}

/// The error that a socket meets.
fn met(socket: &UdpSocket) -> Result<Option<i32>> {
    match socket.recv(&mut [0; 64]) {
        Ok(bytes) => anyhow::bail!("{bytes} bytes instead of an error"),
        Err(error) => Ok(error.raw_os_error()),
    }
}

/// A host behind the bound one.
fn dig_in(site: &Site) -> Result<()> {
    let deep = Namespace::create(site.node(DEEP).name())?;
    let bound = site.node(BOUND);
    bound.sysctl("net.ipv4.ip_forward", "1")?;
    bound.ip(&format!(
        "link add deep0 type veth peer name eth0 netns {}",
        deep.name()
    ))?;
    bound.ip("address add 10.1.5.1/24 dev deep0")?;
    bound.ip("link set deep0 up")?;
    deep.ip(&format!("address add {DEEP_ADDRESS}/24 dev eth0"))?;
    deep.ip("link set eth0 up")?;
    deep.ip("route add default via 10.1.5.1")?;
    site.node(GATEWAY)
        .ip(&format!("route add 10.1.5.0/24 via {BOUND_ADDRESS}"))?;
    Ok(())
}

#[test]
fn nat_4_errors_from_inside_leave_from_the_egress_ip_whoever_made_them() -> Result<()> {
    const TEST: &str = "nat_4_errors_from_inside_leave_from_the_egress_ip_whoever_made_them";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        let site = start(masquerade)?;
        dig_in(&site)?;
        let check = site.watch()?;
        let capture = Capture::start(&site.node(NET), UPLINK)?;
        let origin = SocketAddrV4::new(site.kind.origin(A), 9_000);
        let far = socket(&site.node(A), origin)?;
        // Where the origin's packets end: at the gateway, at the router behind it, at the host itself.
        for (hops, error) in [
            (2, libc::EHOSTUNREACH),
            (3, libc::EHOSTUNREACH),
            (64, libc::ECONNREFUSED),
        ] {
            let case = format!("{hops} hops, masquerade {masquerade:?}");
            let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
            let near = socket(&site.node(DEEP), any)?;
            near.connect(origin)?;
            near.send(b"hello")?;
            let (_, caller) = far.recv_from(&mut [0; 64]).context(case.clone())?;
            ensure!(
                POOL.iter().any(|address| caller.ip() == *address),
                "{case}: {caller}"
            );
            // Answers are to be believed by the kernel: of a socket that is connected to their receiver.
            far.connect(caller)?;
            far.set_ttl(hops)?;
            drop(near);
            far.send(b"too late")?;
            let what = met(&far).context(case.clone())?;
            ensure!(what == Some(error), "{case}: {what:?}");
            far.set_ttl(64)?;
            disconnect(&far)?;
        }
        capture.wait_for("three errors", LIMIT, |frames| {
            discreet(frames).is_ok_and(|errors| errors == 3)
        })?;
        ensure!(discreet(&capture.finish()?)? == 3);
        check.finish()?;
    }
    Ok(())
}

/// Lets a socket receive from anybody again.
fn disconnect(socket: &UdpSocket) -> Result<()> {
    // SAFETY: all-zero is a valid address: of no family.
    let nobody: libc::sockaddr = unsafe { std::mem::zeroed() };
    // SAFETY: the address lives until the call returns.
    let status = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const nobody,
            size_of_val(&nobody) as u32,
        )
    };
    ensure!(status == 0, "disconnecting: {}", io::Error::last_os_error());
    Ok(())
}
