//! Who holds the slices of each IPv4 egress IP, where servers share a store (CLU-3).
//!
//! The store has a row for each address. It changes only by a step that names the row it was made from, so of two servers
//! that change the same row one is told. A slice that is to move names its owner and who gets it: the owner opens nothing
//! there, and passes it on when nothing of it is left. No step takes a slice from a server that has not let go of it,
//! but for those of a server that the operator has declared fenced.

mod host;
mod keeper;
mod promise;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use egress_common::handover::{Holding, NOBODY};
use egress_common::placement;
use egress_common::port::ALL_SLICES;
use serde::{Deserialize, Serialize};

pub use host::{ANSWER, Host, Impostor, Question, Verdict};
pub use keeper::Keeper;
pub use promise::{LOOKS, Promise, Silence, Watch, nanoseconds};

use crate::placed;
use crate::resource::{Address, Resources};

/// Slices of addresses: bit k is slice k.
pub type Slices = BTreeMap<Ipv4Addr, u32>;

/// Entries of a row: slice 0 is nobody's ever.
const ENTRIES: usize = 32;

/// Who holds what.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    /// Why this host is not the server whose name it goes by, if it is not: then nothing here is its own.
    #[serde(skip)]
    pub impostor: Option<Impostor>,
    /// By address; those of addresses that have left their pools included.
    pub rows: BTreeMap<Ipv4Addr, Row>,
    /// Servers that are or were fenced, as the operator says, with the time when that was said, µs since 1970; below zero
    /// once the server is back. No value comes twice, so what was meant for one is never taken for another.
    pub forgotten: BTreeMap<String, i64>,
    /// Servers from which others may take over, or might once, with what they have promised (`takeover_after`).
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub promises: BTreeMap<String, Promise>,
}

/// Who holds the slices of one address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Row {
    /// Rises with every change: what was meant for an earlier row is never taken for a later one that looks like it.
    version: u64,
    /// The servers that are named, sorted: number n is the n-th of them, from 1.
    servers: Vec<String>,
    slices: [Holding; ENTRIES],
}

/// A row as it is kept: slices that are alike together.
#[derive(Serialize, Deserialize)]
struct Written {
    version: u64,
    parts: Vec<Part>,
}

/// Slices with one owner and one destination.
#[derive(Serialize, Deserialize)]
struct Part {
    owner: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Bit k is slice k.
    slices: u32,
}

/// One change of who holds what: it holds only while the row is the one that it was made from.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are rows, and they live shortly"
)]
pub enum Step {
    /// A row becomes another one.
    Row {
        /// Its address.
        address: Ipv4Addr,
        /// What it was; none where there was no row.
        before: Option<Row>,
        /// What it becomes.
        after: Row,
        /// The servers of which something is taken because they are fenced, and when that was said: it holds only while
        /// none of them has come back.
        fenced: BTreeMap<String, i64>,
    },
    /// A server is fenced, or has come back.
    Forgotten {
        /// Its name.
        server: String,
        /// What was said of it before, as in [`Ownership::forgotten`].
        before: Option<i64>,
        /// What is said of it now.
        after: i64,
        /// It holds only while this is the server's last sign of life.
        silence: Option<Silence>,
    },
    /// A server says after how long without a sign of life others may have what it holds.
    Promised {
        /// Its name.
        server: String,
        /// What it said before.
        before: Option<Promise>,
        /// What it says now.
        after: Promise,
        /// What is said of it, as in [`Ownership::forgotten`]: it holds only while nobody has taken over from it since.
        mark: Option<i64>,
    },
}

impl Step {
    /// A step that fences a server, for as long as it is not heard of.
    pub fn after_silence(mut self, last: Silence) -> Self {
        if let Self::Forgotten { silence, .. } = &mut self {
            *silence = Some(last);
        }
        self
    }
}

impl From<Row> for Written {
    fn from(row: Row) -> Self {
        let mut parts: Vec<Part> = Vec::new();
        for slice in placement::slices(ALL_SLICES) {
            let holding = row.at(slice);
            let (owner, next) = (row.name(holding.owner), row.name(holding.next));
            if owner.is_none() && next.is_none() {
                continue;
            }
            let same = parts
                .iter_mut()
                .find(|part| part.owner.as_deref() == owner && part.next.as_deref() == next);
            match same {
                Some(part) => part.slices |= 1 << slice,
                None => parts.push(Part {
                    owner: owner.map(str::to_owned),
                    next: next.map(str::to_owned),
                    slices: 1 << slice,
                }),
            }
        }
        Self {
            version: row.version,
            parts,
        }
    }
}

impl From<Written> for Row {
    fn from(written: Written) -> Self {
        let mut row = Self::nobodys();
        row.version = written.version;
        let named = written
            .parts
            .iter()
            .flat_map(|part| [&part.owner, &part.next]);
        let named: BTreeSet<String> = named.flatten().cloned().collect();
        row.servers = named.into_iter().collect();
        for part in &written.parts {
            let number = |name: &Option<String>| {
                let name = name.as_deref();
                name.map_or(NOBODY, |name| row.number(name))
            };
            let holding = Holding {
                owner: number(&part.owner),
                next: number(&part.next),
            };
            for slice in placement::slices(part.slices) {
                row.slices[slice as usize] = holding;
            }
        }
        row
    }
}

impl Row {
    /// Before anybody has anything.
    fn nobodys() -> Self {
        Self {
            version: 0,
            servers: Vec::new(),
            slices: [Holding::default(); ENTRIES],
        }
    }

    /// A row in which servers hold what a division gives them.
    pub fn first(division: &[(&str, u32)]) -> Self {
        let row = Self::nobodys();
        let given = row.given(division);
        given.unwrap_or(row)
    }

    fn at(&self, slice: u32) -> Holding {
        self.slices.get(slice as usize).copied().unwrap_or_default()
    }

    fn name(&self, number: u16) -> Option<&str> {
        let at = usize::from(number).checked_sub(1)?;
        self.servers.get(at).map(String::as_str)
    }

    /// The number of a server in this row; [`NOBODY`] for one that is not named.
    fn number(&self, server: &str) -> u16 {
        let found = self.servers.iter().position(|one| one == server);
        found.map_or(NOBODY, |at| u16::try_from(at + 1).unwrap_or(NOBODY))
    }

    fn those(&self, server: &str, meant: impl Fn(Holding, u16) -> bool) -> u32 {
        let number = self.number(server);
        if number == NOBODY {
            return 0;
        }
        placement::slices(ALL_SLICES)
            .filter(|slice| meant(self.at(*slice), number))
            .fold(0, |all, slice| all | 1 << slice)
    }

    /// The slices in which a server may open flows.
    pub fn open(&self, server: &str) -> u32 {
        self.those(server, Holding::may_open)
    }

    /// The slices of a server: replies go to it.
    pub fn held(&self, server: &str) -> u32 {
        self.those(server, |holding, number| holding.owner == number)
    }

    /// The slices that a server is to pass on.
    pub fn leaving(&self, server: &str) -> u32 {
        self.held(server) & !self.open(server)
    }

    /// The slices that a server gets once their owners have let go of them.
    pub fn coming(&self, server: &str) -> u32 {
        self.those(server, |holding, number| holding.next == number)
    }

    /// All servers that are named.
    pub fn servers(&self) -> impl Iterator<Item = &str> {
        self.servers.iter().map(String::as_str)
    }

    /// The row after a change of each slice; none where nothing is another.
    fn changed(
        &self,
        named: &[&str],
        change: impl Fn(&Self, u32, Holding) -> Holding,
    ) -> Option<Self> {
        let mut all: BTreeSet<&str> = self.servers().collect();
        all.extend(named);
        let mut wide = Self {
            version: self.version,
            servers: all.into_iter().map(str::to_owned).collect(),
            slices: [Holding::default(); ENTRIES],
        };
        let mut differs = false;
        for slice in placement::slices(ALL_SLICES) {
            let before = self.at(slice);
            let number = |number| self.name(number).map_or(NOBODY, |name| wide.number(name));
            let before = Holding {
                owner: number(before.owner),
                next: number(before.next),
            };
            let after = change(&wide, slice, before);
            differs |= after != before;
            wide.slices[slice as usize] = after;
        }
        wide.version += 1;
        // Without those that are not named any more.
        differs.then(|| Written::from(wide).into())
    }

    /// After a division gave slices to servers: what others hold has to be passed on first.
    pub fn given(&self, division: &[(&str, u32)]) -> Option<Self> {
        let named: Vec<&str> = division.iter().map(|(name, _)| *name).collect();
        self.changed(&named, |row, slice, holding| {
            let to = division.iter().find(|(_, slices)| slices >> slice & 1 == 1);
            // What nobody is to have stays where it is.
            to.map_or(holding, |(name, _)| holding.given_to(row.number(name)))
        })
    }

    /// After a server passed slices on of which nothing is left: only those that it was to pass on.
    pub fn released(&self, server: &str, slices: u32) -> Option<Self> {
        self.changed(&[server], |row, slice, holding| {
            if slices >> slice & 1 == 1 {
                holding.released_by(row.number(server))
            } else {
                holding
            }
        })
    }

    /// After a server was declared fenced.
    pub fn without(&self, server: &str) -> Option<Self> {
        self.changed(&[server], |row, _, holding| {
            holding.without(row.number(server))
        })
    }
}

impl Ownership {
    /// The slices of an address in which a server may open flows: none while it is said to be fenced.
    pub fn open(&self, server: &str, address: Ipv4Addr) -> u32 {
        let row = self.of(server, address);
        row.map_or(0, |row| row.open(server))
    }

    /// The slices of an address whose flows are a server's own.
    pub fn held(&self, server: &str, address: Ipv4Addr) -> u32 {
        let row = self.of(server, address);
        row.map_or(0, |row| row.held(server))
    }

    /// The slices of an address that a server is to pass on.
    pub fn leaving(&self, server: &str, address: Ipv4Addr) -> u32 {
        let row = self.of(server, address);
        row.map_or(0, |row| row.leaving(server))
    }

    fn of(&self, server: &str, address: Ipv4Addr) -> Option<&Row> {
        self.rows.get(&address).filter(|_| !self.is_fenced(server))
    }

    /// Whether a server is fenced, as the operator says, and is not back; or whether it has to act so, since another host has its
    /// name.
    pub fn is_fenced(&self, server: &str) -> bool {
        self.forgotten.get(server).is_some_and(|said| *said > 0) || self.is_another_hosts(server)
    }

    /// Whether this host goes by the name of a server, and another host is that server.
    pub fn is_another_hosts(&self, server: &str) -> bool {
        self.impostor
            .as_ref()
            .is_some_and(|one| one.server == server)
    }

    /// The step by which the operator says that a server is fenced.
    pub fn fence(&self, server: &str, now: i64) -> Step {
        let before = self.forgotten.get(server).copied();
        Step::Forgotten {
            server: server.to_owned(),
            before,
            // Also where the clock stands still, or went back.
            after: now.max(before.unwrap_or(0).abs() + 1),
            silence: None,
        }
    }

    /// Whether a server is said to be fenced, and nothing is its own any more: once it is back it may say so.
    pub fn may_return(&self, server: &str) -> Option<Step> {
        if self.is_another_hosts(server) {
            return None;
        }
        let said = self.forgotten.get(server).filter(|said| **said > 0)?;
        let cleared = self.rows.values().all(|row| row.held(server) == 0);
        cleared.then(|| Step::Forgotten {
            server: server.to_owned(),
            before: Some(*said),
            after: -*said,
            silence: None,
        })
    }

    /// What the rows are to become: every address that is placed gets one, and what is to move is marked. All servers that
    /// see the same make the same steps, so it does not matter which of them is first.
    pub fn to_do(&self, resources: &Resources, server: &str) -> Vec<Step> {
        // It is not for this host to say.
        if self.is_another_hosts(server) {
            return Vec::new();
        }
        let addresses = resources.pools.iter().flat_map(|pool| &pool.addresses);
        let addresses = addresses.filter_map(|address| match *address {
            Address::V4(address) => Some(address),
            Address::V6(_) => None,
        });
        let placed: BTreeSet<Ipv4Addr> = addresses.collect();
        // Of addresses that have left their pools, too, nobody waits for the dead.
        let all: BTreeSet<Ipv4Addr> = placed.iter().chain(self.rows.keys()).copied().collect();
        let step = |address| {
            let before = self.rows.get(&address);
            let (cleared, fenced) = before.map(|row| self.cleared(row)).unzip();
            let fenced: BTreeMap<String, i64> = fenced.unwrap_or_default();
            let now = cleared.as_ref();
            let after = if !placed.contains(&address) {
                None
            } else if resources.locations.is_empty() {
                // Nobody is told from anybody: the first one has it.
                now.is_none().then(|| Row::first(&[(server, ALL_SLICES)]))
            } else {
                self.divided(resources, address, now)
            };
            let after = after.or_else(|| cleared.clone().filter(|_| !fenced.is_empty()))?;
            Some(Step::Row {
                address,
                before: before.cloned(),
                after: Row {
                    version: before.map_or(0, |row| row.version) + 1,
                    ..after
                },
                fenced,
            })
        };
        all.into_iter().filter_map(step).collect()
    }

    /// A row without what it says of fenced servers, and which those are.
    fn cleared(&self, row: &Row) -> (Row, BTreeMap<String, i64>) {
        let (mut row, mut fenced) = (row.clone(), BTreeMap::new());
        for (server, said) in &self.forgotten {
            if *said <= 0 {
                continue;
            }
            if let Some(after) = row.without(server) {
                row = after;
                fenced.insert(server.clone(), *said);
            }
        }
        (row, fenced)
    }

    /// The row of a placed address as it is to be, if that is another one.
    fn divided(&self, resources: &Resources, address: Ipv4Addr, now: Option<&Row>) -> Option<Row> {
        let takes = |name: &str| !self.is_fenced(name) && !resources.drains_server(name);
        // What is on its way is still its owner's: it may keep it, if the division is another one by now.
        let had = |name: &str| now.map_or(0, |row| row.held(name));
        let division = placed::divided(resources, address, takes, had);
        let division: Vec<(&str, u32)> = division
            .iter()
            .map(|(one, slices)| (one.server.name.as_str(), *slices))
            .collect();
        match now {
            None => (!division.is_empty()).then(|| Row::first(&division)),
            Some(row) => row.given(&division),
        }
    }

    /// Whether a server holds, or is to get, anything.
    pub fn names(&self, server: &str) -> bool {
        self.rows
            .values()
            .any(|row| row.servers().any(|one| one == server))
    }
}
