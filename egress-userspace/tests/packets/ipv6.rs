//! NAT-3: IPv6 leaves from an address of the pool's range, and is refused as clearly as IPv4.

mod headers;
mod neighbour;

use egress_common::family::V6;
use egress_common::key::{TCP, UDP};
use egress_common::reason::Reason;
use egress_common::slot::State;

use crate::harness::{Hook, Plane, eventually};
use crate::packet::{ACK, Body, Endpoint, PSH, Packet, RST, SYN};
use crate::run::Verdict;
use crate::world::{INSIDE6, ORIGIN6, RANGE, World, v6};

type DataPlane = Plane<V6>;

/// Whether an address lies in the default world's range.
fn is_egress(address: V6) -> bool {
    address[..8] == RANGE[..8] && address != RANGE
}

/// A pool of the ranges, with a cap.
fn world(ranges: &[(V6, u32)], capacity: u32) -> World {
    let mut world = World::default().with_ranges(ranges);
    for range in world.ranges.iter_mut().flatten() {
        range.capacity = capacity;
    }
    world
}

/// A pool of a /64.
fn usual() -> World {
    World::default().with_ranges(&[(RANGE, 64)])
}

#[test]
fn nat_3_tcp_leaves_from_the_range_with_its_port_and_its_replies_arrive() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let egress = plane.establish(INSIDE6, ORIGIN6, (1_000, 9_000));
    assert!(is_egress(egress.0), "{egress:?}");
    assert_eq!(egress.1, INSIDE6.1, "the client's port is kept");
    let data = Packet::tcp(INSIDE6, ORIGIN6, ACK | PSH)
        .numbers(1_001, 9_001)
        .payload(b"GET /");
    assert_eq!(plane.leaves(&data), egress);
    // The harness checks the sum that a device made over the packet, too.
    let answer = Packet::tcp(ORIGIN6, egress, ACK | PSH)
        .numbers(9_001, 1_006)
        .payload(b"an odd length");
    plane.arrives(&answer, INSIDE6);
    assert_eq!(
        plane.state(INSIDE6, ORIGIN6, TCP),
        Some(State::TcpEstablished)
    );
    let count = plane.count(egress.0, ORIGIN6, TCP).unwrap();
    assert_eq!((count.active, count.admitted), (1, 1));
    let reset = Packet::tcp(INSIDE6, ORIGIN6, RST | ACK).numbers(1_006, 9_014);
    plane.leaves(&reset);
    assert_eq!(plane.all_active(), 0);
}

#[test]
fn nat_3_udp_out_and_back_with_and_without_a_checksum() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE6, ORIGIN6, b"query"));
    assert!(is_egress(egress.0) && egress.1 == INSIDE6.1);
    plane.arrives(&Packet::udp(ORIGIN6, egress, b"answer"), INSIDE6);
    assert_eq!(plane.state(INSIDE6, ORIGIN6, UDP), Some(State::UdpAnswered));
    // Only tunnels may do without (RFC 6936); whoever receives it decides. Never made right.
    let none = Packet {
        checksum: Some(0),
        ..Packet::udp(INSIDE6, ORIGIN6, b"tunnel")
    };
    let outcome = plane.out(&none);
    assert_eq!(outcome.verdict, Verdict::Next);
    let left = Packet::<V6>::read(&outcome.bytes);
    assert_eq!((left.source, left.checksum), (egress.0, Some(0)));
}

#[test]
fn nat_3_an_inside_address_keeps_its_egress_address_and_others_have_others() {
    let world = World {
        // One for each egress address and origin.
        max_origins: 128,
        ..usual()
    };
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    let mut seen = std::collections::HashSet::new();
    for host in 0..50 {
        let from = (v6(1, host), 1_000 + host);
        let egress = plane.leaves(&Packet::tcp(from, ORIGIN6, SYN));
        assert!(is_egress(egress.0) && egress.1 == from.1);
        assert!(seen.insert(egress.0), "an address of its own");
        let other = plane.leaves(&Packet::udp((from.0, 99), (v6(0xff, 9), 53), b""));
        assert_eq!(
            other,
            (egress.0, 99),
            "the same for every origin and protocol"
        );
    }
}

#[test]
fn nat_3_a_taken_port_is_replaced_by_another_one() {
    let Some(plane) = DataPlane::of(world(&[(v6(0xe, 5), 128)], 100)) else {
        return;
    };
    let first = plane.leaves(&Packet::tcp((v6(1, 2), 5_000), ORIGIN6, SYN));
    assert_eq!(first, (v6(0xe, 5), 5_000), "a range of one address");
    let second = plane.leaves(&Packet::tcp((v6(1, 3), 5_000), ORIGIN6, SYN));
    assert_eq!(second.0, first.0);
    assert!(second.1 >= 1_024 && second.1 != first.1, "{second:?}");
    let low = plane.leaves(&Packet::tcp((v6(1, 3), 7), ORIGIN6, SYN));
    assert_eq!(low.1, 7, "every port may be kept");
}

#[test]
fn nat_3_a_full_address_is_followed_by_another_one_and_a_full_range_refuses() {
    let Some(plane) = DataPlane::of(world(&[(v6(0xe, 0), 126)], 1)) else {
        return;
    };
    let mut seen = std::collections::HashSet::new();
    for port in 1..=3 {
        let egress = plane.leaves(&Packet::tcp((v6(1, 2), port), ORIGIN6, SYN));
        assert!(
            seen.insert(egress.0),
            "one connection an address: {egress:?}"
        );
    }
    assert!(
        !seen.contains(&v6(0xe, 0)),
        "the first address is the routers'"
    );
    let before = plane.reason(Reason::CapReached);
    let late = Packet::tcp((v6(1, 2), 4), ORIGIN6, SYN).numbers(5, 0);
    let answer = plane.answered(&late);
    assert_eq!(answer, reset(&late, 0, 6, RST | ACK));
    assert_eq!(plane.reason(Reason::CapReached), before + 1);
    assert_eq!(plane.all_active(), 3);
}

/// The RST that is expected for `packet`.
fn reset(packet: &Packet<V6>, sequence: u32, acknowledgment: u32, control: u8) -> Packet<V6> {
    let mut answer =
        Packet::tcp(packet.receiver(), packet.sender(), control).numbers(sequence, acknowledgment);
    answer.segment().window = 0;
    (answer.to, answer.from, answer.ttl) = (packet.from, packet.to, 64);
    answer
}

#[test]
fn safe_1_a_pool_without_a_range_refuses_ipv6_explicitly() {
    let Some(plane) = DataPlane::of(world(&[], 1)) else {
        return;
    };
    let syn = Packet::tcp(INSIDE6, ORIGIN6, SYN).numbers(9, 0);
    assert_eq!(plane.answered(&syn), reset(&syn, 0, 10, RST | ACK));
    let query = Packet::udp(INSIDE6, ORIGIN6, b"query");
    let answer = plane.answered(&query);
    assert_eq!((answer.protocol, answer.ttl), (58, 64));
    assert_eq!(
        answer.body,
        Body::Icmp(1, 1, [0; 4], query.ip_bytes()),
        "administratively prohibited, and what it is about"
    );
    assert_eq!(plane.reason(Reason::NoAddress), 2);
    let stray = Packet::tcp(INSIDE6, ORIGIN6, ACK).numbers(1, 77);
    assert_eq!(plane.answered(&stray), reset(&stray, 77, 0, RST));
}

#[test]
fn safe_1_what_belongs_to_no_zone_passes_and_what_claims_an_egress_address_does_not() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let stranger = (v6(9, 9), 40_000);
    plane.passes(&Packet::tcp(stranger, ORIGIN6, SYN));
    let claimed = (v6(0xe, 0xbeef), 40_000);
    plane.dropped(
        Hook::UplinkEgress,
        &Packet::tcp(claimed, ORIGIN6, SYN),
        Reason::ClaimsEgressIp,
    );
    plane.passes(&Packet::icmp(INSIDE6.0, ORIGIN6.0, 128, 0, b"ping"));
    let mut group = [0; 16];
    (group[0], group[1], group[15]) = (0xff, 0x0e, 1);
    let multicast = Packet::udp(INSIDE6, (group, 5_000), b"");
    plane.dropped(Hook::UplinkEgress, &multicast, Reason::Multicast);
    let mut near = [0; 16];
    (near[0], near[1], near[15]) = (0xfe, 0x80, 1);
    let before = plane.reason(Reason::Ipv6);
    let syn = Packet::tcp(INSIDE6, (near, 80), SYN);
    assert_eq!(plane.answered(&syn).receiver(), INSIDE6);
    assert_eq!(plane.reason(Reason::Ipv6), before + 1);
}

#[test]
fn safe_3_unsolicited_packets_to_the_range_are_dropped_and_others_arrive() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let egress = plane.leaves(&Packet::udp(INSIDE6, ORIGIN6, b"query"));
    let strange: [Endpoint<V6>; 3] = [
        (egress.0, egress.1 ^ 1),
        (v6(0xe, 1), egress.1),
        (RANGE, 443),
    ];
    for to in strange {
        let packet = Packet::udp(ORIGIN6, to, b"knock");
        plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
    }
    plane.dropped(
        Hook::UplinkIngress,
        &Packet::icmp(ORIGIN6.0, egress.0, 128, 0, b"ping"),
        Reason::Unsolicited,
    );
    let other = Packet::udp(ORIGIN6, (v6(0xf, 1), 443), b"");
    let outcome = plane.back(&other);
    assert_eq!(
        (outcome.verdict, outcome.bytes),
        (Verdict::Next, other.bytes())
    );
}

#[test]
fn nat_4_an_icmpv6_error_about_a_flow_reaches_its_inside() {
    let Some(plane) = DataPlane::of(usual()) else {
        return;
    };
    let sent = Packet::udp(INSIDE6, ORIGIN6, b"query");
    let egress = plane.leaves(&sent);
    let quoted = sent.clone().sent_from(egress).ip_bytes();
    let router = v6(0xaa, 1);
    let too_big = |to: V6, quoted: &[u8]| {
        let mut packet = Packet::icmp(router, to, 2, 0, quoted);
        packet.body = Body::Icmp(2, 0, 1_280u32.to_be_bytes(), quoted.to_vec());
        packet
    };
    let outcome = plane.back(&too_big(egress.0, &quoted));
    assert_eq!(outcome.verdict, Verdict::Next);
    let expected = too_big(INSIDE6.0, &sent.ip_bytes());
    assert_eq!(Packet::read(&outcome.bytes), expected);
}

#[test]
fn nat_7_idle_ipv6_flows_expire_and_their_slots_return() {
    let mut world = usual();
    world.settings.timers.udp = 50_000_000;
    world.settings.timers.quarantine = 50_000_000;
    let Some(plane) = DataPlane::of(world) else {
        return;
    };
    for port in 1..=20 {
        plane.leaves(&Packet::udp((INSIDE6.0, port), ORIGIN6, b""));
    }
    assert_eq!(plane.all_active(), 20);
    plane.arm();
    eventually("every slot is free again", || {
        plane.free() == plane.world.max_flows as usize
    });
    assert_eq!(plane.all_active(), 0);
    assert_eq!(
        plane
            .count(v6(0, 0), ORIGIN6, UDP)
            .map(|count| count.active),
        None
    );
}
