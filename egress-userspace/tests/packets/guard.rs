//! SAFE-6: nothing of a bound zone passes that the uplink's program has not dealt with.

use egress_common::reason::Reason;

use super::errors::{PING, later};
use super::{Address, DataPlane, FIRSTS, INSIDE, ORIGIN, Packet, STRANGER, at};
use crate::harness::{Hook, done, tagged};
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{self, INSIDE_INTERFACE, ZONE};

const DISABLED: Address = at(world::DISABLED);

const MASK: u32 = 0xffff_0000;

#[test]
fn safe_6_what_was_dealt_with_passes_and_loses_its_tag() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let packet = Packet::tcp(INSIDE, ORIGIN, SYN);
    let meta = Meta {
        mark: done(MASK) | 0x99,
        ..Meta::default()
    };
    let outcome = plane.run(Hook::UplinkGuard, &packet, meta);
    assert_eq!((outcome.verdict, outcome.mark), (Verdict::Next, 0x99));
    assert_eq!(outcome.bytes, packet.bytes());
}

#[test]
fn safe_6_a_bound_packet_that_was_not_is_dropped() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    plane.dropped(
        Hook::UplinkGuard,
        &Packet::tcp(INSIDE, ORIGIN, SYN),
        Reason::HookMissing,
    );
    let forwarded = Meta {
        mark: tagged(MASK, ZONE),
        ingress: INSIDE_INTERFACE,
        ..Meta::default()
    };
    for packet in [
        Packet::udp((STRANGER, 9), ORIGIN, b"masqueraded"),
        later(Packet::tcp(INSIDE, ORIGIN, ACK).payload(b"the rest")),
        Packet::icmp(INSIDE.0, ORIGIN.0, PING, 0, b"ping"),
    ] {
        plane.dropped_with(Hook::UplinkGuard, &packet, forwarded, Reason::HookMissing);
    }
}

#[test]
fn safe_6_what_is_bound_to_no_enabled_zone_passes_without_its_tag() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for from in [STRANGER, DISABLED] {
        let packet = Packet::tcp((from, 1), ORIGIN, SYN);
        let outcome = plane.run(Hook::UplinkGuard, &packet, Meta::default());
        assert_eq!((outcome.verdict, outcome.mark), (Verdict::Next, 0));
    }
}

#[test]
fn safe_6_a_tagged_packet_that_is_not_one_is_dropped() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let forwarded = Meta {
        mark: tagged(MASK, ZONE),
        ingress: INSIDE_INTERFACE,
        ..Meta::default()
    };
    for packet in [
        Packet {
            first: Some(FIRSTS[0]),
            ..Packet::tcp(INSIDE, ORIGIN, SYN)
        },
        Packet {
            length: Some(9_000),
            ..Packet::tcp(INSIDE, ORIGIN, SYN)
        },
        Packet {
            vlans: vec![1, 2, 3],
            ..Packet::tcp(INSIDE, ORIGIN, SYN)
        },
    ] {
        plane.dropped_with(Hook::UplinkGuard, &packet, forwarded, Reason::HookMissing);
    }
}
