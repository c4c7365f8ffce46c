//! The extension headers of an IPv6 packet, walked within bounds (RFC 8200, section 4).
//!
//! They are copied to a per-CPU record and walked by `bpf_loop`, one header a call: an unrolled walk
//! multiplies the verifier's states at each step.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_loop, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use egress_common::family::V6;
use egress_common::ipv6::{EXTENSIONS_MAX, HEADERS_MAX, IPV6, Walk};
use egress_common::packet::{Ip, Malformed};

use crate::copied::Copied;
use crate::frame::{Frame, between};
use crate::maps::SCRATCH_EXTENSIONS;

/// The headers and how far the walk got.
#[repr(C, align(8))]
pub struct Extensions {
    bytes: [u8; EXTENSIONS_MAX],
    walk: Walk,
}

/// Walks along the extension headers of a packet whose fixed header is `ip`. The transport header is
/// linear afterwards, and frames from before are stale.
///
/// # Errors
/// A header claims to be longer than the packet.
#[inline(always)]
pub fn pass(ctx: &TcContext, ip: &mut Ip<V6>) -> Result<(), Malformed> {
    if walk(ctx, ip) != 0 {
        return Err(Malformed);
    }
    Ok(())
}

/// The same as a function of its own; 0 if all is well.
#[inline(never)]
fn walk(ctx: &TcContext, ip: &mut Ip<V6>) -> i32 {
    let Some(record) = SCRATCH_EXTENSIONS.get_ptr_mut(0) else {
        return 1;
    };
    let begin = Walk::new(ip);
    let length = begin.end;
    let Some(length) = between(length as usize, 1, EXTENSIONS_MAX) else {
        return 1;
    };
    // SAFETY: this CPU's own record; the length is within it.
    let status = unsafe {
        (*record).walk = begin;
        let status = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ip.network_at as u32 + IPV6 as u32,
            (&raw mut (*record).bytes).cast(),
            length as u32,
        );
        bpf_loop(HEADERS_MAX, step as *mut c_void, core::ptr::null_mut(), 0);
        status
    };
    // SAFETY: as above.
    if status != 0 || unsafe { (*record).walk.apply(ip) }.is_err() {
        return 1;
    }
    Frame::reach(ctx, ip.transport() as u32);
    0
}

/// Where the fragment header of the packet that was walked last begins, behind the fixed header, and its
/// offset and flags as they stand there.
#[inline(always)]
pub fn fragment() -> Option<(u32, u32)> {
    let record = SCRATCH_EXTENSIONS.get_ptr_mut(0)?;
    // SAFETY: this CPU's own record.
    let (at, field) = unsafe { ((*record).walk.fragment_at, (*record).walk.fragment) };
    let at = at.checked_sub(1)?;
    if at > EXTENSIONS_MAX as u32 {
        return None;
    }
    Some((at, field))
}

unsafe extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
    let Some(record) = SCRATCH_EXTENSIONS.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's own record.
    let (bytes, mut walk) = unsafe { (Copied(&raw const (*record).bytes), (*record).walk) };
    let more = walk.step(&bytes);
    // SAFETY: as above.
    unsafe { (*record).walk = walk };
    if more { 0 } else { 1 }
}
