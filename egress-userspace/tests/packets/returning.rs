//! NAT-5: a reply that another server is to get, and that does not fit the tunnel where nobody cuts it: the origin is told
//! from the egress IP what does, of the packet as the origin has sent it; what nobody can be told of is counted.

use aya::Pod;
use aya::maps::lpm_trie::Key;
use egress_common::count::Count;
use egress_common::key::{OriginKey, TCP, UDP, realm};
use egress_common::peer::Tunnel;
use egress_common::reason::Reason;
use egress_common::settings::{EgressAddress, Prefixed as _, VERSION_BITS, egress_flag};
use egress_common::slot::{Slot, flag};

use crate::family::Family;
use crate::forwarding::{ROOM, SIX, over_ipv6, sent_to, with_mtu};
use crate::harness::{DataPlane, Hook, Plane, done};
use crate::packet::{ACK, Body, Endpoint, Net, Packet};
use crate::pieces::cut;
use crate::run::{Meta, Outcome, Verdict};
use crate::steering::{END, OTHER, PEER, THEIRS, about, goes, shared, tunnelled};
use crate::world::{EGRESS, INSIDE, ORIGIN, ORIGIN6, POOL, RANGE, World, candidate};

const MASK: u32 = 0xffff_0000;

/// Type and code of "too big", and the four bytes that say how long a packet may be.
trait Big: Net {
    const BIG: (u8, u8);
}

impl Big for [u8; 4] {
    const BIG: (u8, u8) = (3, 4);
}

impl Big for [u8; 16] {
    const BIG: (u8, u8) = (2, 0);
}

/// A packet of `length` bytes, headers of `around` bytes included.
fn long<A: Net>(packet: Packet<A>, length: usize) -> Packet<A> {
    let around = packet.ip_bytes().len();
    packet.payload(&vec![7; length - around])
}

/// The packet has become the answer to its sender: what fits, and the beginning of the packet as it came.
#[track_caller]
fn told<A: Big>(outcome: &Outcome, packet: &Packet<A>, room: u32) {
    assert_eq!(outcome.verdict, Verdict::Redirect, "{packet:?}");
    assert_eq!(outcome.mark, done(MASK), "it leaves from an egress IP");
    let answer = Packet::<A>::read(&outcome.bytes);
    assert_eq!(
        (answer.source, answer.destination),
        (packet.destination, packet.source)
    );
    assert_eq!((answer.protocol, answer.ttl), (A::ICMP, 64));
    let whole = packet.ip_bytes();
    let Body::Icmp(kind, code, length, quote) = answer.body else {
        panic!("{answer:?}")
    };
    assert_eq!((kind, code), A::BIG);
    assert_eq!(u32::from_be_bytes(length), room);
    let headers = whole.len() - transport_length(packet);
    assert_eq!(quote, whole[..headers + 8]);
}

fn transport_length<A: Net>(packet: &Packet<A>) -> usize {
    let header = match &packet.body {
        Body::Tcp(tcp) => 20 + tcp.options.len(),
        _ => 8,
    };
    header + packet.payload_length()
}

/// A frame arrives from the origin.
fn arrives<A: Family>(plane: &Plane<A>, bytes: &[u8], segments: (u32, u32)) -> Outcome
where
    Slot<A>: Pod,
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    let meta = Meta {
        segments,
        ..Meta::default()
    };
    plane.try_bytes(Hook::UplinkIngress, bytes, meta).unwrap()
}

fn end(mtu: u32) -> Tunnel {
    Tunnel {
        interface: END.interface,
        uplink: END.uplink,
        ..over_ipv6(mtu)
    }
}

#[test]
fn nat_5_the_origin_is_told_what_fits_where_its_reply_is_sent_on() {
    let Some(mut plane) = shared() else { return };
    plane.array("TUNNEL", 0, end(ROOM));
    plane.array("PEERS", u32::from(OTHER), SIX);
    let room = ROOM as usize;
    let to: Endpoint = (EGRESS, THEIRS);
    let (tcp, udp) = (Packet::tcp(ORIGIN, to, ACK), Packet::udp(ORIGIN, to, b""));
    let with_options = tcp.clone().with_options(&[1; 12]);
    for packet in [&tcp, &udp, &with_options] {
        let fits = long(packet.clone(), room);
        goes(&arrives(&plane, &fits.bytes(), (0, 0)), &fits.bytes());
    }
    let fits = long(tcp.clone(), 40 + 2 * (room - 40));
    let segments = (2, ROOM - 40);
    goes(&arrives(&plane, &fits.bytes(), segments), &fits.bytes());
    assert_eq!(plane.all_reasons(), []);
    let before = sent_to(&plane, OTHER);
    let may_be_cut = |packet: Packet| Packet {
        fragment: 0,
        ..packet
    };
    let too_long = [
        (long(tcp.clone(), room + 1), (0, 0)),
        (long(udp.clone(), room + 1), (0, 0)),
        (long(with_options, 1_500), (0, 0)),
        (may_be_cut(long(tcp.clone(), 1_500)), (0, 0)),
        (may_be_cut(long(udp.clone(), 1_500)), (0, 0)),
        (long(tcp.clone(), 40 + 2 * (room - 39)), (2, ROOM - 39)),
    ];
    for (packet, segments) in &too_long {
        told(&arrives(&plane, &packet.bytes(), *segments), packet, ROOM);
    }
    assert_eq!(
        plane.all_reasons(),
        [(Reason::PathTooLong, too_long.len() as u64)]
    );
    // Fragments: the first one says it for all, and later ones that are too long go nowhere.
    let datagram = may_be_cut(long(udp.clone(), 4_000));
    let frames = cut(&datagram, &[1_480, 1_480]);
    let answer = arrives(&plane, &frames[0], (0, 0));
    let answer = Packet::read(&answer.bytes);
    assert_eq!((answer.source, answer.destination), (EGRESS, ORIGIN.0));
    assert_eq!(arrives(&plane, &frames[1], (0, 0)).verdict, Verdict::Drop);
    goes(&arrives(&plane, &frames[2], (0, 0)), &frames[2]);
    // An error is not answered.
    let mut error = about(to);
    error = error
        .clone()
        .payload(&[&error.ip_bytes()[28..], &[0; 1_500]].concat());
    assert_eq!(
        arrives(&plane, &error.bytes(), (0, 0)).verdict,
        Verdict::Drop
    );
    assert_eq!(plane.reason(Reason::ForwardedTooLong), 2);
    assert_eq!(plane.reason(Reason::PathTooLong), 1 + too_long.len() as u64);
    assert_eq!(sent_to(&plane, OTHER), before + 1);
    // What came through the tunnel is not sent on, and nobody is told of it.
    let packet = long(tcp.clone(), 1_500);
    plane.dropped_with(
        Hook::UplinkIngress,
        &packet,
        tunnelled(),
        Reason::SteeredTwice,
    );
    // The packet around it is cut over IPv4.
    plane.array("TUNNEL", 0, with_mtu(ROOM));
    plane.array("PEERS", u32::from(OTHER), PEER);
    goes(&arrives(&plane, &packet.bytes(), (0, 0)), &packet.bytes());
    // No more often than answers are made at all (NAT-11).
    plane.array("TUNNEL", 0, end(ROOM));
    plane.no_more_replies();
    plane.dropped(Hook::UplinkIngress, &packet, Reason::ReplyLimited);
}

#[test]
fn nat_5_an_ipv6_origin_is_told_too_but_of_nothing_below_what_every_link_takes() {
    let world = World {
        pools: vec![(POOL, vec![candidate(EGRESS)])],
        ..World::default()
    };
    let mut theirs = RANGE;
    theirs[9] = 2;
    let Some(mut plane) = Plane::<[u8; 16]>::of(world.with_ranges(&[(RANGE, 80)])) else {
        return;
    };
    plane.array("PEERS", u32::from(OTHER), SIX);
    let key = Key::new(VERSION_BITS + 80, <[u8; 16]>::data(0, theirs));
    let value = EgressAddress {
        flags: egress_flag::SHARED,
        owner: OTHER.into(),
    };
    plane.prefix("EGRESS6", &key, value);
    theirs[15] = 7;
    let to = (theirs, THEIRS);
    plane.array("TUNNEL", 0, end(ROOM));
    let (tcp, udp) = (Packet::tcp(ORIGIN6, to, ACK), Packet::udp(ORIGIN6, to, b""));
    for packet in [&tcp, &udp] {
        let fits = long(packet.clone(), ROOM as usize);
        goes(&arrives(&plane, &fits.bytes(), (0, 0)), &fits.bytes());
        let too_long = long(packet.clone(), ROOM as usize + 1);
        told(&arrives(&plane, &too_long.bytes(), (0, 0)), &too_long, ROOM);
    }
    assert_eq!(plane.all_reasons(), [(Reason::PathTooLong, 2)]);
    // Behind options, and the first fragment of a datagram.
    let options = Packet {
        options: vec![60, 6, 0, 1, 4, 0, 0, 0, 0],
        ..tcp.clone()
    };
    let options = long(options, 1_500);
    told(&arrives(&plane, &options.bytes(), (0, 0)), &options, ROOM);
    // RFC 8200, section 5: nobody believes it.
    plane.array("TUNNEL", 0, end(1_279));
    let packet = long(tcp, 1_280);
    plane.dropped(Hook::UplinkIngress, &packet, Reason::ForwardedTooLong);
    plane.array("TUNNEL", 0, end(1_280));
    goes(&arrives(&plane, &packet.bytes(), (0, 0)), &packet.bytes());
}

#[test]
fn nat_5_the_origin_is_told_what_fits_where_its_reply_goes_back_to_who_forwarded_it() {
    let Some(mut plane) = DataPlane::of(World::default()) else {
        return;
    };
    plane.array("TUNNEL", 0, end(ROOM));
    plane.array("PEERS", u32::from(OTHER), SIX);
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.out(&Packet::udp(INSIDE, ORIGIN, b"question"));
    // Both flows are another server's.
    let mut ports = [0; 2];
    for (protocol, port) in [TCP, UDP].into_iter().zip(&mut ports) {
        let index = plane.index(INSIDE, ORIGIN, protocol).unwrap();
        let mut slot = plane.slot(INSIDE, ORIGIN, protocol).unwrap();
        slot.flags |= flag::VISITOR;
        slot.flow.realm = realm::of_peer(OTHER.into());
        *port = slot.egress_port;
        plane.overwrite(index, slot);
    }
    let udp = Packet::udp(ORIGIN, (egress.0, ports[1]), b"");
    let tcp = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    for packet in [&tcp, &udp] {
        let fits = long(packet.clone(), ROOM as usize);
        let expected = fits.clone().sent_to(INSIDE).bytes();
        goes(&arrives(&plane, &fits.bytes(), (0, 0)), &expected);
        let too_long = long(packet.clone(), ROOM as usize + 1);
        told(&arrives(&plane, &too_long.bytes(), (0, 0)), &too_long, ROOM);
    }
    assert_eq!(plane.all_reasons(), [(Reason::PathTooLong, 2)]);
    assert_eq!(sent_to(&plane, OTHER), 2);
    // Fragments: as above.
    let packet = Packet {
        fragment: 0,
        id: 9,
        ..long(udp, 4_000)
    };
    let frames = cut(&packet, &[1_480, 1_480]);
    arrives(&plane, &frames[0], (0, 0));
    assert_eq!(plane.reason(Reason::PathTooLong), 3);
    assert_eq!(arrives(&plane, &frames[1], (0, 0)).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::ForwardedTooLong), 1);
    assert_eq!(
        arrives(&plane, &frames[2], (0, 0)).verdict,
        Verdict::Redirect
    );
    assert_eq!(sent_to(&plane, OTHER), 3);
}
