//! CLU-3, `takeover_after`, with real daemons and packets: a server that is not heard of stops by itself, with or without a daemon,
//! before another one takes what it had; it comes back, and no port is two servers' at once.

use std::{
    fs::OpenOptions,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    client::Clients,
    gateway::Gateway,
    needs,
    origin::ECHO_PORT,
    pair::{ETCD, NET, Pair, SHARED, Side},
    ports::Ports,
    site::{CONNECT_LIMIT, all_succeeded},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The least that can be configured.
const TAKEOVER: Duration = Duration::from_secs(30);
/// How long anything may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);
/// When a server stops that was heard of at this very moment.
const STOPS: Duration = Duration::from_millis(TAKEOVER.as_millis() as u64 / 4 * 3);
/// How long a sign of life is the last one at the most, as a rule, before the next.
const BEAT: Duration = Duration::from_millis(TAKEOVER.as_millis() as u64 / 6);
/// Ports rest for two seconds here; a late packet may leave meanwhile.
const RESTS: Duration = Duration::from_millis(500);
/// Connections at once.
const COUNT: usize = 60;

/// Has a daemon that runs opt in.
fn opt_in(gateway: &Gateway) -> Result<()> {
    let mut file = OpenOptions::new()
        .append(true)
        .open(gateway.files().config())?;
    writeln!(
        file,
        "\n[handover]\ntakeover_after = {}",
        TAKEOVER.as_secs()
    )?;
    gateway.signal(Signal::SIGHUP)?;
    // From the first sign of life on.
    wait::until_true("it to stop in time", LIMIT, || {
        let left = &gateway.json(&["status"])?["lapses_in"];
        Ok(left.as_u64().is_some_and(|left| left > 0))
    })
}

/// Whether the data plane says that it has stopped by itself; the command fails then.
fn has_lapsed(gateway: &Gateway) -> Result<bool> {
    let output = gateway.egress(["status", "--json"])?;
    let status: Value = serde_json::from_slice(&output.stdout).context("no status")?;
    let troubles = status["troubles"].as_array().context("no troubles")?;
    let lapsed = troubles.iter().any(|trouble| trouble["kind"] == "lapsed");
    ensure!(!lapsed || !output.status.success(), "{status}");
    Ok(lapsed)
}

/// How many flows of a server go this way.
fn flows(gateway: &Gateway, path: &str) -> Result<usize> {
    let text = gateway.text(["flows", "--json"])?;
    let paths = text.lines().map(|line| {
        let flow: Value = serde_json::from_str(line)?;
        Ok(flow["path"] == path)
    });
    let those = paths.collect::<Result<Vec<bool>>>()?;
    Ok(those.into_iter().filter(|is| *is).count())
}

struct Scene {
    pair: Pair,
    shares: [u64; 2],
}

impl Scene {
    fn open(&self, side: Side) -> Result<Clients> {
        let mut clients = self.pair.clients(side)?;
        let opened = clients.open(self.pair.at(ECHO_PORT), COUNT, CONNECT_LIMIT)?;
        all_succeeded(&opened, COUNT)?;
        Ok(clients)
    }

    fn until(&self, what: &str, expected: [u64; 2]) -> Result<()> {
        let mut last = None;
        let outcome = wait::until_true(what, LIMIT, || {
            let all = Side::ALL.map(|side| self.pair.slices(Side::One, side));
            let [one, two] = all;
            let now = [one?, two?];
            last = Some(now);
            Ok(now == expected.map(|slices| (slices, 0)))
        });
        outcome.with_context(|| format!("slices: {last:?}"))
    }

    /// Until a server has stopped that was heard of until `since`; what it had is not used any more, and still its own.
    fn lapses(&self, side: Side, since: Instant, clients: &mut Clients) -> Result<Duration> {
        let mut before = since;
        wait::until_true("it to stop by itself", LIMIT, || {
            let asked = Instant::now();
            let lapsed = has_lapsed(self.pair.gateway(side))?;
            if !lapsed {
                before = asked;
            }
            Ok(lapsed)
        })?;
        let stopped = since.elapsed();
        ensure!(before - since <= STOPS, "in use after {:?}", before - since);
        let (slices, _) = self.pair.slices(Side::One, side)?;
        let [_, share] = self.shares;
        ensure!(
            slices == share || since.elapsed() >= TAKEOVER - BEAT,
            "others have it after {:?}",
            since.elapsed()
        );
        let outcome = clients.check(CONNECT_LIMIT)?;
        ensure!(outcome.succeeded == 0, "{outcome:?}");
        Ok(stopped)
    }

    /// The daemon is dead, and the programs alone know when to stop.
    fn dies(&mut self) -> Result<()> {
        let mut clients = self.open(Side::Two)?;
        let [_, two] = &mut self.pair.gateways;
        two.kill()?;
        let killed = Instant::now();
        all_succeeded(&clients.check(CONNECT_LIMIT)?, COUNT)?;
        let stopped = self.lapses(Side::Two, killed, &mut clients)?;
        // Nobody is there to say which other server is: what is new is refused.
        let refused =
            self.pair
                .clients(Side::Two)?
                .open(self.pair.at(ECHO_PORT), COUNT, CONNECT_LIMIT)?;
        ensure!(refused.refusals() == COUNT, "{refused:?}");
        self.until("the other server to have all", [31, 0])?;
        let taken = killed.elapsed();
        ensure!(taken >= TAKEOVER - BEAT, "taken over after {taken:?}");
        println!("stopped {stopped:?} after the daemon's death; taken over after {taken:?}");
        let mut others = self.open(Side::One)?;
        others.close_all(true)?;

        let began = Instant::now();
        let [_, two] = &mut self.pair.gateways;
        two.restart()?;
        self.until("the slices to be back", self.shares)?;
        println!("back, with its slices, after {:?}", began.elapsed());
        self.uses_its_own()
    }

    /// The second server opens connections by what it has.
    fn uses_its_own(&self) -> Result<()> {
        let two = self.pair.gateway(Side::Two);
        let origin = self.pair.at(ECHO_PORT).to_string();
        wait::until_true("it to use what it has", LIMIT, || {
            Ok(two.json(&["why", "10.1.0.2", &origin])?["path"] == "local")
        })?;
        let mut clients = self.open(Side::Two)?;
        ensure!(flows(two, "local")? >= COUNT, "others translate");
        clients.close_all(true)?;
        Ok(())
    }

    /// Only etcd is out of reach: what is new leaves by the other server.
    fn is_cut_off(&self) -> Result<()> {
        let mut clients = self.open(Side::Two)?;
        let node = self.pair.node(Side::Two.server());
        node.ip(&format!("route add blackhole {ETCD}/32"))?;
        let cut = Instant::now();
        let stopped = self.lapses(Side::Two, cut, &mut clients)?;
        let two = self.pair.gateway(Side::Two);
        let origin = self.pair.at(ECHO_PORT).to_string();
        let path = format!("peer {}", Side::One.name());
        let mut last = Value::Null;
        let forwarded =
            wait::until_true("new connections to go to the other server", LIMIT, || {
                last = two.json(&["why", "10.1.0.2", &origin])?;
                Ok(last["path"] == path)
            });
        forwarded.with_context(|| last.to_string())?;
        let mut others = self.open(Side::Two)?;
        ensure!(flows(two, &path)? == COUNT, "they leave otherwise");
        println!(
            "stopped {stopped:?} after it was cut off; new connections leave by the other server"
        );
        node.ip(&format!("route del blackhole {ETCD}/32"))?;
        wait::until_true("it to be heard of", LIMIT, || Ok(!has_lapsed(two)?))?;
        all_succeeded(&others.check(CONNECT_LIMIT)?, COUNT)?;
        others.close_all(true)?;
        self.until("the slices to be back", self.shares)?;
        self.uses_its_own()
    }
}

#[test]
fn a_server_that_is_not_heard_of_stops_and_others_take_over() -> Result<()> {
    const TEST: &str = "a_server_that_is_not_heard_of_stops_and_others_take_over";

    let Some(_turn) = needs::turn(TEST, &["nft", "etcd"]) else {
        return Ok(());
    };
    let (pair, _etcd) = Pair::sharing()?;
    let checks = pair.checks()?;
    let servers = Side::ALL.map(|side| (pair.node(NET), side.port().to_owned()));
    let ports = Ports::start(servers, &[SHARED.into()], RESTS)?;
    let file = pair.gateway(Side::One).files().resources();
    pair.gateway(Side::One)
        .text(["apply", "-f", &file.display().to_string()])?;
    let mut shares = [0; 2];
    wait::until_true("both to have their slices", LIMIT, || {
        for (share, side) in shares.iter_mut().zip(Side::ALL) {
            // Both know of it.
            for asked in Side::ALL {
                (*share, _) = pair.slices(asked, side)?;
            }
        }
        Ok(shares.iter().sum::<u64>() == 31)
    })?;
    let mut scene = Scene { pair, shares };

    // While connections live.
    let mut clients = scene.open(Side::Two)?;
    for side in Side::ALL {
        opt_in(scene.pair.gateway(side))?;
    }
    all_succeeded(&clients.check(CONNECT_LIMIT)?, COUNT)?;
    clients.close_all(true)?;

    scene.dies()?;
    scene.is_cut_off()?;
    let (used, passed, wrong) = ports.finish()?;
    println!(
        "{used} pairs of source and destination, {passed} times a slice came to the other server"
    );
    ensure!(wrong.is_empty(), "{wrong:?}");
    for check in checks {
        check.finish()?;
    }
    Ok(())
}
