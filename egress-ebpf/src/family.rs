//! What differs between IPv4 and IPv6 in the data plane: maps, offsets, checksums. Everything else
//! is written once, over [`Family`].

use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::helpers::bpf_l4_csum_replace;
use aya_ebpf::programs::TcContext;
use egress_common::checksum;
use egress_common::count::Count;
use egress_common::family::V4;
use egress_common::free::FreeList;
use egress_common::icmp::Quote;
use egress_common::key::{FlowKey, OriginKey, Reference, ReverseKey};
use egress_common::settings::{Candidate, EgressAddress, Prefixed};
use egress_common::slot::Slot;

use crate::frame::Frame;
use crate::maps::*;

/// The address being rewritten.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// The pseudo-header is part of this checksum.
const PSEUDO: u64 = aya_ebpf::bindings::BPF_F_PSEUDO_HDR as u64;

/// An address family as the data plane handles it.
pub trait Family: Prefixed + Quote {
    fn flow(key: &FlowKey<Self>) -> Option<Reference>;
    fn insert_flow(key: &FlowKey<Self>, reference: &Reference, flags: u64) -> Result<(), i32>;
    fn remove_flow(key: &FlowKey<Self>);
    fn reverse(key: &ReverseKey<Self>) -> Option<Reference>;
    fn insert_reverse(key: &ReverseKey<Self>, reference: &Reference, flags: u64)
    -> Result<(), i32>;
    fn remove_reverse(key: &ReverseKey<Self>);
    fn origin(key: &OriginKey<Self>) -> Option<Reference>;
    fn insert_origin(key: &OriginKey<Self>, reference: &Reference, flags: u64) -> Result<(), i32>;
    fn remove_origin(key: &OriginKey<Self>);
    fn slot(index: u32) -> Option<*mut Slot<Self>>;
    fn counter(index: u32) -> Option<*mut Count<Self>>;
    fn free_slots(list: u32) -> Option<*mut FreeList>;
    fn free_counts(list: u32) -> Option<*mut FreeList>;
    fn candidate(index: u32) -> Option<Candidate<Self>>;
    fn egress(address: &Self) -> Option<EgressAddress>;

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
fn copied<T: Copy>(pointer: Option<*const T>) -> Option<T> {
    // SAFETY: a map value. It may be replaced while it is read: whoever reads an index checks the
    // record it points to.
    pointer.map(|value| unsafe { core::ptr::read_volatile(value) })
}

const _: fn() = || {
    // Compile-time reminder that the concrete map types are what `Family` promises.
    let _: &HashMap<FlowKey<V4>, Reference, 262_144> = &FLOWS4;
    let _: &Array<Slot<V4>, 262_144, { aya_ebpf::bindings::BPF_F_MMAPABLE as usize }> = &SLOTS4;
};

impl Family for V4 {
    #[inline(always)]
    fn flow(key: &FlowKey<Self>) -> Option<Reference> {
        copied(FLOWS4.get_ptr(key))
    }
    #[inline(always)]
    fn insert_flow(key: &FlowKey<Self>, reference: &Reference, flags: u64) -> Result<(), i32> {
        FLOWS4.insert(key, reference, flags)
    }
    #[inline(always)]
    fn remove_flow(key: &FlowKey<Self>) {
        let _ = FLOWS4.remove(key);
    }
    #[inline(always)]
    fn reverse(key: &ReverseKey<Self>) -> Option<Reference> {
        copied(REVERSE4.get_ptr(key))
    }
    #[inline(always)]
    fn insert_reverse(
        key: &ReverseKey<Self>,
        reference: &Reference,
        flags: u64,
    ) -> Result<(), i32> {
        REVERSE4.insert(key, reference, flags)
    }
    #[inline(always)]
    fn remove_reverse(key: &ReverseKey<Self>) {
        let _ = REVERSE4.remove(key);
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
