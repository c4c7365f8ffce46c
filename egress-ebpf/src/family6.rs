//! IPv6 as the data plane handles it.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_update, bpf_l4_csum_replace};
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::count::Count;
use egress_common::family::V6;
use egress_common::free::FreeList;
use egress_common::index::Bucket;
use egress_common::ipv6::{self, icmp};
use egress_common::key::{FlowKey, ICMPV6, OriginKey, Reference, ReverseKey};
use egress_common::packet::{Ip, Malformed};
use egress_common::reason::Reason;
use egress_common::reply;
use egress_common::settings::{Candidate, EgressAddress, Pool};
use egress_common::slot::Slot;

use crate::classify::host6;
use crate::extensions;
use crate::family::{End, Family, PSEUDO, copied};
use crate::frame::Frame;
use crate::index::Walk;
use crate::maps::*;
use crate::ndp;
use crate::outgoing::Outgoing;
use crate::refuse;
use crate::reply::Incoming;
use crate::verdict;

/// Hop limit within a fixed header.
const HOPS: usize = 7;

impl Family for V6 {
    const HEADER: usize = 40;
    const SLICED: bool = false;

    #[inline(always)]
    fn flows(bucket: u32) -> Option<*mut Bucket> {
        FLOWS6.get_ptr_mut(bucket)
    }
    #[inline(always)]
    fn reverse(bucket: u32) -> Option<*mut Bucket> {
        REVERSE6.get_ptr_mut(bucket)
    }
    #[inline(always)]
    fn walk_flows() -> Option<*mut Walk<FlowKey<Self>>> {
        SCRATCH_WALK_FLOWS.get_ptr_mut(0).map(Both::six)
    }
    #[inline(always)]
    fn walk_reverse() -> Option<*mut Walk<ReverseKey<Self>>> {
        SCRATCH_WALK_REVERSE.get_ptr_mut(0).map(Both::six)
    }
    #[inline(always)]
    fn origin(key: &OriginKey<Self>) -> Option<Reference> {
        copied(ORIGINS6.get_ptr(key))
    }
    #[inline(always)]
    fn insert_origin(key: &OriginKey<Self>, reference: &Reference, flags: u64) -> Result<(), i32> {
        ORIGINS6.insert(key, reference, flags)
    }
    #[inline(always)]
    fn remove_origin(key: &OriginKey<Self>) {
        let _ = ORIGINS6.remove(key);
    }
    #[inline(always)]
    fn slot(index: u32) -> Option<*mut Slot<Self>> {
        SLOTS6.get_ptr_mut(index)
    }
    #[inline(always)]
    fn counter(index: u32) -> Option<*mut Count<Self>> {
        COUNTS6.get_ptr_mut(index)
    }
    #[inline(always)]
    fn free_slots(list: u32) -> Option<*mut FreeList> {
        FREE_SLOTS6.get_ptr_mut(list)
    }
    #[inline(always)]
    fn free_counts(list: u32) -> Option<*mut FreeList> {
        FREE_COUNTS6.get_ptr_mut(list)
    }
    #[inline(always)]
    fn candidate(index: u32) -> Option<Candidate<Self>> {
        copied(CANDIDATES6.get_ptr(index))
    }
    #[inline(always)]
    fn egress(address: &Self) -> Option<EgressAddress> {
        EGRESS6.get(&host6(0, *address)).copied()
    }
    #[inline(always)]
    fn owner(_address: &Self, known: &EgressAddress, _port: u16) -> u32 {
        known.owner
    }
    #[inline(always)]
    fn candidates(pool: &Pool) -> (u32, u32) {
        (pool.first6, pool.count6)
    }
    #[inline(always)]
    fn incoming() -> Option<*mut Incoming<Self>> {
        SCRATCH_INCOMING6.get_ptr_mut(0)
    }
    #[inline(always)]
    fn outgoing() -> Option<*mut Outgoing<Self>> {
        SCRATCH_OUTGOING.get_ptr_mut(0).map(Both::six)
    }

    #[inline(always)]
    fn ip(ctx: &TcContext, frame: &Frame, offset: usize) -> Result<Ip<Self>, Malformed> {
        let mut ip = ipv6::ipv6(frame, offset, ctx.len())?;
        if ipv6::is_extension(ip.protocol) {
            extensions::pass(ctx, &mut ip)?;
        }
        Ok(ip)
    }
    #[inline(always)]
    fn destination(frame: &Frame, offset: usize) -> Option<Self> {
        frame.read::<16>(offset + 24)
    }
    #[inline(always)]
    fn solicited(ctx: &TcContext, ip: &Ip<Self>) -> i32 {
        if ip.protocol == ICMPV6 {
            ndp::answer(ctx, ip)
        } else {
            verdict::DECLINED
        }
    }
    #[inline(always)]
    fn hops(frame: &Frame, network: usize) -> Option<u8> {
        frame.u8(network + HOPS)
    }
    /// Where a device has summed the packet, its sum falls as well: no header checksum makes up for it.
    #[inline(always)]
    fn take_hop(ctx: &TcContext, network: usize) -> Option<()> {
        let hops = Frame::now(ctx).at::<1>(network + HOPS)?;
        // SAFETY: checked to lie within the packet; the helper takes a sum over words as they stand in memory.
        unsafe {
            let [left] = *hops;
            *hops = [left.wrapping_sub(1)];
            bpf_csum_update(ctx.skb.skb, !u16::from_ne_bytes([0, 1]) as u32);
        }
        Some(())
    }
    #[inline(always)]
    fn ask_route(query: &mut bpf_fib_lookup, from: Self, to: Self) {
        query.family = 10; // AF_INET6
        query.__bindgen_anon_3.ipv6_src = words(from);
        query.__bindgen_anon_4.ipv6_dst = words(to);
    }

    #[inline(always)]
    fn answer(ctx: &TcContext, ip: &Ip<Self>, protocol: u8, payload: usize) -> Result<(), ()> {
        refuse::write_ipv6(ctx, ip, protocol, payload)
    }
    /// What IPv4 calls an unreachable protocol is a parameter problem here, and points to the field
    /// that names the protocol (RFC 4443, section 3.4).
    #[inline(always)]
    fn error(ip: &Ip<Self>, reason: Reason) -> [u8; reply::ICMP_HEADER] {
        if matches!(reason, Reason::Protocol) {
            let [p0, p1] = ip.protocol_at.wrapping_sub(ip.network_at).to_be_bytes();
            [icmp::PARAMETER, icmp::CODE_NEXT_HEADER, 0, 0, 0, 0, p0, p1]
        } else {
            [icmp::UNREACHABLE, icmp::CODE_PROHIBITED, 0, 0, 0, 0, 0, 0]
        }
    }
    #[inline(always)]
    fn quoted_length(_ip: &Ip<Self>) -> usize {
        refuse::QUOTE
    }

    /// No header checksum makes up for the new address, as it does in IPv4: where a device has summed
    /// the packet, the helper takes the difference out of that sum, and it must go back in. (Newer
    /// kernels have a flag for it.)
    #[inline(always)]
    fn correct_transport(
        ctx: &TcContext,
        checksum: usize,
        from: Self,
        to: Self,
        flags: u64,
    ) -> Result<(), ()> {
        let (mut from, mut to) = (words(from), words(to));
        // SAFETY: both are sixteen bytes; the helpers check the offset.
        unsafe {
            let difference = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0);
            if difference < 0 {
                return Err(());
            }
            let status = bpf_l4_csum_replace(
                ctx.skb.skb,
                checksum as u32,
                0,
                difference as u64,
                PSEUDO | flags,
            );
            if status != 0 {
                return Err(());
            }
            // Says that no device has summed the packet, where none has.
            bpf_csum_update(ctx.skb.skb, difference as u32);
        }
        Ok(())
    }

    #[inline(always)]
    fn write(frame: &Frame, network: usize, end: End, _from: Self, to: Self) -> Result<(), ()> {
        let place = frame.at::<16>(match end {
            End::Source => network + 8,
            End::Destination => network + 24,
        });
        let Some(place) = place else { return Err(()) };
        // SAFETY: checked to lie within the packet.
        unsafe { *place = to };
        Ok(())
    }
}

/// An address as the helpers take it.
#[inline(always)]
pub fn words(address: V6) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}
