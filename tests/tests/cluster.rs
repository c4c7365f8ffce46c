//! CLU-1, CLU-2: two servers share what either of them is told, by a real etcd; without it nothing can be changed, and
//! connections, new ones too, do not notice.

#[path = "cluster/names.rs"]
mod names;

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{ACCOUNT, Api, Reply},
    config::Resources,
    etcd::Etcd,
    gateway::Gateway,
    leak::LeakCheck,
    needs,
    origin::{ECHO_PORT, HTTP_PORT},
    pair::{self, Pair, SHARED, Side, Underlay},
    site::{CONNECT_LIMIT, all_succeeded},
    standard::UPLINK,
    wait,
};
use serde_json::Value;

/// How long a change may take to be everywhere, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// No command may hang on an etcd that says nothing: three times three seconds, and some for a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Within this time a hook is put back that is taken away while etcd is asked, which takes three seconds and more.
const UNNOTICED: Duration = Duration::from_millis(2_500);
/// How often that is tried: a busy machine may take as long for other reasons.
const ROUNDS: usize = 6;

/// How often two are told something at once: on a busy machine one may come late.
const COLLISIONS: usize = 20;

struct Cluster {
    pair: Pair,
    etcd: Etcd,
    checks: Vec<LeakCheck>,
}

impl Cluster {
    fn start() -> Result<Self> {
        let (pair, etcd) = Pair::sharing()?;
        let checks = pair.checks()?;
        Ok(Self { pair, etcd, checks })
    }

    fn apply(&self, side: Side, resources: &Resources) -> Result<(bool, String)> {
        let gateway = self.pair.gateway(side);
        gateway.files().write_resources(resources)?;
        let file = gateway.files().resources().display().to_string();
        let output = gateway.egress(["apply", "-f", &file])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.success(), said))
    }

    /// As `apply`, while a hook is taken away as soon as it is there again: says also how long it was missing at the most.
    fn apply_without_hooks(
        &self,
        side: Side,
        resources: &Resources,
    ) -> Result<(Duration, bool, String)> {
        let gateway = self.pair.gateway(side);
        gateway.files().write_resources(resources)?;
        let file = gateway.files().resources().display().to_string();
        let mut command = gateway.asking(["apply", "-f", &file])?;
        let mut applying = command.stderr(Stdio::piped()).spawn()?;
        let mut longest = Duration::ZERO;
        while applying.try_wait()?.is_none() {
            // The daemon may be about to pin what it has just attached.
            if gateway.remove_program(UPLINK, "uplink_egress").is_err() {
                continue;
            }
            let began = Instant::now();
            gateway.wait_in_place(LIMIT)?;
            longest = longest.max(began.elapsed());
        }
        ensure!(!longest.is_zero(), "no hook was taken away");
        let output = applying.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((longest, output.status.success(), said))
    }

    /// A token for everything of the account.
    fn token(&self) -> Result<String> {
        let words = ["token", "create", "--account", ACCOUNT, "--permission"];
        let gateway = self.pair.gateway(Side::One);
        let permissions = [
            "account-egress:write",
            "--permission",
            "account-addresses:write",
        ];
        let token = gateway.text(words.into_iter().chain(permissions))?;
        Ok(token.trim().to_owned())
    }

    /// Asks the first server to change something.
    fn drain_by_api(&self, token: &str) -> Result<Reply> {
        let api = Api::on(self.pair.node(Side::One.server()), token);
        let path = format!("/client/v4/accounts/{ACCOUNT}/egress/drains");
        let body = format!("{{\"subject\":\"{SHARED}\"}}");
        api.call(&path, &["--request", "POST", "--json", &body])
    }

    /// Waits until a server has the pool with this cap.
    fn has(&self, side: Side, cap: u32) -> Result<()> {
        let gateway = self.pair.gateway(side);
        wait::until_true("the change to be in force", LIMIT, || {
            let pools = gateway.json(&["pools"])?;
            Ok(pools[0]["connections_per_origin"] == cap)
        })
        .with_context(|| gateway.last_words())
    }

    /// Both servers' clients get through, by the shared address.
    fn works(&self) -> Result<()> {
        for side in Side::ALL {
            self.pair.replies_to(side)?;
            let url = format!("http://{}/ip", self.pair.at(HTTP_PORT));
            let command = ["curl", "--silent", "--show-error", "--max-time", "30", &url];
            let seen = self.pair.lab.exec(side.client(), &command)?;
            ensure!(seen.trim() == SHARED.to_string(), "{side:?}: {seen}");
        }
        Ok(())
    }

    fn slices(&self, side: Side) -> Result<(u64, u64)> {
        self.pair.slices(Side::One, side)
    }

    fn until(&self, what: &str, expected: [(u64, u64); 2]) -> Result<()> {
        let mut last = None;
        let outcome = wait::until_true(what, LIMIT, || {
            let now = [self.slices(Side::One)?, self.slices(Side::Two)?];
            last = Some(now);
            Ok(now == expected)
        });
        outcome.with_context(|| format!("slices: {last:?}"))
    }

    /// A server that drains hands its slices over as they empty; a connection keeps its own, and new ones go to the other
    /// server. Then it gets slices back (FWD-7, CLU-3).
    fn hands_over(&self) -> Result<()> {
        let (one, two) = (self.slices(Side::One)?, self.slices(Side::Two)?);
        ensure!(
            one.0 + two.0 == 31 && one.0.abs_diff(two.0) == 1,
            "{one:?}, {two:?}"
        );
        let mut clients = self.pair.clients(Side::Two)?;
        all_succeeded(&clients.open(self.pair.at(ECHO_PORT), 1, CONNECT_LIMIT)?, 1)?;
        let gateway = self.pair.gateway(Side::One);
        let said = gateway.egress(["server", "drain", &Side::Two.name()])?;
        ensure!(said.status.success(), "{said:?}");
        let began = Instant::now();
        self.until("all but one slice to be handed over", [(30, 0), (1, 1)])?;
        println!("handed over after {:?}", began.elapsed());
        self.works()?;
        // Its reply arrives at the other server, which sends it on.
        self.pair.replies_to(Side::One)?;
        all_succeeded(&clients.check(CONNECT_LIMIT)?, 1)?;
        clients.close_all(true)?;
        self.until("the last slice to be handed over", [(31, 0), (0, 0)])?;
        let said = gateway.egress(["server", "undrain", &Side::Two.name()])?;
        ensure!(said.status.success(), "{said:?}");
        let shares = [(one.0, 0), (two.0, 0)];
        self.until("the slices to be back", shares)?;
        self.works()
    }

    /// Two servers are told different things at once, by HTTP: one of them is told that somebody else was faster, and
    /// nothing of what it was told is anywhere (API.md: 409).
    fn collide(&self, token: &str) -> Result<()> {
        let leases = format!("/client/v4/accounts/{ACCOUNT}/egress/leased_ips");
        let api = |side: Side| Api::on(self.pair.node(side.server()), token);
        wait::until_true("the token to be everywhere", LIMIT, || {
            let replies = Side::ALL.map(|side| api(side).get(&leases));
            let replies = replies.into_iter().collect::<Result<Vec<_>>>()?;
            Ok(replies.iter().all(|reply| reply.status == 200))
        })?;
        for round in 1..=COLLISIONS {
            let wanted = Side::ALL.map(|side| (side, format!("100.90.{round}.{}", side.number())));
            // Both ask an etcd that says nothing, and so both on top of the same: then one is faster.
            self.etcd.pause()?;
            let replies = thread::scope(|scope| -> Result<Vec<Reply>> {
                let asking: Vec<_> = wanted
                    .iter()
                    .map(|(side, address)| {
                        let (api, leases) = (api(*side), &leases);
                        scope.spawn(move || lease(&api, leases, address))
                    })
                    .collect();
                // Not too long: an etcd that says nothing for three seconds is one that is not there.
                thread::sleep(Duration::from_millis(700));
                self.etcd.resume()?;
                asking
                    .into_iter()
                    .map(|one| one.join().map_err(|_| anyhow::anyhow!("a client died"))?)
                    .collect()
            })?;
            let outcomes = replies.iter().map(Reply::outcome);
            let outcomes: Vec<_> = outcomes.collect::<Result<_>>()?;
            println!("asked at once: {outcomes:?}");
            let lost = outcomes.iter().position(|one| *one == (409, 1409));
            let Some(lost) = lost.filter(|lost| outcomes[1 - lost] == (201, 0)) else {
                // One came after the other, or too late: a busy machine.
                let known = outcomes.iter().all(|one| matches!(one.0, 201 | 409 | 503));
                ensure!(known, "{replies:?}");
                continue;
            };
            let sentence = "somebody else has changed the configuration meanwhile, and nothing was changed: try again";
            let error = &replies[lost].json()?["errors"][0]["message"];
            ensure!(*error == sentence, "{replies:?}");
            let [won, lost] = [&wanted[1 - lost], &wanted[lost]];
            for side in Side::ALL {
                wait::until_true("what was answered with yes", LIMIT, || {
                    Ok(api(side).get(&leases)?.text.contains(&won.1))
                })?;
                let all = api(side).get(&leases)?.text;
                ensure!(!all.contains(&lost.1), "half applied: {all}");
            }
            let again = lease(&api(lost.0), &leases, &lost.1)?;
            ensure!(again.outcome()? == (201, 0), "{again:?}");
            return Ok(());
        }
        anyhow::bail!("{COLLISIONS} times nobody was faster")
    }

    fn finish(self) -> Result<()> {
        for check in self.checks {
            check.finish()?;
        }
        Ok(())
    }
}

fn lease(api: &Api, leases: &str, address: &str) -> Result<Reply> {
    let body = format!("{{\"address\":\"{address}\"}}");
    api.call(leases, &["--request", "POST", "--json", &body])
}

fn capped(cap: u32) -> Resources {
    Resources {
        connections_per_origin: cap,
        ..pair::resources(Underlay::V4)
    }
}

fn frozen(gateway: &Gateway) -> Result<bool> {
    Ok(!gateway.json(&["status"])?["frozen"].is_null())
}

#[test]
fn what_one_server_is_told_all_of_them_do() -> Result<()> {
    const TEST: &str = "what_one_server_is_told_all_of_them_do";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "etcd"]) else {
        return Ok(());
    };
    let mut cluster = Cluster::start()?;
    let (done, said) = cluster.apply(Side::One, &capped(3_100))?;
    ensure!(done, "{said}");
    let began = Instant::now();
    cluster.has(Side::Two, 3_100)?;
    println!("the other server has it after {:?}", began.elapsed());
    cluster.works()?;
    cluster.collide(&cluster.token()?)?;
    let (done, said) = cluster.apply(Side::Two, &capped(310))?;
    ensure!(done, "{said}");
    cluster.has(Side::One, 310)?;
    cluster.works()?;
    cluster.hands_over()?;

    // What one server can put in force, and the other one cannot, since an address of a pool, which no zone uses, is its
    // own.
    let mut taken = capped(310);
    taken.sections.push_str(
        "[[pool]]\nid = \"zz\"\naccount = \"acme\"\naddresses = [\"203.0.2.2\"]\n\
         [[placement]]\naddress = \"203.0.2.2\"\nshares = [{ data_center = \"lab\", share = 1 }]\n",
    );
    let (done, said) = cluster.apply(Side::One, &taken)?;
    ensure!(done, "{said}");
    let two = cluster.pair.gateway(Side::Two);
    wait::until_true("the other server to be behind", LIMIT, || {
        let output = two.egress(["status", "--json"])?;
        let status: Value = serde_json::from_slice(&output.stdout)?;
        let behind = status["behind"].as_str().unwrap_or_default();
        Ok(behind.contains("203.0.2.2") && !output.status.success())
    })?;
    let metrics = Api::on(cluster.pair.node(Side::Two.server()), "").get("/metrics")?;
    ensure!(metrics.text.contains("\negress_behind 1\n"), "{metrics:?}");
    cluster.works()?;
    let (done, said) = cluster.apply(Side::Two, &taken)?;
    ensure!(!done && said.contains("203.0.2.2"), "{said}");
    let (done, said) = cluster.apply(Side::Two, &capped(3_100))?;
    ensure!(done, "{said}");
    cluster.has(Side::One, 3_100)?;
    two.wait_in_place(LIMIT)?;
    cluster.works()?;
    cluster.tells_hosts_apart()?;
    cluster.finish()
}

#[test]
fn without_etcd_nothing_can_be_changed_and_connections_go_on() -> Result<()> {
    const TEST: &str = "without_etcd_nothing_can_be_changed_and_connections_go_on";

    let Some(_turn) = needs::timed_turn(TEST, &["nft", "curl", "etcd"]) else {
        return Ok(());
    };
    let mut cluster = Cluster::start()?;
    let (done, said) = cluster.apply(Side::One, &capped(3_100))?;
    ensure!(done, "{said}");
    cluster.has(Side::Two, 3_100)?;
    cluster.works()?;
    cluster.pair.replies_to(Side::One)?;
    let token = cluster.token()?;
    let mut clients = cluster.pair.clients(Side::One)?;
    let at = cluster.pair.at(ECHO_PORT);
    all_succeeded(&clients.open(at, 50, CONNECT_LIMIT)?, 50)?;

    // One that listens and says nothing. Whoever wants to change something waits for it, and nobody else does: hooks that
    // are taken away meanwhile are put back.
    cluster.etcd.pause()?;
    let mut waited = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let (longest, done, said) = cluster.apply_without_hooks(Side::One, &capped(310))?;
        ensure!(!done && said.contains("cannot be reached"), "{said}");
        let told = began.elapsed();
        println!("told after {told:?}; without a hook for {longest:?} at the most");
        ensure!(told < PATIENCE, "told after {told:?}");
        waited = waited.min(longest);
        if waited < UNNOTICED {
            break;
        }
    }
    ensure!(
        waited < UNNOTICED,
        "each time a hook was missing for {waited:?} and more"
    );
    let reply = cluster.drain_by_api(&token)?;
    ensure!(reply.outcome()? == (503, 1503), "{reply:?}");
    ensure!(
        reply.text.contains("nothing was changed") && reply.text.contains("try again"),
        "{reply:?}"
    );
    cluster.works()?;
    cluster.etcd.resume()?;

    // One that is not there.
    cluster.etcd.kill()?;
    for side in Side::ALL {
        wait::until_true("the status to say so", LIMIT, || {
            frozen(cluster.pair.gateway(side))
        })?;
    }
    let (done, said) = cluster.apply(Side::Two, &capped(310))?;
    ensure!(!done && said.contains("cannot be reached"), "{said}");
    cluster.works()?;
    // A server that starts now comes up with what it knew.
    let [one, _] = &mut cluster.pair.gateways;
    one.kill()?;
    one.restart()?;
    cluster.works()?;
    cluster.pair.replies_to(Side::One)?;
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 50)?;

    cluster.etcd.restart()?;
    for side in Side::ALL {
        wait::until_true("etcd to be heard of", LIMIT, || {
            Ok(!frozen(cluster.pair.gateway(side))?)
        })?;
    }
    let (done, said) = cluster.apply(Side::Two, &capped(310))?;
    ensure!(done, "{said}");
    cluster.has(Side::One, 310)?;
    cluster.works()?;
    cluster.finish()
}
