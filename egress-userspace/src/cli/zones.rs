//! `egress zones`: zones, their selectors and settings.

use super::context::{self, Context};
use super::{CliError, Exit, table};
use crate::control::{Filter, Request};
use crate::inventory::{ZoneRecord, zones};
use crate::resource::Owner;

pub(super) fn run(context: &mut Context<'_>, filter: &Filter) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let request = Request::Zones {
        filter: filter.clone(),
    };
    let records = match context::list(&config, &request)? {
        Some(records) => records,
        None => zones(&context.stored(&config)?, filter)?,
    };
    context.print(&records, || text(&records))?;
    Ok(Exit::Done)
}

/// Zones as a table.
pub(super) fn text(records: &[ZoneRecord]) -> String {
    let row = |zone: &ZoneRecord| {
        let of = |noun: &str, selectors: &[String]| {
            (!selectors.is_empty()).then(|| format!("{noun} {}", selectors.join(", ")))
        };
        let selectors = [
            of("mark", &zone.marks),
            of("cgroup", &cgroups(zone)),
            of("interface", &zone.interfaces),
            of("source", &zone.sources),
        ];
        vec![
            zone.name.clone(),
            zone.account.clone(),
            if zone.enabled { "enabled" } else { "off" }.to_owned(),
            zone.pool_id.clone().unwrap_or_else(|| "-".to_owned()),
            match zone.setting_owner {
                Some(Owner::File) => "file",
                // The store does not tell the two apart.
                Some(Owner::Api) => "API or command",
                None => "-",
            }
            .to_owned(),
            selectors
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join("; "),
        ]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    table::render(
        &[
            "ZONE",
            "ACCOUNT",
            "SETTING",
            "POOL",
            "SET BY",
            "SELECTED BY",
        ],
        &[],
        &rows,
    )
}

/// Its cgroups, with a word on those that do not exist.
fn cgroups(zone: &ZoneRecord) -> Vec<String> {
    let told = |path: &String| {
        if zone.absent_cgroups.contains(path) {
            format!("{path} (does not exist)")
        } else {
            path.clone()
        }
    };
    zone.cgroups.iter().map(told).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_set_is_not_said_to_be_a_commands() {
        let zone = |setting_owner| ZoneRecord {
            id: "z1".into(),
            name: "shop.example".into(),
            account: "acme".into(),
            enabled: true,
            pool_id: Some("partners".into()),
            setting_owner,
            sources: Vec::new(),
            marks: Vec::new(),
            cgroups: Vec::new(),
            absent_cgroups: Vec::new(),
            interfaces: Vec::new(),
        };
        let said = |owner| text(&[zone(owner)]);
        assert!(said(Some(Owner::Api)).contains("API or command"));
        assert!(said(Some(Owner::File)).contains("file"));
    }
}
