//! What only IPv4 has.

use egress_common::reason::Reason;

use crate::harness::{DataPlane, Hook};
use crate::packet::{ACK, Packet, SYN, sum};
use crate::run::{Meta, Verdict};
use crate::world::{EGRESS, INSIDE, ORIGIN, World, ZONE};

/// Reserved sources are translated where they are a zone's, but an answer of ours would be to nobody's address.
#[test]
fn nat_11_sources_that_are_nobodys_are_not_answered() {
    let mut world = World::default();
    world.sources.push(([0; 4], 0, ZONE));
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for from in [[240, 0, 0, 1], [250, 1, 2, 3]] {
        let packet = Packet::tcp((from, 4_000), ORIGIN, ACK);
        plane.dropped(Hook::UplinkEgress, &packet, Reason::Unanswerable);
    }
}

/// Where its checksum stands in a frame.
const CHECKSUM: std::ops::Range<usize> = 24..26;

/// The header's sum, which is all ones where it is right.
fn header_sum(bytes: &[u8]) -> u16 {
    sum(&[&bytes[14..34]])
}

/// A header checksum that is wrong stays wrong by as much: the kernel drops such packets, and so do others.
#[test]
fn nat_1_a_wrong_header_checksum_stays_wrong_by_as_much() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let out = Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2);
    let back = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    let ways = [
        (Hook::UplinkEgress, &out, out.clone().sent_from(egress)),
        (Hook::UplinkIngress, &back, back.clone().sent_to(INSIDE)),
    ];
    for (hook, packet, right) in ways {
        for error in [1, 0xff, 0x100, 0x7fff, 0x8000, 0xfffe] {
            let mut bytes = packet.bytes();
            let wrong = u32::from(u16::from_be_bytes([bytes[24], bytes[25]])) + error;
            let wrong = (wrong & 0xffff) as u16 + (wrong >> 16) as u16;
            bytes[CHECKSUM].copy_from_slice(&wrong.to_be_bytes());
            let before = header_sum(&bytes);
            assert_ne!(before, u16::MAX, "{error:#06x} is no error");
            let outcome = plane.try_bytes(hook, &bytes, Meta::default()).unwrap();
            assert_eq!(outcome.verdict, Verdict::Next);
            assert_eq!(header_sum(&outcome.bytes), before, "{hook:?} {error:#06x}");
            // And nothing else is different.
            let mut rest = outcome.bytes;
            rest[CHECKSUM].copy_from_slice(&right.bytes()[CHECKSUM]);
            assert_eq!(rest, right.bytes());
        }
    }
}

/// A header that says it is longer than it is: what then stands where the ports would be is another packet's, which
/// leaves with the zone's address or not at all.
#[test]
fn safe_1_a_header_length_that_lies_lets_no_inside_address_out() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for words in 0..=15u8 {
        for packet in [
            Packet::tcp(INSIDE, ORIGIN, SYN).payload(&[0x50; 60]),
            Packet::udp(INSIDE, ORIGIN, &[0; 60]),
        ] {
            let packet = Packet {
                first: Some(0x40 | words),
                ..packet
            };
            let outcome = plane.out(&packet);
            match outcome.verdict {
                Verdict::Next => assert_eq!(outcome.bytes[26..30], EGRESS, "{packet:?}"),
                verdict => assert!(
                    matches!(verdict, Verdict::Drop | Verdict::Redirect),
                    "{packet:?}: {verdict:?}"
                ),
            }
            if words < 5 {
                assert_eq!(outcome.verdict, Verdict::Drop, "{packet:?}");
            }
        }
    }
    plane.consistent();
}
