//! `[store]`: where resources are kept between runs (CLU-1).

use std::path::{Path, PathBuf};

use super::resolve;
use crate::document::Table;

/// The embedded database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    /// Path of the SQLite file; `/var/lib/egress/egress.db` by default.
    pub sqlite: PathBuf,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            sqlite: "/var/lib/egress/egress.db".into(),
        }
    }
}

impl Store {
    pub(super) fn read(mut table: Table<'_, '_>, directory: &Path) -> Self {
        let sqlite = table
            .get("sqlite", "sqlite = \"/var/lib/egress/egress.db\"")
            .and_then(|value| value.name())
            .map(|path| resolve(directory, &path));
        if let Some(etcd) = table.get("etcd", "etcd = [\"http://192.0.2.1:2379\"]") {
            etcd.refuse(
                "etcd as the store is not available in this version",
                "use sqlite = \"/var/lib/egress/egress.db\"",
            );
        }
        table.finish();
        sqlite.map_or_else(Self::default, |sqlite| Self { sqlite })
    }
}
