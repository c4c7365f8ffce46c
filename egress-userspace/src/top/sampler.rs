//! Looks at the maps, and compares with the look before.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::{AddressRow, OriginRow, PoolRow, Rates, ReasonRow, Snapshot};
use crate::carried::{Carried, Flows};
use crate::dataplane::api::{
    DataPlaneError, DataPlaneView, Meter, Names, OriginFilter, OriginRecord, Protocol,
};
use crate::inventory::{DaemonState, Status};
use crate::nets::Nets;

fn rates(carried: Carried, seconds: f64) -> Rates {
    if seconds <= 0.0 {
        return Rates::default();
    }
    Rates {
        new_per_s: float(carried.new) / seconds,
        packets_per_s: float(carried.packets.iter().sum()) / seconds,
        bytes_per_s: float(carried.bytes.iter().sum()) / seconds,
    }
}

type Key = (IpAddr, SocketAddr, Protocol);

/// What was carried, for all who want to know.
#[derive(Default)]
struct Sums {
    all: Carried,
    pools: HashMap<u16, Carried>,
    origins: HashMap<Key, Carried>,
}

impl Sums {
    fn add(&mut self, meter: &Meter, carried: Carried) {
        self.all.add(carried);
        self.pools.entry(meter.pool).or_default().add(carried);
        if let Some(egress_ip) = meter.egress_ip {
            let key = (egress_ip, meter.origin, meter.protocol);
            self.origins.entry(key).or_default().add(carried);
        }
    }
}

/// Remembers the look before.
#[derive(Default)]
pub struct Sampler {
    flows: Flows,
    reasons: HashMap<String, u64>,
    at: Option<Instant>,
}

impl Sampler {
    /// Looks. The first look has no rates.
    ///
    /// # Errors
    /// When maps cannot be read.
    pub fn look(
        &mut self,
        view: &dyn DataPlaneView,
        names: &Names,
        daemon: DaemonState,
    ) -> Result<Snapshot, DataPlaneError> {
        let now = Instant::now();
        let seconds = self
            .at
            .map_or(0.0, |at| now.duration_since(at).as_secs_f64());
        let status = view.status()?;
        let mut sums = Sums::default();
        view.meters(&mut |meter| {
            let carried = self.flows.carried(&meter, seconds > 0.0);
            sums.add(&meter, carried);
        })?;
        let counts = view.origins(&OriginFilter::default())?;
        let mut snapshot = Snapshot {
            ready: Status::new(status.clone(), None).ready,
            daemon,
            interval_s: seconds,
            active: counts.iter().map(|count| count.active).sum(),
            rates: rates(sums.all, seconds),
            tables: status.tables,
            ..Snapshot::default()
        };
        addresses(&mut snapshot, view, names, (&counts, &sums), seconds)?;
        snapshot.origins = origins(counts, &sums.origins, seconds);
        snapshot.refusals = status
            .reasons
            .iter()
            .filter(|reason| reason.packets > 0)
            .map(|reason| {
                let before = self.reasons.get(&reason.reason).copied().unwrap_or(0);
                let since = reason.packets.saturating_sub(before);
                ReasonRow {
                    reason: reason.reason.clone(),
                    packets: reason.packets,
                    per_s: if seconds > 0.0 {
                        float(since) / seconds
                    } else {
                        0.0
                    },
                }
            })
            .collect();
        snapshot.refusals.sort_by(|one, other| {
            (other.per_s.total_cmp(&one.per_s)).then(other.packets.cmp(&one.packets))
        });
        self.reasons = status
            .reasons
            .into_iter()
            .map(|reason| (reason.reason, reason.packets))
            .collect();
        self.at = Some(now);
        Ok(snapshot)
    }
}

/// What is known of an address of a pool besides what its pool says.
#[derive(Clone, Copy, Default)]
struct Load {
    fullest: f64,
    carried: Carried,
}

/// Pools and their addresses.
fn addresses(
    snapshot: &mut Snapshot,
    view: &dyn DataPlaneView,
    names: &Names,
    (counts, sums): (&[OriginRecord], &Sums),
    seconds: f64,
) -> Result<(), DataPlaneError> {
    let pools = view.pools()?;
    let nets = pools.iter().flat_map(|pool| &pool.addresses);
    let mut loads = Nets::<Load>::of(nets.map(|address| address.egress_ip.net()));
    for count in counts {
        loads.change(count.egress_ip, |load| {
            load.fullest = load.fullest.max(count.utilization);
        });
    }
    for ((egress_ip, ..), carried) in &sums.origins {
        loads.change(*egress_ip, |load| load.carried.add(*carried));
    }
    for pool in pools {
        let id = names.pool(pool.number);
        let carried = sums.pools.get(&pool.number).copied().unwrap_or_default();
        let mut row = PoolRow {
            pool: id.clone(),
            rates: rates(carried, seconds),
            ..PoolRow::default()
        };
        for address in pool.addresses {
            let load = loads.get(address.egress_ip.net()).copied();
            let Load { fullest, carried } = load.unwrap_or_default();
            row.addresses += 1;
            row.active += address.active;
            row.utilization = row.utilization.max(fullest);
            snapshot.egress_ips.push(AddressRow {
                egress_ip: address.egress_ip.to_string(),
                pool: id.clone(),
                active: address.active,
                capacity: address.cap.into(),
                utilization: fullest,
                draining: address.draining,
                rates: rates(carried, seconds),
            });
        }
        snapshot.pools.push(row);
    }
    Ok(())
}

/// The fullest first.
fn origins(
    counts: Vec<OriginRecord>,
    carried: &HashMap<Key, Carried>,
    seconds: f64,
) -> Vec<OriginRow> {
    let mut rows: Vec<OriginRow> = counts
        .into_iter()
        .map(|count| {
            let key = (count.egress_ip, count.origin, count.protocol);
            let carried = carried.get(&key).copied().unwrap_or_default();
            OriginRow {
                egress_ip: count.egress_ip,
                origin: count.origin,
                protocol: count.protocol,
                active: count.active,
                peak: count.peak,
                capacity: count.capacity,
                utilization: count.utilization,
                refused: count.refused,
                rates: rates(carried, seconds),
            }
        })
        .collect();
    rows.sort_by(|one, other| {
        other
            .utilization
            .total_cmp(&one.utilization)
            .then(other.active.cmp(&one.active))
            .then((one.egress_ip, one.origin).cmp(&(other.egress_ip, other.origin)))
    });
    rows
}

#[expect(
    clippy::cast_precision_loss,
    reason = "what is carried in a moment is far below 2^53"
)]
fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_both_directions_and_a_second() {
        let carried = Carried {
            new: 4,
            packets: [7, 3],
            bytes: [400, 100],
        };
        let of = rates(carried, 2.0);
        assert_eq!(
            (of.new_per_s, of.packets_per_s, of.bytes_per_s),
            (2.0, 5.0, 250.0)
        );
        assert_eq!(rates(carried, 0.0), Rates::default());
    }
}
