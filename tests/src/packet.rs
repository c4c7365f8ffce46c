//! Reading captured packets: Ethernet, VLAN, IPv4, IPv6, TCP, UDP, ICMP.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
/// IP protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
/// IPv6 extension headers that are stepped over: hop-by-hop, routing, destination options.
const EXTENSIONS: [u8; 3] = [0, 43, 60];
const FRAGMENT_HEADER: u8 = 44;

/// TCP flags.
pub const FIN: u8 = 0x01;
/// Opens a connection.
pub const SYN: u8 = 0x02;
/// Refuses or ends one.
pub const RST: u8 = 0x04;
/// Acknowledges.
pub const ACK: u8 = 0x10;

/// The headers of an IP packet, as far as the capture holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The VLAN tag inside the frame, if any.
    pub vlan: Option<u16>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Hops it may still go: the time to live, or hop limit.
    pub hops: u8,
    /// The protocol after all extension headers.
    pub protocol: u8,
    /// Not a first fragment: there is no transport header.
    pub later_fragment: bool,
    /// What the transport header says.
    pub transport: Transport,
}

/// The part of the transport header that tests look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP ports, flags and numbers.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flags, see [`SYN`].
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
    },
    /// UDP ports.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP of either family.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Where the packet was going that an IPv4 error is about.
        about: Option<Ipv4Addr>,
    },
    /// Another protocol, or cut off.
    Other,
}

impl Packet {
    /// Reads an Ethernet frame; nothing if it is not an IP packet.
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let mut kind = word(frame, 12)?;
        let mut at = 14;
        let mut vlan = None;
        while kind == VLAN || kind == SERVICE_VLAN {
            vlan = Some(word(frame, at)? & 0x0fff);
            kind = word(frame, at + 2)?;
            at += 4;
        }
        let packet = frame.get(at..)?;
        let parsed = match kind {
            IPV4 => ipv4(packet),
            IPV6 => ipv6(packet),
            _ => None,
        }?;
        Some(Self { vlan, ..parsed })
    }

    /// The destination port, if there is one.
    #[must_use]
    pub fn destination_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Tcp { destination, .. } | Transport::Udp { destination, .. } => {
                Some(destination)
            }
            _ => None,
        }
    }

    /// The source port, if there is one.
    #[must_use]
    pub fn source_port(&self) -> Option<u16> {
        match self.transport {
            Transport::Tcp { source, .. } | Transport::Udp { source, .. } => Some(source),
            _ => None,
        }
    }

    /// Whether this is a TCP packet with all of `flags` set.
    #[must_use]
    pub fn has_flags(&self, flags: u8) -> bool {
        matches!(self.transport, Transport::Tcp { flags: found, .. } if found & flags == flags)
    }
}

impl fmt::Display for Packet {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (source, destination) = (self.source, self.destination);
        match self.transport {
            Transport::Tcp {
                source: from,
                destination: to,
                flags,
                ..
            } => {
                write!(
                    out,
                    "TCP {source}:{from} > {destination}:{to} flags {flags:#04x}"
                )?;
            }
            Transport::Udp {
                source: from,
                destination: to,
            } => {
                write!(out, "UDP {source}:{from} > {destination}:{to}")?;
            }
            Transport::Icmp { kind, code, .. } => {
                write!(out, "ICMP {source} > {destination} {kind}/{code}")?;
            }
            Transport::Other => write!(out, "protocol {} {source} > {destination}", self.protocol)?,
        }
        if self.later_fragment {
            write!(out, " (later fragment)")?;
        }
        match self.vlan {
            Some(vlan) => write!(out, " vlan {vlan}"),
            None => Ok(()),
        }
    }
}

fn ipv4(packet: &[u8]) -> Option<Packet> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    let protocol = *packet.get(9)?;
    let later_fragment = word(packet, 6)? & 0x1fff != 0;
    Some(Packet {
        vlan: None,
        source: Ipv4Addr::from(source).into(),
        destination: Ipv4Addr::from(destination).into(),
        hops: *packet.get(8)?,
        protocol,
        later_fragment,
        transport: transport(
            protocol,
            later_fragment,
            packet.get(header..).unwrap_or_default(),
        ),
    })
}

fn ipv6(packet: &[u8]) -> Option<Packet> {
    let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
    let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
    let mut protocol = *packet.get(6)?;
    let mut at = 40;
    let mut later_fragment = false;
    loop {
        if protocol == FRAGMENT_HEADER {
            let Some(offset) = word(packet, at + 2) else {
                break;
            };
            later_fragment = offset & 0xfff8 != 0;
            protocol = *packet.get(at)?;
            at += 8;
        } else if EXTENSIONS.contains(&protocol) && !later_fragment {
            let (Some(next), Some(length)) = (packet.get(at), packet.get(at + 1)) else {
                break;
            };
            protocol = *next;
            at += 8 * (usize::from(*length) + 1);
        } else {
            break;
        }
    }
    Some(Packet {
        vlan: None,
        source: Ipv6Addr::from(source).into(),
        destination: Ipv6Addr::from(destination).into(),
        hops: *packet.get(7)?,
        protocol,
        later_fragment,
        transport: transport(
            protocol,
            later_fragment,
            packet.get(at..).unwrap_or_default(),
        ),
    })
}

fn transport(protocol: u8, later_fragment: bool, bytes: &[u8]) -> Transport {
    if later_fragment {
        return Transport::Other;
    }
    let parsed = match protocol {
        TCP => tcp(bytes),
        UDP => word(bytes, 0)
            .zip(word(bytes, 2))
            .map(|(source, destination)| Transport::Udp {
                source,
                destination,
            }),
        ICMP | ICMPV6 => bytes
            .first()
            .zip(bytes.get(1))
            .map(|(kind, code)| Transport::Icmp {
                kind: *kind,
                code: *code,
                about: quoted_destination(protocol, *kind, bytes),
            }),
        _ => None,
    };
    parsed.unwrap_or(Transport::Other)
}

/// Unreachable, redirect, time exceeded and parameter problem quote the packet that they are about.
fn quoted_destination(protocol: u8, kind: u8, bytes: &[u8]) -> Option<Ipv4Addr> {
    const HEADER: usize = 8;
    const DESTINATION: usize = HEADER + 16;

    if protocol != ICMP || !matches!(kind, 3 | 5 | 11 | 12) {
        return None;
    }
    let octets: [u8; 4] = bytes.get(DESTINATION..DESTINATION + 4)?.try_into().ok()?;
    Some(octets.into())
}

fn tcp(bytes: &[u8]) -> Option<Transport> {
    Some(Transport::Tcp {
        source: word(bytes, 0)?,
        destination: word(bytes, 2)?,
        flags: *bytes.get(13)?,
        sequence: u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?),
        acknowledgement: u32::from_be_bytes(bytes.get(8..12)?.try_into().ok()?),
    })
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp_frame(tags: &[u16]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        for tag in tags {
            frame.extend(VLAN.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(IPV4.to_be_bytes());
        frame.extend([
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, UDP, 0, 0, 10, 1, 0, 2, 192, 0, 2, 10,
        ]);
        frame.extend([0x10, 0, 0, 53, 0, 8, 0, 0]);
        frame
    }

    #[test]
    fn reads_through_vlan_tags() {
        for (tags, vlan) in [(&[][..], None), (&[7][..], Some(7)), (&[7, 8][..], Some(8))] {
            let packet = Packet::parse(&udp_frame(tags)).expect("an IP packet");
            assert_eq!(packet.vlan, vlan);
            assert_eq!(
                packet.transport,
                Transport::Udp {
                    source: 4096,
                    destination: 53
                }
            );
        }
    }

    #[test]
    fn a_cut_frame_is_no_panic() {
        let frame = udp_frame(&[7]);
        for length in 0..frame.len() {
            let _ = Packet::parse(&frame[..length]);
        }
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let mut frame = udp_frame(&[]);
        frame[21] = 1;
        let packet = Packet::parse(&frame).expect("an IP packet");
        assert!(packet.later_fragment);
        assert_eq!(packet.transport, Transport::Other);
    }
}
