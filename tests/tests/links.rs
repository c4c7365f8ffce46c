//! NAT-1 on every kind of link: uplinks and inside interfaces with and without a link layer, with checksums and
//! segmentation left to devices or done before, several uplinks at once, and uplinks that go away and come back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    client::Fetch,
    config::{Resources, Server},
    leak::{LeakCheck, Rules},
    links::{Link, Side},
    needs, netns,
    offload::{self, Offload},
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    service,
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{
        A, B, BOUND, DEFAULT_EGRESS, GATEWAY, INSIDE_BOUND, INSIDE_UNBOUND, NET, Options, POOL,
        RANGE, ROUTER_ADDRESSES, SECOND_UPLINK, UPLINK,
    },
    topology::End,
    wait,
};

/// The cap: few, so that refusing is cheap to see.
const CAP: usize = 10;
/// Connections beyond it.
const EXTRA: usize = 3;
/// Hooks are back within this time after their interface is.
const HOOK_LIMIT: Duration = Duration::from_secs(60);
/// How long live flows may go by a route that has changed.
const NEXT_HOP_COUNTS: Duration = Duration::from_millis(100);
/// Bytes of a transfer: thousands of packets, or hundreds of super-packets.
const BYTES: u64 = 8 << 20;

/// Both ends of the uplink, as [`egress_tests::standard`] configures them.
const UPLINK_SIDES: [Side<'static>; 2] = [
    Side {
        node: NET,
        device: UPLINK,
        addresses: &["203.0.113.1/24", "2001:db8:113::1/64"],
        routes: &[
            "10.0.0.0/8 via 203.0.113.2",
            "fd00::/16 via 2001:db8:113::2",
        ],
    },
    Side {
        node: GATEWAY,
        device: UPLINK,
        addresses: &["203.0.113.2/24", "2001:db8:113::2/64"],
        routes: &["default via 203.0.113.1", "default via 2001:db8:113::1"],
    },
];
/// Both ends of the bound client's link.
const INSIDE_SIDES: [Side<'static>; 2] = [
    Side {
        node: BOUND,
        device: "eth0",
        addresses: &["10.1.0.2/24", "fd00:1::2/64"],
        routes: &["default via 10.1.0.1", "default via fd00:1::1"],
    },
    Side {
        node: GATEWAY,
        device: INSIDE_BOUND,
        addresses: &["10.1.0.1/24", "fd00:1::1/64"],
        routes: &[],
    },
];

fn resources() -> Resources {
    Resources {
        addresses: vec![POOL[0].to_string()],
        connections_per_origin: CAP as u32,
        ..Resources::default()
    }
}

/// Watches where packets end up: at the origins, whatever the links before them are. The router may speak.
fn watch(site: &Site) -> Result<[LeakCheck; 2]> {
    let rules = Rules::new().allow(POOL).allow(ROUTER_ADDRESSES);
    Ok([
        LeakCheck::start(&site.node(A), "eth0", rules.clone())?,
        LeakCheck::start(&site.node(B), "eth0", rules)?,
    ])
}

fn finish(checks: [LeakCheck; 2]) -> Result<()> {
    for check in checks {
        check.finish()?;
    }
    Ok(())
}

/// Requests, datagrams, a transfer each way, and both refusals.
fn exercise(site: &Site) -> Result<()> {
    let seen = site.curl(BOUND, site.at_a(HTTP_PORT)).context("curl")?;
    ensure!(seen == POOL[0].to_string(), "seen as {seen}");
    let mut clients = site.clients(BOUND, 1)?;
    let answered = clients.udp(site.at_a(UDP_PORT), 5, CONNECT_LIMIT, false)?;
    all_succeeded(&answered, 5).context("datagrams")?;
    ensure!(
        answered.seen.keys().eq([&POOL[0].to_string()]),
        "{answered:?}"
    );
    let fetch = Fetch {
        target: site.at_a(HTTP_PORT),
        bytes: BYTES,
        rate: 0,
        timeout_ms: 60_000,
    };
    clients
        .fetch(fetch, Duration::from_secs(300), |_| Ok(()))
        .context("a transfer")?;
    // What is beyond the cap is refused at once: TCP by a RST, UDP by an ICMP error.
    let opened = clients.open(site.at_b(ECHO_PORT), CAP + EXTRA, CONNECT_LIMIT)?;
    ensure!(
        opened.succeeded == CAP && opened.refused.get("ECONNREFUSED") == Some(&EXTRA),
        "{opened:?}"
    );
    all_succeeded(&clients.check(CONNECT_LIMIT)?, CAP).context("held connections")?;
    let answered = clients.udp(site.at_b(UDP_PORT), CAP + EXTRA, CONNECT_LIMIT, true)?;
    ensure!(
        answered.succeeded == CAP && answered.refusals() == EXTRA && answered.timed_out == 0,
        "{answered:?}"
    );
    Ok(())
}

/// Switches what a device of the lab can do by itself; what it cannot switch stays as it is.
fn switch_offloads(site: &Site, uplink: &str, inside: &str, on: bool) -> Result<()> {
    for (node, device) in [
        (BOUND, "eth0"),
        (BOUND, inside),
        (GATEWAY, INSIDE_BOUND),
        (GATEWAY, inside),
        (GATEWAY, UPLINK),
        (GATEWAY, uplink),
        (NET, UPLINK),
        (NET, uplink),
    ] {
        let namespace = site.node(node);
        for what in [
            Offload::TxChecksum,
            Offload::Tso,
            Offload::Gso,
            Offload::Gro,
        ] {
            let _ = offload::set(&namespace, device, what, on);
        }
        let state = if on { "on" } else { "off" };
        if needs::has_command("ethtool") {
            for tag in ["rxvlan", "txvlan"] {
                // Not every device has them.
                service::attempt(&namespace, &["ethtool", "-K", device, tag, state], "")?;
            }
        }
    }
    Ok(())
}

fn on_link(test: &str, uplink: Link, inside: Link) -> Result<()> {
    let Some(_turn) = needs::turn(test, &[]) else {
        return Ok(());
    };
    for offload in [true, false] {
        let mut plan = Plan {
            resources: resources(),
            ..Plan::default()
        };
        // The names that devices on top get.
        let [up, ins] =
            [(uplink, UPLINK, 1), (inside, INSIDE_BOUND, 2)].map(|(link, plain, number)| {
                if link == Link::Veth {
                    plain.to_owned()
                } else {
                    format!("top{number}")
                }
            });
        plan.server = Server {
            uplink: vec![up.clone()],
            inside: vec![ins.clone(), INSIDE_UNBOUND.to_owned()],
            ..Server::default()
        };
        let mut site = Site::prepare(&plan)?;
        for link in [uplink, inside] {
            if !link.available(test, &site.lab, GATEWAY) {
                return Ok(());
            }
        }
        let outside = uplink.put(&site.lab, UPLINK_SIDES, 1, offload)?;
        let within = inside.put(&site.lab, INSIDE_SIDES, 2, offload)?;
        if !offload {
            switch_offloads(&site, &up, &ins, false)?;
        }
        let case = format!("uplink {uplink:?}, inside {inside:?}, offload {offload}");
        site.gateway.restart().with_context(|| case.clone())?;
        let checks = watch(&site)?;
        exercise(&site).with_context(|| {
            let status = site.gateway.text(["status"]).unwrap_or_default();
            format!("{case}\n{status}")
        })?;
        finish(checks).context(case)?;
        drop((outside, within));
    }
    Ok(())
}

#[test]
fn plain_ethernet() -> Result<()> {
    on_link("plain_ethernet", Link::Veth, Link::Veth)
}

#[test]
fn bridges() -> Result<()> {
    on_link("bridges", Link::Bridge, Link::Bridge)
}

#[test]
fn macvlans() -> Result<()> {
    on_link("macvlans", Link::Macvlan, Link::Macvlan)
}

#[test]
fn vxlans() -> Result<()> {
    on_link("vxlans", Link::Vxlan, Link::Vxlan)
}

#[test]
fn vlans() -> Result<()> {
    on_link("vlans", Link::Vlan, Link::Vlan)
}

#[test]
fn q_in_q() -> Result<()> {
    on_link("q_in_q", Link::QinQ, Link::QinQ)
}

#[test]
fn bonds() -> Result<()> {
    on_link("bonds", Link::Bond, Link::Bond)
}

#[test]
fn tun_as_uplink_and_as_inside() -> Result<()> {
    on_link("tun_as_uplink_and_as_inside", Link::Tun, Link::Tun)
}

#[test]
fn tun_as_uplink() -> Result<()> {
    on_link("tun_as_uplink", Link::Tun, Link::Veth)
}

#[test]
fn tun_as_inside() -> Result<()> {
    on_link("tun_as_inside", Link::Veth, Link::Tun)
}

#[test]
fn wireguard() -> Result<()> {
    on_link("wireguard", Link::Wireguard, Link::Wireguard)
}

fn two_uplinks() -> Plan {
    Plan {
        network: Options {
            second_uplink: true,
            ..Options::default()
        },
        server: Server {
            uplink: vec![UPLINK.to_owned(), SECOND_UPLINK.to_owned()],
            ..Server::default()
        },
        resources: Resources::both_families(),
        ..Plan::default()
    }
}

/// What leaves by either uplink.
fn watch_uplinks(site: &Site) -> Result<[LeakCheck; 2]> {
    let start = |uplink| {
        let rules = Rules::new().allow(POOL).allow_range(RANGE.into());
        LeakCheck::start(&site.node(NET), uplink, rules)
    };
    Ok([start(UPLINK)?, start(SECOND_UPLINK)?])
}

/// Packets that have left by either uplink from the pool; from nowhere else.
fn from_pool(checks: [LeakCheck; 2]) -> Result<[u64; 2]> {
    let mut packets = [0; 2];
    for (packets, check) in packets.iter_mut().zip(checks) {
        let report = check.report()?;
        ensure!(report.leaks == 0, "{report:?}");
        *packets = POOL
            .iter()
            .filter_map(|pool| report.sources.get(&(*pool).into()))
            .sum();
    }
    Ok(packets)
}

/// Live flows stay on their address while the default route moves, and new ones leave by either uplink, or by both.
#[test]
fn two_uplinks_and_a_route_that_moves() -> Result<()> {
    const HELD: usize = 20;

    let Some(_turn) = needs::turn("two_uplinks_and_a_route_that_moves", &[]) else {
        return Ok(());
    };
    let site = Site::start(&two_uplinks())?;
    let gateway = site.node(GATEWAY);
    let (first, second) = ("via 203.0.113.1 dev up0", "via 172.31.0.1 dev up1");
    let both = format!("nexthop {first} nexthop {second}");
    // Each connection for itself, not all to an origin alike.
    gateway.sysctl("net.ipv4.fib_multipath_hash_policy", "1")?;
    let mut holder = site.clients(BOUND, 1)?;
    let mut held = 0;
    for (route, carries) in [
        (first, [true, false]),
        (second, [false, true]),
        (first, [true, false]),
        (&both, [true, true]),
    ] {
        gateway.ip(&format!("route replace default {route}"))?;
        let changed = Instant::now();
        wait::until_true("live flows to go the new way", HOOK_LIMIT, || {
            let checks = watch_uplinks(&site)?;
            all_succeeded(&holder.check(CONNECT_LIMIT)?, held)?;
            let used = from_pool(checks)?;
            // The fast path asks for its way that often, each CPU for itself.
            Ok(changed.elapsed() > NEXT_HOP_COUNTS
                && (used.into_iter().zip(carries)).all(|(used, carries)| carries || used == 0))
        })
        .with_context(|| route.to_owned())?;
        let checks = watch_uplinks(&site)?;
        held += HELD;
        let opened = holder.open(site.at_a(ECHO_PORT), HELD, CONNECT_LIMIT)?;
        all_succeeded(&opened, HELD).with_context(|| route.to_owned())?;
        all_succeeded(&holder.check(CONNECT_LIMIT)?, held).with_context(|| route.to_owned())?;
        let used = from_pool(checks).with_context(|| route.to_owned())?;
        ensure!(
            used.map(|packets| packets > 0) == carries,
            "default {route}: {used:?} packets"
        );
    }
    ensure!(site.active(site.at_a(ECHO_PORT), "tcp")? == held as u64);

    // IPv6: whichever next hop a packet takes, it is asked for on its own uplink.
    let nexthops = [
        ("2001:db8:113::1", UPLINK),
        ("2001:db8:31::1", SECOND_UPLINK),
    ];
    gateway.sysctl("net.ipv6.fib_multipath_hash_policy", "1")?;
    gateway.ip("-6 route del default")?;
    let route = nexthops.map(|(via, dev)| format!("nexthop via {via} dev {dev}"));
    gateway.ip(&format!("-6 route add default {}", route.join(" ")))?;
    let checks = watch_uplinks(&site)?;
    let opened = holder.open(site.at_a_v6(ECHO_PORT), HELD, CONNECT_LIMIT)?;
    all_succeeded(&opened, HELD).context("IPv6")?;
    for _ in 0..5 {
        all_succeeded(&holder.check(CONNECT_LIMIT)?, held + HELD).context("IPv6")?;
    }
    from_pool(checks)?;
    let known = netns::run(gateway.command("ip")?.args(["-6", "neigh"]))?;
    for ((via, _), (_, dev)) in nexthops.iter().zip(nexthops.iter().rev()) {
        let wrong = format!("{via} dev {dev} ");
        ensure!(
            !known.contains(&wrong),
            "asked on the other uplink: {known}"
        );
    }
    Ok(())
}

/// The network moves the egress IPs to the second uplink when the first one's link is down; nobody's flow ends.
#[test]
fn an_uplink_that_is_down() -> Result<()> {
    const HELD: usize = 20;

    let Some(_turn) = needs::turn("an_uplink_that_is_down", &[]) else {
        return Ok(());
    };
    let site = Site::start(&two_uplinks())?;
    let checks = watch(&site)?;
    let mut holder = site.clients(BOUND, 1)?;
    let [a, b] = [site.at_a(ECHO_PORT), site.at_b(ECHO_PORT)];
    for origin in [a, b] {
        all_succeeded(&holder.open(origin, HELD, CONNECT_LIMIT)?, HELD)?;
    }
    let [one, other] = POOL;
    site.node(GATEWAY).ip(&format!("link set {UPLINK} down"))?;
    site.node(GATEWAY)
        .ip("route replace default via 172.31.0.1 dev up1")?;
    for address in [one, other] {
        site.node(NET)
            .ip(&format!("route add {address}/32 via 172.31.0.2"))?;
    }
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 2 * HELD).context("without the first uplink")?;
    let seen = site.curl(BOUND, site.at_a(HTTP_PORT))?;
    ensure!(
        POOL.iter().any(|pool| pool.to_string() == seen),
        "seen as {seen}"
    );

    site.node(GATEWAY).ip(&format!("link set {UPLINK} up"))?;
    site.node(GATEWAY)
        .ip("route replace default via 203.0.113.1 dev up0")?;
    for address in [one, other] {
        site.node(NET).ip(&format!("route del {address}/32"))?;
    }
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 2 * HELD).context("with it again")?;
    finish(checks)
}

/// SAFE-2: flows are the data plane's, not the interface's.
#[test]
fn an_uplink_made_anew_keeps_its_flows() -> Result<()> {
    const HELD: usize = 20;

    let Some(_turn) = needs::turn("an_uplink_made_anew_keeps_its_flows", &[]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let checks = watch(&site)?;
    let mut holder = site.clients(BOUND, 1)?;
    for origin in [site.at_a(ECHO_PORT), site.at_b(ECHO_PORT)] {
        all_succeeded(&holder.open(origin, HELD, CONNECT_LIMIT)?, HELD)?;
    }
    site.node(GATEWAY).ip(&format!("link del {UPLINK}"))?;
    site.node(GATEWAY).ip(&format!(
        "link add {UPLINK} type veth peer name {UPLINK} netns {}",
        site.node(NET).name()
    ))?;
    for (node, address) in [(NET, "203.0.113.1/24"), (GATEWAY, "203.0.113.2/24")] {
        site.lab
            .configure(&End::new(node, UPLINK).address(address))?;
    }
    site.node(GATEWAY).ip("route add default via 203.0.113.1")?;
    site.node(NET)
        .ip(&format!("route add 10.0.0.0/8 via {DEFAULT_EGRESS}"))?;
    site.gateway.wait_in_place(HOOK_LIMIT)?;
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 2 * HELD)?;
    finish(checks)
}
