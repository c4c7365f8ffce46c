//! Asking: the commands of the CLI, and the pinned maps.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    net::{Ipv4Addr, SocketAddrV4},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::Gateway;
use crate::{config::Resources, netns, wait};

/// The connection counts, one for each (egress IP, origin, protocol).
pub const COUNTS: &str = "COUNTS4";
/// The same of IPv6.
pub const COUNTS_V6: &str = "COUNTS6";
/// The sweep's timer and how far it got.
const SWEEPER: &str = "SWEEPER";
/// How long new resources may take.
const RELOAD_LIMIT: Duration = Duration::from_secs(60);

impl Gateway {
    /// A command of the CLI: `egress ARGUMENTS --config FILE`.
    ///
    /// # Errors
    /// When it cannot be started; that it fails is in the output.
    pub fn egress<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut command = self.asking(arguments)?;
        command
            .output()
            .with_context(|| format!("starting {command:?}"))
    }

    /// The same, not yet started.
    ///
    /// # Errors
    /// When the node is gone.
    pub fn asking<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let mut command = self.command()?;
        command
            .args(arguments)
            .arg("--config")
            .arg(self.files.config());
        Ok(command)
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

    /// The connection counts of an origin that `bpftool` reads from the pinned map: `active` by egress IP.
    ///
    /// # Errors
    /// When `bpftool` fails, or prints no fields of these names (OBS-6).
    pub fn mapped(&self, origin: SocketAddrV4, protocol: u8) -> Result<BTreeMap<Ipv4Addr, u64>> {
        let dump = self.map_dump(COUNTS)?;
        let entries = dump.as_array().context("bpftool printed no list")?;
        let mut found = BTreeMap::new();
        for entry in entries {
            let count = &entry["formatted"]["value"];
            let read = || {
                let key = &count["key"];
                let count = (
                    octets(&key["egress"])?,
                    SocketAddrV4::new(octets(&key["origin"])?, port(&key["origin_port"])?),
                    key["protocol"].as_u64()?,
                    count["active"].as_u64()?,
                );
                Some(count)
            };
            let (egress, of, with, active) =
                read().with_context(|| format!("{COUNTS} has other fields: {count}"))?;
            if of == origin && with == u64::from(protocol) {
                found.insert(egress, active);
            }
        }
        Ok(found)
    }

    /// Which load of the programs armed the sweep's timer, and which one's callback ran last.
    ///
    /// # Errors
    /// When `bpftool` fails or prints no such fields.
    pub fn sweep(&self) -> Result<Sweep> {
        let dump = self.map_dump(SWEEPER)?;
        let progress = &dump[0]["formatted"]["value"]["progress"];
        let field = |name: &str| {
            progress[name]
                .as_u64()
                .with_context(|| format!("{SWEEPER} has no field {name}: {dump}"))
        };
        Ok(Sweep {
            armed_by: field("armed_by")?,
            run_by: field("run_by")?,
            ticks: field("ticks")?,
        })
    }

    /// Takes one of our programs off an interface behind the daemon's back, as an administrator might.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_program(&self, interface: &str, program: &str) -> Result<()> {
        let link = self.files.pin.join(format!("links/{interface}:{program}"));
        if link.exists() {
            netns::run(
                Command::new("bpftool")
                    .args(["link", "detach", "pinned"])
                    .arg(&link),
            )?;
            return Ok(());
        }
        let direction = if program.ends_with("_ingress") {
            "ingress"
        } else {
            "egress"
        };
        let filters = netns::run(
            self.namespace
                .command("tc")?
                .args(["filter", "show", "dev", interface, direction]),
        )?;
        let preference = filters
            .lines()
            .filter(|line| line.contains(program))
            .find_map(|line| line.split(" pref ").nth(1)?.split(' ').next())
            .with_context(|| format!("{program} is not on {interface}:\n{filters}"))?;
        netns::run(self.namespace.command("tc")?.args([
            "filter", "del", "dev", interface, direction, "pref", preference,
        ]))?;
        Ok(())
    }
}

/// The state of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// The load of the programs that armed the timer last.
    pub armed_by: u64,
    /// The load whose callback ran last.
    pub run_by: u64,
    /// Ticks since the maps were made.
    pub ticks: u64,
}

/// An address as `bpftool` prints its bytes: numbers, or the text of numbers.
fn octets(value: &Value) -> Option<Ipv4Addr> {
    let bytes: Vec<u8> = value.as_array()?.iter().map(byte).collect::<Option<_>>()?;
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

fn byte(value: &Value) -> Option<u8> {
    match value {
        Value::String(text) => match text.strip_prefix("0x") {
            Some(digits) => u8::from_str_radix(digits, 16).ok(),
            None => text.parse().ok(),
        },
        number => u8::try_from(number.as_u64()?).ok(),
    }
}
