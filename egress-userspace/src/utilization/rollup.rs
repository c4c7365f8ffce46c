//! Five minutes put together into hours, and hours into days, when they are over; and what is forgotten (OBS-2).

use rusqlite::{OptionalExtension as _, Transaction, params};

/// How long each is kept, seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Buckets of five minutes; 31 days.
    pub five_minutes: i64,
    /// Hours; 93 days.
    pub hours: i64,
    /// Days; 1,100 days.
    pub days: i64,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            five_minutes: 31 * DAY,
            hours: 93 * DAY,
            days: 1_100 * DAY,
        }
    }
}

impl Retention {
    /// The longest of them: nothing is older.
    pub fn longest(&self) -> i64 {
        self.five_minutes.max(self.hours).max(self.days)
    }
}

/// Lengths, seconds.
const FIVE_MINUTES: i64 = 300;
/// See [`FIVE_MINUTES`].
const HOUR: i64 = 3_600;
/// See [`FIVE_MINUTES`].
const DAY: i64 = 86_400;

/// What came with version 3 of the schema.
pub(super) const TABLES: &str = "
CREATE TABLE rollup (
    length   INTEGER NOT NULL,              -- seconds: an hour or a day
    start    INTEGER NOT NULL,              -- seconds since 1970
    egress   TEXT NOT NULL,
    origin   TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    account  TEXT NOT NULL,
    pop      TEXT NOT NULL,
    sum      INTEGER NOT NULL,              -- connections times ms
    possible INTEGER NOT NULL,              -- as many as there could have been
    max      INTEGER NOT NULL,              -- the most connections at once, in the fullest five minutes
    capacity INTEGER NOT NULL,              -- the most that were admitted at once in those
    PRIMARY KEY (length, start, egress, origin, protocol, account, pop)
) STRICT, WITHOUT ROWID;
CREATE TABLE grain (
    length INTEGER NOT NULL PRIMARY KEY,    -- seconds: five minutes, an hour, a day
    kept   INTEGER NOT NULL,                -- seconds that it is kept
    rolled INTEGER NOT NULL,                -- all before is in the next longer one, too
    cut    INTEGER NOT NULL                 -- all before is forgotten
) STRICT;
";

/// The source of a grain's rows, with the columns of `rollup`.
fn source(length: i64) -> &'static str {
    if length == FIVE_MINUTES {
        "SELECT start, egress, origin, protocol, account, pop, sum,
                max(covered - missed, 0) * capacity AS possible, max AS most, capacity, whole
         FROM utilization JOIN bucket USING (start)"
    } else {
        "SELECT start, egress, origin, protocol, account, pop, sum, possible, max AS most, capacity, whole
         FROM rollup WHERE length = 3600"
    }
}

/// Until when a grain is in the next one, and before when it is forgotten.
fn state(transaction: &Transaction<'_>, length: i64) -> rusqlite::Result<(i64, i64)> {
    let query = "SELECT rolled, cut FROM grain WHERE length = ?1";
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found = transaction.query_row(query, [length], read).optional()?;
    Ok(found.unwrap_or_default())
}

/// Rolls up what is over at `now` (seconds since 1970), and forgets what is too old.
pub(super) fn tidy(
    transaction: &Transaction<'_>,
    now: i64,
    retention: &Retention,
) -> rusqlite::Result<()> {
    let grains = [
        (FIVE_MINUTES, retention.five_minutes, HOUR),
        (HOUR, retention.hours, DAY),
        (DAY, retention.days, DAY),
    ];
    for (length, kept, next) in grains {
        let (mut rolled, cut) = state(transaction, length)?;
        let over = now.div_euclid(next) * next;
        if length != next && rolled < over {
            transaction.execute(
                "DELETE FROM rollup WHERE length = ?1 AND start >= ?2",
                [next, rolled],
            )?;
            // The other columns beside the one max() are of the row that has it.
            let insert = format!(
                "INSERT INTO rollup (length, start, egress, origin, protocol, account, pop, sum, possible, max, capacity, whole)
                 SELECT ?1, nth * ?1, egress, origin, protocol, account, pop, sum, possible, most, capacity, whole
                 FROM (SELECT start / ?1 AS nth, egress, origin, protocol, account, pop, sum(sum) AS sum,
                              sum(possible) AS possible, most, capacity, whole,
                              max(CAST(most AS REAL) / max(capacity, 1))
                       FROM ({}) WHERE start >= ?2 AND start < ?3
                       GROUP BY 1, egress, origin, protocol, account, pop)",
                source(length)
            );
            transaction.execute(&insert, [next, rolled, over])?;
            rolled = over;
        }
        // Whole ones of the next, and none that is not in it yet.
        let mut before = (now - kept).div_euclid(next) * next;
        if length != next {
            before = before.min(rolled);
        }
        let cut = cut.max(before);
        if length == FIVE_MINUTES {
            transaction.execute("DELETE FROM utilization WHERE start < ?1", [cut])?;
            transaction.execute("DELETE FROM bucket WHERE start < ?1", [cut])?;
        } else {
            transaction.execute(
                "DELETE FROM rollup WHERE length = ?1 AND start < ?2",
                [length, cut],
            )?;
        }
        transaction.execute(
            "INSERT OR REPLACE INTO grain (length, kept, rolled, cut) VALUES (?1, ?2, ?3, ?4)",
            params![length, kept, rolled, cut],
        )?;
    }
    Ok(())
}

/// A bucket that began then is changed: what it is in already is made anew the next time.
pub(super) fn reopen(transaction: &Transaction<'_>, start: i64) -> rusqlite::Result<()> {
    for (length, next) in [(FIVE_MINUTES, HOUR), (HOUR, DAY)] {
        transaction.execute(
            "UPDATE grain SET rolled = max(cut, min(rolled, ?2)) WHERE length = ?1",
            [length, start.div_euclid(next) * next],
        )?;
    }
    Ok(())
}

/// All rows of an account, of the finest grain that is still there, with the columns of [`super::history::Row`].
pub(super) const ALL: &str = "
SELECT start, pop, egress, origin, sum, max(covered - missed, 0) * capacity, max, capacity, 300, protocol, whole, levels
FROM utilization JOIN bucket USING (start) LEFT JOIN seconds USING (start, egress, origin, protocol)
WHERE start >= ?1 AND start <= ?2 AND account = ?3
UNION ALL
SELECT start, pop, egress, origin, sum, possible, max, capacity, length, protocol, whole, NULL
FROM rollup
WHERE start >= ?1 AND start <= ?2 AND account = ?3
  AND start < (SELECT cut FROM grain WHERE grain.length = CASE rollup.length WHEN 3600 THEN 300 ELSE 3600 END)";

#[cfg(test)]
mod tests;
