//! UDP datagrams cut into fragments by hand, so that they can be sent in any order, or in part.

use std::net::{IpAddr, SocketAddr};

use crate::odd::checksum;

/// UDP's protocol number.
const UDP: u8 = 17;
/// More fragments follow (IPv4).
const MORE: u16 = 0x2000;
/// The number of IPv6's fragment header.
const FRAGMENT_HEADER: u8 = 44;
/// Bytes of a datagram in a fragment that a link of 1,500 bytes takes in either family.
pub const ETHERNET_PIECE: usize = 1_448;

/// A datagram.
#[derive(Clone, Debug)]
pub struct Datagram<'a> {
    /// Who sends it, by link-layer addresses.
    pub from: [u8; 6],
    /// Who is to forward it.
    pub to: [u8; 6],
    /// Source.
    pub source: SocketAddr,
    /// Destination, of the same family.
    pub destination: SocketAddr,
    /// Identification; IPv4 has room for 16 bits.
    pub id: u32,
    /// Payload.
    pub payload: &'a [u8],
}

/// The bytes of an address.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Datagram<'_> {
    /// The frames of its fragments of at most `piece` bytes (a multiple of eight), in order.
    #[must_use]
    pub fn fragments(&self, piece: usize) -> Vec<Vec<u8>> {
        let body = self.body();
        let last = body.len().div_ceil(piece) - 1;
        body.chunks(piece)
            .enumerate()
            .map(|(nth, part)| self.frame((nth * piece / 8) as u16, nth < last, part))
            .collect()
    }

    /// The datagram with its header.
    fn body(&self) -> Vec<u8> {
        let length = (8 + self.payload.len()) as u16;
        let mut body = Vec::with_capacity(usize::from(length));
        body.extend(self.source.port().to_be_bytes());
        body.extend(self.destination.port().to_be_bytes());
        body.extend(length.to_be_bytes());
        body.extend([0, 0]);
        body.extend(self.payload);
        let mut summed = octets(self.source.ip());
        summed.extend(octets(self.destination.ip()));
        summed.extend([0, UDP]);
        summed.extend(length.to_be_bytes());
        summed.extend(&body);
        let sum = match checksum(&summed, 0) {
            0 => 0xffff,
            sum => sum,
        };
        body[6..8].copy_from_slice(&sum.to_be_bytes());
        body
    }

    /// One fragment; `offset` in units of eight bytes.
    fn frame(&self, offset: u16, more: bool, part: &[u8]) -> Vec<u8> {
        let mut frame = Vec::with_capacity(62 + part.len());
        frame.extend(self.to);
        frame.extend(self.from);
        let mut ip = Vec::new();
        if self.source.is_ipv4() {
            frame.extend([0x08, 0x00]);
            let field = offset | if more { MORE } else { 0 };
            ip.extend([0x45, 0]);
            ip.extend(((20 + part.len()) as u16).to_be_bytes());
            ip.extend((self.id as u16).to_be_bytes());
            ip.extend(field.to_be_bytes());
            ip.extend([64, UDP, 0, 0]);
        } else {
            frame.extend([0x86, 0xdd]);
            ip.extend([0x60, 0, 0, 0]);
            ip.extend(((8 + part.len()) as u16).to_be_bytes());
            ip.extend([FRAGMENT_HEADER, 64]);
        }
        ip.extend(octets(self.source.ip()));
        ip.extend(octets(self.destination.ip()));
        if self.source.is_ipv4() {
            let sum = checksum(&ip, 0);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        } else {
            ip.extend([UDP, 0]);
            ip.extend((offset << 3 | u16::from(more)).to_be_bytes());
            ip.extend(self.id.to_be_bytes());
        }
        frame.extend(ip);
        frame.extend(part);
        frame
    }
}
