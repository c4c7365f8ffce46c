//! tc ingress of the uplink: packets to egress IPs are translated back or dropped (SAFE-3).

use aya_ebpf::helpers::bpf_redirect_neigh;
use aya_ebpf::programs::TcContext;
use egress_common::family::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, V4, V6};
use egress_common::key::{ReverseKey, TCP, realm};
use egress_common::packet::{self, Fragment, Ip, Segment};
use egress_common::peer::{REPLY, RETURN};
use egress_common::reason::Reason;
use egress_common::settings::{EgressAddress, egress_flag};
use egress_common::slot::flag;
use egress_common::tag::Tag;
use egress_common::tcp::Way;

use crate::family::{End, Family};
use crate::flow::{self, Arrival};
use crate::fragment::{self, Fragmented};
use crate::frame::Frame;
use crate::icmp::{Arriving, Outer};
use crate::link;
use crate::outgoing::next;
use crate::too_long::{self, Told};
use crate::translate::{self, Endpoint, Place};
use crate::verdict::{self, NEXT};
use crate::{arp, fast, globals, icmp, over, refuse, report, steer};

pub fn run(ctx: &TcContext) -> i32 {
    // A wire does not speak for our marks. The tunnel's program does: nothing goes through it twice.
    let mark = verdict::mark(ctx);
    verdict::set_tag(ctx, Tag::None);
    let Some(network) = link::network(ctx) else {
        return NEXT;
    };
    match network.ethertype {
        ETHERTYPE_IPV4 => packet::<V4>(ctx, network.offset, mark),
        ETHERTYPE_IPV6 => packet::<V6>(ctx, network.offset, mark),
        ETHERTYPE_ARP => arp::answer(ctx, network.offset),
        _ => NEXT,
    }
}

/// A packet that came in, between the steps of this program: a record of each CPU, because together
/// the steps would not fit the stack.
#[repr(C)]
pub struct Incoming<A> {
    pub ip: Ip<A>,
    /// Of TCP packets; otherwise left over from an earlier one.
    pub segment: Segment,
    pub egress_port: u16,
    pub origin_port: u16,
    /// The slot it belongs to, once that is known.
    slot: u32,
    /// What its destination is.
    pub address: EgressAddress,
    /// The server that owns it, once it is known to be another one.
    pub owner: u32,
    /// The mark it came with, read only where it counts: the verifier would look at everything in between twice.
    mark: u32,
}

/// An IP packet.
#[inline(always)]
fn packet<A: Fragmented + Told>(ctx: &TcContext, offset: usize, mark: u32) -> i32 {
    let Some(packet) = A::incoming() else {
        return report::drop(ctx, Reason::Contended);
    };
    // SAFETY: programs are not preempted by others on the same CPU, and each asks only once.
    let packet = unsafe { &mut *packet };
    packet.mark = mark;
    let mut step = read(ctx, packet, offset);
    if step == next::MESSAGE {
        step = message(ctx, packet);
    }
    if step == next::LATER {
        step = fragment::back::later(ctx, packet);
        // None of the steps below: the verifier would look at all of them once more.
        return match step {
            next::ELSEWHERE => elsewhere(ctx, packet),
            next::HOME => home(ctx, packet),
            verdict => verdict,
        };
    }
    if step == next::KNOWN && matches!(packet.ip.fragment, Fragment::First) {
        step = fragment::back::first(ctx, packet);
    }
    if step == next::KNOWN {
        step = known(ctx, packet);
    }
    if step == next::OVER {
        step = over::answer(ctx, packet);
    }
    if step == next::LEAVE {
        step = back(ctx, packet);
    }
    if step == next::ELSEWHERE {
        step = elsewhere(ctx, packet);
    }
    if step == next::TOO_LONG {
        step = told(ctx, packet);
    }
    if step == next::HOME {
        step = home(ctx, packet);
    }
    step
}

/// Sends the packet on to its owner, unless it has been sent on already.
#[inline(never)]
fn elsewhere<A: Family>(ctx: &TcContext, packet: &Incoming<A>) -> i32 {
    if packet.is_tunnelled() {
        return report::drop(ctx, Reason::SteeredTwice);
    }
    if too_long::for_tunnel(ctx, &packet.ip) {
        if matches!(packet.ip.fragment, Fragment::Later) {
            return report::drop(ctx, Reason::ForwardedTooLong);
        }
        return next::TOO_LONG;
    }
    steer::send(ctx, packet.owner, packet.ip.network(), REPLY)
}

/// Sends what was translated back to the server that its connection came from (FWD-2). It may have come through the
/// tunnel itself, from a server that the network has brought it to by mistake: then it was a reply, and is none now.
#[inline(never)]
fn home<A: Family>(ctx: &TcContext, packet: &Incoming<A>) -> i32 {
    // Whoever can be told has been told already.
    if too_long::for_tunnel(ctx, &packet.ip) {
        return report::drop(ctx, Reason::ForwardedTooLong);
    }
    steer::send(ctx, packet.owner, packet.ip.network(), RETURN)
}

/// Tells the origin, as from the egress IP, how long a packet may be that another server is to get (NAT-5).
#[inline(never)]
fn told<A: Told>(ctx: &TcContext, packet: &Incoming<A>) -> i32 {
    match too_long::answer(ctx, &packet.ip, steer::limit()) {
        refuse::ANSWERED => refuse::to_origin(ctx),
        verdict => verdict,
    }
}

impl<A: Family> Incoming<A> {
    /// Whether it came through the tunnel.
    #[inline(always)]
    pub fn is_tunnelled(&self) -> bool {
        matches!(globals::tag_field().read(self.mark), Tag::Done)
    }

    /// The packet is of no flow here. If another server owns the port it is for, it belongs there (FWD-5).
    #[inline(always)]
    pub fn missed(&mut self, port: u16) -> bool {
        if self.address.flags & egress_flag::SHARED == 0 {
            return false;
        }
        self.owner = A::owner(&self.ip.destination, &self.address, port);
        self.owner != 0
    }
}

/// Reads the headers. What is no IP packet the kernel drops; but it forwards whatever extension headers
/// there are, and nobody asked for such a packet (SAFE-3).
#[inline(never)]
fn read<A: Family>(ctx: &TcContext, packet: &mut Incoming<A>, offset: usize) -> i32 {
    let Ok(ip) = A::ip(ctx, &Frame::now(ctx), offset) else {
        let destination = A::destination(&Frame::now(ctx), offset);
        if destination.is_some_and(|destination| A::egress(&destination).is_some()) {
            return report::drop(ctx, Reason::Malformed);
        }
        return NEXT;
    };
    packet.ip = ip;
    let answered = A::solicited(ctx, &packet.ip);
    if answered != verdict::DECLINED {
        return answered;
    }
    let Some(address) = A::egress(&packet.ip.destination) else {
        return NEXT;
    };
    packet.address = address;
    // No origin is an egress IP itself: a forger's, or what left to itself (RFC 4787 REQ-9).
    if packet.ip.source == packet.ip.destination {
        return report::drop(ctx, Reason::Unsolicited);
    }
    if !matches!(packet.ip.fragment, Fragment::Whole) && !packet::translated(packet.ip.protocol) {
        return report::drop(ctx, Reason::Fragment);
    }
    if matches!(packet.ip.fragment, Fragment::Later) {
        return next::LATER;
    }
    if packet.ip.protocol == A::ICMP {
        return next::MESSAGE;
    }
    if !packet::translated(packet.ip.protocol) {
        return report::drop(ctx, Reason::Unsolicited);
    }
    next::KNOWN
}

/// An ICMP message: an error about a flow goes to its inside (NAT-4). Anything else was not asked for: a
/// ping, or an answer to one that did not leave from here.
#[inline(never)]
fn message<A: Family>(ctx: &TcContext, packet: &mut Incoming<A>) -> i32 {
    let ip = &packet.ip;
    let outer = Outer {
        network: ip.network_at,
        message: ip.transport_at,
        length: ip.payload(),
        source: ip.source,
        destination: ip.destination,
    };
    let network = ip.network();
    let verdict = icmp::arriving(ctx, &outer).and_then(|arriving| match arriving {
        Arriving::Visitor { server } => {
            packet.owner = server;
            Ok(next::HOME)
        }
        Arriving::Flow { redirect: None } => Ok(NEXT),
        Arriving::Flow {
            redirect: Some(interface),
        } => {
            if last_hop::<A>(&Frame::now(ctx), network) {
                return Err(Reason::Malformed);
            }
            deliver::<A>(ctx, network, interface)
        }
        Arriving::Unknown { port } if packet.missed(port) => Ok(next::ELSEWHERE),
        Arriving::Unknown { .. } => Err(Reason::IcmpError),
    });
    verdict.unwrap_or_else(|reason| report::drop(ctx, reason))
}

/// A packet with ports: finds its flow and advances it.
#[inline(never)]
fn known<A: Family>(ctx: &TcContext, packet: &mut Incoming<A>) -> i32 {
    match try_known(ctx, packet) {
        Ok(step) => step,
        Err(reason) => report::drop(ctx, reason),
    }
}

#[inline(always)]
fn try_known<A: Family>(ctx: &TcContext, packet: &mut Incoming<A>) -> Result<i32, Reason> {
    let ip = &packet.ip;
    let frame = &Frame::now(ctx);
    let rest = ip.payload();
    (packet.origin_port, packet.egress_port) =
        packet::ports(frame, ip.transport()).map_err(|_| Reason::Malformed)?;
    let key = ReverseKey {
        egress: ip.destination,
        origin: ip.source,
        egress_port: packet.egress_port,
        origin_port: packet.origin_port,
        protocol: ip.protocol,
        pad: 0,
        pad2: 0,
    };
    let Some(found) = flow::incoming(&key) else {
        return if packet.missed(packet.egress_port) {
            Ok(next::ELSEWHERE)
        } else {
            Err(Reason::Unsolicited)
        };
    };
    if ip.protocol == TCP {
        packet.segment = packet::tcp(frame, ip.transport(), rest).map_err(|_| Reason::Malformed)?;
    } else if matches!(ip.fragment, Fragment::Whole) {
        // A first fragment's length is that of the datagram; it was compared before.
        packet::udp(frame, ip.transport(), rest).map_err(|_| Reason::Malformed)?;
    }
    if found.word.has(flag::EXPIRED) && !over::passes(&found, &packet.segment) {
        return over::told(&found, ip.protocol)
            .then_some(next::OVER)
            .ok_or(Reason::Unsolicited);
    }
    if found.word.has(flag::REDIRECT) && last_hop::<A>(frame, ip.network()) {
        return Err(Reason::Malformed);
    }
    // As it came: the origin knows it by its egress IP.
    if found.word.has(flag::VISITOR) && too_long::for_tunnel(ctx, ip) {
        return Ok(next::TOO_LONG);
    }
    packet.slot = found.index;
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
    Ok(next::LEAVE)
}

/// Sends the packet to whom its flow belongs to.
#[inline(never)]
fn back<A: Family>(ctx: &TcContext, packet: &mut Incoming<A>) -> i32 {
    try_back(ctx, packet).unwrap_or_else(|reason| report::drop(ctx, reason))
}

#[inline(always)]
fn try_back<A: Family>(ctx: &TcContext, packet: &mut Incoming<A>) -> Result<i32, Reason> {
    let found = flow::at::<A>(packet.slot).ok_or(Reason::Contended)?;
    // SAFETY: a live map value that was checked to be this packet's.
    let (inside, inside_port, interface) = unsafe {
        // Noted at once: kept on the stack it would be too much for that.
        packet.owner = realm::peer((*found.slot).flow.realm).unwrap_or(0);
        (
            (*found.slot).flow.inside,
            (*found.slot).flow.inside_port,
            (*found.slot).interface,
        )
    };
    let ip = &packet.ip;
    let redirect = found.word.has(flag::REDIRECT);
    let visitor = found.word.has(flag::VISITOR);
    let hop = if redirect || visitor {
        None
    } else {
        fast::back(ctx, ip, &packet.segment, &found)
    };
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
            port: packet.egress_port,
        },
        Endpoint {
            address: inside,
            port: inside_port,
        },
    )
    .map_err(|()| Reason::Malformed)?;
    if visitor {
        return Ok(next::HOME);
    }
    if redirect {
        return deliver::<A>(ctx, ip.network(), interface);
    }
    Ok(hop.map_or(NEXT, |hop| fast::send::<A>(ctx, hop)))
}

/// Whether a packet must not go a hop further.
#[inline(always)]
pub fn last_hop<A: Family>(frame: &Frame, network: usize) -> bool {
    A::hops(frame, network).is_none_or(|hops| hops <= 1)
}

/// Hands a packet to the realm it belongs to, by its interface (ZONE-2).
#[inline(always)]
pub fn deliver<A: Family>(ctx: &TcContext, network: usize, interface: u32) -> Result<i32, Reason> {
    A::take_hop(ctx, network).ok_or(Reason::Malformed)?;
    // SAFETY: the helper takes no parameters besides the interface.
    Ok(unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) } as i32)
}
