//! API tokens in the embedded store: their hashes.

use rusqlite::{OptionalExtension, Row, params};

use super::{SqliteStore, inaccessible};
use crate::store::token::{NewToken, Permission, Token, hash_of};
use crate::store::{StoreError, TokenStore, now};

pub(super) const SCHEMA: &str = "
CREATE TABLE token (
    id          TEXT NOT NULL PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE,       -- SHA-256 of the secret
    name        TEXT NOT NULL,
    permissions TEXT NOT NULL,              -- JSON
    accounts    TEXT NOT NULL,              -- JSON
    created     INTEGER NOT NULL            -- microseconds since 1970
) STRICT, WITHOUT ROWID;
";

const COLUMNS: &str = "id, name, permissions, accounts, created";

impl TokenStore for SqliteStore {
    fn create_token(
        &mut self,
        name: String,
        permissions: Vec<Permission>,
        accounts: Vec<String>,
    ) -> Result<NewToken, StoreError> {
        let new = NewToken::make(name, permissions, accounts, now())
            .map_err(|error| inaccessible(&self.path, &error))?;
        let json = |list: Result<String, serde_json::Error>| {
            list.map_err(|error| inaccessible(&self.path, &error))
        };
        let kept = &new.kept;
        self.connection
            .execute(
                "INSERT INTO token (id, hash, name, permissions, accounts, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![
                    kept.id,
                    hash_of(&new.token),
                    kept.name,
                    json(serde_json::to_string(&kept.permissions))?,
                    json(serde_json::to_string(&kept.accounts))?,
                    kept.created
                ],
            )
            .map_err(|error| self.failed(&error))?;
        Ok(new)
    }

    fn tokens(&self) -> Result<Vec<Token>, StoreError> {
        if self.pragma("user_version")? < 2 {
            return Ok(Vec::new());
        }
        let mut statement = self
            .connection
            .prepare(&format!("SELECT {COLUMNS} FROM token ORDER BY created, id"))
            .map_err(|error| self.failed(&error))?;
        let rows = statement
            .query_map([], columns)
            .map_err(|error| self.failed(&error))?;
        rows.map(|row| {
            let columns = row.map_err(|error| self.failed(&error))?;
            self.token(columns)
        })
        .collect()
    }

    fn revoke_token(&mut self, id: &str) -> Result<bool, StoreError> {
        let gone = self
            .connection
            .execute("DELETE FROM token WHERE id = ?1", [id])
            .map_err(|error| self.failed(&error))?;
        Ok(gone > 0)
    }
}

impl SqliteStore {
    /// The token with this secret.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn token_of(&self, secret: &str) -> Result<Option<Token>, StoreError> {
        let found = self
            .connection
            .prepare_cached(&format!("SELECT {COLUMNS} FROM token WHERE hash = ?1"))
            .and_then(|mut statement| statement.query_row([hash_of(secret)], columns).optional())
            .map_err(|error| self.failed(&error))?;
        found.map(|columns| self.token(columns)).transpose()
    }

    fn token(&self, columns: Columns) -> Result<Token, StoreError> {
        let (id, name, permissions, accounts, created) = columns;
        let broken = |error| self.corrupt(&format!("token {id} cannot be read: {error}"));
        Ok(Token {
            permissions: serde_json::from_str(&permissions).map_err(broken)?,
            accounts: serde_json::from_str(&accounts).map_err(broken)?,
            id: id.clone(),
            name,
            created,
        })
    }
}

type Columns = (String, String, String, String, i64);

fn columns(row: &Row<'_>) -> rusqlite::Result<Columns> {
    Ok((
        row.get(0)?,
        row.get(1)?,
        row.get(2)?,
        row.get(3)?,
        row.get(4)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_by_its_secret_until_it_is_revoked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("egress.db");
        let mut store = SqliteStore::open(&path).unwrap();
        let daemon = SqliteStore::open(&path).unwrap();
        let new = store
            .create_token(
                "ci".into(),
                vec![Permission::ZoneSettingsRead],
                vec!["a".into()],
            )
            .unwrap();
        let found = daemon.token_of(&new.token).unwrap();
        assert_eq!(found.as_ref(), Some(&new.kept));
        assert_eq!(daemon.token_of("another").unwrap(), None);
        assert_eq!(daemon.tokens().unwrap(), vec![new.kept.clone()]);
        for file in ["egress.db", "egress.db-wal"] {
            let bytes = std::fs::read(directory.path().join(file)).unwrap_or_default();
            let secret = new.token.as_bytes();
            let told = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!told, "the secret stands in {file}");
        }
        assert!(store.revoke_token(&new.kept.id).unwrap());
        assert!(!store.revoke_token(&new.kept.id).unwrap());
        assert_eq!(daemon.token_of(&new.token).unwrap(), None);
    }
}
