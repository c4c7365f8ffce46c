//! Servers that share egress IPs: where each is reached, and which of them owns what (FWD-5, FWD-6).

use crate::family::V4;
use crate::port::SLICES;

/// Servers that the data plane may know; their numbers are 1..MAX_PEERS, given by each daemon for itself.
pub const MAX_PEERS: u32 = 4_096;

/// Tunnel id of a reply that arrived at another server than the one that owns its port.
pub const REPLY: u32 = 0;

/// Tunnel id of what goes back to the server that a connection came from, translated back already. Pools have the
/// ids from [`crate::share::FIRST_TARGET`].
pub const RETURN: u32 = 1;

/// Tunnel id of a live connection whose pool is known no more where it began: nothing new is opened by it (POOL-9).
pub const GOING_ON: u32 = 2;

/// Where a server is reached by the others: an IPv6 address, or an IPv4 address mapped into one (RFC 4291,
/// section 2.5.5.2).
pub type Underlay = [u8; 16];

/// An IPv4 address as an [`Underlay`].
#[inline(always)]
pub const fn mapped(address: V4) -> Underlay {
    let [a, b, c, d] = address;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

/// The IPv4 address that was mapped, if it is one.
#[inline(always)]
pub const fn unmapped(address: &Underlay) -> Option<V4> {
    match *address {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
        _ => None,
    }
}

/// Another server; element `number` of the `PEERS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Where it is reached; zeros if there is no server of this number.
    pub address: Underlay,
}

/// The number of a server, by its address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerNumber {
    /// From 1.
    pub number: u32,
}

/// This server's end of the tunnel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tunnel {
    /// Its interface; 0 if there is no tunnel.
    pub interface: u32,
    /// The uplink at which packets that come through it are taken for arrived.
    pub uplink: u32,
    /// Where this server is reached by the others.
    pub own: Underlay,
    /// Length of the longest IP packet that fits the tunnel uncut; 0 if that is not known.
    pub mtu: u32,
}

/// Who owns the slices of an IPv4 egress IP that are not this server's.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    /// By slice: the number of the server; 0 if the slice is this server's, or nobody's.
    pub peers: [u16; SLICES as usize + 1],
}

impl Default for Owners {
    fn default() -> Self {
        Self {
            peers: [0; SLICES as usize + 1],
        }
    }
}

const _: () = assert!(size_of::<Owners>() == 64);

/// What went between this server and another one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets sent there.
    pub sent_packets: u64,
    /// Bytes sent there, link-layer length before the tunnel's headers.
    pub sent_bytes: u64,
    /// Packets that came from there.
    pub received_packets: u64,
    /// Bytes that came from there, likewise.
    pub received_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn an_ipv4_address_is_mapped_as_everybody_maps_it() {
        let address = Ipv4Addr::new(10, 9, 0, 1);
        let underlay = mapped(address.octets());
        assert_eq!(Ipv6Addr::from(underlay), address.to_ipv6_mapped());
        assert_eq!(unmapped(&underlay), Some(address.octets()));
        assert_eq!(unmapped(&Ipv6Addr::LOCALHOST.octets()), None);
    }
}
