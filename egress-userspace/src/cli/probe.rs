//! `egress probe`: does an origin let a pool in (POOL-10)?

use super::context::{self, Context};
use super::endpoint::Endpoint;
use super::{CliError, Exit, table};
use crate::control::{Failure, Request};
use crate::probe::{MAX_PATIENCE, Outcome, PATIENCE, ProbeRecord};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The origin to connect to, by TCP: for instance 198.51.100.10:443 or [2001:db8::10]:443.
    #[arg(value_name = "ADDRESS:PORT")]
    origin: Endpoint,
    /// The pool (id or name): all of its addresses by which this server may send; one of each IPv6 range.
    #[arg(long)]
    pool: String,
    /// Seconds that the origin has to answer.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=MAX_PATIENCE.as_secs()))]
    timeout: u64,
}

pub(super) fn run(context: &mut Context<'_>, args: &Args) -> Result<Exit, CliError> {
    let origin = args.origin.socket()?;
    let (config, _) = context.config()?;
    let request = Request::Probe {
        origin,
        pool: args.pool.clone(),
        seconds: args.timeout,
    };
    let mut records = context::list::<ProbeRecord>(&config, &request)?.ok_or_else(|| {
        Failure::failed(
            format!("no daemon answers on {}", config.control.socket.display()),
            "start it with `egress run`: the connections are its own",
        )
    })?;
    records.sort_by_key(|record| record.address);
    context.print(&records, || text(&records))?;
    let connected = records
        .iter()
        .any(|record| record.outcome == Outcome::Connected);
    let good = connected && records.iter().all(ProbeRecord::is_good);
    if !good && !context.json {
        let bad = records.iter().filter(|record| !record.is_good()).count();
        let verdict = if bad == 0 {
            "all addresses of the pool drain: none was tried".to_owned()
        } else {
            format!("{bad} of {} were not let in", records.len())
        };
        writeln!(context.err, "error: {verdict}")?;
    }
    Ok(if good { Exit::Done } else { Exit::Failed })
}

fn text(records: &[ProbeRecord]) -> String {
    let row = |record: &ProbeRecord| {
        vec![
            record.address.to_string(),
            record
                .egress_ip
                .map_or_else(|| "-".to_owned(), |ip| ip.to_string()),
            record.outcome.to_string(),
            record
                .ms
                .map_or_else(String::new, |ms| format!("{ms:.1} ms")),
            record.detail.clone().unwrap_or_default(),
        ]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    table::render(&["ADDRESS", "EGRESS IP", "OUTCOME", "", ""], &[3], &rows)
}
