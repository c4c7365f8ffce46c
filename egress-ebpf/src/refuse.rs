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
use egress_common::checksum::{fold, pseudo_v4, sum};
use egress_common::key::TCP;
use egress_common::packet::{self, IPV4_MIN, Ipv4, TCP_MIN};
use egress_common::reason::Reason;
use egress_common::reply::{
    self, CODE_PROHIBITED, CODE_PROTOCOL, ICMP_HEADER, QUOTED, TTL, UNREACHABLE,
};

use crate::classify::Configuration;
use crate::maps::{REPLIES, SCRATCH_QUOTE};
use crate::outgoing::Outgoing;
use crate::report::{self, Subject};
use crate::slots;
use crate::verdict::{self, DROP};

/// Longest IPv4 header plus the quoted payload, in words.
const QUOTE: usize = 60 + QUOTED;

/// An ICMP header and the packet it quotes.
#[repr(C, align(8))]
pub struct Quote {
    header: [u8; ICMP_HEADER],
    packet: [u8; QUOTE],
    pad: [u8; 4],
}

/// Counts, reports and answers the packet whose reason is set; it never leaves.
#[inline(never)]
pub fn run(ctx: &TcContext, packet: &Outgoing) -> i32 {
    let subject = Subject {
        zone: packet.zone,
        source_port: packet.key.inside_port,
        destination_port: packet.key.origin_port,
    };
    report::refused(ctx, packet.reason, &packet.ip, subject);
    let Some(configuration) = Configuration::of(packet.version) else {
        return DROP;
    };
    if configuration.settings().refuse_reset == 0 {
        return DROP;
    }
    if !packet::answerable(&packet.ip) {
        return report::drop(ctx, Reason::Unanswerable);
    }
    let Some(bucket) = REPLIES.get_ptr_mut(0) else {
        return DROP;
    };
    // SAFETY: this CPU's own element.
    if !unsafe { (*bucket).take(slots::now()) } {
        return report::drop(ctx, Reason::ReplyLimited);
    }
    let made = if packet.ip.protocol == TCP {
        make_reset(ctx, packet)
    } else {
        make_unreachable(ctx, &packet.ip, packet.reason)
    };
    if made.is_err() {
        return report::drop(ctx, Reason::Unanswerable);
    }
    hand_back(ctx, packet.redirect).unwrap_or_else(|()| report::drop(ctx, Reason::Unanswerable))
}

/// Writes `bytes` at `offset`.
#[inline(always)]
fn store<const N: usize>(ctx: &TcContext, offset: usize, bytes: [u8; N]) -> Result<(), ()> {
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
fn set_length(ctx: &TcContext, length: usize) -> Result<(), ()> {
    // SAFETY: the helper checks the length.
    let status = unsafe { bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) };
    if status == 0 { Ok(()) } else { Err(()) }
}

/// Writes the IPv4 header of an answer over that of the refused packet; options become no-ops.
#[inline(always)]
fn write_ipv4(ctx: &TcContext, ip: &Ipv4, protocol: u8, payload: usize) -> Result<(), ()> {
    let header = ip.header();
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
    for word in 0..10 {
        if word >= options {
            break;
        }
        store(ctx, ip.network() + IPV4_MIN + word as usize * 4, [1u8; 4])?;
    }
    Ok(())
}

/// Turns a TCP segment into its RST (RFC 9293, 3.10.7.1).
#[inline(always)]
fn make_reset(ctx: &TcContext, packet: &Outgoing) -> Result<(), ()> {
    let (sequence, acknowledgment, control) = reply::reset(&packet.segment).ok_or(())?;
    let ip = &packet.ip;
    let key = &packet.key;
    // The checksum field is bytes 16 and 17 of the header: see the top of the file.
    let left_to_device = set_length(ctx, ip.transport() + 17).is_err();
    set_length(ctx, ip.transport() + TCP_MIN)?;
    write_ipv4(ctx, ip, TCP, TCP_MIN)?;
    let [p0, p1] = key.origin_port.to_be_bytes();
    let [q0, q1] = key.inside_port.to_be_bytes();
    let [s0, s1, s2, s3] = sequence.to_be_bytes();
    let [a0, a1, a2, a3] = acknowledgment.to_be_bytes();
    let mut bytes: [u8; TCP_MIN] = [
        p0, p1, q0, q1, s0, s1, s2, s3, a0, a1, a2, a3, 0x50, control, 0, 0, 0, 0, 0, 0,
    ];
    let pseudo = pseudo_v4(ip.destination, ip.source, TCP, TCP_MIN as u16);
    let checksum = if left_to_device {
        fold(pseudo)
    } else {
        !fold(pseudo + sum(&bytes))
    };
    [bytes[16], bytes[17]] = checksum.to_be_bytes();
    store(ctx, ip.transport(), bytes)
}

/// Turns a packet into an ICMP destination unreachable that quotes it (RFC 792).
///
/// The sum over header and quote comes out right whether or not a checksum was left to the device:
/// the device would sum the finished message, which is zero, into the unused bytes 6 and 7.
#[inline(always)]
fn make_unreachable(ctx: &TcContext, ip: &Ipv4, reason: Reason) -> Result<(), ()> {
    let quote = SCRATCH_QUOTE.get_ptr_mut(0).ok_or(())?;
    let header = ip.header();
    let mut quoted = header + QUOTED;
    if quoted > ip.length as usize {
        quoted = ip.length as usize;
    }
    if !(IPV4_MIN..=QUOTE).contains(&quoted) {
        return Err(());
    }
    let code = if matches!(reason, Reason::Protocol) {
        CODE_PROTOCOL
    } else {
        CODE_PROHIBITED
    };
    // SAFETY: this CPU's own element; the helpers are given lengths within it.
    let checksum = unsafe {
        (*quote).header = [UNREACHABLE, code, 0, 0, 0, 0, 0, 0];
        (*quote).packet = [0; QUOTE];
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
        !fold(summed as u32)
    };
    let length = ICMP_HEADER + quoted;
    set_length(ctx, ip.transport() + length)?;
    write_ipv4(ctx, ip, egress_common::key::ICMP, length)?;
    // SAFETY: as above.
    unsafe {
        [(*quote).header[2], (*quote).header[3]] = checksum.to_ne_bytes();
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

/// Sends the answer back to where the packet came from.
#[inline(always)]
fn hand_back(ctx: &TcContext, redirect: bool) -> Result<i32, ()> {
    let entered = verdict::ingress_interface(ctx);
    // The user's mark was meant for the way out; the way back is routed like the origin's packets.
    verdict::set_mark(ctx, 0);
    if redirect && entered != 0 {
        // SAFETY: the helper takes no parameters besides the interface.
        return Ok(unsafe { bpf_redirect_neigh(entered, core::ptr::null_mut(), 0, 0) } as i32);
    }
    let frame = crate::frame::Frame::now(ctx);
    let to = frame.at::<6>(0).ok_or(())?;
    let from = frame.at::<6>(6).ok_or(())?;
    // SAFETY: checked to lie within the packet; the helper needs no more.
    unsafe {
        core::ptr::swap(from, to);
        Ok(bpf_redirect(verdict::interface(ctx), BPF_F_INGRESS as u64) as i32)
    }
}
