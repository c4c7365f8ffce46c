//! NAT-1: a checksum that is wrong is passed on as wrong, by the same difference; it is never made right.

use super::{DataPlane, HEADER, INSIDE, ORIGIN, Packet, at};
use crate::harness::Hook;
use crate::packet::{ACK, SYN};
use crate::run::{Meta, Verdict};
use crate::seed::Random;

/// Where a segment's and a datagram's checksum stand in a frame.
const TCP: usize = 14 + HEADER + 16;
const UDP: usize = 14 + HEADER + 6;

/// The sum of ones' complements, in which there are two zeros.
fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// The one of the two zeros that a datagram may have.
fn one_zero(sum: u16) -> u16 {
    if sum == 0 { u16::MAX } else { sum }
}

fn read(bytes: &[u8], place: usize) -> u16 {
    u16::from_be_bytes([bytes[place], bytes[place + 1]])
}

/// The frame with its checksum at `place` wrong by `error`.
fn wrong(packet: &Packet, place: usize, error: u16) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let sum = one_zero(add(read(&bytes, place), error));
    bytes[place..place + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// What a sum may be wrong by: everything but the two zeros.
fn errors(random: &mut Random) -> Vec<u16> {
    let mut errors = vec![1, 2, 0xff, 0x100, 0x7fff, 0x8000, 0xff00, 0xfffd, 0xfffe];
    errors.extend((0..60).map(|_| 1 + random.below(0xfffe) as u16));
    errors
}

/// Runs a frame whose checksum is wrong, and compares it with `right`: only the checksum may differ, by `error`.
fn check(
    plane: &DataPlane,
    hook: Hook,
    (sent, right): (&Packet, &Packet),
    place: usize,
    error: u16,
) {
    let meta = Meta {
        summed: hook == Hook::UplinkIngress,
        ..Meta::default()
    };
    let sent = wrong(sent, place, error);
    let outcome = plane.try_bytes(hook, &sent, meta).unwrap();
    assert_eq!(outcome.verdict, Verdict::Next, "{error:#06x}: {sent:02x?}");
    let expected = wrong(right, place, error);
    assert_ne!(expected, right.bytes(), "an error that is none");
    let mut bytes = outcome.bytes;
    if place == TCP {
        // Of a segment's two zeros, either says the same.
        let sum = one_zero(read(&bytes, place)).to_be_bytes();
        bytes[place..place + 2].copy_from_slice(&sum);
    }
    assert_eq!(bytes, expected, "{error:#06x}: {sent:02x?}");
}

#[test]
fn nat_1_a_wrong_transport_checksum_stays_wrong_by_as_much() {
    let mut random = Random::announced("wrong checksums");
    let Some(plane) = DataPlane::new() else {
        return;
    };
    // One keeps its port, and one gets another.
    let neighbour = (at([10, 1, 0, 3]), INSIDE.1);
    for (inside, kept) in [(INSIDE, true), (neighbour, false)] {
        let egress = plane.establish(inside, ORIGIN, (1, 1));
        assert_eq!(plane.leaves(&Packet::udp(inside, ORIGIN, b"")).0, egress.0);
        let datagrams = plane.leaves(&Packet::udp(inside, ORIGIN, b""));
        assert_eq!(
            (egress.1 == inside.1, datagrams.1 == inside.1),
            (kept, kept)
        );
        for error in errors(&mut random) {
            let segment = |packet: Packet| packet.numbers(2, 2).payload(b"some data");
            let out = segment(Packet::tcp(inside, ORIGIN, ACK));
            let right = out.clone().sent_from(egress);
            check(&plane, Hook::UplinkEgress, (&out, &right), TCP, error);
            let back = segment(Packet::tcp(ORIGIN, egress, ACK));
            let right = back.clone().sent_to(inside);
            check(&plane, Hook::UplinkIngress, (&back, &right), TCP, error);
            let out = Packet::udp(inside, ORIGIN, b"query");
            let right = out.clone().sent_from(datagrams);
            check(&plane, Hook::UplinkEgress, (&out, &right), UDP, error);
            let back = Packet::udp(ORIGIN, datagrams, b"an answer");
            let right = back.clone().sent_to(inside);
            check(&plane, Hook::UplinkIngress, (&back, &right), UDP, error);
        }
    }
    plane.consistent();
}

/// The packet that opens a flow is not summed anew either.
#[test]
fn nat_1_a_wrong_checksum_of_a_syn_leaves_as_wrong() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for (nth, error) in [1, 0x8000, 0xfffe].into_iter().enumerate() {
        let from = (INSIDE.0, 5_000 + nth as u16);
        let syn = Packet::tcp(from, ORIGIN, SYN).numbers(1, 0);
        let right = syn.clone().sent_from((super::EGRESS, from.1));
        check(&plane, Hook::UplinkEgress, (&syn, &right), TCP, error);
    }
}

/// Whose checksum is zero has none (RFC 768), whatever would be right; over IPv6 as well (RFC 6936).
#[test]
fn nat_1_no_checksum_stays_none_whatever_the_datagram_is() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    let neighbour = (at([10, 1, 0, 3]), INSIDE.1);
    for inside in [INSIDE, neighbour] {
        for payload in [&b""[..], b"1", &[0; 1_000], &[0xff; 999]] {
            let without = |packet: Packet| Packet {
                checksum: Some(0),
                ..packet
            };
            let out = without(Packet::udp(inside, ORIGIN, payload));
            let egress = plane.leaves(&out);
            let back = without(Packet::udp(ORIGIN, egress, payload));
            // Nobody compares a device's sum here: where there is no checksum, nothing makes up for the address.
            let outcome = plane.run(Hook::UplinkIngress, &back, Meta::default());
            assert_eq!(outcome.verdict, Verdict::Next);
            assert_eq!(outcome.bytes, back.sent_to(inside).bytes());
        }
    }
}
