//! tc egress of the uplink, after the uplink's program: what that program has dealt with passes;
//! a packet of an enabled zone that it has not seen is dropped (SAFE-6). Should the uplink's program
//! be removed, this one still stands.

use aya_ebpf::programs::TcContext;
use egress_common::family::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};
use egress_common::ipv6::ipv6;
use egress_common::packet;
use egress_common::reason::Reason;
use egress_common::tag::Tag;

use crate::classify::{self, Configuration, Owner};
use crate::frame::Frame;
use crate::link;
use crate::verdict::{self, NEXT};
use crate::{globals, report};

pub fn run(ctx: &TcContext) -> i32 {
    let tag = globals::tag_field().read(verdict::mark(ctx));
    if matches!(tag, Tag::Done) {
        verdict::set_tag(ctx, Tag::None);
        return NEXT;
    }
    if bound(ctx, tag) {
        return report::drop(ctx, Reason::HookMissing);
    }
    verdict::set_tag(ctx, Tag::None);
    NEXT
}

/// Whether the packet belongs to an enabled zone.
#[inline(always)]
fn bound(ctx: &TcContext, tag: Tag) -> bool {
    let Some(configuration) = Configuration::now() else {
        return false;
    };
    let tag = configuration.still(tag);
    match (selected(ctx, &configuration, tag), tag) {
        (Some(bound), _) => bound,
        // Whatever became of its headers: it entered as a packet of this zone.
        (None, Tag::Zone(zone)) => Owner::Zone(zone as u32).is_bound(&configuration),
        (None, _) => false,
    }
}

/// Whether the packet's headers say that it is bound, if they can be read.
#[inline(always)]
fn selected(ctx: &TcContext, configuration: &Configuration, tag: Tag) -> Option<bool> {
    let network = link::network(ctx)?;
    let frame = Frame::now(ctx);
    match network.ethertype {
        ETHERTYPE_IPV4 => {
            let ip = packet::ipv4(&frame, network.offset, ctx.len()).ok()?;
            let owner = classify::leaving(ctx, configuration, tag, ip.source);
            Some(owner.is_bound(configuration))
        }
        ETHERTYPE_IPV6 => {
            let ip = ipv6(&frame, network.offset, ctx.len()).ok()?;
            let owner = classify::leaving(ctx, configuration, tag, ip.source);
            Some(owner.is_bound(configuration))
        }
        _ => None,
    }
}
