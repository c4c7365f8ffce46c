//! ICMP errors: what they quote, and what a NAT rewrites in them (NAT-4; RFC 5508, RFC 792, RFC 4443).
//!
//! An error names a flow twice: in its outer header and in the packet it quotes. Both are rewritten
//! in place, and every checksum by what was changed, so that whatever stands behind the quoted
//! headers — a quote of any length, the extensions of RFC 4884 — stays as it is.

use crate::bytes::{Bytes, BytesMut};
use crate::checksum::{fold, sum};
use crate::family::{Address, V4, V6};
use crate::ipv6::IPV6;
use crate::key::{FlowKey, ICMP, ICMPV6, ReverseKey, TCP, UDP};
use crate::packet::{self, IPV4_MIN, IcmpKind};
use crate::tcp::Way;

/// Length of an error's own header, in both families.
pub const HEADER: usize = 8;
/// Longest ICMP message that is looked at, bytes. Errors are shorter: 576 (RFC 1812, 4.3.2.3) and 1,280
/// (RFC 4443, 2.4) with their headers.
pub const LONGEST: u32 = 2_048;
/// Words of the longest IPv4 header.
const IPV4_WORDS: usize = 15;
/// IPv6 extension headers that are stepped over in a quote.
const EXTENSIONS: usize = 4;

/// What a quoted network header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<A> {
    /// Its source.
    pub source: A,
    /// Its destination.
    pub destination: A,
    /// Protocol of its payload.
    pub protocol: u8,
    /// Its length, extension headers included.
    pub length: usize,
}

/// What an error and the packet it quotes look like in an address family.
pub trait Quote: Address {
    /// The protocol number of its ICMP.
    const ICMP: u8;
    /// Where the source address stands in a network header.
    const SOURCE: usize;
    /// Where the destination address stands.
    const DESTINATION: usize;
    /// Where the header's own checksum stands, if it has one.
    const CHECKSUM: Option<usize>;

    /// Sorts an ICMP type; those that are neither are treated as errors: never leaked.
    fn icmp_kind(kind: u8) -> IcmpKind;
    /// Whether an ICMP type is an error that is translated.
    fn is_error(kind: u8) -> bool;
    /// Sum of the address' 16-bit words, not folded.
    fn sum(self) -> u32;
    /// The sum of its words' complements.
    fn complement(self) -> u32;
    /// Writes the address at `offset`, or nothing if the packet is shorter.
    fn put(self, packet: &mut (impl BytesMut + ?Sized), offset: usize) -> Option<()>;
    /// Reads the quoted network header at `at`; nothing for later fragments, which have no ports. Length
    /// fields are not believed, since a quote is cut short.
    fn header(packet: &(impl Bytes + ?Sized), at: usize) -> Option<Header<Self>>;
    /// Whether the quoted network header at `at` is as its sender has summed it (RFC 5508 REQ-3a).
    fn intact(packet: &(impl Bytes + ?Sized), at: usize) -> bool;
    /// Sum of the pseudo-header that the checksum of an ICMP message of `length` bytes covers.
    fn pseudo(source: Self, destination: Self, length: u32) -> u32;
}

impl Quote for V4 {
    const ICMP: u8 = ICMP;
    const SOURCE: usize = 12;
    const DESTINATION: usize = 16;
    const CHECKSUM: Option<usize> = Some(10);

    /// Queries are ping, timestamp, information and address mask, with their answers (RFC 792, RFC 950).
    #[inline(always)]
    fn icmp_kind(kind: u8) -> IcmpKind {
        packet::icmp_kind(kind)
    }

    /// Destination unreachable, time exceeded, parameter problem. A source quench must be ignored
    /// (RFC 6633), and a redirect is for the host next door alone.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        sum(&self)
    }

    #[inline(always)]
    fn complement(self) -> u32 {
        2 * 0xffff - sum(&self)
    }

    #[inline(always)]
    fn put(self, packet: &mut (impl BytesMut + ?Sized), offset: usize) -> Option<()> {
        packet.write(offset, self)
    }

    #[inline(always)]
    fn header(packet: &(impl Bytes + ?Sized), at: usize) -> Option<Header<Self>> {
        let first = packet.u8(at)?;
        let fragment = packet.u16(at + 6)?;
        let length = ((first & 0x0f) as usize) * 4;
        if first >> 4 != 4 || length < IPV4_MIN || fragment & 0x1fff != 0 {
            return None;
        }
        Some(Header {
            source: packet.read::<4>(at + Self::SOURCE)?,
            destination: packet.read::<4>(at + Self::DESTINATION)?,
            protocol: packet.u8(at + 9)?,
            length,
        })
    }

    #[inline(always)]
    fn intact(packet: &(impl Bytes + ?Sized), at: usize) -> bool {
        let Some(first) = packet.u8(at) else {
            return false;
        };
        let mut total = 0;
        for word in 0..IPV4_WORDS {
            if word >= (first & 0x0f) as usize {
                break;
            }
            let Some(bytes) = packet.read::<4>(at + word * 4) else {
                return false;
            };
            total += sum(&bytes);
        }
        fold(total) == 0xffff
    }

    #[inline(always)]
    fn pseudo(_: Self, _: Self, _: u32) -> u32 {
        0
    }
}

impl Quote for V6 {
    const ICMP: u8 = ICMPV6;
    const SOURCE: usize = 8;
    const DESTINATION: usize = 24;
    const CHECKSUM: Option<usize> = None;

    /// All that is no error is called informational (RFC 4443, section 2.1): a query is only a ping here.
    #[inline(always)]
    fn icmp_kind(kind: u8) -> IcmpKind {
        match kind {
            128 | 129 => IcmpKind::Query,
            _ => IcmpKind::Error,
        }
    }

    /// Destination unreachable, packet too big, time exceeded, parameter problem.
    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn sum(self) -> u32 {
        sum(&self)
    }

    #[inline(always)]
    fn complement(self) -> u32 {
        8 * 0xffff - sum(&self)
    }

    #[inline(always)]
    fn put(self, packet: &mut (impl BytesMut + ?Sized), offset: usize) -> Option<()> {
        packet.write(offset, self)
    }

    #[inline(always)]
    fn header(packet: &(impl Bytes + ?Sized), at: usize) -> Option<Header<Self>> {
        if packet.u8(at)? >> 4 != 6 {
            return None;
        }
        let mut protocol = packet.u8(at + 6)?;
        let mut length = IPV6;
        for _ in 0..EXTENSIONS {
            match protocol {
                // Hop-by-hop options, routing, destination options (RFC 8200, section 4).
                0 | 43 | 60 => {
                    let [next, units] = packet.read::<2>(at + length)?;
                    protocol = next;
                    length += (units as usize + 1) * 8;
                }
                // A fragment: only the first one has ports.
                44 => {
                    let [next, _, offset0, offset1] = packet.read::<4>(at + length)?;
                    if u16::from_be_bytes([offset0, offset1]) & 0xfff8 != 0 {
                        return None;
                    }
                    protocol = next;
                    length += 8;
                }
                _ => break,
            }
        }
        Some(Header {
            source: packet.read::<16>(at + Self::SOURCE)?,
            destination: packet.read::<16>(at + Self::DESTINATION)?,
            protocol,
            length,
        })
    }

    /// There is nothing to compare: the header has no checksum.
    #[inline(always)]
    fn intact(_: &(impl Bytes + ?Sized), _: usize) -> bool {
        true
    }

    #[inline(always)]
    fn pseudo(source: Self, destination: Self, length: u32) -> u32 {
        sum(&source) + sum(&destination) + length + ICMPV6 as u32
    }
}

/// An ICMP error about a TCP or UDP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error<A> {
    /// Where the outer network header starts.
    pub network_at: u16,
    /// Where the ICMP header starts.
    pub message_at: u16,
    /// Where the quoted transport header starts.
    pub transport_at: u16,
    /// Where the quoted transport checksum stands; 0 where the quote ends before it.
    pub checksum_at: u16,
    /// Source of the quoted packet.
    pub source: A,
    /// Its destination.
    pub destination: A,
    /// Its source port.
    pub source_port: u16,
    /// Its destination port.
    pub destination_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Sequence number of a quoted segment.
    pub sequence: u32,
}

/// Reads the ICMP message of `length` bytes at `message_at`; nothing if it is no error, or not about a
/// packet that could be a flow's.
#[inline(always)]
pub fn read<A: Quote>(
    packet: &(impl Bytes + ?Sized),
    network_at: u16,
    message_at: u16,
    length: u32,
) -> Option<Error<A>> {
    if !A::is_error(packet.u8(message_at as usize)?) {
        return None;
    }
    let quote = message_at as usize + HEADER;
    let header = A::header(packet, quote)?;
    if !packet::translated(header.protocol) {
        return None;
    }
    let transport = quote + header.length;
    // What lies behind the message is not part of it, even if the frame goes on.
    let left = length.checked_sub((HEADER + header.length) as u32)?;
    if left < 8 {
        return None;
    }
    let [s0, s1, d0, d1, n0, n1, n2, n3] = packet.read::<8>(transport)?;
    let checksum = if header.protocol == UDP { 6 } else { 16 };
    Some(Error {
        network_at,
        message_at,
        transport_at: transport as u16,
        checksum_at: if left < checksum as u32 + 2 {
            0
        } else {
            (transport + checksum) as u16
        },
        source: header.source,
        destination: header.destination,
        source_port: u16::from_be_bytes([s0, s1]),
        destination_port: u16::from_be_bytes([d0, d1]),
        protocol: header.protocol,
        sequence: if header.protocol == TCP {
            u32::from_be_bytes([n0, n1, n2, n3])
        } else {
            0
        },
    })
}

impl<A: Quote> Error<A> {
    /// Where the quoted network header starts.
    #[inline(always)]
    pub const fn quote(&self) -> usize {
        self.message_at as usize + HEADER
    }

    /// The flow if the quoted packet was sent by us.
    #[inline(always)]
    pub fn sent(&self) -> ReverseKey<A> {
        ReverseKey {
            egress: self.source,
            origin: self.destination,
            egress_port: self.source_port,
            origin_port: self.destination_port,
            protocol: self.protocol,
            pad: 0,
            pad2: 0,
        }
    }

    /// The flow if the quoted packet was sent by its origin, and translated already.
    #[inline(always)]
    pub fn received(&self, realm: u16) -> FlowKey<A> {
        FlowKey {
            inside: self.destination,
            origin: self.source,
            inside_port: self.destination_port,
            origin_port: self.source_port,
            protocol: self.protocol,
            pad: 0,
            realm,
        }
    }
}

/// A flow's address and port, on one side of the translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<A> {
    /// The address.
    pub address: A,
    /// The port, host byte order.
    pub port: u16,
}

/// Replaces the flow's endpoint `from` by `to` in an error, outside and in the quote.
///
/// An error on its way [`Way::Back`] goes to the flow and quotes what the flow has sent. One on its way
/// [`Way::Out`] quotes what the flow was sent; whoever `sender` is, it leaves as the flow's. The quoted
/// transport checksum is carried along, never judged (RFC 5508 REQ-3c).
///
/// Nothing if a field lies outside of the packet, which must be dropped then.
#[inline(always)]
pub fn translate<A: Quote>(
    packet: &mut (impl BytesMut + ?Sized),
    error: &Error<A>,
    way: Way,
    sender: A,
    from: Endpoint<A>,
    to: Endpoint<A>,
) -> Option<()> {
    let (quote, transport) = (error.quote(), error.transport_at as usize);
    let network = error.network_at as usize;
    let (outer_at, before, address_at, port_at) = match way {
        Way::Back => (
            network + A::DESTINATION,
            from.address,
            quote + A::SOURCE,
            transport,
        ),
        Way::Out => (
            network + A::SOURCE,
            sender,
            quote + A::DESTINATION,
            transport + 2,
        ),
    };
    let outer = before.complement() + to.address.sum();
    let addresses = from.address.complement() + to.address.sum();
    let ports = !from.port as u32 + to.port as u32;
    let mut message = addresses + ports;
    match A::CHECKSUM {
        Some(at) => {
            message += correct(packet, quote + at, addresses, false)?;
            correct(packet, network + at, outer, false)?;
        }
        // The message's checksum covers the outer addresses.
        None => message += outer,
    }
    if error.checksum_at != 0 {
        let udp = error.protocol == UDP;
        message += correct(packet, error.checksum_at as usize, addresses + ports, udp)?;
    }
    correct(packet, error.message_at as usize + 2, message, false)?;
    to.address.put(packet, address_at)?;
    to.address.put(packet, outer_at)?;
    packet.write(port_at, to.port.to_be_bytes())
}

/// Corrects the checksum at `at` by what was added to the words it covers (RFC 1624, equation 3); returns
/// what this adds to a checksum over the checksum. A UDP checksum of zero is none (RFC 768).
#[inline(always)]
fn correct(packet: &mut (impl BytesMut + ?Sized), at: usize, added: u32, udp: bool) -> Option<u32> {
    let old = packet.u16(at)?;
    if udp && old == 0 {
        return Some(0);
    }
    let mut new = !fold(!old as u32 + added);
    if udp && new == 0 {
        new = 0xffff;
    }
    packet.write(at, new.to_be_bytes())?;
    Some(!old as u32 + new as u32)
}

#[cfg(test)]
mod tests;
