//! What stands in front of the network header: an Ethernet header and its VLAN tags, or nothing (tun, wireguard).

use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::packet::{self, Network};

use crate::frame::Frame;
use crate::maps::DEVICES;
use crate::verdict;

/// Makes the headers linear and reads the link layer of a packet of the interface the program runs on.
#[inline(always)]
pub fn network(ctx: &TcContext) -> Option<Network> {
    match located(ctx) {
        0 => None,
        found => Some(Network {
            ethertype: (found >> 16) as u16,
            offset: (found & 0xff) as usize,
        }),
    }
}

/// Ethertype and offset in one number, because that is what a subprogram can return; 0 is neither.
///
/// The kernel says what a packet carries (`skb->protocol`), not whether a header says so too. A frame that begins like
/// no IP packet and whose Ethernet header agrees with the kernel is Ethernet, without asking; for the others the daemon
/// has noted of which kind the interface is.
#[inline(never)]
fn located(ctx: &TcContext) -> u32 {
    let frame = Frame::headers(ctx);
    let protocol = verdict::protocol(ctx);
    if packet::begins(&frame, protocol) && is_bare(ctx, frame.u16(12) == Some(protocol)) {
        return (protocol as u32) << 16;
    }
    packet::ethernet(&frame).map_or(0, |network| {
        (network.ethertype as u32) << 16 | network.offset as u32
    })
}

/// Whether the interface has no link layer. One that is not noted yet is judged by whether a header `agrees`.
#[inline(always)]
fn is_bare(ctx: &TcContext, agrees: bool) -> bool {
    match DEVICES.get_ptr(verdict::interface(ctx)) {
        // SAFETY: a map value that the daemon replaces as a whole.
        Some(device) => unsafe { (*device).is_bare() },
        None => !agrees,
    }
}
