//! The origin's packets for a flow that ended without the origin's doing: for idleness, or on purpose.
//!
//! A RST is translated back, so that the inside learns of it. Anything else is turned round into the RST
//! for the origin, in place of a silence in which it would retransmit for minutes (NAT-7).

use aya_ebpf::programs::TcContext;
use egress_common::key::TCP;
use egress_common::packet::{Segment, control};
use egress_common::reason::Reason;
use egress_common::slot::flag;

use crate::classify::Configuration;
use crate::family::Family;
use crate::flow::Found;
use crate::reply::Incoming;
use crate::{refuse, report};

/// Whether the packet is translated all the same. A flow whose endpoints opened a new one has an inside
/// that knows already.
#[inline(always)]
pub fn passes<A>(found: &Found<A>, segment: &Segment) -> bool {
    !found.word.has(flag::ORPHAN) && segment.has(control::RST)
}

/// Whether the origin is told.
#[inline(always)]
pub fn told<A>(found: &Found<A>, protocol: u8) -> bool {
    protocol == TCP
        && !found.word.has(flag::ORPHAN)
        && (found.word.has(flag::RESET)
            || Configuration::now().is_some_and(|now| now.settings().reset_idle != 0))
}

/// Answers the packet with its RST.
#[inline(never)]
pub fn answer<A: Family>(ctx: &TcContext, packet: &Incoming<A>) -> i32 {
    report::count(ctx, Reason::Over);
    if !refuse::allowed() {
        return report::drop(ctx, Reason::ReplyLimited);
    }
    let ports = (packet.origin_port, packet.egress_port);
    if refuse::make_reset(ctx, &packet.ip, &packet.segment, ports).is_err() {
        return report::drop(ctx, Reason::Unanswerable);
    }
    refuse::to_origin(ctx)
}
