//! `egress zone enable|disable`: a zone's setting (ZONE-1).

use super::context::{self, Context};
use super::{CliError, Exit};
use crate::control::Request;
use crate::inventory::ZoneRecord;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Change {
    /// Let a zone's new connections leave by a pool.
    Enable {
        /// The zone (id or name).
        zone: String,
        /// The pool (id or name); the one it had when absent.
        #[arg(long)]
        pool: Option<String>,
        /// Do without the probes that the zone requires: also where an origin does not let the pool in.
        #[arg(long)]
        force: bool,
    },
    /// Let a zone's new connections take the default egress; live ones stay as they are.
    Disable {
        /// The zone (id or name).
        zone: String,
    },
}

pub(super) fn run(context: &mut Context<'_>, change: Change) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let (zone, enabled, pool, force) = match change {
        Change::Enable { zone, pool, force } => (zone, true, pool, force),
        Change::Disable { zone } => (zone, false, None, false),
    };
    let record: ZoneRecord = context::demand(
        &config,
        &Request::ZoneSet {
            zone,
            enabled,
            pool,
            force,
        },
    )?;
    context.print(&record, || match (&record.pool_id, record.enabled) {
        (Some(pool), true) => format!(
            "zone {} is enabled: new connections leave by pool {pool}",
            record.name
        ),
        _ => format!(
            "zone {} is off: new connections take the default egress",
            record.name
        ),
    })?;
    Ok(Exit::Done)
}
