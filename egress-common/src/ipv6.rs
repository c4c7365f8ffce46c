//! An IPv6 header and the extension headers behind it, walked within bounds (RFC 8200).

use crate::bytes::Bytes;
use crate::checksum;
use crate::family::V6;
use crate::key::ICMPV6;
use crate::packet::{Fragment, Header, Ip, Malformed};

/// Length of the fixed header.
pub const IPV6: usize = 40;
/// Extension headers of a packet, at most.
pub const HEADERS_MAX: u32 = 8;
/// Bytes of extension headers, at most.
pub const EXTENSIONS_MAX: usize = 256;

/// Next-header numbers of extension headers (IANA).
pub mod next {
    /// Hop-by-hop options; only directly behind the fixed header.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// Types of ICMPv6 messages (RFC 4443, RFC 4861).
pub mod icmp {
    /// Destination unreachable.
    pub const UNREACHABLE: u8 = 1;
    /// Its code: communication with the destination administratively prohibited.
    pub const CODE_PROHIBITED: u8 = 1;
    /// Packet too big (RFC 4443, section 3.2).
    pub const TOO_BIG: u8 = 2;
    /// Parameter problem.
    pub const PARAMETER: u8 = 4;
    /// Its code: unrecognized next header.
    pub const CODE_NEXT_HEADER: u8 = 1;
    /// Neighbour solicitation.
    pub const SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const ADVERTISEMENT: u8 = 136;
}

/// Reads a fixed header at `offset` of a packet of `total` bytes (RFC 8200, section 3). The protocol is
/// the first next header: see [`Walk`].
///
/// # Errors
/// Cut short, another version, or lengths that contradict each other.
#[inline(always)]
pub fn ipv6(
    packet: &(impl Bytes + ?Sized),
    offset: usize,
    total: u32,
) -> Result<Ip<V6>, Malformed> {
    let [first, _, _, _, len0, len1, next_header, _] = packet.read::<8>(offset).ok_or(Malformed)?;
    if first >> 4 != 6 {
        return Err(Malformed);
    }
    let available = total.wrapping_sub(offset as u32);
    let claimed = u16::from_be_bytes([len0, len1]) as u32 + IPV6 as u32;
    // Super-packets beyond 64 KiB (BIG TCP) carry a zero length.
    let length = if claimed == IPV6 as u32 && available > 0xffff {
        available
    } else {
        claimed
    };
    if length > available {
        return Err(Malformed);
    }
    Ok(Ip {
        network_at: offset as u16,
        transport_at: (offset + IPV6) as u16,
        protocol_at: (offset + 6) as u16,
        length,
        source: packet.read::<16>(offset + 8).ok_or(Malformed)?,
        destination: packet.read::<16>(offset + 24).ok_or(Malformed)?,
        protocol: next_header,
        fragment: Fragment::Whole,
        pad: 0,
    })
}

/// Whether a next header may be an extension that is walked past.
#[inline(always)]
pub const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        next::HOP_BY_HOP | next::ROUTING | next::FRAGMENT | next::DESTINATION
    )
}

/// A walk along extension headers, one a step: bounded wherever it runs.
///
/// It ends at the first header that is no extension, or one that cannot be passed: that one then is
/// the packet's protocol, which nobody translates. Those are a hop-by-hop header that is not the
/// first, a routing header that still names another destination (replies would come from there), and
/// whatever lies beyond [`EXTENSIONS_MAX`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Where the current header begins, counted from the end of the fixed header.
    pub at: u32,
    /// Bytes behind the fixed header, no more than [`EXTENSIONS_MAX`].
    pub end: u32,
    /// Whether the packet ends at `end`.
    pub whole: u32,
    /// Number of the current header.
    pub protocol: u32,
    /// Where the field that says so stands, from the start of the fixed header.
    pub protocol_at: u32,
    /// Where the fragment header begins, plus one; 0: there is none.
    pub fragment_at: u32,
    /// Offset and flags of the fragment header, as they stand there.
    pub fragment: u32,
    /// 1: a header says it is longer than the packet.
    pub malformed: u32,
}

impl Walk {
    /// The beginning: `ip` is a fixed header.
    #[inline(always)]
    pub fn new(ip: &Ip<V6>) -> Self {
        let payload = ip.length.wrapping_sub(IPV6 as u32);
        let whole = payload <= EXTENSIONS_MAX as u32;
        Self {
            at: 0,
            end: if whole {
                payload
            } else {
                EXTENSIONS_MAX as u32
            },
            whole: whole as u32,
            protocol: ip.protocol as u32,
            protocol_at: 6,
            fragment_at: 0,
            fragment: 0,
            malformed: 0,
        }
    }

    /// Passes the current header; false at the end of the walk. `list` are the bytes behind the fixed
    /// header.
    #[inline(always)]
    pub fn step(&mut self, list: &(impl Bytes + ?Sized)) -> bool {
        let header = self.protocol as u8;
        if !is_extension(header) || self.malformed != 0 {
            return false;
        }
        if header == next::HOP_BY_HOP && self.at != 0 {
            return false;
        }
        // Two bytes say what follows and how long this one is.
        let (Some(following), Some(length)) = (
            list.u8(self.at as usize),
            list.u8(self.at.wrapping_add(1) as usize),
        ) else {
            return self.beyond();
        };
        let length = if header == next::FRAGMENT {
            8
        } else {
            (length as u32 + 1) * 8
        };
        if self.at + length > self.end {
            return self.beyond();
        }
        if header == next::ROUTING && list.u8(self.at as usize + 3) != Some(0) {
            return false;
        }
        if header == next::FRAGMENT {
            if self.fragment_at != 0 {
                return false;
            }
            let (Some(high), Some(low)) =
                (list.u8(self.at as usize + 2), list.u8(self.at as usize + 3))
            else {
                return self.beyond();
            };
            self.fragment_at = self.at + 1;
            self.fragment = (high as u32) << 8 | low as u32;
        }
        self.protocol = following as u32;
        self.protocol_at = IPV6 as u32 + self.at;
        self.at += length;
        // What follows in a later fragment is data.
        self.fragment & 0xfff8 == 0
    }

    /// A header that ends behind `end`.
    #[inline(always)]
    fn beyond(&mut self) -> bool {
        self.malformed = self.whole;
        false
    }

    /// The packet's header as the walk found it.
    ///
    /// # Errors
    /// A header claims to be longer than the packet.
    #[inline(always)]
    pub fn apply(&self, ip: &mut Ip<V6>) -> Result<(), Malformed> {
        if self.malformed != 0 || self.at > EXTENSIONS_MAX as u32 {
            return Err(Malformed);
        }
        ip.transport_at = ip.network_at.wrapping_add((IPV6 as u32 + self.at) as u16);
        ip.protocol_at = ip.network_at.wrapping_add(self.protocol_at as u16);
        ip.protocol = self.protocol as u8;
        ip.fragment = match (self.fragment & 0xfff8, self.fragment & 1) {
            // An atomic fragment is a whole packet (RFC 6946).
            (0, 0) => Fragment::Whole,
            (0, _) => Fragment::First,
            _ => Fragment::Later,
        };
        Ok(())
    }
}

/// Whether an ICMPv6 message never crosses a router: multicast listeners, neighbour and router
/// discovery (RFC 2710, 3810, 4861, 3122).
#[inline(always)]
pub const fn is_local_signalling(kind: u8) -> bool {
    matches!(kind, 130..=137 | 141..=143 | 148 | 149 | 151..=153)
}

impl Header for V6 {
    #[inline(always)]
    fn never_crosses(kind: u8) -> bool {
        is_local_signalling(kind)
    }

    #[inline(always)]
    fn is_multicast(&self) -> bool {
        let [first, ..] = *self;
        first == 0xff
    }

    #[inline(always)]
    fn is_nobodys(&self) -> bool {
        u128::from_be_bytes(*self) <= 1
    }

    #[inline(always)]
    fn is_link_local(&self) -> bool {
        let [first, second, ..] = *self;
        first == 0xfe && second & 0xc0 == 0x80
    }

    #[inline(always)]
    fn answerable(ip: &Ip<Self>) -> bool {
        ip.source != [0; 16]
            && ip.destination != [0; 16]
            && !ip.source.is_multicast()
            && !ip.destination.is_multicast()
            && !matches!(ip.fragment, Fragment::Later)
            && ip.protocol != ICMPV6
    }

    #[inline(always)]
    fn pseudo_header(source: Self, destination: Self, protocol: u8, length: u16) -> u32 {
        checksum::pseudo(source, destination, protocol, length)
    }

    #[inline(always)]
    fn wide(self) -> [u8; 16] {
        self
    }
}

#[cfg(test)]
mod tests;
