//! What a data plane in a box is configured with, and the names tests use.

use egress_common::port::{ALL_SLICES, CONNECTIONS_PER_ORIGIN};
use egress_common::settings::{Candidate, MarkSelector, Settings, Timers, zone_flag};

use crate::packet::Endpoint;

pub(crate) const SECOND: u64 = 1_000_000_000;

/// An inside host of [`ZONE`].
pub(crate) const INSIDE: Endpoint = ([10, 1, 0, 2], 40_000);
/// An origin.
pub(crate) const ORIGIN: Endpoint = ([192, 0, 2, 7], 443);
/// A host of no zone.
pub(crate) const STRANGER: [u8; 4] = [10, 9, 0, 9];
/// A host of the zone that is disabled.
pub(crate) const DISABLED: [u8; 4] = [10, 2, 0, 2];

/// Dedicated addresses, in the order of the pool.
pub(crate) const EGRESS: [u8; 4] = [198, 51, 100, 1];
pub(crate) const EGRESS_2: [u8; 4] = [198, 51, 100, 2];

pub(crate) const ZONE: u32 = 7;
pub(crate) const DISABLED_ZONE: u32 = 8;
pub(crate) const POOL: u32 = 3;

/// The interface under every program: the namespace's loopback.
pub(crate) const UPLINK: u32 = 1;
pub(crate) const UPLINK_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// An inside interface; only its number matters.
pub(crate) const INSIDE_INTERFACE: u32 = 5;

pub(crate) const ENABLED: u32 =
    zone_flag::KNOWN | zone_flag::ENABLED | zone_flag::TCP | zone_flag::UDP;

/// An address, its prefix length, and the zone it selects.
pub(crate) type Source = ([u8; 4], u32, u32);

/// A configuration and the sizes of the tables.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) max_flows: u32,
    pub(crate) max_origins: u32,
    pub(crate) lists: u32,
    /// How many of the counters' lists are missing, so that nothing can be put on them.
    pub(crate) missing_lists: u32,
    pub(crate) mark_mask: u32,
    /// Whether live flows take the fast path.
    pub(crate) accelerate: bool,
    pub(crate) settings: Settings,
    /// Number, flags, pool.
    pub(crate) zones: Vec<(u32, u32, u32)>,
    pub(crate) sources: Vec<Source>,
    pub(crate) exempt: Vec<([u8; 4], u32)>,
    pub(crate) marks: Vec<MarkSelector>,
    /// Interface and zone.
    pub(crate) interfaces: Vec<(u32, u32)>,
    /// Number and candidates.
    pub(crate) pools: Vec<(u32, Vec<Candidate<[u8; 4]>>)>,
    /// More sources of IPv6.
    pub(crate) sources6: Vec<([u8; 16], u32, u32)>,
    /// Ranges of every pool, instead of its addresses' twins.
    pub(crate) ranges: Option<Vec<Candidate<[u8; 16]>>>,
}

pub(crate) fn candidate(address: [u8; 4]) -> Candidate<[u8; 4]> {
    Candidate {
        address,
        slices: ALL_SLICES,
        capacity: CONNECTIONS_PER_ORIGIN,
        flags: 0,
        length: 32,
    }
}

/// An address below 2001:db8::/32, by its third and its last group.
pub(crate) const fn v6(subnet: u16, host: u16) -> [u8; 16] {
    let [s0, s1] = subnet.to_be_bytes();
    let [h0, h1] = host.to_be_bytes();
    [0x20, 1, 0xd, 0xb8, s0, s1, 0, 0, 0, 0, 0, 0, 0, 0, h0, h1]
}

/// An inside host of [`ZONE`], an origin, and where the first leaves from.
pub(crate) const INSIDE6: Endpoint<[u8; 16]> = (v6(1, 2), 40_000);
pub(crate) const ORIGIN6: Endpoint<[u8; 16]> = (v6(0xff, 7), 443);
pub(crate) const RANGE: [u8; 16] = v6(0xe, 0);

/// The first 48 bits.
fn prefix6(address: [u8; 16]) -> [u8; 16] {
    let mut prefix = [0; 16];
    prefix[..6].copy_from_slice(&address[..6]);
    prefix
}

fn range(address: [u8; 16], length: u32) -> Candidate<[u8; 16]> {
    Candidate {
        address,
        slices: u32::MAX,
        capacity: CONNECTIONS_PER_ORIGIN,
        flags: 0,
        length,
    }
}

impl Default for World {
    /// One pool of one address, an enabled and a disabled zone.
    fn default() -> Self {
        Self {
            max_flows: 1_024,
            max_origins: 64,
            lists: 2,
            missing_lists: 0,
            mark_mask: 0xffff_0000,
            accelerate: false,
            settings: Settings {
                timers: Timers {
                    tcp_established: 7_440 * SECOND,
                    tcp_transitory: 240 * SECOND,
                    tcp_closing: 120 * SECOND,
                    quarantine: 120 * SECOND,
                    udp: 300 * SECOND,
                },
                refuse_reset: 1,
                icmp_queries: 1,
                answer_arp: 1,
                reset_idle: 1,
                ..Settings::default()
            },
            zones: vec![
                (ZONE, ENABLED, POOL),
                (DISABLED_ZONE, ENABLED & !zone_flag::ENABLED, POOL),
            ],
            sources: vec![
                ([10, 1, 0, 0], 16, ZONE),
                ([10, 2, 0, 0], 16, DISABLED_ZONE),
            ],
            exempt: Vec::new(),
            marks: Vec::new(),
            interfaces: Vec::new(),
            pools: vec![(POOL, vec![candidate(EGRESS)])],
            sources6: Vec::new(),
            ranges: None,
        }
    }
}

impl World {
    /// A world of IPv6 with these ranges.
    pub(crate) fn with_ranges(mut self, ranges: &[([u8; 16], u32)]) -> Self {
        self.sources6 = vec![(prefix6(INSIDE6.0), 48, ZONE)];
        let ranges = ranges
            .iter()
            .map(|(address, length)| range(*address, *length));
        self.ranges = Some(ranges.collect());
        self
    }

    /// The counters' free lists that are there.
    pub(crate) fn counter_lists(&self) -> u32 {
        self.lists - self.missing_lists
    }

    /// The pool's addresses.
    pub(crate) fn with_addresses(mut self, addresses: &[[u8; 4]]) -> Self {
        self.pools = vec![(POOL, addresses.iter().copied().map(candidate).collect())];
        self
    }

    /// Connections per origin of every address.
    pub(crate) fn with_capacity(mut self, capacity: u32) -> Self {
        for (_, candidates) in &mut self.pools {
            for candidate in candidates {
                candidate.capacity = capacity;
            }
        }
        self
    }

    /// The slices this server owns of every address.
    pub(crate) fn with_slices(mut self, slices: u32) -> Self {
        for (_, candidates) in &mut self.pools {
            for candidate in candidates {
                candidate.slices = slices;
            }
        }
        self
    }

    /// Slots of the flow table.
    pub(crate) fn with_flows(mut self, max_flows: u32) -> Self {
        self.max_flows = max_flows;
        self
    }
}
