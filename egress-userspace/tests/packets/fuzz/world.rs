//! What the fuzzed data plane is configured with, and what follows from that for a packet.

use std::time::Duration;

use super::read::{Address, Ip, Part, v4};
use super::{rewrite, six};
use crate::world::{EGRESS, EGRESS_2, ENABLED, POOL, SECOND, World, ZONE};
use egress_common::settings::zone_flag;

/// A zone that only sends TCP through its pool.
const TCP_ONLY: u32 = 10;
/// A zone selected by its interface, with addresses of its own.
pub(crate) const REALM: u32 = 9;
/// An exempt destination.
pub(crate) const EXEMPT: [u8; 4] = [192, 0, 2, 53];
/// Sources of the bound zone, and of the zone that only sends TCP through its pool.
const BOUND: [u8; 2] = [10, 1];
const BOUND_TCP: [u8; 2] = [10, 4];
/// No flow lives longer without a packet: the longest timer, and the sweep's next round on a busy machine.
pub(crate) const LONGEST_LIFE: Duration = Duration::from_secs(60);

/// Slots of the table: few enough to be full at times.
const FLOWS: u32 = 16_384;

/// How a packet's source is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Zone {
    None,
    Bound,
    BoundTcp,
}

/// The configuration; the realm is what enters by `realm`.
pub(crate) fn world(realm: u32) -> World {
    let mut world = World::default()
        .with_addresses(&[EGRESS, EGRESS_2])
        .with_capacity(300)
        .with_flows(FLOWS);
    world.max_origins = 4_096;
    let timers = &mut world.settings.timers;
    timers.tcp_established = 4 * SECOND;
    timers.tcp_transitory = 3 * SECOND;
    timers.tcp_closing = SECOND;
    timers.quarantine = SECOND;
    timers.udp = 2 * SECOND;
    world.zones.extend([
        (REALM, ENABLED | zone_flag::REALM, POOL),
        (TCP_ONLY, ENABLED & !zone_flag::UDP, POOL),
    ]);
    world.sources.push(([10, 4, 0, 0], 16, TCP_ONLY));
    world.interfaces.push((realm, REALM));
    world.exempt = vec![(EXEMPT, 32)];
    // Those of IPv6 are `six`'s.
    world.ranges = Some(Vec::new());
    debug_assert_eq!(world.zones[0].0, ZONE);
    world
}

/// The zone of a source that enters by the inside interface.
pub(crate) fn zone(source: Address) -> Zone {
    match source {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, ..] if [a, b] == BOUND => Zone::Bound,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, ..] if [a, b] == BOUND_TCP => {
            Zone::BoundTcp
        }
        _ if six::within(source, (six::BOUND, 48)) => Zone::Bound,
        _ => Zone::None,
    }
}

/// Whether an address is dedicated.
pub(crate) fn egress(address: Address) -> bool {
    address == v4(EGRESS)
        || address == v4(EGRESS_2)
        || six::RANGES
            .into_iter()
            .any(|range| six::within(address, range))
}

/// Whether a bound packet takes the default egress all the same (POLICY-6, POLICY-7).
pub(crate) fn exempt(zone: Zone, ip: &Ip, bytes: &[u8]) -> bool {
    if ip.six {
        return query6(ip, bytes);
    }
    if ip.destination == v4(EXEMPT) {
        return true;
    }
    // An error goes where what it is about went.
    let about = rewrite::quoted(bytes, ip).map_or(ip.protocol, |inner| inner.protocol);
    if zone == Zone::BoundTcp && about == 17 {
        return true;
    }
    let multicast = matches!(ip.destination[12], 224..240) || ip.destination == v4([255; 4]);
    ip.protocol == 1
        && ip.part == Part::Whole
        && !multicast
        && matches!(bytes.get(ip.transport), Some(0 | 8 | 13..=18))
}

/// Whether it is an ICMPv6 query that may leave: no error, and nothing that never crosses a router (RFC
/// 4861, RFC 3810, RFC 4286).
fn query6(ip: &Ip, bytes: &[u8]) -> bool {
    let [first, ..] = ip.destination;
    first != 0xff
        && ip.part == Part::Whole
        && ip.icmp(bytes).is_some_and(|kind| {
            kind >= 128 && !matches!(kind, 130..=137 | 141..=143 | 148 | 149 | 151..=153)
        })
}
