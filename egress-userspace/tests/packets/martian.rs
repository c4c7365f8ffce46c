//! Addresses that no packet on a wire should have: groups, broadcast, loopback, none at all, and those of the data
//! plane itself.

use egress_common::key::{TCP, UDP};
use egress_common::reason::Reason;

use super::{Address, DataPlane, EGRESS, EGRESS_2, Endpoint, INSIDE, MARTIANS, ORIGIN, Packet};
use crate::harness::{Hook, tagged};
use crate::packet::{ACK, RST, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{INSIDE_INTERFACE, World, ZONE};

/// Packets of every kind from one end to the other.
fn kinds(from: Endpoint, to: Endpoint) -> [Packet; 6] {
    [
        Packet::tcp(from, to, SYN),
        Packet::tcp(from, to, SYN | ACK),
        Packet::tcp(from, to, ACK).payload(b"late"),
        Packet::tcp(from, to, RST),
        Packet::udp(from, to, b"hello"),
        Packet::other(from.0, to.0, 47, b"gre"),
    ]
}

/// Of a zone that is told by where packets enter: their source may be anything.
fn of_the_zone() -> Meta {
    Meta {
        mark: tagged(0xffff_0000, ZONE),
        ingress: INSIDE_INTERFACE,
        ..Meta::default()
    }
}

#[test]
fn safe_1_what_is_to_or_from_nobody_does_not_leave() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for nobody in MARTIANS {
        let nobody = (*nobody, 4_000);
        for packet in kinds(INSIDE, nobody) {
            plane.dropped_with(
                Hook::UplinkEgress,
                &packet,
                of_the_zone(),
                Reason::Multicast,
            );
        }
        for packet in kinds(nobody, ORIGIN) {
            plane.dropped_with(
                Hook::UplinkEgress,
                &packet,
                of_the_zone(),
                Reason::Multicast,
            );
        }
    }
    assert_eq!((plane.free(), plane.all_active()), (1_024, 0));
}

/// To an egress IP, from whom an answer would have to be sent to nobody, and from the egress IPs themselves: also where
/// there is a flow of that port.
#[test]
fn safe_3_what_claims_to_be_from_nobody_or_from_an_egress_ip_does_not_arrive() {
    let world = World::default().with_addresses(&[crate::world::EGRESS, crate::world::EGRESS_2]);
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    assert_eq!(plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"")), egress);
    let flows = |plane: &DataPlane| {
        [TCP, UDP].map(|protocol| format!("{:?}", plane.slot(INSIDE, ORIGIN, protocol)))
    };
    let before = flows(&plane);
    let strange: Vec<Address> = [EGRESS, EGRESS_2]
        .into_iter()
        .chain(MARTIANS.iter().copied())
        .collect();
    for from in strange {
        for port in [ORIGIN.1, egress.1] {
            for packet in kinds((from, port), egress) {
                plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
            }
        }
    }
    assert_eq!(flows(&plane), before);
    plane.consistent();
}

/// From an address and a port to the same: at both ends of the data plane.
#[test]
fn safe_3_land_packets_neither_arrive_nor_leave_as_they_are() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    for packet in kinds(egress, egress) {
        plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
        plane.dropped(Hook::UplinkEgress, &packet, Reason::ClaimsEgressIp);
    }
    for packet in kinds(INSIDE, INSIDE) {
        let outcome = plane.out(&packet);
        let refused = outcome.verdict != Verdict::Next;
        assert!(
            refused || Packet::read(&outcome.bytes).source == EGRESS,
            "{packet:?}"
        );
    }
    plane.consistent();
}

/// RFC 4787 REQ-9 is not met, on purpose: what left to an egress IP and comes back has not been asked for, whose
/// flow it may look like, its own included.
#[test]
fn nothing_is_hairpinned() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let other = (super::at([10, 1, 0, 3]), 50_000);
    // What an inside host leaves with for its origin, another one asks for.
    let mapped = [
        plane.establish(INSIDE, ORIGIN, (1, 1)),
        plane.leaves(&Packet::udp(INSIDE, ORIGIN, b"")),
    ];
    for to in mapped {
        for packet in [
            Packet::tcp(other, to, SYN),
            Packet::udp(other, to, b"hello"),
        ] {
            let from = plane.leaves(&packet);
            let returned = packet.sent_from(from);
            plane.dropped(Hook::UplinkIngress, &returned, Reason::Unsolicited);
        }
    }
    // To the very address and port it leaves with itself.
    let own = (EGRESS, other.1);
    for packet in [
        Packet::tcp(other, own, SYN),
        Packet::udp(other, own, b"hello"),
    ] {
        let from = plane.leaves(&packet);
        assert_eq!(from, own, "the port is kept");
        let returned = packet.sent_from(from);
        plane.dropped(Hook::UplinkIngress, &returned, Reason::Unsolicited);
    }
    plane.consistent();
}
