//! Fragments that leave: steps of [`crate::uplink`].

use aya_ebpf::programs::TcContext;
use egress_common::fragment::{Direction, Fate};
use egress_common::reason::Reason;
use egress_common::slot::flag;
use egress_common::tag::Tag;
use egress_common::tcp::Way;

use super::{Fragmented, answer, fated, flow, reason};
use crate::family::End;
use crate::flow as flows;
use crate::frame::Frame;
use crate::held::Release;
use crate::outgoing::{Outgoing, next};
use crate::report;
use crate::verdict::{self, NEXT};

/// A later fragment that may belong to a known datagram.
#[inline(never)]
pub fn known<A: Fragmented>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    if note(ctx, packet).is_none() {
        return report::drop(ctx, Reason::Contended);
    }
    match super::known::<A>(ctx) {
        answer::UNKNOWN => next::CLASSIFY,
        answer => later_one(ctx, packet, answer),
    }
}

#[inline(always)]
fn note<A: Fragmented>(ctx: &TcContext, packet: &Outgoing<A>) -> Option<()> {
    super::note(ctx, &packet.ip, packet.key.realm, Direction::Out)
}

/// A later fragment of a bound zone.
#[inline(never)]
pub fn later<A: Fragmented>(ctx: &TcContext, packet: &mut Outgoing<A>) -> i32 {
    // Of the others `known` has taken note.
    if matches!(packet.tag, Tag::Unbound(_)) && note(ctx, packet).is_none() {
        return report::drop(ctx, Reason::Contended);
    }
    let answer = super::later::<A>(ctx);
    match later_one(ctx, packet, answer) {
        // Its first one was dealt with by another CPU this very moment.
        next::FORWARD => report::drop(ctx, Reason::Contended),
        verdict => verdict,
    }
}

#[inline(always)]
fn later_one<A: Fragmented>(ctx: &TcContext, packet: &mut Outgoing<A>, answer: i32) -> i32 {
    if answer == answer::HELD {
        return verdict::used_up();
    }
    if let Some(reason) = reason(answer) {
        return report::drop(ctx, reason);
    }
    match translate(ctx, packet) {
        Ok(NEXT) => verdict::done(ctx),
        Ok(step) => step,
        Err(reason) => report::drop(ctx, reason),
    }
}

/// Gives a later fragment its flow's address and its datagram's identification; it holds no ports. Or says that
/// another server does.
#[inline(always)]
fn translate<A: Fragmented>(ctx: &TcContext, packet: &mut Outgoing<A>) -> Result<i32, Reason> {
    let work = A::work().ok_or(Reason::Contended)?;
    // SAFETY: this CPU's own record.
    let (fate, identification) = unsafe { ((*work).fate, (*work).identification) };
    match Fate::from_number(fate) {
        Fate::Pass => return Ok(NEXT),
        Fate::Flow => {}
        _ => return Err(Reason::FragmentRefused),
    }
    let found = flow::<A>().ok_or(Reason::FragmentRefused)?;
    if found.word.has(flag::EXPIRED) {
        return Err(Reason::FragmentRefused);
    }
    if found.word.has(flag::FORWARDED) {
        // SAFETY: a live map value of the generation that the first fragment belonged to.
        packet.zone = unsafe { (*found.slot).zone } as u32;
        return Ok(next::FORWARD);
    }
    flows::count(ctx, found.slot, Way::Out, packet.ip.length);
    // SAFETY: a live map value of the generation that the first fragment belonged to.
    let egress = unsafe { (*found.slot).egress };
    let frame = Frame::now(ctx);
    let network = packet.ip.network();
    A::write(&frame, network, End::Source, packet.ip.source, egress)
        .and_then(|()| A::renumber(&frame, network, identification))
        .map_err(|()| Reason::Malformed)?;
    A::moved(ctx, packet.ip.source, egress);
    Ok(NEXT)
}

/// A first fragment that is to open a flow: none is opened for one that will be dropped.
#[inline(never)]
pub fn foreseen<A: Fragmented>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    if note(ctx, packet).is_none() {
        return report::drop(ctx, Reason::Contended);
    }
    match reason(super::foreseen::<A>(ctx)) {
        Some(reason) => report::drop(ctx, reason),
        None => next::ADMIT,
    }
}

/// A first fragment whose flow is known, before anything is changed.
#[inline(never)]
pub fn first<A: Fragmented>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    let (Some(()), Some(found)) = (note(ctx, packet), flows::at::<A>(packet.slot)) else {
        return report::drop(ctx, Reason::Contended);
    };
    match reason(super::first::<A>(ctx, &found)) {
        Some(reason) => report::drop(ctx, reason),
        None => next::LEAVE,
    }
}

/// A first fragment has its egress IP; it gets its identification.
#[inline(never)]
pub fn translated<A: Fragmented>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    let Some(work) = A::work() else {
        return report::drop(ctx, Reason::Contended);
    };
    // SAFETY: this CPU's own record.
    let (identification, held) = unsafe { ((*work).identification, (*work).held) };
    if A::renumber(&Frame::now(ctx), packet.ip.network(), identification).is_err() {
        return report::drop(ctx, Reason::Malformed);
    }
    done(ctx, held)
}

/// A first fragment takes the default egress by its port.
#[inline(never)]
pub fn pass<A: Fragmented>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    if note(ctx, packet).is_none() {
        return report::drop(ctx, Reason::Contended);
    }
    let answer = fated::<A>(ctx, Fate::Pass);
    if let Some(reason) = reason(answer) {
        return report::drop(ctx, reason);
    }
    let Some(work) = A::work() else {
        return report::drop(ctx, Reason::Contended);
    };
    // SAFETY: this CPU's own record.
    done(ctx, unsafe { (*work).held })
}

#[inline(always)]
fn done(ctx: &TcContext, held: u32) -> i32 {
    verdict::set_tag(ctx, Tag::Done);
    if held == 0 { NEXT } else { next::RELEASE }
}

/// A first fragment is refused, and the later ones with it.
#[inline(never)]
pub fn refuse<A: Fragmented>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    match note(ctx, packet) {
        Some(()) => fated::<A>(ctx, Fate::Dropped),
        None => answer::UNKNOWN,
    }
}

/// The fragments that waited for this one follow it.
#[inline(never)]
pub fn release<A: Fragmented>(ctx: &TcContext) -> i32 {
    let Some(work) = A::work() else {
        return report::drop(ctx, Reason::Contended);
    };
    // SAFETY: this CPU's own record, and nobody else's until the first copy is sent.
    let work = unsafe { &*work };
    let release = Release::new(ctx, work, 0);
    if work.fate == Fate::Flow as u32 {
        return release.from(work.egress, work.identification).run(ctx);
    }
    release.run(ctx)
}
