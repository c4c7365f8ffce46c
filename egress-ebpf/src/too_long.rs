//! "Fragmentation needed" for a packet of a forwarded connection that does not fit where it goes (NAT-5; RFC 1191).
//!
//! The answer is built in front of the refused packet, which stays where it is and becomes the quote. A checksum that
//! is left to the device is then still where the device will look for it. What it will write is known before: it makes
//! the sum over the transport part the complement of what stands in the field now.

use aya_ebpf::helpers::bpf_skb_change_head;
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::checksum::{fold, sum};
use egress_common::family::V4;
use egress_common::key::{ICMP, TCP};
use egress_common::packet::{ETHERNET, IPV4_MIN, TCP_MIN};
use egress_common::reason::Reason;
use egress_common::reply::{CODE_TOO_LONG, ICMP_HEADER, QUOTED, TTL, UNREACHABLE};

use crate::frame::Frame;
use crate::outgoing::Outgoing;
use crate::refuse::{ANSWERED, allowed, set_length, store};
use crate::report;
use crate::verdict;

/// Where the checksum stands in a TCP and in a UDP header.
const SUM_OF_TCP: usize = 16;
const SUM_OF_UDP: usize = 6;
/// Bytes of an answer before its quote, without link layer.
const IN_FRONT: usize = IPV4_MIN + ICMP_HEADER;
/// "Do not fragment" (RFC 791).
const DF: u16 = 0x4000;

/// Whether the packet, or a packet it stands for, is longer than `mtu`, and cannot be cut: because it must not be, or
/// because nothing is `cut` there.
#[inline(always)]
pub fn is(ctx: &TcContext, packet: &Outgoing<V4>, mtu: u32, cut: bool) -> bool {
    let size = verdict::segment_size(ctx);
    let length = if size == 0 {
        packet.ip.length
    } else {
        let header = if packet.ip.protocol == TCP {
            packet.segment.header as u32
        } else {
            QUOTED as u32
        };
        packet.ip.header() as u32 + header + size
    };
    length > mtu
        && (!cut
            || Frame::now(ctx)
                .u16(packet.ip.network() + 6)
                .is_some_and(|flags| flags & DF != 0))
}

/// Turns the packet into the error that says how long it may be: [`ANSWERED`], or a verdict.
#[inline(never)]
pub fn answer(ctx: &TcContext, packet: &Outgoing<V4>, mtu: u32) -> i32 {
    report::count(ctx, Reason::PathTooLong);
    if !allowed() {
        return report::drop(ctx, Reason::ReplyLimited);
    }
    match make(ctx, packet, mtu) {
        Some(()) => ANSWERED,
        None => report::drop(ctx, Reason::Unanswerable),
    }
}

#[inline(always)]
fn make(ctx: &TcContext, packet: &Outgoing<V4>, mtu: u32) -> Option<()> {
    let ip = &packet.ip;
    if ip.network() != ETHERNET {
        return None;
    }
    let transport = ip.transport();
    let (field, shortest) = if ip.protocol == TCP {
        (SUM_OF_TCP, TCP_MIN)
    } else {
        (SUM_OF_UDP, QUOTED)
    };
    let checksum: [u8; 2] = Frame::now(ctx).read(transport + field)?;
    // One byte too few, if it is left to the device: see the top of `refuse.rs`.
    let left_to_device = set_length(ctx, transport + field + 1).is_err();
    let quoted = if left_to_device { shortest } else { QUOTED };
    set_length(ctx, transport + quoted).ok()?;
    // The sum of the quote: that of a whole IP header is zero.
    let quote = if left_to_device {
        !u16::from_be_bytes(checksum) as u32
    } else {
        if ip.protocol != TCP {
            // Half of it was cut off.
            store(ctx, transport + field, checksum).ok()?;
        }
        sum(&Frame::now(ctx).read::<QUOTED>(transport)?)
    };
    // SAFETY: the helper checks the length.
    let status = unsafe { bpf_skb_change_head(ctx.skb.skb, IN_FRONT as u32, 0) };
    if status != 0 {
        return None;
    }
    let link = Frame::now(ctx).read::<ETHERNET>(IN_FRONT)?;
    store(ctx, 0, link).ok()?;
    let [l0, l1] = ((IN_FRONT + ip.header() + quoted) as u16).to_be_bytes();
    let [s0, s1, s2, s3] = ip.destination;
    let [d0, d1, d2, d3] = ip.source;
    let mut header: [u8; IPV4_MIN] = [
        0x45, 0, l0, l1, 0, 0, 0x40, 0, TTL, ICMP, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3,
    ];
    [header[10], header[11]] = (!fold(sum(&header))).to_be_bytes();
    store(ctx, ETHERNET, header).ok()?;
    let [m0, m1] = (mtu as u16).to_be_bytes();
    let mut error: [u8; ICMP_HEADER] = [UNREACHABLE, CODE_TOO_LONG, 0, 0, 0, 0, m0, m1];
    [error[2], error[3]] = (!fold(sum(&error) + quote)).to_be_bytes();
    store(ctx, ETHERNET + IPV4_MIN, error).ok()
}
