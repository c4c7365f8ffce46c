//! Connections that another server sends here to be translated (FWD-2): the tunnel's way in. The tunnel id names the
//! pool, so nothing is classified; the sender is the realm of their inside addresses, so two servers whose insides use
//! the same ones do not mix. What is not translated here is refused: nothing is forwarded twice.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::{bpf_check_mtu, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
use egress_common::family::V4;
use egress_common::key::{TCP, realm};
use egress_common::packet::{Fragment, Options};
use egress_common::peer::{GOING_ON, RETURN};
use egress_common::reason::Reason;
use egress_common::share::Target;
use egress_common::slot::flag;
use egress_common::tag::Tag;

use crate::allocate;
use crate::classify::Configuration;
use crate::family::Family;
use crate::fragment::{self, Fragmented};
use crate::frame::Frame;
use crate::held::Release;
use crate::icmp::{self, Leaving};
use crate::maps::TARGETS;
use crate::outgoing::{Outgoing, next};
use crate::{options, refuse, report, steer, too_long, tunnel, uplink, verdict};

/// A packet of a connection that the server `sender` forwards under a tunnel id; its IP header is at `offset`.
#[inline(always)]
pub fn run(ctx: &TcContext, offset: usize, sender: u32, id: u32) -> i32 {
    let Some(packet) = Outgoing::<V4>::scratch() else {
        return report::drop(ctx, Reason::Contended);
    };
    let mut step = read(ctx, packet, offset, sender);
    packet.target = id;
    if step == next::LATER || step == next::MESSAGE {
        if exceeded(ctx) != 0 {
            return report::drop(ctx, Reason::ForwardedTooLong);
        }
        step = if step == next::LATER {
            later(ctx, packet, sender)
        } else {
            message(ctx, packet)
        };
        return if step == verdict::NEXT {
            out(ctx)
        } else {
            step
        };
    }
    if step == next::KNOWN {
        step = uplink::known(ctx, packet);
    }
    if step == next::CLASSIFY {
        step = first(ctx, packet);
    }
    if step == next::ADMIT {
        step = allocate::open(ctx, packet);
    }
    if step == next::FORWARD {
        // The sender takes this server for an owner, and it is none.
        packet.reason = Reason::NoAddress;
        step = next::REFUSE;
    }
    if step == next::LEAVE {
        let mtu = exceeded(ctx);
        if mtu == u32::MAX {
            return report::drop(ctx, Reason::ForwardedTooLong);
        }
        if mtu != 0 {
            // Whether it may be cut or not: here nobody cuts it.
            return match too_long::answer(ctx, &packet.ip, mtu) {
                refuse::ANSWERED => send_back(ctx, sender, packet),
                verdict => verdict,
            };
        }
        if packet.is_first() {
            step = fragment::out::first(ctx, packet);
            if step == next::LEAVE && waits() {
                return again(ctx, sender);
            }
        }
    }
    if step == next::LEAVE {
        step = uplink::leave(ctx, packet);
        if step == verdict::NEXT && packet.is_first() {
            step = fragment::out::translated(ctx, packet);
        }
        if step == verdict::NEXT {
            return out(ctx);
        }
    }
    if step == next::REFUSE {
        return match refuse::answer(ctx, packet) {
            refuse::ANSWERED => send_back(ctx, sender, packet),
            verdict => verdict,
        };
    }
    step
}

/// Reads the packet's headers.
#[inline(never)]
fn read<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>, offset: usize, sender: u32) -> i32 {
    let Ok(ip) = A::ip(ctx, &Frame::now(ctx), offset) else {
        return report::drop(ctx, Reason::Malformed);
    };
    let Some(configuration) = Configuration::now() else {
        return report::drop(ctx, Reason::Blocked);
    };
    packet.begin(ip, &configuration, Tag::None);
    packet.key.realm = realm::of_peer(sender);
    packet.zone = 0;
    packet.redirect = false;
    packet.only = 0;
    packet.policy = 0;
    packet.kind = flag::VISITOR;
    if packet.is_fragment() && !packet.has_ports() {
        return next::LATER;
    }
    if packet.ip.protocol == A::ICMP && matches!(packet.ip.fragment, Fragment::Whole) {
        return next::MESSAGE;
    }
    if !packet.has_ports() || packet.read_transport(&Frame::now(ctx)).is_err() {
        return report::drop(ctx, Reason::Malformed);
    }
    next::KNOWN
}

/// A later fragment: translated, or held until its first one has come.
#[inline(never)]
fn later<A: Fragmented>(ctx: &TcContext, packet: &mut Outgoing<A>, sender: u32) -> i32 {
    match fragment::out::known(ctx, packet) {
        next::CLASSIFY if tunnel::can_name(sender) => fragment::out::later(ctx, packet),
        next::CLASSIFY => report::drop(ctx, Reason::ForwardedFragment),
        step => step,
    }
}

/// Whether later fragments came before this first one.
#[inline(always)]
fn waits() -> bool {
    // SAFETY: this CPU's own record.
    V4::work().is_some_and(|work| unsafe { (*work).held } != 0)
}

/// Hands a first fragment back to the tunnel's way in, and all that waited for it: now in order, they take the ordinary
/// way.
#[inline(never)]
fn again(ctx: &TcContext, sender: u32) -> i32 {
    let Some(work) = V4::work() else {
        return report::drop(ctx, Reason::Contended);
    };
    verdict::set_tag(ctx, Tag::Zone(sender as u16));
    // SAFETY: this CPU's own record, and nobody else's until the first copy is sent.
    let release = Release::new(ctx, unsafe { &*work }, BPF_F_INGRESS as u64);
    release.marked().run(ctx)
}

/// An ICMP error about what a connection of this sender was sent.
#[inline(never)]
fn message<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    match icmp::leaving(ctx, &packet.outer(), &mut packet.key) {
        Ok(Leaving::Translated) => verdict::done(ctx),
        Ok(_) => report::drop(ctx, Reason::ForwardedIcmp),
        Err(reason) => report::drop(ctx, reason),
    }
}

/// A packet without a flow. Its sender has looked at everything else.
#[inline(never)]
fn first<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let ip = &packet.ip;
    if !uplink::is_of_a_host(ip.source) || !uplink::is_of_a_host(ip.destination) {
        return report::drop(ctx, Reason::Multicast);
    }
    if A::egress(&ip.source).is_some() {
        return report::drop(ctx, Reason::ClaimsEgressIp);
    }
    packet.options = Options::default();
    if ip.protocol == TCP {
        if !packet.segment.opens() {
            packet.reason = Reason::NoFlow;
            return next::REFUSE;
        }
        packet.options = options::read(ctx, ip.transport_at as u32, packet.segment.header as u32);
    }
    // Only what is new asks: a pool that is gone takes no live flow along (POOL-9).
    let Some(target) = target(packet.target) else {
        if packet.target == GOING_ON {
            packet.reason = Reason::NoAddress;
            return next::REFUSE;
        }
        return report::drop(ctx, Reason::TunnelStray);
    };
    packet.pool = target.pool;
    packet.exit = target.exit;
    next::ADMIT
}

/// Sends an answer of ours to the server that the packet came from.
#[inline(never)]
fn send_back<A: Family>(ctx: &TcContext, sender: u32, packet: &Outgoing<A>) -> i32 {
    steer::send(ctx, sender, packet.ip.network(), RETURN)
}

/// `BPF_MTU_CHK_SEGS` (linux/bpf.h): of a packet that stands for several, each is looked at.
const SEGMENTS: u64 = 1;

/// The longest packet that the uplink takes, if this one is longer, or if that cannot be told; else 0.
#[inline(never)]
fn exceeded(ctx: &TcContext) -> u32 {
    let Some(tunnel) = steer::tunnel() else {
        return u32::MAX;
    };
    let mut mtu = 0;
    // SAFETY: the helper writes four bytes.
    let answer =
        unsafe { bpf_check_mtu(ctx.skb.skb.cast(), tunnel.uplink, &raw mut mtu, 0, SEGMENTS) };
    match answer {
        0 => 0,
        1.. if mtu != 0 => mtu,
        _ => u32::MAX,
    }
}

/// Sends a translated packet out by the uplink, by the kernel's route.
#[inline(never)]
fn out(ctx: &TcContext) -> i32 {
    let Some(tunnel) = steer::tunnel() else {
        return report::drop(ctx, Reason::PeerUnreachable);
    };
    // SAFETY: the helper takes no parameters besides the interface.
    unsafe { bpf_redirect_neigh(tunnel.uplink, core::ptr::null_mut(), 0, 0) as i32 }
}

/// This server's pool of a tunnel id.
#[inline(always)]
fn target(id: u32) -> Option<Target> {
    // SAFETY: the daemon replaces values as a whole.
    unsafe { TARGETS.get(id) }.copied()
}
