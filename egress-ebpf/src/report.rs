//! Counting and reporting what is dropped.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use egress_common::packet::{Header, Ip};
use egress_common::port;
use egress_common::reason::{Event, Reason, of_effort};

use crate::maps::{EVENTS, REASONS};
use crate::verdict::DROP;

/// Who was dropped, as far as it is known.
#[derive(Clone, Copy, Default)]
pub struct Subject {
    pub zone: u32,
    pub source_port: u16,
    pub destination_port: u16,
}

/// Counts a packet under a reason.
#[inline(always)]
pub fn count(ctx: &TcContext, reason: Reason) {
    count_bytes(reason, ctx.len());
}

/// Counts a flow that got its port after so many were tried (OBS-3).
#[inline(always)]
pub fn effort(tried: u32) {
    add(of_effort(port::effort(tried)), tried);
}

/// Counts one packet of `bytes` bytes under a reason.
#[inline(always)]
pub fn count_bytes(reason: Reason, bytes: u32) {
    add(reason as u32, bytes);
}

#[inline(always)]
fn add(counter: u32, bytes: u32) {
    if let Some(counter) = REASONS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own element; nothing else writes it meanwhile.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes as u64;
        }
    }
}

/// Counts and drops.
#[inline(always)]
pub fn drop(ctx: &TcContext, reason: Reason) -> i32 {
    count(ctx, reason);
    DROP
}

/// Counts and reports a refused or dropped packet of a zone.
#[inline(always)]
pub fn refused<A: Header>(ctx: &TcContext, reason: Reason, ip: &Ip<A>, subject: Subject) {
    count(ctx, reason);
    let Some(mut entry) = EVENTS.reserve(0) else {
        count_bytes(Reason::EventLost, 0);
        return;
    };
    entry.write(Event {
        // SAFETY: a helper without preconditions.
        time: unsafe { bpf_ktime_get_ns() },
        reason: reason as u32,
        zone: subject.zone,
        source: ip.source.wide(),
        destination: ip.destination.wide(),
        source_port: subject.source_port,
        destination_port: subject.destination_port,
        protocol: ip.protocol,
        version: if A::LEN == 4 { 4 } else { 6 },
        pad: [0; 2],
    });
    entry.submit(0);
}
