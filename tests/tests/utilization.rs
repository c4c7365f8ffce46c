//! OBS-1, OBS-2 with real connections: the documented query says what there was, whatever became of the daemon.

use std::{
    env, fs,
    net::UdpSocket,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, OTHER_ACCOUNT},
    needs,
    peer::{self, Caller, Peers},
    site::Site,
    standard::{A, B, BOUND, POOL},
    wait,
};
use serde_json::{Value, json};

/// The query of the original's documentation.
const DOCUMENTED: &str = include_str!("../../egress-userspace/src/api/graphql/documented.graphql");
/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;
const GRAPHQL: &str = "/client/v4/graphql";
/// What may take a look or two, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks the documented query for all time.
fn ask(api: &Api) -> Result<Value> {
    let query = DOCUMENTED
        .replace("<CLOUDFLARE_POP>", "lab")
        .replace("<YOUR_EGRESS_IP>", &POOL[0].to_string());
    let variables = json!({
        "accountTag": ACCOUNT,
        "datetimeStart": "2020-01-01T00:00:00Z",
        "datetimeEnd": "2100-01-01T00:00:00Z",
    });
    let body = json!({ "query": query, "variables": variables }).to_string();
    let reply = api.call(GRAPHQL, &["--json", &body])?;
    ensure!(reply.status == 200, "{reply:?}");
    reply.json()
}

/// The highest `kind` of an origin in one of the query's lists; in several, where five minutes ended meanwhile.
fn highest(answer: &Value, list: &str, kind: &str, origin: &str) -> f64 {
    let groups = answer["data"]["viewer"]["utilization"][0][list].as_array();
    let key = format!("lab {} {origin}", POOL[0]);
    groups
        .into_iter()
        .flatten()
        .filter(|group| group["dimensions"]["popUtilizationKey"] == *key)
        .filter_map(|group| group[kind]["utilization"].as_f64())
        .fold(0.0, f64::max)
}

/// Opens that many connections at once, and closes all but one.
fn crowd(site: &Site, at: &str, count: usize) -> Result<Peers> {
    let to = if at == A {
        site.at_a(PORT)
    } else {
        site.at_b(PORT)
    };
    let listener = peer::listen(&site.node(at), to)?;
    let node = site.node(BOUND);
    let mut all = (0..count)
        .map(|_| Peers::connect(&node, Caller::default(), &listener))
        .collect::<Result<Vec<_>>>()?;
    ensure!(all.iter().all(|one| one.seen.ip() == POOL[0]), "{all:?}");
    Ok(all.swap_remove(0))
}

#[test]
fn the_documented_query_tells_peaks_that_nobody_saw() -> Result<()> {
    const TEST: &str = "the_documented_query_tells_peaks_that_nobody_saw";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (mut site, api) = api::enabled(&["zone-settings:write", "account-analytics:read"])?;

    // In order: what was under way is kept.
    let (at_a, at_b) = (site.at_a(PORT).to_string(), site.at_b(PORT).to_string());
    let mut live = crowd(&site, A, 5)?;
    ensure!(site.gateway.terminate()?.success());
    site.gateway.restart()?;
    let answer = ask(&api)?;
    ensure!(answer["errors"].is_null(), "{answer}");
    for list in [
        "maxByPopUtilization",
        "filterPopUtilization",
        "filterIPUtilization",
    ] {
        let found = highest(&answer, list, "max", &at_a);
        ensure!(
            found == 0.0125,
            "{list}: 5 of 40,000, not {found}: {answer}"
        );
    }
    let none = &answer["data"]["viewer"]["utilization"][0]["filterOriginUtilization"];
    ensure!(*none == json!([]), "{answer}");

    // Killed: the data plane remembers the peak, and the next daemon fetches it.
    let other = crowd(&site, B, 7)?;
    site.gateway.kill()?;
    site.gateway.restart()?;
    // Ready is not yet: looked at.
    wait::until_true("7 of 40,000", LIMIT, || {
        Ok(highest(&ask(&api)?, "maxByPopUtilization", "max", &at_b) == 0.0175)
    })?;
    let answer = ask(&api)?;
    let found = highest(&answer, "maxByPopUtilization", "max", &at_a);
    ensure!(found == 0.0125, "still, not {found}: {answer}");
    let average = highest(&answer, "avgByPopUtilization", "avg", &at_a);
    ensure!(average > 0.0 && average < 0.0125, "{average}: {answer}");
    live.exchange()?;

    // A bucket begins without the peaks of before.
    let peaks = |site: &Site| -> Result<Vec<(u64, u64)>> {
        let origins = site.gateway.json(&["origins"])?;
        let all = origins.as_array().into_iter().flatten();
        let both = |one: &Value| Some((one["active"].as_u64()?, one["peak"].as_u64()?));
        Ok(all.filter_map(both).collect())
    };
    ensure!(site.gateway.terminate()?.success());
    // (1, 5) and (1, 7), unless five minutes ended meanwhile.
    println!("active and peak: {:?}", peaks(&site)?);
    fs::remove_file(site.lab.directory().join("utilization.db"))?;
    site.gateway.restart()?;
    wait::until_true("new peaks", LIMIT, || Ok(peaks(&site)? == [(1, 1), (1, 1)]))?;
    drop((live, other));

    // Who may not, and what may not be.
    let body = |account: &str| {
        let query = format!(
            "{{ viewer {{ accounts(filter: {{ accountTag: \"{account}\" }}) {{ accountTag }} }} }}"
        );
        json!({ "query": query }).to_string()
    };
    let blind = Api::new(&site, "acme", &["zone-settings:write"])?;
    let refused = blind.call(GRAPHQL, &["--json", &body(ACCOUNT)])?;
    ensure!(refused.outcome()? == (403, 10000), "{refused:?}");
    let foreign = api
        .call(GRAPHQL, &["--json", &body(OTHER_ACCOUNT)])?
        .json()?;
    let message = foreign["errors"][0]["message"].as_str().unwrap_or_default();
    ensure!(message.starts_with("not authorized"), "{foreign}");
    ensure!(foreign["data"].is_null(), "{foreign}");
    let bad = api.call(GRAPHQL, &["--json", "{query"])?;
    ensure!(bad.outcome()? == (400, 6007), "{bad:?}");
    let get = api.get(GRAPHQL)?;
    ensure!(get.outcome()? == (405, 7001), "{get:?}");
    Ok(())
}

/// Time that the recording thread was on a CPU, and its looks so far are paid with it.
fn on_cpu(pid: u32) -> Result<Duration> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == "utilization" {
            let text = fs::read_to_string(task.join("schedstat"))?;
            let nanos = text.split(' ').next().context("an empty schedstat")?;
            return Ok(Duration::from_nanos(nanos.parse()?));
        }
    }
    bail!("no thread records utilization")
}

#[test]
fn twenty_thousand_origins_cost_little() -> Result<()> {
    const TEST: &str = "twenty_thousand_origins_cost_little";
    const ORIGINS: u16 = 20_000;
    const SECONDS: u64 = 10;

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (site, _api) = api::enabled(&["zone-settings:write", "account-analytics:read"])?;
    let first = site.at_a(10_000);
    site.node(BOUND).run(move || -> Result<()> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for port in 0..ORIGINS {
            socket.send_to(b"x", (first.ip(), first.port() + port))?;
        }
        Ok(())
    })??;
    let count = || -> Result<usize> {
        let origins = site.gateway.json(&["origins"])?;
        Ok(origins.as_array().map_or(0, Vec::len))
    };
    let found = count()?;
    ensure!(found >= usize::from(ORIGINS) * 99 / 100, "{found} origins");

    let pid = site.gateway.pid().context("no daemon")?;
    let (before, begun) = (on_cpu(pid)?, Instant::now());
    wait::until_true("some looks at the counts", Duration::from_secs(60), || {
        Ok(begun.elapsed() >= Duration::from_secs(SECONDS))
    })?;
    let used = on_cpu(pid)? - before;
    println!(
        "{found} origins for {:?}: {used:?} of a CPU, {:.2} %",
        begun.elapsed(),
        used.as_secs_f64() * 100.0 / begun.elapsed().as_secs_f64()
    );
    // Far above what was measured: this is about a mistake, not about a machine.
    ensure!(used < begun.elapsed() / 2, "{used:?}");
    Ok(())
}

/// Seconds since 1970.
fn seconds() -> Result<f64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64())
}

/// Waits until this time.
fn at(time: f64) -> Result<()> {
    wait::until_true("the next step", Duration::from_secs(400), || {
        Ok(seconds()? >= time)
    })
}

/// Five real minutes of known connections, with a SIGKILL among them: the maximum exactly, the average within 1 %.
/// It takes up to ten minutes, and runs where `EGRESS_UTILIZATION` is set.
#[test]
fn a_scripted_load_is_told_as_it_was() -> Result<()> {
    const TEST: &str = "a_scripted_load_is_told_as_it_was";

    if env::var_os("EGRESS_UTILIZATION").is_none() {
        needs::skip(TEST, "it takes up to ten minutes; set EGRESS_UTILIZATION=1");
        return Ok(());
    }
    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (mut site, api) = api::enabled(&["zone-settings:write", "account-analytics:read"])?;
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let node = site.node(BOUND);
    let mut live = Vec::new();
    let mut sum = 0.0;
    // To this many connections, each from or to the middle of the time that its step took.
    let mut become_ = |count: usize, end: f64| -> Result<()> {
        while live.len() < count {
            let begun = seconds()?;
            live.push(Peers::connect(&node, Caller::default(), &listener)?);
            sum += end - f64::midpoint(begun, seconds()?);
        }
        while live.len() > count {
            let begun = seconds()?;
            drop(live.pop());
            sum -= end - f64::midpoint(begun, seconds()?);
        }
        Ok(())
    };
    let start = (seconds()? / 300.0).ceil() * 300.0;
    let end = start + 300.0;
    at(start + 20.0)?;
    become_(10, end)?;
    at(start + 80.0)?;
    become_(40, end)?;
    // A peak between two looks, right before the daemon dies.
    at(start + 140.3)?;
    become_(100, end)?;
    become_(40, end)?;
    site.gateway.kill()?;
    at(start + 145.0)?;
    site.gateway.restart()?;
    at(start + 200.0)?;
    become_(15, end)?;
    at(end + 2.0)?;

    let query = format!(
        "{{ viewer {{ accounts(filter: {{ accountTag: \"{ACCOUNT}\" }}) {{ n: aegisIpUtilizationAdaptiveGroups(orderBy: [datetimeFiveMinutes_ASC]) {{ \
           avg {{ utilization }} max {{ utilization }} dimensions {{ datetimeFiveMinutes }} }} }} }} }}"
    );
    let answer = api
        .call(GRAPHQL, &["--json", &json!({ "query": query }).to_string()])?
        .json()?;
    let bucket = &answer["data"]["viewer"]["accounts"][0]["n"][0];
    let expected = sum / 300.0 / 400.0;
    let average = bucket["avg"]["utilization"].as_f64().unwrap_or_default();
    println!("{bucket}: {expected:.4} expected");
    ensure!(
        bucket["max"]["utilization"] == 0.25,
        "100 of 40,000: {answer}"
    );
    ensure!(
        (average - expected).abs() <= expected / 100.0,
        "{average}, not {expected}: {answer}"
    );
    drop(live);
    Ok(())
}
