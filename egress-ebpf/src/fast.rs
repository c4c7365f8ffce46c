//! The fast path (PERF-1): a packet of a live flow is translated where it enters and handed to the
//! interface it leaves by, past routing and netfilter.
//!
//! It is a shortcut and no rule of its own: the same steps as at the uplink, for packets that need
//! nothing else. Whatever is not plain (a packet that opens a flow, options, a last hop, a packet too
//! long for where it goes, another link layer than Ethernet, a frame for another host) takes the ordinary way.
//! So do a flow's packets until one from the inside was met whose flow is the one that its endpoints name: then
//! netfilter changes nothing on the way that it would have to change back, and has seen the handshake.

use aya_ebpf::bindings::{TC_ACT_REDIRECT, bpf_redir_neigh};
use aya_ebpf::helpers::{bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::programs::TcContext;
use egress_common::key::TCP;
use egress_common::packet::{Fragment, Ip, Segment};
use egress_common::reason::Reason;
use egress_common::slot::{State, advance, flag};
use egress_common::tag::Tag;
use egress_common::tcp::Way;

use crate::classify::Configuration;
use crate::family::Family;
use crate::flow::{self, Found};
use crate::frame::Frame;
use crate::hop::{self, Hop, Query};
use crate::outgoing::Outgoing;
use crate::uplink::{self, Live};
use crate::verdict::{self, DECLINED, NEXT};
use crate::{globals, report, slots};

/// An Ethernet header without tags.
const ETHERNET: usize = 14;
/// The UDP header.
const UDP_HEADER: u32 = 8;

/// A packet of a zone that has just entered.
#[inline(always)]
pub fn out<A: Family>(ctx: &TcContext, network: usize, zone: u32) -> i32 {
    if globals::accelerate() == 0
        || network != ETHERNET
        || verdict::has_vlan(ctx)
        || !verdict::is_for_host(ctx)
    {
        return DECLINED;
    }
    let Some(packet) = Outgoing::<A>::scratch() else {
        return DECLINED;
    };
    if !read(ctx, packet, zone) {
        return DECLINED;
    }
    shortcut(ctx, packet)
}

/// Reads the packet; false if it is not plain.
#[inline(never)]
fn read<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>, zone: u32) -> bool {
    let Some(configuration) = Configuration::now() else {
        return false;
    };
    let Ok(ip) = A::ip(ctx, &Frame::now(ctx), ETHERNET) else {
        return false;
    };
    packet.begin(ip, &configuration, Tag::Zone(zone as u16));
    is_plain(ctx, &packet.ip)
        && packet.has_ports()
        && packet.read_transport(&Frame::now(ctx)).is_ok()
        && !(packet.ip.protocol == TCP && packet.segment.opens())
}

/// Whether a packet is whole, has no options and may go a hop further.
#[inline(always)]
fn is_plain<A: Family>(ctx: &TcContext, ip: &Ip<A>) -> bool {
    matches!(ip.fragment, Fragment::Whole)
        && ip.header() == A::HEADER
        && A::hops(&Frame::now(ctx), ip.network()).is_some_and(|hops| hops > 1)
}

#[inline(never)]
fn shortcut<A: Family>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    let Some(found) = flow::outgoing(&packet.key) else {
        return DECLINED;
    };
    if !matches!(uplink::live(packet, &found), Live::Translate)
        || found.word.state as u8 == State::Closed as u8
        || !is_home(ctx, &found)
    {
        // Of a flow that is over only the port rests. Where netfilter has begun to rewrite sources since, its endpoints
        // are those of another flow by now, which goes the ordinary way.
        return DECLINED;
    }
    if !found.word.has(flag::DIRECT) {
        // This one still goes the ordinary way: it is the last of a handshake, and connection tracking has to see
        // all three to take the flow for established. A lost race is a packet's that advances the flow: the next one
        // will do it.
        advance(
            &slots::word_of(found.slot),
            found.word,
            found.word.with_flags(flag::DIRECT),
        );
        return DECLINED;
    }
    let query = Query {
        way: Way::Out,
        from: packet.key.inside,
        to: packet.key.origin,
        from_port: packet.key.inside_port,
        to_port: packet.key.origin_port,
        protocol: packet.key.protocol,
        interface: verdict::interface(ctx),
    };
    let Some(hop) = hop::find(ctx, &found, &query) else {
        return DECLINED;
    };
    if !fits(ctx, &packet.ip, &packet.segment, hop) {
        return DECLINED;
    }
    packet.slot = found.index;
    let verdict = uplink::leave(ctx, packet);
    if verdict != NEXT {
        return verdict;
    }
    send::<A>(ctx, hop)
}

/// Whether a packet comes by the interface that its flow began by. Another one may be a forger's: the kernel
/// judges that (RFC 3704).
#[inline(always)]
fn is_home<A: Family>(ctx: &TcContext, found: &Found<A>) -> bool {
    // SAFETY: a live map value.
    unsafe { (*found.slot).interface == verdict::interface(ctx) }
}

/// The next hop of a reply that goes straight to the inside, if it is such a one.
#[inline(always)]
pub fn back<A: Family>(
    ctx: &TcContext,
    ip: &Ip<A>,
    segment: &Segment,
    found: &Found<A>,
) -> Option<&'static Hop> {
    if globals::accelerate() == 0
        || ip.network() != ETHERNET
        || !found.word.has(flag::DIRECT)
        || verdict::has_vlan(ctx)
        || !verdict::is_for_host(ctx)
        || !is_plain(ctx, ip)
    {
        return None;
    }
    // SAFETY: a live map value that was checked to be this packet's.
    let query = unsafe {
        let flow = &(*found.slot).flow;
        Query {
            way: Way::Back,
            from: flow.origin,
            to: flow.inside,
            from_port: flow.origin_port,
            to_port: flow.inside_port,
            protocol: flow.protocol,
            interface: verdict::interface(ctx),
        }
    };
    hop::find(ctx, found, &query).filter(|hop| fits(ctx, ip, segment, hop))
}

/// Whether the packet, or each of the packets it stands for, may go there whole.
#[inline(always)]
fn fits<A: Family>(ctx: &TcContext, ip: &Ip<A>, segment: &Segment, hop: &Hop) -> bool {
    let size = verdict::segment_size(ctx);
    if size == 0 {
        return ip.length <= hop.mtu;
    }
    let transport = if ip.protocol == TCP {
        segment.header as u32
    } else {
        UDP_HEADER
    };
    A::HEADER as u32 + transport + size <= hop.mtu
}

/// Hands a translated packet to where it goes, one hop further on.
#[inline(always)]
pub fn send<A: Family>(ctx: &TcContext, hop: &Hop) -> i32 {
    if address(&Frame::now(ctx), hop).is_none() || A::take_hop(ctx, ETHERNET).is_none() {
        return report::drop(ctx, Reason::Malformed);
    }
    // SAFETY: the helpers take an interface, where the neighbour's address stands and how long that is, and no flags: its
    // way out. The helper only reads the address.
    let verdict = unsafe {
        if hop.is_due() {
            // Through the kernel's neighbour entry, which asks now and then whether the neighbour is there.
            bpf_redirect_neigh(
                hop.interface,
                (&raw const hop.via).cast_mut(),
                size_of::<bpf_redir_neigh>() as i32,
                0,
            )
        } else {
            bpf_redirect(hop.interface, 0)
        }
    } as i32;
    if verdict == TC_ACT_REDIRECT {
        verdict
    } else {
        report::drop(ctx, Reason::Contended)
    }
}

/// Writes the link-layer addresses.
#[inline(always)]
fn address(frame: &Frame, hop: &Hop) -> Option<()> {
    let to = frame.at::<6>(0)?;
    let from = frame.at::<6>(6)?;
    // SAFETY: both places were checked to lie within the packet.
    unsafe {
        *to = hop.neighbour;
        *from = hop.own;
    }
    Some(())
}
