//! Where the packets of a live flow go next: asked of the kernel's routing ten times a second, not for
//! every packet. What the kernel learns of routes and neighbours counts within a tenth of a second, with or without
//! a daemon. As often a packet goes through the kernel's neighbour entry, as each packet of a flow that sends seldom does:
//! so the kernel learns of a neighbour that is gone.

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_redir_neigh};
use aya_ebpf::programs::TcContext;
use egress_common::settings::role;
use egress_common::tcp::Way;

use crate::family::Family;
use crate::flow::Found;
use crate::maps::{DEVICES, SCRATCH_HOPS, SWITCH};
use crate::slots;

/// Next hops each CPU remembers, a power of two.
pub const HOPS: usize = 4_096;
/// How long an answer counts, ns.
const FRESH: u64 = 100_000_000;
/// Flows that take a record from each other send one packet in as many through the kernel's neighbour entry.
const SHARED: u64 = 64;
/// 2^10 ns, by which packets that follow each other closely differ.
const MICROSECOND: u32 = 10;
const ONCE: u32 = 1;
/// The kernel has lost the neighbour and looks for it.
const ALWAYS: u32 = 2;
/// The next hop's link-layer address is not known (`BPF_FIB_LKUP_RET_NO_NEIGH`).
const NO_NEIGHBOUR: i64 = 7;
/// The packet does not fit (`BPF_FIB_LKUP_RET_FRAG_NEEDED`).
const TOO_LONG: i64 = 8;

/// A next hop of one way of a flow.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Hop {
    /// Whose it is.
    slot: u32,
    generation: u32,
    /// When it was asked for, ns.
    asked: u64,
    kind: u32,
    /// Interface to leave by; 0: the kernel must forward these packets itself.
    pub interface: u32,
    /// Longest IP packet that may go there.
    pub mtu: u32,
    /// Link-layer addresses of the neighbour and of the interface.
    pub neighbour: [u8; 6],
    pub own: [u8; 6],
    /// The neighbour's address. A route with several next hops may name another one when it is asked again, and to
    /// IPv6 it does so whatever the interface.
    pub via: bpf_redir_neigh,
    /// Whether this packet is to go through the kernel's neighbour entry: [`ONCE`], or [`ALWAYS`] until the kernel is
    /// asked again.
    due: u32,
}

impl Hop {
    /// Whether the packet that was asked for goes through the kernel's neighbour entry.
    #[inline(always)]
    pub fn is_due(&self) -> bool {
        self.due != 0
    }
}

/// A question. Aligned, like the block below: addresses are copied eight bytes at a time.
#[repr(C, align(8))]
pub struct Query<A> {
    pub from: A,
    pub to: A,
    /// Interface the packet came in by.
    pub interface: u32,
    pub from_port: u16,
    pub to_port: u16,
    pub way: Way,
    pub protocol: u8,
}

/// The next hop of a flow's packets, unless the kernel must forward them itself.
#[inline(always)]
pub fn find<A: Family>(
    ctx: &TcContext,
    found: &Found<A>,
    query: &Query<A>,
) -> Option<&'static Hop> {
    let kind = match query.way {
        Way::Out => 0,
        Way::Back => 1,
    } | (A::LEN as u32) << 8;
    let place = (found.index << 1 | kind & 1) & (HOPS as u32 - 1);
    // SAFETY: this CPU's own record.
    let hop = unsafe { &mut *SCRATCH_HOPS.get_ptr_mut(place)? };
    let now = slots::now();
    let mine =
        hop.slot == found.index && hop.generation == found.word.generation && hop.kind == kind;
    if hop.due == ONCE {
        hop.due = 0;
    }
    let rested = now.wrapping_sub(hop.asked) >= FRESH;
    if !mine || rested {
        hop.slot = found.index;
        hop.generation = found.word.generation;
        hop.kind = kind;
        hop.asked = now;
        hop.due = if rested || (now >> MICROSECOND).is_multiple_of(SHARED) {
            ONCE
        } else {
            0
        };
        ask(ctx, query, hop);
    }
    (hop.interface != 0).then_some(&*hop)
}

/// The kernel's parameters.
#[repr(C, align(8))]
struct Block(bpf_fib_lookup);

/// Asks the kernel, as for a packet that it forwards.
#[inline(never)]
fn ask<A: Family>(ctx: &TcContext, question: &Query<A>, hop: &mut Hop) -> i32 {
    hop.interface = 0;
    // The question is asked for a packet without marks, and rules may go by those it gets on its way.
    if SWITCH.get(0).is_none_or(|switch| switch.routed != 0) {
        return 0;
    }
    // SAFETY: all-zero is a valid parameter block.
    let mut block: Block = unsafe { core::mem::zeroed() };
    // A length, so that the route's MTU is told and not only the device's.
    let mut answer = look_up(ctx, question, &mut block.0, 1);
    let interface = block.0.ifindex;
    hop.via.nh_family = block.0.family as u32;
    // SAFETY: as many bytes of either family, whichever stands there.
    hop.via.__bindgen_anon_1.ipv6_nh = unsafe { block.0.__bindgen_anon_4.ipv6_dst };
    if answer == NO_NEIGHBOUR {
        // The neighbour entry itself takes the packets and looks for the neighbour. On the ordinary way a firewall that
        // has not seen the flow for long may take them for invalid. The MTU is told of what is too long.
        hop.due = ALWAYS;
        // SAFETY: as above.
        block = unsafe { core::mem::zeroed() };
        answer = look_up(ctx, question, &mut block.0, u16::MAX);
        if answer == TOO_LONG {
            answer = 0;
        }
    }
    if answer != 0 {
        return 0;
    }
    let query = &block.0;
    let wanted = match question.way {
        Way::Out => role::UPLINK,
        Way::Back => role::INSIDE,
    };
    let Some(device) = DEVICES.get_ptr(interface) else {
        return 0;
    };
    // SAFETY: a map value that the daemon replaces as a whole; the block was filled in by the kernel.
    unsafe {
        if (*device).role != wanted || (*device).is_bare() {
            return 0;
        }
        hop.neighbour = query.dmac;
        hop.own = query.smac;
        hop.mtu = query.__bindgen_anon_1.mtu_result as u32;
    }
    if hop.mtu == 0 || (hop.due != ALWAYS && (hop.neighbour == [0; 6] || hop.own == [0; 6])) {
        // Not Ethernet.
        return 0;
    }
    hop.interface = interface;
    1
}

/// Asks about a packet of this length.
#[inline(always)]
fn look_up<A: Family>(
    ctx: &TcContext,
    question: &Query<A>,
    query: &mut bpf_fib_lookup,
    length: u16,
) -> i64 {
    A::ask_route(query, question.from, question.to);
    query.ifindex = question.interface;
    query.l4_protocol = question.protocol;
    query.sport = question.from_port.to_be();
    query.dport = question.to_port.to_be();
    query.__bindgen_anon_1.tot_len = length;
    // SAFETY: the block is valid and its size is given.
    unsafe {
        aya_ebpf::helpers::bpf_fib_lookup(
            ctx.skb.skb.cast(),
            &raw mut *query,
            size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    }
}
