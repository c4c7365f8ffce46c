//! Rewriting one end of a packet, with every checksum (NAT-1).
//!
//! Through the helpers, because only they know whether a checksum is complete or left to the
//! device: addresses with the pseudo-header flag, ports without, so that both kinds come out right.

use aya_ebpf::bindings::BPF_F_MARK_MANGLED_0;
use aya_ebpf::helpers::bpf_l4_csum_replace;
use aya_ebpf::programs::TcContext;
use egress_common::key::UDP;

use crate::family::{End, Family};
use crate::frame::Frame;

/// One end of a packet, before or after.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub struct Endpoint<A> {
    pub address: A,
    pub port: u16,
}

/// Where the headers are.
#[derive(Clone, Copy)]
pub struct Place {
    pub network: usize,
    pub transport: usize,
    pub protocol: u8,
}

/// Replaces `from` by `to`.
///
/// # Errors
/// The packet could not be written; it must be dropped.
#[inline(always)]
pub fn rewrite<A: Family>(
    ctx: &TcContext,
    place: Place,
    end: End,
    from: Endpoint<A>,
    to: Endpoint<A>,
) -> Result<(), ()> {
    // A UDP checksum of zero means there is none and stays so (RFC 768). Over IPv6 only tunnels may do
    // without one (RFC 6936): the receiver judges that; it is never made right here.
    let (checksum, flags) = if place.protocol == UDP {
        (place.transport + 6, BPF_F_MARK_MANGLED_0 as u64)
    } else {
        (place.transport + 16, 0)
    };
    A::correct_transport(ctx, checksum, from.address, to.address, flags)?;
    if from.port != to.port {
        // SAFETY: the helper checks the offset.
        let status = unsafe {
            bpf_l4_csum_replace(
                ctx.skb.skb,
                checksum as u32,
                from.port.to_be() as u64,
                to.port.to_be() as u64,
                flags | 2,
            )
        };
        if status != 0 {
            return Err(());
        }
    }
    let frame = Frame::now(ctx);
    A::write(&frame, place.network, end, from.address, to.address)?;
    if from.port != to.port {
        let field = frame.at::<2>(match end {
            End::Source => place.transport,
            End::Destination => place.transport + 2,
        });
        let Some(field) = field else { return Err(()) };
        // SAFETY: checked to lie within the packet.
        unsafe { *field = to.port.to_be_bytes() };
    }
    Ok(())
}
