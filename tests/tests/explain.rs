//! OBS-5: `egress why` names rule, pool, candidates and outcome, and is right about what then happens.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    config::{POOL_NAME, Resources, Server, ZONE_NAME},
    needs,
    origin::ECHO_PORT,
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{
        BOUND, BOUND_ADDRESS, BOUND_ADDRESS_V6, GATEWAY, Options, POOL, SECOND_UPLINK,
        UNBOUND_ADDRESS, UPLINK,
    },
};
use serde_json::Value;

const CAP: usize = 5;
/// For what is not answered.
const SOON: Duration = Duration::from_millis(500);

fn why(site: &Site, source: &str, destination: &str) -> Result<Value> {
    site.gateway.json(&["why", source, destination])
}

fn candidates(answer: &Value) -> Result<Vec<(String, String)>> {
    let list = answer["candidates"]
        .as_array()
        .with_context(|| format!("no candidates in {answer}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(list
        .iter()
        .map(|one| (text(&one["egress_ip"]), text(&one["verdict"])))
        .collect())
}

#[test]
fn admitted_refused_unbound_and_live() -> Result<()> {
    const TEST: &str = "admitted_refused_unbound_and_live";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let resources = Resources {
        connections_per_origin: CAP as u32,
        ..Resources::default()
    };
    let site = Site::start(&Plan {
        resources,
        ..Plan::default()
    })?;
    let origin = site.at_a(ECHO_PORT);
    let (bound, unbound) = (BOUND_ADDRESS.to_string(), UNBOUND_ADDRESS.to_string());

    let answer = why(&site, &bound, &origin.to_string())?;
    ensure!(answer["outcome"] == "admitted", "{answer}");
    ensure!(
        answer["zone"] == ZONE_NAME && answer["pool"] == POOL_NAME,
        "{answer}"
    );
    ensure!(
        answer["rule"]["by"] == "source" && answer["rule"]["selector"] == "10.1.0.0/16",
        "{answer}"
    );
    let found = candidates(&answer)?;
    ensure!(
        found.len() == POOL.len() && found.iter().all(|(_, verdict)| verdict == "free"),
        "{answer}"
    );
    let promised = answer["egress_ip"]
        .as_str()
        .context("no egress IP")?
        .to_owned();

    let mut clients = site.clients(BOUND, 1)?;
    let first = clients.udp(origin, 1, CONNECT_LIMIT, false)?;
    ensure!(
        first.seen.contains_key(&promised),
        "promised {promised}, seen {first:?}"
    );
    all_succeeded(&clients.open(origin, CAP, CONNECT_LIMIT)?, CAP)?;
    // The promised address is full, so the other one is next (CAP-4).
    let answer = why(&site, &bound, &origin.to_string())?;
    ensure!(
        answer["outcome"] == "admitted" && answer["egress_ip"] != promised.as_str(),
        "{answer}"
    );
    ensure!(
        candidates(&answer)?.contains(&(promised, "full".to_owned())),
        "{answer}"
    );
    all_succeeded(&clients.open(origin, CAP, CONNECT_LIMIT)?, CAP)?;

    let answer = why(&site, &bound, &origin.to_string())?;
    ensure!(
        answer["outcome"] == "refused" && answer["reason"] == "cap_reached",
        "{answer}"
    );
    ensure!(clients.open(origin, 1, CONNECT_LIMIT)?.refusals() == 1);

    let flows = site.gateway.text(["flows", "--json"])?;
    let flow: Value = serde_json::from_str(
        flows
            .lines()
            .find(|line| line.contains("\"tcp\""))
            .context("no TCP flow")?,
    )?;
    let inside = flow["inside"].as_str().context("a flow without inside")?;
    let answer = why(&site, inside, &origin.to_string())?;
    ensure!(
        answer["outcome"] == "live-flow" && answer["flow"]["egress"] == flow["egress"],
        "{answer}"
    );

    let answer = why(&site, &unbound, &origin.to_string())?;
    ensure!(
        answer["outcome"] == "default-egress" && answer["zone"].is_null(),
        "{answer}"
    );
    // For people, too.
    let text = site.gateway.text(["why", &bound, &origin.to_string()])?;
    ensure!(
        text.contains(ZONE_NAME) && text.contains(POOL_NAME),
        "{text}"
    );
    Ok(())
}

/// What rules and counts promise may not be what happens: routes, hooks and tables have their say.
#[test]
fn routes_hooks_and_tables_count() -> Result<()> {
    const TEST: &str = "routes_hooks_and_tables_count";
    const FLOWS: usize = 1_000;

    let Some(_turn) = needs::turn(TEST, &["nft", "bpftool"]) else {
        return Ok(());
    };
    let mut site = Site::start(&Plan {
        network: Options {
            second_uplink: true,
            ..Options::default()
        },
        server: Server {
            max_flows: FLOWS as u32,
            dataplane: "attach = \"tcx\"".to_owned(),
            ..Server::default()
        },
        ..Plan::default()
    })?;
    let (origin, other) = (site.at_a(ECHO_PORT), site.at_b(ECHO_PORT));
    let (bound, unbound) = (BOUND_ADDRESS.to_string(), UNBOUND_ADDRESS.to_string());
    let ask = |site: &Site| why(site, &bound, &origin.to_string());
    let route = |site: &Site, change: &str| {
        let words = format!("ip route {change}");
        site.lab
            .exec(GATEWAY, &words.split(' ').collect::<Vec<_>>())
    };
    let mut clients = site.clients(BOUND, 1)?;

    let answer = ask(&site)?;
    ensure!(
        answer["outcome"] == "admitted"
            && answer["exit"]["kind"] == "uplink"
            && answer["exit"]["interface"] == UPLINK,
        "{answer}"
    );
    let answer = why(&site, &bound, &format!("{UNBOUND_ADDRESS}:80"))?;
    ensure!(answer["outcome"] == "stays-inside", "{answer}");

    // No route: it is not even tried.
    route(&site, &format!("add unreachable {}/32", origin.ip()))?;
    let answer = ask(&site)?;
    ensure!(answer["outcome"] == "no-route", "{answer}");
    ensure!(clients.open(origin, 1, SOON)?.succeeded == 0);
    route(&site, &format!("del unreachable {}/32", origin.ip()))?;

    // By an interface that is no uplink the guard drops it; whoever is not bound may leave there.
    route(
        &site,
        &format!("add {}/32 dev {SECOND_UPLINK}", origin.ip()),
    )?;
    let answer = ask(&site)?;
    ensure!(
        answer["outcome"] == "refused"
            && answer["reason"] == "hook_missing"
            && answer["exit"]["kind"] == "elsewhere",
        "{answer}"
    );
    let free = why(&site, &unbound, &origin.to_string())?;
    ensure!(free["outcome"] == "default-egress", "{free}");
    ensure!(clients.open(origin, 1, SOON)?.succeeded == 0);
    route(
        &site,
        &format!("del {}/32 dev {SECOND_UPLINK}", origin.ip()),
    )?;
    all_succeeded(&clients.open(origin, 1, CONNECT_LIMIT)?, 1)?;

    what_others_did_to_the_host(&site, ask)?;

    // A full table refuses (CAP-6).
    let rest = FLOWS - 1;
    all_succeeded(&clients.open(other, rest, CONNECT_LIMIT)?, rest)?;
    let answer = ask(&site)?;
    ensure!(
        answer["outcome"] == "refused" && answer["reason"] == "table_full",
        "{answer}"
    );
    ensure!(clients.open(origin, 1, CONNECT_LIMIT)?.refusals() == 1);
    drop(clients);

    // A program that somebody took off, and nobody is there to put it back.
    site.gateway.kill()?;
    site.gateway.remove_program(UPLINK, "uplink_egress")?;
    let answer = ask(&site)?;
    ensure!(
        answer["outcome"] == "refused"
            && answer["reason"] == "hook_missing"
            && answer["exit"]["missing"][0] == "uplink_egress",
        "{answer}"
    );
    Ok(())
}

/// An egress IP as the host's own, and an uplink that is a bridge's port: all programs are in place, and `status` and `why`
/// say what is wrong.
fn what_others_did_to_the_host(site: &Site, ask: impl Fn(&Site) -> Result<Value>) -> Result<()> {
    let gateway = site.node(GATEWAY);
    let status = || -> Result<(bool, Value)> {
        let output = site.gateway.egress(["status", "--json"])?;
        Ok((
            output.status.success(),
            serde_json::from_slice(&output.stdout)?,
        ))
    };
    let says = |status: &Value, kind: &str, words: &[&str]| {
        let trouble = &status["troubles"][0];
        let text = format!("{} {}", trouble["text"], trouble["remedy"]);
        ensure!(
            trouble["kind"] == kind && words.iter().all(|word| text.contains(word)),
            "{status}"
        );
        Ok(())
    };
    let own = POOL[0].to_string();
    gateway.ip(&format!("address add {own}/32 dev lo"))?;
    let (in_place, told) = status()?;
    says(&told, "own_address", &[&own, "interface lo", "remove"])?;
    ensure!(in_place && told["ready"] == true, "{told}");
    let text = site.gateway.text(["status"])?;
    ensure!(text.contains("TROUBLE     egress IP"), "{text}");
    gateway.ip(&format!("address del {own}/32 dev lo"))?;

    gateway.ip("link add lab-bridge type bridge")?;
    gateway.ip(&format!("link set {UPLINK} master lab-bridge"))?;
    let (in_place, told) = status()?;
    says(
        &told,
        "interface",
        &[UPLINK, "bridge lab-bridge", "instead"],
    )?;
    ensure!(!in_place && told["ready"] == false, "{told}");
    let answer = ask(site)?;
    let text = answer["text"].as_str().unwrap_or_default();
    ensure!(
        answer["reason"] == "hook_missing" && text.contains("lab-bridge"),
        "{answer}"
    );
    gateway.ip("link del lab-bridge")?;
    site.gateway.wait_in_place(CONNECT_LIMIT)?;
    let (_, told) = status()?;
    ensure!(told["troubles"] == serde_json::json!([]), "{told}");
    Ok(())
}

/// Nobody is reached by an egress IP from inside, and what is no host's address is forwarded to nobody.
#[test]
fn what_no_host_is_reached_by_is_told() -> Result<()> {
    const TEST: &str = "what_no_host_is_reached_by_is_told";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let site = Site::start(&Plan {
        resources: Resources::both_families(),
        ..Plan::default()
    })?;
    let [bound, unbound] = [BOUND_ADDRESS, UNBOUND_ADDRESS].map(|address| address.to_string());
    let egress_ip = POOL[1].to_string();
    for source in [&bound, &unbound] {
        for (to, outcome, says) in [
            ("224.0.0.251", "no-route", "multicast"),
            ("239.1.2.3", "no-route", "multicast"),
            ("224.0.0.1", "no-route", "multicast"),
            ("127.0.0.1", "no-route", "no packet from elsewhere"),
            ("0.0.0.0", "no-route", "no packet from elsewhere"),
            ("255.255.255.255", "stays-inside", "this host"),
            ("203.0.113.255", "stays-inside", "this host"),
            (&egress_ip, "refused", "nothing is hairpinned"),
        ] {
            for protocol in ["tcp", "udp", "icmp"] {
                let port = if protocol == "icmp" { "" } else { ":80" };
                let question = [
                    "why",
                    source,
                    &format!("{to}{port}"),
                    "--protocol",
                    protocol,
                ];
                let answer = site.gateway.json(&question)?;
                ensure!(
                    answer["outcome"] == outcome
                        && answer["text"]
                            .as_str()
                            .is_some_and(|text| text.contains(says)),
                    "{question:?}: {answer}"
                );
            }
        }
    }
    let sctp = ["why", &bound, "198.51.100.10:80", "--protocol"];
    for protocol in ["sctp", "132", "99"] {
        let answer = site.gateway.json(&[&sctp[..], &[protocol]].concat())?;
        ensure!(answer["reason"] == "protocol", "{protocol}: {answer}");
    }
    let source = BOUND_ADDRESS_V6.to_string();
    for to in ["ff02::1", "ff0e::1"] {
        let answer = why(&site, &source, &format!("[{to}]:80"))?;
        ensure!(
            answer["outcome"] == "no-route" || answer["reason"] == "multicast",
            "{to}: {answer}"
        );
    }
    // And so it is.
    let mut clients = site.clients(BOUND, 1)?;
    let hairpin = SocketAddr::new(POOL[1].into(), ECHO_PORT);
    ensure!(clients.open(hairpin, 1, SOON)?.succeeded == 0);
    Ok(())
}
