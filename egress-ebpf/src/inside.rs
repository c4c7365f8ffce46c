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
        _ => unread(ctx),
    }
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
fn ip<A: Family>(ctx: &TcContext, network: usize, source: Result<A, Malformed>) -> i32 {
    let Ok(source) = source else {
        return unread(ctx);
    };
    let zone = Configuration::now().and_then(|configuration| {
        classify::entering(&configuration, verdict::interface(ctx), source)
    });
    let Some(zone) = zone else {
        verdict::set_tag(ctx, Tag::Unbound);
        return NEXT;
    };
    verdict::set_tag(ctx, Tag::Zone(zone as u16));
    match fast::out::<A>(ctx, network, zone) {
        DECLINED => NEXT,
        verdict => verdict,
    }
}
