//! `egress server list|drain|undrain|forget`: the servers, and what is to become of one (FWD-7, CLU-3).

use super::context::{self, Context};
use super::{CliError, Exit, table};
use crate::config::Config;
use crate::control::{Failure, Request};
use crate::inventory::{ServerRecord, servers};
use crate::liveness::Healths;
use crate::store;

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
    /// On the host itself: this host is the server of that name from now on, and the one which was is gone for good.
    Claim {
        /// The server's name, as this host's configuration has it.
        server: String,
    },
    /// Give away what a server holds that is switched off or cut off, and will not be back as it was; another host
    /// may have its name then.
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
        Change::Claim { server } => return claim(context, &config, &server),
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

/// The daemon does not run here, or holds nothing: so this works on the store itself.
fn claim(context: &mut Context<'_>, config: &Config, server: &str) -> Result<Exit, CliError> {
    let own = &config.server.name;
    if server != own {
        return Err(Failure::usage(
            format!("this host goes by the name of {own}, not {server}"),
            "name the server that this host is by its [server] section",
        )
        .into());
    }
    let (before, is_new) = store::claim(config).map_err(Failure::from)?;
    let told = serde_json::json!({ "server": server, "claimed": is_new, "before": before });
    context.print(&told, || match before {
        Some(before) => format!("this host is {server} from now on; {} was", before.hostname),
        None if is_new => format!("this host is {server} from now on; no other one was"),
        None => format!("this host is {server} already"),
    })?;
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
