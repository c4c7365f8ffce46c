//! What etcd holds, as keys and values under our prefix.
//!
//! ```text
//! schema                  the version of all this
//! generation              put by every commit: its name
//! object/KIND/ID          {"owner", "modified", "object"}
//! number/KIND/ID          {"number", "released"}: released is null while it is in use
//! ownership/slices/IP     who holds the slices of an egress IP (ownership.rs)
//! ownership/forgotten/NAME  a server that is fenced
//! ownership/hosts/NAME    the host that a server is (hosts.rs)
//! ownership/promises/NAME after how long without a sign of life others may have what a server holds
//! beat/NAME               its last sign of life: nobody watches these
//! token/ID                a token without its secret, and the secret's hash
//! pending                 the journal of a commit that is too large for one transaction (journal.rs)
//! journal/NAME/PART       what that changes
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::super::sqlite::Asked;
use super::super::{Change, Limits, NewToken, Numbers, StoreError, Stored, Token, hash_of};
use super::journal::Condition;
use crate::ownership::{Ownership, Promise, Silence, Step};
use crate::resource::{Kind, Object, Owner};

/// The version of these keys and values. As the embedded store's schema, it rises with every kind of object, and with promises (CLU-3).
/// One more than of a database of one's own since there are rows of who owns slices: whoever does not know them must not open
/// anything by the division (CLU-3).
pub(super) const SCHEMA: i64 = crate::store::SCHEMA_VERSION + 1;

pub(super) const SCHEMA_KEY: &str = "schema";
pub(super) const GENERATION: &str = "generation";
pub(super) const PENDING: &str = "pending";
pub(super) const JOURNAL: &str = "journal/";
pub(super) const OWNERSHIP: &str = "ownership/";
const SLICES: &str = "ownership/slices/";
const FORGOTTEN: &str = "ownership/forgotten/";
const PROMISES: &str = "ownership/promises/";
pub(super) const BEATS: &str = "beat/";

/// A key that is put, or removed where the value is none.
pub(super) type Op = (String, Option<String>);

/// All keys and values at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Keys without the prefix.
    pub(super) keys: BTreeMap<String, String>,
    /// The revision of etcd at which the last commit was made; 0 before the first.
    pub(super) generation: i64,
    /// The revision of etcd at which it was read; what a commit has changed since counts as read with it.
    pub(super) revision: i64,
    /// When etcd was asked for it.
    pub(super) asked: Asked,
    /// When etcd was told what has been committed on top of it, else the same.
    pub(super) told: Asked,
}

#[derive(Serialize, Deserialize)]
struct Row {
    owner: Owner,
    modified: i64,
    object: Object,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct NumberRow {
    number: u16,
    released: Option<i64>,
}

#[derive(Serialize, Deserialize)]
struct TokenRow {
    hash: String,
    #[serde(flatten)]
    token: Token,
}

/// The version goes along with whatever is written.
pub(super) fn put_schema() -> Op {
    (SCHEMA_KEY.to_owned(), Some(SCHEMA.to_string()))
}

/// What is read once it went.
pub(super) fn raised() -> (String, String) {
    (SCHEMA_KEY.to_owned(), SCHEMA.to_string())
}

impl Content {
    /// Whether this version can read it, and it is ours.
    pub(super) fn check(&self, path: &Path) -> Result<(), StoreError> {
        let foreign = || StoreError::Foreign {
            path: path.to_owned(),
        };
        match self.keys.get(SCHEMA_KEY) {
            // Before the first commit there may be journals that nobody has committed.
            None if self.keys.keys().all(|key| key.starts_with(JOURNAL)) => Ok(()),
            None => Err(foreign()),
            Some(text) => {
                let found: i64 = text.parse().map_err(|_| foreign())?;
                if found > SCHEMA {
                    return Err(StoreError::Newer {
                        path: path.to_owned(),
                        found,
                        known: SCHEMA,
                    });
                }
                Ok(())
            }
        }
    }

    /// Whether nobody has ever committed anything.
    pub(super) fn is_new(&self) -> bool {
        !self.keys.contains_key(SCHEMA_KEY)
    }

    /// Which version wrote it last.
    pub(super) fn schema(&self) -> Option<String> {
        self.keys.get(SCHEMA_KEY).cloned()
    }

    /// What is read once these are carried out.
    pub(super) fn with(&self, ops: &[Op]) -> Self {
        let mut after = self.clone();
        for (key, value) in ops {
            match value {
                Some(value) => after.keys.insert(key.clone(), value.clone()),
                None => after.keys.remove(key),
            };
        }
        after
    }

    /// What the last commit is called.
    pub(super) fn mark(&self) -> Option<&str> {
        self.keys.get(GENERATION).map(String::as_str)
    }

    fn under<'c>(&'c self, prefix: &'c str) -> impl Iterator<Item = (&'c str, &'c str)> {
        self.keys
            .range(prefix.to_owned()..)
            .map_while(move |(key, value)| Some((key.strip_prefix(prefix)?, value.as_str())))
    }

    /// Objects, numbers and times.
    pub(super) fn stored(&self, path: &Path) -> Result<Stored, StoreError> {
        let mut stored = Stored::default();
        for (key, value) in self.under("object/") {
            let row: Row = read(path, key, value)?;
            let (kind, id) = (row.object.kind(), row.object.id());
            if key != format!("{}/{id}", kind.noun()) {
                return Err(corrupt(path, &format!("{key} holds {} {id}", kind.noun())));
            }
            if row.modified > 0 {
                stored.modified.insert((kind, id.clone()), row.modified);
            }
            stored.objects.insert((kind, id), (row.owner, row.object));
        }
        stored.ownership = Some(self.ownership(path)?);
        stored.numbers = Numbers {
            zones: self
                .numbers(Kind::Zone, path)?
                .into_iter()
                .map(number_of)
                .collect(),
            pools: self
                .numbers(Kind::Pool, path)?
                .into_iter()
                .map(number_of)
                .collect(),
        };
        Ok(stored)
    }

    fn ownership(&self, path: &Path) -> Result<Ownership, StoreError> {
        let row = |(key, value): (&str, &str)| {
            let address = key
                .parse()
                .map_err(|_| corrupt(path, &format!("{key} is no address")))?;
            Ok((address, read(path, key, value)?))
        };
        Ok(Ownership {
            impostor: None,
            rows: self.under(SLICES).map(row).collect::<Result<_, _>>()?,
            forgotten: self
                .under(FORGOTTEN)
                .map(|(key, value)| Ok((key.to_owned(), read(path, key, value)?)))
                .collect::<Result<_, _>>()?,
            promises: self
                .under(PROMISES)
                .map(|(key, value)| Ok((key.to_owned(), read(path, key, value)?)))
                .collect::<Result<_, _>>()?,
        })
    }

    fn numbers(&self, kind: Kind, path: &Path) -> Result<BTreeMap<String, NumberRow>, StoreError> {
        let prefix = format!("number/{}/", kind.noun());
        self.under(&prefix)
            .map(|(id, value)| Ok((id.to_owned(), read(path, id, value)?)))
            .collect()
    }

    /// Tokens with the hashes of their secrets, in hex.
    pub(super) fn tokens(&self, path: &Path) -> Result<Vec<(Token, Vec<u8>)>, StoreError> {
        self.under("token/")
            .map(|(key, value)| {
                let row: TokenRow = read(path, key, value)?;
                let hash = unhex(&row.hash)
                    .ok_or_else(|| corrupt(path, &format!("token {key} has no hash")))?;
                Ok((row.token, hash))
            })
            .collect()
    }

    /// What revoking a token changes, and whether there is one.
    pub(super) fn without_token(&self, id: &str) -> (Vec<Op>, bool) {
        let key = format!("token/{id}");
        if self.keys.contains_key(&key) {
            (vec![(key, None)], true)
        } else {
            (Vec::new(), false)
        }
    }

    /// What these changes come to: removals first, then what is put, then the numbers (as in the embedded store).
    pub(super) fn ops(
        &self,
        changes: &[Change],
        limits: Limits,
        path: &Path,
    ) -> Result<Vec<Op>, StoreError> {
        let mut ops: BTreeMap<String, Option<String>> = BTreeMap::new();
        let mut zones = Numbering::of(self.numbers(Kind::Zone, path)?, limits.last_zone);
        let mut pools = Numbering::of(self.numbers(Kind::Pool, path)?, limits.last_pool);
        for change in changes {
            if let Change::Remove { kind, id } = change {
                ops.insert(format!("object/{}/{id}", kind.noun()), None);
                match kind {
                    Kind::Zone => zones.release(id),
                    Kind::Pool => pools.release(id),
                    _ => {}
                }
            }
        }
        let modified = crate::store::now();
        for change in changes {
            if let Change::Put { owner, object } = change {
                let (kind, id) = (object.kind(), object.id());
                match kind {
                    Kind::Zone => zones.give(&id).ok_or(exhausted("zone", limits.last_zone))?,
                    Kind::Pool => pools.give(&id).ok_or(exhausted("pool", limits.last_pool))?,
                    _ => {}
                }
                let row = Row {
                    owner: *owner,
                    modified,
                    object: object.clone(),
                };
                ops.insert(format!("object/{}/{id}", kind.noun()), Some(json(&row)));
            }
        }
        for (kind, numbering) in [(Kind::Zone, zones), (Kind::Pool, pools)] {
            for (id, row) in numbering.changed {
                let value = row.map(|row| json(&row));
                ops.insert(format!("number/{}/{id}", kind.noun()), value);
            }
        }
        // Of what is removed, only what is there.
        ops.retain(|key, value| value.is_some() || self.keys.contains_key(key));
        Ok(ops.into_iter().collect())
    }
}

/// What keeping a new token changes.
pub(super) fn put_token(new: &NewToken) -> Op {
    let row = TokenRow {
        hash: hex(&hash_of(&new.token)),
        token: new.kept.clone(),
    };
    (format!("token/{}", new.kept.id), Some(json(&row)))
}

/// What was said of a server.
fn said(server: &str, mark: Option<i64>) -> Condition {
    let text = mark.map(|mark| mark.to_string());
    Condition::Value(format!("{FORGOTTEN}{server}"), text)
}

fn promised(server: &str, promise: Option<&Promise>) -> Condition {
    Condition::Value(format!("{PROMISES}{server}"), promise.map(json))
}

/// What a step of a hand-over depends on, and what it changes.
pub(super) fn hand_over(step: &Step) -> (Vec<Condition>, Op) {
    match step {
        Step::Row {
            address,
            before,
            after,
            fenced,
        } => {
            let key = format!("{SLICES}{address}");
            let before = before.as_ref().map(json);
            let mut conditions = vec![Condition::Value(key.clone(), before)];
            let fenced = fenced.iter();
            conditions.extend(fenced.map(|(server, mark)| said(server, Some(*mark))));
            (conditions, (key, Some(json(after))))
        }
        Step::Forgotten {
            server,
            before,
            after,
            silence,
        } => {
            let mut conditions = vec![said(server, *before)];
            if let Some(Silence { promise, beat }) = silence {
                conditions.push(promised(server, Some(promise)));
                conditions.push(Condition::Value(
                    format!("{BEATS}{server}"),
                    Some(beat.clone()),
                ));
            }
            let key = format!("{FORGOTTEN}{server}");
            (conditions, (key, Some(after.to_string())))
        }
        Step::Promised {
            server,
            before,
            after,
            mark,
        } => {
            let conditions = vec![promised(server, before.as_ref()), said(server, *mark)];
            let key = format!("{PROMISES}{server}");
            (conditions, (key, Some(json(after))))
        }
    }
}

/// What a sign of life depends on, and what it changes.
pub(super) fn beat(
    server: &str,
    promise: Promise,
    mark: Option<i64>,
    beat: String,
) -> (Vec<Condition>, Op) {
    let conditions = vec![promised(server, Some(&promise)), said(server, mark)];
    (conditions, (format!("{BEATS}{server}"), Some(beat)))
}

fn number_of((id, row): (String, NumberRow)) -> (String, u16) {
    (id, row.number)
}

/// The numbers of one kind of object while changes are worked out.
struct Numbering {
    now: BTreeMap<String, NumberRow>,
    changed: BTreeMap<String, Option<NumberRow>>,
    last: u16,
    releases: i64,
}

impl Numbering {
    fn of(now: BTreeMap<String, NumberRow>, last: u16) -> Self {
        let releases = now.values().filter_map(|row| row.released).max();
        Self {
            now,
            changed: BTreeMap::new(),
            last,
            releases: releases.unwrap_or(0),
        }
    }

    fn set(&mut self, id: &str, row: NumberRow) {
        self.now.insert(id.to_owned(), row);
        self.changed.insert(id.to_owned(), Some(row));
    }

    fn release(&mut self, id: &str) {
        self.releases += 1;
        if let Some(row) = self.now.get(id).copied() {
            let released = Some(self.releases);
            self.set(id, NumberRow { released, ..row });
        }
    }

    /// Gives `id` its old number, else the next one, else the one that was released first; none where all are in use.
    fn give(&mut self, id: &str) -> Option<()> {
        let released = None;
        if let Some(row) = self.now.get(id).copied() {
            if row.released.is_some() {
                self.set(id, NumberRow { released, ..row });
            }
            return Some(());
        }
        let highest = self.now.values().map(|row| row.number).max().unwrap_or(0);
        let number = if highest < self.last {
            highest + 1
        } else {
            let (old, number) = self
                .now
                .iter()
                .filter(|(_, row)| row.number <= self.last)
                .filter_map(|(old, row)| Some((row.released?, old.clone(), row.number)))
                .min()
                .map(|(_, old, number)| (old, number))?;
            self.now.remove(&old);
            self.changed.insert(old, None);
            number
        };
        self.set(id, NumberRow { number, released });
        Some(())
    }
}

fn exhausted(noun: &'static str, last: u16) -> StoreError {
    StoreError::Exhausted { noun, last }
}

fn corrupt(path: &Path, reason: &str) -> StoreError {
    StoreError::Corrupt {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

pub(super) fn read<'v, T: Deserialize<'v>>(
    path: &Path,
    key: &str,
    value: &'v str,
) -> Result<T, StoreError> {
    serde_json::from_str(value)
        .map_err(|error| corrupt(path, &format!("{key} cannot be read: {error}")))
}

/// Our own rows: they have no maps with keys that are no texts, which is all that can fail.
pub(super) fn json<T: Serialize>(row: &T) -> String {
    serde_json::to_string(row).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok())
        .collect()
}
