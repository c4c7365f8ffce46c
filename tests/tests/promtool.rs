//! OBS-3 with other people's programs: Prometheus' own checks of a scrape.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, Api},
    needs, netns, programs,
};

/// Alert rules, and what they are to say to made-up figures.
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/prometheus");
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
