//! tc ingress of the uplink: packets to egress IPs are translated back or dropped (SAFE-3).

use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::family::{ETHERTYPE_ARP, ETHERTYPE_IPV4};
use egress_common::key::{ICMP, ReverseKey, TCP};
use egress_common::packet::{self, Fragment, Ipv4, Segment};
use egress_common::reason::Reason;
use egress_common::slot::flag;
use egress_common::tag::Tag;
use egress_common::tcp::Way;

use crate::family::{End, Family};
use crate::flow::{self, Arrival};
use crate::frame::Frame;
use crate::icmp::Outer;
use crate::translate::{self, Endpoint, Place};
use crate::verdict::{self, NEXT};
use crate::{arp, icmp, report};

pub fn run(ctx: &TcContext) -> i32 {
    // A wire does not speak for our marks.
    verdict::set_tag(ctx, Tag::None);
    let frame = Frame::headers(ctx);
    let Some(network) = packet::ethernet(&frame) else {
        return NEXT;
    };
    match network.ethertype {
        ETHERTYPE_IPV4 => match packet::ipv4(&frame, network.offset, ctx.len()) {
            Ok(ip) => ipv4(ctx, &ip),
            // The kernel drops what is not an IPv4 packet.
            Err(_) => NEXT,
        },
        ETHERTYPE_ARP => arp::answer(ctx, &frame, network.offset),
        _ => NEXT,
    }
}

#[inline(always)]
fn ipv4(ctx: &TcContext, ip: &Ipv4) -> i32 {
    if <[u8; 4]>::egress(&ip.destination).is_none() {
        return NEXT;
    }
    if !matches!(ip.fragment, Fragment::Whole) {
        return report::drop(ctx, Reason::Fragment);
    }
    if ip.protocol == ICMP {
        return message(ctx, ip);
    }
    if !packet::translated(ip.protocol) {
        return report::drop(ctx, Reason::Unsolicited);
    }
    segment(ctx, ip)
}

/// A packet with ports. Like [`message`] a function of its own: together they would not fit the stack.
#[inline(never)]
fn segment(ctx: &TcContext, ip: &Ipv4) -> i32 {
    translated(ctx, &Frame::now(ctx), ip).unwrap_or_else(|reason| report::drop(ctx, reason))
}

/// An ICMP message: an error about a flow goes to its inside (NAT-4). Anything else was not asked for: a
/// ping, or an answer to one that did not leave from here.
#[inline(never)]
fn message(ctx: &TcContext, ip: &Ipv4) -> i32 {
    let outer = Outer {
        network: ip.network_at,
        message: ip.transport_at,
        length: ip.payload(),
        source: ip.source,
        destination: ip.destination,
    };
    let verdict = icmp::arriving(ctx, &outer).and_then(|delivery| {
        if !delivery.redirect {
            Ok(NEXT)
        } else if last_hop(&Frame::now(ctx), ip.network()) {
            Err(Reason::Malformed)
        } else {
            deliver(ctx, ip.network(), delivery.interface)
        }
    });
    verdict.unwrap_or_else(|reason| report::drop(ctx, reason))
}

#[inline(always)]
fn translated(ctx: &TcContext, frame: &Frame, ip: &Ipv4) -> Result<i32, Reason> {
    let rest = ip.payload();
    let (origin_port, egress_port) =
        packet::ports(frame, ip.transport()).map_err(|_| Reason::Malformed)?;
    let key = ReverseKey {
        egress: ip.destination,
        origin: ip.source,
        egress_port,
        origin_port,
        protocol: ip.protocol,
        pad: 0,
        pad2: 0,
    };
    let found = flow::incoming(&key).ok_or(Reason::Unsolicited)?;
    if found.word.has(flag::EXPIRED) {
        return Err(Reason::Unsolicited);
    }
    let segment = if ip.protocol == TCP {
        packet::tcp(frame, ip.transport(), rest).map_err(|_| Reason::Malformed)?
    } else {
        packet::udp(frame, ip.transport(), rest).map_err(|_| Reason::Malformed)?;
        Segment::default()
    };
    // SAFETY: a live map value that was checked to be this packet's.
    let (inside, inside_port, interface) = unsafe {
        (
            (*found.slot).flow.inside,
            (*found.slot).flow.inside_port,
            (*found.slot).interface,
        )
    };
    let redirect = found.word.has(flag::REDIRECT);
    if redirect && last_hop(frame, ip.network()) {
        return Err(Reason::Malformed);
    }
    flow::advance_by(
        ctx,
        &found,
        &Arrival {
            way: Way::Back,
            protocol: ip.protocol,
            segment: &segment,
            transport: ip.transport(),
            length: ip.length,
            frame,
        },
    );
    translate::rewrite(
        ctx,
        Place {
            network: ip.network(),
            transport: ip.transport(),
            protocol: ip.protocol,
        },
        End::Destination,
        Endpoint {
            address: ip.destination,
            port: egress_port,
        },
        Endpoint {
            address: inside,
            port: inside_port,
        },
    )
    .map_err(|()| Reason::Malformed)?;
    if redirect {
        return deliver(ctx, ip.network(), interface);
    }
    Ok(NEXT)
}

/// Whether a packet must not go a hop further.
#[inline(always)]
fn last_hop(frame: &Frame, network: usize) -> bool {
    frame.u8(network + 8).is_none_or(|hops| hops <= 1)
}

/// Hands a packet to the realm it belongs to, by its interface (ZONE-2).
#[inline(always)]
fn deliver(ctx: &TcContext, network: usize, interface: u32) -> Result<i32, Reason> {
    let frame = Frame::now(ctx);
    let ttl = frame.at::<1>(network + 8).ok_or(Reason::Malformed)?;
    let sum = frame.at::<2>(network + 10).ok_or(Reason::Malformed)?;
    // SAFETY: checked to lie within the packet. One hop less: TTL is the high byte of its word, so
    // the checksum grows by 0x100 (RFC 1141).
    unsafe {
        let [hops] = *ttl;
        *ttl = [hops.wrapping_sub(1)];
        let grown = u16::from_be_bytes(*sum) as u32 + 0x100;
        *sum = (((grown & 0xffff) + (grown >> 16)) as u16).to_be_bytes();
        // SAFETY: the helper takes no parameters besides the interface.
        Ok(bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32)
    }
}
