//! The lab proves itself, without the daemon: plain routing and nftables snat look as they should to
//! an origin, and the leak check fires when it must.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Result, ensure};
use egress_tests::{
    capture::Capture,
    client::{Churn, Clients, Closer, Fetch, Options as ClientOptions},
    lab::Lab,
    leak::{LeakCheck, Rules},
    needs,
    netns::Namespace,
    offload::{self, Offload},
    origin::{ECHO_PORT, HTTP_PORT, Origin, UDP_PORT},
    packet::{RST, SYN},
    registry,
    standard::{
        self, A, B, BOUND, BOUND_ADDRESS, GATEWAY, Kind, Masquerade, NET, Options, POOL, UNBOUND,
        UPLINK,
    },
};

const LIMIT: Duration = Duration::from_secs(60);
/// Source NAT of the zone to a pool address, and everything else masqueraded. The address is put on the
/// gateway so that somebody answers ARP for it.
const SNAT: &str = "table ip lab_snat {
    chain postrouting {
        type nat hook postrouting priority srcnat - 1;
        oifname \"up0\" ip saddr 10.1.0.0/16 snat to 203.0.113.10
    }
}";

fn sees(lab: &Lab, client: &str, origin: Ipv4Addr) -> Result<String> {
    let url = format!("http://{origin}/ip");
    Ok(lab
        .exec(client, &["curl", "-sS", "--max-time", "30", &url])?
        .trim()
        .to_owned())
}

fn origins(lab: &Lab, kind: Kind) -> Result<Vec<Origin>> {
    [A, B]
        .into_iter()
        .map(|node| Origin::start(&lab.node(node), &kind.addresses(node), 1))
        .collect()
}

#[test]
fn plain_routing_shows_the_inside_address_and_the_leak_check_fires() -> Result<()> {
    if !needs::met("plain routing", &["curl"]) {
        return Ok(());
    }
    for kind in Kind::ALL {
        let lab = Lab::up(&standard::topology(&Options {
            kind,
            ..Options::default()
        }))?;
        let _origins = origins(&lab, kind)?;
        let check = LeakCheck::start(&lab.node(NET), UPLINK, Rules::new().allow(POOL))?;
        for origin in [kind.origin_a(), kind.origin_b()] {
            ensure!(sees(&lab, BOUND, origin)? == BOUND_ADDRESS.to_string());
        }
        let url = format!("http://[{}]/ip", kind.origin_v6(A));
        ensure!(
            lab.exec(BOUND, &["curl", "-sS", "--max-time", "30", &url])?
                .trim()
                == "fd00:1::2"
        );
        let report = check.report()?;
        // Three exchanges: a SYN, a request and an end each, and how many more depends on who is how fast.
        ensure!(
            report.leaks >= 9,
            "plain routing leaks, but the check saw {report:?}"
        );
        ensure!(
            report.sources.contains_key(&IpAddr::V4(BOUND_ADDRESS)),
            "{report:?}"
        );
        lab.down()?;
    }
    Ok(())
}

#[test]
fn nftables_snat_shows_the_pool_address_and_nothing_leaks() -> Result<()> {
    if !needs::met("nftables snat", &["curl", "nft"]) {
        return Ok(());
    }
    let options = Options {
        masquerade: Masquerade::Everybody,
        ..Options::default()
    };
    let lab = Lab::up(&standard::topology(&options))?;
    let _origins = origins(&lab, options.kind)?;
    let gateway = lab.node(GATEWAY);
    gateway.nft(SNAT)?;
    gateway.ip("address add 203.0.113.10/32 dev up0")?;
    let check = LeakCheck::start(&lab.node(NET), UPLINK, Rules::new().allow(POOL))?;
    ensure!(sees(&lab, BOUND, options.kind.origin_a())? == POOL[0].to_string());
    let report = check.finish()?;
    // Its SYN, its request, its end: how many more there are depends on who is how fast.
    ensure!(report.packets >= 3, "{report:?}");

    // The default egress on the same wire is a leak unless it is allowed by name.
    let strict = LeakCheck::start(&lab.node(NET), UPLINK, Rules::new().allow(POOL))?;
    let lenient = LeakCheck::start(
        &lab.node(NET),
        UPLINK,
        Rules::new()
            .allow(POOL)
            .allow_to_port(standard::DEFAULT_EGRESS_NET, HTTP_PORT),
    )?;
    ensure!(sees(&lab, UNBOUND, options.kind.origin_b())? == standard::DEFAULT_EGRESS.to_string());
    ensure!(strict.finish().is_err());
    lenient.finish()?;
    Ok(())
}

#[test]
fn clients_and_origins_count_alike() -> Result<()> {
    if !needs::met("clients and origins", &[]) {
        return Ok(());
    }
    let kind = Kind::Routed;
    let lab = Lab::up(&standard::topology(&Options::default()))?;
    let mut origin = Origin::start(&lab.node(A), &kind.addresses(A), 2)?;
    let mut clients = Clients::start(&lab.node(BOUND), 2, &ClientOptions::default())?;
    let at = |port| SocketAddr::new(kind.origin_a().into(), port);

    let opened = clients.open(at(ECHO_PORT), 3000, LIMIT)?;
    ensure!(
        opened.succeeded == 3000 && opened.held == 3000,
        "{opened:?}"
    );
    let checked = clients.check(LIMIT)?;
    ensure!(checked.succeeded == 3000, "{checked:?}");
    let stats = origin.accepted(3000)?;
    ensure!(
        stats.open == 3000 && stats.callers[&IpAddr::V4(BOUND_ADDRESS)] == 3000,
        "{stats:?}"
    );
    clients.close(1000, false)?;
    clients.close(1000, true)?;
    egress_tests::wait::until_true("2,000 connections to close", LIMIT, || {
        Ok(origin.stats()?.open == 1000)
    })?;
    clients.close_all(false)?;

    let refused = clients.open(at(9), 5, LIMIT)?;
    ensure!(
        refused.refused.get("ECONNREFUSED") == Some(&5) && refused.refusal_us.count == 5,
        "{refused:?}"
    );

    let answered = clients.udp(at(UDP_PORT), 300, LIMIT, false)?;
    ensure!(
        answered.succeeded == 300 && answered.seen["10.1.0.2"] == 300,
        "{answered:?}"
    );
    let refused = clients.udp(at(9), 4, LIMIT, false)?;
    ensure!(refused.refusals() > 0, "{refused:?}");

    for closer in [Closer::Server, Closer::Client] {
        let churn = Churn {
            target: at(HTTP_PORT),
            duration_ms: 300,
            parallel: 8,
            closer,
        };
        let churned = clients.churn(churn)?;
        ensure!(
            churned.succeeded > 0 && churned.failures() + churned.refusals() == 0,
            "{churned:?}"
        );
    }

    let mut steps = 0;
    let fetch = Fetch {
        target: at(HTTP_PORT),
        bytes: 64 << 20,
        rate: 0,
        timeout_ms: 60_000,
    };
    clients.fetch(fetch, Duration::from_secs(300), |_| {
        steps += 1;
        Ok(())
    })?;
    ensure!(steps > 10);
    Ok(())
}

#[test]
fn a_capture_sees_a_refused_syn_with_checksums_done_by_either_side() -> Result<()> {
    if !needs::met("a capture", &[]) {
        return Ok(());
    }
    let kind = Kind::Segment;
    let lab = Lab::up(&standard::topology(&Options {
        kind,
        ..Options::default()
    }))?;
    let capture = Capture::start(&lab.node(NET), UPLINK)?;
    for on in [true, false] {
        offload::set(&lab.node(BOUND), "eth0", Offload::TxChecksum, on)?;
        let mut client = Clients::start(&lab.node(BOUND), 1, &ClientOptions::default())?;
        let refused = client.open(SocketAddr::new(kind.origin_a().into(), 9), 1, LIMIT)?;
        ensure!(refused.refusals() == 1, "{refused:?}");
    }
    capture.wait_for("two SYNs out and two RSTs back", LIMIT, |frames| {
        let count = |received, flags| {
            frames
                .iter()
                .filter(|frame| frame.received == received)
                .filter_map(egress_tests::capture::Frame::packet)
                .filter(|packet| packet.has_flags(flags))
                .count()
        };
        count(true, SYN) == 2 && count(false, RST) == 2
    })?;
    let frames = capture.finish()?;
    let path = lab.directory().join("refused.pcap");
    Capture::save(&frames, &path)?;
    ensure!(std::fs::metadata(&path)?.len() > 24);
    Ok(())
}

#[test]
fn nothing_of_a_lab_stays_behind() -> Result<()> {
    if !needs::met("leaving nothing behind", &[]) {
        return Ok(());
    }
    let lab = Lab::up(&standard::topology(&Options::default()))?;
    let (directory, node) = (lab.directory(), lab.node(GATEWAY));
    let mut sleeper = node.command("sleep")?.arg("1000").spawn()?;
    ensure!(node.processes() == [sleeper.id().cast_signed()]);
    lab.down()?;
    ensure!(!sleeper.wait()?.success());
    ensure!(!directory.exists() && !node.exists());
    ensure!(!registry::persistent()?.contains(&"none".to_owned()));
    ensure!(!Namespace::named("egl-none-gw").exists());
    Ok(())
}
