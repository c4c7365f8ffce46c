//! Past buckets, in an SQLite file of their own beside the store.

use std::fmt::Display;
use std::fs::Permissions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension as _, Row as Columns, params};
use serde::{Deserialize, Serialize};

use super::bucket::{Bucket, Key, Series, Sum};
use super::kept;
use super::levels::Levels;
use super::rollup::{self, Retention};
use crate::dataplane::api::Protocol;

/// Version of the schema, in `PRAGMA user_version`.
const VERSION: i64 = 4;
/// "EGRU", in `PRAGMA application_id`.
const APPLICATION_ID: i64 = 0x4547_5255;
/// How long a writer waits for another process.
const BUSY: Duration = Duration::from_secs(5);

const SCHEMA: &str = "
CREATE TABLE bucket (
    start   INTEGER NOT NULL PRIMARY KEY,   -- seconds since 1970
    covered INTEGER NOT NULL,               -- ms that were counted
    part    INTEGER NOT NULL,               -- of which these may still grow
    source  INTEGER NOT NULL,               -- by what is told of the same source
    made    INTEGER NOT NULL,               -- the maps that it was read from last
    until   INTEGER NOT NULL                -- ns of their clock: what was read
) STRICT;
CREATE TABLE utilization (
    start    INTEGER NOT NULL,
    egress   TEXT NOT NULL,
    origin   TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    account  TEXT NOT NULL,                 -- id of the owner of the address at that time
    pop      TEXT NOT NULL,                 -- data center
    active   INTEGER NOT NULL,              -- connections when it was looked at last
    sum      INTEGER NOT NULL,              -- connections times ms
    part     INTEGER NOT NULL,              -- as above
    source   INTEGER NOT NULL,
    missed   INTEGER NOT NULL,              -- ms of which nobody knows
    max      INTEGER NOT NULL,              -- the most connections at once
    capacity INTEGER NOT NULL,              -- the most that were admitted at once
    PRIMARY KEY (start, egress, origin, protocol)
) STRICT, WITHOUT ROWID;
";

/// From version 1, whose sums do not grow any more.
const FROM_1: &str = "
ALTER TABLE bucket ADD COLUMN part INTEGER NOT NULL DEFAULT 0;
ALTER TABLE bucket ADD COLUMN source INTEGER NOT NULL DEFAULT 0;
ALTER TABLE bucket ADD COLUMN made INTEGER NOT NULL DEFAULT 0;
UPDATE bucket SET until = 0;
ALTER TABLE utilization ADD COLUMN part INTEGER NOT NULL DEFAULT 0;
ALTER TABLE utilization ADD COLUMN source INTEGER NOT NULL DEFAULT 0;
ALTER TABLE utilization ADD COLUMN missed INTEGER NOT NULL DEFAULT 0;
";

/// The file of past buckets.
#[derive(Debug)]
pub struct History {
    connection: Connection,
    path: PathBuf,
}

/// One count's bucket, as it is asked for: five minutes, or of older ones an hour or a day.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// When the bucket began, seconds since 1970.
    pub start: i64,
    /// How long it lasts, seconds; 0 where an older server does not say so.
    #[serde(default)]
    pub length: i64,
    /// The data center.
    pub pop: String,
    /// The dedicated source address.
    pub egress_ip: String,
    /// Destination address and port.
    pub origin: String,
    /// Number of the protocol; 0 where an older server does not say so.
    #[serde(default)]
    pub protocol: u8,
    /// Connections times ms.
    pub sum: u64,
    /// As many as there could have been.
    pub possible: u64,
    /// The most connections at once.
    pub max: u64,
    /// The most that were admitted at once.
    pub capacity: u64,
    /// The most that all servers of the data center admitted at once; 0 where they do not share the address.
    #[serde(default)]
    pub whole: u64,
    /// What was in each second ([`super::Levels::bytes`]); nothing where that is not kept.
    #[serde(default, with = "text", skip_serializing_if = "Vec::is_empty")]
    pub seconds: Vec<u8>,
}

/// Bytes as text.
mod text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        // What is no text of bytes tells nothing.
        Ok(STANDARD.decode(text).unwrap_or_default())
    }
}

/// Why history cannot be kept or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}", path = path.display())]
pub struct HistoryError {
    path: PathBuf,
    reason: String,
}

impl History {
    /// Where it is, beside this store.
    pub fn beside(store: &Path) -> PathBuf {
        store.with_file_name("utilization.db")
    }

    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// When it cannot be written, is something else, or is from a newer version.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let failed = |reason: &dyn Display| HistoryError {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let mut connection = Connection::open(path).map_err(|error| failed(&error))?;
        let opened = || -> rusqlite::Result<i64> {
            connection.busy_timeout(BUSY)?;
            let _mode: String =
                connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
            // A power cut may cost the last seconds, and never the file.
            connection.execute_batch("PRAGMA synchronous = NORMAL;")?;
            let tables: i64 =
                connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
            if tables == 0 {
                let transaction = connection.transaction()?;
                transaction.execute_batch(SCHEMA)?;
                transaction.execute_batch(rollup::TABLES)?;
                transaction.execute_batch(kept::TABLES)?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
                transaction.commit()?;
            }
            let id: i64 =
                connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
            if id != APPLICATION_ID {
                return Ok(0);
            }
            let version: i64 =
                connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if (1..VERSION).contains(&version) {
                let transaction = connection.transaction()?;
                if version == 1 {
                    transaction.execute_batch(FROM_1)?;
                }
                if version < 3 {
                    transaction.execute_batch(rollup::TABLES)?;
                }
                transaction.execute_batch(kept::TABLES)?;
                transaction.pragma_update(None, "user_version", VERSION)?;
                transaction.commit()?;
                return Ok(VERSION);
            }
            Ok(version)
        };
        let mut opened = opened;
        match opened().map_err(|error| failed(&error))? {
            VERSION => {}
            0 => return Err(failed(&"it is no history of utilization")),
            newer => {
                return Err(failed(&format!(
                    "it has version {newer}, and this program knows {VERSION}"
                )));
            }
        }
        // It tells who talks to whom.
        std::fs::set_permissions(path, Permissions::from_mode(0o600))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            connection,
            path: path.to_owned(),
        })
    }

    fn failed(&self, reason: &dyn Display) -> HistoryError {
        HistoryError {
            path: self.path.clone(),
            reason: reason.to_string(),
        }
    }

    /// Keeps a bucket as it is now.
    ///
    /// # Errors
    /// When the file cannot be written; what it had, it has.
    pub fn save(&mut self, bucket: &Bucket, pop: &str) -> Result<(), HistoryError> {
        let saved = save(&mut self.connection, bucket, pop);
        saved.map_err(|error| self.failed(&error))
    }

    /// Until when these maps were read, ns of their clock; `None` if they never were.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn until(&self, made: u64) -> Result<Option<u64>, HistoryError> {
        let made = i64::from_ne_bytes(made.to_ne_bytes());
        let query = "SELECT max(until) FROM bucket WHERE made = ?1";
        let found = self.connection.query_row(query, [made], |row| row.get(0));
        found.map_err(|error| self.failed(&error))
    }

    /// The bucket that began then, as far as it was kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn load(&self, start: i64) -> Result<Option<Bucket>, HistoryError> {
        let read = || -> rusqlite::Result<Option<Bucket>> {
            let query =
                "SELECT start, covered, part, source, made, until FROM bucket WHERE start = ?1";
            let found = self.connection.query_row(query, [start], |row| {
                let made: i64 = row.get(4)?;
                Ok(Bucket {
                    start: row.get(0)?,
                    covered: Sum {
                        all: row.get(1)?,
                        part: row.get(2)?,
                        source: row.get(3)?,
                    },
                    made: u64::from_ne_bytes(made.to_ne_bytes()),
                    until: row.get(5)?,
                    ..Bucket::default()
                })
            });
            let Some(mut bucket) = found.optional()? else {
                return Ok(None);
            };
            let mut statement = self.connection.prepare(
                "SELECT egress, origin, protocol, account, active, sum, part, source, missed, max, capacity, whole
                 FROM utilization WHERE start = ?1",
            )?;
            let rows = statement.query_map([bucket.start], series)?;
            for row in rows {
                bucket.series.extend(row?);
            }
            kept::load(&self.connection, &mut bucket)?;
            Ok(Some(bucket))
        };
        read().map_err(|error| self.failed(&error))
    }

    /// Visits what an account had from one bucket to another, both included, in no order, until `each` says false.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn visit(
        &self,
        account: &str,
        from: i64,
        to: i64,
        each: &mut dyn FnMut(Row) -> bool,
    ) -> Result<(), HistoryError> {
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = self.connection.prepare_cached(rollup::ALL)?;
            let mut rows = statement.query(params![from, to, account])?;
            while let Some(row) = rows.next()? {
                let more = each(Row {
                    start: row.get(0)?,
                    length: row.get(8)?,
                    pop: row.get(1)?,
                    egress_ip: row.get(2)?,
                    origin: row.get(3)?,
                    protocol: row.get(9)?,
                    sum: row.get(4)?,
                    possible: row.get(5)?,
                    max: row.get(6)?,
                    capacity: row.get(7)?,
                    whole: row.get(10)?,
                    seconds: row.get::<_, Option<_>>(11)?.unwrap_or_default(),
                });
                if !more {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(|error| self.failed(&error))
    }

    /// Puts what is over at `now` (seconds since 1970) into hours and days, and forgets what is too old.
    ///
    /// # Errors
    /// When the file cannot be written; nothing is done then.
    pub fn tidy(&mut self, now: i64, retention: &Retention) -> Result<(), HistoryError> {
        let tidy = |connection: &mut Connection| -> rusqlite::Result<()> {
            let transaction = connection.transaction()?;
            rollup::tidy(&transaction, now, retention)?;
            kept::tidy(&transaction, kept::MOST)?;
            transaction.commit()
        };
        tidy(&mut self.connection).map_err(|error| self.failed(&error))
    }

    /// Nothing is older than this, seconds.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn longest(&self) -> Result<i64, HistoryError> {
        let query = "SELECT max(kept) FROM grain";
        let found = self
            .connection
            .query_row(query, [], |row| row.get::<_, Option<i64>>(0));
        let found = found.map_err(|error| self.failed(&error))?;
        Ok(found.unwrap_or_else(|| Retention::default().longest()))
    }
}

fn save(connection: &mut Connection, bucket: &Bucket, pop: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    rollup::reopen(&transaction, bucket.start)?;
    {
        let mut statement = transaction.prepare_cached(
            "INSERT INTO utilization
                 (start, egress, origin, protocol, account, pop, active, sum, part, source, missed, max, capacity, whole)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)
             ON CONFLICT DO UPDATE SET account = excluded.account, active = excluded.active,
                 sum = excluded.sum, part = excluded.part, source = excluded.source,
                 missed = excluded.missed, max = excluded.max, capacity = excluded.capacity, whole = excluded.whole",
        )?;
        for (key, series) in bucket.series.iter().filter(|(_, series)| series.is_used()) {
            statement.execute(params![
                bucket.start,
                key.egress_ip.to_string(),
                key.origin.to_string(),
                key.protocol.number(),
                series.account,
                pop,
                series.active,
                series.sum.all,
                series.sum.part,
                series.sum.source,
                series.missed,
                series.max,
                series.capacity,
                series.whole
            ])?;
        }
    }
    let seconds = kept::save(&transaction, bucket)?;
    transaction.execute(
        "INSERT OR REPLACE INTO bucket (start, covered, part, source, made, until, seconds)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            bucket.start,
            bucket.covered.all,
            bucket.covered.part,
            bucket.covered.source,
            i64::from_ne_bytes(bucket.made.to_ne_bytes()),
            bucket.until,
            seconds
        ],
    )?;
    transaction.commit()
}

/// Whose row it is; none where it is not one of ours.
pub(super) fn key(egress: &str, origin: &str, protocol: u8) -> Option<Key> {
    let protocols = [Protocol::Tcp, Protocol::Udp];
    Some(Key {
        egress_ip: egress.parse::<IpAddr>().ok()?,
        origin: origin.parse::<SocketAddr>().ok()?,
        protocol: protocols.into_iter().find(|one| one.number() == protocol)?,
    })
}

/// A row as a series; none where it is not one of ours.
fn series(row: &Columns<'_>) -> rusqlite::Result<Option<(Key, Series)>> {
    let (egress, origin, protocol): (String, String, u8) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let key = key(&egress, &origin, protocol);
    let series = Series {
        account: row.get(3)?,
        looked_up: false,
        active: row.get(4)?,
        sum: Sum {
            all: row.get(5)?,
            part: row.get(6)?,
            source: row.get(7)?,
        },
        missed: row.get(8)?,
        max: row.get(9)?,
        capacity: row.get(10)?,
        whole: row.get(11)?,
        levels: Levels::default(),
        seen: 0,
    };
    Ok(key.map(|key| (key, series)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(start: i64, account: &str) -> Bucket {
        let key = |last, protocol| Key {
            egress_ip: [192, 0, 2, last].into(),
            origin: "[2001:db8::1]:443".parse().unwrap(),
            protocol,
        };
        let series = |sum| Series {
            account: account.into(),
            looked_up: false,
            active: 3,
            sum: Sum {
                all: sum,
                part: sum / 2,
                source: -5,
            },
            max: 40_000,
            capacity: 40_000,
            missed: 0,
            whole: 60_000,
            levels: Levels::default(),
            seen: 0,
        };
        Bucket {
            start,
            covered: Sum {
                all: 299_000,
                part: 1_000,
                source: 4,
            },
            made: 0_u64.wrapping_sub(1_700_000_000_000_000_000),
            until: u64::try_from(start).unwrap() + 299,
            entries: 0,
            levelled: 0,
            series: [
                (key(1, Protocol::Tcp), series(u64::from(u32::MAX) * 4)),
                (key(1, Protocol::Udp), series(1)),
                (key(2, Protocol::Tcp), series(7)),
            ]
            .into(),
        }
    }

    #[test]
    fn what_was_saved_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = History::beside(&directory.path().join("egress.db"));
        let mut history = History::open(&path).unwrap();
        assert_eq!(history.until(bucket(0, "").made), Ok(None));
        let first = bucket(300, "a");
        let mut second = bucket(600, "b");
        history.save(&second, "fra01").unwrap();
        history.save(&first, "fra01").unwrap();
        second.covered.all += 1;
        for series in second.series.values_mut() {
            series.sum.all += 1;
            series.missed = 2_000;
        }
        history.save(&second, "fra01").unwrap();
        drop(history);

        let mut history = History::open(&path).unwrap();
        assert_eq!(history.until(second.made), Ok(Some(899)));
        assert_eq!(history.until(7), Ok(None));
        assert_eq!(history.load(600), Ok(Some(second)));
        assert_eq!(history.load(300), Ok(Some(first)));
        assert_eq!(history.load(900), Ok(None));
        let rows = |history: &History, account, from, to| {
            let mut rows = Vec::new();
            history
                .visit(account, from, to, &mut |row| {
                    rows.push(row);
                    true
                })
                .unwrap();
            rows.sort_by_key(|row| (row.egress_ip.clone(), row.sum));
            rows
        };
        let found = rows(&history, "b", 300, 600);
        assert_eq!(found.len(), 3, "not another account's");
        assert_eq!(
            found[2],
            Row {
                start: 600,
                length: 300,
                pop: "fra01".into(),
                egress_ip: "192.0.2.2".into(),
                origin: "[2001:db8::1]:443".into(),
                protocol: 6,
                sum: 8,
                possible: 297_001 * 40_000,
                max: 40_000,
                capacity: 40_000,
                whole: 60_000,
                seconds: Vec::new(),
            }
        );
        assert_eq!(rows(&history, "b", 301, 599), []);
        let short = Retention {
            five_minutes: 3_600,
            ..Retention::default()
        };
        history.tidy(7_200, &short).unwrap();
        assert_eq!(history.load(600), Ok(None));
        assert_eq!(
            (
                rows(&history, "a", 0, 900).len(),
                rows(&history, "b", 0, 900).len()
            ),
            (3, 3),
            "by the hour"
        );
    }

    #[test]
    fn other_files_are_refused_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("other.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE theirs (x)").unwrap();
        let error = History::open(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("other.db: it is no history of utilization"),
            "{error}"
        );

        let newer = directory.path().join("newer.db");
        let history = History::open(&newer).unwrap();
        history
            .connection
            .pragma_update(None, "user_version", 9)
            .unwrap();
        drop(history);
        let error = History::open(&newer).unwrap_err().to_string();
        assert!(error.contains("version 9"), "{error}");

        // Version 1 had neither parts nor what was missed; what it kept, stays.
        let old = directory.path().join("old.db");
        let first = Connection::open(&old).unwrap();
        first
            .execute_batch(
                "CREATE TABLE bucket (start INTEGER NOT NULL PRIMARY KEY, covered INTEGER NOT NULL,
                     until INTEGER NOT NULL) STRICT;
                 CREATE TABLE utilization (start INTEGER NOT NULL, egress TEXT NOT NULL, origin TEXT NOT NULL,
                     protocol INTEGER NOT NULL, account TEXT NOT NULL, pop TEXT NOT NULL, active INTEGER NOT NULL,
                     sum INTEGER NOT NULL, max INTEGER NOT NULL, capacity INTEGER NOT NULL,
                     PRIMARY KEY (start, egress, origin, protocol)) STRICT, WITHOUT ROWID;
                 INSERT INTO bucket VALUES (300, 299000, 599000);
                 INSERT INTO utilization VALUES (300, '192.0.2.1', '203.0.113.5:443', 6, 'a', 'p', 1, 77, 2, 40000);",
            )
            .unwrap();
        first
            .pragma_update(None, "application_id", APPLICATION_ID)
            .unwrap();
        first.pragma_update(None, "user_version", 1).unwrap();
        drop(first);
        for _ in 0..2 {
            let history = History::open(&old).unwrap();
            let bucket = history.load(300).unwrap().unwrap();
            let series = bucket.series.values().next().unwrap();
            assert_eq!(
                (bucket.covered.all, series.sum.all, series.max),
                (299_000, 77, 2)
            );
        }

        let torn = directory.path().join("torn.db");
        std::fs::write(&torn, "no database".repeat(1000)).unwrap();
        assert!(History::open(&torn).is_err());
    }
}
