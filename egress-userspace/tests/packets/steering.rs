//! FWD-5: a reply that arrives at the wrong server is sent on to the server that owns its port's slice, or its IPv6
//! sub-range, without a note of any flow; and nothing is sent on twice.
//!
//! What the tunnel does with the packet is a matter for a lab: here the verdict is that it goes there, as it is.

use std::process::Command;

use aya::maps::lpm_trie::Key;
use egress_common::key::{TCP, UDP};
use egress_common::peer::{Owners, Peer, Traffic, Tunnel, mapped};
use egress_common::port::ALL_SLICES;
use egress_common::reason::Reason;
use egress_common::settings::{EgressAddress, Prefixed as _, VERSION_BITS, egress_flag};

use crate::fuzz::{Attach, attach, has_tcx};
use crate::harness::{DataPlane, Hook, Plane, done, eventually};
use crate::loopback::Loopback;
use crate::packet::{ACK, Endpoint, Net as _, Packet, RST, SYN};
use crate::pieces::cut;
use crate::run::{Meta, Outcome, Verdict};
use crate::world::{EGRESS, INSIDE, INSIDE6, ORIGIN, ORIGIN6, RANGE, World, candidate, v6};

/// Slices of this server; the rest are the other's.
const MINE: u32 = 1 << 3 | 1 << 20;
/// A port of the other server, and one of this server's that no flow has.
pub(crate) const THEIRS: u16 = 5 << 11 | 77;
pub(crate) const FREE: u16 = 3 << 11 | 78;
/// The number of the other server.
pub(crate) const OTHER: u16 = 9;
const ROUTER: [u8; 4] = [203, 0, 113, 1];
/// An egress IP of which this server owns nothing.
const ELSEWHERE: [u8; 4] = [198, 51, 100, 77];

/// This server's end of the tunnel.
pub(crate) const END: Tunnel = Tunnel {
    interface: 1,
    uplink: 1,
    own: mapped([10, 9, 0, 1]),
    mtu: 0,
};
/// The other server.
pub(crate) const PEER: Peer = Peer {
    address: mapped([10, 9, 0, 2]),
};

fn owners(slices: u32) -> Owners {
    let mut owners = Owners::default();
    for (slice, owner) in owners.peers.iter_mut().enumerate() {
        *owner = if slices >> slice & 1 == 1 { OTHER } else { 0 };
    }
    owners
}

/// A server that shares its address with another one, which has an address of its own besides.
pub(crate) fn shared() -> Option<DataPlane> {
    let mut plane = DataPlane::of(World::default().with_slices(MINE))?;
    plane.array("TUNNEL", 0, END);
    plane.array("PEERS", u32::from(OTHER), PEER);
    plane.hash("SLICES4", EGRESS, owners(ALL_SLICES & !MINE));
    plane.hash("SLICES4", ELSEWHERE, owners(ALL_SLICES));
    let shared = |flags| EgressAddress {
        flags: flags | egress_flag::SHARED,
        owner: 0,
    };
    plane.hash("EGRESS4", EGRESS, shared(egress_flag::ANSWER));
    plane.hash("EGRESS4", ELSEWHERE, shared(0));
    Some(plane)
}

/// What came through the tunnel.
pub(crate) fn tunnelled() -> Meta {
    Meta {
        mark: done(0xffff_0000),
        summed: true,
        ..Meta::default()
    }
}

/// The packet goes through the tunnel as it came.
#[track_caller]
pub(crate) fn goes(outcome: &Outcome, bytes: &[u8]) {
    assert_eq!(outcome.verdict, Verdict::Redirect);
    assert_eq!(outcome.bytes, bytes);
    // The packet around it is the host's own.
    assert_eq!(outcome.mark, done(0xffff_0000));
}

/// An error about what left from `egress`.
pub(crate) fn about(egress: Endpoint) -> Packet {
    let sent = Packet::udp(egress, ORIGIN, b"what left");
    let mut quote = sent.ip_bytes();
    quote.truncate(<[u8; 4]>::header(&sent, 0).len() + 8);
    Packet::icmp(ROUTER, egress.0, 3, 4, &quote)
}

#[test]
fn fwd_5_a_reply_to_another_servers_port_is_sent_on_and_no_other_one() {
    let Some(plane) = shared() else { return };
    let theirs = [
        Packet::tcp(ORIGIN, (EGRESS, THEIRS), SYN | ACK),
        Packet::tcp(ORIGIN, (EGRESS, THEIRS), RST),
        Packet::udp(ORIGIN, (EGRESS, THEIRS), b"reply"),
        Packet::udp(ORIGIN, (EGRESS, 65_535), b"reply"),
        Packet::udp(ORIGIN, (ELSEWHERE, FREE), b"reply"),
        about((EGRESS, THEIRS)),
        about((ELSEWHERE, FREE)),
    ];
    for packet in &theirs {
        goes(&plane.back(packet), &packet.bytes());
    }
    assert_eq!(plane.all_reasons(), []);
    // Ports below 2048 are nobody's.
    for port in [FREE, 80] {
        let packet = Packet::udp(ORIGIN, (EGRESS, port), b"nobody's");
        plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
    }
    let error = about((EGRESS, FREE));
    plane.dropped(Hook::UplinkIngress, &error, Reason::IcmpError);
    // No flow has come of it.
    assert_eq!(plane.active(EGRESS, ORIGIN, TCP), 0);
    assert_eq!(plane.active(EGRESS, ORIGIN, UDP), 0);
    plane.consistent();
}

#[test]
fn fwd_5_nothing_goes_through_the_tunnel_twice() {
    let Some(plane) = shared() else { return };
    for packet in [
        Packet::tcp(ORIGIN, (EGRESS, THEIRS), SYN | ACK),
        Packet::udp(ORIGIN, (ELSEWHERE, FREE), b"reply"),
        about((EGRESS, THEIRS)),
    ] {
        plane.dropped_with(
            Hook::UplinkIngress,
            &packet,
            tunnelled(),
            Reason::SteeredTwice,
        );
    }
    // What is this server's is as if it had arrived here.
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let reply = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    let outcome = plane.run(Hook::UplinkIngress, &reply, tunnelled());
    assert_eq!((outcome.verdict, outcome.mark), (Verdict::Next, 0));
    assert_eq!(outcome.bytes, reply.sent_to(INSIDE).bytes());
    let free = Packet::udp(ORIGIN, (EGRESS, FREE), b"nobody's");
    plane.dropped_with(Hook::UplinkIngress, &free, tunnelled(), Reason::Unsolicited);
}

#[test]
fn fwd_5_a_flow_on_a_slice_that_went_stays_here() {
    let Some(mut plane) = shared() else { return };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.hash("SLICES4", EGRESS, owners(ALL_SLICES));
    let reply = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    plane.arrives(&reply, INSIDE);
    // Another origin's reply to the same port is of no flow here.
    let other = Packet::tcp((ORIGIN.0, ORIGIN.1 + 1), egress, ACK).numbers(2, 2);
    goes(&plane.back(&other), &other.bytes());
}

#[test]
fn fwd_5_a_tag_of_a_network_does_not_go_along() {
    let Some(plane) = shared() else { return };
    let packet = Packet::udp(ORIGIN, (EGRESS, THEIRS), b"reply");
    let tagged = Packet {
        vlans: vec![42],
        ..packet.clone()
    };
    let outcome = plane.run(Hook::UplinkIngress, &tagged, Meta::default());
    assert_eq!(outcome.verdict, Verdict::Redirect);
}

#[test]
fn fwd_5_without_a_way_there_a_reply_is_dropped() {
    let Some(mut plane) = shared() else { return };
    let packet = Packet::udp(ORIGIN, (EGRESS, THEIRS), b"reply");
    plane.array("PEERS", u32::from(OTHER), Peer::default());
    plane.dropped(Hook::UplinkIngress, &packet, Reason::PeerUnreachable);
    plane.array("PEERS", u32::from(OTHER), PEER);
    plane.array("TUNNEL", 0, Tunnel::default());
    plane.dropped(Hook::UplinkIngress, &packet, Reason::PeerUnreachable);
}

#[test]
fn fwd_5_where_nothing_is_shared_nothing_is_sent_on() {
    let Some(mut plane) = DataPlane::of(World::default().with_slices(MINE)) else {
        return;
    };
    plane.array("TUNNEL", 0, END);
    plane.array("PEERS", u32::from(OTHER), PEER);
    plane.hash("SLICES4", EGRESS, owners(ALL_SLICES & !MINE));
    let packet = Packet::udp(ORIGIN, (EGRESS, THEIRS), b"reply");
    plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
}

/// A datagram in three fragments.
pub(crate) fn pieces(id: u16, to: Endpoint) -> Vec<Vec<u8>> {
    let datagram = Packet {
        id,
        fragment: 0,
        ..Packet::udp(ORIGIN, to, &[0x5a; 2_000])
    };
    cut(&datagram, &[800, 800])
}

#[test]
fn fwd_5_fragments_follow_their_first_one() {
    let Some(plane) = shared() else { return };
    let arrives = |frame: &[u8], meta| plane.try_bytes(Hook::UplinkIngress, frame, meta).unwrap();
    for frame in pieces(1, (EGRESS, THEIRS)) {
        goes(&arrives(&frame, Meta::default()), &frame);
    }
    assert_eq!(plane.all_reasons(), []);
    let frames = pieces(2, (EGRESS, THEIRS));
    assert_eq!(arrives(&frames[0], tunnelled()).verdict, Verdict::Drop);
    assert_eq!(plane.reason(Reason::SteeredTwice), 1);
}

/// Number of an interface that takes what is sent by it: one end of a pair.
fn sink() -> u32 {
    let add = "link add sink0 type veth peer name sink1";
    for words in [add, "link set sink0 up", "link set sink1 up"] {
        let status = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}: {status}");
    }
    // SAFETY: a name with its terminating zero.
    let index = unsafe { libc::if_nametoindex(c"sink0".as_ptr()) };
    assert_ne!(index, 0);
    index
}

#[test]
fn fwd_5_fragments_that_came_first_follow_too_unless_they_came_through_the_tunnel() {
    if !has_tcx("fwd_5_fragments_that_came_first_follow_too") {
        return;
    }
    let Some(mut plane) = shared() else { return };
    let _loopback = Loopback::watch();
    let interface = sink();
    plane.array("TUNNEL", 0, Tunnel { interface, ..END });
    // What is handed back to the uplink meets the program there.
    let _attached = attach(plane.descriptor(Hook::UplinkIngress), 1, Attach::Ingress);
    let arrives = |frame: &[u8], meta| plane.try_bytes(Hook::UplinkIngress, frame, meta).unwrap();
    let frames = pieces(3, (EGRESS, THEIRS));
    // Two are held; one of them would go through the tunnel a second time.
    for (frame, meta) in [(&frames[2], Meta::default()), (&frames[1], tunnelled())] {
        let outcome = arrives(frame, meta);
        assert_eq!((outcome.verdict, outcome.mark), (Verdict::Redirect, 0));
    }
    assert_eq!(plane.all_reasons(), [], "both are held");
    arrives(&frames[0], Meta::default());
    eventually("what came through the tunnel is dropped", || {
        plane.reason(Reason::SteeredTwice) == 1
    });
    let sent = || -> u64 {
        let all = plane.per_cpu::<Traffic>("PEER_TRAFFIC", OTHER.into());
        all.iter().map(|one| one.sent_packets).sum()
    };
    eventually("the first one and the other one go", || sent() == 2);
    assert_eq!(plane.all_reasons(), [(Reason::SteeredTwice, 1)]);
}

#[test]
fn fwd_5_an_ipv6_address_says_by_itself_whose_it_is() {
    let world = World {
        pools: vec![(crate::world::POOL, vec![candidate(EGRESS)])],
        ..World::default()
    };
    // This server's part of the range, and the other's.
    let mut theirs = RANGE;
    theirs[9] = 2;
    let mut mine = RANGE;
    mine[9] = 1;
    let Some(mut plane) = Plane::<[u8; 16]>::of(world.with_ranges(&[(mine, 80)])) else {
        return;
    };
    plane.array("TUNNEL", 0, END);
    plane.array("PEERS", u32::from(OTHER), PEER);
    let key = Key::new(VERSION_BITS + 80, <[u8; 16]>::data(0, theirs));
    let value = EgressAddress {
        flags: egress_flag::SHARED,
        owner: OTHER.into(),
    };
    plane.prefix("EGRESS6", &key, value);
    let mut host = theirs;
    host[15] = 7;
    for packet in [
        Packet::tcp(ORIGIN6, (host, 1), SYN | ACK),
        Packet::udp(ORIGIN6, (host, THEIRS), b"reply"),
    ] {
        goes(&plane.back(&packet), &packet.bytes());
        plane.dropped_with(
            Hook::UplinkIngress,
            &packet,
            tunnelled(),
            Reason::SteeredTwice,
        );
    }
    let sent = Packet::udp((host, 40_000), ORIGIN6, b"what left");
    let error = Packet::icmp(v6(0xcc, 1), host, 1, 4, &sent.ip_bytes());
    goes(&plane.back(&error), &error.bytes());
    let mut own = mine;
    own[15] = 9;
    let packet = Packet::udp(ORIGIN6, (own, 40_000), b"nobody's");
    plane.dropped(Hook::UplinkIngress, &packet, Reason::Unsolicited);
    let egress = plane.establish(INSIDE6, ORIGIN6, (1, 1));
    assert_eq!(egress.0[..10], mine[..10]);
    // Nobody inside claims another server's address either (SAFE-6).
    let forged = Packet::udp((host, 40_000), ORIGIN6, b"forged");
    plane.dropped(Hook::UplinkEgress, &forged, Reason::ClaimsEgressIp);
}

#[test]
fn fwd_6_what_no_known_server_sends_is_dropped() {
    let Some(plane) = shared() else { return };
    // Not a tunnel's packet at all; whose it is if it is one, the lab shows.
    let packet = Packet::tcp(ORIGIN, (EGRESS, FREE), SYN);
    plane.dropped(Hook::TunnelIngress, &packet, Reason::TunnelStranger);
}
