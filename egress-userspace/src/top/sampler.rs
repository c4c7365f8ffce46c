//! Looks at the maps, and compares with the look before.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::{AddressRow, OriginRow, PoolRow, Rates, ReasonRow, Snapshot};
use crate::dataplane::api::{
    DataPlaneError, DataPlaneView, Meter, Names, OriginFilter, OriginRecord, Protocol,
};
use crate::inventory::{DaemonState, Status};
use crate::nets::Nets;

/// What a flow had carried.
#[derive(Clone, Copy)]
struct Seen {
    generation: u32,
    packets: u32,
    bytes: u64,
}

/// What was carried between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Carried {
    new: u64,
    packets: u64,
    bytes: u64,
}

impl Carried {
    fn add(&mut self, other: Self) {
        self.new += other.new;
        self.packets += other.packets;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    fn rates(self, seconds: f64) -> Rates {
        if seconds <= 0.0 {
            return Rates::default();
        }
        Rates {
            new_per_s: float(self.new) / seconds,
            packets_per_s: float(self.packets) / seconds,
            bytes_per_s: float(self.bytes) / seconds,
        }
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
    /// By slot, IPv4 and IPv6.
    flows: [Vec<Option<Seen>>; 2],
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
            let carried = self.carried(&meter, seconds > 0.0);
            sums.add(&meter, carried);
        })?;
        let counts = view.origins(&OriginFilter::default())?;
        let mut snapshot = Snapshot {
            ready: Status::new(status.clone(), None).ready,
            daemon,
            interval_s: seconds,
            active: counts.iter().map(|count| count.active).sum(),
            rates: sums.all.rates(seconds),
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

    /// What a flow has carried since the last look; all of it if it was not there.
    fn carried(&mut self, meter: &Meter, compares: bool) -> Carried {
        let flows = &mut self.flows[usize::from(meter.ipv6)];
        let slot = meter.slot as usize;
        if flows.len() <= slot {
            flows.resize(slot + 1, None);
        }
        let seen = flows[slot].replace(Seen {
            generation: meter.generation,
            packets: meter.packets,
            bytes: meter.bytes,
        });
        if !compares {
            return Carried::default();
        }
        match seen {
            Some(seen) if seen.generation == meter.generation => Carried {
                new: 0,
                packets: meter.packets.wrapping_sub(seen.packets).into(),
                bytes: meter.bytes.wrapping_sub(seen.bytes),
            },
            _ => Carried {
                new: 1,
                packets: meter.packets.into(),
                bytes: meter.bytes,
            },
        }
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
            rates: carried.rates(seconds),
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
                rates: carried.rates(seconds),
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
                rates: carried.rates(seconds),
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

    fn meter(slot: u32, generation: u32, packets: u32, bytes: u64) -> Meter {
        Meter {
            ipv6: false,
            slot,
            generation,
            pool: 1,
            egress_ip: Some("192.0.2.1".parse().unwrap()),
            origin: "198.51.100.1:443".parse().unwrap(),
            protocol: Protocol::Tcp,
            packets,
            bytes,
        }
    }

    #[test]
    fn what_a_flow_carried_is_what_it_has_more_and_a_new_one_all_it_has() {
        let mut sampler = Sampler::default();
        let seen = Seen {
            generation: 7,
            packets: u32::MAX - 1,
            bytes: 1_000,
        };
        sampler.flows[0] = vec![None, None, None, Some(seen)];
        let carried = |new, packets, bytes| Carried {
            new,
            packets,
            bytes,
        };
        // Packets wrap around.
        assert_eq!(
            sampler.carried(&meter(3, 7, 8, 1_500), true),
            carried(0, 10, 500)
        );
        // Another flow in its place, another place, another family.
        assert_eq!(
            sampler.carried(&meter(3, 8, 8, 90), true),
            carried(1, 8, 90)
        );
        assert_eq!(
            sampler.carried(&meter(4, 7, 8, 90), true),
            carried(1, 8, 90)
        );
        let other = Meter {
            ipv6: true,
            ..meter(3, 7, 8, 90)
        };
        assert_eq!(sampler.carried(&other, true), carried(1, 8, 90));
        // The first look compares with nothing.
        assert_eq!(
            sampler.carried(&meter(4, 7, 8, 90), false),
            Carried::default()
        );
        let rates = carried(4, 10, 500).rates(2.0);
        assert_eq!(
            (rates.new_per_s, rates.packets_per_s, rates.bytes_per_s),
            (2.0, 5.0, 250.0)
        );
    }
}
