//! Records for the flow log (OBS-4): what opened, closed and was refused.
//!
//! Nothing waits for the log. A record that does not fit is lost and counted, and nobody is woken: the reader comes by
//! when it likes. Refusals leave half of the ring to flows, so that a flood of them hides no connection.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_ringbuf_query};
use egress_common::reason::Reason;
use egress_common::record::{self, Cause, FORMAT, Flow, Head, Refusal, kind, version_of};
use egress_common::slot::{Slot, State};

use crate::classify::Configuration;
use crate::family::Family;
use crate::maps::FLOW_LOG;
use crate::outgoing::Outgoing;
use crate::report;

/// Tells of a flow that a packet has opened.
#[inline(always)]
pub fn opened<A: Family>(index: u32, slot: *mut Slot<A>, packet: &Outgoing<A>) {
    flow::<A>(slot, index, policy(packet), kind::OPEN as u32);
}

/// The policy that decided about a packet of a known zone.
#[inline(always)]
fn policy<A>(packet: &Outgoing<A>) -> u32 {
    record::policy(packet.version, packet.policy)
}

/// Tells of a flow that has left the count; `state` is the one it left.
#[inline(always)]
pub fn closed<A: Family>(index: u32, slot: *mut Slot<A>, state: State, cause: Cause) {
    flow::<A>(
        slot,
        index,
        0,
        kind::CLOSE as u32 | (cause as u32) << 8 | (state as u32) << 16,
    );
}

/// Whether such records are wanted.
#[inline(always)]
fn wanted(kind: u32) -> bool {
    Configuration::now().is_some_and(|now| now.settings().log >> (kind & 7) & 1 != 0)
}

/// What a record begins with.
#[inline(always)]
fn head<A: Family>(kind: u8, cause: u8) -> Head {
    Head {
        // SAFETY: a helper without preconditions.
        time: unsafe { bpf_ktime_get_ns() },
        format: FORMAT,
        kind,
        version: version_of::<A>(),
        cause,
        state: 0,
        index: 0,
        policy: 0,
    }
}

/// Writes a record with a copy of the slot; `what` is kind, cause and state, a byte each.
#[inline(never)]
fn flow<A: Family>(slot: *mut Slot<A>, index: u32, policy: u32, what: u32) -> i32 {
    if !wanted(what) {
        return 0;
    }
    let Some(mut entry) = FLOW_LOG.reserve_untyped::<Flow<A>>(0) else {
        report::count_bytes(Reason::FlowLogLost, 0);
        return 0;
    };
    let record = entry.as_mut_ptr();
    // SAFETY: as much memory as a record has, all of which is written; a live map value, of which a copy that others
    // change meanwhile is as good as one a moment earlier.
    unsafe {
        (*record).head = Head {
            state: (what >> 16) as u8,
            index,
            policy,
            ..head::<A>(what as u8, (what >> 8) as u8)
        };
        core::ptr::copy_nonoverlapping(slot, &raw mut (*record).slot, 1);
    }
    entry.submit(BPF_RB_NO_WAKEUP as u64);
    0
}

/// Tells of a refused packet.
#[inline(never)]
pub fn refused<A: Family>(packet: &Outgoing<A>) -> i32 {
    if !wanted(kind::REFUSED as u32) {
        return 0;
    }
    // SAFETY: a ring buffer, and questions it knows.
    let (waiting, size) = unsafe {
        let ring = (&raw const FLOW_LOG).cast_mut();
        (
            bpf_ringbuf_query(ring.cast(), BPF_RB_AVAIL_DATA as u64),
            bpf_ringbuf_query(ring.cast(), BPF_RB_RING_SIZE as u64),
        )
    };
    if waiting > size / 2 {
        report::count_bytes(Reason::FlowLogLost, 0);
        return 0;
    }
    let Some(mut entry) = FLOW_LOG.reserve_untyped::<Refusal<A>>(0) else {
        report::count_bytes(Reason::FlowLogLost, 0);
        return 0;
    };
    // Left over from an earlier packet where it never came to a zone.
    let (pool, policy) = match packet.zone {
        0 => (0, 0),
        _ => (packet.pool, policy(packet)),
    };
    entry.write(Refusal {
        head: Head {
            policy,
            ..head::<A>(kind::REFUSED, packet.reason as u32 as u8)
        },
        flow: packet.key,
        zone: packet.zone,
        pool,
    });
    entry.submit(BPF_RB_NO_WAKEUP as u64);
    0
}
