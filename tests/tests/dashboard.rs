//! OBS-3: every query of the Grafana dashboard, and every rule, has an answer from a real Prometheus that scrapes a real
//! gateway under a little traffic.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, Api, LISTEN},
    needs, netns,
    peer::{self, Caller, Peers},
    service::{Port, Service},
    site::Site,
    standard::{A, BOUND, GATEWAY},
    wait,
};
use serde_json::Value;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/prometheus");
/// Where Prometheus listens in the gateway's namespace.
const PROMETHEUS: u16 = 9_090;
/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// How long Prometheus may take to have looked often enough.
const LIMIT: Duration = Duration::from_secs(300);
/// Connections are opened all the while, so that something grows, up to this many.
const ENOUGH: usize = 300;

fn dashboard() -> Result<Value> {
    let path = Path::new(FOLDER).join("dashboard.json");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

/// The dashboard's queries, for all servers.
fn queries(dashboard: &Value) -> BTreeSet<String> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    list(&dashboard["panels"])
        .iter()
        .flat_map(|panel| list(&panel["targets"]))
        .filter_map(|target| Some(target["expr"].as_str()?.replace("$instance", ".*")))
        .collect()
}

/// What Grafana needs to show it, and that nothing is covered by something else.
#[test]
fn panels_are_whole_and_beside_each_other() -> Result<()> {
    let dashboard = dashboard()?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        let title = panel["title"].as_str().context("a panel without title")?;
        ensure!(
            ids.insert(panel["id"].as_u64()),
            "{title}: its id is there twice"
        );
        ensure!(
            panel["datasource"]["uid"] == "${datasource}",
            "{title}: a data source of one Grafana alone"
        );
        let place = |key: &str| {
            panel["gridPos"][key]
                .as_u64()
                .context("a panel without place")
        };
        let (x, y, w, h) = (place("x")?, place("y")?, place("w")?, place("h")?);
        ensure!(x + w <= 24, "{title} is beyond the edge");
        for column in x..x + w {
            for row in y..y + h {
                ensure!(taken.insert((column, row)), "{title} covers another panel");
            }
        }
    }
    let queries = queries(&dashboard);
    ensure!(queries.len() >= panels.len(), "{queries:?}");
    ensure!(
        queries
            .iter()
            .all(|query| query.contains("instance=~\".*\"")),
        "a query that does not go by the chosen server: {queries:?}"
    );
    Ok(())
}

/// Asks Prometheus; returns the answer's data.
fn ask(site: &Site, path: &str, arguments: &[&str]) -> Result<Value> {
    let mut command = site.node(GATEWAY).command("curl")?;
    command
        .args(["--silent", "--show-error", "--max-time", "60", "--get"])
        .arg(format!("http://127.0.0.1:{PROMETHEUS}/api/v1/{path}"))
        .args(arguments);
    let answer: Value = serde_json::from_str(&netns::run(&mut command)?)?;
    ensure!(answer["status"] == "success", "{answer}");
    Ok(answer["data"].clone())
}

/// Whether a query has any answer that is a number.
fn answers(site: &Site, query: &str) -> Result<bool> {
    let found = ask(
        site,
        "query",
        &["--data-urlencode", &format!("query={query}")],
    )?;
    let series = found["result"].as_array().context("no result")?;
    Ok(series.iter().any(|one| {
        one["value"][1]
            .as_str()
            .and_then(|value| value.parse::<f64>().ok())
            .is_some_and(f64::is_finite)
    }))
}

#[test]
fn every_query_and_rule_has_an_answer_from_a_gateway_with_traffic() -> Result<()> {
    const TEST: &str = "every_query_and_rule_has_an_answer_from_a_gateway_with_traffic";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "prometheus"]) else {
        return Ok(());
    };
    let (site, _api) = api::enabled(&["zone-settings:write"])?;

    // All that a scrape tells is on the dashboard.
    let mut unseen = queries(&dashboard()?);
    let scrape = Api::without_token(&site).get("/metrics")?.text;
    for line in scrape.lines() {
        if let Some((metric, _)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let shown = unseen.iter().any(|query| query.contains(metric));
            ensure!(shown, "{metric} is on no panel");
        }
    }

    let directory = site.lab.directory().join("prometheus");
    fs::create_dir_all(&directory)?;
    let rules = Path::new(FOLDER).join("rules.yml");
    fs::write(
        directory.join("prometheus.yml"),
        format!(
            "global: {{scrape_interval: 5s, scrape_timeout: 5s, evaluation_interval: 5s}}\nrule_files: ['{}']\n\
             scrape_configs:\n  - job_name: egress\n    static_configs: [{{targets: ['{LISTEN}']}}]\n",
            rules.display()
        ),
    )?;
    let listen = format!("--web.listen-address=127.0.0.1:{PROMETHEUS}");
    let prometheus = Service::start(
        &site.node(GATEWAY),
        &directory,
        &[
            "prometheus",
            "--config.file=prometheus.yml",
            "--storage.tsdb.path=data",
            &listen,
        ],
        &[Port::Tcp(PROMETHEUS)],
    )?;

    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let node = site.node(BOUND);
    let mut live = Vec::new();
    let answered = wait::until_true("an answer to every query", LIMIT, || {
        if live.len() < ENOUGH {
            live.push(Peers::connect(&node, Caller::default(), &listener)?);
        }
        let mut waiting = BTreeSet::new();
        for query in &unseen {
            if !answers(&site, query)? {
                waiting.insert(query.clone());
            }
        }
        unseen = waiting;
        Ok(unseen.is_empty())
    });
    answered.with_context(|| format!("without answer: {unseen:?}\n{}", prometheus.said()))?;

    // Rules have been evaluated, and none failed.
    let state = || -> Result<Vec<(String, String)>> {
        let data = ask(&site, "rules", &[])?;
        let groups = data["groups"].as_array().cloned().unwrap_or_default();
        let rules = groups
            .iter()
            .flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default());
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(rules
            .map(|rule| (text(&rule["name"]), text(&rule["health"])))
            .collect())
    };
    wait::until_true("the rules' evaluation", LIMIT, || {
        let rules = state()?;
        Ok(rules.len() >= 7 && rules.iter().all(|(_, health)| health == "ok"))
    })
    .with_context(|| format!("{:?}\n{}", state(), prometheus.said()))?;
    drop(live);
    Ok(())
}
