//! CLU-1, CLU-2: two servers share what either of them is told, by a real etcd; without it nothing can be changed, and
//! connections, new ones too, do not notice.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    config::Resources,
    etcd::Etcd,
    gateway::Gateway,
    lab::Lab,
    leak::{LeakCheck, Rules},
    needs,
    origin::{ECHO_PORT, HTTP_PORT},
    pair::{self, NET, Pair, RANGE, SHARED, Side, Underlay},
    service,
    site::{CONNECT_LIMIT, all_succeeded},
    wait,
};

/// How long a change may take to be everywhere, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Where etcd answers: the router's address that both servers have a route to.
const ETCD: &str = "198.51.100.1";
const ETCD_PORT: u16 = 2379;
/// No command may hang on an etcd that says nothing: three times three seconds, and some for a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

struct Cluster {
    pair: Pair,
    etcd: Etcd,
    checks: Vec<LeakCheck>,
}

impl Cluster {
    fn start() -> Result<Self> {
        let lab = Lab::up(&pair::topology())?;
        let directory = service::shared_directory(&lab.directory(), "etcd")?;
        let address: IpAddr = ETCD.parse()?;
        let etcd = Etcd::start(lab.node(NET), &directory, address)?;
        let resources = [pair::resources(Underlay::V4), pair::resources(Underlay::V4)];
        let endpoint = etcd.endpoint();
        let pair = Pair::on(
            lab,
            &resources,
            1_550,
            |_| "lab".to_owned(),
            Some(&endpoint),
        )?;
        // The servers' own words with etcd take the default egress.
        let checks = Side::ALL
            .map(|side| {
                let own: IpAddr = format!("203.0.{}.2", side.number()).parse()?;
                let rules = Rules::new()
                    .allow([SHARED])
                    .allow_range(RANGE.into())
                    .allow_to_port(own.into(), ETCD_PORT);
                LeakCheck::start(&pair.node(NET), side.port(), rules)
            })
            .into_iter()
            .collect::<Result<_>>()?;
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

    fn finish(self) -> Result<()> {
        for check in self.checks {
            check.finish()?;
        }
        Ok(())
    }
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
    let cluster = Cluster::start()?;
    let (done, said) = cluster.apply(Side::One, &capped(3_100))?;
    ensure!(done, "{said}");
    let began = Instant::now();
    cluster.has(Side::Two, 3_100)?;
    println!("the other server has it after {:?}", began.elapsed());
    cluster.works()?;
    let (done, said) = cluster.apply(Side::Two, &capped(310))?;
    ensure!(done, "{said}");
    cluster.has(Side::One, 310)?;
    cluster.works()?;
    cluster.finish()
}

#[test]
fn without_etcd_nothing_can_be_changed_and_connections_go_on() -> Result<()> {
    const TEST: &str = "without_etcd_nothing_can_be_changed_and_connections_go_on";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "etcd"]) else {
        return Ok(());
    };
    let mut cluster = Cluster::start()?;
    let (done, said) = cluster.apply(Side::One, &capped(3_100))?;
    ensure!(done, "{said}");
    cluster.has(Side::Two, 3_100)?;
    cluster.works()?;
    cluster.pair.replies_to(Side::One)?;
    let mut clients = cluster.pair.clients(Side::One)?;
    let at = cluster.pair.at(ECHO_PORT);
    all_succeeded(&clients.open(at, 50, CONNECT_LIMIT)?, 50)?;

    // One that listens and says nothing.
    cluster.etcd.pause()?;
    let began = Instant::now();
    let (done, said) = cluster.apply(Side::One, &capped(310))?;
    ensure!(!done && said.contains("cannot be reached"), "{said}");
    println!("told after {:?}", began.elapsed());
    ensure!(
        began.elapsed() < PATIENCE,
        "told after {:?}",
        began.elapsed()
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
