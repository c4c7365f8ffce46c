//! Answering neighbour solicitations for egress addresses on the uplink (ANN-1): the IPv6 side of
//! [`crate::arp`]. Any address of a range that is on-link is answered for, a whole /64 too; a probe for
//! a duplicate address as well, so that nobody else takes one (RFC 4861, RFC 4862).

use aya_ebpf::helpers::{bpf_csum_diff, bpf_redirect, bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::checksum::{fold, pseudo, sum};
use egress_common::family::V6;
use egress_common::ipv6::{IPV6, icmp};
use egress_common::key::ICMPV6;
use egress_common::packet::{Header, Ip};
use egress_common::settings::egress_flag;
use egress_common::tag::Tag;

use crate::classify::Configuration;
use crate::family::Family;
use crate::frame::{Frame, between};
use crate::maps::{DEVICES, SCRATCH_QUOTE};
use crate::refuse::set_length;
use crate::verdict;
use crate::zero::zero;

/// A solicitation without options (RFC 4861, section 4.3).
const SOLICITATION: u32 = 24;
/// The longest one that is answered: it has room for all options hosts send.
const LONGEST: u32 = 128;
/// An advertisement with its target's link-layer address (section 4.4).
const ADVERTISEMENT: usize = 32;
/// Its option: one unit of eight bytes.
const TARGET_ADDRESS: [u8; 2] = [2, 1];
/// Flags of an advertisement: it answers a solicitation; it overrides what was known.
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;
/// Hop limit that no router leaves as it is.
const UNROUTED: u8 = 255;
/// All nodes on the link.
const ALL_NODES: V6 = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Answers a solicitation; `None` leaves the packet to whoever else wants it.
#[inline(never)]
pub fn answer(ctx: &TcContext, ip: &Ip<V6>) -> i32 {
    try_answer(ctx, ip).unwrap_or(verdict::DECLINED)
}

#[inline(always)]
fn try_answer(ctx: &TcContext, ip: &Ip<V6>) -> Option<i32> {
    let frame = Frame::now(ctx);
    let message = ip.network() + IPV6;
    if ip.transport() != message
        || frame.read::<2>(message)? != [icmp::SOLICITATION, 0]
        || V6::hops(&frame, ip.network())? != UNROUTED
    {
        return None;
    }
    let target = frame.read::<16>(message + 8)?;
    let asker = frame.read::<6>(6)?;
    let address = V6::egress(&target)?;
    // An announcement of the address by somebody else is not a question.
    if address.flags & egress_flag::ANSWER == 0
        || ip.source == target
        || ip.source.is_multicast()
        || asker[0] & 1 != 0
        || Configuration::now()?.settings().answer_arp == 0
    {
        return None;
    }
    let interface = verdict::interface(ctx);
    // SAFETY: a map value that the daemon replaces as a whole.
    let mac = DEVICES
        .get_ptr(interface)
        .map(|device| unsafe { (*device).mac })?;
    if !is_right(ctx, ip) {
        return None;
    }
    let flags = if ip.source == [0; 16] {
        OVERRIDE
    } else {
        SOLICITED | OVERRIDE
    };
    advertise(ctx, ip, &target, &mac, flags).ok()?;
    // It is nobody's packet to translate.
    verdict::set_tag(ctx, Tag::Done);
    // SAFETY: sends the packet out of the interface it came from.
    Some(unsafe { bpf_redirect(interface, 0) } as i32)
}

/// Whether a solicitation's checksum is right: what a wire has damaged is not answered.
#[inline(always)]
fn is_right(ctx: &TcContext, ip: &Ip<V6>) -> bool {
    let length = ip.payload();
    let Some(record) = SCRATCH_QUOTE.get_ptr_mut(0) else {
        return false;
    };
    let Some(length) = between(length as usize, SOLICITATION as usize, LONGEST as usize) else {
        return false;
    };
    // SAFETY: this CPU's own record, longer than what is read.
    let summed = unsafe {
        let bytes = record.cast::<[u8; LONGEST as usize]>();
        zero::<{ LONGEST as usize / 8 }>(bytes.cast());
        let status = bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            ip.transport() as u32,
            bytes.cast(),
            length as u32,
        );
        if status != 0 {
            return false;
        }
        bpf_csum_diff(core::ptr::null_mut(), 0, bytes.cast(), LONGEST, 0)
    };
    // The helper's sum is over words as they stand in memory.
    let message = u16::from_be_bytes(fold(summed as u32).to_ne_bytes());
    let header = pseudo(ip.source, ip.destination, ICMPV6, length as u16);
    summed >= 0 && fold(header + message as u32) == 0xffff
}

/// An advertisement, as it stands in the packet, and the link-layer addresses in front of it.
#[repr(C, align(8))]
struct Advertisement {
    head: [u8; 8],
    source: V6,
    destination: V6,
    message: [u8; 8],
    target: V6,
    option: [u8; 8],
    to: [u8; 6],
    from: [u8; 6],
}

/// Turns a solicitation into an advertisement; a probe for a duplicate, which has no source, is
/// answered to all nodes.
#[inline(always)]
fn advertise(
    ctx: &TcContext,
    ip: &Ip<V6>,
    target: &V6,
    mac: &[u8; 6],
    flags: u8,
) -> Result<(), ()> {
    let record = SCRATCH_QUOTE.get_ptr_mut(0).ok_or(())?;
    let asker = Frame::now(ctx).read::<6>(6).ok_or(())?;
    // SAFETY: this CPU's own record, aligned and longer than an advertisement.
    let out = unsafe { &mut *record.cast::<Advertisement>() };
    let [l0, l1] = (ADVERTISEMENT as u16).to_be_bytes();
    out.head = [0x60, 0, 0, 0, l0, l1, ICMPV6, UNROUTED];
    out.source = *target;
    if flags & SOLICITED == 0 {
        out.destination = ALL_NODES;
        out.to = ALL_NODES_MAC;
    } else {
        out.destination = ip.source;
        out.to = asker;
    }
    out.from = *mac;
    out.target = *target;
    let [m0, m1, m2, m3, m4, m5] = *mac;
    let [kind, units] = TARGET_ADDRESS;
    out.option = [kind, units, m0, m1, m2, m3, m4, m5];
    out.message = [icmp::ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    let header = pseudo(out.source, out.destination, ICMPV6, ADVERTISEMENT as u16);
    let total = header + sum(&out.message) + sum(&out.target) + sum(&out.option);
    [out.message[2], out.message[3]] = (!fold(total)).to_be_bytes();
    set_length(ctx, ip.network() + IPV6 + ADVERTISEMENT)?;
    put(ctx, 0, (&raw const out.to).cast(), 12)?;
    put(
        ctx,
        ip.network() as u32,
        (&raw const out.head).cast(),
        (IPV6 + ADVERTISEMENT) as u32,
    )
}

/// Writes bytes of the record at `offset`.
#[inline(always)]
fn put(ctx: &TcContext, offset: u32, bytes: *const u8, length: u32) -> Result<(), ()> {
    // SAFETY: the caller's record is that long; the helper checks the offset.
    let status =
        unsafe { bpf_skb_store_bytes(ctx.skb.skb.cast(), offset, bytes.cast(), length, 0) };
    if status == 0 { Ok(()) } else { Err(()) }
}
