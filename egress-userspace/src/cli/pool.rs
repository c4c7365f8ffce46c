//! `egress pool drain|undrain`: no new flows by an address or a pool (POOL-9).

use super::context::{self, Context};
use super::{CliError, Exit, table};
use crate::control::Request;
use crate::control::protocol::Drained;
use crate::dataplane::api::DrainingStatus;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Change {
    /// Admit no new flows; live ones finish.
    Drain {
        /// The egress IP, or a pool (id or name) for all of its.
        subject: String,
        /// End live flows now: both ends of a TCP connection get a RST. Also for an address that has left its pool.
        #[arg(long)]
        reset: bool,
    },
    /// Admit new flows again.
    Undrain {
        /// The egress IP or the pool (id or name).
        subject: String,
    },
}

pub(super) fn run(context: &mut Context<'_>, change: Change) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let request = match change {
        Change::Drain { subject, reset } => Request::Drain { subject, reset },
        Change::Undrain { subject } => Request::Undrain { subject },
    };
    let drained: Drained = context::demand(&config, &request)?;
    context.print(&drained, || text(&drained))?;
    Ok(Exit::Done)
}

fn text(drained: &Drained) -> String {
    let mut lines = Vec::new();
    if drained.ended > 0 {
        let plural = if drained.ended == 1 { "" } else { "s" };
        lines.push(format!("{} flow{plural} ended at both ends", drained.ended));
    }
    if drained.addresses.is_empty() {
        lines.push(format!("{} takes new flows", drained.subject));
    } else {
        lines.push(left(&drained.addresses));
    }
    lines.join("\n")
}

/// What is left on addresses that take no new flows.
pub(super) fn left(addresses: &[DrainingStatus]) -> String {
    let rows: Vec<_> = addresses
        .iter()
        .map(|address| {
            vec![
                address.egress_ip.to_string(),
                address.active.to_string(),
                if address.retired { "left its pool" } else { "" }.to_owned(),
            ]
        })
        .collect();
    table::render(&["DRAINING", "FLOWS LEFT", ""], &[1], &rows)
}
