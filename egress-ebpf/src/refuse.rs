//! Saying no: a RST for TCP, an ICMP unreachable for everything else, at once (CAP-5, NAT-11).
//!
//! The refused packet itself becomes the answer and is handed back to the uplink as if it had just
//! arrived there, so that routing, conntrack (which undoes a masquerade) and local sockets treat it
//! like the origin's own. The transport header stays where it was, because a checksum that was left
//! to the device is computed from there.
//!
//! *Is the checksum left to the device?* No helper tells, but `bpf_skb_change_tail` refuses to cut
//! a packet in front of the end of a checksum field that is still to be filled in: cutting one byte
//! too early succeeds exactly when the checksum is not.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::{
    bpf_csum_diff, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_tail, bpf_skb_load_bytes,
    bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use egress_common::checksum::{fold, sum};
use egress_common::family::V6;
use egress_common::ipv6::{IPV6, next};
use egress_common::key::{TCP, UDP};
use egress_common::packet::{IPV4_MIN, Ip, Ipv4, Segment, TCP_MIN};
use egress_common::reason::Reason;
use egress_common::reply::{self, ICMP_HEADER, TTL};
use egress_common::tag::Tag;

use crate::classify::Configuration;
use crate::family::Family;
use crate::frame::between;
use crate::maps::{REPLIES, SCRATCH_QUOTE};
use crate::outgoing::Outgoing;
use crate::record;
use crate::report::{self, Subject};
use crate::slots;
use crate::verdict::{self, DROP};
use crate::zero::zero;

/// Bytes of a refused packet that are quoted, at most: the longest IPv6 header with extensions and
/// eight bytes behind it. In whole words, and summed by one call of a helper.
pub const QUOTE: usize = 304;

/// An ICMP header and the packet it quotes.
#[repr(C, align(8))]
pub struct Quote {
    pub header: [u8; ICMP_HEADER],
    pub packet: [u8; QUOTE],
}

/// Counts, reports and answers the packet whose reason is set; it never leaves.
#[inline(never)]
pub fn run<A: Family>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    match turned(ctx, packet) {
        ANSWERED => {
            hand_back(ctx, packet).unwrap_or_else(|()| report::drop(ctx, Reason::Unanswerable))
        }
        verdict => verdict,
    }
}

/// No verdict: the packet has become its answer, which is still to be sent.
pub const ANSWERED: i32 = 0x1fe;

/// As [`run`]; where the answer goes is the caller's business.
#[inline(never)]
pub fn answer<A: Family>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    turned(ctx, packet)
}

/// Turns the packet into its answer: [`ANSWERED`], or a verdict.
#[inline(always)]
fn turned<A: Family>(ctx: &TcContext, packet: &Outgoing<A>) -> i32 {
    let subject = Subject {
        zone: packet.zone,
        source_port: packet.key.inside_port,
        destination_port: packet.key.origin_port,
    };
    report::refused(ctx, packet.reason, &packet.ip, subject);
    record::refused(packet);
    let Some(configuration) = Configuration::of(packet.version) else {
        return DROP;
    };
    if configuration.settings().refuse_reset == 0 {
        return DROP;
    }
    if !A::answerable(&packet.ip) {
        return report::drop(ctx, Reason::Unanswerable);
    }
    if !allowed() {
        return report::drop(ctx, Reason::ReplyLimited);
    }
    let made = if packet.ip.protocol == TCP {
        let key = &packet.key;
        make_reset(
            ctx,
            &packet.ip,
            &packet.segment,
            (key.inside_port, key.origin_port),
        )
    } else {
        make_unreachable(ctx, &packet.ip, packet.reason)
    };
    if made.is_err() {
        return report::drop(ctx, Reason::Unanswerable);
    }
    ANSWERED
}

/// Whether we may make another packet now (NAT-11).
#[inline(always)]
pub fn allowed() -> bool {
    let Some(bucket) = REPLIES.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this CPU's own element.
    unsafe { (*bucket).take(slots::now()) }
}

/// Writes `bytes` at `offset`.
#[inline(always)]
pub fn store<const N: usize>(ctx: &TcContext, offset: usize, bytes: [u8; N]) -> Result<(), ()> {
    // SAFETY: `bytes` is `N` bytes long; the helper checks the offset.
    let status = unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb.cast(),
            offset as u32,
            bytes.as_ptr().cast(),
            N as u32,
            0,
        )
    };
    if status == 0 { Ok(()) } else { Err(()) }
}

/// Sets the packet's length.
#[inline(always)]
pub fn set_length(ctx: &TcContext, length: usize) -> Result<(), ()> {
    // SAFETY: the helper checks the length.
    let status = unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) };
    if status == 0 { Ok(()) } else { Err(()) }
}

/// Writes the IPv4 header of an answer over that of the refused packet; options become no-ops.
#[inline(always)]
pub fn write_ipv4(ctx: &TcContext, ip: &Ipv4, protocol: u8, payload: usize) -> Result<(), ()> {
    let header = ip.header() & 0x3c;
    let words = header >> 2;
    let [l0, l1] = ((header + payload) as u16).to_be_bytes();
    let [s0, s1, s2, s3] = ip.destination;
    let [d0, d1, d2, d3] = ip.source;
    let mut bytes: [u8; IPV4_MIN] = [
        0x40 | words as u8,
        0,
        l0,
        l1,
        0,
        0,
        0x40,
        0,
        TTL,
        protocol,
        0,
        0,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ];
    // Each word of no-op options adds 0x0101 twice.
    let options = (words as u32).wrapping_sub(5) & 0xf;
    [bytes[10], bytes[11]] = (!fold(sum(&bytes) + options * 0x0202)).to_be_bytes();
    store(ctx, ip.network(), bytes)?;
    write_no_ops(ctx, ip.network() + IPV4_MIN, options)
}

/// The longest run of IPv4 options that do nothing.
static NO_OPS: [u8; 60] = [1; 60];

/// Overwrites `words` words of IPv4 options, at most 15, by no-ops.
///
/// In one go: Linux 6.1 loses count in a loop over words and gives up on the program.
#[inline(always)]
fn write_no_ops(ctx: &TcContext, offset: usize, words: u32) -> Result<(), ()> {
    let Some(length) = between(words as usize * 4, 4, NO_OPS.len()) else {
        return Ok(());
    };
    // SAFETY: the helper reads as many bytes as it is told, and there are as many.
    let status = unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb.cast(),
            offset as u32,
            (&raw const NO_OPS).cast(),
            length as u32,
            0,
        )
    };
    if status == 0 { Ok(()) } else { Err(()) }
}

/// Option of a destination header that whoever does not know it skips (RFC 4727).
const SKIPPED: u8 = 0x1e;

/// Writes the IPv6 header of an answer over that of the refused packet; extension headers become one
/// option that says nothing.
#[inline(always)]
pub fn write_ipv6(ctx: &TcContext, ip: &Ip<V6>, protocol: u8, payload: usize) -> Result<(), ()> {
    let extensions = ip.header().wrapping_sub(IPV6) & 0x1f8;
    let first = if extensions == 0 {
        protocol
    } else {
        next::DESTINATION
    };
    let [l0, l1] = ((extensions + payload) as u16).to_be_bytes();
    store(ctx, ip.network(), [0x60, 0, 0, 0, l0, l1, first, TTL])?;
    store(ctx, ip.network() + 8, ip.destination)?;
    store(ctx, ip.network() + 24, ip.source)?;
    if extensions != 0 {
        let units = (extensions >> 3) as u8;
        let option = [
            protocol,
            units.wrapping_sub(1),
            SKIPPED,
            (extensions as u16).wrapping_sub(4) as u8,
        ];
        store(ctx, ip.network() + IPV6, option)?;
    }
    Ok(())
}

/// Turns a TCP segment, with the ports it is from and to, into its RST (RFC 9293, 3.10.7.1).
#[inline(always)]
pub fn make_reset<A: Family>(
    ctx: &TcContext,
    ip: &Ip<A>,
    segment: &Segment,
    (from, to): (u16, u16),
) -> Result<(), ()> {
    let (sequence, acknowledgment, control) = reply::reset(segment).ok_or(())?;
    // The checksum field is bytes 16 and 17 of the header: see the top of the file.
    let left_to_device = set_length(ctx, ip.transport() + 17).is_err();
    set_length(ctx, ip.transport() + TCP_MIN)?;
    A::answer(ctx, ip, TCP, TCP_MIN)?;
    let [p0, p1] = to.to_be_bytes();
    let [q0, q1] = from.to_be_bytes();
    let [s0, s1, s2, s3] = sequence.to_be_bytes();
    let [a0, a1, a2, a3] = acknowledgment.to_be_bytes();
    let mut bytes: [u8; TCP_MIN] = [
        p0, p1, q0, q1, s0, s1, s2, s3, a0, a1, a2, a3, 0x50, control, 0, 0, 0, 0, 0, 0,
    ];
    let pseudo = A::pseudo_header(ip.destination, ip.source, TCP, TCP_MIN as u16);
    let checksum = if left_to_device {
        fold(pseudo)
    } else {
        !fold(pseudo + sum(&bytes))
    };
    [bytes[16], bytes[17]] = checksum.to_be_bytes();
    store(ctx, ip.transport(), bytes)
}

/// Turns a packet into an ICMP error that quotes it (RFC 792, RFC 4443).
///
/// The sum over header and quote comes out right whether or not a checksum was left to the device. The
/// device sums what it finds of the finished message into bytes 6 and 7, where UDP has its checksum: a
/// complete ICMP message gives zero, and an ICMPv6 message does with its pseudo-header's sum there.
#[inline(always)]
fn make_unreachable<A: Family>(ctx: &TcContext, ip: &Ip<A>, reason: Reason) -> Result<(), ()> {
    let quote = SCRATCH_QUOTE.get_ptr_mut(0).ok_or(())?;
    let mut quoted = A::quoted_length(ip);
    if quoted > ip.length as usize {
        quoted = ip.length as usize;
    }
    let quoted = between(quoted, IPV4_MIN, QUOTE).ok_or(())?;
    let length = ICMP_HEADER + quoted;
    let pseudo = fold(A::pseudo(ip.destination, ip.source, length as u32));
    // SAFETY: this CPU's own element; the helpers are given lengths within it.
    let checksum = unsafe {
        (*quote).header = A::error(ip, reason);
        zero::<{ QUOTE / 8 }>((&raw mut (*quote).packet).cast());
        let status = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ip.network() as u32,
            (&raw mut (*quote).packet).cast(),
            quoted as u32,
        );
        if status != 0 {
            return Err(());
        }
        let summed = bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            quote.cast(),
            (ICMP_HEADER + QUOTE) as u32,
            0,
        );
        if summed < 0 {
            return Err(());
        }
        // The helper's sum is over words as they stand in memory.
        let pseudo = u16::from_ne_bytes(pseudo.to_be_bytes());
        !fold(fold(summed as u32) as u32 + pseudo as u32)
    };
    // The checksum field is bytes 6 and 7 of UDP's header: see the top of the file.
    let left_to_device =
        pseudo != 0 && ip.protocol == UDP && set_length(ctx, ip.transport() + 7).is_err();
    set_length(ctx, ip.transport() + length)?;
    A::answer(ctx, ip, A::ICMP, length)?;
    // SAFETY: as above.
    unsafe {
        [(*quote).header[2], (*quote).header[3]] = checksum.to_ne_bytes();
        if left_to_device {
            [(*quote).header[6], (*quote).header[7]] = pseudo.to_be_bytes();
        }
        let status = bpf_skb_store_bytes(
            ctx.skb.skb.cast(),
            ip.transport() as u32,
            quote.cast(),
            length as u32,
            0,
        );
        if status == 0 { Ok(()) } else { Err(()) }
    }
}

/// Sends an answer to an origin, from an egress IP, by the uplink that the program runs on.
#[inline(always)]
pub fn to_origin(ctx: &TcContext) -> i32 {
    // It has an egress IP as its source: the uplink's own program is to let it pass.
    verdict::set_tag(ctx, Tag::Done);
    // SAFETY: the helper takes no parameters besides the interface.
    unsafe { bpf_redirect_neigh(verdict::interface(ctx), core::ptr::null_mut(), 0, 0) as i32 }
}

/// Sends the answer back to where the packet came from.
#[inline(always)]
fn hand_back<A>(ctx: &TcContext, packet: &Outgoing<A>) -> Result<i32, ()> {
    let entered = verdict::ingress_interface(ctx);
    // The user's mark was meant for the way out; the way back is routed like the origin's packets.
    verdict::set_mark(ctx, 0);
    if packet.redirect && entered != 0 {
        // SAFETY: the helper takes no parameters besides the interface.
        return Ok(unsafe { bpf_redirect_neigh(entered, core::ptr::null_mut(), 0, 0) } as i32);
    }
    // Without a link layer there are no addresses to swap.
    if packet.ip.network() != 0 {
        let frame = crate::frame::Frame::now(ctx);
        let to = frame.at::<6>(0).ok_or(())?;
        let from = frame.at::<6>(6).ok_or(())?;
        // SAFETY: checked to lie within the packet.
        unsafe { core::ptr::swap(from, to) };
    }
    // SAFETY: the helper takes no parameters besides the interface.
    unsafe { Ok(bpf_redirect(verdict::interface(ctx), BPF_F_INGRESS as u64) as i32) }
}
