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
    net::{SocketAddr, TcpListener},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    cities::{self, Cities, Load, News, ORIGINS, Plan, Ports, SERVERS},
    client::Outcome,
    gateway::Gateway,
    leak::{LeakCheck, Rules},
    needs,
    pair::{NET, ORIGIN, ORIGIN_ADDRESS},
    peer, wait,
};

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// What a busy machine may take for anything.
const LIMIT: Duration = Duration::from_secs(120);
/// How long something is gone.
const GONE: Duration = Duration::from_secs(6);
/// FWD-7.
const PROMISE: Duration = Duration::from_millis(3_000);
/// How long a new connection may take: SYNs are sent again after one second, and after three.
const PATIENCE: Duration = Duration::from_secs(5);
/// So that slices are handed over soon.
const TIMERS: &str = "[timers]\ntcp_closing = 2\nquarantine = 2\n";
/// Whether a node routes.
const FORWARDING: &str = "net.ipv4.ip_forward";
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
    fn start(count: usize, patience: Duration) -> Result<Self> {
        let lab = Cities::start(&Plan {
            max_flows: 65_536,
            sections: TIMERS.to_owned(),
            ..Plan::whole(cities::resources(7_000, 9_000))
        })?;
        all_alive(&lab)?;
        let addresses: Vec<_> = (1..=cities::POOLS).map(cities::egress_ip).collect();
        let rules = cities::routers().into_iter().fold(
            Rules::new().allow(addresses.iter().copied()),
            |rules, router| rules.allow_errors_about(router, &addresses),
        );
        let checks = ORIGINS
            .into_iter()
            .map(|(node, _)| LeakCheck::start(&lab.lab.node(node), "eth0", rules.clone()))
            .collect::<Result<_>>()?;
        let ports = Ports::start(&lab)?;
        let at = SocketAddr::from((ORIGIN_ADDRESS, PORT));
        let listener = peer::listen(&lab.lab.node(ORIGIN), at)?;
        let began = Instant::now();
        let load = Load::start(&lab, count, &listener, patience)?;
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
    /// on any of them.
    fn happens(
        &mut self,
        what: &str,
        gone: &[usize],
        away: impl FnOnce(&mut Cities) -> Result<()>,
        back: impl FnOnce(&mut Cities) -> Result<()>,
    ) -> Result<()> {
        let began = Instant::now();
        away(&mut self.lab)?;
        let elsewhere =
            |one: &cities::Known| !gone.contains(&one.entry) && !gone.contains(&one.owner);
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
            "{what}: {} of {} new connections failed {:?}, nothing of an address succeeded for {:?} at most ({:?})",
            news.failed, news.attempts, news.errors, news.longest, news.whose
        );
        Ok(news)
    }

    /// Slices that a server has, and those of them that leave.
    fn slices(&self, server: usize) -> Result<(u64, u64)> {
        let all = self.lab.gateways[0].json(&["server", "list"])?;
        let all = all.as_array().context("servers are listed")?;
        let found = all.iter().find(|one| one["server"] == SERVERS[server].0);
        let found = found.context("the server is listed")?;
        let figure = |key: &str| found[key].as_u64().context("a figure is missing");
        Ok((figure("slices")?, figure("leaving")?))
    }

    /// A server drains, and has slices again: no connection fails, old or new.
    fn drains(&mut self, server: usize) -> Result<()> {
        let name = SERVERS[server].0;
        let before = self.slices(server)?;
        ensure!(before.0 > 0 && before.1 == 0, "{name}: {before:?}");
        let began = Instant::now();
        self.lab.gateways[0].text(["server", "drain", name])?;
        wait::until_true("all slices to leave, or to be others'", LIMIT, || {
            let (has, leaving) = self.slices(server)?;
            Ok(has == leaving)
        })?;
        // Nothing that comes in by it opens there.
        wait::until_true("new connections to go elsewhere", LIMIT, || {
            let mut here = 0;
            for zone in 1..=cities::POOLS {
                let source = cities::inside(zone).to_string();
                let at = SocketAddr::from((ORIGIN_ADDRESS, PORT)).to_string();
                let why = self.lab.gateways[server].json(&["why", &source, &at])?;
                here += usize::from(why["path"] == "local");
            }
            Ok(here == 0)
        })?;
        thread::sleep(GONE.saturating_sub(began.elapsed()));
        let least = self.slices(server)?;
        let until = Instant::now();
        self.lab.gateways[0].text(["server", "undrain", name])?;
        wait::until_true("its slices to be back", LIMIT, || {
            Ok(self.slices(server)? == before)
        })?;
        let end = Instant::now();
        println!(
            "{name} drains: of {} slices {} were left after {:?}; back after {:?}",
            before.0,
            least.0,
            until - began,
            end - until
        );
        let news = self.news(&format!("{name} drains"), began, end, &[])?;
        ensure!(news.failed == 0, "{name} drains: {news:?}");
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

    /// A server dies with all it knows, and comes back without.
    fn dies(&mut self, server: usize) -> Result<()> {
        let name = SERVERS[server].0;
        let share = (0..SERVERS.len()).map(|entry| self.lab.on(entry, server));
        let share = share.collect::<Result<Vec<_>>>()?;
        let what = format!("{name} dies");
        self.happens(
            &what,
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
        let (used, twice) = self.ports.finish()?;
        println!("{used} pairs of source and destination were used");
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
    let mut scene = Scene::start(count, PATIENCE)?;
    let run = || -> Result<()> {
        let none = [0; SERVERS.len()];
        scene.drains(DRAINS)?;
        let what = format!("{} is cut off", SERVERS[CUT].0);
        scene.happens(
            &what,
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
    let mut scene = Scene::start(count, PATIENCE)?;
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
