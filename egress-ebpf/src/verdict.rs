//! What a program tells the kernel.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::programs::TcContext;
use egress_common::tag::Tag;

use crate::globals;

/// Let the next program decide; if there is none, the packet goes on.
pub const NEXT: i32 = TC_ACT_UNSPEC;
/// Drop.
pub const DROP: i32 = TC_ACT_SHOT;

/// No verdict: of a step that leaves the packet to the others.
pub const DECLINED: i32 = 0x1ff;

/// Offset of `mark` in `__sk_buff`.
const MARK: usize = core::mem::offset_of!(aya_ebpf::bindings::__sk_buff, mark);

/// The packet's mark.
///
/// In assembly, like [`set_mark`]: the compiler would compute the field's address once for load and
/// store, and the verifier forbids a context pointer that was added to.
#[inline(always)]
pub fn mark(ctx: &TcContext) -> u32 {
    let mark: u64;
    // SAFETY: the context is valid while the program runs.
    unsafe {
        core::arch::asm!(
            "{mark} = *(u32 *)({skb} + {field})",
            mark = out(reg) mark,
            skb = in(reg) ctx.skb.skb,
            field = const MARK,
            options(nostack, readonly),
        );
    }
    mark as u32
}

/// Replaces the packet's mark.
#[inline(always)]
pub fn set_mark(ctx: &TcContext, mark: u32) {
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "*(u32 *)({skb} + {field}) = {mark}",
            mark = in(reg) mark as u64,
            skb = in(reg) ctx.skb.skb,
            field = const MARK,
            options(nostack),
        );
    }
}

/// The interface the packet came in by; 0 if the host made it.
#[inline(always)]
pub fn ingress_interface(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).ingress_ifindex }
}

/// The interface the program runs on.
#[inline(always)]
pub fn interface(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// The protocol that the kernel found the packet to carry, as an ethertype: after a VLAN tag that it keeps beside the
/// packet, but a tag within the packet itself counts as the protocol.
#[inline(always)]
pub fn protocol(ctx: &TcContext) -> u16 {
    // SAFETY: as above.
    u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16)
}

/// Packets on the wire this packet stands for (segmentation offload).
#[inline(always)]
pub fn segments(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    let segments = unsafe { (*ctx.skb.skb).gso_segs };
    if segments == 0 { 1 } else { segments }
}

/// Payload of each packet on the wire that this packet stands for; 0 if it stands for itself.
#[inline(always)]
pub fn segment_size(ctx: &TcContext) -> u32 {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).gso_size }
}

/// Whether the packet has a VLAN tag that its device took out of it.
#[inline(always)]
pub fn has_vlan(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// Whether the frame is addressed to this host (`PACKET_HOST`): others arrive too where an interface is promiscuous.
#[inline(always)]
pub fn is_for_host(ctx: &TcContext) -> bool {
    // SAFETY: the context is valid while the program runs.
    unsafe { (*ctx.skb.skb).pkt_type == 0 }
}

/// Uses the packet up; whoever sent it is told that it left.
///
/// The kernel tells a sender of a drop, and one that is cutting a packet into fragments throws the rest of
/// them away then. To an interface with number 0, which there is not, nothing goes and nobody complains.
#[inline(always)]
pub fn used_up() -> i32 {
    // SAFETY: the helper takes an interface and no flags.
    unsafe { bpf_redirect(0, 0) as i32 }
}

/// Replaces the packet's tag.
#[inline(always)]
pub fn set_tag(ctx: &TcContext, tag: Tag) {
    let now = mark(ctx);
    let wanted = globals::tag_field().write(now, tag);
    if wanted != now {
        set_mark(ctx, wanted);
    }
}

/// Lets a packet leave: it has been dealt with, and the guard may see that.
#[inline(always)]
pub fn done(ctx: &TcContext) -> i32 {
    set_tag(ctx, Tag::Done);
    NEXT
}
