//! Answering ARP for egress IPs on the uplink (ANN-1), so that they work on a plain segment without
//! becoming addresses of the host.

use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::settings::egress_flag;

use crate::classify::Configuration;
use crate::family::Family;
use crate::frame::Frame;
use crate::maps::DEVICES;
use crate::verdict::{self, NEXT};

/// Ethernet and IPv4, six- and four-byte addresses, request (RFC 826).
const REQUEST: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 1];
/// The same as a reply.
const REPLY: [u8; 8] = [0, 1, 8, 0, 6, 4, 0, 2];

/// Answers a request at `offset` of the frame, or leaves it to the kernel.
#[inline(never)]
pub fn answer(ctx: &TcContext, offset: usize) -> i32 {
    try_answer(ctx, &Frame::now(ctx), offset).unwrap_or(NEXT)
}

#[inline(always)]
fn try_answer(ctx: &TcContext, frame: &Frame, offset: usize) -> Option<i32> {
    if frame.read::<8>(offset)? != REQUEST {
        return None;
    }
    let sender_mac = frame.read::<6>(offset + 8)?;
    let sender = frame.read::<4>(offset + 14)?;
    let target = frame.read::<4>(offset + 24)?;
    let address = <[u8; 4]>::egress(&target)?;
    // An announcement of the address by somebody else is not a question.
    if address.flags & egress_flag::ANSWER == 0 || sender == target || sender_mac[0] & 1 != 0 {
        return None;
    }
    if Configuration::now()?.settings().answer_arp == 0 {
        return None;
    }
    let interface = verdict::interface(ctx);
    // SAFETY: a map value that the daemon replaces as a whole.
    let mac = DEVICES
        .get_ptr(interface)
        .map(|device| unsafe { (*device).mac })?;
    // SAFETY: `at` has checked the bounds of each place.
    unsafe {
        *frame.at::<8>(offset)? = REPLY;
        *frame.at::<6>(offset + 8)? = mac;
        *frame.at::<4>(offset + 14)? = target;
        *frame.at::<6>(offset + 18)? = sender_mac;
        *frame.at::<4>(offset + 24)? = sender;
        *frame.at::<6>(0)? = sender_mac;
        *frame.at::<6>(6)? = mac;
        // SAFETY: sends the packet out of the interface it came from.
        Some(bpf_redirect(interface, 0) as i32)
    }
}
