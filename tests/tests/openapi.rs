//! API-3: the OpenAPI document that the daemon serves is true. Schemathesis reads it, makes requests of it, good and bad
//! ones, and compares every answer with what the document says.

use std::{env, fs};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, ACCOUNT, Api, LISTEN, OTHER_ACCOUNT},
    config::ZONE_ID,
    libraries, needs,
    standard::GATEWAY,
};
use serde_json::{Value, json};

/// Repeats a run; another one, to look further, is set by `EGRESS_SEED`.
const SEED: &str = "20260";
/// Cases that are made up for each operation, besides those that cover its schema. `EGRESS_CASES` sets more.
const CASES: &str = "5";
/// All that a token may.
const PERMISSIONS: [&str; 5] = [
    "zone-settings:write",
    "account-egress:write",
    "account-addresses:write",
    "account-analytics:read",
    "metrics:read",
];
/// No schema can say which pools and addresses there are, what belongs to the file, nor what an expression is: what names
/// one that is not there, or is none, may be refused with 400, though the document allows it.
const NAMES_OTHERS: [&str; 24] = [
    "editZoneSetting",
    "editZoneSettings",
    "drain",
    "undrain",
    "createRule",
    "putRule",
    "patchRule",
    "deleteRule",
    "createPool",
    "editPool",
    "deletePool",
    "lease",
    "endLease",
    "place",
    "unplace",
    "createPrefix",
    "editPrefix",
    "deletePrefix",
    "createBinding",
    "deleteBinding",
    "createDelegation",
    "deleteDelegation",
    "editAdvertisement",
    "getBinding",
];
/// Addresses that are there from the beginning, leased and byoip.
const LEASED: [&str; 2] = ["198.18.1.1", "2001:db8:bb::/64"];
const PREFIX: &str = "198.51.100.0/24";

/// Most requests are for the account and the zone that there are: what is said about others is said early.
fn config(prefix: &str) -> String {
    format!(
        r#"
[dictionaries.accounts]
values = ["{ACCOUNT}"]
[dictionaries.zones]
values = ["{ZONE_ID}"]
[dictionaries.pools]
values = ["partners", "second", "made"]
[dictionaries.addresses]
values = {LEASED:?}
[dictionaries.prefixes]
values = ["{prefix}"]

[parameters]
"path.account_id" = {{ dictionary = "accounts", probability = 0.9 }}
"path.zone_id" = {{ dictionary = "zones", probability = 0.9 }}
"path.pool_id" = {{ dictionary = "pools", probability = 0.5 }}
"path.subject" = {{ dictionary = "pools", probability = 0.5 }}
"path.address" = {{ dictionary = "addresses", probability = 0.5 }}
"path.prefix_id" = {{ dictionary = "prefixes", probability = 0.8 }}

[[operations]]
include-operation-id = {NAMES_OTHERS:?}
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 401, 403, 404]
"#
    )
}

/// Leases, a prefix that is bound, and a pool. Returns the prefix' id.
fn furnish(api: &Api) -> Result<String> {
    let post = |path: &str, body: &Value| -> Result<Value> {
        let path = format!("/client/v4/accounts/{ACCOUNT}/{path}");
        let reply = api.call(&path, &["--json", &body.to_string()])?;
        ensure!(matches!(reply.status, 200 | 201), "{reply:?}");
        Ok(reply.json()?["result"].clone())
    };
    for address in LEASED {
        post("egress/leased_ips", &json!({ "address": address }))?;
    }
    post(
        "egress/pools",
        &json!({ "id": "made", "addresses": [LEASED[0]] }),
    )?;
    let prefix = post(
        "addressing/prefixes",
        &json!({ "asn": 64500, "cidr": PREFIX }),
    )?;
    let id = prefix["id"].as_str().context("an id")?;
    let services = api.get(&format!(
        "/client/v4/accounts/{ACCOUNT}/addressing/services"
    ))?;
    let service = &services.json()?["result"][0]["id"];
    post(
        &format!("addressing/prefixes/{id}/bindings"),
        &json!({ "cidr": PREFIX, "service_id": service }),
    )?;
    post(
        &format!("addressing/prefixes/{id}/delegations"),
        &json!({ "cidr": PREFIX, "delegated_account_id": OTHER_ACCOUNT }),
    )?;
    Ok(id.to_owned())
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
    fs::write(&config_path, config(&furnish(&api)?))
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
