//! NAT-5: path MTU discovery through the gateway, with real kernels and no help from probing (RFC 4821): a hop
//! behind the uplink and hops inside that take less than the interfaces' 1,500 bytes.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    client::Fetch,
    config::Resources,
    needs,
    offload::{self, Offload},
    origin::{ECHO_PORT, HTTP_PORT, Origin},
    path::{Family, PATIENCE, echo, learned},
    service,
    site::{Plan, Site},
    standard::{A, B, BOUND, GATEWAY, Masquerade, NET, Options, UPLINK},
};

/// What the hop behind the uplink takes, and what the gateway's route to the inside takes.
const BEHIND: u32 = 1_400;
const INSIDE: u32 = 1_300;
/// What the path takes after it has changed: the least that IPv6 allows.
const FALLEN: u32 = 1_280;

fn start(masquerade: Masquerade) -> Result<Site> {
    let site = Site::start(&Plan {
        network: Options {
            masquerade,
            ..Options::default()
        },
        resources: Resources::both_families(),
        ..Plan::default()
    })?;
    for node in [BOUND, A] {
        // Whoever gets through does so by being told.
        site.node(node).sysctl("net.ipv4.tcp_mtu_probing", "0")?;
    }
    Ok(site)
}

/// Whether origin A has learned what the path to the bound client's egress IP takes.
fn origin_learned(site: &Site, family: Family, mtu: u32) -> Result<bool> {
    let egress = site.curl(BOUND, family.at(site, A, HTTP_PORT))?;
    learned(&site.node(A), egress.parse()?, mtu)
}

#[test]
fn nat_5_the_path_mtu_is_found_both_ways() -> Result<()> {
    const TEST: &str = "nat_5_the_path_mtu_is_found_both_ways";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        for checksums in [true, false] {
            let site = start(masquerade)?;
            if !checksums {
                for (node, interface) in [(BOUND, "eth0"), (A, "eth0")] {
                    offload::set(&site.node(node), interface, Offload::TxChecksum, false)?;
                }
            }
            for family in Family::ALL {
                let case = format!("{family:?}, masquerade {masquerade:?}, offload {checksums}");
                found_both_ways(&site, family).context(case)?;
            }
        }
    }
    Ok(())
}

fn found_both_ways(site: &Site, family: Family) -> Result<()> {
    family.narrow_behind(site, A, BEHIND)?;
    family.narrow_inside(site, INSIDE)?;
    let check = site.watch_for(family.rules())?;
    let capture = Capture::start(&site.node(NET), UPLINK)?;
    let origin = family.at(site, A, ECHO_PORT);
    echo(&site.node(BOUND), origin, 8 << 20, || Ok(()))?;
    ensure!(
        learned(&site.node(BOUND), origin.ip(), BEHIND)?,
        "the client was not told"
    );
    ensure!(
        origin_learned(site, family, INSIDE)?,
        "the origin was not told"
    );
    ensure!(family.complaints(&capture.finish()?)? > 0);
    check.finish()?;
    Ok(())
}

/// IPv4 only: who does not discover sends packets that may be fragmented on the way: behind the gateway, or by it.
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
        Family::V4.narrow_behind(&site, A, BEHIND)?;
        Family::V4.narrow_inside(&site, INSIDE)?;
        let check = site.watch_for(Family::V4.rules())?;
        let capture = Capture::start(&site.node(NET), UPLINK)?;
        let origin = site.at_a(ECHO_PORT);
        echo(&site.node(BOUND), origin, 8 << 20, || Ok(()))?;
        ensure!(!learned(&site.node(BOUND), origin.ip(), BEHIND)?);
        ensure!(Family::V4.complaints(&capture.finish()?)? == 0);
        check.finish()?;
    }
    Ok(())
}

/// The gateway's own uplink takes less than its inside: its kernel tells the client, or fragments what may be
/// fragmented, before anything is translated (RFC 4787 REQ-13).
#[test]
fn nat_5_an_uplink_may_take_less_than_the_inside() -> Result<()> {
    const TEST: &str = "nat_5_an_uplink_may_take_less_than_the_inside";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for masquerade in [Masquerade::Nobody, Masquerade::Everybody] {
        let site = start(masquerade)?;
        for node in [GATEWAY, NET] {
            let narrow = format!("link set {UPLINK} mtu {BEHIND}");
            site.node(node).ip(&narrow)?;
        }
        let node = site.node(BOUND);
        for family in Family::ALL {
            let check = site.watch_for(family.rules())?;
            let origin = family.at(&site, A, ECHO_PORT);
            let case = format!("{family:?}, masquerade {masquerade:?}");
            echo(&node, origin, 8 << 20, || Ok(())).context(case.clone())?;
            ensure!(learned(&node, origin.ip(), BEHIND)?, "{case}: not told");
            check.finish()?;
        }
        node.sysctl("net.ipv4.ip_no_pmtu_disc", "1")?;
        let check = site.watch_for(Family::V4.rules())?;
        let capture = Capture::start(&site.node(NET), UPLINK)?;
        let origin = site.at_b(ECHO_PORT);
        echo(&node, origin, 1 << 20, || Ok(()))?;
        ensure!(!learned(&node, origin.ip(), BEHIND)?);
        let frames = capture.finish()?;
        let later = |frame: &&Frame| frame.packet().is_some_and(|packet| packet.later_fragment);
        let fragments = frames.iter().filter(|frame| frame.received).filter(later);
        ensure!(fragments.count() > 500, "nothing was fragmented");
        check.finish()?;
    }
    Ok(())
}

#[test]
fn nat_5_a_transfer_goes_on_when_the_path_narrows() -> Result<()> {
    const TEST: &str = "nat_5_a_transfer_goes_on_when_the_path_narrows";

    let Some(_turn) = needs::turn(TEST, &["curl"]) else {
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
        for family in Family::ALL {
            narrows(&site, family).with_context(|| format!("{family:?}, {masquerade:?}"))?;
        }
    }
    Ok(())
}

fn narrows(site: &Site, family: Family) -> Result<()> {
    const GIB: u64 = 1 << 30;

    let check = site.watch_for(family.rules())?;
    // To the inside: the gateway's own kernel tells the origin.
    let fetch = Fetch {
        target: family.at(site, A, HTTP_PORT),
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
                family.narrow_inside(site, FALLEN)?;
            }
            Ok(())
        })?;
    println!(
        "{family:?}: 1 GiB to the inside in {} ms",
        outcome.elapsed_us / 1_000
    );
    ensure!(
        narrowed && origin_learned(site, family, FALLEN)?,
        "the origin was not told"
    );
    // From the inside, and back: a router behind the uplink tells the client. Another origin, since A would
    // ask for segments that fit.
    let origin = family.at(site, B, ECHO_PORT);
    echo(&site.node(BOUND), origin, GIB / 4, || {
        family.narrow_behind(site, B, FALLEN)
    })?;
    ensure!(
        learned(&site.node(BOUND), origin.ip(), FALLEN)?,
        "the client was not told"
    );
    check.finish()?;
    Ok(())
}

#[test]
fn nat_5_tracepath_reports_the_path_mtu() -> Result<()> {
    const TEST: &str = "nat_5_tracepath_reports_the_path_mtu";

    let Some(_turn) = needs::turn(TEST, &["nft", "tracepath"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        let site = start(masquerade)?;
        for (family, flag, hops) in [
            (Family::V4, "-4", ["10.1.0.1", "203.0.113.1"]),
            (Family::V6, "-6", ["fd00:1::1", "2001:db8:113::1"]),
        ] {
            family.narrow_behind(&site, A, BEHIND)?;
            let check = site.watch_for(family.rules())?;
            let origin = family.at(&site, A, 0).ip().to_string();
            let command = ["tracepath", flag, "-n", &origin];
            let printed = service::client(&site.node(BOUND), &command, "")?;
            println!("masquerade {masquerade:?}:\n{printed}");
            ensure!(
                printed.contains(&format!("Resume: pmtu {BEHIND} hops 3")),
                "{printed}"
            );
            // The gateway, the router, and the origin at the end.
            for hop in hops.into_iter().chain([&*format!("{origin} ")]) {
                ensure!(printed.contains(hop), "no {hop}: {printed}");
            }
            check.finish()?;
        }
    }
    Ok(())
}
