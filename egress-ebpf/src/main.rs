//! The data plane: what happens to a packet, decided in the kernel from maps alone.
//!
//! One file a step, in the order a new connection meets them:
//!
//! | hook (below) | steps |
//! |---|---|
//! | tc ingress of an inside interface | [`inside`]: decide the zone, write it into the mark |
//! | tc egress of the uplink | [`uplink`]: find the flow ([`flow`]); else [`classify`], [`allocate`] (with [`count`]), [`translate`] or [`refuse`]; [`icmp`] errors; the daemon's own [`probe`]s |
//! | tc egress of the uplink, last | [`guard`]: nothing of a bound zone passes that [`uplink`] has not seen |
//! | tc ingress of the uplink | [`reply`]: find the flow by its reverse key, translate back, answer for a flow that is [`over`], or drop; [`icmp`]; [`arp`], [`ndp`] |
//! | tracepoints | [`cgroup`]: selected cgroups that are created anew, and those that are gone |
//! | tc ingress of the tunnel | [`tunnel`]: what other servers have sent on ([`steer`]) is taken for arrived on the uplink |
//! | tc egress of the tunnel | [`forward`]: connections whose pool others own are sent there; what comes back is [`returned`], and what others forward here a [`visitor`] |
//! | a timer | [`sweep`]: end idle flows, free what ended |
//! | both of the uplink's | [`fragment`], [`held`]: fragments in any order |
//! | run by the daemon | [`end`]: end a flow, and put on the way in what tells both ends |
//!
//! The daemon fills the maps ([`maps`]) and may die at any time.
#![no_std]
#![no_main]
#![allow(
    internal_features,
    reason = "atomic read-modify-write exists on this target only as an intrinsic"
)]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::needless_pass_by_value,
    reason = "a binary whose modules are not anyone's interface; aya's macros fix the programs' form"
)]
#![feature(core_intrinsics)]
#![feature(asm_experimental_arch)]

mod allocate;
mod arp;
mod cgroup;
mod classify;
mod copied;
mod count;
mod end;
mod extensions;
mod family;
mod family6;
mod fast;
mod flow;
mod forward;
mod fragment;
mod frame;
mod globals;
mod guard;
mod held;
mod hop;
mod icmp;
mod index;
mod inside;
mod link;
mod lists;
mod maps;
mod mss;
mod ndp;
mod options;
mod outgoing;
mod over;
mod policy;
mod probe;
mod record;
mod refuse;
mod reply;
mod report;
mod returned;
mod slots;
mod steer;
mod sweep;
mod too_long;
mod translate;
mod tunnel;
mod uplink;
mod usage;
mod verdict;
mod visitor;
mod word;
mod zero;

use aya_ebpf::macros::{classifier, raw_tracepoint};
use aya_ebpf::programs::{RawTracePointContext, TcContext};

/// Traffic to be forwarded enters.
#[classifier]
pub fn inside_ingress(ctx: TcContext) -> i32 {
    globals::mark_variant();
    inside::run(&ctx)
}

/// Everything that leaves by the uplink.
#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    globals::mark_variant();
    uplink::run(&ctx)
}

/// Everything that leaves by the uplink, after [`uplink_egress`].
#[classifier]
pub fn uplink_guard(ctx: TcContext) -> i32 {
    globals::mark_variant();
    guard::run(&ctx)
}

/// Everything that arrives on the uplink.
#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    globals::mark_variant();
    reply::run(&ctx)
}

/// Everything that other servers send.
#[classifier]
pub fn tunnel_ingress(ctx: TcContext) -> i32 {
    globals::mark_variant();
    tunnel::run(&ctx)
}

/// Everything that goes to other servers.
#[classifier]
pub fn tunnel_egress(ctx: TcContext) -> i32 {
    globals::mark_variant();
    forward::run(&ctx)
}

/// A cgroup was created.
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
pub fn cgroup_born(ctx: RawTracePointContext) -> i32 {
    globals::mark_variant();
    cgroup::born(&ctx);
    0
}

/// A cgroup and its last socket are gone.
#[raw_tracepoint(tracepoint = "cgroup_release")]
pub fn cgroup_gone(ctx: RawTracePointContext) -> i32 {
    globals::mark_variant();
    cgroup::gone(&ctx);
    0
}

/// Never attached: the daemon runs it once after each load, so that the timer calls this load's
/// sweep.
#[classifier]
pub fn arm(_ctx: TcContext) -> i32 {
    globals::mark_variant();
    sweep::arm()
}

/// Never attached: the daemon runs it to end a flow.
#[classifier]
pub fn end_flow(ctx: TcContext) -> i32 {
    globals::mark_variant();
    end::run(&ctx)
}

/// Never attached: the daemon runs it to put a packet on the way in of an uplink.
#[classifier]
pub fn inject(ctx: TcContext) -> i32 {
    globals::mark_variant();
    end::inject(&ctx)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing here can panic: a program that could would not pass the verifier.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
