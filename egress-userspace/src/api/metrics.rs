//! `/metrics` for Prometheus (OBS-3): read from the pinned maps at every scrape, so nothing is counted twice and a
//! restarted daemon goes on where the last one was.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;

use egress_common::reason::Reason;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

mod ports_tried;

use ports_tried::PortsHistogram;

use super::envelope::{Answer, ApiError};
use super::{Api, Call};
use crate::carried::Carried;
use crate::config::EVENTS;
use crate::control::Failure;
use crate::dataplane::api::{
    DataPlaneStatus, Names, OriginFilter, OriginRecord, PoolLive, TroubleKind,
};
use crate::flow_log::Snapshot;
use crate::inventory::Status;
use crate::nets::Nets;

/// What Prometheus takes this format by.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter>;

/// `GET /metrics`
pub(super) fn metrics(api: &Api, _call: &Call) -> Result<Answer, ApiError> {
    let (status, standing, names, flow_log) = {
        let controller = api.service.controller();
        let status = controller.status();
        let standing = Standing {
            is_frozen: controller.frozen().is_some(),
            is_behind: controller.behind().is_some(),
        };
        (
            status,
            standing,
            controller.stored().names(),
            controller.flow_log().counts().snapshot(),
        )
    };
    let read = || -> Result<Scrape, Failure> {
        let view = api.service.view()?;
        Ok(Scrape {
            status: status?,
            carried: api.carried(view.as_ref())?,
            standing,
            pools: view.pools()?,
            origins: view.origins(&OriginFilter::default())?,
            names,
            flow_log,
        })
    };
    let scrape = read().map_err(|failure| ApiError::internal(&failure))?;
    let mut text = String::new();
    encode(&mut text, &scrape.registry()).map_err(|error| ApiError::internal(&error))?;
    Ok(Answer::Text(OPENMETRICS, text))
}

/// How the configuration stands.
#[derive(Clone, Copy, Debug, Default)]
struct Standing {
    is_frozen: bool,
    is_behind: bool,
}

/// What one scrape says.
struct Scrape {
    status: DataPlaneStatus,
    carried: BTreeMap<u16, Carried>,
    standing: Standing,
    pools: Vec<PoolLive>,
    origins: Vec<OriginRecord>,
    names: Names,
    flow_log: Snapshot,
}

/// Which metric a reason is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    /// A new connection that got no place: a drop, and an allocation error.
    Allocation,
    /// Another drop or refusal.
    Drop,
    /// A refusal counted under its own reason before; this says that it got no answer.
    Unanswered,
    /// No packet at all.
    Note,
    /// No packet either: a line of the flow log.
    FlowLog,
}

const fn class(reason: Reason) -> Class {
    match reason {
        Reason::CapReached
        | Reason::NoPort
        | Reason::TableFull
        | Reason::OriginTableFull
        | Reason::NoAddress
        | Reason::Contended => Class::Allocation,
        Reason::ReplyLimited | Reason::Unanswerable => Class::Unanswered,
        Reason::IndexInconsistent | Reason::EventLost => Class::Note,
        Reason::FlowLogLost => Class::FlowLog,
        // What a reason is for unless something is known about it.
        _ => Class::Drop,
    }
}

impl Scrape {
    fn registry(self) -> Registry {
        let mut registry = Registry::with_prefix("egress");
        self.health(&mut registry);
        self.reasons(&mut registry);
        self.addresses(&mut registry);
        self.flow_log(&mut registry);
        self.carried(&mut registry);
        registry.register(
            "ports_tried",
            "Source ports that new connections tried until they had one",
            PortsHistogram(self.status.ports_tried.clone()),
        );
        // Last, since it takes the status.
        let ready = Gauge::<i64>::default();
        ready.set(Status::new(self.status, None).ready.into());
        registry.register(
            "ready",
            "1 while hooks, guard and configuration are in force",
            ready,
        );
        registry
    }

    fn health(&self, registry: &mut Registry) {
        let hooks = Gauges::default();
        for hook in &self.status.hooks {
            let labels = vec![
                ("hook", hook.hook.clone()),
                ("interface", hook.interface.clone()),
            ];
            hooks
                .get_or_create(&labels)
                .set(f64::from(u8::from(hook.in_place)));
        }
        registry.register("hook_in_place", "1 while the program is attached", hooks);
        for (name, says, is) in [
            (
                "frozen",
                "1 while the configuration cannot be changed, since its store does not answer",
                self.standing.is_frozen,
            ),
            (
                "behind",
                "1 while what is stored could not be put in force here",
                self.standing.is_behind,
            ),
        ] {
            let gauge = Gauge::<i64>::default();
            gauge.set(is.into());
            registry.register(name, says, gauge);
        }
        let troubles = Gauges::default();
        for kind in TroubleKind::ALL {
            let count = self
                .status
                .troubles
                .iter()
                .filter(|trouble| trouble.kind == kind)
                .count();
            troubles
                .get_or_create(&vec![("kind", kind.label().to_owned())])
                .set(float(count as u64));
        }
        registry.register(
            "troubles",
            "What is not as the configuration supposes, as `egress status` tells it",
            troubles,
        );
        let announced = Gauge::<i64>::default();
        announced.set(i64::try_from(self.status.announced.len()).unwrap_or(i64::MAX));
        registry.register(
            "announced_routes",
            "Routes announced to the network",
            announced,
        );
        let (used, capacity) = (Gauges::default(), Gauges::default());
        for table in &self.status.tables {
            let labels = vec![("table", table.table.clone())];
            used.get_or_create(&labels).set(float(table.used));
            capacity.get_or_create(&labels).set(float(table.capacity));
        }
        registry.register("table_entries", "Entries of a table in use", used);
        registry.register("table_capacity", "The most entries it holds", capacity);
    }

    fn reasons(&self, registry: &mut Registry) {
        let packets: BTreeMap<&str, u64> = self
            .status
            .reasons
            .iter()
            .map(|count| (count.reason.as_str(), count.packets))
            .collect();
        let family = |classes: &[Class]| {
            let family = Counters::default();
            for reason in Reason::ALL
                .iter()
                .filter(|reason| classes.contains(&class(**reason)))
            {
                let counted = packets.get(reason.label()).copied().unwrap_or(0);
                family
                    .get_or_create(&vec![("reason", reason.label().to_owned())])
                    .inc_by(counted);
            }
            family
        };
        registry.register(
            "drops",
            "Packets dropped or refused, by reason",
            family(&[Class::Allocation, Class::Drop]),
        );
        registry.register(
            "port_allocation_errors",
            "New connections that got no place, by reason; they are among the drops",
            family(&[Class::Allocation]),
        );
        registry.register(
            "unanswered_refusals",
            "Refusals that the inside host was not told of, by why; they are among the drops",
            family(&[Class::Unanswered]),
        );
        registry.register(
            "notes",
            "Other things worth a look: events lost, index entries that led elsewhere",
            family(&[Class::Note]),
        );
    }

    /// Written since this daemon began; lost in the ring buffer since the maps were made.
    fn flow_log(&self, registry: &mut Registry) {
        let (lines, lost) = (Counters::default(), Counters::default());
        for ((event, _), count) in EVENTS.iter().zip(self.flow_log.written) {
            let labels = vec![("event", (*event).to_owned())];
            lines.get_or_create(&labels).inc_by(count);
        }
        let reasons = self.status.reasons.iter();
        let full = reasons
            .filter(|count| count.reason == Reason::FlowLogLost.label())
            .map(|count| count.packets)
            .sum();
        for (reason, count) in [
            ("ring_full", full),
            ("limited", self.flow_log.limited),
            ("unreadable", self.flow_log.unreadable),
        ] {
            let labels = vec![("reason", reason.to_owned())];
            lost.get_or_create(&labels).inc_by(count);
        }
        registry.register("flow_log_lines", "Lines written to the flow log", lines);
        registry.register(
            "flow_log_lost",
            "Events of connections that are in no line, by why",
            lost,
        );
    }

    /// Since this daemon began: the data plane counts by flow.
    fn carried(&self, registry: &mut Registry) {
        let (packets, bytes) = (Counters::default(), Counters::default());
        let pools = self.pools.iter().map(|pool| pool.number);
        let numbers: BTreeSet<u16> = pools.chain(self.carried.keys().copied()).collect();
        for number in numbers {
            let carried = self.carried.get(&number).copied().unwrap_or_default();
            for (way, direction) in ["out", "in"].into_iter().enumerate() {
                let labels = vec![
                    ("pool", self.names.pool(number)),
                    ("direction", direction.to_owned()),
                ];
                packets.get_or_create(&labels).inc_by(carried.packets[way]);
                bytes.get_or_create(&labels).inc_by(carried.bytes[way]);
            }
        }
        registry.register(
            "pool_packets",
            "Packets translated by this server, by pool",
            packets,
        );
        registry.register("pool_bytes", "Their bytes, IP length", bytes);
    }

    fn addresses(&self, registry: &mut Registry) {
        let active = Gauges::default();
        let capacity = Gauges::default();
        let draining = Gauges::default();
        let fullest = Gauges::default();
        let addresses = self.pools.iter().flat_map(|pool| &pool.addresses);
        let mut most = Nets::<f64>::of(addresses.map(|address| address.egress_ip.net()));
        for origin in &self.origins {
            most.change(origin.egress_ip, |most| {
                *most = most.max(origin.utilization);
            });
        }
        for pool in &self.pools {
            for address in &pool.addresses {
                let labels = vec![
                    ("pool", self.names.pool(pool.number)),
                    ("egress_ip", address.egress_ip.to_string()),
                ];
                active.get_or_create(&labels).set(float(address.active));
                capacity.get_or_create(&labels).set(address.cap.into());
                draining
                    .get_or_create(&labels)
                    .set(f64::from(u8::from(address.draining)));
                let most = most.get(address.egress_ip.net()).copied().unwrap_or(0.0);
                fullest.get_or_create(&labels).set(most);
            }
        }
        registry.register(
            "active_connections",
            "Live connections by an egress IP, over all origins",
            active,
        );
        registry.register(
            "connections_per_origin_limit",
            "Connections that this server admits by it to one origin and protocol",
            capacity,
        );
        registry.register("draining", "1 while it takes no new connections", draining);
        registry.register(
            "fullest_origin_utilization_percent",
            "Utilization (0-100) of the origin that has most of its connections",
            fullest,
        );
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of connections and entries are far below 2^53"
)]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::api::{PoolAddressLive, Protocol, ReasonCount, TableStatus};

    #[test]
    fn every_reason_has_its_place_and_figures_come_out_as_they_are() {
        let reasons = Reason::ALL.iter().map(|reason| ReasonCount {
            reason: reason.label().into(),
            packets: 100 + u64::from(*reason as u32),
        });
        let origin = |port: u16, utilization| OriginRecord {
            egress_ip: "192.0.2.10".parse().unwrap(),
            origin: ([203, 0, 113, 1], port).into(),
            protocol: Protocol::Tcp,
            active: 1,
            peak: 1,
            capacity: 40_000,
            utilization,
            refused: 0,
        };
        let scrape = Scrape {
            status: DataPlaneStatus {
                reasons: reasons.collect(),
                tables: vec![TableStatus {
                    table: "flows".into(),
                    used: 7,
                    capacity: 16,
                }],
                ..DataPlaneStatus::default()
            },
            carried: BTreeMap::from([(
                3,
                Carried {
                    new: 1,
                    packets: [11, 12],
                    bytes: [1_300, 1_400],
                },
            )]),
            standing: Standing::default(),
            pools: vec![PoolLive {
                number: 3,
                addresses: vec![PoolAddressLive {
                    egress_ip: "192.0.2.10".parse().unwrap(),
                    slices: 1,
                    cap: 40_000,
                    draining: false,
                    active: 12,
                }],
            }],
            origins: vec![origin(80, 1.5), origin(443, 91.25)],
            names: Names {
                pools: [(3, "partners".to_owned())].into(),
                ..Names::default()
            },
            flow_log: Snapshot {
                written: [5, 4, 3],
                limited: 2,
                unreadable: 1,
            },
        };
        let mut text = String::new();
        encode(&mut text, &scrape.registry()).unwrap();
        let has = |line: &str| assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        for reason in Reason::ALL {
            let label = reason.label();
            let count = 100 + *reason as u32;
            let metric = match class(*reason) {
                Class::Allocation | Class::Drop => "drops",
                Class::Unanswered => "unanswered_refusals",
                Class::Note => "notes",
                Class::FlowLog => continue,
            };
            has(&format!(
                "egress_{metric}_total{{reason=\"{label}\"}} {count}"
            ));
        }
        has("egress_port_allocation_errors_total{reason=\"cap_reached\"} 100");
        has("egress_flow_log_lines_total{event=\"open\"} 5");
        has("egress_flow_log_lines_total{event=\"refused\"} 3");
        let lost = 100 + Reason::FlowLogLost as u32;
        has(&format!(
            "egress_flow_log_lost_total{{reason=\"ring_full\"}} {lost}"
        ));
        has("egress_flow_log_lost_total{reason=\"limited\"} 2");
        has("egress_table_entries{table=\"flows\"} 7.0");
        let of = "{pool=\"partners\",egress_ip=\"192.0.2.10\"}";
        has(&format!("egress_active_connections{of} 12.0"));
        has(&format!(
            "egress_fullest_origin_utilization_percent{of} 91.25"
        ));
        has("egress_pool_packets_total{pool=\"partners\",direction=\"out\"} 11");
        has("egress_pool_bytes_total{pool=\"partners\",direction=\"in\"} 1400");
        has("egress_troubles{kind=\"own_address\"} 0.0");
        has("egress_ready 0");
        assert!(text.ends_with("# EOF\n"));
    }
}
