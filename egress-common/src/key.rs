//! The keys by which a flow, its port reservation and its counter are found.
//!
//! Keys are hashed as raw memory, so they have no padding the compiler could leave unset: every
//! gap is a named field that is always zero.

use crate::family::Address;
use crate::index::{self, HashKey};

/// TCP's protocol number (IANA).
pub const TCP: u8 = 6;
/// UDP's protocol number (IANA).
pub const UDP: u8 = 17;
/// ICMP's protocol number (IANA).
pub const ICMP: u8 = 1;
/// ICMPv6's protocol number (IANA).
pub const ICMPV6: u8 = 58;

/// A flow as the inside sees it: NAT-8, address- and port-dependent mapping.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// Source address before translation.
    pub inside: A,
    /// Destination address.
    pub origin: A,
    /// Source port before translation, host byte order.
    pub inside_port: u16,
    /// Destination port, host byte order.
    pub origin_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
    /// Which address space `inside` belongs to: see [`realm`].
    pub realm: u16,
}

/// Address spaces of inside addresses. Two realms may use the same addresses (ZONE-2).
pub mod realm {
    /// The gateway's own routing table: everything that is not below.
    pub const COMMON: u16 = 0;

    /// The realm of a zone that is selected by interface.
    #[inline(always)]
    pub const fn of_zone(zone: u16) -> u16 {
        zone
    }

    /// Realms from here are other servers': two servers' insides may use the same addresses.
    const PEERS: u16 = 0x8000;

    const _: () = assert!(crate::settings::MAX_ZONES <= PEERS as u32);
    const _: () = assert!(crate::peer::MAX_PEERS <= PEERS as u32);

    /// The realm of what another server has sent here to be translated, by that server's number.
    #[inline(always)]
    pub const fn of_peer(number: u32) -> u16 {
        PEERS | number as u16
    }

    /// The number of the server whose realm it is, if it is one of those.
    #[inline(always)]
    pub const fn peer(realm: u16) -> Option<u32> {
        if realm & PEERS == 0 {
            None
        } else {
            Some((realm & !PEERS) as u32)
        }
    }
}

/// A flow as the origin sees it; its insertion is the reservation of the egress port (CAP-8).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReverseKey<A> {
    /// The dedicated address the flow leaves with.
    pub egress: A,
    /// Destination address.
    pub origin: A,
    /// Source port after translation, host byte order.
    pub egress_port: u16,
    /// Destination port, host byte order.
    pub origin_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
    /// Always zero.
    pub pad2: u16,
}

/// What a cap counts: one egress IP towards one origin and protocol (CAP-1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct OriginKey<A> {
    /// The dedicated address.
    pub egress: A,
    /// Destination address.
    pub origin: A,
    /// Destination port, host byte order.
    pub origin_port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Always zero.
    pub pad: u8,
}

impl<A: Address> OriginKey<A> {
    /// What counts the flows that are forwarded to a server, by its number: of no egress IP.
    #[inline(always)]
    pub fn of_peer(number: u32, protocol: u8) -> Self {
        Self {
            origin_port: number as u16,
            protocol,
            ..Self::default()
        }
    }

    /// What a counter is of that is free but on no list of free ones: nothing has it, since 0 is no protocol that is
    /// counted. Whoever looks after idle counters finds it, unlike one on a list, which has no key at all.
    #[inline(always)]
    pub fn astray() -> Self {
        Self {
            origin_port: u16::MAX,
            ..Self::default()
        }
    }
}

impl<A: Address> FlowKey<A> {
    /// Hash of the key, for [`crate::index`].
    #[inline(always)]
    pub fn hash(&self, key: &HashKey) -> u64 {
        let rest = self.protocol as u32 | (self.realm as u32) << 16;
        let ports = self.inside_port as u32 | (self.origin_port as u32) << 16;
        index::hash(key, &self.inside, &self.origin, ports, rest)
    }

    /// The key under which replies to this flow arrive when it leaves as `egress:egress_port`.
    #[inline(always)]
    pub fn reverse(&self, egress: A, egress_port: u16) -> ReverseKey<A> {
        ReverseKey {
            egress,
            origin: self.origin,
            egress_port,
            origin_port: self.origin_port,
            protocol: self.protocol,
            pad: 0,
            pad2: 0,
        }
    }

    /// The counter this flow falls under when it leaves as `egress`.
    #[inline(always)]
    pub fn counted(&self, egress: A) -> OriginKey<A> {
        OriginKey {
            egress,
            origin: self.origin,
            origin_port: self.origin_port,
            protocol: self.protocol,
            pad: 0,
        }
    }
}

impl<A: Address> ReverseKey<A> {
    /// Hash of the key, for [`crate::index`].
    #[inline(always)]
    pub fn hash(&self, key: &HashKey) -> u64 {
        let ports = self.egress_port as u32 | (self.origin_port as u32) << 16;
        index::hash(key, &self.egress, &self.origin, ports, self.protocol as u32)
    }
}

/// Where a record stands, and which life of it is meant.
///
/// An element of a kernel hash that is deleted may be reused for another key while a reader still
/// holds a pointer to it, so a hash never holds state: it holds a number and the generation the
/// record must have.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reference {
    /// Element of the array that holds the record.
    pub index: u32,
    /// Generation the record had when this reference was made.
    pub generation: u32,
}
