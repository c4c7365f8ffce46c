//! Who holds which slices, as the copy of a shared store says it (CLU-3). A build that cannot talk to etcd reads it, too: it would
//! take all for its own without it.

use rusqlite::OptionalExtension as _;

use super::SqliteStore;
use crate::ownership::Ownership;
use crate::store::StoreError;

impl SqliteStore {
    /// Who holds which slices, as it was copied last; none in a store of its own. What an earlier version has copied says
    /// nothing about that: then this server holds nothing.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub(in crate::store) fn ownership(&self) -> Result<Option<Ownership>, StoreError> {
        let table: i64 = self
            .connection
            .query_row(
                "SELECT count(*) FROM sqlite_schema WHERE name IN ('copy', 'ownership')",
                [],
                |row| row.get(0),
            )
            .map_err(|error| self.failed(&error))?;
        if table == 0 {
            return Ok(None);
        }
        let text: Option<String> = if table < 2 {
            None
        } else {
            self.connection
                .query_row("SELECT value FROM ownership", [], |row| row.get(0))
                .optional()
                .map_err(|error| self.failed(&error))?
        };
        let Some(text) = text else {
            return Ok(Some(Ownership::default()));
        };
        let read = serde_json::from_str(&text);
        read.map(Some)
            .map_err(|error| self.corrupt(&format!("ownership cannot be read: {error}")))
    }
}
