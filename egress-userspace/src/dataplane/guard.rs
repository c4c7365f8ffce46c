//! The guard (SAFE-6): an nftables table of ours that outlives the daemon and the programs.
//!
//! Its rules are replaced in one transaction, so there is no instant without them. A configuration that binds more
//! has to be guarded before it is in force, and one that binds less after: the rules to come are first put into a
//! second table beside the first, where both have their say, and take the first one's place when the switch has
//! been flipped. A daemon that dies in between leaves both, which is the careful side; the next one tidies up.
//!
//! The daemon holds the tables, so that nobody else removes them while it lives (`table`). To change one it has to
//! let it go for the length of one run of `nft`; what is lost just then is put back at once.

mod nft;
mod table;

use std::time::{Duration, Instant};

use egress_common::tag::TagField;

use self::table::{Hold, Table};
use super::pins::Pins;
use super::ruleset::{self, Surroundings};
use crate::dataplane::api::DataPlaneError;
use crate::desired::Desired;

/// Rules that somebody else may have changed are not compared more often than this: it costs a run of `nft`.
const COMPARE: Duration = Duration::from_millis(100);

/// The guard of an instance.
#[derive(Debug)]
pub(super) struct Guard {
    table: String,
    field: TagField,
    /// Whether the tables are to be held.
    hold: bool,
    /// What we installed last, if it was us.
    installed: Option<Installed>,
    /// Nobody else changes the table; `None` where the kernel cannot say so.
    held: Option<Hold>,
    /// The same for the table of the rules to come.
    next_held: Option<Hold>,
}

#[derive(Debug)]
struct Installed {
    desired: Desired,
    surroundings: Surroundings,
    /// What `nft` was told.
    script: String,
    /// How `nft` lists it, so that somebody else's changes can be told; taken when the first such change is
    /// possible, since it costs as much as installing.
    listing: Option<String>,
    /// When it was compared last.
    compared: Option<Instant>,
    /// Number of changes the kernel's ruleset had seen.
    generation: Option<u32>,
}

impl Guard {
    /// The guard that belongs to a pin directory.
    pub(super) fn of(pins: &Pins, field: TagField, hold: bool) -> Self {
        Self {
            table: name(pins),
            field,
            hold,
            installed: None,
            held: None,
            next_held: None,
        }
    }

    /// Installs a guard without zones if there is none: it shows early whether there can be one, and leaves one
    /// that is there as strict as it is.
    pub(super) fn begin(&mut self) -> Result<(), DataPlaneError> {
        if Table::find(&self.table)?.is_none() {
            let (desired, surroundings) = (Desired::default(), Surroundings::default());
            let script = ruleset::script(&self.table, self.field, &desired, &surroundings);
            self.fill(&self.table, &script)?;
        }
        self.held = self.take_hold(&self.table);
        Ok(())
    }

    /// Whether exactly the rules for these are in force.
    pub(super) fn is(&mut self, desired: &Desired, surroundings: &Surroundings) -> bool {
        let Some(installed) = &mut self.installed else {
            return false;
        };
        if installed.desired == *desired && installed.surroundings == *surroundings {
            return true;
        }
        // Much of a configuration makes no difference here, as a zone's pool.
        let same =
            ruleset::script(&self.table, self.field, desired, surroundings) == installed.script;
        if same {
            installed.desired = desired.clone();
            installed.surroundings = surroundings.clone();
        }
        same
    }

    /// Whether it is known what is installed; if not, something went wrong.
    pub(super) fn is_settled(&self) -> bool {
        self.installed.is_some()
    }

    /// Adds the rules to come to those that hold.
    pub(super) fn announce(
        &mut self,
        desired: &Desired,
        surroundings: &Surroundings,
    ) -> Result<(), DataPlaneError> {
        let next = next(&self.table);
        self.next_held = None;
        let script = ruleset::script(&next, self.field, desired, surroundings);
        self.fill(&next, &script)?;
        self.next_held = self.take_hold(&next);
        Ok(())
    }

    /// Takes the rules to come back: they will not come. What cannot be removed is on the careful side.
    pub(super) fn retract(&mut self) {
        self.next_held = None;
        drop(Table::remove(&next(&self.table)));
    }

    /// Puts the rules in the place of all others.
    pub(super) fn settle(
        &mut self,
        desired: &Desired,
        surroundings: &Surroundings,
    ) -> Result<(), DataPlaneError> {
        self.installed = None;
        self.renew(desired, surroundings)?;
        self.held = None;
        let script = ruleset::script(&self.table, self.field, desired, surroundings);
        let filled = self.fill(&self.table, &script);
        // Also when it was not filled: what it held before is still the guard.
        self.held = self.take_hold(&self.table);
        filled?;
        self.next_held = None;
        Table::remove(&next(&self.table))?;
        // Asked in this order: who takes the table away later changes the number, and who did so earlier is found out
        // at the next look.
        let generation = table::generation();
        let there = Table::find(&self.table)?.is_some();
        self.installed = Some(Installed {
            desired: desired.clone(),
            surroundings: surroundings.clone(),
            script,
            listing: None,
            compared: None,
            generation: generation.filter(|_| there),
        });
        Ok(())
    }

    /// A table of an earlier version, which cannot be held, makes place for one that can; the rules to come are
    /// guarding meanwhile.
    fn renew(
        &mut self,
        desired: &Desired,
        surroundings: &Surroundings,
    ) -> Result<(), DataPlaneError> {
        if !self.hold || Table::find(&self.table)?.is_none_or(Table::can_be_held) {
            return Ok(());
        }
        self.announce(desired, surroundings)?;
        if self.next_held.is_some() {
            Table::remove(&self.table)?;
        }
        Ok(())
    }

    /// Replaces what is in a table, which is made if need be.
    fn fill(&self, table: &str, script: &str) -> Result<(), DataPlaneError> {
        Table::wait_released(table)?;
        Table::make(table, self.hold)?;
        nft::script(script).or_else(|error| {
            if Table::find(table)?.is_some() {
                return Err(error);
            }
            // Somebody flushed the ruleset since it was made.
            Table::make(table, self.hold)?;
            nft::script(script)
        })
    }

    /// Takes hold of a table where that is possible; where not, it is looked after.
    fn take_hold(&self, table: &str) -> Option<Hold> {
        if !self.hold {
            return None;
        }
        Hold::take(table)
            .inspect_err(|error| tracing::debug!(%error, table, "the guard's table is not held"))
            .ok()
    }

    /// Lets others change it: it is about to be removed.
    pub(super) fn release(&mut self) {
        self.held = None;
        self.next_held = None;
        self.installed = None;
    }

    /// Puts the guard back if it is missing or somebody changed it; true if that was so. Costs one question to the
    /// kernel unless somebody changed anything in its ruleset.
    pub(super) fn look_after(&mut self) -> Result<bool, DataPlaneError> {
        let Some(installed) = &mut self.installed else {
            return Ok(false);
        };
        let now = table::generation();
        if now.is_some() && now == installed.generation {
            return Ok(false);
        }
        let missing = Table::find(&self.table)?.is_none();
        if !missing && self.held.is_some() {
            installed.generation = now;
            return Ok(false);
        }
        if !missing && installed.compared.is_some_and(|at| at.elapsed() < COMPARE) {
            return Ok(false);
        }
        installed.compared = Some(Instant::now());
        if !missing && installed.listing.is_some() && installed.listing == listing(&self.table).ok()
        {
            installed.generation = now;
            return Ok(false);
        }
        // Without a listing nobody can tell whether it was changed: put back it is right in any case.
        let changed = missing || installed.listing.is_some();
        let (desired, surroundings) = (installed.desired.clone(), installed.surroundings.clone());
        self.settle(&desired, &surroundings)?;
        if self.held.is_none() {
            let listing = listing(&self.table)?;
            if let Some(installed) = &mut self.installed {
                installed.listing = Some(listing);
                installed.compared = Some(Instant::now());
            }
        }
        Ok(changed)
    }
}

/// The name of a pin directory's table.
fn name(pins: &Pins) -> String {
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

/// Whether the guard of a pin directory is installed.
pub(super) fn is_installed(pins: &Pins) -> Result<bool, DataPlaneError> {
    Ok(Table::find(&name(pins))?.is_some())
}

/// Removes the guard; returns the tables that were there.
pub(super) fn remove(pins: &Pins) -> Result<Vec<String>, DataPlaneError> {
    let table = name(pins);
    let mut removed = Vec::new();
    for table in [next(&table), table] {
        if Table::remove(&table)? {
            removed.push(format!("guard: nftables table inet {table}"));
        }
    }
    Ok(removed)
}

/// Packets the guard has dropped, over both of its counters; zero where there is no guard.
pub(super) fn dropped(pins: &Pins) -> u64 {
    let table = name(pins);
    let Ok(text) = nft::output(&["list", "counters", "table", "inet", &table]) else {
        return 0;
    };
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("packets "))
        .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

fn listing(table: &str) -> Result<String, DataPlaneError> {
    // Without counts, and with interfaces as numbers.
    nft::output(&["-s", "list", "table", "inet", table])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_tables_name_follows_the_pins() {
        assert_eq!(
            name(&Pins::new(Path::new("/sys/fs/bpf/egress"))),
            "egress_guard"
        );
        assert_eq!(name(&Pins::new(Path::new("/sys/fs/bpf/a-b"))), "a_b_guard");
        assert_eq!(
            name(&Pins::new(Path::new("/sys/fs/bpf/9"))),
            "egress_9_guard"
        );
    }
}
