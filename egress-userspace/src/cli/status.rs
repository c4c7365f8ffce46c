//! `egress status`: is everything in place?

use super::context::{self, Context};
use super::place::Place;
use super::{CliError, Exit, pool, table};
use crate::control::{Failure, Request};
use crate::dataplane::api::{DataPlaneStatus, Trouble};
use crate::desired::Withdrawn;
use crate::inventory::{DaemonState, Status};
use crate::resolve;
use crate::store;

pub(super) fn run(context: &mut Context<'_>, place: &Place) -> Result<Exit, CliError> {
    let config = place.config(context)?;
    let status: Status = match context::ask(&config, &Request::Status, &mut |_| Ok(()))? {
        Some(answer) => serde_json::from_value(answer)?,
        None => {
            let local = context.local(config)?;
            let mut dataplane = match &local.view {
                Some(view) => view.status().map_err(Failure::from)?,
                None => DataPlaneStatus::default(),
            };
            // Why the daemon does not start, or what it knew.
            let impostor = store::impostor(&local.config);
            dataplane
                .troubles
                .extend(impostor.as_ref().map(Trouble::from));
            let resources = local.stored.resources();
            let addresses = resolve::addresses(&resources, &local.config);
            Status::new(dataplane, None).without(&Withdrawn::of(&resources), addresses)
        }
    };
    context.print(&status, || text(&status))?;
    Ok(if status.in_place() && status.behind.is_none() {
        Exit::Done
    } else {
        Exit::Failed
    })
}

fn text(status: &Status) -> String {
    let yes_no = |yes: bool| if yes { "yes" } else { "no" };
    let daemon = match (status.daemon, status.pid) {
        (DaemonState::Up, Some(pid)) => format!("up (process {pid}, version {})", status.version),
        (DaemonState::Up, None) => "up".to_owned(),
        (DaemonState::Down, _) => "down; the data plane goes on without it".to_owned(),
    };
    let daemon = if status.dataplane.hooks.is_empty() && status.daemon == DaemonState::Down {
        "down, and nothing is attached".to_owned()
    } else {
        daemon
    };
    let mut parts = vec![format!(
        "daemon      {daemon}\nready       {}\nguard       {}\nconfigured  {}",
        yes_no(status.ready),
        if status.dataplane.guard {
            "in place"
        } else {
            "missing"
        },
        yes_no(status.dataplane.configured)
    )];
    if let Some(reason) = &status.frozen {
        parts.push(format!(
            "store       {reason}; what is in force stays so, and connections go on"
        ));
    }
    if let Some(reason) = &status.stuck {
        parts.push(format!(
            "STUCK       slices that are to leave this server stay: {reason}"
        ));
    }
    if let Some(reason) = &status.behind {
        parts.push(format!(
            "BEHIND      what is stored could not be put in force here, and what was before still is: {reason}"
        ));
    }
    for trouble in &status.dataplane.troubles {
        parts.push(format!(
            "TROUBLE     {}\n            {}",
            trouble.text, trouble.remedy
        ));
    }
    if let Some(left @ 1..) = status.dataplane.lapses_in {
        parts.push(format!(
            "takeover    IPv4 egress IPs are this server's for {left} s more, and longer once etcd has heard of it again (`takeover_after`)"
        ));
    }
    if status.dataplane.routed {
        parts.push(
            "fast path   off: a routing rule (`ip rule`, `ip -6 rule`) looks at bits of the packet mark that are not ours"
                .to_owned(),
        );
    }
    if !status.dataplane.hooks.is_empty() {
        let row = |hook: &crate::dataplane::api::HookStatus| {
            vec![
                hook.hook.clone(),
                hook.interface.clone(),
                hook.kind.clone(),
                hook.program_id
                    .map_or_else(|| "-".to_owned(), |id| id.to_string()),
                if hook.in_place { "in place" } else { "MISSING" }.to_owned(),
            ]
        };
        let rows: Vec<_> = status.dataplane.hooks.iter().map(row).collect();
        parts.push(table::render(
            &["HOOK", "INTERFACE", "KIND", "PROGRAM", ""],
            &[3],
            &rows,
        ));
    }
    if !status.dataplane.tables.is_empty() {
        let row = |table: &crate::dataplane::api::TableStatus| {
            vec![
                table.table.clone(),
                table.used.to_string(),
                table.capacity.to_string(),
            ]
        };
        let rows: Vec<_> = status.dataplane.tables.iter().map(row).collect();
        parts.push(table::render(
            &["TABLE", "USED", "CAPACITY"],
            &[1, 2],
            &rows,
        ));
    }
    if !status.dataplane.peers.is_empty() {
        let row = |peer: &crate::dataplane::api::PeerStatus| {
            let health = status.servers.get(&peer.address);
            vec![
                peer.address.to_string(),
                health.map_or_else(|| "-".to_owned(), |health| health.state.to_string()),
                health
                    .and_then(|health| health.round_trip_us)
                    .map_or_else(|| "-".to_owned(), |time| format!("{time} us")),
                peer.sent_packets.to_string(),
                peer.received_packets.to_string(),
            ]
        };
        let rows: Vec<_> = status.dataplane.peers.iter().map(row).collect();
        parts.push(table::render(
            &["SERVER", "", "ROUND TRIP", "SENT ON", "RECEIVED"],
            &[2, 3, 4],
            &rows,
        ));
    }
    if !status.dataplane.announced.is_empty() {
        let all = &status.dataplane.announced;
        parts.push(format!("{} routes announced to the network", all.len()));
    }
    for (prefix, addresses) in &status.withdrawn {
        let of = match addresses.as_slice() {
            [] => "no egress IP of this server is in it".to_owned(),
            some => format!("so not {}", shortly(some)),
        };
        parts.push(format!("{prefix} is withdrawn, not advertised: {of}"));
    }
    if !status.dataplane.draining.is_empty() {
        parts.push(pool::left(&status.dataplane.draining));
    }
    let counted: Vec<_> = status
        .dataplane
        .reasons
        .iter()
        .filter(|reason| reason.packets > 0)
        .map(|reason| vec![reason.reason.clone(), reason.packets.to_string()])
        .collect();
    if !counted.is_empty() {
        parts.push(table::render(&["REASON", "PACKETS"], &[1], &counted));
    }
    parts.join("\n\n")
}

/// The first of a list that may be long.
fn shortly(addresses: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<&str> = addresses.iter().map(String::as_str).take(SHOWN).collect();
    let more = addresses.len() - shown.len();
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
