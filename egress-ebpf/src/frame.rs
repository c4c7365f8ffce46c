//! A packet in the kernel: direct pointers within bounds the verifier can see.

use aya_ebpf::programs::TcContext;
use egress_common::bytes::{Bytes, BytesMut};

/// Bytes that must be readable: Ethernet, two tags, the longest IPv4 and TCP headers.
const HEADERS: u32 = 14 + 8 + 60 + 60;

/// The same for an ICMP error and what it quotes: Ethernet, two tags, twice IPv6 with extension headers,
/// ICMP, TCP.
const QUOTES: u32 = 14 + 8 + 2 * (40 + 64) + 8 + 20;
/// The longest TCP header.
const TRANSPORT: u32 = 60;

/// No header field lies farther from the start of a packet than this; also a mask.
const FARTHEST: usize = 511;

/// The linear part of a packet. Stale after any helper that changes the packet.
#[derive(Clone, Copy)]
pub struct Frame {
    data: usize,
    end: usize,
}

impl Frame {
    /// The packet's headers, made linear if they are not.
    #[inline(always)]
    pub fn headers(ctx: &TcContext) -> Self {
        Self::first(ctx, HEADERS)
    }

    /// The packet's headers and those that an ICMP error quotes, likewise.
    #[inline(always)]
    pub fn quotes(ctx: &TcContext) -> Self {
        Self::first(ctx, QUOTES)
    }

    /// The packet's first bytes, made linear if they are not.
    #[inline(always)]
    fn first(ctx: &TcContext, bytes: u32) -> Self {
        let frame = Self::now(ctx);
        let wanted = if ctx.len() < bytes { ctx.len() } else { bytes };
        if frame.end.wrapping_sub(frame.data) < wanted as usize {
            // On failure the reads below find the packet too short: it is treated as malformed.
            let _ = ctx.skb.pull_data(wanted);
            return Self::now(ctx);
        }
        frame
    }

    /// Makes the transport header at `offset` linear; it lies behind what [`Frame::headers`] reaches.
    #[inline(always)]
    pub fn reach(ctx: &TcContext, offset: u32) {
        let wanted = offset + TRANSPORT;
        let wanted = if ctx.len() < wanted {
            ctx.len()
        } else {
            wanted
        };
        // On failure what is read of it finds the packet too short.
        let _ = ctx.skb.pull_data(wanted);
    }

    /// The linear part as it is now.
    #[inline(always)]
    pub fn now(ctx: &TcContext) -> Self {
        Self {
            data: ctx.data(),
            end: ctx.data_end(),
        }
    }

    /// A place to write `N` bytes at `offset`.
    #[inline(always)]
    pub fn at<const N: usize>(&self, offset: usize) -> Option<*mut [u8; N]> {
        // The verifier must see a bound even where the offset comes from a map.
        if offset > FARTHEST {
            return None;
        }
        // And once more, because older kernels forget it when the offset was kept on the stack.
        let start = opaque(self.data + (opaque(offset) & FARTHEST));
        if opaque(start + N) > self.end {
            return None;
        }
        Some(start as *mut [u8; N])
    }
}

/// The value, if it is from `least` to `most`: checked in two comparisons, where the compiler would make one
/// that tells the verifier of older kernels nothing.
#[inline(always)]
pub fn between(value: usize, least: usize, most: usize) -> Option<usize> {
    let value = opaque(value);
    if value > most {
        return None;
    }
    // One more, because "less than one" would become "not zero", of which they make no bound either.
    let more = opaque(value + 1);
    if more <= least {
        return None;
    }
    Some(more - 1)
}

/// The same value, about which the compiler knows nothing: so the check and the access use the same
/// register, as the verifier wants, and no check is merged into another one.
#[inline(always)]
pub fn opaque(value: usize) -> usize {
    let mut value = value;
    // A move onto itself, because line information for no instruction at all is malformed.
    // SAFETY: changes nothing.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nomem, nostack)) };
    value
}

impl Bytes for Frame {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        // SAFETY: `at` has checked the bounds.
        self.at::<N>(offset).map(|place| unsafe { *place })
    }
}

impl BytesMut for Frame {
    #[inline(always)]
    fn write<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let place = self.at::<N>(offset)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { *place = bytes };
        Some(())
    }
}
