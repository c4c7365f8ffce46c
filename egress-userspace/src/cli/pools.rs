//! `egress pools`: pools, their addresses, and what they carry.

use super::context::{self, Context};
use super::{CliError, Exit, table};
use crate::control::{Failure, Filter, Request};
use crate::inventory::{PoolAddress, PoolRecord, pools};

pub(super) fn run(context: &mut Context<'_>, filter: &Filter) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let request = Request::Pools {
        filter: filter.clone(),
    };
    let records = match context::list(&config, &request)? {
        Some(records) => records,
        None => {
            let local = context.local(config)?;
            let live = match &local.view {
                Some(view) => view.pools().map_err(Failure::from)?,
                None => Vec::new(),
            };
            pools(&local.stored, &live, filter)?
        }
    };
    context.print(&records, || text(&records))?;
    Ok(Exit::Done)
}

fn text(records: &[PoolRecord]) -> String {
    let mut rows = Vec::new();
    for pool in records {
        let zones = if pool.zones.is_empty() {
            "-".to_owned()
        } else {
            pool.zones.join(", ")
        };
        let figure = |figure: Option<String>| figure.unwrap_or_else(|| "-".to_owned());
        let mut row = |address: String, active, capacity, part: String, draining: &str| {
            rows.push(vec![
                pool.id.clone(),
                pool.account.clone().unwrap_or_else(|| "-".to_owned()),
                address,
                active,
                capacity,
                part,
                draining.to_owned(),
                zones.clone(),
            ]);
        };
        for address in &pool.addresses {
            row(
                address.address.clone(),
                figure(address.active.map(|active| active.to_string())),
                figure(address.capacity.map(|capacity| capacity.to_string())),
                parts(address),
                if address.draining { "draining" } else { "" },
            );
        }
        if pool.addresses.is_empty() {
            row("(empty)".into(), "-".into(), "-".into(), "-".into(), "");
        }
    }
    table::render(
        &[
            "POOL",
            "ACCOUNT",
            "ADDRESS",
            "ACTIVE",
            "PER ORIGIN",
            "SLICES",
            "",
            "ZONES",
        ],
        &[3, 4],
        &rows,
    )
}

/// How many slices this server gives out ports of, and what each server owns where there are several.
fn parts(address: &PoolAddress) -> String {
    let here = address
        .slices
        .as_ref()
        .map(|slices| slices.len().to_string());
    let owners: Vec<String> = address
        .owners
        .iter()
        .map(|owner| {
            let part = owner.range.clone();
            format!(
                "{} {}",
                owner.server,
                part.unwrap_or_else(|| owner.slices.len().to_string())
            )
        })
        .collect();
    match (here, owners.is_empty()) {
        (None, true) => "-".to_owned(),
        (Some(here), true) => here,
        (None, false) => owners.join(", "),
        (Some(here), false) => format!("{here} ({})", owners.join(", ")),
    }
}
