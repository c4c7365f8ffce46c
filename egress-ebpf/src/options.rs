//! TCP options of a SYN, read without teaching the verifier every possible order of them.
//!
//! The list is copied to a per-CPU record and walked by `bpf_loop`, one option a call: an unrolled
//! walk multiplies the verifier's states at each step.

use core::ffi::c_void;

use aya_ebpf::helpers::{bpf_loop, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
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
    let Some(list) = SCRATCH_OPTIONS.get_ptr_mut(0) else {
        return Options::default();
    };
    let length = header.wrapping_sub(TCP_MIN as u32);
    let Some(length) = between(length as usize, 1, OPTIONS_MAX) else {
        return Options::default();
    };
    // SAFETY: this CPU's own record; the length is within it.
    unsafe {
        let status = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            transport + TCP_MIN as u32,
            (&raw mut (*list).bytes).cast(),
            length as u32,
        );
        if status != 0 {
            return Options::default();
        }
        (*list).walk = OptionWalk::new(header as u8);
        bpf_loop(
            OPTIONS_MAX as u32,
            step as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
        (*list).walk.found
    }
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
