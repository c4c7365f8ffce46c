//! Fragments that arrive for an egress IP: steps of [`crate::reply`].
//!
//! Where later fragments were held, the first one and then all of them are handed back to the uplink
//! as they came: now in order, they take the ordinary way.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::programs::TcContext;
use egress_common::fragment::{Direction, Fate};
use egress_common::key::{ReverseKey, TCP, realm};
use egress_common::packet::{self, Ip};
use egress_common::reason::Reason;
use egress_common::slot::flag;
use egress_common::tcp::Way;

use super::{Fragmented, answer, flow, note, reason};
use crate::family::End;
use crate::flow as flows;
use crate::frame::Frame;
use crate::held::Release;
use crate::outgoing::next;
use crate::reply::{deliver, last_hop};
use crate::report;
use crate::verdict::{self, NEXT};

/// A later fragment: translated, held or dropped.
#[inline(never)]
pub fn later<A: Fragmented>(ctx: &TcContext, ip: &Ip<A>) -> i32 {
    translated(ctx, ip).unwrap_or_else(|reason| report::drop(ctx, reason))
}

#[inline(always)]
fn translated<A: Fragmented>(ctx: &TcContext, ip: &Ip<A>) -> Result<i32, Reason> {
    note(ctx, ip, realm::COMMON, Direction::Back).ok_or(Reason::Contended)?;
    let answer = super::later::<A>(ctx);
    if answer == answer::HELD {
        return Ok(verdict::used_up());
    }
    if let Some(reason) = reason(answer) {
        return Err(reason);
    }
    let work = A::work().ok_or(Reason::Contended)?;
    // SAFETY: this CPU's own record.
    if unsafe { (*work).fate } != Fate::Flow as u32 {
        return Err(Reason::FragmentRefused);
    }
    let found = flow::<A>().ok_or(Reason::FragmentRefused)?;
    if found.word.has(flag::EXPIRED) {
        return Err(Reason::FragmentRefused);
    }
    let redirect = found.word.has(flag::REDIRECT);
    let network = ip.network();
    if redirect && last_hop::<A>(&Frame::now(ctx), network) {
        return Err(Reason::Malformed);
    }
    flows::count(ctx, found.slot, Way::Back, ip.length);
    // SAFETY: a live map value of the generation that the first fragment belonged to.
    let (inside, interface) = unsafe { ((*found.slot).flow.inside, (*found.slot).interface) };
    let frame = Frame::now(ctx);
    A::write(&frame, network, End::Destination, ip.destination, inside)
        .map_err(|()| Reason::Malformed)?;
    A::moved(ctx, ip.destination, inside);
    if redirect {
        return deliver::<A>(ctx, network, interface);
    }
    Ok(NEXT)
}

/// A first fragment is noted, and takes the ordinary way; or a verdict.
#[inline(never)]
pub fn first<A: Fragmented>(ctx: &TcContext, ip: &Ip<A>) -> i32 {
    noted(ctx, ip).unwrap_or_else(|reason| report::drop(ctx, reason))
}

#[inline(always)]
fn noted<A: Fragmented>(ctx: &TcContext, ip: &Ip<A>) -> Result<i32, Reason> {
    let frame = Frame::now(ctx);
    note(ctx, ip, realm::COMMON, Direction::Back).ok_or(Reason::Contended)?;
    let (transport, rest) = (ip.transport(), ip.payload());
    // The smallest fragment there can be has the ports, if it is one of ours (RFC 1858).
    if ip.protocol == TCP {
        packet::tcp(&frame, transport, rest).map_err(|_| Reason::FragmentMalformed)?;
    } else {
        packet::udp_first(&frame, transport, rest).map_err(|_| Reason::FragmentMalformed)?;
    }
    let (origin_port, egress_port) =
        packet::ports(&frame, transport).map_err(|_| Reason::FragmentMalformed)?;
    let found = flows::incoming(&ReverseKey {
        egress: ip.destination,
        origin: ip.source,
        egress_port,
        origin_port,
        protocol: ip.protocol,
        pad: 0,
        pad2: 0,
    })
    .ok_or(Reason::Unsolicited)?;
    if found.word.has(flag::EXPIRED) {
        return Err(Reason::Unsolicited);
    }
    let answer = super::first::<A>(ctx, &found);
    if let Some(reason) = reason(answer) {
        return Err(reason);
    }
    let work = A::work().ok_or(Reason::Contended)?;
    // SAFETY: this CPU's own record.
    let work = unsafe { &*work };
    if work.held == 0 {
        return Ok(next::KNOWN);
    }
    Ok(Release::new(ctx, work, BPF_F_INGRESS as u64).run(ctx))
}
