//! API-1, OBS-3 with other people's programs: the official Python SDK, pointed here by base URL and token alone, and
//! Prometheus' own checks of a scrape.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, Api, LISTEN, OTHER_ZONE},
    config::ZONE_ID,
    needs, netns,
    peer::{self, Caller, Peers},
    programs,
    standard::{A, BOUND, GATEWAY, POOL},
};
use serde_json::{Value, json};

/// A Python interpreter that has the package `cloudflare`, of a virtual environment for instance; without it, python3.
const PYTHON_VARIABLE: &str = "EGRESS_PYTHON";
/// Alert rules, and what they are to say to made-up figures.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/prometheus");
/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;

/// Reads, changes and reads again, as a program does that was written for the original; then what may not be.
const SCRIPT: &str = r#"
import json, os
import cloudflare

zone, other = os.environ["ZONE"], os.environ["OTHER_ZONE"]
client = cloudflare.Cloudflare(api_token=os.environ["TOKEN"], base_url=os.environ["BASE"])

def shown(setting):
    return {"id": setting.id, "editable": setting.editable, "value": setting.value.to_dict(),
            "modified": setting.modified_on is not None and setting.modified_on.year}

def refused(call):
    try:
        call()
    except cloudflare.APIStatusError as error:
        return {"is": type(error).__name__, "code": error.body["errors"][0]["code"] if isinstance(error.body, dict) else None}

settings = client.zones.settings
edit = lambda zone, value: settings.edit("aegis", zone_id=zone, value=value)
print(json.dumps({
    "type": type(settings.get("aegis", zone_id=zone)).__name__,
    "before": shown(settings.get("aegis", zone_id=zone)),
    "on": shown(edit(zone, {"enabled": True, "pool_id": "partners"})),
    "after": shown(settings.get("aegis", zone_id=zone)),
    "unknown pool": refused(lambda: edit(zone, {"enabled": True, "pool_id": "nope"})),
    "other zone": refused(lambda: edit(other, {"enabled": False})),
    "no token": refused(lambda: client.with_options(api_token="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
                        .zones.settings.get("aegis", zone_id=zone)),
}))
"#;

/// A Python that has the SDK.
fn python() -> Option<PathBuf> {
    let python = env::var_os(PYTHON_VARIABLE)
        .map_or_else(|| programs::find("python3"), |path| Some(path.into()))?;
    let has = Command::new(&python)
        .args(["-c", "import cloudflare"])
        .output()
        .is_ok_and(|output| output.status.success());
    has.then_some(python)
}

/// The official SDK reads and changes the setting, and the next connection follows.
#[test]
fn the_official_python_sdk_works_by_its_base_url() -> Result<()> {
    const TEST: &str = "the_official_python_sdk_works_by_its_base_url";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let Some(python) = python() else {
        needs::skip(
            TEST,
            &format!("no python3 with the package cloudflare; name one in {PYTHON_VARIABLE}"),
        );
        return Ok(());
    };
    let site = api::started()?;
    let api = Api::new(&site, "acme", &["zone-settings:write"])?;
    let mut command = site.node(GATEWAY).command(&python)?;
    command
        .args(["-c", SCRIPT])
        .env("TOKEN", api.token())
        .env("BASE", format!("http://{LISTEN}/client/v4"))
        .env("ZONE", ZONE_ID)
        .env("OTHER_ZONE", OTHER_ZONE);
    let said = netns::run(&mut command)?;
    println!("{}", said.trim());
    let said: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    ensure!(
        said["before"]
            == json!({ "id": "aegis", "editable": true, "value": { "enabled": false }, "modified": false }),
        "{said}"
    );
    let value = json!({ "enabled": true, "pool_id": "partners" });
    ensure!(
        said["on"]["value"] == value && said["after"] == said["on"],
        "{said}"
    );
    ensure!(said["on"]["modified"].as_u64() >= Some(2024), "{said}");
    ensure!(said["unknown pool"]["is"] == "BadRequestError", "{said}");
    ensure!(
        said["other zone"]["is"] == "PermissionDeniedError",
        "{said}"
    );
    ensure!(said["no token"]["is"] == "AuthenticationError", "{said}");
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let next = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
    ensure!(next.seen.ip() == POOL[0], "{next:?}");
    Ok(())
}

/// A real scrape passes Prometheus' own linter, and the alert rules ask for nothing that it does not say.
#[test]
fn promtool_accepts_a_scrape_and_the_alert_rules() -> Result<()> {
    const TEST: &str = "promtool_accepts_a_scrape_and_the_alert_rules";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "promtool"]) else {
        return Ok(());
    };
    let site = api::started()?;
    let scrape = Api::without_token(&site).get("/metrics")?.text;
    let promtool = programs::find("promtool").context("no promtool")?;
    let said = netns::feed(
        Command::new(&promtool).args(["check", "metrics"]),
        &plain(&scrape),
    )?;
    ensure!(said.trim().is_empty(), "{said}");

    let rules = Path::new(RULES).join("rules.yml");
    for (what, file) in [("check", "rules.yml"), ("test", "rules_test.yml")] {
        let mut command = Command::new(&promtool);
        command
            .args([what, "rules"])
            .arg(Path::new(RULES).join(file));
        netns::run(&mut command)?;
    }
    let rules = fs::read_to_string(rules)?;
    let wanted: BTreeSet<&str> = rules
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("egress_") && *word != "egress_ip")
        .collect();
    ensure!(wanted.len() >= 6, "{wanted:?}");
    for metric in wanted {
        let said = scrape.lines().any(|line| {
            line.starts_with(&format!("{metric}{{")) || line.starts_with(&format!("{metric} "))
        });
        ensure!(said, "no {metric} in\n{scrape}");
    }
    Ok(())
}

/// The older text format, which the linter reads: there a counter is described by its whole name.
fn plain(scrape: &str) -> String {
    let mut counters = BTreeSet::new();
    for line in scrape.lines() {
        if let Some(name) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.strip_suffix(" counter"))
        {
            counters.insert(name);
        }
    }
    let line = |line: &str| {
        let mut words: Vec<_> = line.splitn(4, ' ').collect();
        let total = words
            .get(2)
            .map(|name| format!("{name}_total"))
            .unwrap_or_default();
        if words[0] == "#" && words.get(2).is_some_and(|name| counters.contains(name)) {
            words[2] = &total;
        }
        words.join(" ") + "\n"
    };
    scrape.lines().map(line).collect()
}
