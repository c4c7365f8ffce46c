//! ANN-1: the network learns by BGP where egress IPs are, and that they are no longer there; a segment is told by
//! gratuitous ARP and neighbour advertisements.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{ACCOUNT, Api, LISTEN},
    bird::{self, Session},
    capture::{Capture, Frame},
    config::{Resources, Server},
    gateway::Gateway,
    leak::{LeakCheck, Rules},
    needs,
    netns::Namespace,
    origin::HTTP_PORT,
    peer::{self, Caller, Peers},
    service::{self, Service},
    site::{Plan, Site},
    standard::{
        A, BOUND, DEFAULT_EGRESS, DEFAULT_EGRESS_V6, GATEWAY, NET, Options, SECOND_EGRESS, UPLINK,
        ZONE_PREFIX, ZONE_PREFIX_V6,
    },
    wait,
};
use ipnet::{IpNet, Ipv6Net};
use serde_json::{Value, json};

/// An egress IP that nobody has a route to unless it is announced.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(100, 66, 7, 10);
/// What is announced with it.
const AGGREGATE: &str = "100.66.0.0/16";
/// A range likewise.
const RANGE: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0xbb, 0, 0, 0, 0, 0), 64);
/// A second egress IP, which comes later.
const SECOND: Ipv4Addr = Ipv4Addr::new(100, 66, 7, 11);
/// An egress IP of a prefix that its account brought along.
const BROUGHT: Ipv4Addr = Ipv4Addr::new(100, 67, 7, 9);
/// That prefix.
const PREFIX: &str = "100.67.7.0/24";
/// The port of connections that leave by it.
const PORT: u16 = 9_100;
/// How long BGP may take: sessions come up within seconds, on a busy machine later.
const LIMIT: Duration = Duration::from_secs(60);
/// The kernel's table.
const TABLE: u32 = 1_900;

fn resources(addresses: &[&str]) -> Resources {
    Resources {
        addresses: addresses.iter().map(|&one| one.to_owned()).collect(),
        selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
        ..Resources::default()
    }
}

/// Whether the pool has so many addresses.
fn has(count: usize) -> impl Fn(&Gateway) -> Result<bool> {
    move |gateway| {
        let pools = gateway.json(&["pools"])?;
        Ok(pools[0]["addresses"].as_array().map(Vec::len) == Some(count))
    }
}

/// A gateway with a link of its own for BGP, and BIRD at both ends.
struct Announced {
    site: Site,
    _gateway: Service,
    _router: Service,
    router: Namespace,
}

impl Announced {
    fn start(when_down: &str) -> Result<Self> {
        let plan = Plan {
            network: Options {
                second_uplink: true,
                ..Options::default()
            },
            server: Server {
                sections: format!(
                    "[announce]\ntable = {TABLE}\nwhen_down = \"{when_down}\"\naggregates = [\"{AGGREGATE}\", \
                     \"198.18.0.0/15\"]\n[api]\nlisten = \"{LISTEN}\""
                ),
                ..Server::default()
            },
            resources: resources(&[&ADDRESS.to_string(), &RANGE.to_string()]),
            ..Plan::default()
        };
        let site = Site::start(&plan)?;
        let session = Session {
            own_as: 65_001,
            own: [SECOND_EGRESS.into(), "2001:db8:31::2".parse()?],
            peer_as: 65_002,
            peer: ["172.31.0.1".parse()?, "2001:db8:31::1".parse()?],
        };
        let directory = |name| service::shared_directory(&site.lab.directory(), name);
        let router = site.node(NET);
        let via: [IpAddr; 2] = [DEFAULT_EGRESS.into(), DEFAULT_EGRESS_V6.into()];
        Ok(Self {
            _gateway: bird::on_gateway(
                &site.node(GATEWAY),
                &directory("bird-gateway")?,
                TABLE,
                session,
                via,
            )?,
            _router: bird::on_router(&router, &directory("bird-router")?, session.reversed())?,
            router,
            site,
        })
    }

    /// Waits until the router has these routes and no others; says how long that took.
    fn learned(&self, what: &str, expected: &[&str]) -> Result<Duration> {
        let mut expected: Vec<IpNet> = expected
            .iter()
            .map(|net| net.parse())
            .collect::<Result<_, _>>()?;
        expected.sort();
        let began = Instant::now();
        let mut last = Vec::new();
        let came = wait::until_true("the router's routes", LIMIT, || {
            last = bird::learned(&self.router)?;
            Ok(last == expected)
        });
        let took = began.elapsed();
        ensure!(
            came.is_ok(),
            "{what}: the router has {last:?}, not {expected:?}; the table has {}; {}",
            self.site
                .node(GATEWAY)
                .ip(&format!("route show table {TABLE}"))?,
            self.site.gateway.last_words()
        );
        println!("{what}: {took:?}");
        Ok(took)
    }

    fn all(&self) -> Vec<String> {
        vec![
            IpNet::from(IpAddr::from(ADDRESS)).to_string(),
            RANGE.to_string(),
            AGGREGATE.to_owned(),
        ]
    }

    fn learned_all(&self, what: &str) -> Result<Duration> {
        let all = self.all();
        self.learned(what, &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// With the address of the prefix.
    fn learned_with_brought(&self, what: &str) -> Result<Duration> {
        let mut all = self.all();
        all.push(format!("{BROUGHT}/32"));
        self.learned(what, &all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Both families reach their origin from the announced addresses.
    fn works(&self) -> Result<()> {
        let seen = self.site.curl(BOUND, self.site.at_a(HTTP_PORT))?;
        ensure!(seen == ADDRESS.to_string(), "{seen}");
        let seen: Ipv6Addr = self
            .site
            .curl(BOUND, self.site.at_a_v6(HTTP_PORT))?
            .parse()?;
        ensure!(RANGE.contains(&seen), "{seen}");
        Ok(())
    }

    fn watch(&self) -> Result<LeakCheck> {
        let rules = Rules::new()
            .allow([ADDRESS, SECOND, BROUGHT])
            .allow_range(RANGE.into());
        self.site.watch_for(rules)
    }

    fn rename_uplink(&self, from: &str, to: &str) -> Result<()> {
        let gateway = self.site.node(GATEWAY);
        gateway.ip(&format!("link set {from} name {to}")).map(drop)
    }
}

#[test]
fn a_router_learns_where_egress_ips_are_and_when_they_are_not() -> Result<()> {
    const TEST: &str = "a_router_learns_where_egress_ips_are_and_when_they_are_not";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "bird"]) else {
        return Ok(());
    };
    let mut lab = Announced::start("keep")?;
    let check = lab.watch()?;
    lab.learned_all("announced, with the session's beginning")?;
    lab.works()?;
    // From here on it is withdrawn, whatever else happens.
    let mut brought = Brought::withdrawn(&lab)?;

    // One more address, and one less; the aggregate goes with the last address inside it.
    let more = [ADDRESS.to_string(), SECOND.to_string(), RANGE.to_string()];
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    lab.site.gateway.reload(&resources(&more), has(3))?;
    let mut expected = lab.all();
    expected.push(format!("{SECOND}/32"));
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    lab.learned("an address more", &expected)?;
    lab.site
        .gateway
        .reload(&resources(&[&RANGE.to_string()]), has(1))?;
    // What just left the pool stays until its connections' ports have rested; what nobody used goes.
    let mut expected = lab.all();
    expected.sort();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    lab.learned("an address that was never used", &expected)?;
    let status = lab.site.gateway.json(&["status"])?;
    let announced = status["announced"].as_array();
    ensure!(announced.map(Vec::len) == Some(3), "{status}");
    ensure!(bird::learned(&lab.router)?.contains(&IpNet::from(IpAddr::from(ADDRESS))));
    let both = [ADDRESS.to_string(), RANGE.to_string()];
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    lab.site.gateway.reload(&resources(&both), has(2))?;
    lab.learned_all("an address less")?;

    // The daemon's death changes nothing: the data plane goes on (SAFE-2).
    lab.site.gateway.kill()?;
    lab.works()?;
    ensure!(
        bird::learned(&lab.router)?.len() == 3,
        "withdrawn with the daemon"
    );
    lab.site.gateway.restart()?;
    ensure!(
        bird::learned(&lab.router)?.len() == 3,
        "withdrawn by the daemon's start"
    );

    // Whatever others do to the table is put right.
    lab.site
        .node(GATEWAY)
        .ip(&format!("route flush table {TABLE}"))?;
    wait::until_true("the table to be put right", LIMIT, || {
        Ok(lab.site.gateway.log().contains("were put right"))
    })?;
    lab.learned_all("put right")?;

    // A data plane that is not in place is not announced, though link, session and daemon are well.
    lab.rename_uplink(UPLINK, "other0")?;
    lab.learned("sick: withdrawn", &[])?;
    ensure!(
        lab.site.gateway.log().contains("withdrew all 3 routes"),
        "{}",
        lab.site.gateway.last_words()
    );
    lab.rename_uplink("other0", UPLINK)?;
    let took = lab.learned_all("sound again: announced")?;
    ensure!(
        took >= Duration::from_secs(2),
        "announced again after {took:?}: no damping"
    );
    lab.site.gateway.wait_in_place(LIMIT)?;
    lab.works()?;
    brought.announced_again(&lab)?;

    let said = lab.site.gateway.text(["detach"])?;
    ensure!(said.contains("announced routes: 4"), "{said}");
    lab.learned("detached: withdrawn", &[])?;
    check.finish()?;
    Ok(())
}

/// An account's own prefix, with a connection by it.
struct Brought {
    api: Api,
    /// The path of the prefix.
    prefix: String,
    live: Peers,
}

impl Brought {
    /// Makes it through the API, opens a connection by it, and withdraws it.
    fn withdrawn(lab: &Announced) -> Result<Self> {
        let site = &lab.site;
        let write = ["account-egress:write", "account-addresses:write"];
        let api = Api::new(site, "acme", &write)?;
        let account = format!("/client/v4/accounts/{ACCOUNT}");
        let post = |path: &str, body: Value| -> Result<Value> {
            let reply = api.call(&format!("{account}/{path}"), &["--json", &body.to_string()])?;
            ensure!(matches!(reply.status, 200 | 201), "{reply:?}");
            Ok(reply.json()?["result"].clone())
        };
        let made = post(
            "addressing/prefixes",
            json!({ "asn": 64_500, "cidr": PREFIX }),
        )?;
        ensure!(
            made["advertised"] == true
                && made["advertised_modified_at"].is_null()
                && made["on_demand_enabled"] == true
                && made["on_demand_locked"] == false,
            "{made}"
        );
        let prefix = format!(
            "addressing/prefixes/{}",
            made["id"].as_str().context("no id")?
        );
        let services = api.get(&format!("{account}/addressing/services"))?.json()?["result"].take();
        let mut services = services.as_array().into_iter().flatten();
        let egress = services.find(|service| service["name"] == "CDN Egress");
        post(
            &format!("{prefix}/bindings"),
            json!({ "cidr": PREFIX, "service_id": egress.context("no CDN Egress")?["id"] }),
        )?;
        post(
            "egress/pools",
            json!({ "id": "withdrawn", "addresses": [BROUGHT.to_string()] }),
        )?;
        post(
            "gateway/rules",
            json!({
                "name": "by the prefix", "action": "egress", "filters": ["egress"], "enabled": true,
                "traffic": format!("net.dst.port == {PORT}"),
                "rule_settings": { "egress": {
                    "ipv4": BROUGHT.to_string(), "ipv4_fallback": "0.0.0.0", "ipv6": RANGE.to_string()
                } },
            }),
        )?;
        lab.learned_with_brought("a prefix more")?;
        let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
        let live = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
        ensure!(live.seen.ip() == BROUGHT, "{live:?}");
        let brought = Self {
            api,
            prefix: format!("{account}/{prefix}"),
            live,
        };

        let began = Instant::now();
        let answer = brought.switch(false)?;
        ensure!(answer["advertised"] == false, "{answer}");
        lab.learned_all("PATCH advertised false: withdrawn, after the answer")?;
        println!(
            "PATCH advertised false: withdrawn, all in all {:?}",
            began.elapsed()
        );
        // Asked again, it is the same, and nothing has changed.
        ensure!(brought.switch(false)? == answer, "{answer}");
        let got = brought.get("/bgp/status")?;
        ensure!(
            got["advertised"] == false
                && got["advertised_modified_at"] == answer["advertised_modified_at"]
                && answer["advertised_modified_at"].is_string()
                && got["announced_here"] == json!([]),
            "{got}"
        );
        ensure!(brought.get("")?["advertised"] == false);
        brought.is_said(site)?;
        Ok(brought)
    }

    fn switch(&self, advertised: bool) -> Result<Value> {
        let body = json!({ "advertised": advertised }).to_string();
        let reply = self
            .api
            .patch(&format!("{}/bgp/status", self.prefix), &body)?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(reply.json()?["result"].clone())
    }

    fn get(&self, path: &str) -> Result<Value> {
        let reply = self.api.get(&format!("{}{path}", self.prefix))?;
        ensure!(reply.status == 200, "{reply:?}");
        Ok(reply.json()?["result"].clone())
    }

    /// The operator is told, by `status` and by `why`; the connection is as it was.
    fn is_said(&self, site: &Site) -> Result<()> {
        let gateway = &site.gateway;
        let status = gateway.json(&["status"])?;
        ensure!(
            status["withdrawn"] == json!({ PREFIX: [BROUGHT.to_string()] }),
            "{status}"
        );
        let said = gateway.text(["status"])?;
        let line = format!("{PREFIX} is withdrawn, not advertised: so not {BROUGHT}");
        ensure!(said.contains(&line), "{said}");
        let inside = self.live.inside.local_addr()?;
        let source = inside.ip().to_string();
        let origin = self.live.origin.local_addr()?.to_string();
        let said = gateway.text(["why", &source, &origin])?;
        let line = format!("not advertised: {PREFIX} is withdrawn");
        ensure!(said.contains(&line), "{said}");
        let flows = gateway.text(["flows"])?;
        ensure!(flows.contains(&inside.to_string()), "{flows}");
        Ok(())
    }

    /// Announces it again: the connection goes on.
    fn announced_again(&mut self, lab: &Announced) -> Result<()> {
        self.is_said(&lab.site)?;
        let began = Instant::now();
        let answer = self.switch(true)?;
        ensure!(answer["advertised"] == true, "{answer}");
        lab.learned_with_brought("PATCH advertised true: back, after the answer")?;
        println!(
            "PATCH advertised true: back, all in all {:?}",
            began.elapsed()
        );
        let route = format!("{BROUGHT}/32");
        let got = self.get("/bgp/status")?;
        ensure!(got["announced_here"] == json!([route]), "{got}");
        let status = lab.site.gateway.json(&["status"])?;
        ensure!(status["withdrawn"] == json!({}), "{status}");
        self.live.exchange()
    }
}

#[test]
fn routes_that_hang_on_the_daemon_go_with_it_however_it_ends() -> Result<()> {
    const TEST: &str = "routes_that_hang_on_the_daemon_go_with_it_however_it_ends";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "bird"]) else {
        return Ok(());
    };
    let mut lab = Announced::start("withdraw")?;
    let check = lab.watch()?;
    lab.learned_all("announced")?;
    lab.works()?;
    lab.site.gateway.kill()?;
    lab.learned("killed: withdrawn", &[])?;
    lab.site.gateway.restart()?;
    lab.learned_all("started again: announced")?;
    lab.works()?;
    lab.site.gateway.terminate()?;
    lab.learned("ended: withdrawn", &[])?;
    check.finish()?;
    Ok(())
}

/// What the segment hears unasked when an address comes to this server.
#[test]
fn a_segment_is_told_of_an_address_that_comes() -> Result<()> {
    const TEST: &str = "a_segment_is_told_of_an_address_that_comes";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let single: Ipv6Addr = "2001:db8:113::77".parse()?;
    let first = Ipv4Addr::new(203, 0, 113, 70);
    let site = Site::start(&Plan {
        resources: resources(&["203.0.113.60"]),
        ..Plan::default()
    })?;
    let capture = Capture::start(&site.node(NET), UPLINK)?;
    let later = [first.to_string(), format!("{single}/128")];
    let later: Vec<&str> = later.iter().map(String::as_str).collect();
    site.gateway.reload(&resources(&later), has(2))?;
    let said = |times: usize| {
        move |frames: &[Frame]| {
            let count = |is: &dyn Fn(&[u8]) -> bool| {
                let bytes = frames.iter().map(|frame| frame.bytes.as_slice());
                bytes.filter(|frame| is(frame)).count()
            };
            count(&|frame| is_arp_announcement(frame, first)) >= times
                && count(&|frame| is_advertisement(frame, single)) >= times
        }
    };
    // Each is said twice (RFC 5227).
    capture.wait_for("two announcements of each", LIMIT, said(2))?;
    // Another link-layer address goes with them now.
    let gateway = site.node(GATEWAY);
    gateway.ip(&format!("link set {UPLINK} address 02:00:00:00:77:77"))?;
    capture.wait_for("two more of each", LIMIT, said(4))
}

/// A broadcast request for the address by whoever has it.
fn is_arp_announcement(frame: &[u8], address: Ipv4Addr) -> bool {
    let of = |range| frame.get::<std::ops::Range<usize>>(range) == Some(&address.octets()[..]);
    frame.starts_with(&[0xff; 6])
        && frame.get(12..14) == Some(&[0x08, 0x06])
        && frame.get(20..22) == Some(&[0, 1])
        && of(28..32)
        && of(38..42)
}

/// A neighbour advertisement to all nodes that overrides what they know.
fn is_advertisement(frame: &[u8], address: Ipv6Addr) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
        && frame.get(54) == Some(&136)
        && frame.get(58) == Some(&0x20)
        && frame.get(62..78) == Some(&address.octets()[..])
}
