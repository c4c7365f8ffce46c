//! Where the seconds of five minutes are kept, beside the five minutes themselves.

use rusqlite::{Connection, Transaction, params};

use super::bucket::Bucket;
use super::levels::Levels;

/// The most bytes of seconds that are kept; of more the oldest are forgotten.
pub(super) const MOST: i64 = 256 << 20;
/// What a row takes beside them, about.
const ROW: i64 = 100;

/// What came with version 4 of the schema.
pub(super) const TABLES: &str = "
ALTER TABLE bucket ADD COLUMN seconds INTEGER NOT NULL DEFAULT 0;       -- bytes of its rows of `seconds`, about
ALTER TABLE utilization ADD COLUMN whole INTEGER NOT NULL DEFAULT 0;    -- the most that all servers of the data center
ALTER TABLE rollup ADD COLUMN whole INTEGER NOT NULL DEFAULT 0;         -- admitted; 0 where they do not share the address
CREATE TABLE seconds (
    start    INTEGER NOT NULL,
    egress   TEXT NOT NULL,
    origin   TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    levels   BLOB NOT NULL,                 -- the most connections at once, second by second: runs of differences
    PRIMARY KEY (start, egress, origin, protocol)
) STRICT, WITHOUT ROWID;
";

/// Keeps a bucket's seconds; returns how many bytes they take.
pub(super) fn save(transaction: &Transaction<'_>, bucket: &Bucket) -> rusqlite::Result<i64> {
    let mut statement = transaction.prepare_cached(
        "INSERT OR REPLACE INTO seconds (start, egress, origin, protocol, levels) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    let mut all = 0;
    for (key, series) in &bucket.series {
        if !series.is_used() || series.levels.is_empty() {
            continue;
        }
        let bytes = series.levels.bytes();
        all += ROW + i64::try_from(bytes.len()).unwrap_or(ROW);
        statement.execute(params![
            bucket.start,
            key.egress_ip.to_string(),
            key.origin.to_string(),
            key.protocol.number(),
            bytes
        ])?;
    }
    Ok(all)
}

/// Adds what was kept to the series of a bucket.
pub(super) fn load(connection: &Connection, bucket: &mut Bucket) -> rusqlite::Result<()> {
    let mut statement = connection
        .prepare_cached("SELECT egress, origin, protocol, levels FROM seconds WHERE start = ?1")?;
    let mut rows = statement.query([bucket.start])?;
    while let Some(row) = rows.next()? {
        let key = super::history::key(
            &row.get::<_, String>(0)?,
            &row.get::<_, String>(1)?,
            row.get(2)?,
        );
        let series = key.and_then(|key| bucket.series.get_mut(&key));
        let levels = Levels::read(row.get_ref(3)?.as_blob().unwrap_or_default());
        if let (Some(series), Some(levels)) = (series, levels) {
            series.levels = levels;
            bucket.levelled += 1;
        }
    }
    Ok(())
}

/// Forgets seconds of which the five minutes are forgotten, and the oldest above this many bytes.
pub(super) fn tidy(transaction: &Transaction<'_>, most: i64) -> rusqlite::Result<()> {
    let above = "SELECT max(start) FROM (SELECT start, sum(seconds) OVER (ORDER BY start DESC) AS until FROM bucket
                 WHERE seconds > 0) WHERE until > ?1";
    let cut: Option<i64> = transaction.query_row(above, [most], |row| row.get(0))?;
    if let Some(cut) = cut {
        transaction.execute(
            "UPDATE bucket SET seconds = 0 WHERE start <= ?1 AND seconds > 0",
            [cut],
        )?;
        transaction.execute("DELETE FROM seconds WHERE start <= ?1", [cut])?;
    }
    transaction.execute(
        "DELETE FROM seconds WHERE start < (SELECT coalesce(min(start), 0) FROM bucket)",
        [],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
