//! What differs between IPv4 and IPv6 in the data plane: maps, offsets, checksums. Everything else
//! is written once, over [`Family`].

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::helpers::bpf_l4_csum_replace;
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::checksum;
use egress_common::count::Count;
use egress_common::family::V4;
use egress_common::free::FreeList;
use egress_common::icmp::Quote;
use egress_common::index::Bucket;
use egress_common::key::{FlowKey, OriginKey, Reference, ReverseKey};
use egress_common::packet::{self, Header, Ip, Malformed};
use egress_common::port::{SLICE_SHIFT, SLICES};
use egress_common::range::Range;
use egress_common::reason::Reason;
use egress_common::reply;
use egress_common::settings::{Candidate, EgressAddress, Pool};
use egress_common::slot::Slot;

use crate::classify::Selectable;
use crate::frame::{Frame, opaque};
use crate::index::Walk;
use crate::maps::*;
use crate::outgoing::Outgoing;
use crate::refuse;
use crate::reply::Incoming;
use crate::verdict;

/// The address being rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// The pseudo-header is part of this checksum.
pub const PSEUDO: u64 = aya_ebpf::bindings::BPF_F_PSEUDO_HDR as u64;

/// An address family as the data plane handles it.
pub trait Family: Selectable + Quote + Header + Range {
    /// Bytes of a header without options or extensions.
    const HEADER: usize;
    /// Servers share an egress IP by slices of its ports.
    const SLICED: bool;

    /// A bucket of the index by the inside's endpoints.
    fn flows(bucket: u32) -> Option<*mut Bucket>;
    /// A bucket of the index by the dedicated address and port.
    fn reverse(bucket: u32) -> Option<*mut Bucket>;
    fn walk_flows() -> Option<*mut Walk<FlowKey<Self>>>;
    fn walk_reverse() -> Option<*mut Walk<ReverseKey<Self>>>;
    fn origin(key: &OriginKey<Self>) -> Option<Reference>;
    fn insert_origin(key: &OriginKey<Self>, reference: &Reference, flags: u64) -> Result<(), i32>;
    fn remove_origin(key: &OriginKey<Self>);
    fn slot(index: u32) -> Option<*mut Slot<Self>>;
    fn counter(index: u32) -> Option<*mut Count<Self>>;
    fn free_slots(list: u32) -> Option<*mut FreeList>;
    fn free_counts(list: u32) -> Option<*mut FreeList>;
    fn candidate(index: u32) -> Option<Candidate<Self>>;
    fn egress(address: &Self) -> Option<EgressAddress>;
    /// The number of the other server that owns this port of a shared address; 0 if none does.
    fn owner(address: &Self, known: &EgressAddress, port: u16) -> u32;
    /// First candidate of a pool, and how many there are.
    fn candidates(pool: &Pool) -> (u32, u32);
    /// This CPU's record of a packet that came in.
    fn incoming() -> Option<*mut Incoming<Self>>;
    /// This CPU's record of a packet on its way out.
    fn outgoing() -> Option<*mut Outgoing<Self>>;

    /// Reads the header at `offset`. Frames from before may be stale afterwards.
    fn ip(ctx: &TcContext, frame: &Frame, offset: usize) -> Result<Ip<Self>, Malformed>;
    /// What stands where the destination of a packet at `offset` would be.
    fn destination(frame: &Frame, offset: usize) -> Option<Self>;
    /// Answers a question who has an egress address, where such questions are IP packets.
    fn solicited(ctx: &TcContext, ip: &Ip<Self>) -> i32;
    /// Hops the packet at `network` may still take.
    fn hops(frame: &Frame, network: usize) -> Option<u8>;
    /// Takes one of them.
    fn take_hop(ctx: &TcContext, network: usize) -> Option<()>;
    /// Asks for the route from one address to another.
    fn ask_route(query: &mut bpf_fib_lookup, from: Self, to: Self);

    /// Writes the header of an answer over that of the refused packet, whose transport header stays
    /// where it is.
    fn answer(ctx: &TcContext, ip: &Ip<Self>, protocol: u8, payload: usize) -> Result<(), ()>;
    /// Header of the ICMP error that refuses a packet, without its checksum.
    fn error(ip: &Ip<Self>, reason: Reason) -> [u8; reply::ICMP_HEADER];
    /// Bytes of a packet that such an error quotes, at most [`crate::refuse::QUOTE`].
    fn quoted_length(ip: &Ip<Self>) -> usize;

    /// Corrects a transport checksum that covers the address (offset 0: there is none to correct).
    fn correct_transport(
        ctx: &TcContext,
        checksum: usize,
        from: Self,
        to: Self,
        flags: u64,
    ) -> Result<(), ()>;
    /// Writes the address into the header at `network`, with the header's own checksum.
    fn write(frame: &Frame, network: usize, end: End, from: Self, to: Self) -> Result<(), ()>;
}

#[inline(always)]
pub fn copied<T: Copy>(pointer: Option<*const T>) -> Option<T> {
    // SAFETY: a map value. It may be replaced while it is read: whoever reads an index checks the
    // record it points to.
    pointer.map(|value| unsafe { core::ptr::read_volatile(value) })
}

impl Family for V4 {
    const HEADER: usize = 20;
    const SLICED: bool = true;

    #[inline(always)]
    fn flows(bucket: u32) -> Option<*mut Bucket> {
        FLOWS4.get_ptr_mut(bucket)
    }
    #[inline(always)]
    fn reverse(bucket: u32) -> Option<*mut Bucket> {
        REVERSE4.get_ptr_mut(bucket)
    }
    #[inline(always)]
    fn walk_flows() -> Option<*mut Walk<FlowKey<Self>>> {
        SCRATCH_WALK_FLOWS.get_ptr_mut(0).map(Both::four)
    }
    #[inline(always)]
    fn walk_reverse() -> Option<*mut Walk<ReverseKey<Self>>> {
        SCRATCH_WALK_REVERSE.get_ptr_mut(0).map(Both::four)
    }
    #[inline(always)]
    fn origin(key: &OriginKey<Self>) -> Option<Reference> {
        copied(ORIGINS4.get_ptr(key))
    }
    #[inline(always)]
    fn insert_origin(key: &OriginKey<Self>, reference: &Reference, flags: u64) -> Result<(), i32> {
        ORIGINS4.insert(key, reference, flags)
    }
    #[inline(always)]
    fn remove_origin(key: &OriginKey<Self>) {
        let _ = ORIGINS4.remove(key);
    }
    #[inline(always)]
    fn slot(index: u32) -> Option<*mut Slot<Self>> {
        SLOTS4.get_ptr_mut(index)
    }
    #[inline(always)]
    fn counter(index: u32) -> Option<*mut Count<Self>> {
        COUNTS4.get_ptr_mut(index)
    }
    #[inline(always)]
    fn free_slots(list: u32) -> Option<*mut FreeList> {
        FREE_SLOTS4.get_ptr_mut(list)
    }
    #[inline(always)]
    fn free_counts(list: u32) -> Option<*mut FreeList> {
        FREE_COUNTS4.get_ptr_mut(list)
    }
    #[inline(always)]
    fn candidate(index: u32) -> Option<Candidate<Self>> {
        copied(CANDIDATES4.get_ptr(index))
    }
    #[inline(always)]
    fn egress(address: &Self) -> Option<EgressAddress> {
        copied(EGRESS4.get_ptr(address))
    }
    #[inline(always)]
    fn owner(address: &Self, _known: &EgressAddress, port: u16) -> u32 {
        let Some(owners) = SLICES4.get_ptr(address) else {
            return 0;
        };
        // Masked once more: older verifiers forget the bounds of what was kept on the stack.
        let slice = opaque((port >> SLICE_SHIFT) as usize) & SLICES as usize;
        // SAFETY: a map value that the daemon replaces as a whole.
        unsafe { (*owners).peers.get(slice).copied() }.unwrap_or(0) as u32
    }

    #[inline(always)]
    fn candidates(pool: &Pool) -> (u32, u32) {
        (pool.first, pool.count)
    }
    #[inline(always)]
    fn incoming() -> Option<*mut Incoming<Self>> {
        SCRATCH_INCOMING4.get_ptr_mut(0)
    }
    #[inline(always)]
    fn outgoing() -> Option<*mut Outgoing<Self>> {
        SCRATCH_OUTGOING.get_ptr_mut(0).map(Both::four)
    }

    #[inline(always)]
    fn ip(ctx: &TcContext, frame: &Frame, offset: usize) -> Result<Ip<Self>, Malformed> {
        packet::ipv4(frame, offset, ctx.len())
    }
    #[inline(always)]
    fn destination(frame: &Frame, offset: usize) -> Option<Self> {
        frame.read::<4>(offset + 16)
    }
    #[inline(always)]
    fn solicited(_ctx: &TcContext, _ip: &Ip<Self>) -> i32 {
        verdict::DECLINED
    }
    #[inline(always)]
    fn hops(frame: &Frame, network: usize) -> Option<u8> {
        frame.u8(network + 8)
    }
    #[inline(always)]
    fn take_hop(ctx: &TcContext, network: usize) -> Option<()> {
        let frame = Frame::now(ctx);
        let hops = frame.at::<1>(network + 8)?;
        let sum = frame.at::<2>(network + 10)?;
        // SAFETY: checked to lie within the packet. The hops are the high byte of their word, so the
        // checksum grows by 0x100 (RFC 1141).
        unsafe {
            let [left] = *hops;
            *hops = [left.wrapping_sub(1)];
            let grown = u16::from_be_bytes(*sum) as u32 + 0x100;
            *sum = (((grown & 0xffff) + (grown >> 16)) as u16).to_be_bytes();
        }
        Some(())
    }
    #[inline(always)]
    fn ask_route(query: &mut bpf_fib_lookup, from: Self, to: Self) {
        query.family = 2; // AF_INET
        query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(from);
        query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(to);
    }

    #[inline(always)]
    fn answer(ctx: &TcContext, ip: &Ip<Self>, protocol: u8, payload: usize) -> Result<(), ()> {
        refuse::write_ipv4(ctx, ip, protocol, payload)
    }
    #[inline(always)]
    fn error(_ip: &Ip<Self>, reason: Reason) -> [u8; reply::ICMP_HEADER] {
        let code = if matches!(reason, Reason::Protocol) {
            reply::CODE_PROTOCOL
        } else {
            reply::CODE_PROHIBITED
        };
        [reply::UNREACHABLE, code, 0, 0, 0, 0, 0, 0]
    }
    #[inline(always)]
    fn quoted_length(ip: &Ip<Self>) -> usize {
        (ip.header() & 0x3c) + reply::QUOTED
    }

    #[inline(always)]
    fn correct_transport(
        ctx: &TcContext,
        checksum: usize,
        from: Self,
        to: Self,
        flags: u64,
    ) -> Result<(), ()> {
        // SAFETY: the helper checks the offset.
        let status = unsafe {
            bpf_l4_csum_replace(
                ctx.skb.skb,
                checksum as u32,
                u32::from_ne_bytes(from) as u64,
                u32::from_ne_bytes(to) as u64,
                PSEUDO | flags | 4,
            )
        };
        if status == 0 { Ok(()) } else { Err(()) }
    }

    #[inline(always)]
    fn write(frame: &Frame, network: usize, end: End, from: Self, to: Self) -> Result<(), ()> {
        let place = frame.at::<4>(match end {
            End::Source => network + 12,
            End::Destination => network + 16,
        });
        let sum = frame.at::<2>(network + 10);
        let (Some(place), Some(sum)) = (place, sum) else {
            return Err(());
        };
        // SAFETY: both places were checked to lie within the packet.
        unsafe {
            let old = u16::from_be_bytes(*sum);
            *sum = checksum::replaced(old, from, to).to_be_bytes();
            *place = to;
        }
        Ok(())
    }
}
