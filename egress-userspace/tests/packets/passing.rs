//! What takes the default egress: unbound, disabled, exempt, pings, protocols that are switched off.
//! It leaves exactly as it came, marked as dealt with.

use egress_common::reason::Reason;
use egress_common::settings::{MarkSelector, zone_flag};

use super::errors::{NO_PORT, later};
use super::{Address, DataPlane, EGRESS, INSIDE, MARTIANS, ORIGIN, Packet, QUERIES, STRANGER, at};
use crate::harness::{Hook, done, tagged, unbound, unbound_by};
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{self, DISABLED_ZONE, ENABLED, INSIDE_INTERFACE, POOL, World, ZONE};

const DISABLED: Address = at(world::DISABLED);

fn kinds(from: Address, to: Address) -> Vec<Packet> {
    let (a, b) = ((from, 40_000), (to, 443));
    vec![
        Packet::tcp(a, b, SYN),
        Packet::tcp(a, b, ACK).payload(b"late"),
        Packet::udp(a, b, b"hello"),
        Packet::other(from, to, 47, b"gre"),
        Packet::icmp(from, to, NO_PORT.0, NO_PORT.1, &[0x45; 28]),
        later(Packet::tcp(a, b, ACK).payload(b"the rest")),
        Packet::udp(a, (MARTIANS[0], 5_353), b"multicast"),
    ]
}

#[test]
fn policy_5_what_belongs_to_no_zone_passes_untouched() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for packet in kinds(STRANGER, ORIGIN.0) {
        plane.passes(&packet);
    }
    assert_eq!((plane.free(), plane.all_reasons()), (1_024, vec![]));
}

#[test]
fn zone_1_a_disabled_zone_passes_untouched() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for packet in kinds(DISABLED, ORIGIN.0) {
        plane.passes(&packet);
        let meta = Meta {
            mark: tagged(0xffff_0000, DISABLED_ZONE),
            ingress: INSIDE_INTERFACE,
            ..Meta::default()
        };
        let outcome = plane.run(Hook::UplinkEgress, &packet, meta);
        assert_eq!(
            (outcome.verdict, outcome.mark),
            (Verdict::Next, done(0xffff_0000))
        );
        assert_eq!(outcome.bytes, packet.bytes());
    }
}

#[test]
fn policy_7_exempt_destinations_pass_untouched() {
    let mut world = World::default();
    world.exempt.push(([203, 0, 113, 0], 24));
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for packet in kinds(INSIDE.0, at([203, 0, 113, 9])) {
        if packet.destination != MARTIANS[0] {
            plane.passes(&packet);
        }
    }
    plane.leaves(&Packet::tcp(INSIDE, (at([203, 0, 112, 9]), 443), SYN));
}

#[test]
fn policy_7_pings_pass_untouched() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for kind in QUERIES {
        plane.passes(&Packet::icmp(INSIDE.0, ORIGIN.0, *kind, 0, b"ping"));
    }
}

#[test]
fn policy_6_tcp_and_udp_are_switched_separately() {
    for (off, tcp_passes) in [(zone_flag::TCP, true), (zone_flag::UDP, false)] {
        let world = World {
            zones: vec![(ZONE, ENABLED & !off, POOL)],
            ..World::default()
        };
        let Some(plane) = DataPlane::of(world) else {
            return;
        };
        let tcp = Packet::tcp(INSIDE, ORIGIN, SYN);
        let udp = Packet::udp(INSIDE, ORIGIN, b"");
        let (passes, leaves) = if tcp_passes { (tcp, udp) } else { (udp, tcp) };
        plane.passes(&passes);
        plane.leaves(&leaves);
    }
}

#[test]
fn zone_1_disabling_leaves_live_flows_on_their_address() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.change(|world| world.zones[0].1 &= !zone_flag::ENABLED);
    assert_eq!(
        plane.leaves(&Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2)),
        egress
    );
    plane.arrives(&Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2), INSIDE);
    plane.passes(&Packet::tcp((INSIDE.0, 40_001), ORIGIN, SYN));
}

#[test]
fn a_packet_that_was_dealt_with_is_left_alone() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let mark = done(0xffff_0000) | 0x77;
    let packet = Packet::tcp((EGRESS, 40_000), ORIGIN, SYN);
    let outcome = plane.run(
        Hook::UplinkEgress,
        &packet,
        Meta {
            mark,
            ..Meta::default()
        },
    );
    assert_eq!((outcome.verdict, outcome.mark), (Verdict::Next, mark));
    assert_eq!(outcome.bytes, packet.bytes());
}

#[test]
fn safe_6_nobody_claims_an_egress_ip() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for packet in kinds(EGRESS, ORIGIN.0) {
        plane.dropped(Hook::UplinkEgress, &packet, Reason::ClaimsEgressIp);
    }
}

#[test]
fn zone_2_a_mark_selects_before_everything_else() {
    let selector = MarkSelector {
        mask: 0xff,
        value: 0x42,
        zone: ZONE,
    };
    let world = World {
        marks: vec![selector],
        ..World::default()
    };
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let packet = Packet::tcp((STRANGER, 40_000), ORIGIN, SYN);
    plane.passes(&packet);
    let meta = Meta {
        mark: 0x0142,
        ..Meta::default()
    };
    let outcome = plane.run(Hook::UplinkEgress, &packet, meta);
    assert_eq!(<Packet>::read(&outcome.bytes).source, EGRESS);
    assert_eq!(outcome.mark, 0xffff_0142);
}

#[test]
fn zone_4_the_zone_is_decided_where_a_packet_entered() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    // The source is one of the zone's, because netfilter rewrote it; the tag says there is none.
    let packet = Packet::tcp(INSIDE, ORIGIN, SYN);
    let meta = Meta {
        ingress: INSIDE_INTERFACE,
        mark: unbound(0xffff_0000),
        ..Meta::default()
    };
    let outcome = plane.run(Hook::UplinkEgress, &packet, meta);
    assert_eq!(
        (outcome.verdict, outcome.bytes),
        (Verdict::Next, packet.bytes())
    );
    // And the other way round.
    let packet = Packet::tcp((STRANGER, 40_000), ORIGIN, SYN);
    let meta = Meta {
        mark: tagged(0xffff_0000, ZONE),
        ..meta
    };
    let outcome = plane.run(Hook::UplinkEgress, &packet, meta);
    assert_eq!(<Packet>::read(&outcome.bytes).source, EGRESS);
    assert_eq!(outcome.mark, done(0xffff_0000));
}

#[test]
fn safe_1_no_zone_is_believed_only_of_the_configuration_in_force() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let bound = Packet::tcp(INSIDE, ORIGIN, SYN);
    let stranger = Packet::tcp((STRANGER, 40_000), ORIGIN, SYN);
    let entered = |packet: &Packet, plane: &DataPlane| Meta {
        ingress: INSIDE_INTERFACE,
        mark: plane.run(Hook::InsideIngress, packet, Meta::default()).mark,
        ..Meta::default()
    };
    let waiting = entered(&stranger, &plane);
    assert_eq!(waiting.mark, unbound(0xffff_0000));
    let outcome = plane.run(Hook::UplinkEgress, &stranger, waiting);
    assert_eq!(outcome.verdict, Verdict::Next);
    for number in [2, 4, 5, 1_024, 1_029] {
        let world = plane.world.clone();
        plane.write(number & 1, &world);
        plane.switch(number);
        if number % 1_024 == 0 {
            // So many can be told apart, and nothing waits for so many changes.
            assert_eq!(entered(&stranger, &plane).mark, waiting.mark);
            continue;
        }
        // It entered before its zone was there, and waited for its next hop.
        let outcome = plane.run(Hook::UplinkEgress, &bound, waiting);
        assert_eq!(<Packet>::read(&outcome.bytes).source, EGRESS);
        // Whose it is nobody can say any more: netfilter may have rewritten its source.
        let outcome = plane.run(Hook::UplinkEgress, &stranger, waiting);
        assert_eq!(outcome.verdict, Verdict::Drop);
        let guard = plane.run(Hook::UplinkGuard, &bound, waiting);
        assert_eq!(guard.verdict, Verdict::Drop);
        // What enters now is as it was.
        let now = entered(&stranger, &plane);
        assert_eq!(now.mark, unbound_by(0xffff_0000, number));
        let outcome = plane.run(Hook::UplinkEgress, &stranger, now);
        assert_eq!(outcome.verdict, Verdict::Next);
        let guard = plane.run(Hook::UplinkGuard, &stranger, now);
        assert_eq!(guard.verdict, Verdict::Next);
    }
}

#[test]
fn safe_1_a_tag_that_somebody_erased_is_not_no_zone() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    // The whole mark was rewritten after the packet entered, and its source too.
    let erased = Meta {
        ingress: INSIDE_INTERFACE,
        mark: 0x5,
        ..Meta::default()
    };
    let packet = Packet::tcp((STRANGER, 40_000), ORIGIN, SYN);
    let outcome = plane.run(Hook::UplinkEgress, &packet, erased);
    assert_eq!(outcome.verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::TagLost), 1);
    // Where the source still tells, it does.
    let packet = Packet::tcp(INSIDE, ORIGIN, SYN);
    let outcome = plane.run(Hook::UplinkEgress, &packet, erased);
    assert_eq!(<Packet>::read(&outcome.bytes).source, EGRESS);
}
