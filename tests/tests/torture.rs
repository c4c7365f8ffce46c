//! Servers are drained, cut off, killed, partitioned and returned under load, and etcd is away for minutes: no foreign source
//! at any origin, no port used by two servers, connections that are elsewhere unharmed, new ones within three seconds
//! (FWD-4, FWD-7, CLU-2, CLU-3, SAFE-1).
//!
//! "New connections succeed again within three seconds" means: each of 48 inside addresses begins one every tenth of a
//! second, and from the event on there are no three seconds in which none of an address's succeeded. An address is sent to one
//! server, so those whose server has died count in full (see `cities/attempts.rs`).
//!
//! The whole takes minutes, and runs where `EGRESS_TORTURE` says how many connections are held; a short one always runs.

use std::{
    env,
    net::{IpAddr, SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    capture::{Capture, Frame},
    cities::{self, Cities, Load, News, ORIGINS, Pace, Plan, SERVERS},
    client::Outcome,
    config::Resources,
    gateway::Gateway,
    leak::{LeakCheck, Rules},
    needs,
    pair::{NET, ORIGIN, ORIGIN_ADDRESS},
    peer::{self, Caller, Peers},
    ports::Ports,
    wait,
};
use ipnet::{IpNet, Ipv4Net};
use serde_json::Value;

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// After this time a slice that has not come back is one that has a connection which is held.
const OCCUPIED: Duration = Duration::from_secs(20);
/// What a busy machine may take for anything.
const LIMIT: Duration = Duration::from_secs(120);
/// How long something is gone.
const GONE: Duration = Duration::from_secs(6);
/// FWD-7.
const PROMISE: Duration = Duration::from_millis(3_000);
/// How new connections are begun. SYNs are sent again after one second, after three and after seven.
const PACE: Pace = Pace {
    period: Duration::from_millis(100),
    patience: Duration::from_secs(5),
};
const GENTLE: Pace = Pace {
    period: Duration::from_millis(400),
    patience: Duration::from_secs(15),
};
/// So that slices are handed over soon.
const TIMERS: &str = "[timers]\ntcp_closing = 2\nquarantine = 2\n";
/// What is left of that at least: a packet that is late may leave while its port rests.
const RESTS: Duration = Duration::from_millis(500);
/// Whether a node routes.
const FORWARDING: &str = "net.ipv4.ip_forward";
/// The number of an address that only Amsterdam has, and ports for which a policy wants it: else another address, which is
/// not of the zone's pool, else the default egress.
const BANK: usize = 4;
const SECONDARY: usize = 1;
const POLICED: usize = 2;
const BY_SECONDARY: u16 = 9_001;
const BY_DEFAULT: u16 = 9_002;
/// How long etcd is away.
const AWAY: Duration = Duration::from_secs(300);

/// A lab under load, and whoever watches it.
struct Scene {
    load: Load,
    checks: Vec<LeakCheck>,
    ports: Ports,
    /// Those that were lost so far, by the server that their client is behind.
    gone: Vec<usize>,
    _listener: TcpListener,
    lab: Cities,
}

impl Scene {
    fn start(count: usize, pace: Pace) -> Result<Self> {
        let lab = Cities::start(&Plan {
            max_flows: 65_536,
            sections: TIMERS.to_owned(),
            ..Plan::whole(cities::resources(7_000, 9_000))
        })?;
        all_alive(&lab)?;
        let addresses: Vec<_> = (1..=BANK).map(cities::egress_ip).collect();
        let by_default = IpNet::from(Ipv4Net::new(cities::inside(POLICED), 24)?);
        let allowed = Rules::new()
            .allow(addresses.iter().copied())
            .allow_to_port(by_default, BY_DEFAULT);
        // The origin resets what it gets by the default egress, and no router knows a way back.
        let mut about = addresses.clone();
        about.push(cities::inside(POLICED));
        let rules = cities::routers()
            .into_iter()
            .fold(allowed, |rules, router| {
                rules.allow_errors_about(router, &about)
            });
        let checks = ORIGINS
            .into_iter()
            .map(|(node, _)| LeakCheck::start(&lab.lab.node(node), "eth0", rules.clone()))
            .collect::<Result<_>>()?;
        let all: Vec<_> = (1..=cities::POOLS)
            .map(|pool| cities::egress_ip(pool).into())
            .collect();
        let ports = Ports::start((0..SERVERS.len()).map(|one| lab.port(one)), &all, RESTS)?;
        let at = SocketAddr::from((ORIGIN_ADDRESS, PORT));
        let listener = peer::listen(&lab.lab.node(ORIGIN), at)?;
        let began = Instant::now();
        let load = Load::start(&lab, count, &listener, pace)?;
        println!(
            "{count} connections are held, {} more are known one by one, after {:?}",
            load.known.len(),
            began.elapsed()
        );
        Ok(Self {
            load,
            checks,
            ports,
            gone: vec![0; SERVERS.len()],
            _listener: listener,
            lab,
        })
    }

    /// One thing that happens: what it does to new connections that are not from behind `gone`, and to known ones that are not
    /// on any of `harmed`.
    fn happens(
        &mut self,
        what: &str,
        gone: &[usize],
        harmed: &[usize],
        away: impl FnOnce(&mut Cities) -> Result<()>,
        back: impl FnOnce(&mut Cities) -> Result<()>,
    ) -> Result<()> {
        let began = Instant::now();
        away(&mut self.lab)?;
        let elsewhere =
            |one: &cities::Known| !harmed.contains(&one.entry) && !harmed.contains(&one.owner);
        let (count, slowest) = self.load.exchange(elsewhere)?;
        println!(
            "{what}: {count} known connections elsewhere went on, the slowest answer took {slowest:?}"
        );
        thread::sleep(GONE.saturating_sub(began.elapsed()));
        let until = Instant::now();
        back(&mut self.lab)?;
        all_alive(&self.lab)?;
        let end = Instant::now();
        let news = self.news(what, began, until, gone)?;
        ensure!(news.longest <= PROMISE, "{what}: {news:?}");
        let what = format!("{what}, and back");
        let news = self.news(&what, until, end, gone)?;
        ensure!(news.longest <= PROMISE, "{what}: {news:?}");
        Ok(())
    }

    /// What became of new connections, but for those from behind some servers.
    fn news(&self, what: &str, from: Instant, to: Instant, without: &[usize]) -> Result<News> {
        let news = self.load.new.news(from, to, without)?;
        println!(
            "{what}: {} of {} new connections failed {:?} at {:?}, nothing of an address succeeded for {:?} at most ({:?})",
            news.failed, news.attempts, news.errors, news.when, news.longest, news.whose
        );
        Ok(news)
    }

    /// Slices that a server has, and those of them that leave.
    fn slices(&self, server: usize) -> Result<(u64, u64)> {
        Ok((
            self.figure(server, "slices")?,
            self.figure(server, "leaving")?,
        ))
    }

    fn figure(&self, server: usize, key: &str) -> Result<u64> {
        let all = self.lab.gateways[0].json(&["server", "list"])?;
        let all = all.as_array().context("servers are listed")?;
        let found = all.iter().find(|one| one["server"] == SERVERS[server].0);
        let found = found.context("the server is listed")?;
        found[key].as_u64().context("a figure is missing")
    }

    /// A server drains, and has slices again: no connection fails, old or new. How fast all hear of it depends on the
    /// machine: where that may be slow, new connections of all succeed while it drains and when it is back.
    fn drains(&mut self, server: usize, is_slow: bool) -> Result<()> {
        let name = SERVERS[server].0;
        let before = self.slices(server)?;
        ensure!(before.0 > 0 && before.1 == 0, "{name}: {before:?}");
        let began = Instant::now();
        self.lab.gateways[0].text(["server", "drain", name])?;
        wait::until_true("all slices to leave, or to be others'", LIMIT, || {
            let (has, leaving) = self.slices(server)?;
            Ok(has == leaving)
        })?;
        wait::until_true("nothing to open here", LIMIT, || Ok(!self.opens(server)?))?;
        self.load.new.wait_success(Instant::now(), &[], LIMIT)?;
        thread::sleep(GONE.saturating_sub(began.elapsed()));
        let least = self.slices(server)?;
        let until = Instant::now();
        self.lab.gateways[0].text(["server", "undrain", name])?;
        // What the others give back for its slices may have a connection that is held: it comes when that has ended.
        wait::until_true("its slices to be back", LIMIT, || {
            let (has, leaving) = self.slices(server)?;
            let coming = self.figure(server, "coming")?;
            let is_long = until.elapsed() >= OCCUPIED;
            Ok((has + coming, leaving) == before && (coming == 0 || is_long))
        })?;
        wait::until_true("it to open something", LIMIT, || self.opens(server))?;
        self.load.new.wait_success(Instant::now(), &[], LIMIT)?;
        let end = Instant::now();
        println!(
            "{name} drains: of {} slices {} were left after {:?}; back after {:?}",
            before.0,
            least.0,
            until - began,
            end - until
        );
        let news = self.news(&format!("{name} drains, and back"), began, end, &[])?;
        if news.failed > 0 {
            for (gateway, (at, ..)) in self.lab.gateways.iter().zip(SERVERS) {
                let log = gateway.log();
                let refused = log.lines().filter(|line| line.contains("egress::refused"));
                refused.for_each(|line| println!("{at}: {line}"));
            }
        }
        ensure!(is_slow || news.failed == 0, "{name} drains: {news:?}");
        self.lost(&format!("{name} drains"), &[0; SERVERS.len()])
    }

    /// All connections that were held answer, but for so many of each server's.
    fn lost(&mut self, what: &str, may: &[usize]) -> Result<()> {
        let outcomes = self.load.check(LIMIT)?;
        let all: Vec<usize> = outcomes.iter().map(failures).collect();
        let lost: Vec<usize> = all
            .iter()
            .zip(&self.gone)
            .map(|(all, gone)| all - gone)
            .collect();
        println!("{what}: lost {lost:?}, at most {may:?}");
        ensure!(
            lost.iter().zip(may).all(|(lost, may)| lost <= may),
            "{what}: {outcomes:?}"
        );
        self.gone = all;
        Ok(())
    }

    /// Whether something that comes in at a server leaves by it.
    fn opens(&self, server: usize) -> Result<bool> {
        let at = SocketAddr::from((ORIGIN_ADDRESS, PORT)).to_string();
        for zone in 1..=cities::POOLS {
            let source = cities::inside(zone).to_string();
            let why = self.lab.gateways[server].json(&["why", &source, &at])?;
            if why["path"] == "local" {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A server dies with all it knows, and comes back without.
    fn dies(&mut self, server: usize) -> Result<()> {
        let name = SERVERS[server].0;
        let share = (0..SERVERS.len()).map(|entry| self.lab.on(entry, server));
        let share = share.collect::<Result<Vec<_>>>()?;
        let what = format!("{name} dies");
        self.happens(
            &what,
            &[server],
            &[server],
            |lab| {
                lab.link(server, false)?;
                lab.gateways[server].kill()?;
                lab.gateways[server].text(["detach"])?;
                lab.lab.node(name).sysctl(FORWARDING, "0")
            },
            |lab| {
                lab.gateways[server].restart()?;
                // Not before: nothing is bound until then.
                lab.lab.node(name).sysctl(FORWARDING, "1")?;
                lab.link(server, true)
            },
        )?;
        self.load
            .known
            .retain(|one| one.entry != server && one.owner != server);
        self.lost(&what, &share)
    }

    fn finish(mut self) -> Result<()> {
        self.load.new.stop()?;
        let (count, _) = self.load.exchange(|_| true)?;
        println!("{count} known connections answer at the end");
        for (check, (node, _)) in self.checks.into_iter().zip(ORIGINS) {
            let report = check.finish().with_context(|| format!("origin {node}"))?;
            println!(
                "origin {node}: {} packets, by source {:?}",
                report.packets, report.sources
            );
        }
        let (used, passed, twice) = self.ports.finish()?;
        println!(
            "{used} pairs of source and destination were used, {passed} times a slice came to another server"
        );
        ensure!(twice.is_empty(), "used by two servers: {twice:?}");
        Ok(())
    }

    fn last_words(&self) -> String {
        let all = self.lab.gateways.iter().map(Gateway::last_words);
        all.collect::<Vec<_>>().join("\n")
    }
}

fn failures(outcome: &Outcome) -> usize {
    outcome.failures() + outcome.refusals()
}

/// Every server hears every other one.
fn all_alive(lab: &Cities) -> Result<()> {
    for gateway in &lab.gateways {
        wait::until_true("all servers to be alive", LIMIT, || {
            let status = gateway.json(&["status"])?;
            let servers = status["servers"].as_object().context("no servers")?;
            let alive = servers.values().filter(|one| one["state"] == "alive");
            Ok(alive.count() == SERVERS.len() - 1)
        })
        .with_context(|| gateway.last_words())?;
    }
    Ok(())
}

/// How many connections are to be held; nothing where nobody wants this to run.
fn wanted(test: &str) -> Result<Option<usize>> {
    match env::var("EGRESS_TORTURE") {
        Ok(count) => Ok(Some(
            count.parse().context("EGRESS_TORTURE is not a number")?,
        )),
        Err(_) => {
            needs::skip(test, "it takes minutes; set EGRESS_TORTURE=10000");
            Ok(None)
        }
    }
}

/// The usual resources, and policies whose primary only Amsterdam has.
fn policed() -> Resources {
    let mut resources = cities::resources(7_000, 9_000);
    let (primary, secondary) = (cities::egress_ip(BANK), cities::egress_ip(SECONDARY));
    resources.sections += &format!(
        "[[placement]]\naddress = \"{primary}\"\nshares = [{{ data_center = \"ams01\", share = 1 }}]\n\
         [[pool]]\nid = \"bank\"\naccount = \"acme\"\nkind = \"leased\"\naddresses = [\"{primary}\", \"2001:db8:6::/64\"]\n"
    );
    for (precedence, port, fallback) in [
        (1, BY_SECONDARY, secondary.to_string()),
        (2, BY_DEFAULT, "0.0.0.0".to_owned()),
    ] {
        resources.sections += &format!(
            "[[policy]]\nname = \"to {port}\"\naccount = \"acme\"\nprecedence = {precedence}\n\
             traffic = \"net.dst.port == {port}\"\n\
             egress = {{ ipv4 = \"{primary}\", ipv4_fallback = \"{fallback}\", ipv6 = \"2001:db8:6::/64\" }}\n"
        );
    }
    resources
}

impl Scene {
    /// What `egress why` says of a connection of the zone of the policies behind the first server.
    fn why(&self, port: u16) -> Result<Value> {
        let (source, at) = (
            cities::inside(POLICED),
            SocketAddr::from((ORIGIN_ADDRESS, port)),
        );
        self.lab.gateways[0].json(&["why", &source.to_string(), &at.to_string()])
    }

    /// POLICY-4, while Amsterdam is there: both policies use its address.
    fn primary(&self) -> Result<Vec<Peers>> {
        self.lab.apply(0, &policed())?;
        let announced = || Ok(self.lab.routed_to(BANK)?.contains("ams01"));
        wait::until_true("the route to the primary", LIMIT, announced)?;
        let mut live = Vec::new();
        for port in [BY_SECONDARY, BY_DEFAULT] {
            let leads_there = || {
                let why = self.why(port)?;
                let path = why["path"].as_str().unwrap_or_default();
                Ok(path.starts_with("peer ams01"))
            };
            wait::until_true("the policy to be in force", LIMIT, leads_there)?;
            let at = SocketAddr::from((ORIGIN_ADDRESS, port));
            let listener = peer::listen(&self.lab.lab.node(ORIGIN), at)?;
            let one = self.lab.connect(POLICED, 0, &listener)?;
            let seen = one.seen.ip();
            ensure!(seen == IpAddr::from(cities::egress_ip(BANK)), "{seen}");
            live.push(one);
        }
        Ok(live)
    }

    /// POLICY-4, while Amsterdam is away: one policy uses its secondary, the other one the default egress.
    fn secondary(&self) -> Result<()> {
        for port in [BY_SECONDARY, BY_DEFAULT] {
            wait::until_true("the policy to do without Amsterdam", LIMIT, || {
                let why = self.why(port)?;
                let path = why["path"].as_str().unwrap_or_default();
                Ok(!path.starts_with("peer ams01"))
            })?;
        }
        let at = SocketAddr::from((ORIGIN_ADDRESS, BY_SECONDARY));
        let listener = peer::listen(&self.lab.lab.node(ORIGIN), at)?;
        let seen = self.lab.connect(POLICED, 0, &listener)?.seen.ip();
        ensure!(seen == IpAddr::from(cities::egress_ip(SECONDARY)), "{seen}");
        // The network has no way back to inside addresses.
        let capture = Capture::start(&self.lab.lab.node(ORIGIN), "eth0")?;
        let source = IpAddr::from(cities::inside(POLICED));
        let caller = Caller {
            address: Some(source),
            patience: Some(Duration::from_secs(1)),
            ..Caller::default()
        };
        let at = SocketAddr::from((ORIGIN_ADDRESS, BY_DEFAULT));
        ensure!(caller.connect(&self.lab.client(0), at).is_err());
        capture.wait_for("a SYN by the default egress", LIMIT, |frames| {
            let mut all = frames.iter().filter_map(Frame::packet);
            all.any(|one| one.source == source && one.destination_port() == Some(BY_DEFAULT))
        })
    }
}

/// FWD-7, POLICY-4, SAFE-1: a server drains, then a location is cut off and comes back, under a little load.
#[test]
fn a_server_drains_and_a_location_is_cut_off() -> Result<()> {
    const TEST: &str = "a_server_drains_and_a_location_is_cut_off";
    const COUNT: usize = 320;
    const DRAINS: usize = 7;
    /// Amsterdam, and its servers.
    const AWAY: usize = 2;
    const GONE: [usize; 2] = [4, 5];

    let Some(_turn) = needs::turn(TEST, &["nft", "etcd", "bird"]) else {
        return Ok(());
    };
    let mut scene = Scene::start(COUNT, GENTLE)?;
    let run = |scene: &mut Scene| -> Result<()> {
        let mut by_policy = scene.primary()?;
        scene.drains(DRAINS, true)?;
        let began = Instant::now();
        scene.lab.data_center_link(AWAY, false)?;
        scene.load.new.wait_success(began, &GONE, LIMIT)?;
        println!(
            "Amsterdam is cut off: all others' new connections succeed after {:?}",
            began.elapsed()
        );
        scene.secondary()?;
        scene.lab.data_center_link(AWAY, true)?;
        scene.lost("Amsterdam is back", &[0; SERVERS.len()])?;
        // They are where they were (FWD-4).
        by_policy.iter_mut().try_for_each(Peers::exchange)
    };
    let done = run(&mut scene);
    if done.is_err() {
        println!("{}", scene.last_words());
    }
    done?;
    scene.finish()
}

#[test]
fn servers_are_drained_killed_partitioned_and_returned() -> Result<()> {
    const TEST: &str = "servers_are_drained_killed_partitioned_and_returned";
    /// Those that something happens to, numbered from 0.
    const CUT: usize = 2;
    const DIES: usize = 4;
    const DRAINS: usize = 7;

    let Some(count) = wanted(TEST)? else {
        return Ok(());
    };
    let Some(_turn) = needs::timed_turn(TEST, &["nft", "etcd", "bird"]) else {
        return Ok(());
    };
    let mut scene = Scene::start(count, PACE)?;
    let run = || -> Result<()> {
        let none = [0; SERVERS.len()];
        scene.drains(DRAINS, false)?;
        let what = format!("{} is cut off", SERVERS[CUT].0);
        scene.happens(
            &what,
            &[CUT],
            &[CUT],
            |lab| lab.link(CUT, false),
            |lab| lab.link(CUT, true),
        )?;
        scene.lost(&what, &none)?;

        scene.dies(DIES)?;

        // Neither of its servers reaches anybody but the other one; etcd is on the other side.
        let what = "fra02 is cut off from all others";
        scene.happens(
            what,
            &[2, 3],
            &[2, 3],
            |lab| lab.data_center_link(1, false),
            |lab| lab.data_center_link(1, true),
        )?;
        scene.lost(what, &none)?;

        // They still reach the origins. So the network goes on bringing both of them replies, of which they cannot send on
        // those that are each other's: about every second new connection by an address that both have fails as long as
        // this lasts, wherever it came in, and each of the others is as good as ever.
        let what = "Frankfurt and Amsterdam do not reach each other";
        scene.happens(
            what,
            &[],
            // What one of them owns and the other one gets replies to waits.
            &[0, 1, 2, 3, 4, 5],
            |lab| {
                let addresses = |servers: std::ops::Range<usize>| {
                    let all = servers.map(|server| cities::server_address(server).to_string());
                    all.collect::<Vec<_>>().join(", ")
                };
                lab.lab.node(NET).nft(&format!(
                    "table ip lab_cut {{ chain forward {{ type filter hook forward priority 0; \
                     ip saddr {{ {one} }} ip daddr {{ {other} }} drop; ip saddr {{ {other} }} ip daddr {{ {one} }} drop; }}\n}}",
                    one = addresses(0..4),
                    other = addresses(4..6)
                ))
            },
            |lab| lab.lab.node(NET).nft("delete table ip lab_cut"),
        )?;
        scene.lost(what, &none)?;
        Ok(())
    };
    let mut run = run;
    let done = run();
    if done.is_err() {
        println!("{}", scene.last_words());
    }
    done?;
    scene.finish()
}

#[test]
fn etcd_is_away_for_five_minutes() -> Result<()> {
    const TEST: &str = "etcd_is_away_for_five_minutes";
    const DIES: usize = 5;
    /// How long etcd is there before it goes.
    const QUIET: Duration = Duration::from_secs(30);

    let Some(count) = wanted(TEST)? else {
        return Ok(());
    };
    let Some(_turn) = needs::timed_turn(TEST, &["nft", "etcd", "bird"]) else {
        return Ok(());
    };
    let mut scene = Scene::start(count, PACE)?;
    let none = [0; SERVERS.len()];
    // Without anything happening to it, etcd is not lost: it ends connections that ask too often whether it is there.
    thread::sleep(QUIET);
    for gateway in &scene.lab.gateways {
        ensure!(
            !gateway.log().contains("etcd is lost"),
            "{}",
            gateway.last_words()
        );
    }
    let began = Instant::now();
    scene.lab.etcd.as_mut().context("no etcd")?.kill()?;
    for gateway in &scene.lab.gateways {
        wait::until_true("the status to say so", LIMIT, || {
            Ok(!gateway.json(&["status"])?["frozen"].is_null())
        })?;
    }
    let quiet = |scene: &mut Scene, from: Instant, what: &str| -> Result<()> {
        let news = scene.news(what, from, Instant::now(), &[])?;
        ensure!(news.failed == 0, "{what}: {news:?}");
        Ok(())
    };
    thread::sleep((AWAY / 2).saturating_sub(began.elapsed()));
    quiet(&mut scene, began, "etcd away")?;
    scene.lost("etcd away", &none)?;
    scene.dies(DIES)?;
    let again = Instant::now();
    thread::sleep(AWAY.saturating_sub(began.elapsed()));
    quiet(&mut scene, again, "etcd still away, the server back")?;
    scene.lost("etcd still away", &none)?;
    scene.lab.etcd.as_mut().context("no etcd")?.restart()?;
    let back = Instant::now();
    for gateway in &scene.lab.gateways {
        wait::until_true("etcd to be heard of", LIMIT, || {
            Ok(gateway.json(&["status"])?["frozen"].is_null())
        })?;
    }
    quiet(&mut scene, back, "etcd back")?;
    scene.finish()
}
