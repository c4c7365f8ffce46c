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
        return other(ctx);
    };
    let frame = Frame::now(ctx);
    match network.ethertype {
        ETHERTYPE_IPV4 => ip::<V4>(
            ctx,
            network.offset,
            packet::ipv4(&frame, network.offset, ctx.len()).map(|ip| ip.source),
        ),
        ETHERTYPE_IPV6 => ip::<V6>(
            ctx,
            network.offset,
            ipv6(&frame, network.offset, ctx.len()).map(|ip| ip.source),
        ),
        _ => other(ctx),
    }
}

/// Neither IPv4 nor IPv6, or of no zone.
#[inline(always)]
fn other(ctx: &TcContext) -> i32 {
    verdict::set_tag(ctx, Tag::Unbound);
    NEXT
}

/// An IP packet: tagged, and past everything else if its flow is live.
#[inline(always)]
fn ip<A: Family>(ctx: &TcContext, network: usize, source: Result<A, Malformed>) -> i32 {
    let zone = source.ok().and_then(|source| {
        classify::entering(&Configuration::now()?, verdict::interface(ctx), source)
    });
    let Some(zone) = zone else {
        return other(ctx);
    };
    verdict::set_tag(ctx, Tag::Zone(zone as u16));
    match fast::out::<A>(ctx, network, zone) {
        DECLINED => NEXT,
        verdict => verdict,
    }
}
