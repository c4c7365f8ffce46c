//! ZONE-2: zones that are selected by interface may use the same inside addresses.

use egress_common::key::{TCP, realm};
use egress_common::settings::zone_flag;

use super::{DataPlane, INSIDE, ORIGIN, Packet};
use crate::harness::{Hook, tagged};
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{ENABLED, POOL, World};

#[test]
fn zone_2_two_realms_with_the_same_addresses_do_not_mix() {
    let zones = [20, 21];
    let world = World {
        zones: zones
            .map(|zone| (zone, ENABLED | zone_flag::REALM, POOL))
            .to_vec(),
        ..World::default()
    };
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let meta = |zone: u32| Meta {
        mark: tagged(0xffff_0000, zone),
        ingress: zone + 100,
        ..Meta::default()
    };
    let leave = |zone: u32, packet: &Packet| {
        let outcome = plane.run(Hook::UplinkEgress, packet, meta(zone));
        assert_eq!(outcome.verdict, Verdict::Next);
        let sender = Packet::read(&outcome.bytes).sender();
        assert_eq!(outcome.bytes, packet.clone().sent_from(sender).bytes());
        sender
    };
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN).numbers(5, 0);
    let egress = zones.map(|zone| leave(zone, &syn));
    assert_ne!(egress[0], egress[1]);
    for (zone, egress) in zones.into_iter().zip(egress) {
        let index = plane
            .index_in(realm::of_zone(zone as u16), INSIDE, ORIGIN, TCP)
            .unwrap();
        let slot = plane.slots.get(&index, 0).unwrap();
        assert_eq!((slot.egress, slot.egress_port), egress);
        assert_eq!((u32::from(slot.zone), slot.interface), (zone, zone + 100));
        // The reply is handed to the realm's interface, one hop further on.
        let answer = Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(9, 6);
        let outcome = plane.back(&answer);
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let hop = Packet {
            ttl: answer.ttl - 1,
            ..answer.clone().sent_to(INSIDE)
        };
        assert_eq!(outcome.bytes, hop.bytes());
        assert_eq!(
            leave(zone, &Packet::tcp(INSIDE, ORIGIN, ACK).numbers(6, 10)),
            egress
        );
        // The last hop is not taken.
        let last = Packet { ttl: 1, ..answer };
        assert_eq!(plane.back(&last).verdict, Verdict::Drop);
    }
    // Untagged packets from the same address are another realm's, and no zone's here.
    assert!(plane.index(INSIDE, ORIGIN, TCP).is_none());
    plane.consistent();
}
