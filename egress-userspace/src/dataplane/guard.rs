//! The guard (SAFE-6): an nftables table of ours that outlives the daemon and the programs.
//!
//! It is replaced in one transaction, so there is no instant without it. A configuration that binds more has to
//! be guarded before it is in force, and one that binds less after: the rules to come are first put into a
//! second table beside the first, where both have their say, and take the first one's place when the switch has
//! been flipped. A daemon that dies in between leaves both, which is the careful side; the next one tidies up.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use egress_common::tag::TagField;

use super::netlink::{self, Request};
use super::pins::Pins;
use super::ruleset::{self, Surroundings};
use crate::dataplane::api::DataPlaneError;
use crate::desired::Desired;

/// `NFPROTO_INET`.
const INET: u8 = 1;
/// `NFTA_TABLE_NAME`, and `NFTA_GEN_ID` of another message.
const FIRST_ATTRIBUTE: u16 = 1;
/// Where administrators' programs are although a service's PATH may lack them.
const PLACES: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/bin"];

/// The guard of an instance.
#[derive(Debug)]
pub(super) struct Guard {
    table: String,
    field: TagField,
    /// What we installed last, if it was us.
    installed: Option<Installed>,
}

#[derive(Debug)]
struct Installed {
    desired: Desired,
    surroundings: Surroundings,
    /// How `nft` lists it, so that somebody else's changes can be told; taken when the first such change is
    /// possible, since it costs as much as installing.
    listing: Option<String>,
    /// Number of changes the kernel's ruleset had seen.
    generation: Option<u32>,
}

impl Guard {
    /// The guard that belongs to a pin directory.
    pub(super) fn of(pins: &Pins, field: TagField) -> Self {
        Self {
            table: table(pins),
            field,
            installed: None,
        }
    }

    /// Installs a guard without zones if there is none: it shows early whether there can be one, and leaves one
    /// that is there as strict as it is.
    pub(super) fn begin(&mut self) -> Result<(), DataPlaneError> {
        if exists(&self.table)? {
            return Ok(());
        }
        let nothing = (Desired::default(), Surroundings::default());
        nft(&ruleset::script(
            &self.table,
            self.field,
            &nothing.0,
            &nothing.1,
        ))
    }

    /// Whether exactly these rules are in force.
    pub(super) fn is(&self, desired: &Desired, surroundings: &Surroundings) -> bool {
        self.installed.as_ref().is_some_and(|installed| {
            installed.desired == *desired && installed.surroundings == *surroundings
        })
    }

    /// Whether it is known what is installed; if not, something went wrong.
    pub(super) fn is_settled(&self) -> bool {
        self.installed.is_some()
    }

    /// Adds the rules to come to those that hold.
    pub(super) fn announce(
        &self,
        desired: &Desired,
        surroundings: &Surroundings,
    ) -> Result<(), DataPlaneError> {
        let next = next(&self.table);
        nft(&ruleset::script(&next, self.field, desired, surroundings))
    }

    /// Takes the rules to come back: they will not come. What cannot be removed is on the careful side.
    pub(super) fn retract(&self) {
        drop(nft(&removal(&next(&self.table))));
    }

    /// Puts the rules in the place of all others.
    pub(super) fn settle(
        &mut self,
        desired: &Desired,
        surroundings: &Surroundings,
    ) -> Result<(), DataPlaneError> {
        let mut script = ruleset::script(&self.table, self.field, desired, surroundings);
        script.push_str(&removal(&next(&self.table)));
        self.installed = None;
        nft(&script)?;
        self.installed = Some(Installed {
            desired: desired.clone(),
            surroundings: surroundings.clone(),
            listing: None,
            generation: generation(),
        });
        Ok(())
    }

    /// Puts the guard back if it is missing or somebody changed it; true if that was so. Costs one question to the
    /// kernel unless somebody changed anything in its ruleset.
    pub(super) fn look_after(&mut self) -> Result<bool, DataPlaneError> {
        let Some(installed) = &mut self.installed else {
            return Ok(false);
        };
        let now = generation();
        if now.is_some() && now == installed.generation {
            return Ok(false);
        }
        let missing = !exists(&self.table)?;
        if !missing && installed.listing.is_some() && installed.listing == listing(&self.table).ok()
        {
            installed.generation = now;
            return Ok(false);
        }
        // Without a listing nobody can tell whether it was changed: put back it is right in any case.
        let changed = missing || installed.listing.is_some();
        let (desired, surroundings) = (installed.desired.clone(), installed.surroundings.clone());
        self.settle(&desired, &surroundings)?;
        let listing = listing(&self.table)?;
        if let Some(installed) = &mut self.installed {
            installed.listing = Some(listing);
        }
        Ok(changed)
    }
}

/// The name of a pin directory's table.
fn table(pins: &Pins) -> String {
    let name: String = pins
        .name()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    // A name must begin with a letter, and must not be too long for the kernel.
    let name: String = name.chars().take(100).collect();
    match name.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => format!("{name}_guard"),
        _ => format!("egress_{name}_guard"),
    }
}

fn next(table: &str) -> String {
    format!("{table}_next")
}

/// Removes a table, there or not.
fn removal(table: &str) -> String {
    format!("add table inet {table}\ndelete table inet {table}\n")
}

/// Whether the guard of a pin directory is installed.
pub(super) fn is_installed(pins: &Pins) -> Result<bool, DataPlaneError> {
    exists(&table(pins))
}

/// Removes the guard; returns the tables that were there.
pub(super) fn remove(pins: &Pins) -> Result<Vec<String>, DataPlaneError> {
    let table = table(pins);
    let mut removed = Vec::new();
    for table in [next(&table), table] {
        if exists(&table)? {
            nft(&removal(&table))?;
            removed.push(format!("guard: nftables table inet {table}"));
        }
    }
    Ok(removed)
}

/// `struct nfgenmsg`: family, version, and no subsystem's own number.
const fn header(family: u8) -> [u8; 4] {
    [family, 0, 0, 0]
}

fn message(kind: libc::c_int) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16
}

fn exists(table: &str) -> Result<bool, DataPlaneError> {
    let request = Request::new(message(libc::NFT_MSG_GETTABLE), 0, &header(INET))
        .text(FIRST_ATTRIBUTE, table);
    match request.send(libc::NETLINK_NETFILTER) {
        Ok(answer) => Ok(!answer.is_empty()),
        // EINVAL: nf_tables has never been used, so its module is not loaded.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL)) => {
            Ok(false)
        }
        Err(error) => Err(DataPlaneError::failed(
            format!("asking the kernel for nftables table {table}"),
            error,
        )),
    }
}

/// How many changes the ruleset of this namespace has seen; `None` where the kernel does not say.
fn generation() -> Option<u32> {
    let answer = Request::new(message(libc::NFT_MSG_GETGEN), 0, &header(0))
        .send(libc::NETLINK_NETFILTER)
        .ok()?;
    let body = &answer.first()?.body;
    netlink::attributes(body.get(header(0).len()..)?)
        .find(|(kind, _)| *kind == FIRST_ATTRIBUTE)
        .and_then(|(_, content)| netlink::number(content))
}

/// Packets the guard has dropped, over both of its counters; zero where there is no guard.
pub(super) fn dropped(pins: &Pins) -> u64 {
    let table = table(pins);
    let Ok(text) = output(&["list", "counters", "table", "inet", &table]) else {
        return 0;
    };
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("packets "))
        .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn listing(table: &str) -> Result<String, DataPlaneError> {
    // Without counts, and with interfaces as numbers.
    output(&["-s", "list", "table", "inet", table])
}

fn program() -> Result<PathBuf, DataPlaneError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PLACES.map(PathBuf::from))
        .map(|place| place.join("nft"))
        .find(|file| file.is_file())
        .ok_or_else(|| DataPlaneError::Refused {
            reason: "the command nft is not installed, and without it there is no guard (SAFE-6)"
                .to_owned(),
            remedy: "install the package nftables".to_owned(),
        })
}

/// Runs a script as one transaction.
fn nft(script: &str) -> Result<(), DataPlaneError> {
    run(&program()?, &["-f", "-"], script).map(drop)
}

fn output(arguments: &[&str]) -> Result<String, DataPlaneError> {
    run(&program()?, arguments, "")
}

fn run(program: &Path, arguments: &[&str], input: &str) -> Result<String, DataPlaneError> {
    let failed = |error: io::Error| {
        DataPlaneError::failed(
            format!("running {} {}", program.display(), arguments.join(" ")),
            error,
        )
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If it stops reading, it says why when it ends. It reads all before it prints.
        drop(stdin.write_all(input.as_bytes()));
    }
    let output = child.wait_with_output().map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let first: Vec<&str> = said.lines().take(3).collect();
        return Err(DataPlaneError::failed(
            format!("running {} {}", program.display(), arguments.join(" ")),
            first.join("; "),
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_name_follows_the_pins() {
        assert_eq!(
            table(&Pins::new(Path::new("/sys/fs/bpf/egress"))),
            "egress_guard"
        );
        assert_eq!(table(&Pins::new(Path::new("/sys/fs/bpf/a-b"))), "a_b_guard");
        assert_eq!(
            table(&Pins::new(Path::new("/sys/fs/bpf/9"))),
            "egress_9_guard"
        );
    }
}
