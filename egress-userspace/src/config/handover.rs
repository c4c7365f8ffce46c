//! `[handover]`: how servers that share a store hand slices over (CLU-3).

use std::time::Duration;

use crate::document::Table;

/// A week: longer than any connection is worth a server's maintenance.
const MAX_SECONDS: u32 = 7 * 24 * 3600;

/// How long things may take between servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Connections that are left in a slice after it has been leaving its server for so long are reset; 3,600 s. Then their
    /// ports rest, and it goes.
    pub drain_limit: Duration,
}

impl Default for Handover {
    fn default() -> Self {
        Self {
            drain_limit: Duration::from_secs(3_600),
        }
    }
}

impl Handover {
    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        let default = Self::default();
        let drain_limit = table
            .get("drain_limit", "drain_limit = 3600")
            .and_then(|value| value.integer(1..=MAX_SECONDS, "seconds"));
        table.finish();
        Self {
            drain_limit: drain_limit.map_or(default.drain_limit, |seconds| {
                Duration::from_secs(u64::from(seconds))
            }),
        }
    }
}
