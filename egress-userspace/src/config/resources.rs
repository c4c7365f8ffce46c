//! `[resources]`: the file of resources that belongs to this server.

use std::path::{Path, PathBuf};

use super::resolve;
use crate::document::Table;

/// The file applied at start and on SIGHUP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourcesFile {
    /// Its path; without one, resources come from `egress apply` alone.
    pub file: Option<PathBuf>,
}

impl ResourcesFile {
    pub(super) fn read(mut table: Table<'_, '_>, directory: &Path) -> Self {
        let file = table
            .get("file", "file = \"resources.toml\"")
            .and_then(|value| value.name())
            .map(|path| resolve(directory, &path));
        table.finish();
        Self { file }
    }
}
