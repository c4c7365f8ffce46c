//! Packets on their last hop: the kernel takes a hop off what it forwards, and answers where there is none left. So
//! the ordinary way leaves the number alone, and the way to a realm takes one itself.

use egress_common::reason::Reason;
use egress_common::settings::zone_flag;

use super::{DataPlane, INSIDE, ORIGIN, Packet};
use crate::harness::{Hook, tagged};
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Verdict};
use crate::world::{ENABLED, POOL, World, ZONE};

const HOPS: [u8; 5] = [0, 1, 2, 64, 255];

#[test]
fn nat_1_the_ordinary_way_takes_no_hop() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for (nth, ttl) in HOPS.into_iter().enumerate() {
        let from = (INSIDE.0, 3_000 + nth as u16);
        let with = |packet: Packet| Packet { ttl, ..packet };
        let egress = plane.leaves(&with(Packet::tcp(from, ORIGIN, SYN).numbers(1, 0)));
        plane.arrives(
            &with(Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(9, 2)),
            from,
        );
        let egress = plane.leaves(&with(Packet::udp(from, ORIGIN, b"query")));
        plane.arrives(&with(Packet::udp(ORIGIN, egress, b"answer")), from);
    }
    assert_eq!(plane.all_reasons(), []);
}

#[test]
fn zone_2_the_way_to_a_realm_takes_one_hop_and_not_the_last() {
    let world = World {
        zones: vec![(ZONE, ENABLED | zone_flag::REALM, POOL)],
        ..World::default()
    };
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let meta = Meta {
        mark: tagged(0xffff_0000, ZONE),
        ingress: 100,
        ..Meta::default()
    };
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN).numbers(5, 0);
    let outcome = plane.run(Hook::UplinkEgress, &syn, meta);
    let egress = Packet::read(&outcome.bytes).sender();
    for ttl in HOPS {
        let answer = Packet {
            ttl,
            ..Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(9, 6)
        };
        if ttl <= 1 {
            plane.dropped(Hook::UplinkIngress, &answer, Reason::Malformed);
            continue;
        }
        let outcome = plane.back(&answer);
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let expected = Packet {
            ttl: ttl - 1,
            ..answer.sent_to(INSIDE)
        };
        assert_eq!(outcome.bytes, expected.bytes());
    }
    assert_eq!(plane.all_active(), 1);
}
