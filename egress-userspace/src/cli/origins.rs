//! `egress origins`: connection counts by egress IP, origin and protocol (CAP-1).

use super::context::{self, Context};
use super::{CliError, Exit, table};
use crate::control::{Filter, Request};
use crate::controller::origins;
use crate::dataplane::api::OriginRecord;
use crate::inventory::origin_filter;

pub(super) fn run(context: &mut Context<'_>, filter: &Filter) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let request = Request::Origins {
        filter: filter.clone(),
    };
    let records = match context::list(&config, &request)? {
        Some(records) => records,
        None => {
            let local = context.local(config)?;
            match &local.view {
                Some(view) => origins(view.as_ref(), &origin_filter(&local.stored, filter)?)?,
                None => Vec::new(),
            }
        }
    };
    context.print(&records, || text(&records))?;
    Ok(Exit::Done)
}

fn text(records: &[OriginRecord]) -> String {
    let row = |record: &OriginRecord| {
        vec![
            record.egress_ip.to_string(),
            record.origin.to_string(),
            record.protocol.to_string(),
            record.active.to_string(),
            record.peak.to_string(),
            record.capacity.to_string(),
            format!("{:.2} %", record.utilization),
            record.refused.to_string(),
        ]
    };
    let header = [
        "EGRESS IP",
        "ORIGIN",
        "PROTOCOL",
        "ACTIVE",
        "PEAK",
        "CAPACITY",
        "UTILIZATION",
        "REFUSED",
    ];
    table::render(
        &header,
        &[3, 4, 5, 6, 7],
        &records.iter().map(row).collect::<Vec<_>>(),
    )
}
