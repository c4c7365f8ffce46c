//! What flows carried between two looks at their slots. The data plane counts by flow alone: who wants rates or sums by pool
//! remembers what each slot had, and pays for it, not the packets.

use std::collections::BTreeMap;

use crate::dataplane::api::{DataPlaneError, DataPlaneView, Meter};

/// What was carried between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Flows that began.
    pub(crate) new: u64,
    /// Packets: to the origin, and from it.
    pub(crate) packets: [u64; 2],
    /// Bytes likewise, IP length.
    pub(crate) bytes: [u64; 2],
}

impl Carried {
    pub(crate) fn add(&mut self, other: Self) {
        self.new += other.new;
        for way in 0..2 {
            self.packets[way] += other.packets[way];
            self.bytes[way] = self.bytes[way].saturating_add(other.bytes[way]);
        }
    }
}

/// What a flow had carried.
#[derive(Clone, Copy, Debug)]
struct Seen {
    generation: u32,
    packets: [u32; 2],
    bytes: [u64; 2],
}

/// What every flow had carried at the last look, by slot: IPv4 and IPv6.
#[derive(Debug, Default)]
pub(crate) struct Flows([Vec<Option<Seen>>; 2]);

impl Flows {
    /// What a flow has carried since the last look; all of it if it was not there then. Nothing where there was no look
    /// to compare with.
    pub(crate) fn carried(&mut self, meter: &Meter, compares: bool) -> Carried {
        let flows = &mut self.0[usize::from(meter.ipv6)];
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
                packets: [0, 1]
                    .map(|way| meter.packets[way].wrapping_sub(seen.packets[way]).into()),
                bytes: [0, 1].map(|way| meter.bytes[way].wrapping_sub(seen.bytes[way])),
            },
            _ => Carried {
                new: 1,
                packets: meter.packets.map(u64::from),
                bytes: meter.bytes,
            },
        }
    }
}

/// What this server translated since somebody began to look, by pool.
///
/// A flow that ends stays in its slot while its port rests, so one that came and went between two looks is seen all the same,
/// unless another flow took its port at once.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    flows: Flows,
    pools: BTreeMap<u16, Carried>,
    looked: bool,
}

impl Sums {
    /// Looks, and says what there is by the pools' numbers.
    ///
    /// # Errors
    /// When maps cannot be read; what was carried meanwhile is counted at the next look.
    pub(crate) fn look(
        &mut self,
        view: &dyn DataPlaneView,
    ) -> Result<&BTreeMap<u16, Carried>, DataPlaneError> {
        let Self {
            flows,
            pools,
            looked,
        } = self;
        view.meters(&mut |meter| {
            let carried = flows.carried(&meter, *looked);
            // What another server translates, that one counts.
            if meter.egress_ip.is_some() {
                pools.entry(meter.pool).or_default().add(carried);
            }
        })?;
        *looked = true;
        Ok(pools)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::api::Protocol;

    fn meter(slot: u32, generation: u32, packets: u32, bytes: u64) -> Meter {
        Meter {
            ipv6: false,
            slot,
            generation,
            pool: 1,
            egress_ip: Some("192.0.2.1".parse().unwrap()),
            origin: "198.51.100.1:443".parse().unwrap(),
            protocol: Protocol::Tcp,
            packets: [packets, packets / 2],
            bytes: [bytes, bytes + 7],
        }
    }

    #[test]
    fn what_a_flow_carried_is_what_it_has_more_and_a_new_one_all_it_has() {
        let carried = |new, packets, bytes| Carried {
            new,
            packets,
            bytes,
        };
        let flows = |compares| {
            let mut flows = Flows::default();
            flows.carried(&meter(3, 7, u32::MAX - 1, 1_000), compares);
            flows
        };
        // Packets wrap around.
        let same = Meter {
            packets: [8, u32::MAX / 2 + 4],
            ..meter(3, 7, 0, 1_500)
        };
        assert_eq!(
            flows(true).carried(&same, true),
            carried(0, [10, 4], [500, 500])
        );
        // Another flow in its place, another place, another family.
        let fresh = carried(1, [8, 4], [90, 97]);
        assert_eq!(flows(true).carried(&meter(3, 8, 8, 90), true), fresh);
        assert_eq!(flows(true).carried(&meter(4, 7, 8, 90), true), fresh);
        let other = Meter {
            ipv6: true,
            ..meter(3, 7, 8, 90)
        };
        assert_eq!(flows(true).carried(&other, true), fresh);
        // The first look compares with nothing.
        assert_eq!(
            flows(false).carried(&meter(4, 7, 8, 90), false),
            Carried::default()
        );
    }
}
