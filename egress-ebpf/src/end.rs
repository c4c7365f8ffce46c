//! Ending a flow on purpose, and telling both ends of one that ended without their doing.
//!
//! A timer cannot send packets, so the sweep tells the daemon ([`tell`]). The daemon makes two segments
//! as the origin would have sent them and puts them on the uplink's way in ([`inject`]): a RST, which is
//! translated back to the inside like any other, whatever realm, mark or socket it belongs to; and an
//! acknowledgment, which meets a flow that is over and is answered by the RST for the origin
//! ([`crate::over`]). Without a daemon the next packet of either side gets the same answers.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::{bpf_clone_redirect, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use egress_common::ended::{self, Ended};
use egress_common::family::{V4, V6};
use egress_common::key::{Reference, TCP};
use egress_common::record::Cause;
use egress_common::slot::{State, flag};

use crate::family::Family;
use crate::flow::{self, Found};
use crate::maps::ENDED;
use crate::{slots, verdict};

/// Tells the daemon that the sweep has ended this flow.
#[inline(always)]
pub fn tell<A: Family>(found: &Found<A>) {
    // The next packet of either side is answered in any case.
    if let Some(mut entry) = ENDED.reserve(0) {
        entry.write(Ended::new::<A>(Reference {
            index: found.index,
            generation: found.word.generation,
        }));
        entry.submit(0);
    }
}

/// Puts the packet on the way in of the interface it is said to be on.
#[inline(always)]
pub fn inject(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let status =
        unsafe { bpf_clone_redirect(ctx.skb.skb, verdict::interface(ctx), BPF_F_INGRESS as u64) };
    (status == 0) as i32
}

/// Ends the flow that the packet names behind its link-layer header; 1 if it was alive.
#[inline(always)]
pub fn run(ctx: &TcContext) -> i32 {
    let mut wanted = Ended::default();
    // SAFETY: the helper writes as many bytes as the record has.
    let status = unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ended::OFFSET,
            (&raw mut wanted).cast(),
            size_of::<Ended>() as u32,
        )
    };
    if status != 0 {
        return 0;
    }
    let ended = if wanted.version == 6 {
        one::<V6>(wanted)
    } else {
        one::<V4>(wanted)
    };
    ended as i32
}

/// Ends a counted flow as idleness would: TCP closes, its port rests and both ends can be told; of UDP
/// nothing is left.
#[inline(always)]
fn one<A: Family>(wanted: Ended) -> bool {
    let reference = wanted.reference();
    let cause = if wanted.cause == Cause::ZoneMoved as u32 {
        Cause::ZoneMoved
    } else {
        Cause::Operator
    };
    // Again if a packet of the flow has advanced it meanwhile.
    for _ in 0..4 {
        let Some(found) = flow::at::<A>(reference.index) else {
            return false;
        };
        if found.word.generation != reference.generation || !found.word.state.is_counted() {
            return false;
        }
        let now = slots::now();
        // SAFETY: a live map value.
        let protocol = unsafe { (*found.slot).flow.protocol };
        let ended = if protocol == TCP {
            let closed = found
                .word
                .with_state(State::Closed)
                .with_flags(flag::EXPIRED | flag::RESET);
            slots::close(&found, found.word, closed, cause, now)
        } else {
            slots::unlink(&found, cause, now)
        };
        if ended {
            return true;
        }
    }
    false
}
