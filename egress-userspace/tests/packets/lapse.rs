//! CLU-3, `takeover_after`: once a server's slices may be others', its data plane uses none of them, with or without a daemon.

use egress_common::family::V6;
use egress_common::key::{TCP, UDP};
use egress_common::reason::Reason;
use egress_common::settings::Switch;
use egress_common::slot::State;

use crate::forwarding::{FIRST, among_others, forwarded, sent_to};
use crate::harness::{DataPlane, Hook, Plane};
use crate::packet::{ACK, Endpoint, Packet, RST, SYN};
use crate::pieces::cut;
use crate::run::{Meta, Verdict};
use crate::world::{EGRESS, INSIDE, ORIGIN, SECOND, World};

/// The clock that also counts while the machine sleeps.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes the structure it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec as u64 * SECOND + time.tv_nsec as u64
}

fn lapse(lapse: u64) -> Switch {
    Switch {
        lapse,
        ..Switch::default()
    }
}

#[test]
fn clu_3_what_may_be_anothers_is_not_used() {
    let Some(mut plane) = DataPlane::of(World::default()) else {
        return;
    };
    let (other, third) = ((INSIDE.0, 41_000), (INSIDE.0, 42_000));
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    let datagram = Packet::udp(other, ORIGIN, &[7; 64]);
    let sent = plane.leaves(&datagram);
    let frames = cut(&datagram, &[40]);

    // In good time.
    plane.array("SWITCH", 0, lapse(now() + 3_600 * SECOND));
    let late = || Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2);
    assert_eq!(plane.leaves(&late()), egress);
    let outcome = plane.try_bytes(Hook::UplinkEgress, &frames[0], Meta::default());
    assert_eq!(outcome.unwrap().verdict, Verdict::Next);

    plane.array("SWITCH", 0, lapse(now()));
    // Live connections: the inside is told, and the origin hears nothing.
    assert_eq!(plane.answered(&late()).segment().control, RST);
    assert_eq!(plane.reason(Reason::Lapsed), 1);
    let reply = Packet::tcp(ORIGIN, egress, ACK).numbers(2, 2);
    plane.dropped(Hook::UplinkIngress, &reply, Reason::Unsolicited);
    plane.dropped(
        Hook::UplinkIngress,
        &Packet::udp(ORIGIN, sent, b"reply"),
        Reason::Unsolicited,
    );
    // The rest of a datagram whose beginning has left.
    let outcome = plane.try_bytes(Hook::UplinkEgress, &frames[1], Meta::default());
    assert_ne!(outcome.unwrap().verdict, Verdict::Next);
    // New ones.
    let syn = Packet::tcp(third, ORIGIN, SYN).numbers(1, 0);
    assert_eq!(plane.answered(&syn).segment().control, RST | ACK);
    assert_eq!(plane.reason(Reason::Lapsed), 2);
    assert_eq!(plane.out(&datagram).verdict, Verdict::Redirect);
    assert_eq!(plane.reason(Reason::Lapsed), 3);

    // Nobody has taken anything, and etcd says so: it goes on where it was.
    plane.array("SWITCH", 0, lapse(now() + 3_600 * SECOND));
    assert_eq!(plane.leaves(&late()), egress);
    plane.arrives(&reply, INSIDE);
    // That one went on in vain: it is another flow by now.
    let again = plane.leaves(&datagram);
    assert_eq!((again.0, again == sent), (EGRESS, false));
    plane.array("SWITCH", 0, lapse(0));
    assert_eq!(plane.leaves(&late()), egress);
    assert_eq!(
        plane.state(INSIDE, ORIGIN, TCP),
        Some(State::TcpEstablished)
    );
    plane.consistent();
}

/// Where [`lapses_with_flows`] has its datagrams from.
const OTHER: Endpoint = (INSIDE.0, 41_000);

/// A connection and a flow of datagrams live while the time comes; then the same endpoints begin anew.
fn lapses_with_flows(plane: &mut DataPlane) -> (Packet, Packet) {
    plane.establish(INSIDE, ORIGIN, (1, 1));
    let datagram = Packet::udp(OTHER, ORIGIN, &[7; 64]);
    plane.leaves(&datagram);
    plane.array("SWITCH", 0, lapse(now()));
    let syn = Packet::tcp(INSIDE, ORIGIN, SYN).numbers(9, 0);
    (syn, datagram)
}

/// The inside uses its ports again: what it opens is a new flow, also where the old one is kept.
#[test]
fn clu_3_an_old_flow_that_is_not_used_is_in_nobodys_way() {
    let Some(mut plane) = DataPlane::of(World::default()) else {
        return;
    };
    let (syn, datagram) = lapses_with_flows(&mut plane);
    assert_eq!(plane.answered(&syn).segment().control, RST | ACK);
    assert_eq!(plane.out(&datagram).verdict, Verdict::Redirect);
    assert_eq!(plane.reason(Reason::Lapsed), 2);
    // Its own again: nothing of the old ones is left, and no port of theirs is used soon.
    plane.array("SWITCH", 0, lapse(0));
    assert_eq!(plane.state(INSIDE, ORIGIN, TCP), None);
    assert_eq!(plane.state(OTHER, ORIGIN, UDP), None);
    plane.leaves(&syn);
    plane.leaves(&datagram);
    plane.consistent();
}

/// Who is there takes what this server uses nothing for, and each flow has one place.
#[test]
fn clu_3_others_take_what_is_new_also_between_the_same_endpoints() {
    let Some(mut plane) = among_others(World::default()) else {
        return;
    };
    let (syn, datagram) = lapses_with_flows(&mut plane);
    for packet in [&syn, &datagram, &datagram, &syn, &datagram] {
        forwarded(&plane, packet);
    }
    assert_eq!(sent_to(&plane, FIRST), 5);
    plane.consistent();
}

/// What was configured meanwhile holds for new flows: no packet of an old one leaves otherwise than it did.
#[test]
fn safe_1_a_flow_that_is_not_used_does_not_take_the_default_egress() {
    let Some(mut plane) = DataPlane::of(World::default()) else {
        return;
    };
    plane.establish(INSIDE, ORIGIN, (1, 1));
    plane.exempt_port(ORIGIN);
    let late = || Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2);
    plane.leaves(&late());
    plane.array("SWITCH", 0, lapse(now()));
    assert_eq!(plane.answered(&late()).segment().control, RST);
    assert_eq!(plane.reason(Reason::Lapsed), 1);
    let other = Packet::tcp((INSIDE.0, 41_000), ORIGIN, SYN);
    assert_eq!(plane.out(&other).verdict, Verdict::Next, "exempt");
    plane.consistent();
}

#[test]
fn clu_3_ranges_of_ipv6_are_nobody_elses_whatever_lapses() {
    let Some(mut plane) = Plane::<V6>::of(World::default()) else {
        return;
    };
    plane.array("SWITCH", 0, lapse(1));
    let twin = |(address, port): ([u8; 4], u16)| (crate::family::v6_of(address), port);
    plane.establish(twin(INSIDE), twin(ORIGIN), (1, 1));
    plane.consistent();
}
