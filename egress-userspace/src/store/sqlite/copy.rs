//! A database that is the copy of a shared store: replaced as a whole, never changed.

use rusqlite::{OptionalExtension, TransactionBehavior, params};

use super::{SqliteStore, inaccessible};
use crate::resource::Kind;
use crate::store::{StoreError, Stored, Token};

/// What a copy is of. A store of its own has no such table.
const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS copy (
    source     TEXT NOT NULL,
    generation INTEGER              -- the commit that was copied last; NULL before the first
) STRICT;
CREATE TABLE IF NOT EXISTS ownership (
    value TEXT NOT NULL             -- who holds which slices; no row before the first copy
) STRICT;
";
/// When the shared store was asked for what was copied last, µs since 1970.
const SECOND: &str = "ALTER TABLE copy ADD COLUMN asked INTEGER NOT NULL DEFAULT 0;";
/// At which revision of the shared store that was read. Since then `asked` is since the start of the machine that is named:
/// no clock that somebody may set tells whose word is later.
const THIRD: &str = "ALTER TABLE copy ADD COLUMN revision INTEGER NOT NULL DEFAULT 0;
ALTER TABLE copy ADD COLUMN boot TEXT NOT NULL DEFAULT '';";

/// All that is copied.
#[derive(Debug)]
pub(in crate::store) struct Copy<'s> {
    pub(in crate::store) stored: &'s Stored,
    /// With the hashes of their secrets.
    pub(in crate::store) tokens: &'s [(Token, Vec<u8>)],
    /// The commit.
    pub(in crate::store) generation: i64,
    /// The revision at which it was read: also what is no commit raises it.
    pub(in crate::store) revision: i64,
    /// When the store was asked for it.
    pub(in crate::store) asked: &'s Asked,
    /// When the store was told the last of it: later than that only if this server has committed it itself.
    pub(in crate::store) told: &'s Asked,
}

/// A time, of which it can be told whether it is later than another one of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::store) struct Asked {
    /// The machine's start, which has a name.
    boot: String,
    /// µs since then.
    at: i64,
}

impl Asked {
    /// Now.
    pub(in crate::store) fn now() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes to a struct of ours; the clock is older than any kernel we run on.
        unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
        Self {
            boot: boot.trim().to_owned(),
            at: time.tv_sec * 1_000_000 + time.tv_nsec / 1_000,
        }
    }

    #[cfg(test)]
    pub(in crate::store) fn of(boot: &str, at: i64) -> Self {
        let boot = boot.to_owned();
        Self { boot, at }
    }

    /// Nobody who asked before the machine was started is still at work.
    fn is_after(&self, other: &Self) -> bool {
        self.boot != other.boot || self.at > other.at
    }
}

impl SqliteStore {
    /// Makes the database a copy of `source`, if it is that already, or holds nothing.
    ///
    /// # Errors
    /// [`StoreError::NotACopy`] where it is a store of its own, or another one's copy.
    pub(in crate::store) fn become_copy_of(&mut self, source: &str) -> Result<(), StoreError> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(|error| inaccessible(&self.path, &error))?;
        let outcome = (|| {
            transaction.execute_batch(SCHEMA)?;
            for (column, addition) in [("asked", SECOND), ("revision", THIRD)] {
                let has_it = transaction.query_row(
                    "SELECT count(*) FROM pragma_table_info('copy') WHERE name = ?1",
                    [column],
                    |row| row.get::<_, i64>(0),
                )?;
                if has_it == 0 {
                    transaction.execute_batch(addition)?;
                }
            }
            let found: Option<String> = transaction
                .query_row("SELECT source FROM copy", [], |row| row.get(0))
                .optional()?;
            if found.is_none() {
                let objects: i64 = transaction.query_row(
                    "SELECT (SELECT count(*) FROM object) + (SELECT count(*) FROM token)",
                    [],
                    |row| row.get(0),
                )?;
                if objects > 0 {
                    return Ok(Some("a store of its own".to_owned()));
                }
                transaction.execute("INSERT INTO copy (source) VALUES (?1)", [source])?;
            }
            Ok(found
                .filter(|found| found != source)
                .map(|found| format!("the copy of {found}")))
        })();
        let other = outcome.map_err(|error: rusqlite::Error| inaccessible(&self.path, &error))?;
        if let Some(is) = other {
            return Err(StoreError::NotACopy {
                path: self.path.clone(),
                is,
            });
        }
        transaction
            .commit()
            .map_err(|error| inaccessible(&self.path, &error))
    }

    /// The commit that was copied last.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(in crate::store) fn generation(&self) -> Result<Option<i64>, StoreError> {
        self.connection
            .query_row("SELECT generation FROM copy", [], |row| row.get(0))
            .optional()
            .map(Option::flatten)
            .map_err(|error| self.failed(&error))
    }

    /// Replaces everything, unless this was copied before, or somebody else, who asked later, has copied what is later: of
    /// the configuration, or of who owns what, which also changes between commits. Who asks later and is told what is earlier
    /// has met a store that was restored, and goes by it.
    ///
    /// # Errors
    /// When the database cannot be written; it is as it was.
    pub(in crate::store) fn copy(&mut self, copy: &Copy<'_>) -> Result<(), StoreError> {
        let same = self.generation()? == Some(copy.generation);
        if same && self.ownership()? == copy.stored.ownership {
            return Ok(());
        }
        self.replace(copy)
            .map_err(|error| inaccessible(&self.path, &error))
    }

    fn replace(&mut self, copy: &Copy<'_>) -> Result<(), Box<dyn std::error::Error>> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (generation, revision, asked): (Option<i64>, i64, Asked) = transaction.query_row(
            "SELECT generation, revision, boot, asked FROM copy",
            [],
            |row| {
                let (boot, at) = (row.get(2)?, row.get(3)?);
                Ok((row.get(0)?, row.get(1)?, Asked { boot, at }))
            },
        )?;
        let is_earlier = generation > Some(copy.generation) || revision > copy.revision;
        if is_earlier && !copy.asked.is_after(&asked) {
            return Ok(());
        }
        if generation > Some(copy.generation) {
            tracing::warn!(
                copied = generation,
                holds = copy.generation,
                "the shared store holds an earlier commit than before, as after it was restored: it is followed"
            );
        }
        transaction.execute_batch("DELETE FROM object; DELETE FROM number; DELETE FROM token;")?;
        {
            let mut object = transaction.prepare_cached(
                "INSERT INTO object (kind, id, owner, value, modified) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for ((kind, id), (owner, value)) in &copy.stored.objects {
                let modified = copy.stored.modified.get(&(*kind, id.clone()));
                let json = serde_json::to_string(value)?;
                let modified = modified.copied().unwrap_or(0);
                object.execute(params![kind.noun(), id, owner.word(), json, modified])?;
            }
            let mut number = transaction
                .prepare_cached("INSERT INTO number (kind, id, number) VALUES (?1, ?2, ?3)")?;
            let numbers = &copy.stored.numbers;
            for (kind, of_kind) in [(Kind::Zone, &numbers.zones), (Kind::Pool, &numbers.pools)] {
                for (id, value) in of_kind {
                    number.execute(params![kind.noun(), id, value])?;
                }
            }
            let mut token = transaction.prepare_cached(
                "INSERT INTO token (id, hash, name, permissions, accounts, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (kept, hash) in copy.tokens {
                let permissions = serde_json::to_string(&kept.permissions)?;
                let accounts = serde_json::to_string(&kept.accounts)?;
                token.execute(params![
                    kept.id,
                    hash,
                    kept.name,
                    permissions,
                    accounts,
                    kept.created
                ])?;
            }
        }
        transaction.execute("DELETE FROM ownership", [])?;
        if let Some(ownership) = &copy.stored.ownership {
            let text = serde_json::to_string(ownership)?;
            transaction.execute("INSERT INTO ownership (value) VALUES (?1)", [text])?;
        }
        transaction.execute(
            "UPDATE copy SET generation = ?1, revision = ?2, boot = ?3, asked = ?4",
            params![copy.generation, copy.revision, copy.told.boot, copy.told.at],
        )?;
        transaction.commit()?;
        Ok(())
    }
}
