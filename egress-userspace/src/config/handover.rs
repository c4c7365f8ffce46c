//! `[handover]`: how servers that share a store hand slices over (CLU-3).

use std::time::Duration;

use super::{Announce, Store, WhenDown};
use crate::document::Table;

/// A week: longer than any connection is worth a server's maintenance.
const MAX_SECONDS: u32 = 7 * 24 * 3600;

/// The least time without a sign of life. To choose another leader takes an etcd some seconds, as a restart does.
const LEAST_TAKEOVER: u32 = 30;

/// How long things may take between servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Connections that are left in a slice after it has been leaving its server for so long are reset; 3,600 s. Then their
    /// ports rest, and it goes.
    pub drain_limit: Duration,
    /// A server that has written to etcd for so long no more that it is there loses what it holds to others, and stops to use
    /// it before; never, unless it is set.
    pub takeover_after: Option<Duration>,
}

impl Default for Handover {
    fn default() -> Self {
        Self {
            drain_limit: Duration::from_secs(3_600),
            takeover_after: None,
        }
    }
}

impl Handover {
    pub(super) fn read(
        mut table: Table<'_, '_>,
        store: &Store,
        announce: Option<&Announce>,
    ) -> Self {
        let default = Self::default();
        let drain_limit = table
            .get("drain_limit", "drain_limit = 3600")
            .and_then(|value| value.integer(1..=MAX_SECONDS, "seconds"));
        let takeover_after = table
            .get("takeover_after", "takeover_after = 60")
            .and_then(|value| {
                let seconds = value.integer(LEAST_TAKEOVER..=MAX_SECONDS, "seconds")?;
                if store.etcd.is_none() {
                    value.report().warning(
                        &value.span(),
                        "`takeover_after` without an etcd that others share: nobody takes over",
                        "name the servers' etcd under [store], or remove it",
                    );
                }
                if announce.is_some_and(|announce| announce.when_down == WhenDown::Keep) {
                    value.report().warning(
                        &value.span(),
                        "a server whose daemon is dead goes on announcing what others have taken over, and what the network sends there is lost",
                        "when_down = \"withdraw\" under [announce]",
                    );
                }
                Some(seconds)
            });
        table.finish();
        Self {
            drain_limit: drain_limit.map_or(default.drain_limit, |seconds| {
                Duration::from_secs(u64::from(seconds))
            }),
            takeover_after: takeover_after.map(|seconds| Duration::from_secs(u64::from(seconds))),
        }
    }
}
