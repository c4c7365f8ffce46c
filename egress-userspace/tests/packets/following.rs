//! FWD-2: what has no ports of its own goes where its flow goes: later fragments (NAT-6) and ICMP errors about what the
//! flow was sent (NAT-4). What the other server makes of them is a matter for a lab.

use egress_common::key::{TCP, UDP};
use egress_common::peer::{Peer, Tunnel};
use egress_common::reason::Reason;
use egress_common::share::Forward;

use crate::forwarding::{
    FIRST, MASK, ROOM, SIX, forwarded, over_ipv6, peer, sent_to, with_mtu, without_addresses,
};
use crate::fuzz::stay;
use crate::harness::{DataPlane, Hook, done, tagged};
use crate::loopback::{Loopback, Sent};
use crate::packet::{ACK, Packet, SYN};
use crate::pieces::{cut, cut_for_ethernet};
use crate::run::{Meta, Outcome, Verdict};
use crate::world::{INSIDE, ORIGIN, POOL, ZONE};

/// A router of the inside, which is in the zone, and one outside.
const ROUTER: [u8; 4] = [10, 1, 0, 9];
const STRANGER: [u8; 4] = [203, 0, 113, 77];

/// A datagram in four fragments.
fn fragments(id: u16) -> Vec<Vec<u8>> {
    let datagram = Packet {
        id,
        fragment: 0,
        ..Packet::udp(INSIDE, ORIGIN, &[0x5a; 5_000])
    };
    cut_for_ethernet(&datagram)
}

#[track_caller]
fn leaves(plane: &DataPlane, frame: &[u8]) -> Outcome {
    let outcome = plane.try_bytes(Hook::UplinkEgress, frame, Meta::default());
    outcome.unwrap()
}

#[track_caller]
fn by_tunnel(plane: &DataPlane, frame: &[u8]) -> Outcome {
    let meta = Meta {
        mark: tagged(MASK, ZONE),
        ..Meta::default()
    };
    plane.try_bytes(Hook::TunnelEgress, frame, meta).unwrap()
}

/// A frame is handed over, and leaves by the tunnel as it came.
#[track_caller]
fn follows(plane: &DataPlane, frame: &[u8]) {
    let handed = leaves(plane, frame);
    assert_eq!(
        (handed.verdict, handed.mark),
        (Verdict::Redirect, tagged(MASK, ZONE)),
        "{:?}",
        plane.all_reasons()
    );
    assert_eq!(handed.bytes, frame);
    let sent = by_tunnel(plane, frame);
    assert_eq!(
        (sent.verdict, sent.mark),
        (Verdict::Next, done(MASK)),
        "{:?}",
        plane.all_reasons()
    );
    assert_eq!(sent.bytes, frame);
}

#[test]
fn nat_6_fragments_follow_the_first_one_through_the_tunnel() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    stay();
    // Of a flow that they open, and of one that is there.
    for id in [1, 2] {
        for frame in fragments(id) {
            follows(&plane, &frame);
        }
    }
    assert_eq!(sent_to(&plane, FIRST), 8);
    let slot = plane.slot(INSIDE, ORIGIN, UDP).unwrap();
    assert_eq!(
        (slot.packets_out, slot.bytes_out),
        (8, 2 * (5_008 + 4 * 20))
    );
    assert_eq!(plane.all_reasons(), []);
    assert_eq!(plane.all_active(), 1);

    // What the tunnel's program was not told of a moment ago is nobody's.
    let strange = fragments(3);
    assert_eq!(by_tunnel(&plane, &strange[1]).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::Contended), 1);
    // A duplicate, and one of a datagram whose first one was refused.
    for frame in &strange[..2] {
        follows(&plane, frame);
    }
    assert_eq!(leaves(&plane, &strange[1]).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::FragmentDuplicate), 1);
    // Their server is gone.
    plane.array("PEERS", u32::from(FIRST), Peer::default());
    assert_eq!(leaves(&plane, &strange[2]).verdict, Verdict::Redirect);
    assert_eq!(by_tunnel(&plane, &strange[2]).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::PeerUnreachable), 1);
    plane.array("TUNNEL", 0, Tunnel::default());
    assert_eq!(leaves(&plane, &strange[3]).verdict, Verdict::Drop);
    assert_eq!(sent_to(&plane, FIRST), 10);
    plane.consistent();
}

#[test]
fn nat_6_fragments_that_came_first_follow_the_first_one_through_the_tunnel() {
    let Some(plane) = without_addresses() else {
        return;
    };
    stay();
    let wire = Loopback::watch();
    let frames = fragments(1);
    for nth in [3, 1] {
        let held = leaves(&plane, &frames[nth]);
        assert_eq!((held.verdict, held.mark), (Verdict::Redirect, 0));
    }
    assert_eq!(plane.all_active(), 0);
    let handed = leaves(&plane, &frames[0]);
    assert_eq!(
        (handed.verdict, handed.mark),
        (Verdict::Redirect, tagged(MASK, ZONE))
    );
    // The interface that is tested stands in for the tunnel's.
    assert_eq!(
        by_tunnel(&plane, &frames[0]).verdict,
        Verdict::Redirect,
        "used up"
    );
    let mut sent = wire.frames(Sent::Out, 3);
    assert_eq!(sent.remove(0), frames[0]);
    sent.sort();
    let mut expected = [frames[1].clone(), frames[3].clone()];
    expected.sort();
    assert_eq!(sent, expected);
    follows(&plane, &frames[2]);
    assert_eq!(plane.all_reasons(), []);
    plane.consistent();
}

/// NAT-5: over IPv6 nobody cuts what goes through the tunnel.
#[test]
fn nat_5_what_came_before_its_first_one_is_measured_too() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    stay();
    plane.array("TUNNEL", 0, over_ipv6(ROOM));
    plane.array("PEERS", u32::from(FIRST), SIX);
    let wire = Loopback::watch();
    let datagram = Packet {
        id: 1,
        fragment: 0,
        ..Packet::udp(INSIDE, ORIGIN, &[0x5a; 4_000])
    };
    let room = ROOM as usize - 20;
    // The first one fits, the second is one unit too long, the third fits, and the last is short.
    let frames = cut(&datagram, &[800, (room & !7) + 8, room & !7]);
    assert_eq!(frames.len(), 4);
    for frame in &frames[1..] {
        let held = leaves(&plane, frame);
        assert_eq!((held.verdict, held.mark), (Verdict::Redirect, 0));
    }
    assert_eq!(leaves(&plane, &frames[0]).verdict, Verdict::Redirect);
    assert_eq!(by_tunnel(&plane, &frames[0]).verdict, Verdict::Redirect);
    let mut sent = wire.frames(Sent::Out, 3);
    assert_eq!(sent.remove(0), frames[0]);
    sent.sort();
    let mut expected = [frames[2].clone(), frames[3].clone()];
    expected.sort();
    assert_eq!(sent, expected);
    assert_eq!(plane.all_reasons(), [(Reason::ForwardedTooLong, 1)]);
    // As it is where it comes behind the first one; and where the packet around it is cut, all of them go.
    let again = cut(
        &Packet {
            id: 2,
            ..datagram.clone()
        },
        &[800, (room & !7) + 8],
    );
    follows(&plane, &again[0]);
    assert_eq!(leaves(&plane, &again[1]).verdict, Verdict::Redirect);
    assert_eq!(by_tunnel(&plane, &again[1]).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::ForwardedTooLong), 2);
    plane.array("TUNNEL", 0, with_mtu(ROOM));
    plane.array("PEERS", u32::from(FIRST), peer(9));
    let cut = cut(&Packet { id: 3, ..datagram }, &[800, (room & !7) + 8]);
    leaves(&plane, &cut[1]);
    leaves(&plane, &cut[0]);
    by_tunnel(&plane, &cut[0]);
    assert_eq!(wire.frames(Sent::Out, 2), cut[..2]);
    assert_eq!(plane.all_reasons(), [(Reason::ForwardedTooLong, 2)]);
    plane.consistent();
}

/// POLICY-7: a ping has no flow, and takes the default egress of the server where it entered; or none.
#[test]
fn policy_7_a_ping_is_not_forwarded() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    let ping = Packet::icmp(INSIDE.0, ORIGIN.0, 8, 0, b"as long as any ping");
    let left = plane.out(&ping);
    assert_eq!((left.verdict, left.bytes), (Verdict::Next, ping.bytes()));
    plane.change(|world| world.settings.icmp_queries = 0);
    plane.dropped(Hook::UplinkEgress, &ping, Reason::PingDropped);
    assert_eq!(sent_to(&plane, FIRST), 1);
}

/// An ICMP error about what the origin has sent.
fn about(from: [u8; 4], received: &Packet, kind: u8, code: u8) -> Packet {
    let mut quote = received.ip_bytes();
    quote.truncate(28);
    Packet::icmp(from, received.source, kind, code, &quote)
}

#[test]
fn nat_4_errors_from_inside_follow_their_flow_through_the_tunnel() {
    let Some(mut plane) = without_addresses() else {
        return;
    };
    forwarded(&plane, &Packet::udp(INSIDE, ORIGIN, b"question"));
    forwarded(&plane, &Packet::tcp(INSIDE, ORIGIN, SYN));
    let datagram = Packet::udp(ORIGIN, INSIDE, b"answer");
    let segment = Packet::tcp(ORIGIN, INSIDE, ACK);
    let errors = [
        about(INSIDE.0, &datagram, 3, 3),
        about(ROUTER, &datagram, 3, 4),
        about(STRANGER, &segment, 11, 0),
    ];
    for error in &errors {
        forwarded(&plane, error);
    }
    assert_eq!(sent_to(&plane, FIRST), 5);
    // They neither end a flow nor keep it alive.
    let [udp, tcp] = [UDP, TCP].map(|protocol| plane.slot(INSIDE, ORIGIN, protocol).unwrap());
    assert_eq!((udp.packets_out, tcp.packets_out), (1, 1));
    // To another one than the origin, and about a flow that nobody has.
    let mut astray = errors[0].clone();
    astray.destination = STRANGER;
    assert_eq!(plane.out(&astray).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::IcmpError), 1);
    let other = Packet::udp(ORIGIN, (INSIDE.0, INSIDE.1 + 1), b"answer");
    let unknown = about(INSIDE.0, &other, 3, 3);
    assert_eq!(plane.out(&unknown).verdict, Verdict::Drop);
    assert_eq!(by_tunnel(&plane, &unknown.bytes()).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::IcmpError), 3);
    // A pool that is gone takes no flow along (POOL-9); a server does.
    plane.unhash::<u32, Forward>("FORWARDS", POOL);
    forwarded(&plane, &errors[0]);
    plane.array("PEERS", u32::from(FIRST), Peer::default());
    let dropped = by_tunnel(&plane, &errors[0].bytes());
    assert_eq!(dropped.verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::PeerUnreachable), 1);
    // And nobody is told of an error (NAT-11).
    plane.array("TUNNEL", 0, Tunnel::default());
    assert_eq!(plane.out(&errors[0]).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::Unanswerable), 1);
    plane.consistent();
}
