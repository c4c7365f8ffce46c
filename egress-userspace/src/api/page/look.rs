//! What the page shows of one look at the data plane.

use std::time::{SystemTime, UNIX_EPOCH};

use egress_common::reason::Reason;

use super::STYLE;
use super::html::{Cell, Column, Head, Html};
use crate::api::time;
use crate::dataplane::api::{Names, OriginRecord, PoolLive, utilization};
use crate::inventory::{PoolRecord, Status};
use crate::liveness::State;
use crate::nets::Nets;

/// Rows of a table.
const ROWS: usize = 200;
/// Announced routes.
const ROUTES: usize = 40;
/// Names of zones in a cell.
const ZONES: usize = 8;

/// One look.
pub(super) struct Look {
    pub(super) server: String,
    pub(super) data_center: String,
    pub(super) status: Status,
    pub(super) pools: Vec<PoolRecord>,
    pub(super) live: Vec<PoolLive>,
    pub(super) origins: Vec<OriginRecord>,
    pub(super) names: Names,
    /// Whether a token was shown: then zones and origins are told.
    pub(super) known: bool,
}

impl Look {
    /// The page.
    pub(super) fn html(mut self) -> String {
        self.origins
            .sort_by(|one, other| other.utilization.total_cmp(&one.utilization));
        let mut html = Html::default();
        html.raw("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n")
            .raw("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n")
            .raw("<meta http-equiv=\"refresh\" content=\"5\">\n<title>")
            .text(&self.server)
            .raw(" - egress</title>\n<style>")
            .raw(STYLE)
            .raw("</style></head>\n<body>\n");
        self.head(&mut html);
        self.pools(&mut html);
        self.addresses(&mut html);
        self.origins(&mut html);
        self.refusals(&mut html);
        self.servers(&mut html);
        self.dataplane(&mut html);
        html.raw("<footer>Read-only; renewed every five seconds. Live on the host: <code>egress top</code>. One packet's way: ")
            .raw("<code>egress why</code>.</footer>\n</body></html>\n");
        html.done()
    }

    fn head(&self, html: &mut Html) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(0));
        html.raw("<header><h1>").text(&self.server).raw("</h1>");
        html.raw(if self.status.ready {
            "<span class=\"state good\">ready</span>"
        } else {
            "<span class=\"state bad\">not ready</span>"
        });
        html.raw("<span class=\"soft\">data center ")
            .text(&self.data_center)
            .raw(", egress ")
            .text(&self.status.version)
            .raw(", ")
            .text(time::rfc3339_seconds(now))
            .raw("</span></header>\n");

        let plane = &self.status.dataplane;
        let attached = plane.hooks.iter().filter(|hook| hook.in_place).count();
        let active: u64 = self.origins.iter().map(|origin| origin.active).sum();
        let fullest = self.origins.first().map_or(0.0, |first| first.utilization);
        let dropped: u64 = plane.reasons.iter().map(|reason| reason.packets).sum();
        let tiles = [
            ("Live connections", active.to_string()),
            ("Fullest origin", format!("{fullest:.2} %")),
            ("Refused or dropped", dropped.to_string()),
            (
                "Programs attached",
                format!("{attached} of {}", plane.hooks.len()),
            ),
            ("Routes announced", plane.announced.len().to_string()),
        ];
        html.raw("<dl class=\"tiles\">");
        for (name, value) in tiles {
            html.raw("<div><dt>").raw(name).raw("</dt><dd>");
            html.text(value).raw("</dd></div>");
        }
        html.raw("</dl>\n");
        self.troubles(html);
    }

    /// What is not as it should be, in words.
    fn troubles(&self, html: &mut Html) {
        let plane = &self.status.dataplane;
        let mut all = Vec::new();
        if !plane.configured {
            all.push("no configuration is in force".to_owned());
        }
        if !plane.guard {
            all.push("the guard is missing: bound traffic could leave by another way".to_owned());
        }
        for hook in plane.hooks.iter().filter(|hook| !hook.in_place) {
            all.push(format!(
                "{} is not attached on {}",
                hook.hook, hook.interface
            ));
        }
        all.extend(plane.troubles.iter().map(|trouble| trouble.text.clone()));
        all.extend(self.status.frozen.as_ref().map(|why| {
            format!("the configuration cannot be changed now, and connections go on: {why}")
        }));
        all.extend(
            self.status
                .stuck
                .as_ref()
                .map(|why| format!("slices that are to leave this server stay: {why}")),
        );
        if plane.routed {
            all.push("the fast path is off: a routing rule looks at bits of the packet mark that are not ours".to_owned());
        }
        if !all.is_empty() {
            html.raw("<ul class=\"trouble\">");
            for one in all {
                html.raw("<li>").text(one).raw("</li>");
            }
            html.raw("</ul>\n");
        }
    }

    fn fullest(&self) -> Nets<f64> {
        let live = self.live.iter().flat_map(|pool| &pool.addresses);
        let mut fullest = Nets::<f64>::of(live.map(|address| address.egress_ip.net()));
        for origin in &self.origins {
            fullest.change(origin.egress_ip, |most| {
                *most = most.max(origin.utilization);
            });
        }
        fullest
    }

    fn pools(&self, html: &mut Html) {
        let heads: [Head; 5] = [
            ("Pool", Column::Name, false),
            ("Account", Column::Name, true),
            ("Zones", Column::Long, false),
            ("Addresses", Column::Figure, true),
            ("Active", Column::Figure, false),
        ];
        let rows = self.pools.iter().map(|pool| {
            let name = match &pool.name {
                Some(name) if *name != pool.id => format!("{name} ({})", pool.id),
                _ => pool.id.clone(),
            };
            let active: u64 = pool.addresses.iter().filter_map(|one| one.active).sum();
            vec![
                Cell::Text(name),
                Cell::Text(pool.account.clone().unwrap_or_default()),
                Cell::Text(self.zones(pool)),
                Cell::of(pool.addresses.len()),
                Cell::of(active),
            ]
        });
        html.raw("<section><h2>Pools</h2>");
        html.table(
            &heads,
            rows.collect(),
            ROWS,
            "There is no pool.",
            "<code>egress pools</code>",
        );
        html.raw("</section>\n");
    }

    fn zones(&self, pool: &PoolRecord) -> String {
        let zones = &pool.zones;
        if !self.known {
            return zones.len().to_string();
        }
        let mut text = zones.iter().take(ZONES).cloned().collect::<Vec<_>>();
        if zones.len() > ZONES {
            text.push(format!("and {} more", zones.len() - ZONES));
        }
        text.join(", ")
    }

    fn addresses(&self, html: &mut Html) {
        let heads: [Head; 6] = [
            ("Egress IP", Column::Code, false),
            ("Pool", Column::Name, true),
            ("Active", Column::Figure, false),
            ("Limit an origin", Column::Figure, true),
            ("Fullest origin", Column::Full, false),
            ("", Column::Name, false),
        ];
        let fullest = self.fullest();
        let row = |pool: &PoolLive| {
            let name = self.names.pool(pool.number);
            let cells = pool.addresses.iter().map(|address| {
                let full = fullest.get(address.egress_ip.net()).copied();
                let state = match (address.draining, address.slices) {
                    (true, _) => Cell::Colored("warn", "drains".into()),
                    (false, 0) => Cell::Colored("soft", "other servers'".into()),
                    (false, _) => Cell::Text(String::new()),
                };
                vec![
                    Cell::of(address.egress_ip),
                    Cell::Text(name.clone()),
                    Cell::of(address.active),
                    Cell::of(address.cap),
                    Cell::Full(full.unwrap_or(0.0)),
                    state,
                ]
            });
            cells.collect::<Vec<_>>()
        };
        let rows = self.live.iter().flat_map(row).collect();
        html.raw("<section><h2>Egress IPs</h2>");
        html.table(
            &heads,
            rows,
            ROWS,
            "No egress IP is in force on this server.",
            "<code>egress pools</code>",
        );
        html.raw("</section>\n");
    }

    fn origins(&self, html: &mut Html) {
        let heads: [Head; 7] = [
            ("Origin", Column::Code, false),
            ("", Column::Name, true),
            ("Egress IP", Column::Code, false),
            ("Active", Column::Figure, false),
            ("Most in 5 min", Column::Figure, true),
            ("Refused", Column::Figure, true),
            ("Full", Column::Full, false),
        ];
        html.raw("<section><h2>Origins, the fullest first</h2>");
        if self.known {
            let row = |one: &OriginRecord| {
                vec![
                    Cell::of(one.origin),
                    Cell::of(one.protocol),
                    Cell::of(one.egress_ip),
                    Cell::of(one.active),
                    Cell::of(one.peak),
                    Cell::of(one.refused),
                    Cell::Full(one.utilization),
                ]
            };
            html.table(
                &heads,
                self.origins.iter().take(2 * ROWS).map(row).collect(),
                ROWS,
                "No origin was connected to lately.",
                "<code>egress origins</code>",
            );
        } else {
            html.raw("<p class=\"soft\">").text(self.origins.len());
            html.raw(" counted. Which ones, and the names of zones, is shown to a token with <code>metrics:read</code>: ")
                .raw("<a href=\"/status?all\">show it as the password</a>, under any user name.</p>");
        }
        html.raw("</section>\n");
    }

    fn refusals(&self, html: &mut Html) {
        let heads: [Head; 3] = [
            ("Reason", Column::Code, false),
            ("Packets", Column::Figure, false),
            ("What it means", Column::Long, false),
        ];
        let mut counted = self.status.dataplane.reasons.clone();
        counted.retain(|reason| reason.packets > 0);
        counted.sort_by_key(|reason| std::cmp::Reverse(reason.packets));
        let rows = counted.into_iter().map(|count| {
            let reason = Reason::ALL.iter().find(|one| one.label() == count.reason);
            let text = reason.map_or("", |reason| reason.text());
            vec![
                Cell::Text(count.reason),
                Cell::of(count.packets),
                Cell::of(text),
            ]
        });
        html.raw("<section><h2>Refused and dropped, by reason</h2>");
        html.table(
            &heads,
            rows.collect(),
            ROWS,
            "Nothing was refused or dropped.",
            "",
        );
        html.raw("</section>\n");
    }

    fn servers(&self, html: &mut Html) {
        let peers = &self.status.dataplane.peers;
        if peers.is_empty() {
            return;
        }
        let heads: [Head; 6] = [
            ("Server", Column::Name, false),
            ("Reached at", Column::Code, true),
            ("", Column::Name, false),
            ("Round trip", Column::Figure, true),
            ("Packets sent on", Column::Figure, false),
            ("Received", Column::Figure, false),
        ];
        let rows = peers.iter().map(|peer| {
            let health = self.status.servers.get(&peer.address);
            let state = match health.map(|health| health.state) {
                Some(State::Alive) => Cell::Colored("good", State::Alive.to_string()),
                Some(State::Silent) => Cell::Colored("bad", State::Silent.to_string()),
                Some(State::Returning) => Cell::Colored("warn", State::Returning.to_string()),
                Some(State::Unknown) => Cell::Colored("soft", State::Unknown.to_string()),
                None => Cell::Colored("soft", "not asked".into()),
            };
            let trip = health.and_then(|health| health.round_trip_us);
            vec![
                Cell::Text(self.names.server(peer.address)),
                Cell::of(peer.address),
                state,
                Cell::Text(trip.map_or_else(String::new, |time| format!("{time} µs"))),
                Cell::of(peer.sent_packets),
                Cell::of(peer.received_packets),
            ]
        });
        html.raw("<section><h2>Other servers</h2>");
        html.table(
            &heads,
            rows.collect(),
            ROWS,
            "",
            "<code>egress status</code>",
        );
        html.raw("</section>\n");
    }

    fn dataplane(&self, html: &mut Html) {
        let plane = &self.status.dataplane;
        let heads: [Head; 4] = [
            ("Program", Column::Code, false),
            ("On", Column::Code, false),
            ("By", Column::Name, true),
            ("", Column::Name, false),
        ];
        let rows = plane.hooks.iter().map(|hook| {
            vec![
                Cell::of(&hook.hook),
                Cell::of(&hook.interface),
                Cell::of(&hook.kind),
                if hook.in_place {
                    Cell::Colored("good", "in place".into())
                } else {
                    Cell::Colored("bad", "missing".into())
                },
            ]
        });
        html.raw("<section><h2>Data plane</h2>");
        html.table(
            &heads,
            rows.collect(),
            ROWS,
            "No program is attached.",
            "<code>egress status</code>",
        );
        let heads: [Head; 3] = [
            ("Table", Column::Code, false),
            ("Entries", Column::Figure, false),
            ("Full", Column::Full, false),
        ];
        let rows = plane.tables.iter().map(|table| {
            vec![
                Cell::of(&table.table),
                Cell::Text(format!("{} of {}", table.used, table.capacity)),
                Cell::Full(utilization(table.used, table.capacity)),
            ]
        });
        html.table(&heads, rows.collect(), ROWS, "No table is there.", "");
        if !plane.announced.is_empty() {
            html.raw("<p>Announced by routes: ");
            let routes: Vec<String> = plane
                .announced
                .iter()
                .take(ROUTES)
                .map(ToString::to_string)
                .collect();
            html.text(routes.join(", "));
            let left = plane.announced.len().saturating_sub(ROUTES);
            if left > 0 {
                html.raw(" and ").text(left).raw(" more");
            }
            html.raw(".</p>");
        }
        html.raw("</section>\n");
    }
}

#[cfg(test)]
mod tests;
