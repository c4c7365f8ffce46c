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
    if bound(ctx, tag).unwrap_or(false) {
        return report::drop(ctx, Reason::HookMissing);
    }
    verdict::set_tag(ctx, Tag::None);
    NEXT
}

/// Whether the packet belongs to an enabled zone.
#[inline(always)]
fn bound(ctx: &TcContext, tag: Tag) -> Option<bool> {
    let configuration = Configuration::now()?;
    let owner = selected(ctx, &configuration, tag).or(match tag {
        // Whatever became of its headers: it entered as a packet of this zone.
        Tag::Zone(zone) => Some(Owner::Zone(zone as u32)),
        _ => None,
    })?;
    Some(owner.is_bound(&configuration))
}

/// Whose the packet is, if its headers can be read.
#[inline(always)]
fn selected(ctx: &TcContext, configuration: &Configuration, tag: Tag) -> Option<Owner> {
    let frame = Frame::headers(ctx);
    let network = link::network(ctx)?;
    match network.ethertype {
        ETHERTYPE_IPV4 => {
            let ip = packet::ipv4(&frame, network.offset, ctx.len()).ok()?;
            Some(classify::leaving(ctx, configuration, tag, ip.source))
        }
        ETHERTYPE_IPV6 => {
            let ip = ipv6(&frame, network.offset, ctx.len()).ok()?;
            Some(classify::leaving(ctx, configuration, tag, ip.source))
        }
        _ => None,
    }
}
