//! FWD-1, FWD-2, FWD-4: a new connection of a pool that this server owns nothing of is handed to the tunnel as it is, by
//! a flow that keeps its server. What the tunnel does with it, and what the other server does, is a matter for a lab.

use std::net::Ipv6Addr;

use egress_common::key::{ReverseKey, TCP, UDP};
use egress_common::peer::{Peer, Traffic, Tunnel, mapped};
use egress_common::policy::Exit;
use egress_common::reason::Reason;
use egress_common::settings::{NO_EXIT, Zone, candidate_flag};
use egress_common::share::{Forward, SHARES};
use egress_common::slot::{State, flag, forwarded_by};

use egress_userspace::desired::{Desired, DesiredExit, DesiredPolicy, DesiredZone, Selectors};
use egress_userspace::policy::{compile, parse};

use crate::harness::{DataPlane, Hook, done, tagged};
use crate::packet::{ACK, Body, Endpoint, FIN, Packet, RST, SYN};
use crate::run::{Meta, Outcome, Verdict};
use crate::world::{EGRESS, EGRESS_2, ENABLED, INSIDE, ORIGIN, POOL, World, ZONE};

pub(crate) const MASK: u32 = 0xffff_0000;
/// Two other servers.
pub(crate) const FIRST: u16 = 9;
const SECOND: u16 = 11;
const TUNNEL: Tunnel = Tunnel {
    interface: 1,
    uplink: 1,
    own: mapped([10, 9, 0, 1]),
    mtu: 0,
};
pub(crate) const fn peer(last: u8) -> Peer {
    Peer {
        address: mapped([10, 9, 0, last]),
    }
}

/// A server without any address of its pool, whose new connections go to the server of this number.
pub(crate) fn without_addresses() -> Option<DataPlane> {
    among_others(World::default().with_addresses(&[]))
}

/// A server whose new connections, where it has no address for them, go to the server of this number.
pub(crate) fn among_others(world: World) -> Option<DataPlane> {
    let mut plane = DataPlane::of(world)?;
    plane.array("TUNNEL", 0, TUNNEL);
    plane.array("PEERS", u32::from(FIRST), peer(9));
    plane.array("PEERS", u32::from(SECOND), peer(11));
    forward_to(&mut plane, FIRST);
    Some(plane)
}

fn forward_to(plane: &mut DataPlane, server: u16) {
    exit_to(plane, POOL, server);
}

fn exit_to(plane: &mut DataPlane, exit: u32, server: u16) {
    let forward = Forward {
        target: 77,
        regions: 0,
        peers: [server; SHARES],
    };
    plane.hash("FORWARDS", exit, forward);
}

pub(crate) fn sent_to(plane: &DataPlane, server: u16) -> u64 {
    let all: Vec<Traffic> = plane.per_cpu("PEER_TRAFFIC", server.into());
    all.iter().map(|one| one.sent_packets).sum()
}

/// A packet leaves by the uplink, is handed over, and leaves by the tunnel as it came.
#[track_caller]
pub(crate) fn forwarded(plane: &DataPlane, packet: &Packet) {
    let handed = plane.out(packet);
    assert_eq!(
        handed.verdict,
        Verdict::Redirect,
        "{packet:?} {:?}",
        plane.all_reasons()
    );
    assert_eq!(handed.bytes, packet.bytes());
    assert_eq!(handed.mark, tagged(MASK, ZONE));
    let meta = Meta {
        mark: handed.mark,
        ..Meta::default()
    };
    let sent = plane.run(Hook::TunnelEgress, packet, meta);
    assert_eq!(
        sent.verdict,
        Verdict::Next,
        "{packet:?} {:?}",
        plane.all_reasons()
    );
    assert_eq!(sent.bytes, packet.bytes());
    assert_eq!(sent.mark, done(MASK));
}

/// No flow is found again by port 0, so none is opened: neither a slot nor an entry of an index is taken.
#[test]
fn cap_6_what_comes_from_port_0_takes_no_place() {
    let Some(plane) = without_addresses() else {
        return;
    };
    let from: Endpoint = (INSIDE.0, 0);
    let packets = [
        Packet::tcp(from, ORIGIN, SYN),
        Packet::udp(from, ORIGIN, b"question"),
    ];
    for packet in &packets {
        let handed = plane.out(packet);
        if handed.verdict == Verdict::Redirect {
            let meta = Meta {
                mark: handed.mark,
                ..Meta::default()
            };
            plane.dropped_with(Hook::TunnelEgress, packet, meta, Reason::Malformed);
        }
    }
    assert_eq!(plane.reason(Reason::Malformed), 2);
    plane.consistent();
}

#[test]
fn fwd_4_a_flow_keeps_its_server_and_new_ones_go_elsewhere() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, SYN));
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(
        slot.flags & (flag::FORWARDED | flag::VISITOR),
        flag::FORWARDED
    );
    assert_eq!(
        (slot.interface, slot.zone, slot.pool),
        (FIRST.into(), ZONE as u16, POOL as u16)
    );
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    assert_eq!(sent_to(&plane, FIRST), 2);

    forward_to(&mut plane, SECOND);
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, SYN));
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, ACK));
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    assert_eq!((sent_to(&plane, FIRST), sent_to(&plane, SECOND)), (5, 0));
    let other: Endpoint = (INSIDE.0, INSIDE.1 + 1);
    forwarded(&plane, &Packet::tcp(other, ORIGIN, SYN));
    assert_eq!((sent_to(&plane, FIRST), sent_to(&plane, SECOND)), (5, 1));

    // One that is reset begins anew, elsewhere.
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, RST));
    plane.consistent();
    assert_eq!(plane.all_reasons(), []);
}

/// FWD-2: an address that drains is not applicable, so this server has nothing of the pool; a live flow stays here.
#[test]
fn pool_9_what_drains_here_is_forwarded_to_who_has_something_else() {
    let Some(mut plane) = DataPlane::of(World::default().with_addresses(&[EGRESS, EGRESS_2]))
    else {
        return;
    };
    plane.array("TUNNEL", 0, TUNNEL);
    plane.array("PEERS", u32::from(FIRST), peer(9));
    forward_to(&mut plane, FIRST);
    let drain = |plane: &mut DataPlane, count: usize| {
        plane.change(|world| {
            for candidate in world.pools[0].1.iter_mut().take(count) {
                candidate.flags = candidate_flag::DRAINING;
            }
        });
    };
    let port = |nth: u16| -> Endpoint { (INSIDE.0, INSIDE.1 + nth) };
    for (nth, draining) in (0..).zip([0, 1]) {
        drain(&mut plane, draining);
        let left = plane.out(&Packet::tcp(port(nth), ORIGIN, SYN));
        assert_eq!(left.verdict, Verdict::Next, "{draining} draining");
    }
    drain(&mut plane, 2);
    forwarded(&plane, &Packet::tcp(port(2), ORIGIN, SYN));
    forwarded(&plane, &Packet::udp(port(2), ORIGIN, b"question"));
    assert_eq!(
        plane.out(&Packet::tcp(port(0), ORIGIN, ACK)).verdict,
        Verdict::Next
    );
    assert_eq!(plane.all_reasons(), []);
    // Full is not draining: load moves nothing to another server (CAP-4).
    plane.change(|world| {
        for candidate in &mut world.pools[0].1 {
            (candidate.flags, candidate.capacity) = (0, 1);
        }
    });
    // Both live ones may have the same address.
    plane.out(&Packet::tcp(port(3), ORIGIN, SYN));
    let refused = plane.reason(Reason::CapReached);
    plane.answered(&Packet::tcp(port(4), ORIGIN, SYN));
    plane.answered(&Packet::tcp(port(5), ORIGIN, SYN));
    assert_eq!(plane.reason(Reason::CapReached), refused + 2);
    plane.consistent();
}

#[test]
fn pool_9_a_pool_that_is_gone_takes_no_forwarded_flow_along() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, SYN));
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    plane.unhash::<u32, Forward>("FORWARDS", POOL);
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, ACK));
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    assert_eq!(sent_to(&plane, FIRST), 4);
    assert_eq!(plane.all_reasons(), []);
    // Nothing new is opened.
    let syn = Packet::tcp((INSIDE.0, INSIDE.1 + 1), ORIGIN, SYN);
    by_tunnel(&plane, &syn, (0, 0));
    assert_eq!(plane.reason(Reason::NoAddress), 1);
    assert_eq!(sent_to(&plane, FIRST), 4);
    plane.consistent();
}

/// An exit, as the daemon numbers them.
const EXIT: u32 = NO_EXIT + 5;

/// FWD-8: what this server has of the pool is not for a zone that is confined to locations elsewhere.
#[test]
fn fwd_8_a_confined_zone_leaves_where_it_may_or_not_at_all() {
    let Some(mut plane) = DataPlane::of(World::default()) else {
        return;
    };
    plane.array("TUNNEL", 0, TUNNEL);
    plane.array("PEERS", u32::from(FIRST), peer(9));
    plane.array("PEERS", u32::from(SECOND), peer(11));
    // The pool's own way is not the zone's.
    forward_to(&mut plane, FIRST);
    exit_to(&mut plane, EXIT, SECOND);
    let confine = |plane: &mut DataPlane, exit| {
        let zone = Zone {
            flags: ENABLED,
            pool: POOL,
            exit,
        };
        plane.array("ZONES", ZONE, zone);
    };
    let left = plane.out(&Packet::tcp(INSIDE, ORIGIN, SYN));
    assert_eq!(left.verdict, Verdict::Next);
    confine(&mut plane, EXIT);
    let other: Endpoint = (INSIDE.0, INSIDE.1 + 1);
    forwarded(&plane, &Packet::tcp(other, ORIGIN, SYN));
    forwarded(&plane, &Packet::udp(other, ORIGIN, b"question"));
    forwarded(&plane, &Packet::tcp(other, ORIGIN, ACK));
    assert_eq!((sent_to(&plane, FIRST), sent_to(&plane, SECOND)), (0, 3));
    let slot = plane.slot(other, ORIGIN, TCP).unwrap();
    assert_eq!(slot.interface, forwarded_by(SECOND.into(), EXIT));
    assert_eq!((slot.zone, slot.pool), (ZONE as u16, POOL as u16));
    // A live one stays where it is (FWD-4).
    assert_eq!(
        plane.out(&Packet::tcp(INSIDE, ORIGIN, ACK)).verdict,
        Verdict::Next
    );
    assert_eq!(plane.all_reasons(), []);
    // Nobody there, and nowhere at all.
    let nth = |nth: u16| Packet::tcp((INSIDE.0, INSIDE.1 + nth), ORIGIN, SYN);
    let meta = Meta {
        mark: tagged(MASK, ZONE),
        ..Meta::default()
    };
    exit_to(&mut plane, EXIT, 0);
    assert_eq!(plane.out(&nth(2)).verdict, Verdict::Redirect);
    plane.run(Hook::TunnelEgress, &nth(2), meta);
    assert_eq!(plane.reason(Reason::NoAddress), 1);
    confine(&mut plane, NO_EXIT);
    plane.run(Hook::TunnelEgress, &nth(3), meta);
    assert_eq!(plane.reason(Reason::NoAddress), 2);
    plane.array("TUNNEL", 0, Tunnel::default());
    plane.answered(&nth(4));
    assert_eq!(plane.reason(Reason::NoAddress), 3);
    assert_eq!((sent_to(&plane, FIRST), sent_to(&plane, SECOND)), (0, 3));
    plane.consistent();
}

/// POLICY-3: the address that a policy names is another server's; what no policy names leaves here.
#[test]
fn policy_3_an_address_of_another_server_is_forwarded_there() {
    let Some(mut plane) = DataPlane::of(World::default()) else {
        return;
    };
    let exit = Exit {
        pool: POOL,
        candidate: Exit::ELSEWHERE | EXIT,
    };
    let zone = DesiredZone {
        number: ZONE as u16,
        id: "zone".into(),
        name: "zone".into(),
        enabled: true,
        pool: Some(POOL as u16),
        selectors: Selectors::default(),
        realm: false,
        egress_tcp: true,
        egress_udp: true,
    };
    let policy = DesiredPolicy {
        name: "bank".into(),
        zones: vec![zone.number],
        traffic: Some(parse("net.dst.port == 443").unwrap()),
        ipv4: DesiredExit::Default,
        ipv6: DesiredExit::Default,
    };
    let desired = Desired {
        zones: vec![zone],
        policies: vec![policy],
        ..Desired::default()
    };
    let tables = compile::compile(&desired, |_| (exit, exit)).unwrap();
    plane.police(0, &tables);
    plane.array("TUNNEL", 0, TUNNEL);
    plane.array("PEERS", u32::from(SECOND), peer(11));
    exit_to(&mut plane, EXIT, SECOND);
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, SYN));
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, ACK));
    assert_eq!(sent_to(&plane, SECOND), 2);
    let slot = plane.slot(INSIDE, ORIGIN, TCP).unwrap();
    assert_eq!(slot.interface, forwarded_by(SECOND.into(), EXIT));
    let elsewhere: Endpoint = (ORIGIN.0, 80);
    let left = plane.out(&Packet::udp(INSIDE, elsewhere, b"question"));
    assert_eq!(left.verdict, Verdict::Next);
    assert_eq!(plane.all_reasons(), []);
    // By its server, and by no address of the pool.
    exit_to(&mut plane, EXIT, 0);
    let syn = Packet::tcp((INSIDE.0, INSIDE.1 + 1), ORIGIN, SYN);
    assert_eq!(plane.out(&syn).verdict, Verdict::Redirect);
    by_tunnel(&plane, &syn, (0, 0));
    assert_eq!(plane.reason(Reason::NoAddress), 1);
    plane.consistent();
}

#[test]
fn fwd_2_without_its_server_a_flow_is_refused_and_begins_anew() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, SYN));
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    plane.array("PEERS", u32::from(FIRST), Peer::default());
    forward_to(&mut plane, SECOND);
    // TCP is told, by the tunnel's program: the answer goes to the uplink's way in.
    let packet = Packet::tcp(INSIDE, ORIGIN, ACK);
    let meta = Meta {
        mark: tagged(MASK, ZONE),
        ..Meta::default()
    };
    let outcome = plane.run(Hook::TunnelEgress, &packet, meta);
    assert_eq!(outcome.verdict, Verdict::Redirect);
    let answer = Packet::read(&outcome.bytes);
    assert_eq!((answer.source, answer.destination), (ORIGIN.0, INSIDE.0));
    assert_eq!(plane.reason(Reason::NoFlow), 1);
    // A SYN and UDP begin anew.
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, SYN));
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    assert_eq!(sent_to(&plane, SECOND), 2);
    for protocol in [TCP, UDP] {
        let slot = plane.slot(INSIDE, ORIGIN, protocol).unwrap();
        assert_eq!(slot.interface, u32::from(SECOND));
    }
    plane.consistent();
}

#[test]
fn safe_1_what_is_not_forwarded_is_refused() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    // Nothing that opens nothing.
    for flags in [ACK, FIN | ACK] {
        plane.answered(&Packet::tcp(INSIDE, ORIGIN, flags));
    }
    assert_eq!(plane.reason(Reason::NoFlow), 2);
    // What the tunnel's program is given without a flow is not believed to have one.
    let meta = Meta {
        mark: tagged(MASK, ZONE),
        ..Meta::default()
    };
    plane.run(Hook::TunnelEgress, &Packet::tcp(INSIDE, ORIGIN, ACK), meta);
    assert_eq!(plane.reason(Reason::NoFlow), 3);
    assert_eq!(plane.state(INSIDE, ORIGIN, TCP), None);
    // Nobody to send it to.
    forward_to(&mut plane, 0);
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN);
    plane.run(Hook::TunnelEgress, &syn, meta);
    assert_eq!(plane.reason(Reason::NoAddress), 1);
    plane.array("TUNNEL", 0, Tunnel::default());
    plane.answered(&syn);
    assert_eq!(plane.reason(Reason::NoAddress), 2);
    assert_eq!(plane.all_active(), 0);
    plane.consistent();
}

#[test]
fn a_forwarded_flow_is_found_from_outside_by_its_inside_endpoint() {
    let Some(plane) = without_addresses() else {
        return;
    };
    // A port below 2048, which is in no slice.
    let low: Endpoint = (INSIDE.0, 1_023);
    forwarded(&plane, &Packet::udp(low, ORIGIN, b"question"));
    let key = ReverseKey {
        egress: low.0,
        origin: ORIGIN.0,
        egress_port: low.1,
        origin_port: ORIGIN.1,
        protocol: UDP,
        ..ReverseKey::default()
    };
    assert_eq!(plane.holder(&key), plane.index(low, ORIGIN, UDP));
    assert_eq!(plane.state(low, ORIGIN, UDP), Some(State::UdpUnanswered));
}

/// A packet on its way out by the tunnel, which takes 1,450 bytes.
fn by_tunnel(plane: &DataPlane, packet: &Packet, segments: (u32, u32)) -> Outcome {
    let meta = Meta {
        mark: tagged(MASK, ZONE),
        segments,
        ..Meta::default()
    };
    plane.run(Hook::TunnelEgress, packet, meta)
}

pub(crate) const ROOM: u32 = 1_450;

/// This server's end of a tunnel that takes so many bytes.
pub(crate) const fn with_mtu(mtu: u32) -> Tunnel {
    Tunnel { mtu, ..TUNNEL }
}

/// Another server that is reached by IPv6.
pub(crate) const SIX: Peer = Peer {
    address: Ipv6Addr::LOCALHOST.octets(),
};

/// The same over IPv6, where nobody cuts what is around a packet.
pub(crate) const fn over_ipv6(mtu: u32) -> Tunnel {
    Tunnel {
        own: Ipv6Addr::LOCALHOST.octets(),
        ..with_mtu(mtu)
    }
}

fn with_room() -> Option<DataPlane> {
    let mut plane = without_addresses()?;
    plane.array("TUNNEL", 0, with_mtu(ROOM));
    Some(plane)
}

#[test]
fn nat_5_a_syn_announces_no_longer_segments_than_fit_the_tunnel() {
    let Some(plane) = with_room() else { return };
    let size = |value: u16| {
        let [high, low] = value.to_be_bytes();
        [2, 4, high, low]
    };
    // The option first, behind one no-op and so across two words of the checksum, and last of all.
    let lists = |value| {
        [
            [&size(value)[..], &[1, 3, 3, 7]].concat(),
            [&[1], &size(value)[..], &[3, 3, 7]].concat(),
            [&[4, 2, 1, 1, 3, 3, 7, 1], &size(value)[..]].concat(),
        ]
    };
    let mut port = INSIDE.1;
    for (announced, expected) in [
        (1_460, 1_410),
        (1_411, 1_410),
        (1_410, 1_410),
        (536, 536),
        (u16::MAX, 1_410),
    ] {
        for (sent, wanted) in lists(announced).iter().zip(lists(expected)) {
            port += 1;
            let syn = Packet::tcp((INSIDE.0, port), ORIGIN, SYN);
            let wanted = syn.clone().with_options(&wanted);
            // Twice: a retransmission is of a known flow.
            for _ in 0..2 {
                let sent = by_tunnel(&plane, &syn.clone().with_options(sent), (0, 0));
                assert_eq!(sent.verdict, Verdict::Next, "{:?}", plane.all_reasons());
                assert_eq!(Packet::read(&sent.bytes), wanted);
            }
        }
    }
    // None, and one that lies about its length.
    for options in [&[][..], &[2, 3, 5, 0], &[3, 3, 7, 2]] {
        port += 1;
        let syn = Packet::tcp((INSIDE.0, port), ORIGIN, SYN).with_options(options);
        assert_eq!(by_tunnel(&plane, &syn, (0, 0)).bytes, syn.bytes());
    }
    // No option of a segment that is no SYN.
    let ack = Packet::tcp((INSIDE.0, port), ORIGIN, ACK).with_options(&size(1_460));
    assert_eq!(by_tunnel(&plane, &ack, (0, 0)).bytes, ack.bytes());
    assert_eq!(plane.all_reasons(), []);
}

#[test]
fn nat_5_a_segment_that_does_not_fit_the_tunnel_is_answered_with_what_does() {
    let Some(mut plane) = with_room() else { return };
    let room = ROOM as usize;
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN);
    assert_eq!(by_tunnel(&plane, &syn, (0, 0)).verdict, Verdict::Next);
    let tcp = |length: usize| Packet::tcp(INSIDE, ORIGIN, ACK).payload(&vec![7; length - 40]);
    let udp = |length: usize| Packet::udp(INSIDE, ORIGIN, &vec![7; length - 28]);
    // By segment what stands for several.
    let fits = [
        (tcp(room), (0, 0)),
        (tcp(40 + 2 * 1_410), (2, 1_410)),
        (udp(room), (0, 0)),
    ];
    for (packet, segments) in fits {
        let sent = by_tunnel(&plane, &packet, segments);
        assert_eq!(sent.verdict, Verdict::Next, "{:?}", plane.all_reasons());
        assert_eq!(sent.bytes, packet.bytes());
    }
    let may_be_cut = [tcp(1_500), udp(1_500)].map(|packet| Packet {
        fragment: 0,
        ..packet
    });
    for packet in &may_be_cut {
        let sent = by_tunnel(&plane, packet, (0, 0));
        assert_eq!((sent.verdict, sent.bytes), (Verdict::Next, packet.bytes()));
    }
    assert_eq!(plane.all_reasons(), []);
    let mut with_options = tcp(1_500);
    with_options.options = vec![1; 12];
    let before = sent_to(&plane, FIRST);
    let too_long = [
        (tcp(room + 1), (0, 0)),
        (tcp(1_500), (0, 0)),
        (with_options, (0, 0)),
        (tcp(40 + 2 * 1_411), (2, 1_411)),
        (udp(room + 1), (0, 0)),
    ];
    for (count, (packet, segments)) in too_long.iter().enumerate() {
        let answered = by_tunnel(&plane, packet, *segments);
        assert_eq!(
            answered.verdict,
            Verdict::Redirect,
            "{packet:?} {:?}",
            plane.all_reasons()
        );
        let quoted = &packet.ip_bytes()[..28 + packet.options.len()];
        let answer = Packet::read(&answered.bytes);
        let mut expected = Packet::icmp(ORIGIN.0, INSIDE.0, 3, 4, &[]);
        expected.body = Body::Icmp(3, 4, ROOM.to_be_bytes(), quoted.to_vec());
        (expected.id, expected.ttl) = (0, 64);
        (expected.to, expected.from) = (answer.to, answer.from);
        assert_eq!(answer, expected);
        assert_eq!(plane.reason(Reason::PathTooLong), 1 + count as u64);
    }
    assert_eq!(sent_to(&plane, FIRST), before);
    // Over IPv6 nobody cuts anything: that is told whoever sent it, and what cannot be told is dropped.
    plane.array("TUNNEL", 0, over_ipv6(ROOM));
    for (nth, packet) in (1..).zip(&may_be_cut) {
        let answered = by_tunnel(&plane, packet, (0, 0));
        assert_eq!(answered.verdict, Verdict::Redirect);
        let told = plane.reason(Reason::PathTooLong);
        assert_eq!(told, too_long.len() as u64 + nth);
    }
    let quoted = Packet::udp(ORIGIN, INSIDE, &vec![7; room]);
    let error = Packet::icmp(INSIDE.0, ORIGIN.0, 3, 3, &quoted.ip_bytes());
    assert_eq!(by_tunnel(&plane, &error, (0, 0)).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::ForwardedTooLong), 1);
    assert_eq!(sent_to(&plane, FIRST), before);
    assert_eq!(plane.all_active(), 2);
    plane.consistent();
}

/// SAFE-1: what the tunnel's program is given without a flow goes nowhere if the uplink's would decide otherwise.
#[test]
fn safe_1_a_flow_that_is_gone_does_not_begin_anew_behind_the_uplinks_back() {
    let world = World {
        exempt: vec![(ORIGIN.0, 32)],
        ..World::default().with_addresses(&[])
    };
    let Some(mut plane) = DataPlane::of(world) else {
        return;
    };
    plane.array("TUNNEL", 0, TUNNEL);
    plane.array("PEERS", u32::from(FIRST), peer(9));
    forward_to(&mut plane, FIRST);
    let packet = Packet::udp(INSIDE, ORIGIN, b"question");
    let outcome = by_tunnel(&plane, &packet, (0, 0));
    assert_eq!(outcome.verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::Contended), 1);
    assert_eq!((plane.all_active(), sent_to(&plane, FIRST)), (0, 0));
}
