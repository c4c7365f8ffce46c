//! Connections of the daemon's own that leave by the egress IP they are told to (POOL-10).

use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::programs::TcContext;
use egress_common::key::{Reference, TCP};
use egress_common::packet::Fragment;
use egress_common::probe::{ADMITTED, Probe, refused};
use egress_common::reason::Reason;

use crate::family::Family;
use crate::maps::PROBES;
use crate::outgoing::{Outgoing, next};
use crate::{options, report, verdict};

/// What [`first`] says of all other packets.
pub const NONE: i32 = 0;

/// A packet without a flow: if its socket is a probe's, it is admitted by what that one is told, or refused. Whatever
/// zone it would be of, and whatever is exempt: it is nobody's traffic.
#[inline(never)]
pub fn first<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    if packet.ip.protocol != TCP || verdict::ingress_interface(ctx) != 0 {
        return NONE;
    }
    // SAFETY: the context is valid; the helper answers 0 where there is no socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    let Some(probe) = of(cookie) else {
        return NONE;
    };
    packet.probe = cookie;
    packet.zone = 0;
    packet.pool = probe.pool;
    packet.exit = 0;
    packet.only = probe.candidate.saturating_add(1);
    packet.policy = 0;
    packet.kind = 0;
    packet.redirect = false;
    if packet.cut || !matches!(packet.ip.fragment, Fragment::Whole) {
        return report::drop(ctx, Reason::Malformed);
    }
    if !packet.segment.opens() {
        packet.reason = Reason::NoFlow;
        return next::REFUSE;
    }
    packet.options = options::read(
        ctx,
        packet.ip.transport_at as u32,
        packet.segment.header as u32,
    );
    next::ADMIT
}

/// What the probe with this socket cookie is told.
#[inline(always)]
fn of(cookie: u64) -> Option<Probe> {
    if cookie == 0 {
        return None;
    }
    // SAFETY: the daemon writes an entry once, before the socket connects; from then on only its one connection does.
    unsafe { PROBES.get(cookie) }.copied()
}

/// Whether the candidate with this address is the one that the probe is told. Another one stands in its place when the
/// configuration has changed meanwhile.
#[inline(always)]
pub fn is_for(cookie: u64, address: [u8; 16]) -> bool {
    of(cookie).is_some_and(|probe| probe.address == address)
}

/// Tells the daemon that a probe was admitted.
#[inline(always)]
pub fn admitted(cookie: u64, slot: Reference) {
    if let Some(probe) = PROBES.get_ptr_mut(cookie) {
        // SAFETY: a map value that nobody else writes.
        unsafe {
            (*probe).slot = slot;
            (*probe).outcome = ADMITTED;
        }
    }
}

/// Tells the daemon why a probe was refused.
#[inline(always)]
pub fn was_refused(cookie: u64, reason: Reason) {
    if let Some(probe) = PROBES.get_ptr_mut(cookie) {
        // SAFETY: as above.
        unsafe { (*probe).outcome = refused(reason) };
    }
}
