//! IPv6 through the gateway with real clients (POOL-1, NAT-1, NAT-3): from a whole /64 that is on-link, and counted
//! like IPv4.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    client::{Clients, Options as ClientOptions},
    config::{POOL_NAME, Resources, ZONE_NAME},
    leak::{LeakCheck, Rules},
    needs, odd,
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{
        A, BOUND, BOUND_ADDRESS_V6, DEFAULT_EGRESS_V6, GATEWAY, Kind, Masquerade, NET, POOL, RANGE,
        UNBOUND, UNBOUND_ADDRESS_V6, UPLINK, ZONE_PREFIX, ZONE_PREFIX_V6,
    },
};
use ipnet::IpNet;
use nix::{errno::Errno, net::if_::if_nametoindex};
use serde_json::Value;

/// How many inside addresses a crowd has.
const CROWD: u16 = 20;

fn resources(addresses: &[&str]) -> Resources {
    Resources {
        addresses: addresses.iter().map(ToString::to_string).collect(),
        selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
        ..Resources::default()
    }
}

/// A pool of both families.
fn plan(kind: Kind, masquerade: Masquerade) -> Plan {
    let range = RANGE.to_string();
    let mut plan = Plan {
        resources: resources(&[&POOL[0].to_string(), &range]),
        ..Plan::default()
    };
    plan.network.kind = kind;
    plan.network.masquerade = masquerade;
    plan
}

/// The pool's addresses are the only ones, and the bound client's only way.
fn watch(site: &Site) -> Result<LeakCheck> {
    site.watch_for(Rules::new().allow([POOL[0]]).allow_range(RANGE.into()))
}

fn seen(site: &Site, client: &str, origin: SocketAddr) -> Result<IpAddr> {
    let seen = site.curl(client, origin)?;
    seen.parse().with_context(|| format!("{origin} saw {seen}"))
}

fn in_range(address: IpAddr) -> bool {
    IpNet::from(RANGE).contains(&address)
}

/// Gives the bound client more addresses, and returns all.
fn crowd(site: &Site) -> Result<Vec<IpAddr>> {
    (0..CROWD)
        .map(|number| {
            let mut segments = BOUND_ADDRESS_V6.segments();
            segments[7] = 0x100 + number;
            let address = IpAddr::from(segments);
            site.node(BOUND)
                .ip(&format!("-6 address add {address}/64 dev eth0 nodad"))?;
            Ok(address)
        })
        .collect()
}

fn clients_from(site: &Site, address: IpAddr) -> Result<Clients> {
    let options = ClientOptions {
        bind: vec![address],
        ..ClientOptions::default()
    };
    Clients::start(&site.node(BOUND), 1, &options)
}

#[test]
fn a_whole_64_on_link() -> Result<()> {
    let Some(_turn) = needs::turn("a_whole_64_on_link", &["curl", "nft"]) else {
        return Ok(());
    };
    for (kind, masquerade) in [
        (Kind::Routed, Masquerade::Nobody),
        (Kind::Segment, Masquerade::Everybody),
    ] {
        let site = Site::start(&plan(kind, masquerade))?;
        let check = watch(&site)?;
        let origins = [site.at_a_v6(HTTP_PORT), site.at_b_v6(HTTP_PORT)];
        let first = seen(&site, BOUND, origins[0])?;
        ensure!(in_range(first), "{kind:?}: {first} is not of the range");
        // Sticky: every origin, every protocol, every connection.
        for origin in origins.repeat(3) {
            ensure!(seen(&site, BOUND, origin)? == first, "not sticky");
        }
        let mut clients = site.clients(BOUND, 1)?;
        let udp = clients.udp(site.at_a_v6(UDP_PORT), 20, CONNECT_LIMIT, false)?;
        all_succeeded(&udp, 20)?;
        ensure!(
            udp.seen.keys().all(|seen| *seen == first.to_string()),
            "{kind:?}: {udp:?}"
        );
        // IPv4 of the same zone is not touched by all this.
        ensure!(site.curl(BOUND, site.at_a(HTTP_PORT))? == POOL[0].to_string());

        // Each inside address has its own, as far as the uplink is told of them: masquerade makes one of all.
        let mut addresses = BTreeSet::new();
        for inside in crowd(&site)? {
            let mut clients = clients_from(&site, inside)?;
            let udp = clients.udp(site.at_b_v6(UDP_PORT), 3, CONNECT_LIMIT, false)?;
            all_succeeded(&udp, 3)?;
            ensure!(udp.seen.len() == 1, "{inside} was seen as {udp:?}");
            addresses.extend(udp.seen.into_keys());
        }
        if masquerade == Masquerade::Nobody {
            ensure!(
                addresses.len() == usize::from(CROWD) && !addresses.contains(&first.to_string()),
                "{addresses:?}"
            );
        } else {
            ensure!(
                addresses == BTreeSet::from([first.to_string()]),
                "{addresses:?}"
            );
        }
        check.finish()?;

        neighbours(&site, first)?;
        // Who belongs to no zone is let alone.
        let unbound = seen(&site, UNBOUND, origins[1])?;
        let expected = match masquerade {
            Masquerade::Everybody => DEFAULT_EGRESS_V6,
            _ => UNBOUND_ADDRESS_V6,
        };
        ensure!(unbound == expected, "{kind:?}: unbound seen as {unbound}");
    }
    Ok(())
}

/// The gateway answers for the range's addresses with its own link-layer address, for nobody else's, and is still
/// found itself.
fn neighbours(site: &Site, egress: IpAddr) -> Result<()> {
    let (node, interface) = match site.kind {
        Kind::Routed => (NET, UPLINK),
        Kind::Segment => (A, "eth0"),
    };
    let entries = || {
        site.lab
            .exec(node, &["ip", "-6", "neighbour", "show", "dev", interface])
    };
    let link_layer = odd::mac(&site.node(GATEWAY), UPLINK)?
        .map(|byte| format!("{byte:02x}"))
        .join(":");
    let found = entries()?;
    ensure!(
        found
            .lines()
            .any(|line| line.starts_with(&format!("{egress} lladdr {link_layer}"))),
        "{egress} is not at {link_layer}: {found}"
    );
    // A neighbour that is not there: asked for, and nobody says it is.
    let stranger: Ipv6Addr = "2001:db8:113::dead".parse()?;
    ensure!(knock(site, node, interface, stranger)? == Some(Errno::EHOSTUNREACH));
    let found = entries()?;
    ensure!(
        !found
            .lines()
            .any(|line| line.starts_with("2001:db8:113::dead") && line.contains("lladdr")),
        "somebody answers for {stranger}: {found}"
    );
    // The gateway's own addresses are found, the link-local one too, by a port where nobody listens.
    let own = site
        .node(GATEWAY)
        .ip(&format!("-6 -o address show dev {UPLINK} scope link"))?;
    let link_local = own
        .split_whitespace()
        .find_map(|word| word.strip_suffix("/64"))
        .context("no link-local address")?;
    for own in [DEFAULT_EGRESS_V6, link_local.parse()?] {
        let answer = knock(site, node, interface, own)?;
        ensure!(answer == Some(Errno::ECONNREFUSED), "{own}: {answer:?}");
    }
    Ok(())
}

/// What a neighbour's connection to the discard port meets.
fn knock(site: &Site, node: &str, interface: &str, address: Ipv6Addr) -> Result<Option<Errno>> {
    let interface = interface.to_owned();
    site.node(node).run(move || {
        let scope = if_nametoindex(interface.as_str())?;
        let target = SocketAddrV6::new(address, 9, 0, scope);
        let said = TcpStream::connect_timeout(&target.into(), CONNECT_LIMIT).err();
        Ok(said.and_then(|error| error.raw_os_error().map(Errno::from_raw)))
    })?
}

#[test]
fn source_ports_are_kept_when_free() -> Result<()> {
    let Some(_turn) = needs::turn("source_ports_are_kept_when_free", &["curl"]) else {
        return Ok(());
    };
    // One address for all, so that they compete for its ports.
    let mut plan = plan(Kind::Routed, Masquerade::Nobody);
    plan.resources = resources(&["2001:db8:aa::7"]);
    let site = Site::start(&plan)?;
    let check = watch(&site)?;
    let origin = site.at_a_v6(HTTP_PORT);
    let port = |from: IpAddr, port: u16| -> Result<SocketAddr> {
        let (from, port) = (from.to_string(), port.to_string());
        let url = format!("http://{origin}/port");
        let said = site.lab.exec(
            BOUND,
            &[
                "curl",
                "-6",
                "--silent",
                "--show-error",
                "--max-time",
                "30",
                "--interface",
                &from,
                "--local-port",
                &port,
                &url,
            ],
        )?;
        Ok(said.trim().parse()?)
    };
    let inside = crowd(&site)?;
    // Below 2048 too: an IPv6 range has no slices.
    for wanted in [1500, 40_000, 65_000] {
        let seen = port(inside[0], wanted)?;
        ensure!(
            seen.to_string() == format!("[2001:db8:aa::7]:{wanted}"),
            "{wanted}: seen as {seen}"
        );
    }
    // Another inside host with the same port gets another one: this one rests.
    let other = port(inside[1], 40_000)?;
    ensure!(other.port() != 40_000, "a port that rests was given away");
    check.finish()?;
    Ok(())
}

#[test]
fn caps_count_each_address_and_refusals_are_told() -> Result<()> {
    const CAP: usize = 40;
    const TEST: &str = "caps_count_each_address_and_refusals_are_told";

    let Some(_turn) = needs::turn(TEST, &["bpftool"]) else {
        return Ok(());
    };
    // Three usable addresses: the first of a range is the routers' (RFC 4291, 2.6.1).
    let mut plan = plan(Kind::Routed, Masquerade::Nobody);
    plan.resources = resources(&["2001:db8:aa::/126"]);
    plan.resources.connections_per_origin = CAP as u32;
    let mut site = Site::start(&plan)?;
    let check = watch(&site)?;
    let (to_a, to_b) = (site.at_a_v6(ECHO_PORT), site.at_b_v6(ECHO_PORT));
    let mut clients = site.clients(BOUND, 1)?;
    all_succeeded(&clients.open(to_a, 3 * CAP, CONNECT_LIMIT)?, 3 * CAP)?;
    let stats = site.a.accepted(3 * CAP)?.callers;
    ensure!(
        stats.len() == 3 && stats.values().all(|count| *count == CAP),
        "{stats:?}"
    );
    let refused = clients.open(to_a, 9, CONNECT_LIMIT)?;
    ensure!(
        refused.refused.get("ECONNREFUSED") == Some(&9) && refused.succeeded == 0,
        "expected RSTs: {refused:?}"
    );
    // UDP and the other origin have counts of their own.
    all_succeeded(&clients.open(to_b, CAP, CONNECT_LIMIT)?, CAP)?;
    let mut others = site.clients(BOUND, 1)?;
    all_succeeded(&others.udp(to_a, 3 * CAP, CONNECT_LIMIT, true)?, 3 * CAP)?;
    let refused = others.udp(to_a, 9, CONNECT_LIMIT, false)?;
    // ICMPv6 1/1 reaches the application as this error.
    ensure!(refused.refused.get("EACCES") == Some(&9), "{refused:?}");

    let origins = site
        .gateway
        .json(&["origins", "--origin", &to_a.to_string()])?;
    let list = origins.as_array().context("a list")?;
    ensure!(
        list.len() == 6
            && list.iter().all(|one| one["active"] == CAP
                && one["capacity"] == CAP
                && one["utilization"] == 100.0
                && one["origin"] == "[2001:db8:a::10]:7"),
        "{origins}"
    );
    clients.close(1, false)?;
    site.wait_active(to_a, "tcp", 3 * CAP as u64 - 1, CONNECT_LIMIT)?;
    all_succeeded(&others.open(to_a, 1, CONNECT_LIMIT)?, 1)?;
    ensure!(others.open(to_a, 1, CONNECT_LIMIT)?.refusals() == 1);
    clients.close_all(true)?;
    others.close_all(false)?;
    for origin in [to_a, to_b] {
        site.wait_active(origin, "tcp", 0, CONNECT_LIMIT)?;
    }
    check.finish()?;
    Ok(())
}

#[test]
fn why_flows_pools_and_status_speak_ipv6() -> Result<()> {
    const TEST: &str = "why_flows_pools_and_status_speak_ipv6";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let mut site = Site::start(&plan(Kind::Routed, Masquerade::Nobody))?;
    let origin = site.at_a_v6(ECHO_PORT);
    let bound = BOUND_ADDRESS_V6.to_string();
    let why = |source: &str| site.gateway.json(&["why", source, &origin.to_string()]);
    let answer = why(&bound)?;
    ensure!(
        answer["outcome"] == "admitted"
            && answer["zone"] == ZONE_NAME
            && answer["pool"] == POOL_NAME
            && answer["rule"]["selector"] == ZONE_PREFIX_V6,
        "{answer}"
    );
    let promised: IpAddr = answer["egress_ip"]
        .as_str()
        .context("no address")?
        .parse()?;
    let mut clients = site.clients(BOUND, 1)?;
    let opened = clients.open(origin, 3, CONNECT_LIMIT)?;
    all_succeeded(&opened, 3)?;
    let callers = site.a.accepted(3)?.callers;
    ensure!(
        callers.get(&promised) == Some(&3) && callers.len() == 1,
        "promised {promised}, seen {callers:?}"
    );

    let lines = site.gateway.text(["flows", "--json"])?;
    let flows: Vec<Value> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(flows.len() == 3, "{lines}");
    for flow in &flows {
        ensure!(
            flow["origin"] == origin.to_string()
                && flow["inside"]
                    .as_str()
                    .is_some_and(|it| it.starts_with("[fd00:1::2]:"))
                && flow["egress"]
                    .as_str()
                    .is_some_and(|it| it.starts_with(&format!("[{promised}]:")))
                && flow["zone"] == ZONE_NAME
                && flow["pool"] == POOL_NAME,
            "{flow}"
        );
    }
    let answer = why(flows[0]["inside"].as_str().unwrap_or_default())?;
    ensure!(
        answer["outcome"] == "live-flow" && answer["flow"]["egress"] == flows[0]["egress"],
        "{answer}"
    );
    let claimed = why(&promised.to_string())?;
    ensure!(claimed["reason"] == "claims_egress_ip", "{claimed}");
    let unbound = why(&UNBOUND_ADDRESS_V6.to_string())?;
    ensure!(unbound["outcome"] == "default-egress", "{unbound}");

    // Filters by an address of the range, and by the pool it is of.
    for filter in [
        ["--egress-ip", &promised.to_string()],
        ["--pool", POOL_NAME],
    ] {
        let of = |command: &str| -> Result<String> {
            site.gateway.text([command, "--json", filter[0], filter[1]])
        };
        ensure!(of("flows")?.lines().count() == 3, "{filter:?}");
        ensure!(
            of("origins")?.contains(&format!("\"{promised}\"")),
            "{filter:?}"
        );
        ensure!(of("pools")?.contains(&format!("\"{RANGE}\"")), "{filter:?}");
    }
    ensure!(
        site.gateway
            .text(["flows", "--json", "--egress-ip", "2001:db8:aa::1"])?
            .is_empty()
    );
    let pools = site.gateway.json(&["pools"])?;
    let range = pools[0]["addresses"]
        .as_array()
        .and_then(|all| all.iter().find(|one| one["address"] == RANGE.to_string()))
        .context("no range")?;
    ensure!(
        range["active"] == 3 && range["capacity"] == 40_000,
        "{range}"
    );
    let status = site.gateway.json(&["status"])?;
    let used = |name: &str| {
        let tables = status["tables"].as_array()?;
        let table = tables.iter().find(|table| table["table"] == name)?;
        table["used"].as_u64()
    };
    ensure!(
        used("flows-ipv6") == Some(3) && used("flows") == Some(0),
        "{status}"
    );
    ensure!(used("origins-ipv6") == Some(1), "{status}");
    // For people, too.
    let text = site.gateway.text(["flows"])?;
    ensure!(text.contains(&format!("[{promised}]:")), "{text}");

    // A member drains as a whole; a part of it is none.
    let part = site.gateway.text(["pool", "drain", &promised.to_string()]);
    ensure!(part.is_err_and(|error| format!("{error:#}").contains(&RANGE.to_string())));
    site.gateway.text(["pool", "drain", &RANGE.to_string()])?;
    ensure!(why(&bound)?["outcome"] == "refused");
    ensure!(clients.open(origin, 1, CONNECT_LIMIT)?.refusals() == 1);
    let status = site.gateway.json(&["status"])?;
    ensure!(
        status["draining"][0]["egress_ip"] == RANGE.to_string()
            && status["draining"][0]["active"] == 3,
        "{status}"
    );
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 3)?;
    site.gateway.text(["pool", "undrain", &RANGE.to_string()])?;
    ensure!(why(&bound)?["outcome"] == "admitted");
    Ok(())
}

#[test]
fn reload_and_kill_break_no_connection() -> Result<()> {
    let Some(_turn) = needs::turn("reload_and_kill_break_no_connection", &[]) else {
        return Ok(());
    };
    let mut site = Site::start(&plan(Kind::Segment, Masquerade::Everybody))?;
    let check = watch(&site)?;
    let origin = site.at_a_v6(ECHO_PORT);
    let mut clients = site.clients(BOUND, 1)?;
    all_succeeded(&clients.open(origin, 20, CONNECT_LIMIT)?, 20)?;
    let before = site.a.accepted(20)?.callers;

    site.gateway.kill()?;
    // Without a daemon: live ones go on, new ones are admitted, ended ones leave the count.
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 20)?;
    all_succeeded(&clients.open(origin, 5, CONNECT_LIMIT)?, 5)?;
    clients.close(5, false)?;
    site.wait_active(origin, "tcp", 20, CONNECT_LIMIT)?;
    site.gateway.restart()?;
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 20)?;

    // Another range: new flows use it, live ones stay, and a range that is not there any more is not used.
    let other = "2001:db8:aa:0:1::/80";
    let others: IpNet = other.parse()?;
    site.gateway.reload(&resources(&[other]), |gateway| {
        Ok(gateway.text(["pools", "--json"])?.contains(other))
    })?;
    let now = seen(&site, BOUND, site.at_b_v6(HTTP_PORT))?;
    ensure!(others.contains(&now), "{now} is not of {other}");
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 20)?;
    let status = site.gateway.json(&["status"])?;
    ensure!(
        status["draining"].to_string().contains(&RANGE.to_string()),
        "{status}"
    );

    // No range at all: refused, not leaked.
    let ipv4 = POOL[0].to_string();
    site.gateway.reload(&resources(&[&ipv4]), |gateway| {
        Ok(!gateway.text(["pools", "--json"])?.contains(other))
    })?;
    let refused = clients.open(origin, 3, CONNECT_LIMIT)?;
    ensure!(
        refused.refused.get("ECONNREFUSED") == Some(&3),
        "{refused:?}"
    );
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 20)?;
    ensure!(before.len() == 1, "{before:?}");
    check.finish()?;
    Ok(())
}

/// Neither may stay behind: an address of the host's own within the range, an overlap with another member.
#[test]
fn ranges_that_hold_own_addresses_are_refused() -> Result<()> {
    const TEST: &str = "ranges_that_hold_own_addresses_are_refused";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let mut plan = plan(Kind::Routed, Masquerade::Nobody);
    plan.resources = resources(&["2001:db8:113::/64"]);
    let mut site = Site::prepare(&plan)?;
    let error = site
        .gateway
        .restart()
        .map_or_else(|error| format!("{error:#}"), |()| String::new());
    ensure!(
        error.contains("2001:db8:113::2")
            && error.contains("2001:db8:113::/64")
            && error.contains(UPLINK),
        "{error}"
    );
    Ok(())
}
