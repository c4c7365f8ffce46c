//! Address families: the one parameter that tells IPv4 code from IPv6 code.

/// An IP address as it stands on the wire.
pub trait Address: Copy + Eq + Default + 'static {
    /// Length in bytes.
    const LEN: usize;
    /// `ETH_P_IP` or `ETH_P_IPV6`.
    const ETHERTYPE: u16;
    /// A 64-bit digest for hashing; equal addresses have equal digests.
    fn digest(&self) -> u64;
}

/// An IPv4 address in network byte order.
pub type V4 = [u8; 4];
/// An IPv6 address in network byte order.
pub type V6 = [u8; 16];

/// Ethertype of IPv4 (RFC 894).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of ARP (RFC 826).
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// Ethertype of IPv6 (RFC 2464).
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

impl Address for V4 {
    const LEN: usize = 4;
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    #[inline(always)]
    fn digest(&self) -> u64 {
        u32::from_ne_bytes(*self) as u64
    }
}

impl Address for V6 {
    const LEN: usize = 16;
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    #[inline(always)]
    fn digest(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
            ^ u64::from_ne_bytes([i, j, k, l, m, n, o, p]).rotate_left(31)
    }
}
