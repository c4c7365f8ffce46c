//! tc ingress of an inside interface: the zone of a forwarded packet is decided here and travels in
//! its mark (ZONE-4), because netfilter may rewrite the source before the uplink sees it.

use aya_ebpf::programs::TcContext;
use egress_common::family::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use egress_common::ipv6::ipv6;
use egress_common::packet;
use egress_common::tag::Tag;

use crate::classify::{self, Configuration};
use crate::frame::Frame;
use crate::link;
use crate::verdict::{self, NEXT};

pub fn run(ctx: &TcContext) -> i32 {
    verdict::set_tag(
        ctx,
        zone(ctx).map_or(Tag::Unbound, |zone| Tag::Zone(zone as u16)),
    );
    NEXT
}

/// The zone of the packet, if it is an IP packet of one.
#[inline(always)]
fn zone(ctx: &TcContext) -> Option<u32> {
    let network = link::network(ctx)?;
    let frame = Frame::now(ctx);
    let interface = verdict::interface(ctx);
    match network.ethertype {
        ETHERTYPE_IPV4 => {
            let ip = packet::ipv4(&frame, network.offset, ctx.len()).ok()?;
            classify::entering(&Configuration::now()?, interface, ip.source)
        }
        ETHERTYPE_IPV6 => {
            let ip = ipv6(&frame, network.offset, ctx.len()).ok()?;
            classify::entering(&Configuration::now()?, interface, ip.source)
        }
        _ => None,
    }
}
