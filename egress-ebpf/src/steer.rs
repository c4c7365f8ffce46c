//! Sending on what arrived at the wrong server (FWD-5): the port's slice, or the IPv6 sub-range, says whose a
//! reply is. No flow is noted, and whoever gets it from us does not send it on again, whatever the servers
//! believe.

use aya_ebpf::bindings::{BPF_F_TUNINFO_IPV6, bpf_tunnel_key};
use aya_ebpf::helpers::{
    bpf_redirect, bpf_skb_change_head, bpf_skb_set_tunnel_key, bpf_skb_vlan_pop,
};
use aya_ebpf::programs::TcContext;
use egress_common::peer::{Peer, Tunnel, Underlay, unmapped};
use egress_common::reason::Reason;
use egress_common::tag::Tag;

use crate::frame::Frame;
use crate::maps::{PEER_TRAFFIC, PEERS, TUNNEL};
use crate::{report, verdict};

/// Hops that the outer packet may take.
const HOPS: u8 = 64;
/// An Ethernet header (ETH_HLEN).
const ETHERNET: u32 = 14;

/// This server's end of the tunnel, if there is one.
#[inline(always)]
pub fn tunnel() -> Option<Tunnel> {
    let tunnel = TUNNEL.get(0).copied()?;
    (tunnel.interface != 0).then_some(tunnel)
}

/// Length of the longest IP packet that fits the tunnel; 0 if that is not known.
#[inline(always)]
pub fn room() -> u32 {
    TUNNEL.get(0).map_or(0, |tunnel| tunnel.mtu)
}

/// The same where nobody cuts what is around a packet that does not fit: the kernel does over IPv4 alone. 0 if any packet
/// may go.
#[inline(always)]
pub fn limit() -> u32 {
    TUNNEL
        .get(0)
        .filter(|tunnel| unmapped(&tunnel.own).is_none())
        .map_or(0, |tunnel| tunnel.mtu)
}

/// Sends the packet to the server of this number, under a tunnel id; `network` is where its IP header starts.
#[inline(always)]
pub fn send(ctx: &TcContext, number: u32, network: usize, id: u32) -> i32 {
    if link_layer(ctx, network).is_none() {
        return report::drop(ctx, Reason::Malformed);
    }
    let (Some(tunnel), true) = (tunnel(), aim_at(ctx, number, id)) else {
        return report::drop(ctx, Reason::PeerUnreachable);
    };
    // The packet around it is this host's own, and no zone's.
    verdict::set_tag(ctx, Tag::Done);
    // SAFETY: the helper takes an interface and no flags: its way out.
    unsafe { bpf_redirect(tunnel.interface, 0) as i32 }
}

/// Says that the packet goes to the server of this number, and counts it there; false if it cannot.
#[inline(never)]
pub fn aim_at(ctx: &TcContext, number: u32, id: u32) -> bool {
    let (Some(tunnel), Some(peer)) = (TUNNEL.get(0), PEERS.get(number)) else {
        return false;
    };
    if tunnel.interface == 0 || *peer == Peer::default() {
        return false;
    }
    if aim(ctx, &tunnel.own, &peer.address, id).is_none() {
        return false;
    }
    if let Some(traffic) = PEER_TRAFFIC.get_ptr_mut(number) {
        // SAFETY: this CPU's own element; nothing else writes it meanwhile.
        unsafe {
            (*traffic).sent_packets += verdict::segments(ctx) as u64;
            (*traffic).sent_bytes += ctx.len() as u64;
        }
    }
    true
}

/// What goes through the tunnel is Ethernet, without the tag of a network that the other end is not in.
#[inline(always)]
pub fn link_layer(ctx: &TcContext, network: usize) -> Option<()> {
    // SAFETY: helpers that check what they are given.
    unsafe {
        if verdict::has_vlan(ctx) && bpf_skb_vlan_pop(ctx.skb.skb) != 0 {
            return None;
        }
        if network != 0 {
            return Some(());
        }
        if bpf_skb_change_head(ctx.skb.skb, ETHERNET, 0) != 0 {
            return None;
        }
    }
    let header = Frame::now(ctx).at::<14>(0)?;
    let [p0, p1] = verdict::protocol(ctx).to_be_bytes();
    // SAFETY: checked to lie within the packet.
    unsafe { *header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, p0, p1] };
    Some(())
}

/// A tunnel key on the stack, where the verifier wants whole words.
#[repr(C, align(8))]
pub struct Key(pub bpf_tunnel_key);

/// Says where the tunnel's interface is to send the packet.
#[inline(always)]
fn aim(ctx: &TcContext, own: &Underlay, peer: &Underlay, id: u32) -> Option<()> {
    // SAFETY: all-zero is a valid key.
    let mut key: Key = unsafe { core::mem::zeroed() };
    let Key(key) = &mut key;
    key.tunnel_id = id;
    key.tunnel_ttl = HOPS;
    let flags = match (unmapped(own), unmapped(peer)) {
        (Some(own), Some(peer)) => {
            // In the host's byte order, unlike IPv6.
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be_bytes(peer);
            key.__bindgen_anon_3.local_ipv4 = u32::from_be_bytes(own);
            0
        }
        (None, None) => {
            key.__bindgen_anon_1.remote_ipv6 = words(peer);
            key.__bindgen_anon_3.local_ipv6 = words(own);
            BPF_F_TUNINFO_IPV6
        }
        // The control plane lets nobody mix them.
        _ => return None,
    };
    // SAFETY: the key is valid and its size is given.
    let status = unsafe {
        bpf_skb_set_tunnel_key(
            ctx.skb.skb,
            &raw mut *key,
            size_of::<bpf_tunnel_key>() as u32,
            flags as u64,
        )
    };
    (status == 0).then_some(())
}

/// An address as the kernel's tunnel keys hold it.
#[inline(always)]
pub const fn words(address: &Underlay) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
