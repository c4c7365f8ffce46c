//! "Fragmentation needed", or "packet too big": for what does not fit where another server is to get it, and nobody cuts
//! (NAT-5; RFC 1191, RFC 4443, section 3.2).
//!
//! The answer is built in front of the refused packet, which stays where it is and becomes the quote. A checksum that
//! is left to the device is then still where the device will look for it. What it will write is known before: it makes
//! the sum over the transport part the complement of what stands in the field now.

use aya_ebpf::helpers::{bpf_csum_diff, bpf_skb_change_head, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::checksum::{fold, sum};
use egress_common::family::{V4, V6};
use egress_common::ipv6::{self, IPV6};
use egress_common::key::{ICMP, ICMPV6, TCP};
use egress_common::packet::{ETHERNET, IPV4_MIN, Ip, Ipv4, TCP_MIN};
use egress_common::reason::Reason;
use egress_common::reply::{CODE_TOO_LONG, ICMP_HEADER, QUOTED, TTL, UNREACHABLE};

use crate::family::Family;
use crate::frame::{Frame, between};
use crate::maps::SCRATCH_QUOTE;
use crate::refuse::{ANSWERED, QUOTE, Quote, allowed, set_length, store};
use crate::zero::zero;
use crate::{report, steer, verdict};

/// Where the checksum stands in a TCP and in a UDP header.
const SUM_OF_TCP: usize = 16;
const SUM_OF_UDP: usize = 6;
/// "Do not fragment" (RFC 791).
const DF: u16 = 0x4000;

/// What of the answer differs between the families.
pub trait Told: Family {
    /// Nobody believes that a path takes less.
    const LEAST: u32;

    /// Writes the answer's IP header behind the link layer: from where the packet was going, to who sent it.
    fn in_front(ctx: &TcContext, ip: &Ip<Self>, payload: usize) -> Option<()>;
    /// The ICMP header that says how long a packet may be.
    fn too_long(mtu: u32) -> [u8; ICMP_HEADER];
}

impl Told for V4 {
    const LEAST: u32 = 0;

    #[inline(always)]
    fn in_front(ctx: &TcContext, ip: &Ip<Self>, payload: usize) -> Option<()> {
        let [l0, l1] = ((IPV4_MIN + payload) as u16).to_be_bytes();
        let [s0, s1, s2, s3] = ip.destination;
        let [d0, d1, d2, d3] = ip.source;
        let mut header: [u8; IPV4_MIN] = [
            0x45, 0, l0, l1, 0, 0, 0x40, 0, TTL, ICMP, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3,
        ];
        [header[10], header[11]] = (!fold(sum(&header))).to_be_bytes();
        store(ctx, ETHERNET, header).ok()
    }

    #[inline(always)]
    fn too_long(mtu: u32) -> [u8; ICMP_HEADER] {
        let [m0, m1] = (mtu as u16).to_be_bytes();
        [UNREACHABLE, CODE_TOO_LONG, 0, 0, 0, 0, m0, m1]
    }
}

impl Told for V6 {
    /// RFC 8200, section 5.
    const LEAST: u32 = 1_280;

    #[inline(always)]
    fn in_front(ctx: &TcContext, ip: &Ip<Self>, payload: usize) -> Option<()> {
        let [l0, l1] = (payload as u16).to_be_bytes();
        store(ctx, ETHERNET, [0x60, 0, 0, 0, l0, l1, ICMPV6, TTL]).ok()?;
        store(ctx, ETHERNET + 8, ip.destination).ok()?;
        store(ctx, ETHERNET + 24, ip.source).ok()
    }

    #[inline(always)]
    fn too_long(mtu: u32) -> [u8; ICMP_HEADER] {
        let [m0, m1, m2, m3] = mtu.to_be_bytes();
        [ipv6::icmp::TOO_BIG, 0, 0, 0, m0, m1, m2, m3]
    }
}

const _: () = assert!(IPV6 == <V6 as Family>::HEADER && IPV4_MIN == <V4 as Family>::HEADER);

/// Length of the packet, or of the longest of those that it stands for.
#[inline(always)]
fn length<A>(ctx: &TcContext, ip: &Ip<A>) -> u32 {
    let size = verdict::segment_size(ctx);
    if size == 0 {
        return ip.length;
    }
    let header = if ip.protocol == TCP {
        let offset = Frame::now(ctx).u8(ip.transport() + 12);
        (offset.unwrap_or(0) >> 4) as u32 * 4
    } else {
        QUOTED as u32
    };
    ip.header() as u32 + header + size
}

/// Whether the packet, or a packet it stands for, is longer than `mtu`, and cannot be cut: because it must not be, or
/// because nothing is `cut` there.
#[inline(always)]
pub fn is(ctx: &TcContext, ip: &Ipv4, mtu: u32, cut: bool) -> bool {
    length(ctx, ip) > mtu
        && (!cut
            || Frame::now(ctx)
                .u16(ip.network() + 6)
                .is_some_and(|flags| flags & DF != 0))
}

/// Whether the packet, or a packet it stands for, is too long for the tunnel as it is.
#[inline(always)]
pub fn for_tunnel<A>(ctx: &TcContext, ip: &Ip<A>) -> bool {
    let limit = steer::limit();
    limit != 0 && length(ctx, ip) > limit
}

/// Turns the packet into the error that says how long it may be: [`ANSWERED`], or a verdict.
#[inline(never)]
pub fn answer<A: Told>(ctx: &TcContext, ip: &Ip<A>, mtu: u32) -> i32 {
    if !A::answerable(ip) || mtu < A::LEAST {
        return report::drop(ctx, Reason::ForwardedTooLong);
    }
    report::count(ctx, Reason::PathTooLong);
    if !allowed() {
        return report::drop(ctx, Reason::ReplyLimited);
    }
    match make(ctx, ip, mtu) {
        Some(()) => ANSWERED,
        None => report::drop(ctx, Reason::Unanswerable),
    }
}

#[inline(always)]
fn make<A: Told>(ctx: &TcContext, ip: &Ip<A>, mtu: u32) -> Option<()> {
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
    // A sum that a device has made of the packet is forgotten as soon as it grows.
    set_length(ctx, transport + quoted + 1).ok()?;
    set_length(ctx, transport + quoted).ok()?;
    if !left_to_device && ip.protocol != TCP {
        // Half of it was cut off.
        store(ctx, transport + field, checksum).ok()?;
    }
    let summed = if left_to_device {
        ip.header()
    } else {
        ip.header() + quoted
    };
    let quote = SCRATCH_QUOTE.get_ptr_mut(0)?;
    let length = ICMP_HEADER + ip.header() + quoted;
    let pseudo = fold(A::pseudo(ip.destination, ip.source, length as u32));
    let summed = between(summed, A::HEADER, QUOTE)?;
    // SAFETY: this CPU's own element; the helpers are given lengths within it.
    let sum = unsafe {
        (*quote).header = A::too_long(mtu);
        zero::<{ QUOTE / 8 }>((&raw mut (*quote).packet).cast());
        let status = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ip.network() as u32,
            (&raw mut (*quote).packet).cast(),
            summed as u32,
        );
        if status != 0 {
            return None;
        }
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            quote.cast(),
            size_of::<Quote>() as u32,
            0,
        )
    };
    if sum < 0 {
        return None;
    }
    // The helper's sum is over words as they stand in memory.
    let mut sum = fold(sum as u32) as u32 + u16::from_ne_bytes(pseudo.to_be_bytes()) as u32;
    if left_to_device {
        sum += !u16::from_ne_bytes(checksum) as u32;
    }
    let in_front = A::HEADER + ICMP_HEADER;
    // SAFETY: the helper checks the length.
    let status = unsafe { bpf_skb_change_head(ctx.skb.skb, in_front as u32, 0) };
    if status != 0 {
        return None;
    }
    let link = Frame::now(ctx).read::<ETHERNET>(in_front)?;
    store(ctx, 0, link).ok()?;
    A::in_front(ctx, ip, length)?;
    let mut error = A::too_long(mtu);
    [error[2], error[3]] = (!fold(sum)).to_ne_bytes();
    store(ctx, ETHERNET + A::HEADER, error).ok()
}
