//! Asking: the commands of the CLI, and the pinned maps.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Gateway;
use crate::{config::Resources, netns, wait};

/// The names under which the connection counts may be pinned.
const COUNTS: [&str; 2] = ["COUNTS", "COUNTS4"];
/// How long new resources may take.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);

impl Gateway {
    /// A command of the CLI: `egress ARGUMENTS --config FILE`.
    ///
    /// # Errors
    /// When it cannot be started; that it fails is in the output.
    pub fn egress<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut command = self.command()?;
        command
            .args(arguments)
            .arg("--config")
            .arg(self.files.config());
        command
            .output()
            .with_context(|| format!("starting {command:?}"))
    }

    /// As [`Gateway::egress`]; returns what it printed.
    ///
    /// # Errors
    /// When it fails; the message holds what it said.
    pub fn text<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String> {
        let arguments: Vec<_> = arguments.into_iter().collect();
        let output = self.egress(&arguments)?;
        let words: Vec<_> = arguments
            .iter()
            .map(|word| word.as_ref().to_string_lossy())
            .collect();
        ensure!(
            output.status.success(),
            "egress {}: {}: {}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// As [`Gateway::text`] with `--json`, parsed.
    ///
    /// # Errors
    /// When it fails or does not print JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.text(arguments.iter().copied().chain(["--json"]))?;
        serde_json::from_str(&text)
            .with_context(|| format!("egress {} --json printed {text:?}", arguments.join(" ")))
    }

    /// Hooks by interface and kind, each with the tag of the program in it, which differs when its code does.
    ///
    /// # Errors
    /// When `egress status` or `bpftool` fails.
    pub fn program_tags(&self) -> Result<BTreeMap<String, String>> {
        let status = self.json(&["status"])?;
        let hooks = status["hooks"]
            .as_array()
            .context("status lists no hooks")?;
        hooks
            .iter()
            .map(|hook| {
                let id = hook["program_id"]
                    .as_u64()
                    .with_context(|| format!("a hook without program: {hook}"))?;
                let shown = netns::run(Command::new("bpftool").args([
                    "-j",
                    "prog",
                    "show",
                    "id",
                    &id.to_string(),
                ]))?;
                let shown: Value = serde_json::from_str(&shown)?;
                let tag = shown["tag"]
                    .as_str()
                    .with_context(|| format!("program {id} has no tag"))?;
                Ok((
                    format!("{} {} {}", hook["interface"], hook["hook"], hook["kind"]),
                    tag.to_owned(),
                ))
            })
            .collect()
    }

    /// Waits until all hooks are in place and the configuration in force, as `egress status` says by its exit
    /// code.
    ///
    /// # Errors
    /// When they are not within `limit`.
    pub fn wait_in_place(&self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        wait::until_true("all hooks to be in place", limit, || {
            let output = self.egress(["status"])?;
            last = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(output.status.success())
        })
        .with_context(|| format!("egress status:\n{last}\n{}", self.last_words()))
    }

    /// Writes new resources, has the daemon reload them, and waits until `done`.
    ///
    /// # Errors
    /// When the daemon does not run, or `done` does not become true in time.
    pub fn reload(
        &self,
        resources: &Resources,
        done: impl Fn(&Self) -> Result<bool>,
    ) -> Result<()> {
        self.files.write_resources(resources)?;
        self.signal(Signal::SIGHUP)?;
        wait::until_true("the new resources to be in force", RELOAD_LIMIT, || {
            done(self)
        })
        .with_context(|| self.last_words())
    }

    /// The dump of a pinned map, by `bpftool`.
    ///
    /// # Errors
    /// When `bpftool` or the map is not there.
    pub fn map_dump(&self, map: &str) -> Result<Value> {
        let path = self.files.pin.join("maps").join(map);
        let text = netns::run(
            Command::new("bpftool")
                .args(["-j", "map", "dump", "pinned"])
                .arg(&path),
        )?;
        serde_json::from_str(&text).with_context(|| format!("the dump of {}", path.display()))
    }

    /// The dump of the connection counts.
    ///
    /// # Errors
    /// When `bpftool` fails or no counts are pinned.
    pub fn counts(&self) -> Result<Value> {
        let maps = self.files.pin.join("maps");
        let name = COUNTS.into_iter().find(|name| maps.join(name).exists());
        self.map_dump(name.with_context(|| format!("no counts are pinned in {}", maps.display()))?)
    }
}
