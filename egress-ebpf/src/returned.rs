//! What comes back from the server that translates a forwarded flow (FWD-2): the tunnel's way in, at the server where
//! the connection began. It bears the inside's own address by now, and goes on as if it had arrived on the uplink.

use aya_ebpf::programs::TcContext;
use egress_common::icmp;
use egress_common::key::{FlowKey, TCP, realm};
use egress_common::packet::{self, Fragment, control};
use egress_common::reason::Reason;
use egress_common::slot::{flag, server_and_exit};
use egress_common::tcp::Way;

use crate::family::Family;
use crate::flow::{self, Arrival, Found};
use crate::frame::Frame;
use crate::{mss, report};

/// No verdict: the packet is what it is said to be.
pub const ACCEPTED: i32 = 0x1fd;

/// [`ACCEPTED`] if the packet whose header is at `offset` belongs to a flow that this server has forwarded to
/// `sender`, which is advanced; else the verdict.
#[inline(never)]
pub fn accept<A: Family>(ctx: &TcContext, offset: usize, sender: u32) -> i32 {
    match try_accept::<A>(ctx, offset, sender) {
        Ok(()) => ACCEPTED,
        Err(reason) => report::drop(ctx, reason),
    }
}

/// Whether the packet whose header is at `offset` belongs to a flow that this server has forwarded to `sender`:
/// nothing else comes in that way. Advances the flow.
///
/// # Errors
/// Why it must be dropped.
#[inline(always)]
fn try_accept<A: Family>(ctx: &TcContext, offset: usize, sender: u32) -> Result<(), Reason> {
    let packet = A::incoming().ok_or(Reason::Contended)?;
    // SAFETY: programs are not preempted by others on the same CPU, and each asks only once.
    let packet = unsafe { &mut *packet };
    packet.ip = A::ip(ctx, &Frame::now(ctx), offset).map_err(|_| Reason::TunnelStray)?;
    let ip = &packet.ip;
    if matches!(ip.fragment, Fragment::Later) {
        // It has no ports to find its flow by, and nobody but a server that is known could have sent it.
        return Ok(());
    }
    if ip.protocol == A::ICMP {
        return message(ctx, &packet.ip, sender);
    }
    if !packet::translated(ip.protocol) {
        return Err(Reason::TunnelStray);
    }
    let frame = &Frame::now(ctx);
    let (origin_port, inside_port) =
        packet::ports(frame, ip.transport()).map_err(|_| Reason::TunnelStray)?;
    let key = FlowKey {
        inside: ip.destination,
        origin: ip.source,
        inside_port,
        origin_port,
        protocol: ip.protocol,
        pad: 0,
        realm: realm::COMMON,
    };
    let found = forwarded(&key, sender)?;
    if ip.protocol == TCP {
        packet.segment =
            packet::tcp(frame, ip.transport(), ip.payload()).map_err(|_| Reason::TunnelStray)?;
    }
    if found.word.has(flag::EXPIRED) && !(ip.protocol == TCP && packet.segment.has(control::RST)) {
        return Err(Reason::Unsolicited);
    }
    flow::advance_by(
        ctx,
        &found,
        &Arrival {
            way: Way::Back,
            protocol: ip.protocol,
            segment: &packet.segment,
            transport: ip.transport(),
            length: ip.length,
            frame,
        },
    );
    if ip.protocol == TCP
        && packet.segment.has(control::SYN)
        && !mss::fit(ctx, ip.transport_at as u32, packet.segment.header as u32)
    {
        return Err(Reason::Malformed);
    }
    Ok(())
}

/// An ICMP error about what the flow has sent; the server that translates has judged it.
#[inline(always)]
fn message<A: Family>(ctx: &TcContext, ip: &packet::Ip<A>, sender: u32) -> Result<(), Reason> {
    let frame = Frame::quotes(ctx);
    let error = icmp::read::<A>(&frame, ip.network_at, ip.transport_at, ip.payload())
        .ok_or(Reason::TunnelStray)?;
    let key = FlowKey {
        inside: error.source,
        origin: error.destination,
        inside_port: error.source_port,
        origin_port: error.destination_port,
        protocol: error.protocol,
        pad: 0,
        realm: realm::COMMON,
    };
    forwarded(&key, sender).map(drop)
}

/// The flow with these endpoints, if it was forwarded to this server.
#[inline(always)]
fn forwarded<A: Family>(key: &FlowKey<A>, server: u32) -> Result<Found<A>, Reason> {
    let found = flow::outgoing(key).ok_or(Reason::Unsolicited)?;
    // SAFETY: a live map value that was checked to be this packet's.
    let (number, _) = server_and_exit(unsafe { (*found.slot).interface });
    if found.word.has(flag::FORWARDED) && number == server {
        Ok(found)
    } else {
        Err(Reason::TunnelStray)
    }
}
