//! Two hosts that carry the name of one server: one is that server, and the other one uses nothing of what is its (CLU-3).

use std::fs;

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    gateway::Gateway,
    origin::{ECHO_PORT, HTTP_PORT},
    pair::{SHARED, Side},
    site::{CONNECT_LIMIT, all_succeeded},
    wait,
};
use serde_json::Value;

use super::{Cluster, LIMIT};

/// The name that both have, and the other one's own.
const TAKEN: &str = "lab-s1";
const OWN: &str = "lab-s2";
/// Where the others reach that server.
const TUNNEL: &str = "10.9.0.1";
/// Connections that the server has all the time.
const HELD: usize = 20;

/// As an administrator does who copies a configuration.
fn rename(gateway: &Gateway, name: &str) -> Result<()> {
    let path = gateway.files().config();
    let text = fs::read_to_string(&path)?;
    let line = text.lines().find(|line| line.starts_with("name = "));
    let line = line.context("no name in the configuration")?;
    let changed = text.replacen(line, &format!("name = \"{name}\""), 1);
    Ok(fs::write(&path, changed)?)
}

/// What `egress status` says, and whether all is well.
fn status(gateway: &Gateway) -> Result<(Value, bool)> {
    let output = gateway.egress(["status", "--json"])?;
    Ok((
        serde_json::from_slice(&output.stdout)?,
        output.status.success(),
    ))
}

/// Waits until the host knows, and says, that another one is the server; and has nothing of the pool in force.
fn is_told(gateway: &Gateway, name: &str) -> Result<()> {
    wait::until_true("the name's being another host's to be told", LIMIT, || {
        let (status, is_well) = status(gateway)?;
        let trouble = &status["troubles"][0];
        let text = trouble["text"].as_str().unwrap_or_default();
        Ok(!is_well
            && trouble["kind"] == "server_name"
            && text.starts_with(&format!("another host is {name}: "))
            && trouble["remedy"]
                .as_str()
                .unwrap_or_default()
                .contains("egress server claim"))
    })
    .with_context(|| format!("{:?}\n{}", gateway.json(&["pools"]), gateway.last_words()))?;
    let pools = gateway.json(&["pools"])?;
    let addresses = pools[0]["addresses"].as_array().context("no addresses")?;
    ensure!(addresses.len() == 2, "{pools}");
    let nothing = addresses.iter().all(|one| one["capacity"].is_null());
    ensure!(nothing, "still in force: {pools}");
    Ok(())
}

impl Cluster {
    /// Whether a client behind a server gets through, and by the shared address.
    fn fetches(&self, side: Side) -> Result<bool> {
        self.pair.replies_to(side)?;
        let url = format!("http://{}/ip", self.pair.at(HTTP_PORT));
        let words = [
            "--silent",
            "--connect-timeout",
            "5",
            "--max-time",
            "30",
            &url,
        ];
        let output = self
            .pair
            .node(side.client())
            .command("curl")?
            .args(words)
            .output()?;
        let seen = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        ensure!(
            !output.status.success() || seen == SHARED.to_string(),
            "another address: {seen}"
        );
        Ok(output.status.success())
    }

    /// A running server is given the name of the other one, then started anew under it, then set up anew under its own.
    pub(crate) fn tells_hosts_apart(&mut self) -> Result<()> {
        self.pair.replies_to(Side::One)?;
        let mut clients = self.pair.clients(Side::One)?;
        let at = self.pair.at(ECHO_PORT);
        all_succeeded(&clients.open(at, HELD, CONNECT_LIMIT)?, HELD)?;
        let held = self.slices(Side::One)?;

        // A machine that was copied has the addresses, too; without them it would be refused for that.
        let machine = self.pair.node(Side::Two.server());
        machine.ip(&format!("address add {TUNNEL}/32 dev lo"))?;
        let [_, two] = &mut self.pair.gateways;
        two.kill()?;
        rename(two, TAKEN)?;
        // Its data plane is at work, and only a daemon takes from it what is the other one's.
        two.restart()?;
        is_told(two, TAKEN)?;
        ensure!(
            !self.fetches(Side::Two)?,
            "a host that is no server opens connections"
        );
        ensure!(self.fetches(Side::One)?, "the server opens none");
        all_succeeded(&clients.check(CONNECT_LIMIT)?, HELD)?;
        ensure!(self.slices(Side::One)? == held, "slices were handed over");

        // One that has nothing in force does not start, and says why.
        let [_, two] = &mut self.pair.gateways;
        two.text(["detach"])?;
        two.wait_end()?;
        two.launch()?;
        let ended = two.wait_end()?;
        let log = two.log();
        ensure!(
            ended.code() == Some(2)
                && log.contains("another host is lab-s1: ")
                && log.contains("give this host a [server] name of its own"),
            "{ended}: {log}"
        );
        let told = status(two)?.0;
        ensure!(
            told["configured"] == false && told["troubles"][0]["kind"] == "server_name",
            "{told}"
        );
        let refused = two.egress(["server", "claim", OWN])?;
        ensure!(refused.status.code() == Some(2), "{refused:?}");

        machine.ip(&format!("address del {TUNNEL}/32 dev lo"))?;

        // As after its disk was lost: the name is that of the host it was.
        rename(two, OWN)?;
        fs::remove_file(two.files().directory.join("egress.host"))?;
        two.launch()?;
        let ended = two.wait_end()?;
        let log = two.log();
        ensure!(
            ended.code() == Some(2) && log.contains("another host is lab-s2: "),
            "{log}"
        );
        let said = two.text(["server", "claim", OWN])?;
        ensure!(
            said.starts_with("this host is lab-s2 from now on; "),
            "{said}"
        );
        two.restart()?;
        two.wait_in_place(LIMIT)?;
        self.works()?;
        self.pair.replies_to(Side::One)?;
        all_succeeded(&clients.check(CONNECT_LIMIT)?, HELD)?;
        clients.close_all(true)?;
        Ok(())
    }
}
