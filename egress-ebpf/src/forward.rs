//! New connections of a pool that this server owns nothing of go to a server that does (FWD-2): tc egress of the
//! tunnel. `uplink_egress` has decided whose a packet is and hands it over with its zone in the mark ([`hand_over`]).
//!
//! Nothing is translated here. The flow gets a slot like any other, so that its server stays the same while it lives
//! (FWD-4), and it is swept, listed and ended like any other; in place of an egress IP stands its inside endpoint,
//! and it is counted by server, not by origin.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::programs::TcContext;
use egress_common::family::{ETHERTYPE_IPV4, V4};
use egress_common::icmp;
use egress_common::key::{TCP, realm};
use egress_common::packet::{Fragment, Options, control};
use egress_common::peer::{GOING_ON, Peer};
use egress_common::reason::Reason;
use egress_common::settings::zone_flag;
use egress_common::share::Forward;
use egress_common::slot::{flag, server_and_exit};
use egress_common::tag::Tag;
use egress_common::tcp::Way;

use crate::allocate;
use crate::classify::Configuration;
use crate::family::Family;
use crate::flow::{self, Arrival, Found};
use crate::fragment::{self, Fragmented};
use crate::frame::Frame;
use crate::held::Release;
use crate::maps::{DEVICES, FORWARDS, PEERS};
use crate::outgoing::{Outgoing, next};
use crate::policy::{self, Policed};
use crate::uplink::{self, Live};
use crate::{globals, link, mss, options, refuse, report, slots, steer, too_long, verdict};

/// Hands a packet over to the tunnel's program, whole and as it is; or says why it is refused.
#[inline(never)]
pub fn hand_over<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let Some(tunnel) = steer::tunnel() else {
        packet.reason = nobodys::<A>();
        return next::REFUSE;
    };
    if packet.key.realm != realm::COMMON {
        packet.reason = Reason::ForwardedRealm;
        return next::REFUSE;
    }
    if steer::link_layer(ctx, packet.ip.network()).is_none() {
        return report::drop(ctx, Reason::Malformed);
    }
    verdict::set_tag(ctx, Tag::Zone(packet.zone as u16));
    // SAFETY: the helper takes an interface and no flags: its way out.
    unsafe { bpf_redirect(tunnel.interface, 0) as i32 }
}

/// Why nobody takes a new flow that this server has no address for.
#[inline(always)]
fn nobodys<A: Family>() -> Reason {
    if flow::lapsed::<A>() {
        Reason::Lapsed
    } else {
        Reason::NoAddress
    }
}

/// What leaves by the tunnel.
pub fn run(ctx: &TcContext) -> i32 {
    // What says where it goes was aimed already. The interface itself drops what does not.
    let Tag::Zone(zone) = globals::tag_field().read(verdict::mark(ctx)) else {
        return verdict::NEXT;
    };
    match link::network(ctx) {
        Some(network) if network.ethertype == ETHERTYPE_IPV4 => packet(ctx, network.offset, zone),
        _ => report::drop(ctx, Reason::Malformed),
    }
}

/// A packet of a zone.
#[inline(always)]
fn packet(ctx: &TcContext, offset: usize, zone: u16) -> i32 {
    let Some(packet) = Outgoing::<V4>::scratch() else {
        return report::drop(ctx, Reason::Contended);
    };
    let mut step = read(ctx, packet, offset, zone);
    if step == next::LATER {
        step = later(ctx, packet);
    }
    if step == next::MESSAGE {
        step = message(ctx, packet);
    }
    if step == next::KNOWN {
        step = known(ctx, packet);
    }
    if step == next::CLASSIFY {
        step = first(ctx, packet);
    }
    if step == next::ADMIT {
        step = allocate::pin(ctx, packet);
    }
    let room = steer::room();
    // What may be cut goes on: what is around it is cut where it must be, unless that is IPv6.
    let limit = steer::limit();
    if limit != 0 && packet.ip.length > limit && step == next::FORWARD {
        return report::drop(ctx, Reason::ForwardedTooLong);
    }
    if step == next::LEAVE && room != 0 && too_long::is(ctx, &packet.ip, room, limit == 0) {
        return match too_long::answer(ctx, &packet.ip, room) {
            refuse::ANSWERED => hand_back(ctx),
            verdict => verdict,
        };
    }
    if step == next::LEAVE && packet.is_first() {
        step = fragment::out::first(ctx, packet);
    }
    if step == next::LEAVE {
        step = leave(ctx, packet);
    }
    if step == next::FORWARD {
        step = send(ctx, packet);
        if step == verdict::NEXT && packet.is_first() {
            return followed(ctx);
        }
        return step;
    }
    if step == next::REFUSE {
        return match refuse::answer(ctx, packet) {
            refuse::ANSWERED => hand_back(ctx),
            verdict => verdict,
        };
    }
    step
}

/// Reads the packet's headers.
#[inline(never)]
fn read<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>, offset: usize, zone: u16) -> i32 {
    let Ok(ip) = A::ip(ctx, &Frame::now(ctx), offset) else {
        return report::drop(ctx, Reason::Malformed);
    };
    let Some(configuration) = Configuration::now() else {
        return report::drop(ctx, Reason::Blocked);
    };
    packet.begin(ip, &configuration, Tag::Zone(zone));
    packet.zone = zone as u32;
    packet.redirect = false;
    if packet.key.realm != realm::COMMON {
        return report::drop(ctx, Reason::Malformed);
    }
    if packet.is_fragment() && !packet.has_ports() {
        return next::LATER;
    }
    if packet.ip.protocol == A::ICMP && matches!(packet.ip.fragment, Fragment::Whole) {
        return next::MESSAGE;
    }
    if !packet.has_ports()
        || packet.read_transport(&Frame::now(ctx)).is_err()
        // The flow is found again by it, and no port is port 0.
        || packet.key.inside_port == 0
    {
        return report::drop(ctx, Reason::Malformed);
    }
    next::KNOWN
}

/// A packet that may belong to a flow.
#[inline(never)]
fn known<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let Some(found) = flow::outgoing(&packet.key) else {
        return next::CLASSIFY;
    };
    packet.slot = found.index;
    let anew = match uplink::live(packet, &found) {
        Live::Forward if is_reached(&found) => return next::LEAVE,
        // Its server is gone, and with it what the origin sees. TCP is told; UDP begins anew.
        Live::Forward => packet.ip.protocol != TCP || packet.segment.opens(),
        Live::Anew => true,
        Live::Over => false,
        // Another packet of these endpoints was admitted here meanwhile: the next one will leave.
        Live::Translate => return report::drop(ctx, Reason::Contended),
    };
    if !anew {
        packet.reason = Reason::NoFlow;
        return next::REFUSE;
    }
    if slots::supersede(&found, slots::now()) {
        next::CLASSIFY
    } else {
        report::drop(ctx, Reason::Contended)
    }
}

/// A later fragment, of the flow that `uplink_egress` has found a moment ago. It opens nothing.
#[inline(never)]
fn later<A: Fragmented>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let found = if fragment::is_noted(ctx, &packet.ip) {
        fragment::flow::<A>()
    } else {
        None
    };
    let Some(found) = found else {
        return report::drop(ctx, Reason::Contended);
    };
    flow::count(ctx, found.slot, Way::Out, packet.ip.length);
    follow(ctx, packet, &found)
}

/// An ICMP error about what a flow was sent; its server judges it.
#[inline(never)]
fn message<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let ip = &packet.ip;
    let frame = Frame::quotes(ctx);
    let error = icmp::read::<A>(&frame, ip.network_at, ip.transport_at, ip.payload());
    let Some(found) = error.and_then(|error| flow::outgoing(&error.received(realm::COMMON))) else {
        return report::drop(ctx, Reason::IcmpError);
    };
    follow(ctx, packet, &found)
}

/// Sends the packet where its flow goes, under an id that opens nothing there.
#[inline(always)]
fn follow<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>, found: &Found<A>) -> i32 {
    if !found.word.has(flag::FORWARDED) || found.word.has(flag::EXPIRED) {
        return report::drop(ctx, Reason::Contended);
    }
    // SAFETY: a live map value that was checked to be this packet's.
    let (number, _) = server_and_exit(unsafe { (*found.slot).interface });
    packet.peer = number;
    packet.target = GOING_ON;
    next::FORWARD
}

/// Whether the flow's server is still one that is known.
#[inline(always)]
fn is_reached<A: Family>(found: &Found<A>) -> bool {
    // SAFETY: a live map value that was checked to be this packet's.
    let (number, _) = server_and_exit(unsafe { (*found.slot).interface });
    PEERS
        .get(number)
        .is_some_and(|peer| *peer != Peer::default())
}

/// A packet without a flow: which server is to translate it?
#[inline(never)]
fn first<A: Family + Policed>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let Some(configuration) = Configuration::of(packet.version) else {
        return report::drop(ctx, Reason::Blocked);
    };
    let zone = configuration
        .zone(packet.zone)
        .filter(|zone| zone.flags & zone_flag::ENABLED != 0);
    let Some(zone) = zone else {
        return report::drop(ctx, Reason::Blocked);
    };
    packet.pool = zone.pool;
    packet.exit = zone.exit;
    packet.only = 0;
    packet.policy = 0;
    packet.options = Options::default();
    if packet.ip.protocol == TCP {
        if !packet.segment.opens() {
            packet.reason = Reason::NoFlow;
            return next::REFUSE;
        }
        packet.options = options::read(
            ctx,
            packet.ip.transport_at as u32,
            packet.segment.header as u32,
        );
    }
    // The uplink's program asked all this a moment ago, or it met a flow that has ended since. If the answer is
    // another one by now, the next packet gets it there (SAFE-1).
    if uplink::exempt(packet, &configuration, &zone, packet.key.origin_port) {
        return report::drop(ctx, Reason::Contended);
    }
    let decided = policy::decide(&configuration, packet);
    if decided != next::FORWARD && (decided != next::ADMIT || packet.only != 0) {
        return report::drop(ctx, Reason::Contended);
    }
    let forward = forward(packet.pool, packet.exit);
    packet.peer = forward.map_or(0, |forward| forward.peer(packet.key.inside));
    if packet.peer == 0 {
        packet.reason = nobodys::<V4>();
        return next::REFUSE;
    }
    packet.kind = flag::FORWARDED;
    next::ADMIT
}

/// Where the new connections of a pool, or of an exit, go.
#[inline(always)]
fn forward(pool: u32, exit: u32) -> Option<&'static Forward> {
    // SAFETY: the daemon replaces values as a whole.
    unsafe { FORWARDS.get(if exit == 0 { pool } else { exit }) }
}

/// Advances the flow, and notes where the packet goes.
#[inline(never)]
fn leave<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let Some(found) = flow::at::<A>(packet.slot) else {
        return report::drop(ctx, Reason::Contended);
    };
    // SAFETY: a live map value that was checked to be this packet's.
    let (interface, pool) = unsafe { ((*found.slot).interface, (*found.slot).pool) };
    let (number, exit) = server_and_exit(interface);
    if !found.word.has(flag::FORWARDED) {
        // Another CPU has admitted the same flow otherwise.
        return report::drop(ctx, Reason::PeerUnreachable);
    }
    packet.peer = number;
    // A pool that is gone takes no live flow along (POOL-9).
    packet.target = forward(pool as u32, exit).map_or(GOING_ON, |forward| forward.target);
    if packet.ip.protocol == TCP
        && packet.segment.has(control::SYN)
        && !mss::fit(
            ctx,
            packet.ip.transport_at as u32,
            packet.segment.header as u32,
        )
    {
        return report::drop(ctx, Reason::Malformed);
    }
    let frame = Frame::now(ctx);
    flow::advance_by(
        ctx,
        &found,
        &Arrival {
            way: Way::Out,
            protocol: packet.ip.protocol,
            segment: &packet.segment,
            transport: packet.ip.transport(),
            length: packet.ip.length,
            frame: &frame,
        },
    );
    next::FORWARD
}

/// Sends the packet to its server. Not a part of [`leave`], because the stacks of both would be too much.
#[inline(never)]
fn send<A>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    if !steer::aim_at(ctx, packet.peer, packet.target) {
        return report::drop(ctx, Reason::PeerUnreachable);
    }
    // The packet around it is this host's own, and no zone's.
    verdict::done(ctx)
}

/// The fragments that waited for this one, which is aimed, follow it.
#[inline(never)]
fn followed(ctx: &TcContext) -> i32 {
    let Some(work) = V4::work() else {
        return report::drop(ctx, Reason::Contended);
    };
    // SAFETY: this CPU's own record, and nobody else's until the first copy is sent.
    let work = unsafe { &*work };
    if work.held == 0 {
        return verdict::NEXT;
    }
    Release::new(ctx, work, 0)
        .through_tunnel(steer::limit())
        .run(ctx)
}

/// Sends an answer of ours back to where the packet came from, as if it had arrived on the uplink.
#[inline(always)]
fn hand_back(ctx: &TcContext) -> i32 {
    let Some(tunnel) = steer::tunnel() else {
        return report::drop(ctx, Reason::Unanswerable);
    };
    // The user's mark was meant for the way out; the way back is routed like the origin's packets.
    verdict::set_mark(ctx, 0);
    to_uplink(ctx, tunnel.uplink).unwrap_or_else(|()| report::drop(ctx, Reason::Unanswerable))
}

/// Puts a frame on the way in of an uplink, addressed to it.
#[inline(always)]
pub fn to_uplink(ctx: &TcContext, uplink: u32) -> Result<i32, ()> {
    let device = DEVICES.get_ptr(uplink).ok_or(())?;
    let to = Frame::now(ctx).at::<6>(0).ok_or(())?;
    // SAFETY: a map value that the daemon replaces as a whole; checked to lie within the packet.
    unsafe { *to = (*device).mac };
    // SAFETY: the helper takes an interface: its way in.
    Ok(unsafe { bpf_redirect(uplink, BPF_F_INGRESS as u64) as i32 })
}
