//! The embedded store: one SQLite file, nothing to install (CLU-1).

#[cfg(feature = "etcd")]
mod copy;
mod owned;
mod tokens;
mod write;

use std::fmt::Display;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

#[cfg(feature = "etcd")]
pub(super) use copy::{Asked, Copy};
use write::{WriteError, write};

use super::{Change, Limits, Numbers, StateStore, StoreError, Stored};
use crate::resource::{Kind, Object, Owner};

/// Version of the schema below, in `PRAGMA user_version`.
///
/// 3: locations and placements among the objects; 4: policies; 5: leases, and what the API has of prefixes; 6: prefixes
/// that are withdrawn, which an older version would announce; 7: a copy says what its server has promised (CLU-3), and an older
/// version would go on beyond that. The tables are those of 2.
pub(super) const SCHEMA_VERSION: i64 = 7;
/// "EGRS", in `PRAGMA application_id`: tells our files from other applications'.
const APPLICATION_ID: i64 = 0x4547_5253;
/// How long a writer waits for another process.
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE object (
    kind  TEXT NOT NULL,
    id    TEXT NOT NULL,
    owner TEXT NOT NULL CHECK (owner IN ('file', 'api')),
    value TEXT NOT NULL,                    -- JSON
    modified INTEGER NOT NULL DEFAULT 0,    -- microseconds since 1970; 0: before that was noted
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE number (
    kind     TEXT NOT NULL,
    id       TEXT NOT NULL,
    number   INTEGER NOT NULL CHECK (number > 0),
    released INTEGER,                       -- NULL while in use, else the how-manieth release it was
    PRIMARY KEY (kind, id),
    UNIQUE (kind, number)
) STRICT, WITHOUT ROWID;
";
/// What the second version added to the first, besides the tokens.
const SECOND: &str = "ALTER TABLE object ADD COLUMN modified INTEGER NOT NULL DEFAULT 0;";

/// A store in an SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    connection: Connection,
    path: PathBuf,
}

impl SqliteStore {
    /// Opens the store for reading and writing; creates it, and its directory, where there is none.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if let Some(directory) = path
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty())
        {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(|error| {
                    inaccessible(
                        path,
                        &format!("cannot create {}: {error}", directory.display()),
                    )
                })?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut store = Self::connect(path, flags)?;
        store.prepare()?;
        // Settings tell who uses which address: nobody else's business.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(|error| inaccessible(path, &error))?;
        Ok(store)
    }

    /// Opens an existing store for writing beside a daemon that may be of an older version: creates nothing, and does
    /// not bring it up to date.
    pub fn open_beside(path: &Path) -> Result<Self, StoreError> {
        require(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut store = Self::connect(path, flags)?;
        let found = store.pragma("user_version")?;
        store.known(found)?;
        if found < SCHEMA_VERSION {
            return Err(StoreError::Older {
                path: path.to_owned(),
                found,
                known: SCHEMA_VERSION,
            });
        }
        store.prepare()?;
        Ok(store)
    }

    /// Opens an existing store for reading; creates and changes nothing.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        require(path)?;
        let store = Self::connect(
            path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        let version = store.pragma("user_version")?;
        store.known(version)?;
        Ok(store)
    }

    /// A store that is gone with the process, for tests.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        let mut store = Self::connect(Path::new(":memory:"), OpenFlags::default()).unwrap();
        store.prepare().unwrap();
        store
    }

    /// As on a disk that is full, for tests.
    #[cfg(test)]
    #[cfg_attr(not(feature = "etcd"), expect(dead_code, reason = "copies are etcd's"))]
    pub(crate) fn refuse_writes(&self, refuse: bool) {
        let pragma = self.connection.pragma_update(None, "query_only", refuse);
        pragma.unwrap();
    }

    fn connect(path: &Path, flags: OpenFlags) -> Result<Self, StoreError> {
        let connection =
            Connection::open_with_flags(path, flags).map_err(|error| inaccessible(path, &error))?;
        connection
            .busy_timeout(BUSY)
            .map_err(|error| inaccessible(path, &error))?;
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    fn prepare(&mut self) -> Result<(), StoreError> {
        let version = self.pragma("user_version")?;
        if version == 0 {
            let tables: i64 = self
                .connection
                .query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
                .map_err(|error| self.failed(&error))?;
            if tables > 0 {
                return Err(StoreError::Foreign {
                    path: self.path.clone(),
                });
            }
            self.create().map_err(|error| self.failed(&error))?;
        } else {
            self.known(version)?;
            if version < SCHEMA_VERSION {
                self.migrate().map_err(|error| self.failed(&error))?;
            }
        }
        self.connection
            .execute_batch("PRAGMA synchronous = FULL;")
            .map_err(|error| self.failed(&error))?;
        let verdict: String = self
            .connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
            .map_err(|error| self.failed(&error))?;
        if verdict != "ok" {
            return Err(self.corrupt(&verdict));
        }
        Ok(())
    }

    fn create(&mut self) -> rusqlite::Result<()> {
        let _mode: String = self
            .connection
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        let transaction = self.connection.transaction()?;
        transaction.execute_batch(SCHEMA)?;
        transaction.execute_batch(tokens::SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        transaction.commit()
    }

    /// From an earlier version to this one, wholly or not at all.
    fn migrate(&mut self) -> rusqlite::Result<()> {
        let transaction = self
            .connection
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have been faster.
        let version: i64 =
            transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        if version == 1 {
            transaction.execute_batch(SECOND)?;
            transaction.execute_batch(tokens::SCHEMA)?;
        }
        if version < SCHEMA_VERSION {
            transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        }
        transaction.commit()
    }

    fn known(&self, version: i64) -> Result<(), StoreError> {
        if self.pragma("application_id")? != APPLICATION_ID {
            return Err(StoreError::Foreign {
                path: self.path.clone(),
            });
        }
        if version > SCHEMA_VERSION {
            return Err(StoreError::Newer {
                path: self.path.clone(),
                found: version,
                known: SCHEMA_VERSION,
            });
        }
        Ok(())
    }

    fn pragma(&self, name: &str) -> Result<i64, StoreError> {
        self.connection
            .pragma_query_value(None, name, |row| row.get(0))
            .map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &rusqlite::Error) -> StoreError {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => self.corrupt(error),
            Some(_) => inaccessible(&self.path, error),
            // Not from SQLite itself: a column of another type than the schema's.
            None => self.corrupt(error),
        }
    }

    fn corrupt(&self, reason: &dyn Display) -> StoreError {
        StoreError::Corrupt {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }

    /// Everything, within a transaction.
    fn everything(&self) -> Result<Stored, StoreError> {
        let mut stored = Stored::default();
        self.objects(&mut stored)?;
        stored.numbers = self.numbers()?;
        stored.ownership = self.ownership()?;
        Ok(stored)
    }

    fn objects(&self, stored: &mut Stored) -> Result<(), StoreError> {
        // A reader may meet a store that no daemon of this version has opened yet.
        let modified = if self.pragma("user_version")? < 2 {
            "0"
        } else {
            "modified"
        };
        let mut statement = self
            .connection
            .prepare(&format!(
                "SELECT kind, id, owner, value, {modified} FROM object"
            ))
            .map_err(|error| self.failed(&error))?;
        let rows = statement
            .query_map([], |row| {
                Ok((
                    row.get(0)?,
                    row.get(1)?,
                    row.get(2)?,
                    row.get(3)?,
                    row.get(4)?,
                ))
            })
            .map_err(|error| self.failed(&error))?;
        for row in rows {
            let (kind, id, owner, value, modified): (String, String, String, String, i64) =
                row.map_err(|error| self.failed(&error))?;
            let object: Object = serde_json::from_str(&value)
                .map_err(|error| self.corrupt(&format!("{kind} {id} cannot be read: {error}")))?;
            if object.kind().noun() != kind || object.id() != id {
                return Err(self.corrupt(&format!(
                    "{kind} {id} holds {} {}",
                    object.kind().noun(),
                    object.id()
                )));
            }
            let owner = if owner == Owner::File.word() {
                Owner::File
            } else {
                Owner::Api
            };
            if modified > 0 {
                stored
                    .modified
                    .insert((object.kind(), id.clone()), modified);
            }
            stored.objects.insert((object.kind(), id), (owner, object));
        }
        Ok(())
    }

    fn numbers(&self) -> Result<Numbers, StoreError> {
        let mut numbers = Numbers::default();
        let mut statement = self
            .connection
            .prepare("SELECT kind, id, number FROM number")
            .map_err(|error| self.failed(&error))?;
        let rows = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .map_err(|error| self.failed(&error))?;
        for row in rows {
            let (kind, id, number): (String, String, u16) =
                row.map_err(|error| self.failed(&error))?;
            let of_kind = if kind == Kind::Zone.noun() {
                &mut numbers.zones
            } else {
                &mut numbers.pools
            };
            of_kind.insert(id, number);
        }
        Ok(numbers)
    }
}

impl StateStore for SqliteStore {
    fn load(&self) -> Result<Stored, StoreError> {
        // One read transaction: objects and numbers of the same commit.
        let transaction = self
            .connection
            .unchecked_transaction()
            .map_err(|error| self.failed(&error))?;
        let stored = self.everything()?;
        transaction.finish().map_err(|error| self.failed(&error))?;
        Ok(stored)
    }

    fn commit_if(
        &mut self,
        changes: &[Change],
        limits: Limits,
        agrees: &mut dyn FnMut(&Stored) -> bool,
    ) -> Result<Stored, StoreError> {
        // Dropping the transaction on an error rolls it back.
        let transaction =
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
                .map_err(|error| self.failed(&error))?;
        write(&transaction, changes, limits).map_err(|error| match error {
            WriteError::Exhausted { noun, last } => StoreError::Exhausted { noun, last },
            WriteError::Sqlite(error) => self.failed(&error),
            WriteError::Json(error) => inaccessible(&self.path, &error),
        })?;
        let stored = self.everything()?;
        if !agrees(&stored) {
            return Err(StoreError::Refused);
        }
        transaction.commit().map_err(|error| self.failed(&error))?;
        Ok(stored)
    }
}

/// Refuses a store that is not there. One that nobody can look at is another matter.
fn require(path: &Path) -> Result<(), StoreError> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => Err(StoreError::Absent {
            path: path.to_owned(),
        }),
        Err(error) => Err(inaccessible(path, &error)),
    }
}

fn inaccessible(path: &Path, reason: &dyn Display) -> StoreError {
    StoreError::Inaccessible {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests;
