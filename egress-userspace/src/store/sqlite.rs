//! The embedded store: one SQLite file, nothing to install (CLU-1).

use std::fmt::Display;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};

use super::{Change, Limits, Numbers, StateStore, StoreError, Stored};
use crate::resource::{Kind, Object, Owner};

/// Version of the schema below, in `PRAGMA user_version`.
const SCHEMA_VERSION: i64 = 1;
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

    /// Opens an existing store for reading; creates and changes nothing.
    pub fn open_read_only(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Absent {
                path: path.to_owned(),
            });
        }
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
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
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

    fn objects(&self, stored: &mut Stored) -> Result<(), StoreError> {
        let mut statement = self
            .connection
            .prepare("SELECT kind, id, owner, value FROM object")
            .map_err(|error| self.failed(&error))?;
        let rows = statement
            .query_map([], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .map_err(|error| self.failed(&error))?;
        for row in rows {
            let (kind, id, owner, value): (String, String, String, String) =
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
        let mut stored = Stored::default();
        self.objects(&mut stored)?;
        stored.numbers = self.numbers()?;
        transaction.finish().map_err(|error| self.failed(&error))?;
        Ok(stored)
    }

    fn commit(&mut self, changes: &[Change], limits: Limits) -> Result<(), StoreError> {
        match write(&mut self.connection, changes, limits) {
            Ok(()) => Ok(()),
            Err(WriteError::Exhausted { noun, last }) => Err(StoreError::Exhausted { noun, last }),
            Err(WriteError::Sqlite(error)) => Err(self.failed(&error)),
            Err(WriteError::Json(error)) => Err(inaccessible(&self.path, &error)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("all {last} {noun} numbers are in use")]
    Exhausted { noun: &'static str, last: u16 },
}

fn write(
    connection: &mut Connection,
    changes: &[Change],
    limits: Limits,
) -> Result<(), WriteError> {
    // Dropping the transaction on an error rolls it back.
    let transaction =
        connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    for change in changes {
        if let Change::Remove { kind, id } = change {
            transaction.execute(
                "DELETE FROM object WHERE kind = ?1 AND id = ?2",
                params![kind.noun(), id],
            )?;
            transaction.execute(
                "UPDATE number SET released = (SELECT coalesce(max(released), 0) + 1 FROM number)
                 WHERE kind = ?1 AND id = ?2",
                params![kind.noun(), id],
            )?;
        }
    }
    for change in changes {
        if let Change::Put { owner, object } = change {
            let (kind, id) = (object.kind(), object.id());
            transaction.execute(
                "INSERT INTO object (kind, id, owner, value) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (kind, id) DO UPDATE SET owner = excluded.owner, value = excluded.value",
                params![kind.noun(), id, owner.word(), serde_json::to_string(object)?],
            )?;
            match kind {
                Kind::Zone => number(&transaction, "zone", &id, limits.last_zone)?,
                Kind::Pool => number(&transaction, "pool", &id, limits.last_pool)?,
                Kind::Account | Kind::Prefix | Kind::Setting => {}
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

/// Gives `id` its old number, else the next one, else the one that was released first.
fn number(
    transaction: &Transaction<'_>,
    noun: &'static str,
    id: &str,
    last: u16,
) -> Result<(), WriteError> {
    let kept = transaction.execute(
        "UPDATE number SET released = NULL WHERE kind = ?1 AND id = ?2",
        params![noun, id],
    )?;
    if kept > 0 {
        return Ok(());
    }
    let highest: i64 = transaction.query_row(
        "SELECT coalesce(max(number), 0) FROM number WHERE kind = ?1",
        params![noun],
        |row| row.get(0),
    )?;
    let next = if highest < i64::from(last) {
        highest + 1
    } else {
        let released: Option<(String, i64)> = transaction
            .query_row(
                "SELECT id, number FROM number WHERE kind = ?1 AND released IS NOT NULL AND number <= ?2
                 ORDER BY released LIMIT 1",
                params![noun, last],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )
            .optional()?;
        let Some((old, number)) = released else {
            return Err(WriteError::Exhausted { noun, last });
        };
        transaction.execute(
            "DELETE FROM number WHERE kind = ?1 AND id = ?2",
            params![noun, old],
        )?;
        number
    };
    transaction.execute(
        "INSERT INTO number (kind, id, number) VALUES (?1, ?2, ?3)",
        params![noun, id, next],
    )?;
    Ok(())
}

fn inaccessible(path: &Path, reason: &dyn Display) -> StoreError {
    StoreError::Inaccessible {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    fn fresh() -> (tempfile::TempDir, SqliteStore) {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("sub/egress.db")).unwrap();
        (directory, store)
    }

    #[test]
    fn it_keeps_the_promises_of_a_store() {
        conformance::keeps_what_was_committed(&mut fresh().1);
        conformance::removes_what_was_removed(&mut fresh().1);
        conformance::numbers_are_stable_and_reused_last(&mut fresh().1);
        conformance::a_commit_that_fails_changes_nothing(&mut fresh().1);
    }

    #[test]
    fn what_was_committed_is_there_after_opening_again() {
        let (directory, mut store) = fresh();
        conformance::keeps_what_was_committed(&mut store);
        let before = store.load().unwrap();
        let path = directory.path().join("sub/egress.db");
        assert_eq!(
            SqliteStore::open_read_only(&path).unwrap().load().unwrap(),
            before,
            "beside the writer"
        );
        drop(store);
        assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap(), before);
        assert_eq!(
            SqliteStore::open_read_only(&path).unwrap().load().unwrap(),
            before
        );
    }

    #[test]
    fn a_corrupt_file_is_refused_by_path_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("egress.db");
        std::fs::write(
            &path,
            "this is not a database at all, whatever its name says".repeat(100),
        )
        .unwrap();
        let error = SqliteStore::open(&path).unwrap_err();
        assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
        assert!(error.to_string().contains(path.to_str().unwrap()));
        assert!(error.remedy().contains("move"));
        assert!(matches!(
            SqliteStore::open_read_only(&path),
            Err(StoreError::Corrupt { .. })
        ));
    }

    #[test]
    fn damage_in_the_middle_of_a_file_is_noticed() {
        let (directory, mut store) = fresh();
        conformance::keeps_what_was_committed(&mut store);
        drop(store);
        let path = directory.path().join("sub/egress.db");
        let mut bytes = std::fs::read(&path).unwrap();
        for byte in &mut bytes[4096..] {
            *byte = 0x5a;
        }
        std::fs::write(&path, bytes).unwrap();
        assert!(matches!(
            SqliteStore::open(&path),
            Err(StoreError::Corrupt { .. })
        ));
    }

    #[test]
    fn a_row_that_cannot_be_read_is_named() {
        let (_directory, store) = fresh();
        store
            .connection
            .execute(
                "INSERT INTO object VALUES ('pool', 'p', 'file', '{\"kind\":\"pool\"}')",
                [],
            )
            .unwrap();
        assert!(
            store
                .load()
                .unwrap_err()
                .to_string()
                .contains("pool p cannot be read")
        );
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let (directory, store) = fresh();
        store
            .connection
            .pragma_update(None, "user_version", 9)
            .unwrap();
        drop(store);
        let error = SqliteStore::open(&directory.path().join("sub/egress.db")).unwrap_err();
        assert!(
            matches!(
                error,
                StoreError::Newer {
                    found: 9,
                    known: 1,
                    ..
                }
            ),
            "{error:?}"
        );
    }

    #[test]
    fn another_applications_database_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("theirs.db");
        Connection::open(&path)
            .unwrap()
            .execute_batch("CREATE TABLE theirs (x)")
            .unwrap();
        assert!(matches!(
            SqliteStore::open(&path),
            Err(StoreError::Foreign { .. })
        ));
    }

    #[test]
    fn a_missing_store_is_not_created_by_a_reader() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("egress.db");
        assert!(matches!(
            SqliteStore::open_read_only(&path),
            Err(StoreError::Absent { .. })
        ));
        assert!(!path.exists());
    }
}
