//! ICMP errors about flows, translated in both directions (NAT-4). They neither end a flow nor keep it
//! alive: anybody can send one.
//!
//! What is believed: the quoted packet belongs to a flow, and a quoted segment may be under way
//! (RFC 5927); the message and the quoted header are as they were summed (RFC 5508 REQ-3). The packet
//! is written directly: all that changes within one checksum is made up for in that checksum, so a
//! sum that a device has made over the packet stays right.

use aya_ebpf::helpers::{bpf_csum_diff, bpf_skb_load_bytes};
use aya_ebpf::programs::TcContext;
use egress_common::bytes::Bytes;
use egress_common::checksum::fold;
use egress_common::icmp::{self, Endpoint, Error, LONGEST};
use egress_common::key::{FlowKey, TCP, realm};
use egress_common::packet::IcmpKind;
use egress_common::reason::Reason;
use egress_common::slot::flag;
use egress_common::tcp::{self, Way};

use crate::family::Family;
use crate::flow::{self, Found};
use crate::frame::{Frame, between};
use crate::maps::SCRATCH_PIECE;
use crate::zero::zero;

/// Bytes of a message that are summed at a time.
const PIECE: usize = 512;
const PIECES: u32 = LONGEST / PIECE as u32;

/// A piece of a message, zeros behind its end.
#[repr(C, align(8))]
pub struct Piece([u8; PIECE]);

/// What is known of the packet that holds the message.
pub struct Outer<A> {
    /// Where its network header starts.
    pub network: u16,
    /// Where the message starts.
    pub message: u16,
    /// Length of the message, bytes.
    pub length: u32,
    pub source: A,
    pub destination: A,
}

/// What became of a message that arrived.
pub enum Arriving {
    /// It was translated back. A realm's leaves by this interface instead of the routing table.
    Flow { redirect: Option<u32> },
    /// It was translated back, and belongs to a flow that this server sent here.
    Visitor { server: u32 },
    /// It is about a packet of no flow here, which left from this port.
    Unknown { port: u16 },
}

/// Translates a message to an egress IP back, if it is an error about what a flow has sent.
///
/// # Errors
/// Why it must be dropped.
#[inline(always)]
pub fn arriving<A: Family>(ctx: &TcContext, outer: &Outer<A>) -> Result<Arriving, Reason> {
    let mut frame = Frame::quotes(ctx);
    let Some(error) = icmp::read::<A>(&frame, outer.network, outer.message, outer.length) else {
        let kind = frame.u8(outer.message as usize).map(A::icmp_kind);
        return Err(match kind {
            Some(IcmpKind::Error) => Reason::IcmpError,
            // A ping, or an answer to one that did not leave from here.
            _ => Reason::Unsolicited,
        });
    };
    // It goes to whoever sent the quoted packet.
    if error.source != outer.destination {
        return Err(Reason::IcmpError);
    }
    let Some(found) = flow::incoming(&error.sent()) else {
        return Ok(Arriving::Unknown {
            port: error.source_port,
        });
    };
    if found.word.has(flag::EXPIRED) {
        return Err(Reason::IcmpError);
    }
    believable(ctx, &frame, outer, &error, &found, Way::Back)?;
    // SAFETY: a live map value that was checked to be the quoted packet's.
    let (inside, port, interface, space) = unsafe {
        (
            (*found.slot).flow.inside,
            (*found.slot).flow.inside_port,
            (*found.slot).interface,
            (*found.slot).flow.realm,
        )
    };
    icmp::translate(
        &mut frame,
        &error,
        Way::Back,
        outer.source,
        Endpoint {
            address: error.source,
            port: error.source_port,
        },
        Endpoint {
            address: inside,
            port,
        },
    )
    .ok_or(Reason::Malformed)?;
    if found.word.has(flag::VISITOR) {
        let server = realm::peer(space).unwrap_or(0);
        return Ok(Arriving::Visitor { server });
    }
    Ok(Arriving::Flow {
        redirect: found.word.has(flag::REDIRECT).then_some(interface),
    })
}

/// What became of a message on its way out.
pub enum Leaving {
    /// It leaves from a flow's egress IP.
    Translated,
    /// It is about a flow of this zone that another server translates.
    Forwarded { zone: u32 },
    /// It is an error about a packet of no flow, which its destination has sent; `key` is that packet's now.
    About,
    /// It is none that is translated.
    Other,
}

/// Translates a message on its way out, if it is an error about what a flow was sent. Whoever made it, a
/// router or this host, it leaves from the flow's egress IP (RFC 5508 REQ-5).
///
/// # Errors
/// Why it must be dropped.
#[inline(always)]
pub fn leaving<A: Family>(
    ctx: &TcContext,
    outer: &Outer<A>,
    key: &mut FlowKey<A>,
) -> Result<Leaving, Reason> {
    let mut frame = Frame::quotes(ctx);
    let Some(error) = icmp::read::<A>(&frame, outer.network, outer.message, outer.length) else {
        return Ok(Leaving::Other);
    };
    let Some(found) = flow::outgoing(&error.received(key.realm)) else {
        return Ok(if error.source == outer.destination {
            key.inside = error.destination;
            key.inside_port = error.destination_port;
            key.origin_port = error.source_port;
            key.protocol = error.protocol;
            Leaving::About
        } else {
            Leaving::Other
        });
    };
    // It goes to the origin, or it tells a stranger about a flow.
    if error.source != outer.destination || found.word.has(flag::EXPIRED) {
        return Err(Reason::IcmpError);
    }
    if found.word.has(flag::FORWARDED) {
        // SAFETY: a live map value that was checked to be the quoted packet's.
        let zone = unsafe { (*found.slot).zone } as u32;
        return Ok(Leaving::Forwarded { zone });
    }
    believable(ctx, &frame, outer, &error, &found, Way::Out)?;
    // SAFETY: a live map value that was checked to be the quoted packet's.
    let (egress, port) = unsafe { ((*found.slot).egress, (*found.slot).egress_port) };
    icmp::translate(
        &mut frame,
        &error,
        Way::Out,
        outer.source,
        Endpoint {
            address: error.destination,
            port: error.destination_port,
        },
        Endpoint {
            address: egress,
            port,
        },
    )
    .ok_or(Reason::Malformed)?;
    Ok(Leaving::Translated)
}

/// Whether an error about a flow may be passed on.
#[inline(always)]
fn believable<A: Family>(
    ctx: &TcContext,
    frame: &Frame,
    outer: &Outer<A>,
    error: &Error<A>,
    found: &Found<A>,
    way: Way,
) -> Result<(), Reason> {
    if error.protocol == TCP {
        // SAFETY: a live map value; see `flow::advance_by` for concurrent writers.
        let (out, back) = unsafe { (*found.slot).directions() };
        let under_way = match way {
            Way::Back => tcp::quotable(error.sequence, &out, &back),
            Way::Out => tcp::quotable(error.sequence, &back, &out),
        };
        if !under_way {
            return Err(Reason::IcmpImplausible);
        }
    }
    if outer.length > LONGEST {
        return Err(Reason::Malformed);
    }
    let pseudo = A::pseudo(outer.source, outer.destination, outer.length);
    if !A::intact(frame, error.quote()) || !summed(ctx, outer.message, outer.length, pseudo) {
        return Err(Reason::IcmpChecksum);
    }
    Ok(())
}

/// Whether the checksum over a message is right.
#[inline(never)]
fn summed(ctx: &TcContext, at: u16, length: u32, pseudo: u32) -> bool {
    let Some(piece) = SCRATCH_PIECE.get_ptr_mut(0) else {
        return false;
    };
    // The helper sums words as they stand in memory.
    let mut total = fold(pseudo).to_be() as u32;
    let mut at = at as u32;
    let mut left = length;
    for _ in 0..PIECES {
        if left == 0 {
            break;
        }
        let bytes = if left < PIECE as u32 {
            left
        } else {
            PIECE as u32
        };
        let Some(bytes) = between(bytes as usize, 1, PIECE) else {
            return false;
        };
        let bytes = bytes as u32;
        // SAFETY: this CPU's own record; the helpers are given lengths within it.
        unsafe {
            zero::<{ PIECE / 8 }>((&raw mut (*piece).0).cast());
            if bpf_skb_load_bytes(ctx.skb.skb.cast(), at, (&raw mut (*piece).0).cast(), bytes) != 0
            {
                return false;
            }
            let sum = bpf_csum_diff(core::ptr::null_mut(), 0, piece.cast(), PIECE as u32, total);
            if sum < 0 {
                return false;
            }
            total = sum as u32;
        }
        at += bytes;
        left -= bytes;
    }
    left == 0 && fold(total) == 0xffff
}
