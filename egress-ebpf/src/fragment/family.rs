//! What of fragments differs between the families: the header, and the maps.

use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_update};
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::family::{V4, V6};
use egress_common::fragment::{Datagram, Words};
use egress_common::ipv6::IPV6;
use egress_common::packet::Ip;

use super::{Single, Work};
use crate::extensions;
use crate::family::Family;
use crate::family6::words;
use crate::frame::Frame;
use crate::maps::{
    Both, DATAGRAM_LOCKS4, DATAGRAM_LOCKS6, DATAGRAMS4, DATAGRAMS6, SCRATCH_FRAGMENT,
};

/// A fragment's header as it stands in the packet.
pub struct Part {
    pub(super) identification: u32,
    /// In units of eight bytes.
    pub(super) offset: u16,
    pub(super) more: bool,
    /// Bytes behind it.
    pub(super) payload: u32,
    /// Bytes before it that count for the longest datagram.
    pub(super) before: u32,
}

/// What differs between the families.
pub trait Fragmented: Family + Words {
    fn work() -> Option<*mut Work<Self>>;
    fn datagram(index: u32) -> Option<*mut Datagram<Self>>;
    fn lock(group: u32) -> Option<*mut Single>;
    /// Reads what makes the packet a fragment.
    fn part_of(frame: &Frame, ip: &Ip<Self>) -> Option<Part>;
    /// Gives a fragment another identification; `network` is where its IP header starts.
    fn renumber(frame: &Frame, network: usize, identification: u32) -> Result<(), ()>;
    /// Corrects a device's sum of the packet after an address was replaced in a fragment without a
    /// transport checksum.
    fn moved(ctx: &TcContext, from: Self, to: Self);
}

impl Fragmented for V4 {
    #[inline(always)]
    fn work() -> Option<*mut Work<Self>> {
        SCRATCH_FRAGMENT.get_ptr_mut(0).map(Both::four)
    }
    #[inline(always)]
    fn datagram(index: u32) -> Option<*mut Datagram<Self>> {
        DATAGRAMS4.get_ptr_mut(index)
    }
    #[inline(always)]
    fn lock(group: u32) -> Option<*mut Single> {
        DATAGRAM_LOCKS4.get_ptr_mut(group)
    }
    #[inline(always)]
    fn part_of(frame: &Frame, ip: &Ip<Self>) -> Option<Part> {
        let [i0, i1, f0, f1] = frame.read::<4>(ip.network() + 4)?;
        let field = u16::from_be_bytes([f0, f1]);
        Some(Part {
            identification: u16::from_be_bytes([i0, i1]) as u32,
            offset: field & 0x1fff,
            more: field & 0x2000 != 0,
            payload: ip.payload(),
            before: ip.header() as u32,
        })
    }
    #[inline(always)]
    fn renumber(frame: &Frame, network: usize, identification: u32) -> Result<(), ()> {
        let (Some(field), Some(sum)) = (frame.at::<2>(network + 4), frame.at::<2>(network + 10))
        else {
            return Err(());
        };
        let [_, _, i0, i1] = identification.to_be_bytes();
        // SAFETY: both places were checked to lie within the packet.
        unsafe {
            let [o0, o1] = *field;
            let old = u16::from_be_bytes(*sum);
            let new = egress_common::checksum::replaced(old, [o0, o1, 0, 0], [i0, i1, 0, 0]);
            *sum = new.to_be_bytes();
            *field = [i0, i1];
        }
        Ok(())
    }
    /// The header's own checksum has made up for it.
    #[inline(always)]
    fn moved(_ctx: &TcContext, _from: Self, _to: Self) {}
}

impl Fragmented for V6 {
    #[inline(always)]
    fn work() -> Option<*mut Work<Self>> {
        SCRATCH_FRAGMENT.get_ptr_mut(0).map(Both::six)
    }
    #[inline(always)]
    fn datagram(index: u32) -> Option<*mut Datagram<Self>> {
        DATAGRAMS6.get_ptr_mut(index)
    }
    #[inline(always)]
    fn lock(group: u32) -> Option<*mut Single> {
        DATAGRAM_LOCKS6.get_ptr_mut(group)
    }
    #[inline(always)]
    fn part_of(frame: &Frame, ip: &Ip<Self>) -> Option<Part> {
        // Where the walk along this packet's headers met it.
        let (at, field) = extensions::fragment()?;
        let place = ip.network() + IPV6 + at as usize;
        let before = at.wrapping_add(8);
        Some(Part {
            identification: frame.u32(place + 4)?,
            offset: (field >> 3) as u16,
            more: field & 1 != 0,
            payload: ip.length.wrapping_sub(IPV6 as u32).wrapping_sub(before),
            before: at,
        })
    }
    /// Its sender has 32 bits to choose from: it keeps what it has.
    #[inline(always)]
    fn renumber(_frame: &Frame, _network: usize, _identification: u32) -> Result<(), ()> {
        Ok(())
    }
    #[inline(always)]
    fn moved(ctx: &TcContext, from: Self, to: Self) {
        let (mut from, mut to) = (words(from), words(to));
        // SAFETY: both are sixteen bytes. The second helper says so where no device has summed the packet.
        unsafe {
            let difference = bpf_csum_diff(from.as_mut_ptr(), 16, to.as_mut_ptr(), 16, 0);
            bpf_csum_update(ctx.skb.skb, difference as u32);
        }
    }
}
