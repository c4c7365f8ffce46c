//! Fragments that arrive for an egress IP: steps of [`crate::reply`].
//!
//! Where later fragments were held, the first one and then all of them are handed back to the uplink
//! as they came: now in order, they take the ordinary way.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::programs::TcContext;
use egress_common::fragment::{Direction, Fate};
use egress_common::key::{Reference, ReverseKey, TCP, realm};
use egress_common::packet;
use egress_common::reason::Reason;
use egress_common::slot::flag;
use egress_common::tag::Tag;
use egress_common::tcp::Way;

use super::{Fragmented, answer, fated, flow, note, reason};
use crate::family::End;
use crate::flow as flows;
use crate::frame::Frame;
use crate::held::{Release, TUNNELLED};
use crate::outgoing::next;
use crate::reply::{Incoming, deliver, last_hop};
use crate::report;
use crate::verdict::{self, NEXT};

/// A later fragment: translated, held or dropped.
#[inline(never)]
pub fn later<A: Fragmented>(ctx: &TcContext, packet: &mut Incoming<A>) -> i32 {
    translated(ctx, packet).unwrap_or_else(|reason| report::drop(ctx, reason))
}

/// Takes note of the fragment, and of where it came from: what is held may not go through the tunnel twice.
#[inline(always)]
fn noted_back<A: Fragmented>(ctx: &TcContext, packet: &Incoming<A>) -> Result<(), Reason> {
    note(ctx, &packet.ip, realm::COMMON, Direction::Back).ok_or(Reason::Contended)?;
    if packet.is_tunnelled() {
        let work = A::work().ok_or(Reason::Contended)?;
        // SAFETY: this CPU's own record.
        unsafe { (*work).network |= TUNNELLED };
    }
    Ok(())
}

#[inline(always)]
fn translated<A: Fragmented>(ctx: &TcContext, packet: &mut Incoming<A>) -> Result<i32, Reason> {
    noted_back(ctx, packet)?;
    let answer = super::later::<A>(ctx);
    if answer == answer::HELD {
        return Ok(verdict::used_up());
    }
    if let Some(reason) = reason(answer) {
        return Err(reason);
    }
    let work = A::work().ok_or(Reason::Contended)?;
    // SAFETY: this CPU's own record.
    let (fate, flow_of) = unsafe { ((*work).fate, (*work).flow) };
    if fate == Fate::Elsewhere as u32 {
        packet.owner = flow_of.index;
        return Ok(next::ELSEWHERE);
    }
    if fate != Fate::Flow as u32 {
        return Err(Reason::FragmentRefused);
    }
    let ip = &packet.ip;
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
    let (inside, interface, space) = unsafe {
        (
            (*found.slot).flow.inside,
            (*found.slot).interface,
            (*found.slot).flow.realm,
        )
    };
    let frame = Frame::now(ctx);
    A::write(&frame, network, End::Destination, ip.destination, inside)
        .map_err(|()| Reason::Malformed)?;
    A::moved(ctx, ip.destination, inside);
    if let Some(server) = realm::peer(space) {
        packet.owner = server;
        return Ok(next::HOME);
    }
    if redirect {
        return deliver::<A>(ctx, network, interface);
    }
    Ok(NEXT)
}

/// A first fragment is noted, and takes the ordinary way; or a verdict.
#[inline(never)]
pub fn first<A: Fragmented>(ctx: &TcContext, packet: &mut Incoming<A>) -> i32 {
    noted(ctx, packet).unwrap_or_else(|reason| report::drop(ctx, reason))
}

#[inline(always)]
fn noted<A: Fragmented>(ctx: &TcContext, packet: &mut Incoming<A>) -> Result<i32, Reason> {
    let frame = Frame::now(ctx);
    noted_back(ctx, packet)?;
    let ip = &packet.ip;
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
    });
    let work = A::work().ok_or(Reason::Contended)?;
    let (answer, step) = match found {
        Some(found) if found.word.has(flag::EXPIRED) => return Err(Reason::Unsolicited),
        Some(found) => (super::first::<A>(ctx, &found), next::KNOWN),
        None if packet.missed(egress_port) => {
            // SAFETY: this CPU's own record.
            unsafe {
                (*work).flow = Reference {
                    index: packet.owner,
                    generation: 0,
                };
            }
            (fated::<A>(ctx, Fate::Elsewhere), next::ELSEWHERE)
        }
        None => return Err(Reason::Unsolicited),
    };
    if let Some(reason) = reason(answer) {
        return Err(reason);
    }
    // SAFETY: this CPU's own record.
    let work = unsafe { &*work };
    if work.held == 0 {
        return Ok(step);
    }
    if packet.is_tunnelled() {
        verdict::set_tag(ctx, Tag::Done);
    }
    Ok(Release::new(ctx, work, BPF_F_INGRESS as u64).run(ctx))
}
