//! NAT-1: options of every length stay as they are, both ways, and a refusal of what has them is right.

use super::{DataPlane, INSIDE, ORIGIN, Packet, network_options};
use crate::packet::{ACK, Body, RST, SYN};
use crate::seed::Random;
use crate::world::World;

/// TCP options of every length, of every kind of content: what says nothing, what ends, what lies, and anything.
fn tcp_options(random: &mut Random) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for length in (0..=40).step_by(4) {
        for filling in [0, 1, 2, 8, 0xff] {
            all.push(vec![filling; length]);
        }
        all.push((0..length).map(|_| random.number() as u8).collect());
        // One option as long as all, and one that says it is longer.
        if let Ok(claimed @ 4..) = u8::try_from(length) {
            for claimed in [claimed, claimed + 1, claimed - 1] {
                let mut options = vec![0xfe; length];
                options[1] = claimed;
                all.push(options);
            }
        }
    }
    all
}

#[test]
fn nat_1_tcp_options_of_every_length_stay_as_they_are() {
    let mut random = Random::announced("TCP options");
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for (nth, options) in tcp_options(&mut random).into_iter().enumerate() {
        let from = (INSIDE.0, 3_000 + nth as u16);
        let with = |packet: Packet| packet.with_options(&options);
        let egress = plane.leaves(&with(Packet::tcp(from, ORIGIN, SYN).numbers(1, 0)));
        let answer = Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(9, 2);
        plane.arrives(&with(answer), from);
        let data = Packet::tcp(from, ORIGIN, ACK).numbers(2, 10);
        assert_eq!(plane.leaves(&with(data).payload(b"data")), egress);
    }
    assert_eq!(plane.all_reasons(), []);
    plane.consistent();
}

#[test]
fn nat_1_network_options_of_every_length_stay_as_they_are() {
    let Some(plane) = DataPlane::new() else {
        return;
    };
    for (nth, of_network) in network_options(6).into_iter().enumerate() {
        let from = (INSIDE.0, 3_000 + nth as u16);
        for length in (0..=40).step_by(4) {
            let with = |packet: Packet| {
                let options = of_network.clone();
                let packet = packet.with_options(&vec![1; length]);
                Packet { options, ..packet }
            };
            let egress = plane.leaves(&with(Packet::tcp(from, ORIGIN, SYN).numbers(1, 0)));
            let answer = Packet::tcp(ORIGIN, egress, SYN | ACK).numbers(9, 2);
            plane.arrives(&with(answer), from);
        }
    }
    for (nth, options) in network_options(17).into_iter().enumerate() {
        let from = (INSIDE.0, 4_000 + nth as u16);
        let with = |packet: Packet| Packet {
            options: options.clone(),
            ..packet
        };
        let egress = plane.leaves(&with(Packet::udp(from, ORIGIN, b"query")));
        plane.arrives(&with(Packet::udp(ORIGIN, egress, b"answer")), from);
    }
    assert_eq!(plane.all_reasons(), []);
    plane.consistent();
}

/// The answer is made of the packet that is refused, where its options were.
#[test]
fn cap_5_what_has_options_of_any_length_is_refused_correctly() {
    let Some(plane) = DataPlane::of(World::default().with_capacity(1)) else {
        return;
    };
    plane.leaves(&Packet::tcp(INSIDE, ORIGIN, SYN));
    plane.leaves(&Packet::udp(INSIDE, ORIGIN, b""));
    let late = (INSIDE.0, 50_000);
    for options in network_options(6) {
        for length in (0..=40).step_by(4) {
            let syn = Packet {
                options: options.clone(),
                ..Packet::tcp(late, ORIGIN, SYN)
                    .numbers(7, 0)
                    .with_options(&vec![1; length])
            };
            // It is read whole: every length and every checksum is right.
            let mut answer = plane.answered(&syn);
            assert_eq!(answer.receiver(), late);
            let segment = answer.segment();
            assert_eq!(
                (segment.control, segment.acknowledgment),
                (RST | ACK, 8),
                "{syn:?}"
            );
            assert_eq!((segment.options.len(), segment.payload.len()), (0, 0));
        }
    }
    for options in network_options(17) {
        let query = Packet {
            options,
            ..Packet::udp(late, ORIGIN, b"query")
        };
        let answer = plane.answered(&query);
        let Body::Icmp(.., quoted) = &answer.body else {
            panic!("{answer:?}");
        };
        assert!(query.ip_bytes().starts_with(quoted), "{answer:?}");
        assert_eq!(answer.options.len(), query.options.len());
    }
    plane.consistent();
}
