//! CLU-1, OBS-2: each server keeps its own utilization, and any server's answer covers what all of them have; what it lacks
//! it says. A data center's maximum is that of the sums of its servers' seconds (OBS-1).

use std::{
    fs,
    net::TcpListener,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{ACCOUNT, Api, LISTEN},
    certificate,
    gateway::Gateway,
    needs,
    pair::{ORIGIN, Pair, SHARED, Side, Underlay},
    peer::{self, Caller, Peers},
    wait,
};
use serde_json::{Value, json};

/// The query of the original's documentation.
const DOCUMENTED: &str = include_str!("../../egress-userspace/src/api/graphql/documented.graphql");
/// The ports at which the test is the origin: for the first server's clients, and for the second's.
const PORTS: [u16; 2] = [9_000, 9_001];
/// How many connections each server has.
const COUNTS: [usize; 2] = [3, 5];
/// The port at which both servers have those, at different times.
const CROWDED: u16 = 9_002;
/// What all servers of the data center may have to one origin.
const WHOLE: f64 = 40_000.0;
/// What may take a look or two, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// Starts a daemon with the API, and this certificate if there is one.
fn start(gateway: &mut Gateway, base: &str, certificate: Option<&Path>) -> Result<()> {
    let cluster = certificate.map_or_else(String::new, |path| {
        let [certificate, key] = ["crt", "key"].map(|end| path.with_extension(end));
        format!(
            "[cluster]\ncertificate = \"{}\"\nkey = \"{}\"\n",
            certificate.display(),
            key.display()
        )
    });
    let text = format!("{base}\n[api]\nlisten = \"{LISTEN}\"\n{cluster}");
    fs::write(gateway.files().config(), text)?;
    if gateway.is_running()? {
        gateway.kill()?;
    }
    gateway.restart()
}

fn ask(api: &Api) -> Result<Value> {
    let query = DOCUMENTED
        .replace("<CLOUDFLARE_POP>", "lab")
        .replace("<YOUR_EGRESS_IP>", &SHARED.to_string());
    let variables = json!({
        "accountTag": ACCOUNT,
        "datetimeStart": "2020-01-01T00:00:00Z",
        "datetimeEnd": "2100-01-01T00:00:00Z",
    });
    let body = json!({ "query": query, "variables": variables }).to_string();
    let reply = api.call("/client/v4/graphql", &["--json", &body])?;
    ensure!(reply.status == 200, "{reply:?}");
    reply.json()
}

/// The highest maximum that an answer has of each origin, percent; 0 where it has none.
fn told(pair: &Pair, answer: &Value) -> [f64; 2] {
    PORTS.map(|port| highest(pair, answer, port))
}

/// The highest maximum that an answer has of the origin at a port.
fn highest(pair: &Pair, answer: &Value, port: u16) -> f64 {
    let groups = answer["data"]["viewer"]["utilization"][0]["maxByPopUtilization"].as_array();
    let key = format!("lab {SHARED} {}", pair.at(port));
    groups
        .into_iter()
        .flatten()
        .filter(|group| group["dimensions"]["popUtilizationKey"] == *key)
        .filter_map(|group| group["max"]["utilization"].as_f64())
        .fold(0.0, f64::max)
}

/// That many connections of all that there may be, in percent to four decimals.
fn percent(count: usize) -> f64 {
    (count as f64 * 1_000_000.0 / WHOLE).round() / 10_000.0
}

/// What a server has of the origin at a port.
fn origin(pair: &Pair, side: Side, port: u16) -> Result<Value> {
    let origins = pair.gateway(side).json(&["origins"])?;
    let wanted = pair.at(port).to_string();
    let mut all = origins.as_array().context("a list")?.iter();
    Ok(all
        .find(|one| one["origin"] == *wanted)
        .cloned()
        .unwrap_or_default())
}

/// Seconds since 1970.
fn seconds() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

/// Opens so many connections at once to the origin that both use, and closes all but one; returns in a later second.
fn crowd(pair: &Pair, side: Side, listener: &TcpListener, count: usize) -> Result<Peers> {
    pair.replies_to(side)?;
    let node = pair.node(side.client());
    let mut all = (0..count)
        .map(|_| Peers::connect(&node, Caller::default(), listener))
        .collect::<Result<Vec<_>>>()?;
    let left = all.swap_remove(0);
    drop(all);
    wait::until_true("one that is left", LIMIT, || {
        Ok(origin(pair, side, CROWDED)?["active"] == 1)
    })?;
    let second = seconds()?;
    wait::until_true("another second", LIMIT, || Ok(seconds()? > second + 1))?;
    Ok(left)
}

#[test]
fn any_servers_answer_covers_all_of_them_or_says_whom_it_lacks() -> Result<()> {
    const TEST: &str = "any_servers_answer_covers_all_of_them_or_says_whom_it_lacks";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "openssl"]) else {
        return Ok(());
    };
    let mut pair = Pair::start(Underlay::V4)?;
    let directory = pair.lab.directory().to_owned();
    let (ours, others) = (directory.join("ours"), directory.join("others"));
    certificate::make(&directory, "ours", None)?;
    certificate::make(&directory, "others", None)?;
    let mut bases = Vec::new();
    for gateway in &mut pair.gateways {
        let base = fs::read_to_string(gateway.files().config())?;
        start(gateway, &base, Some(&ours))?;
        bases.push(base);
    }

    // By the first, to the origin that both use: three at once, then one.
    let crowded = peer::listen(&pair.node(ORIGIN), pair.at(CROWDED))?;
    let first = crowd(&pair, Side::One, &crowded, COUNTS[0])?;
    // Connections by both, each to an origin of its own.
    let mut live = Vec::new();
    let mut expected = [0.0; 2];
    for (at, side) in Side::ALL.into_iter().enumerate() {
        pair.replies_to(side)?;
        let listener = peer::listen(&pair.node(ORIGIN), pair.at(PORTS[at]))?;
        for _ in 0..COUNTS[at] {
            let node = pair.node(side.client());
            live.push(Peers::connect(&node, Caller::default(), &listener)?);
        }
        let one = origin(&pair, side, PORTS[at])?;
        let capacity = one["capacity"].as_f64();
        let capacity = capacity.with_context(|| one.to_string())?;
        ensure!(capacity < WHOLE, "a part of the address: {one}");
        // Of what both together may have.
        expected[at] = percent(COUNTS[at]);
    }
    let apis = Side::ALL.map(|side| {
        let token = [
            "token",
            "create",
            "--account",
            "acme",
            "--permission",
            "account-analytics:read",
        ];
        let token = pair.gateway(side).text(token)?;
        anyhow::Ok(Api::on(pair.node(side.server()), token.trim()))
    });
    let [one, two] = apis;
    let (one, two) = (one?, two?);
    for api in [&one, &two] {
        wait::until_true("what both servers have", LIMIT, || {
            Ok(told(&pair, &ask(api)?) == expected)
        })
        .with_context(|| format!("{expected:?}: {:?}", ask(api)))?;
        let whole = ask(api)?;
        ensure!(
            whole.get("extensions").is_none() && whole["errors"].is_null(),
            "{whole}"
        );
    }

    // By now both have been looked at since. By the second: five at once, then one, while the first has one.
    let second = crowd(&pair, Side::Two, &crowded, COUNTS[1])?;

    // One that is away, one of another cluster, one that asks and answers nobody: named, and nobody else is.
    let lacks = |pair: &Pair, api: &Api, server: &str, reason: &str| -> Result<()> {
        let here = usize::from(server == "lab-s1");
        let mut last = Value::Null;
        wait::until_true("an answer that lacks a server", LIMIT, || {
            last = ask(api)?;
            let missing = &last["extensions"]["missing"];
            let told = told(pair, &last);
            Ok(missing.as_array().map(Vec::len) == Some(1)
                && missing[0]["server"] == server
                && missing[0]["data_center"] == "lab"
                && missing[0]["reason"].to_string().contains(reason)
                && told[here] == expected[here]
                && told[1 - here] == 0.0)
        })
        .with_context(|| format!("{reason}: {last}"))
    };
    pair.gateways[1].kill()?;
    lacks(&pair, &one, "lab-s2", "cannot be reached")?;
    for (certificate, reason) in [
        (Some(others.as_path()), "no answer"),
        (None, "cannot be reached"),
    ] {
        start(&mut pair.gateways[1], &bases[1], certificate)?;
        lacks(&pair, &one, "lab-s2", reason)?;
    }
    lacks(&pair, &two, "lab-s1", "[cluster]")?;
    start(&mut pair.gateways[1], &bases[1], Some(&ours))?;
    wait::until_true("all again", LIMIT, || {
        let answer = ask(&one)?;
        Ok(answer.get("extensions").is_none() && told(&pair, &answer) == expected)
    })?;
    // Neither the fuller one's nor the sum of the peaks, though the second was killed meanwhile.
    let mut last = Value::Null;
    wait::until_true("the highest of the sums of each second", LIMIT, || {
        last = ask(&one)?;
        Ok(highest(&pair, &last, CROWDED) == percent(COUNTS[1] + 1))
    })
    .with_context(|| format!("{}: {last}", percent(COUNTS[1] + 1)))?;
    drop((first, second));
    for peers in &mut live[COUNTS[0]..] {
        peers.exchange()?;
    }
    Ok(())
}
