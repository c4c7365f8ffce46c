//! POOL-10 with real sockets and firewalls: `egress probe`, and zones that require it.

use std::{fs, net::SocketAddr};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, Api, aegis},
    config::{POOL_NAME, Resources, ZONE_ID},
    leak::Rules,
    needs,
    peer::{self, Caller, Peers},
    site::{Plan, Site},
    standard::{A, BOUND, Masquerade, Options, POOL, RANGE},
};
use ipnet::IpNet;
use serde_json::Value;

/// Ports of origin A with a firewall of their own.
const OPEN: u16 = 9_001;
const SILENT: u16 = 9_002;
const RESETS: u16 = 9_003;
const PROHIBITS: u16 = 9_004;
const UNREACHABLE: u16 = 9_005;
/// A port at which nobody listens.
const CLOSED: u16 = 9_006;
/// A port to which the bound client has a connection.
const BUSY: u16 = 9_007;

/// Whether a probe was content, outcomes by address, and all it said.
type Said = (bool, Vec<(String, String)>, Value);

/// What `egress probe` says.
fn probe(site: &Site, origin: SocketAddr) -> Result<Said> {
    let output =
        site.gateway
            .egress(["probe", &origin.to_string(), "--pool", POOL_NAME, "--json"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    let records: Value = serde_json::from_str(&text).with_context(|| format!("{output:?}"))?;
    let outcomes = records
        .as_array()
        .context("no list")?
        .iter()
        .map(|record| {
            let word = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
            (word("address"), word("outcome"))
        })
        .collect();
    Ok((output.status.success(), outcomes, records))
}

/// The firewall of origin A: only the pool's first address is let in everywhere.
fn firewall(site: &Site) -> Result<()> {
    let [_, second] = POOL;
    let script = format!(
        "table inet strict {{ chain input {{ type filter hook input priority 0;
           ip saddr {second} tcp dport {SILENT} drop
           ip saddr {second} tcp dport {RESETS} reject with tcp reset
           ip saddr {second} tcp dport {PROHIBITS} reject with icmp type admin-prohibited
           ip saddr {second} tcp dport {UNREACHABLE} reject
}}
}}
"
    );
    let file = site.gateway.files().directory.join("strict.nft");
    fs::write(&file, script)?;
    site.lab
        .exec(A, &["nft", "-f", &file.display().to_string()])?;
    Ok(())
}

/// Every address of the pool connects for itself, and what an origin's firewall does to it is told. The cap of one
/// connection shows that probes are counted, and that each gives its place back.
#[test]
fn pool_10_a_probe_says_which_address_an_origin_does_not_let_in() -> Result<()> {
    const TEST: &str = "pool_10_a_probe_says_which_address_an_origin_does_not_let_in";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    for masquerade in [Masquerade::Nobody, Masquerade::Everybody] {
        says_which(masquerade).with_context(|| format!("{masquerade:?}"))?;
    }
    Ok(())
}

fn says_which(masquerade: Masquerade) -> Result<()> {
    let mut site = Site::start(&Plan {
        network: Options {
            masquerade,
            ..Options::default()
        },
        resources: Resources {
            connections_per_origin: 1,
            ..Resources::both_families()
        },
        ..Plan::default()
    })?;
    firewall(&site)?;
    let [first, second] = POOL.map(|address| address.to_string());
    let listen = |port| peer::listen(&site.node(A), site.at_a(port));
    let ports = [OPEN, SILENT, RESETS, PROHIBITS, UNREACHABLE];
    let _listeners = ports.into_iter().map(listen).collect::<Result<Vec<_>>>()?;
    let check = site.watch_for(Rules::new().allow(POOL).allow_range(IpNet::from(RANGE)))?;
    let expect = |port, outcomes: [&str; 2]| -> Result<Value> {
        let (content, found, records) = probe(&site, site.at_a(port))?;
        let expected = [&first, &second]
            .into_iter()
            .cloned()
            .zip(outcomes.map(str::to_owned))
            .collect::<Vec<_>>();
        ensure!(found == expected, "port {port}: {records:#}");
        let good = outcomes
            .iter()
            .all(|outcome| ["connected", "draining"].contains(outcome));
        ensure!(content == good, "port {port}: exit code, {records}");
        Ok(records)
    };
    // More often than there are places: each gives its own back.
    for _ in 0..2 {
        let records = expect(OPEN, ["connected"; 2])?;
        for (record, address) in records.as_array().into_iter().flatten().zip(POOL) {
            ensure!(
                record["egress_ip"] == address.to_string() && record["ms"].as_f64() > Some(0.0),
                "{record}"
            );
        }
    }
    ensure!(site.active(site.at_a(OPEN), "tcp")? == 0, "a place is lost");
    expect(RESETS, ["connected", "refused"])?;
    if masquerade != Masquerade::Nobody {
        check.finish()?;
        return Ok(());
    }
    expect(SILENT, ["connected", "timed_out"])?;
    let records = expect(PROHIBITS, ["connected", "icmp"])?;
    ensure!(
        records[1]["detail"]
            .as_str()
            .is_some_and(|detail| detail.contains("prohibited")),
        "{records}"
    );
    // Linux reports this one as it reports a RST.
    expect(UNREACHABLE, ["connected", "icmp"])?;
    expect(CLOSED, ["refused"; 2])?;

    let busy = listen(BUSY)?;
    let peers = Peers::connect(&site.node(BOUND), Caller::default(), &busy)?;
    let used = POOL.iter().position(|address| peers.seen.ip() == *address);
    let used = used.with_context(|| format!("seen from {}", peers.seen))?;
    let mut outcomes = ["connected"; 2];
    outcomes[used] = "no_capacity";
    expect(BUSY, outcomes)?;
    drop(peers);

    site.gateway.text(["pool", "drain", &second])?;
    expect(OPEN, ["connected", "draining"])?;
    site.gateway.text(["pool", "undrain", &second])?;

    let v6 = peer::listen(&site.node(A), site.at_a_v6(OPEN))?;
    let (content, found, records) = probe(&site, v6.local_addr()?)?;
    ensure!(
        content && found == [(RANGE.to_string(), "connected".to_owned())],
        "{records}"
    );
    let from = records[0]["egress_ip"].as_str().unwrap_or_default();
    ensure!(
        IpNet::from(RANGE).contains(&from.parse::<std::net::IpAddr>()?),
        "{records}"
    );
    check.finish()?;

    // What is no origin behind an uplink is not let in either.
    let (content, _, records) = probe(&site, SocketAddr::from(([10, 1, 0, 2], 1)))?;
    ensure!(!content && records[0]["outcome"] == "not_sent", "{records}");
    for (words, code) in [
        (["probe", "203.0.113.1", "--pool", POOL_NAME], 2),
        (["probe", "203.0.113.1:1", "--pool", "nobodys"], 2),
    ] {
        let output = site.gateway.egress(words)?;
        ensure!(output.status.code() == Some(code), "{output:?}");
    }
    let words =
        site.gateway
            .egress(["probe", &site.at_a(OPEN).to_string(), "--pool", POOL_NAME])?;
    let text = String::from_utf8_lossy(&words.stdout);
    ensure!(
        words.status.success() && text.contains("let in"),
        "{words:?}"
    );
    site.gateway.kill()?;
    let origin = site.at_a(OPEN).to_string();
    let down = site
        .gateway
        .egress(["probe", &origin, "--pool", POOL_NAME])?;
    ensure!(down.status.code() == Some(1), "{down:?}");
    Ok(())
}

/// A zone that requires probes is enabled, and moved to another pool, only when its origin lets the pool in; by command
/// line and by API. Who insists has it so.
#[test]
fn pool_10_a_zone_can_require_probes_before_it_is_enabled() -> Result<()> {
    const TEST: &str = "pool_10_a_zone_can_require_probes_before_it_is_enabled";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let mut site = api::prepare(&format!("[api]\nlisten = \"{}\"", api::LISTEN))?;
    let origin = site.at_a(RESETS);
    let path = site.gateway.files().resources();
    let text = fs::read_to_string(&path)?;
    let zone = "sources = [\"10.1.0.0/24\"]";
    let required = text.replace(zone, &format!("{zone}\nrequire_probe = [\"{origin}\"]"));
    ensure!(required != text, "the file is another one");
    fs::write(&path, required)?;
    site.gateway.restart()?;
    firewall(&site)?;
    let listens = peer::listen(&site.node(A), origin)?;
    let api = Api::new(&site, "acme", &["zone-settings:write"])?;
    let path = aegis(ZONE_ID);
    let [_, second] = POOL;
    let sentence = format!("{origin} does not let in {second}: refused (RST)");
    let on = |pool: &str| format!(r#"{{"value":{{"enabled":true,"pool_id":"{pool}"}}}}"#);
    let setting = || -> Result<Value> { Ok(api.get(&path)?.json()?["result"]["value"].clone()) };

    // The second pool is not let in.
    let refused = site
        .gateway
        .egress(["zone", "enable", ZONE_ID, "--pool", "second"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.contains(&sentence),
        "{said}"
    );
    let reply = api.patch(&path, &on("second"))?;
    ensure!(reply.outcome()? == (400, 1400), "{reply:?}");
    ensure!(reply.text.contains(&sentence), "{reply:?}");
    ensure!(setting()?["enabled"] == false, "it is on: {}", setting()?);

    // The first one is.
    let reply = api.patch(&path, &on("partners"))?;
    ensure!(reply.status == 200, "{reply:?}");
    let listener = peer::listen(&site.node(A), site.at_a(OPEN))?;
    let peers = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
    ensure!(peers.seen.ip() == POOL[0], "seen from {}", peers.seen);
    let reply = api.patch(&path, &on("second"))?;
    ensure!(reply.outcome()? == (400, 1400), "{reply:?}");
    ensure!(setting()?["pool_id"] == "partners", "{}", setting()?);
    // Nothing is asked where nothing changes, or to switch it off.
    site.lab.exec(A, &["nft", "flush", "ruleset"])?;
    drop(listens);
    let reply = api.patch(&path, &on("partners"))?;
    ensure!(reply.status == 200, "{reply:?}");
    ensure!(api.patch(&path, r#"{"value":{"enabled":false}}"#)?.status == 200);
    // Now nobody listens there.
    ensure!(
        api.patch(&path, r#"{"value":{"enabled":true}}"#)?
            .outcome()?
            == (400, 1400)
    );
    site.gateway
        .text(["zone", "enable", ZONE_ID, "--pool", "second", "--force"])?;
    ensure!(setting()?["pool_id"] == "second", "{}", setting()?);
    Ok(())
}
