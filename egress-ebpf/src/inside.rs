//! tc ingress of an inside interface: the zone of a forwarded packet is decided here and travels in
//! its mark (ZONE-4), because netfilter may rewrite the source before the uplink sees it.

use aya_ebpf::programs::TcContext;
use egress_common::family::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, V4, V6};
use egress_common::ipv6::ipv6;
use egress_common::packet::{self, Malformed};
use egress_common::tag::Tag;

use crate::classify::{self, Configuration};
use crate::family::Family;
use crate::frame::Frame;
use crate::verdict::{self, DECLINED, NEXT};
use crate::{fast, link};

pub fn run(ctx: &TcContext) -> i32 {
    let Some(network) = link::network(ctx) else {
        return unread(ctx);
    };
    match network.ethertype {
        ETHERTYPE_IPV4 => ip::<V4>(ctx, network.offset, zone4(ctx, network.offset)),
        ETHERTYPE_IPV6 => ip::<V6>(ctx, network.offset, zone6(ctx, network.offset)),
        _ => unread(ctx),
    }
}

/// No zone's number: the packet cannot be read, or it is in none, as the configuration of a generation says.
const UNREAD: u32 = 1 << 31;
const NONE: u32 = 1 << 30;

/// The zone of the packet whose header is at `offset`. Not a part of [`run`], whose stack the fast path's is added to.
#[inline(never)]
fn zone4(ctx: &TcContext, offset: usize) -> u32 {
    let ip = packet::ipv4(&Frame::now(ctx), offset, ctx.len());
    zone(ctx, ip.map(|ip| ip.source))
}

/// As [`zone4`].
#[inline(never)]
fn zone6(ctx: &TcContext, offset: usize) -> u32 {
    let ip = ipv6(&Frame::now(ctx), offset, ctx.len());
    zone(ctx, ip.map(|ip| ip.source))
}

#[inline(always)]
fn zone<A: Family>(ctx: &TcContext, source: Result<A, Malformed>) -> u32 {
    let Ok(source) = source else {
        return UNREAD;
    };
    let Some(configuration) = Configuration::now() else {
        return NONE;
    };
    classify::entering(&configuration, verdict::interface(ctx), source)
        .unwrap_or(NONE | configuration.generation())
}

/// Neither IPv4 nor IPv6, or nothing that can be read. It has no tag: an IP packet that it carries, in PPPoE for
/// instance, would inherit that.
#[inline(always)]
fn unread(ctx: &TcContext) -> i32 {
    verdict::set_tag(ctx, Tag::None);
    NEXT
}

/// An IP packet: tagged, and past everything else if its flow is live.
#[inline(always)]
fn ip<A: Family>(ctx: &TcContext, network: usize, zone: u32) -> i32 {
    if zone == UNREAD {
        return unread(ctx);
    }
    if zone & NONE != 0 {
        verdict::set_tag(ctx, Tag::Unbound(zone & !NONE));
        return NEXT;
    }
    verdict::set_tag(ctx, Tag::Zone(zone as u16));
    match fast::out::<A>(ctx, network, zone) {
        DECLINED => NEXT,
        verdict => verdict,
    }
}
