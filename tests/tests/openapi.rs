//! API-3: the OpenAPI document that the daemon serves is true. Schemathesis reads it, makes requests of it, good and bad
//! ones, and compares every answer with what the document says.

use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, LISTEN},
    config::ZONE_ID,
    libraries, needs,
    standard::GATEWAY,
};

/// Repeats a run; another one, to look further, is set by `EGRESS_SEED`.
const SEED: &str = "20260";
/// Cases that are made up for each operation, besides those that cover its schema. `EGRESS_CASES` sets more.
const CASES: &str = "10";
/// All that a token may.
const PERMISSIONS: [&str; 4] = [
    "zone-settings:write",
    "account-egress:write",
    "account-analytics:read",
    "metrics:read",
];
/// No schema can say which pools and addresses there are, nor what an expression is: what names one that is not there, or
/// is none, may be refused with 400, though the document allows it.
const NAMES_OTHERS: [&str; 6] = [
    "editZoneSetting",
    "editZoneSettings",
    "drain",
    "createRule",
    "putRule",
    "patchRule",
];

/// Most requests are for the account and the zone that there are: what is said about others is said early.
fn config() -> String {
    format!(
        r#"
[dictionaries.accounts]
values = ["{ACCOUNT}"]
[dictionaries.zones]
values = ["{ZONE_ID}"]
[dictionaries.pools]
values = ["partners", "second"]

[parameters]
"path.account_id" = {{ dictionary = "accounts", probability = 0.9 }}
"path.zone_id" = {{ dictionary = "zones", probability = 0.9 }}
"path.pool_id" = {{ dictionary = "pools", probability = 0.5 }}
"path.subject" = {{ dictionary = "pools", probability = 0.5 }}

[[operations]]
include-operation-id = {NAMES_OTHERS:?}
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404]
"#
    )
}

#[test]
fn schemathesis_finds_nothing_that_the_document_does_not_say() -> Result<()> {
    const TEST: &str = "schemathesis_finds_nothing_that_the_document_does_not_say";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let Some(python) = libraries::python("schemathesis") else {
        needs::skip(
            TEST,
            &format!(
                "no python3 with the package schemathesis; name one in {}",
                libraries::PYTHON
            ),
        );
        return Ok(());
    };
    let setting = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let (seed, cases) = (setting("EGRESS_SEED", SEED), setting("EGRESS_CASES", CASES));
    let mut site = api::prepare(&format!(
        "[api]\nlisten = \"{LISTEN}\"\nrequests_per_five_minutes = 1000000"
    ))?;
    site.gateway.restart()?;
    let api = Api::new(&site, "acme", &PERMISSIONS)?;
    let directory = site.lab.directory();
    let config_path = directory.join("schemathesis.toml");
    fs::write(&config_path, config())
        .with_context(|| format!("writing {}", config_path.display()))?;
    let mut command = site.node(GATEWAY).command(&python)?;
    command
        .current_dir(&directory)
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(&config_path)
        .args(["run", &format!("http://{LISTEN}/openapi.json")])
        .args([
            "--header",
            &format!("Authorization: Bearer {}", api.token()),
        ])
        .args(["--seed", &seed, "--max-examples", &cases])
        .args(["--generation-database", "none", "--checks", "all"])
        .args(["--continue-on-failure", "--no-color"])
        // A busy machine is no finding.
        .args(["--suppress-health-check", "all"])
        .args(["--request-timeout", "120"]);
    println!("schemathesis: EGRESS_SEED={seed} EGRESS_CASES={cases}");
    let output = command.output().context("cannot run schemathesis")?;
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}", output.status);
    let found = site.gateway.json(&["status"])?;
    ensure!(found["ready"] == true, "{found}");
    Ok(())
}
