//! `egress server list|drain|undrain|forget`: the servers, and what is to become of one (FWD-7, CLU-3).

use super::context::{self, Context};
use super::{CliError, Exit, table};
use crate::control::Request;
use crate::inventory::{ServerRecord, servers};
use crate::liveness::Healths;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Change {
    /// List servers, what they hold, and what they are to pass on.
    List,
    /// Admit no new connections on a server; its live ones finish, and its slices go to others as they empty.
    Drain {
        /// The server's name.
        server: String,
    },
    /// Let a server have new connections and slices again.
    Undrain {
        /// The server's name.
        server: String,
    },
    /// Give away what a server holds that is switched off or cut off, and will not be back as it was.
    Forget {
        /// The server's name.
        server: String,
        /// Also one that answers: when it is certain all the same that it sends nothing any more.
        #[arg(long)]
        force: bool,
    },
}

pub(super) fn run(context: &mut Context<'_>, change: Change) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let records = match change {
        Change::List => match context::list(&config, &Request::Servers)? {
            Some(records) => records,
            None => servers(
                &context.stored(&config)?,
                &Healths::new(),
                &config.server.name,
            ),
        },
        Change::Drain { server } => {
            vec![context::demand(&config, &Request::ServerDrain { server })?]
        }
        Change::Undrain { server } => {
            vec![context::demand(
                &config,
                &Request::ServerUndrain { server },
            )?]
        }
        Change::Forget { server, force } => {
            vec![context::demand(
                &config,
                &Request::ServerForget { server, force },
            )?]
        }
    };
    context.print(&records, || text(&records))?;
    Ok(Exit::Done)
}

/// Servers as a table.
fn text(records: &[ServerRecord]) -> String {
    let row = |record: &ServerRecord| {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "-".to_owned());
        vec![
            record.server.clone(),
            name(&record.data_center),
            name(&record.location),
            record.state.word().to_owned(),
            match (record.here, record.health) {
                (true, _) => "here".to_owned(),
                (false, Some(health)) => health.to_string(),
                (false, None) => "-".to_owned(),
            },
            record.slices.to_string(),
            record.leaving.to_string(),
            record.coming.to_string(),
        ]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    table::render(
        &[
            "SERVER",
            "DATA CENTER",
            "LOCATION",
            "",
            "HEALTH",
            "SLICES",
            "LEAVING",
            "COMING",
        ],
        &[5, 6, 7],
        &rows,
    )
}
