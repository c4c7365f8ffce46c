//! TCP options of a SYN, read without teaching the verifier every possible order of them.
//!
//! The list is copied to a per-CPU record and walked by `bpf_loop`, one option a call: an unrolled
//! walk multiplies the verifier's states at each step.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_loop, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::packet::{OPTIONS_MAX, OptionWalk, Options, TCP_MIN};

use crate::copied::Copied;
use crate::frame::between;
use crate::maps::SCRATCH_OPTIONS;

/// The list and how far the walk got. Behind the list there is room for reads at its very end.
#[repr(C, align(8))]
pub struct List {
    bytes: [u8; ROOM],
    walk: OptionWalk,
}

const ROOM: usize = 64;

/// The options of the TCP header at `transport`, `header` bytes long.
#[inline(never)]
pub fn read(ctx: &TcContext, transport: u32, header: u32) -> Options {
    match walked(ctx, transport, header) {
        // SAFETY: this CPU's own record.
        Some(list) => unsafe { (*list).walk.found },
        None => Options::default(),
    }
}

/// The segment size (MSS) that it announces, and where that stands in the header, in the upper half; 0 if it
/// announces none.
#[inline(always)]
pub fn segment_size(ctx: &TcContext, transport: u32, header: u32) -> u32 {
    let Some(list) = walked(ctx, transport, header) else {
        return 0;
    };
    // SAFETY: this CPU's own record.
    let (bytes, at) = unsafe {
        (
            Copied(&raw const (*list).bytes),
            (*list).walk.segment_size_at,
        )
    };
    if at == 0 || at > OPTIONS_MAX as u32 {
        return 0;
    }
    let announced = bytes.u16(at as usize).unwrap_or(0);
    (TCP_MIN as u32 + at) << 16 | announced as u32
}

/// The list, once all of it was looked at.
#[inline(always)]
fn walked(ctx: &TcContext, transport: u32, header: u32) -> Option<*mut List> {
    let list = SCRATCH_OPTIONS.get_ptr_mut(0)?;
    let length = header.wrapping_sub(TCP_MIN as u32);
    let length = between(length as usize, 1, OPTIONS_MAX)?;
    // SAFETY: this CPU's own record; the length is within it.
    unsafe {
        let status = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            transport + TCP_MIN as u32,
            (&raw mut (*list).bytes).cast(),
            length as u32,
        );
        if status != 0 {
            return None;
        }
        (*list).walk = OptionWalk::new(header as u8);
        bpf_loop(
            OPTIONS_MAX as u32,
            step as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    Some(list)
}

unsafe extern "C" fn step(_: u32, _: *mut c_void) -> i64 {
    let Some(list) = SCRATCH_OPTIONS.get_ptr_mut(0) else {
        return 1;
    };
    // SAFETY: this CPU's own record.
    let (bytes, mut walk) = unsafe { (Copied(&raw const (*list).bytes), (*list).walk) };
    let more = walk.step(&bytes);
    // SAFETY: as above.
    unsafe { (*list).walk = walk };
    if more { 0 } else { 1 }
}
