//! Commits: changes of objects, and the numbers that zones and pools get.

use rusqlite::{OptionalExtension, Params, Transaction, params};

use super::super::{Change, Limits};
use crate::resource::Kind;

/// Why a commit was rolled back.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// SQLite failed.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// An object cannot be written down.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// Every number is in use.
    #[error("all {last} {noun} numbers are in use")]
    Exhausted { noun: &'static str, last: u16 },
}

/// Makes all changes within a transaction.
pub(super) fn write(
    transaction: &Transaction<'_>,
    changes: &[Change],
    limits: Limits,
) -> Result<(), WriteError> {
    let mut released: i64 =
        transaction.query_row("SELECT coalesce(max(released), 0) FROM number", [], |row| {
            row.get(0)
        })?;
    for change in changes {
        if let Change::Remove { kind, id } = change {
            execute(
                transaction,
                "DELETE FROM object WHERE kind = ?1 AND id = ?2",
                params![kind.noun(), id],
            )?;
            released += 1;
            execute(
                transaction,
                "UPDATE number SET released = ?3 WHERE kind = ?1 AND id = ?2",
                params![kind.noun(), id, released],
            )?;
        }
    }
    let now = crate::store::now();
    for change in changes {
        if let Change::Put { owner, object } = change {
            let (kind, id) = (object.kind(), object.id());
            execute(
                transaction,
                "INSERT INTO object (kind, id, owner, value, modified) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT (kind, id) DO UPDATE SET
                    owner = excluded.owner, value = excluded.value, modified = excluded.modified",
                params![
                    kind.noun(),
                    id,
                    owner.word(),
                    serde_json::to_string(object)?,
                    now
                ],
            )?;
            match kind {
                Kind::Zone => number(transaction, "zone", &id, limits.last_zone)?,
                Kind::Pool => number(transaction, "pool", &id, limits.last_pool)?,
                Kind::Account
                | Kind::Prefix
                | Kind::Location
                | Kind::Placement
                | Kind::Policy
                | Kind::Lease
                | Kind::Setting
                | Kind::Drain => {}
            }
        }
    }
    Ok(())
}

/// Runs a statement that is prepared once, however many changes there are.
fn execute(
    transaction: &Transaction<'_>,
    statement: &str,
    parameters: impl Params,
) -> rusqlite::Result<usize> {
    transaction.prepare_cached(statement)?.execute(parameters)
}

/// Gives `id` its old number, else the next one, else the one that was released first.
fn number(
    transaction: &Transaction<'_>,
    noun: &'static str,
    id: &str,
    last: u16,
) -> Result<(), WriteError> {
    let kept = execute(
        transaction,
        "UPDATE number SET released = NULL WHERE kind = ?1 AND id = ?2",
        params![noun, id],
    )?;
    if kept > 0 {
        return Ok(());
    }
    let highest: i64 = transaction
        .prepare_cached("SELECT coalesce(max(number), 0) FROM number WHERE kind = ?1")?
        .query_row(params![noun], |row| row.get(0))?;
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
        execute(
            transaction,
            "DELETE FROM number WHERE kind = ?1 AND id = ?2",
            params![noun, old],
        )?;
        number
    };
    execute(
        transaction,
        "INSERT INTO number (kind, id, number) VALUES (?1, ?2, ?3)",
        params![noun, id, next],
    )?;
    Ok(())
}
