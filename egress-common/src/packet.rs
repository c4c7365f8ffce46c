//! A packet's headers, read within bounds and checked against each other.

mod segment;

use crate::bytes::Bytes;
use crate::checksum;
use crate::family::{Address, ETHERTYPE_IPV4, ETHERTYPE_IPV6, V4};
use crate::key::{ICMP, TCP, UDP};

pub use segment::{OPTIONS_MAX, OptionWalk, Options, Segment, control, tcp, usual_timestamp};

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;
/// Length of one VLAN tag (IEEE 802.1Q).
pub const VLAN: usize = 4;
/// VLAN tags read within a packet: QinQ has two.
pub const VLANS: usize = 2;
/// Shortest IPv4 header.
pub const IPV4_MIN: usize = 20;
/// Shortest TCP header.
pub const TCP_MIN: usize = 20;
/// UDP header.
pub const UDP_LEN: usize = 8;

/// What stands in a link-layer frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Ethertype after VLAN tags.
    pub ethertype: u16,
    /// Where the network header starts.
    pub offset: usize,
}

/// Reads an Ethernet header and up to [`VLANS`] tags; more are as good as cut short.
#[inline(always)]
pub fn ethernet(packet: &(impl Bytes + ?Sized)) -> Option<Network> {
    let mut ethertype = packet.u16(12)?;
    let mut offset = ETHERNET;
    for _ in 0..VLANS {
        if ethertype != 0x8100 && ethertype != 0x88a8 {
            break;
        }
        ethertype = packet.u16(offset + 2)?;
        offset += VLAN;
    }
    // Deeper than we look: what it carries is unknown, and must not pass for nothing of ours.
    if ethertype == 0x8100 || ethertype == 0x88a8 {
        return None;
    }
    Some(Network { ethertype, offset })
}

/// Whether `packet` begins as an IP packet does of the version that `ethertype` names.
///
/// An Ethernet frame may, too: its first byte belongs to an address.
#[inline(always)]
pub fn begins(packet: &(impl Bytes + ?Sized), ethertype: u16) -> bool {
    let version = match ethertype {
        ETHERTYPE_IPV4 => 4,
        ETHERTYPE_IPV6 => 6,
        _ => return false,
    };
    packet.u8(0).is_some_and(|first| first >> 4 == version)
}

/// Whether a packet is a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet.
    Whole,
    /// The fragment with the transport header.
    First,
    /// A fragment without one.
    Later,
}

/// An IP header: for IPv6 with its extension headers, once those were walked ([`crate::ipv6`]).
///
/// The addresses come first, so that they stand aligned on the stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip<A> {
    /// Source address.
    pub source: A,
    /// Destination address.
    pub destination: A,
    /// Length of headers and payload, bytes.
    pub length: u32,
    /// Where it starts. Small by type, so that the verifier needs no proof.
    pub network_at: u16,
    /// Where the transport header starts.
    pub transport_at: u16,
    /// Where the field stands that says which protocol follows.
    pub protocol_at: u16,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Whole, or which fragment.
    pub fragment: Fragment,
    /// Always zero: a gap would be copied with whatever a register happens to hold.
    pub pad: u32,
}

/// An IPv4 header.
pub type Ipv4 = Ip<V4>;

impl<A> Ip<A> {
    /// Where the header starts.
    #[inline(always)]
    pub const fn network(&self) -> usize {
        self.network_at as usize
    }

    /// Where the transport header starts.
    #[inline(always)]
    pub const fn transport(&self) -> usize {
        self.transport_at as usize
    }

    /// Length of the header with its options or extensions, bytes.
    #[inline(always)]
    pub const fn header(&self) -> usize {
        (self.transport_at.wrapping_sub(self.network_at) & 0x1fc) as usize
    }

    /// Length of what follows the header, bytes.
    #[inline(always)]
    pub const fn payload(&self) -> u32 {
        self.length.wrapping_sub(self.header() as u32)
    }
}

/// Why a header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads an IPv4 header at `offset` of a packet of `total` bytes (RFC 791, section 3.1).
///
/// # Errors
/// Cut short, another version, or lengths that contradict each other.
#[inline(always)]
pub fn ipv4(packet: &(impl Bytes + ?Sized), offset: usize, total: u32) -> Result<Ipv4, Malformed> {
    let header = packet.read::<IPV4_MIN>(offset).ok_or(Malformed)?;
    let [
        first,
        _,
        len0,
        len1,
        _,
        _,
        frag0,
        frag1,
        _,
        protocol,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = header;
    let header_len = ((first & 0x0f) as usize) * 4;
    if first >> 4 != 4 || header_len < IPV4_MIN {
        return Err(Malformed);
    }
    let available = total.wrapping_sub(offset as u32);
    let claimed = u16::from_be_bytes([len0, len1]) as u32;
    // Super-packets beyond 64 KiB (BIG TCP) carry a zero length.
    let length = if claimed == 0 && available > 0xffff {
        available
    } else {
        claimed
    };
    if length > available || length < header_len as u32 {
        return Err(Malformed);
    }
    let fragment = u16::from_be_bytes([frag0, frag1]);
    Ok(Ipv4 {
        network_at: offset as u16,
        transport_at: (offset + header_len) as u16,
        protocol_at: (offset + 9) as u16,
        length,
        source: [s0, s1, s2, s3],
        destination: [d0, d1, d2, d3],
        protocol,
        fragment: match (fragment & 0x1fff, fragment & 0x2000) {
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        },
        pad: 0,
    })
}

/// What is read of a packet in a way of each family's own.
pub trait Header: Address {
    /// Whether an ICMP message of this type stays on its link: neighbour discovery.
    fn never_crosses(kind: u8) -> bool;

    /// Multicast, or the limited broadcast.
    fn is_multicast(&self) -> bool;

    /// An address that is on no wire: unspecified, or loopback (RFC 1122, 3.2.1.3; RFC 4291, 2.5.2 and
    /// 2.5.3).
    fn is_nobodys(&self) -> bool;

    /// An address that never crosses a router, though it is a single host's.
    fn is_link_local(&self) -> bool;

    /// Whether we may answer a packet with a packet of our own (RFC 1122, 3.2.2; RFC 4443, 2.4;
    /// NAT-11).
    fn answerable(ip: &Ip<Self>) -> bool;

    /// Sum of the pseudo-header of a packet of ours (RFC 9293, 3.1; RFC 8200, 8.1).
    fn pseudo_header(source: Self, destination: Self, protocol: u8, length: u16) -> u32;

    /// The address in sixteen bytes, an IPv4 address in the first four.
    fn wide(self) -> [u8; 16];
}

/// Source and destination port of a TCP or UDP header.
///
/// # Errors
/// Cut short.
#[inline(always)]
pub fn ports(packet: &(impl Bytes + ?Sized), offset: usize) -> Result<(u16, u16), Malformed> {
    let [s0, s1, d0, d1] = packet.read::<4>(offset).ok_or(Malformed)?;
    Ok((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
}

/// Checks a UDP header at `offset` against the `length` bytes that are there (RFC 768).
///
/// # Errors
/// Cut short, or a length field that does not fit.
#[inline(always)]
pub fn udp(packet: &(impl Bytes + ?Sized), offset: usize, length: u32) -> Result<(), Malformed> {
    let claimed = packet.u16(offset + 4).ok_or(Malformed)? as u32;
    // A GSO super-packet's length field may describe only one segment, or be zero.
    if length < UDP_LEN as u32 || claimed > length || (claimed < UDP_LEN as u32 && claimed != 0) {
        return Err(Malformed);
    }
    Ok(())
}

/// Checks the UDP header of a first fragment, of which `length` bytes are there: the datagram is longer.
///
/// # Errors
/// Cut short, or a length field that does not fit.
#[inline(always)]
pub fn udp_first(
    packet: &(impl Bytes + ?Sized),
    offset: usize,
    length: u32,
) -> Result<(), Malformed> {
    let claimed = packet.u16(offset + 4).ok_or(Malformed)? as u32;
    if length < UDP_LEN as u32 || claimed < length {
        return Err(Malformed);
    }
    Ok(())
}

/// Kinds of ICMP message that matter to a NAT (RFC 5508, section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpKind {
    /// A query or its answer: ping, timestamp.
    Query,
    /// An error about another packet.
    Error,
}

/// Sorts an ICMP type (RFC 792; types that are neither are treated as errors: never leaked).
#[inline(always)]
pub const fn icmp_kind(kind: u8) -> IcmpKind {
    match kind {
        0 | 8 | 13..=18 => IcmpKind::Query,
        _ => IcmpKind::Error,
    }
}

/// Whether a protocol has ports and is translated.
#[inline(always)]
pub const fn translated(protocol: u8) -> bool {
    protocol == TCP || protocol == UDP
}

impl Header for V4 {
    #[inline(always)]
    fn never_crosses(_kind: u8) -> bool {
        false
    }

    #[inline(always)]
    fn is_multicast(&self) -> bool {
        multicast(*self)
    }

    #[inline(always)]
    fn is_nobodys(&self) -> bool {
        let [first, ..] = *self;
        first == 127 || u32::from_be_bytes(*self) == 0
    }

    /// Routers do forward 169.254/16 where nobody has told them not to; it is treated as any other.
    #[inline(always)]
    fn is_link_local(&self) -> bool {
        false
    }

    #[inline(always)]
    fn answerable(ip: &Ip<Self>) -> bool {
        let [s, ..] = ip.source;
        let source = u32::from_be_bytes(ip.source);
        let destination = u32::from_be_bytes(ip.destination);
        source != 0
            && s < 224
            && destination != 0xffff_ffff
            && destination != 0
            && !multicast(ip.destination)
            && !matches!(ip.fragment, Fragment::Later)
            && ip.protocol != ICMP
    }

    #[inline(always)]
    fn pseudo_header(source: Self, destination: Self, protocol: u8, length: u16) -> u32 {
        checksum::pseudo(source, destination, protocol, length)
    }

    #[inline(always)]
    fn wide(self) -> [u8; 16] {
        let [a, b, c, d] = self;
        [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    }
}

/// Whether an address is multicast or the limited broadcast (RFC 5771, RFC 919).
#[inline(always)]
pub const fn multicast(address: V4) -> bool {
    let [first, ..] = address;
    first & 0xf0 == 0xe0 || u32::from_be_bytes(address) == 0xffff_ffff
}

#[cfg(test)]
mod tests;
