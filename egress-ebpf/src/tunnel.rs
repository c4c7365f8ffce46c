//! tc ingress of the tunnel: what a known server has sent on is handed to the uplink, as if it had arrived there
//! (FWD-5); what belongs to a flow that was forwarded there, too ([`returned`]); connections that it forwards are
//! translated ([`visitor`]). Nothing else comes in by the tunnel (FWD-6).

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, bpf_tunnel_key};
use aya_ebpf::helpers::{bpf_skb_get_tunnel_key, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use egress_common::family::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, V4, V6};
use egress_common::packet::Network;
use egress_common::peer::{GOING_ON, REPLY, RETURN, Underlay, mapped, unmapped};
use egress_common::reason::Reason;
use egress_common::share::END_OF_TARGETS;
use egress_common::tag::Tag;

use crate::family::Family;
use crate::maps::{PEER_NUMBERS, PEER_TRAFFIC};
use crate::steer::Key;
use crate::{forward, globals, link, report, returned, steer, verdict, visitor};

pub fn run(ctx: &TcContext) -> i32 {
    accepted(ctx).unwrap_or_else(|reason| report::drop(ctx, reason))
}

/// Who sent the packet, whether it is what that server may send, and what becomes of it.
#[inline(always)]
fn accepted(ctx: &TcContext) -> Result<i32, Reason> {
    let sender = sender(ctx);
    let (number, id) = (
        (sender >> ID_BITS) as u32,
        sender as u32 & (END_OF_TARGETS - 1),
    );
    if number == 0 {
        return Err(Reason::TunnelStranger);
    }
    let network = link::network(ctx).ok_or(Reason::TunnelStray)?;
    if id == REPLY {
        return if is_for_egress_ip(ctx, &network) {
            Ok(arrive(ctx))
        } else {
            Err(Reason::TunnelStray)
        };
    }
    // IPv6 is never forwarded (FWD-1).
    if network.ethertype != ETHERTYPE_IPV4 {
        return Err(Reason::TunnelStray);
    }
    if id == RETURN {
        return Ok(match returned::accept::<V4>(ctx, network.offset, number) {
            returned::ACCEPTED => arrive(ctx),
            verdict => verdict,
        });
    }
    Ok(visitor::run(ctx, network.offset, number, id))
}

/// Bits of a tunnel id.
const ID_BITS: u32 = 24;
const _: () = assert!(END_OF_TARGETS == 1 << ID_BITS);

/// The sender's number and the tunnel id in one word, from the headers that the kernel has taken off; 0 if the sender
/// is not known. A function of its own, for the stack's sake.
#[inline(never)]
fn sender(ctx: &TcContext) -> u64 {
    let Some(tunnel) = steer::tunnel() else {
        return 0;
    };
    let mut sender = Aligned(Underlay::default());
    let id = headers(ctx, &tunnel.own, &mut sender);
    if id == NO_HEADERS {
        return named(ctx);
    }
    if id < 0 {
        return 0;
    }
    let Aligned(sender) = sender;
    // SAFETY: the daemon replaces values as a whole.
    let Some(number) = (unsafe { PEER_NUMBERS.get(sender) }) else {
        return 0;
    };
    if let Some(traffic) = PEER_TRAFFIC.get_ptr_mut(number.number) {
        // SAFETY: this CPU's own element; nothing else writes it meanwhile.
        unsafe {
            (*traffic).received_packets += verdict::segments(ctx) as u64;
            (*traffic).received_bytes += ctx.len() as u64;
        }
    }
    (number.number as u64) << ID_BITS | (id as u32 & (END_OF_TARGETS - 1)) as u64
}

/// What came before and was handed back by [`visitor`] has no headers around it any more, and its sender's number in
/// the mark. All that comes from a wire has those headers.
#[inline(always)]
fn named(ctx: &TcContext) -> u64 {
    match globals::tag_field().read(verdict::mark(ctx)) {
        Tag::Zone(number) => (number as u64) << ID_BITS | GOING_ON as u64,
        _ => 0,
    }
}

/// Whether a sender's number can stand in a mark.
#[inline(always)]
pub fn can_name(sender: u32) -> bool {
    sender <= globals::tag_field().last_zone()
}

/// What the kernel says of a packet that no tunnel has brought (EINVAL).
const NO_HEADERS: i64 = -22;

/// The tunnel id, and the address of the sender in `sender`; or the error, as the kernel has it.
#[inline(always)]
fn headers(ctx: &TcContext, own: &Underlay, sender: &mut Aligned<Underlay>) -> i64 {
    // SAFETY: all-zero is a valid key.
    let mut key: Key = unsafe { core::mem::zeroed() };
    let Key(key) = &mut key;
    let single = unmapped(own).is_some();
    let flags = if single { 0 } else { BPF_F_TUNINFO_IPV6 };
    // SAFETY: the helper fills in the key, whose size is given.
    let status = unsafe {
        bpf_skb_get_tunnel_key(
            ctx.skb.skb,
            &raw mut *key,
            size_of::<bpf_tunnel_key>() as u32,
            flags as u64,
        )
    };
    if status != 0 {
        return status as i64;
    }
    // SAFETY: the kernel has filled in the member that goes with the flags.
    sender.0 = unsafe {
        if single {
            mapped(key.__bindgen_anon_1.remote_ipv4.to_be_bytes())
        } else {
            bytes(key.__bindgen_anon_1.remote_ipv6)
        }
    };
    key.tunnel_id as i64
}

#[inline(always)]
const fn bytes(words: [u32; 4]) -> Underlay {
    let [a, b, c, d] = words;
    let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a.to_ne_bytes(), b.to_ne_bytes());
    let ([c0, c1, c2, c3], [d0, d1, d2, d3]) = (c.to_ne_bytes(), d.to_ne_bytes());
    [
        a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
    ]
}

#[inline(always)]
fn is_for_egress_ip(ctx: &TcContext, network: &Network) -> bool {
    match network.ethertype {
        ETHERTYPE_IPV4 => is_for::<V4>(ctx, network.offset) != 0,
        ETHERTYPE_IPV6 => is_for::<V6>(ctx, network.offset) != 0,
        _ => false,
    }
}

/// An address on the stack, where the verifier wants whole words.
#[repr(C, align(8))]
struct Aligned<A>(A);

/// 1 if the packet with its header at `offset` is for an egress IP. A function of its own, for the stack's sake.
#[inline(never)]
fn is_for<A: Family>(ctx: &TcContext, offset: usize) -> i32 {
    let mut destination = Aligned(A::default());
    // SAFETY: the helper checks the offset, and writes as many bytes as the address has.
    let status = unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            (offset + A::HEADER - A::LEN) as u32,
            (&raw mut destination).cast(),
            A::LEN as u32,
        )
    };
    (status == 0 && A::egress(&destination.0).is_some()) as i32
}

/// Hands the packet to the uplink: addressed to it, and marked so that it is not sent on again.
#[inline(always)]
fn arrive(ctx: &TcContext) -> i32 {
    let Some(tunnel) = steer::tunnel() else {
        return report::drop(ctx, Reason::TunnelStranger);
    };
    verdict::set_tag(ctx, Tag::Done);
    forward::to_uplink(ctx, tunnel.uplink)
        .unwrap_or_else(|()| report::drop(ctx, Reason::TunnelStray))
}
