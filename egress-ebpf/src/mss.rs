//! The segment size that a SYN announces (MSS), lowered to what fits the tunnel: so neither end of a forwarded
//! connection sends what the servers between them would have to cut (NAT-5; RFC 9293, section 3.7.1).

use aya_ebpf::helpers::bpf_l4_csum_replace;
use aya_ebpf::programs::TcContext;
use egress_common::packet::{IPV4_MIN, TCP_MIN};

use crate::options;
use crate::refuse::store;
use crate::steer;

/// Headers without options, which are no part of the segment size.
const HEADERS: u32 = (IPV4_MIN + TCP_MIN) as u32;

/// Lowers the segment size of the SYN whose TCP header of `header` bytes is at `transport`; false if it could not be
/// written. A SYN that announces none means 536 bytes, which fit.
#[inline(never)]
pub fn fit(ctx: &TcContext, transport: u32, header: u32) -> bool {
    let most = steer::room().wrapping_sub(HEADERS) & 0xffff;
    if steer::room() <= HEADERS {
        // Nothing is known of the tunnel.
        return true;
    }
    let found = options::segment_size(ctx, transport, header);
    let (at, announced) = (found >> 16, found as u16);
    if at == 0 || announced as u32 <= most {
        return true;
    }
    let (mut from, mut to) = (announced.to_be(), (most as u16).to_be());
    if at & 1 != 0 {
        // It lies across two words of the checksum.
        (from, to) = (from.swap_bytes(), to.swap_bytes());
    }
    // SAFETY: the helper checks the offset.
    let status =
        unsafe { bpf_l4_csum_replace(ctx.skb.skb, transport + 16, from as u64, to as u64, 2) };
    status == 0 && store(ctx, (transport + at) as usize, (most as u16).to_be_bytes()).is_ok()
}
