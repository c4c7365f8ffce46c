//! What the daemon configures, as it stands in the maps.
//!
//! Configuration exists in two versions; [`Switch::version`] says which one counts. The daemon
//! fills the other one and flips the switch, so that every packet sees the old configuration or
//! the new one and never a mixture (SAFE-5). Arrays hold version v's element i at
//! `v * capacity + i`; keys of hashes and tries begin with the version.

use crate::family::Address;

/// Zones a configuration may have; zone numbers are 1..MAX_ZONES.
pub const MAX_ZONES: u32 = 16_384;
/// Pools a configuration may have; pool numbers are 1..MAX_POOLS.
pub const MAX_POOLS: u32 = 16_384;
/// Ends of the numbers of exits, which begin at MAX_POOLS: what some traffic may use of a pool, for which it stands
/// among the pools. A zone that is confined to locations (FWD-8) has one, and a policy's address (POLICY-3).
pub const MAX_EXITS: u32 = 2 * MAX_POOLS;
/// The exit by which nothing leaves.
pub const NO_EXIT: u32 = MAX_POOLS;
/// Candidates (address and slices this server owns) of all pools of a configuration.
pub const MAX_CANDIDATES: u32 = 65_536;
/// Mark selectors of a configuration.
pub const MAX_MARKS: u32 = 256;
/// Candidates of one pool that are tried for one flow.
pub const MAX_TRIED: u32 = 256;

/// Bytes for the path of a selected cgroup, with the slash it begins with and a zero at its end.
pub const CGROUP_PATH: usize = 248;

/// Which version of the configuration counts.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switch {
    /// The lowest bit is the version. The number rises with each switch, so that a configuration can be told from the one
    /// before the last, too.
    pub version: u32,
    /// 1: no flow passes routing by, since routing rules look at bits of the mark that others write on the way.
    pub routed: u32,
    /// From when on this server's slices may be others' (CLU-3), ns since the start of the machine, sleep included; 0: never.
    pub lapse: u64,
}

impl Switch {
    /// Whether the slices may be others' by now.
    #[inline(always)]
    pub fn has_lapsed(&self, now: impl FnOnce() -> u64) -> bool {
        // SAFETY: one word, which the daemon may replace at any time: it is read once.
        let lapse = unsafe { core::ptr::read_volatile(&raw const self.lapse) };
        lapse != 0 && now() >= lapse
    }
}

/// Settings without a key of their own; one element a version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Idle time-outs.
    pub timers: Timers,
    /// 1: refusals are answered (CAP-5); 0: dropped.
    pub refuse_reset: u32,
    /// 1: ICMP queries of bound zones take the default egress (POLICY-7); 0: dropped.
    pub icmp_queries: u32,
    /// Number of mark selectors.
    pub marks: u32,
    /// Bit L is set if some zone selects a cgroup L levels below the root.
    pub cgroup_levels: u32,
    /// 1 if egress IPs answer ARP on the uplink.
    pub answer_arp: u32,
    /// Number of exempt destinations and resolvers.
    pub exempt: u32,
    /// Number of interface selectors.
    pub interfaces: u32,
    /// Number of enabled zones.
    pub enabled: u32,
    /// 1: both ends of an established connection that is ended for its idleness get a RST.
    pub reset_idle: u32,
    /// Number of rules that egress policies make ([`crate::policy`]); 0: no packet is looked up.
    pub rules: u32,
    /// What is written to the flow log: bit [`crate::record::kind`] each; 0: nothing.
    pub log: u32,
    /// Always zero.
    pub pad: u32,
}

/// Time-outs in nanoseconds (NAT-7, CAP-7).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    /// Established TCP.
    pub tcp_established: u64,
    /// Half-open TCP, and TCP after both FINs.
    pub tcp_transitory: u64,
    /// How long a closed TCP flow still translates late packets, if nobody takes its port before.
    pub tcp_closing: u64,
    /// How long a closed flow's port rests; then anybody may take it.
    pub quarantine: u64,
    /// UDP.
    pub udp: u64,
}

/// A zone (ZONE-1); element `number` of its version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// See [`zone_flag`].
    pub flags: u32,
    /// Pool number, 0 for none.
    pub pool: u32,
    /// What the zone may use of the pool: the number of an exit; 0: all of it.
    pub exit: u32,
}

/// Bits of [`Zone::flags`].
pub mod zone_flag {
    /// The element is in use.
    pub const KNOWN: u32 = 1 << 0;
    /// New connections go through the pool.
    pub const ENABLED: u32 = 1 << 1;
    /// Inside addresses are the zone's own (ZONE-2: selected by interface).
    pub const REALM: u32 = 1 << 2;
    /// TCP goes through the pool (POLICY-6).
    pub const TCP: u32 = 1 << 3;
    /// UDP goes through the pool (POLICY-6).
    pub const UDP: u32 = 1 << 4;
}

/// A pool, or an exit; element `number` of its version.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// First IPv4 candidate, relative to the version's part of the candidates.
    pub first: u32,
    /// Number of IPv4 candidates.
    pub count: u32,
    /// First IPv6 candidate.
    pub first6: u32,
    /// Number of IPv6 candidates.
    pub count6: u32,
}

/// One egress IP, or one IPv6 range, as this server may use it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate<A> {
    /// The dedicated address; of a range the first one. A server's part of a pool's range is a longer
    /// prefix that ends in the server's number (POOL-6).
    pub address: A,
    /// Slices this server owns: bit k is slice k. Of a range: any but 0, since every port is used.
    pub slices: u32,
    /// Connections per origin this server may admit, of each address.
    pub capacity: u32,
    /// See [`candidate_flag`].
    pub flags: u32,
    /// Prefix length of a range; of an IPv4 address 32.
    pub length: u32,
}

const _: () = assert!(size_of::<Candidate<crate::family::V4>>() == 20);
const _: () = assert!(size_of::<Candidate<crate::family::V6>>() == 32);

/// Bits of [`Candidate::flags`].
pub mod candidate_flag {
    /// No new flows (POOL-9).
    pub const DRAINING: u32 = 1 << 0;
}

/// Prefix length of the version at the head of every trie key.
pub const VERSION_BITS: u32 = 32;

/// Data of an IPv4 trie key: version (network byte order), then the address.
pub type PrefixV4 = [u8; 8];
/// Data of an IPv6 trie key: version (network byte order), then the address.
pub type PrefixV6 = [u8; 20];

/// Trie key data for an address of either family.
pub trait Prefixed: Address {
    /// The trie's key data.
    type Data: Copy + 'static;
    /// Version and address as key data.
    fn data(version: u32, address: Self) -> Self::Data;
}

impl Prefixed for crate::family::V4 {
    type Data = PrefixV4;
    #[inline(always)]
    fn data(version: u32, address: Self) -> PrefixV4 {
        let [v0, v1, v2, v3] = version.to_be_bytes();
        let [a, b, c, d] = address;
        [v0, v1, v2, v3, a, b, c, d]
    }
}

impl Prefixed for crate::family::V6 {
    type Data = PrefixV6;
    #[inline(always)]
    fn data(version: u32, address: Self) -> PrefixV6 {
        let [v0, v1, v2, v3] = version.to_be_bytes();
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = address;
        [
            v0, v1, v2, v3, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p,
        ]
    }
}

/// Value of the selector maps: a zone.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Zone number.
    pub zone: u32,
}

/// A firewall mark that selects a zone; sorted by falling number of mask bits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkSelector {
    /// Bits compared.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
    /// Zone number.
    pub zone: u32,
}

/// Key of the interface selectors.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InterfaceKey {
    /// Configuration version.
    pub version: u32,
    /// Interface index.
    pub interface: u32,
}

/// Key of the cgroup selectors.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CgroupKey {
    /// Configuration version.
    pub version: u64,
    /// cgroup2 id.
    pub cgroup: u64,
}

/// Key of the selected cgroups' paths: whoever is created under one of them is known before it is entered.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CgroupPath {
    /// Configuration version.
    pub version: u32,
    /// Always zero.
    pub pad: u32,
    /// From the root of cgroup2, filled up with zeros.
    pub path: [u8; CGROUP_PATH],
}

impl CgroupPath {
    /// The key of `path`, given below the root and without a leading slash; `None` where it does not fit.
    pub fn new(version: u32, path: &str) -> Option<Self> {
        let mut bytes = [0; CGROUP_PATH];
        let (slash, rest) = bytes.split_first_mut()?;
        *slash = b'/';
        // The zero at the end is part of it: who reads a longer path sees that it was cut.
        let (place, end) = rest.split_at_mut_checked(path.len())?;
        if end.is_empty() {
            return None;
        }
        place.copy_from_slice(path.as_bytes());
        Some(Self {
            version,
            pad: 0,
            path: bytes,
        })
    }
}

/// What an egress IP is to this server; not versioned: an address that left its pool is kept until
/// its last flow ended, so that replies still find it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EgressAddress {
    /// See [`egress_flag`].
    pub flags: u32,
    /// Of an IPv6 range that is another server's: that server's number ([`crate::peer`]); else 0.
    pub owner: u32,
}

/// Bits of [`EgressAddress::flags`].
pub mod egress_flag {
    /// ARP and neighbour solicitations for it are answered.
    pub const ANSWER: u32 = 1 << 0;
    /// It left its pool; live flows remain.
    pub const RETIRED: u32 = 1 << 1;
    /// Another server owns it, or some of its slices: what is not this server's is sent on (FWD-5).
    pub const SHARED: u32 = 1 << 2;
}

/// An interface one of our programs is attached to, by interface index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// See [`role`].
    pub role: u32,
    /// Link-layer address.
    pub mac: [u8; 6],
    /// Not zero if its packets begin with the network header, without a link layer (tun, wireguard).
    pub bare: u8,
    /// Always zero.
    pub pad: u8,
}

impl Device {
    /// Whether its packets begin with the network header.
    #[inline(always)]
    pub const fn is_bare(&self) -> bool {
        self.bare != 0
    }
}

/// Values of [`Device::role`].
pub mod role {
    /// Traffic to be forwarded enters here.
    pub const INSIDE: u32 = 1;
    /// Traffic leaves here.
    pub const UPLINK: u32 = 2;
    /// Other servers are reached here.
    pub const TUNNEL: u32 = 3;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroups_path_fits_or_is_none() {
        let longest = "a".repeat(CGROUP_PATH - 2);
        let key = CgroupPath::new(1, &longest).unwrap();
        assert_eq!((key.path[0], key.path[CGROUP_PATH - 1]), (b'/', 0));
        assert_eq!(CgroupPath::new(1, &format!("{longest}b")), None);
        assert_ne!(CgroupPath::new(0, "a/b"), CgroupPath::new(0, "a/b/c"));
    }
}
