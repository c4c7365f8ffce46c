//! What stands in a frame, read slowly and by no code of the data plane.

/// An address of either family; IPv4 as `::ffff:a.b.c.d`.
pub(crate) type Address = [u8; 16];
/// An address and a port.
pub(crate) type End = (Address, u16);

/// An IPv4 address as [`Address`].
pub(crate) const fn v4([a, b, c, d]: [u8; 4]) -> Address {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layers {
    /// Neither IPv4 nor IPv6.
    Other(u16),
    /// Its type says IPv4 or IPv6, and it is neither. With the address that stands where the source
    /// would be.
    Broken(Option<Address>),
    Ip(Ip),
}

/// Which part of a packet it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    First,
    Later,
}

/// An IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) six: bool,
    /// Where the header starts.
    pub(crate) at: usize,
    /// Where what follows it, and its extension headers, starts.
    pub(crate) transport: usize,
    /// Where the packet ends.
    pub(crate) end: usize,
    pub(crate) source: Address,
    pub(crate) destination: Address,
    pub(crate) protocol: u8,
    pub(crate) part: Part,
    /// Identification, of IPv6 if it has a fragment header.
    pub(crate) id: u32,
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// Extension headers that a walk goes past (RFC 8200, section 4).
const EXTENSIONS: [u8; 4] = [0, 43, 60, 135];

impl Ip {
    /// Where source and destination address stand, and how long each is.
    pub(crate) fn addresses(&self) -> (usize, usize, usize) {
        if self.six {
            (self.at + 8, self.at + 24, 16)
        } else {
            (self.at + 12, self.at + 16, 4)
        }
    }

    /// Ports of a TCP or UDP packet that has a transport header.
    pub(crate) fn ports(&self, bytes: &[u8]) -> Option<(u16, u16)> {
        if !matches!(self.protocol, 6 | 17) || self.part == Part::Later {
            return None;
        }
        Some((
            u16_at(bytes, self.transport)?,
            u16_at(bytes, self.transport + 2)?,
        ))
    }

    /// Where the checksum of what it carries stands.
    pub(crate) fn checksum(&self) -> Option<usize> {
        if self.part == Part::Later {
            return None;
        }
        let offset = match (self.six, self.protocol) {
            (_, 6) => 16,
            (_, 17) => 6,
            (false, 1) | (true, 58) => 2,
            _ => return None,
        };
        Some(self.transport + offset)
    }

    /// The sum over everything its checksum covers, checksum included: 0xffff if that is right, and
    /// the same before and after a correct rewriting, right or wrong.
    pub(crate) fn sum(&self, bytes: &[u8]) -> u16 {
        let body = &bytes[self.transport.min(self.end)..self.end];
        let mut total = raw(body);
        if self.protocol != 1 {
            total += raw(&self.source_bytes()) + raw(&self.destination_bytes());
            total += u64::from(self.protocol) + body.len() as u64;
        }
        fold(total)
    }

    fn source_bytes(&self) -> Vec<u8> {
        self.source[if self.six { 0 } else { 12 }..].to_vec()
    }

    fn destination_bytes(&self) -> Vec<u8> {
        self.destination[if self.six { 0 } else { 12 }..].to_vec()
    }

    /// The sum over an IPv4 header, options included.
    pub(crate) fn header_sum(&self, bytes: &[u8]) -> u16 {
        if self.six {
            return 0xffff;
        }
        fold(raw(&bytes[self.at..self.transport]))
    }

    /// The ICMP type, if it is an ICMP message of its family.
    pub(crate) fn icmp(&self, bytes: &[u8]) -> Option<u8> {
        let icmp = if self.six { 58 } else { 1 };
        (self.protocol == icmp && self.part != Part::Later)
            .then(|| bytes.get(self.transport).copied())?
    }
}

fn raw(bytes: &[u8]) -> u64 {
    let (pairs, rest) = bytes.as_chunks::<2>();
    let sum: u64 = pairs
        .iter()
        .map(|pair| u64::from(u16::from_be_bytes(*pair)))
        .sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

/// RFC 1071; zero and its complement are the same number, told as the latter.
pub(crate) fn fold(mut total: u64) -> u16 {
    while total >> 16 != 0 {
        total = (total & 0xffff) + (total >> 16);
    }
    if total == 0 { 0xffff } else { total as u16 }
}

/// What a frame carries behind up to two tags, and where.
pub(crate) fn network(bytes: &[u8]) -> (u16, usize) {
    let mut at = 12;
    let mut kind = u16_at(bytes, at).unwrap_or(0);
    for _ in 0..2 {
        if kind != 0x8100 && kind != 0x88a8 {
            break;
        }
        at += 4;
        kind = u16_at(bytes, at).unwrap_or(0);
    }
    (kind, at + 2)
}

/// Reads a frame whose outer VLAN tag, if any, has been taken off.
pub(crate) fn frame(bytes: &[u8]) -> Layers {
    let (kind, at) = network(bytes);
    match kind {
        0x0800 => ip4(bytes, at).map_or_else(
            || {
                Layers::Broken(
                    bytes
                        .get(at + 12..at + 16)
                        .map(|s| v4([s[0], s[1], s[2], s[3]])),
                )
            },
            Layers::Ip,
        ),
        0x86dd => ip6(bytes, at).map_or_else(
            || Layers::Broken(bytes.get(at + 8..at + 24).map(|s| s.try_into().unwrap())),
            Layers::Ip,
        ),
        kind => Layers::Other(kind),
    }
}

/// Reads an IPv4 packet that may be followed by padding.
pub(crate) fn ip4(bytes: &[u8], at: usize) -> Option<Ip> {
    let ip = quoted4(bytes, at)?;
    let length = usize::from(u16_at(bytes, at + 2)?);
    let fits = at + length <= bytes.len() && at + length >= ip.transport;
    fits.then_some(Ip {
        end: at + length,
        ..ip
    })
}

/// Reads an IPv4 header whose length need not be true, because the packet was cut.
pub(crate) fn quoted4(bytes: &[u8], at: usize) -> Option<Ip> {
    let header = bytes.get(at..at + 20)?;
    let length = usize::from(header[0] & 15) * 4;
    if header[0] >> 4 != 4 || length < 20 || at + length > bytes.len() {
        return None;
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    Some(Ip {
        six: false,
        at,
        transport: at + length,
        end: bytes.len(),
        source: v4([header[12], header[13], header[14], header[15]]),
        destination: v4([header[16], header[17], header[18], header[19]]),
        protocol: header[9],
        part: match (fragment & 0x1fff, fragment & 0x2000) {
            (0, 0) => Part::Whole,
            (0, _) => Part::First,
            _ => Part::Later,
        },
        id: u32::from(u16::from_be_bytes([header[4], header[5]])),
    })
}

/// Reads an IPv6 packet that may be followed by padding.
pub(crate) fn ip6(bytes: &[u8], at: usize) -> Option<Ip> {
    let end = at + 40 + usize::from(u16_at(bytes, at + 4)?);
    if end > bytes.len() {
        return None;
    }
    quoted6(&bytes[..end], at)
}

/// Reads an IPv6 header, and what extension headers can be read.
pub(crate) fn quoted6(bytes: &[u8], at: usize) -> Option<Ip> {
    let header = bytes.get(at..at + 40)?;
    if header[0] >> 4 != 6 {
        return None;
    }
    let mut ip = Ip {
        six: true,
        at,
        transport: at + 40,
        end: bytes.len(),
        source: header[8..24].try_into().ok()?,
        destination: header[24..40].try_into().ok()?,
        protocol: header[6],
        part: Part::Whole,
        id: 0,
    };
    while EXTENSIONS.contains(&ip.protocol) || (ip.protocol == 44 && ip.part == Part::Whole) {
        let Some(extension) = bytes.get(ip.transport..ip.transport + 8) else {
            break;
        };
        if ip.protocol == 44 {
            let field = u16::from_be_bytes([extension[2], extension[3]]);
            ip.part = match (field >> 3, field & 1) {
                (0, 0) => Part::Whole,
                (0, _) => Part::First,
                _ => Part::Later,
            };
            ip.id = u32::from_be_bytes(extension[4..8].try_into().ok()?);
            ip.transport += 8;
        } else {
            ip.transport += 8 + 8 * usize::from(extension[1]);
        }
        ip.protocol = extension[0];
        if ip.part == Part::Later {
            break;
        }
    }
    ip.transport = ip.transport.min(ip.end);
    Some(ip)
}

/// How far a careful node reads the headers of an IPv6 packet: not past a hop-by-hop header that is not
/// the first, a routing header that still names another destination, a second fragment header, what
/// it does not know, or into a later fragment; nor past eight headers or 256 bytes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Careful {
    /// Where the field stands that names the header it stops at.
    pub(crate) named_at: usize,
    /// Whether that is none of the headers which [`quoted6`] passes.
    pub(crate) at_end: bool,
    pub(crate) later: bool,
}

/// Reads the IPv6 packet at `at` so.
pub(crate) fn careful(bytes: &[u8], at: usize) -> Careful {
    let mut end = Careful {
        named_at: at + 6,
        at_end: false,
        later: false,
    };
    let mut header = at + 40;
    let mut fragment = false;
    for nth in 0.. {
        let kind = bytes[end.named_at];
        end.at_end = kind != 44 && !EXTENSIONS.contains(&kind);
        let Some(first) = bytes.get(header..header + 4) else {
            return end;
        };
        let length = if kind == 44 {
            8
        } else {
            8 + 8 * usize::from(first[1])
        };
        let passable = match kind {
            0 => header == at + 40,
            43 => first[3] == 0,
            44 => !fragment,
            60 => true,
            _ => false,
        };
        if !passable || end.later || nth == 8 || header + length > at + 40 + 256 {
            return end;
        }
        end.named_at = header;
        if kind == 44 {
            fragment = true;
            end.later = u16::from_be_bytes([first[2], first[3]]) >> 3 != 0;
        }
        header += length;
    }
    end
}

/// A frame as it is once its outer VLAN tag has become the packet's metadata.
pub(crate) fn untagged(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if matches!(u16_at(&bytes, 12), Some(0x8100 | 0x88a8)) && bytes.len() >= 18 {
        bytes.drain(12..16);
    }
    bytes
}

/// A frame without any VLAN tag.
pub(crate) fn bare(bytes: &[u8]) -> Vec<u8> {
    untagged(&untagged(bytes))
}
