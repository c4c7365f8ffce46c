//! ZONE-2 to -4, NAT-2, CAP-5: whoever belongs to the zone leaves from the pool, behind the gateway or on it,
//! masquerade or not; nobody else does; and who is refused is told.

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    cgroup::Cgroup,
    client::{Churn, Clients, Closer, Options as ClientOptions},
    config::{Resources, Server},
    needs,
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    site::{CONNECT_LIMIT, HOST, Plan, Site, all_succeeded, refused_at_once},
    standard::{
        BOUND, BOUND_ADDRESS, DEFAULT_EGRESS, Kind, Masquerade, Options, POOL, UNBOUND,
        UNBOUND_ADDRESS, ZONE_PREFIX,
    },
};
use serde_json::Value;

/// The mark that a proxy on the gateway sets.
const MARK: u32 = 161;
/// How many refusals of each kind are looked at.
const REFUSALS: usize = 9;

/// The addresses that the origins see of clients, by TCP and by UDP.
fn seen(site: &Site, clients: &mut Clients) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    for (http, udp) in [
        (site.at_a(HTTP_PORT), site.at_a(UDP_PORT)),
        (site.at_b(HTTP_PORT), site.at_b(UDP_PORT)),
    ] {
        let churn = Churn {
            target: http,
            duration_ms: 50,
            parallel: 1,
            closer: Closer::Client,
        };
        let by_tcp = clients.churn(churn)?;
        ensure!(by_tcp.succeeded > 0, "no answer from {http}: {by_tcp:?}");
        let by_udp = clients.udp(udp, 5, CONNECT_LIMIT, false)?;
        all_succeeded(&by_udp, 5)?;
        seen.extend(by_tcp.seen.into_keys().chain(by_udp.seen.into_keys()));
    }
    Ok(seen)
}

fn is_pool(address: &String) -> bool {
    POOL.iter().any(|of_pool| of_pool.to_string() == *address)
}

#[test]
fn members_of_the_zone_leave_from_the_pool_and_nobody_else() -> Result<()> {
    const TEST: &str = "members_of_the_zone_leave_from_the_pool_and_nobody_else";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let cgroup = match Cgroup::create("egress-lab.slice/proxy.service") {
        Ok(cgroup) => Some(cgroup),
        Err(error) => {
            needs::skip(&format!("{TEST}, by cgroup"), &format!("{error:#}"));
            None
        }
    };
    let mut selectors = format!("sources = [\"{ZONE_PREFIX}\"]\nmarks = [{MARK}]\n");
    if let Some(cgroup) = &cgroup {
        selectors.push_str(&format!("cgroups = [\"{}\"]\n", cgroup.name()));
    }
    for (kind, masquerade, attach) in [
        (Kind::Routed, Masquerade::Nobody, "tcx"),
        (Kind::Routed, Masquerade::Unbound, "auto"),
        (Kind::Routed, Masquerade::Everybody, "clsact"),
        (Kind::Segment, Masquerade::Everybody, "tcx"),
    ] {
        if attach == "tcx" && !needs::has_tcx() {
            needs::skip(
                &format!("{TEST}, by tcx, {kind:?}"),
                "this kernel has no tcx (Linux 6.6 and later)",
            );
            continue;
        }
        let resources = Resources {
            selectors: selectors.clone(),
            ..Resources::default()
        };
        let network = Options {
            kind,
            masquerade,
            ..Options::default()
        };
        let server = Server {
            dataplane: format!("attach = \"{attach}\""),
            ..Server::default()
        };
        let site = Site::start(&Plan {
            network,
            server,
            resources,
            ..Plan::default()
        })?;

        let mut members = vec![
            ("behind the gateway", site.clients(BOUND, 1)?),
            (
                "on the gateway, by mark",
                Clients::start(
                    &site.node(HOST),
                    1,
                    &ClientOptions {
                        mark: Some(MARK),
                        ..ClientOptions::default()
                    },
                )?,
            ),
        ];
        if let Some(cgroup) = &cgroup {
            let clients =
                Clients::start_with(&site.node(HOST), 1, &ClientOptions::default(), |command| {
                    cgroup.enter(command);
                })?;
            members.push(("on the gateway, by cgroup", clients));
        }
        for (who, clients) in &mut members {
            let seen = seen(&site, clients)?;
            ensure!(
                seen.iter().all(is_pool),
                "{who}, {kind:?}, {attach}, masquerade {masquerade:?}: seen as {seen:?}"
            );
        }
        let of_unbound = match masquerade {
            Masquerade::Nobody => UNBOUND_ADDRESS,
            _ => DEFAULT_EGRESS,
        };
        for (node, expected) in [(UNBOUND, of_unbound), (HOST, DEFAULT_EGRESS)] {
            let seen = seen(&site, &mut site.clients(node, 1)?)?;
            ensure!(
                seen.iter().all(|address| *address == expected.to_string()),
                "{node}, {kind:?}, {attach}, masquerade {masquerade:?}: seen as {seen:?} instead of {expected}"
            );
        }
    }
    Ok(())
}

#[test]
fn one_inside_address_prefers_one_egress_ip() -> Result<()> {
    const TEST: &str = "one_inside_address_prefers_one_egress_ip";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let seen = seen(&site, &mut site.clients(BOUND, 2)?)?;
    ensure!(
        seen.iter().all(|address| *address == seen[0]),
        "CAP-9: {seen:?}"
    );
    Ok(())
}

#[test]
fn flows_show_who_is_inside_unless_netfilter_hid_it() -> Result<()> {
    const TEST: &str = "flows_show_who_is_inside_unless_netfilter_hid_it";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for (masquerade, expected) in [
        (Masquerade::Nobody, BOUND_ADDRESS),
        (Masquerade::Unbound, BOUND_ADDRESS),
        (Masquerade::Everybody, DEFAULT_EGRESS),
    ] {
        let site = Site::start(&Plan {
            network: Options {
                masquerade,
                ..Options::default()
            },
            ..Plan::default()
        })?;
        let mut clients = site.clients(BOUND, 1)?;
        all_succeeded(&clients.open(site.at_a(ECHO_PORT), 1, CONNECT_LIMIT)?, 1)?;
        let flows = site.gateway.text(["flows", "--json"])?;
        let flow: Value = serde_json::from_str(flows.trim())?;
        let inside = flow["inside"].as_str().unwrap_or_default();
        ensure!(
            inside.starts_with(&format!("{expected}:")),
            "masquerade {masquerade:?}: {flow}"
        );
    }
    Ok(())
}

/// Each refusal is a RST or an ICMP error that the client's kernel believes: that depends on its checksum where
/// it was the last to be filled in.
#[test]
fn refusals_are_told_whatever_the_checksum_offload() -> Result<()> {
    const TEST: &str = "refusals_are_told_whatever_the_checksum_offload";

    let Some(_turn) = needs::timed_turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for masquerade in [Masquerade::Nobody, Masquerade::Everybody] {
        refusals(masquerade)?;
    }
    Ok(())
}

fn refusals(masquerade: Masquerade) -> Result<()> {
    const CAP: usize = 5;

    let resources = Resources {
        addresses: vec![POOL[0].to_string()],
        connections_per_origin: CAP as u32,
        selectors: format!("sources = [\"{ZONE_PREFIX}\"]\nmarks = [{MARK}]"),
        ..Resources::default()
    };
    let site = Site::start(&Plan {
        network: Options {
            masquerade,
            ..Options::default()
        },
        resources,
        ..Plan::default()
    })?;
    let check = site.watch()?;
    let origin = site.at_a(ECHO_PORT);
    let mut holder = site.clients(BOUND, 1)?;
    all_succeeded(&holder.open(origin, CAP, CONNECT_LIMIT)?, CAP)?;
    all_succeeded(&holder.udp(origin, CAP, CONNECT_LIMIT, true)?, CAP)?;

    for on in [true, false] {
        for (who, mut clients) in site.forwarded_and_own(MARK, on)? {
            let case = format!("{who}, masquerade {masquerade:?}, offload {on}");
            let tcp = refused_at_once("ECONNREFUSED", REFUSALS, || {
                clients.open(origin, REFUSALS, CONNECT_LIMIT)
            });
            let tcp = tcp.with_context(|| format!("TCP, {case}"))?;
            // ICMP 3/13, as the socket says it.
            let udp = refused_at_once("EHOSTUNREACH", REFUSALS, || {
                clients.udp(origin, REFUSALS, CONNECT_LIMIT, false)
            });
            let udp = udp.with_context(|| format!("UDP, {case}"))?;
            println!("{case}: refused after {tcp} us, UDP after {udp} us");
        }
    }
    all_succeeded(&holder.check(CONNECT_LIMIT)?, CAP)?;
    check.finish()?;
    Ok(())
}
