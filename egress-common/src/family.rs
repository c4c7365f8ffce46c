//! Address families: the one parameter that tells IPv4 code from IPv6 code.

/// An IP address as it stands on the wire.
pub trait Address: Copy + Eq + Default + 'static {
    /// Length in bytes.
    const LEN: usize;
    /// `ETH_P_IP` or `ETH_P_IPV6`.
    const ETHERTYPE: u16;
    /// A 64-bit digest for hashing; equal addresses have equal digests.
    fn digest(&self) -> u64;
    /// Sum of products of the words of two addresses, each masked by one of `key` (see
    /// [`crate::index::hash`]).
    fn product(a: &Self, b: &Self, key: &[u32; 8]) -> u64;
}

/// One term of such a sum.
#[inline(always)]
const fn term(a: u32, b: u32, k: u32, l: u32) -> u64 {
    (a.wrapping_add(k) as u64).wrapping_mul(b.wrapping_add(l) as u64)
}

/// One 32-bit word of an IPv6 address.
macro_rules! word {
    ($address:expr, $a:literal, $b:literal, $c:literal, $d:literal) => {
        u32::from_ne_bytes([$address[$a], $address[$b], $address[$c], $address[$d]])
    };
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
    #[inline(always)]
    fn product(a: &Self, b: &Self, key: &[u32; 8]) -> u64 {
        let [k, l, ..] = *key;
        term(u32::from_ne_bytes(*a), u32::from_ne_bytes(*b), k, l)
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
    #[inline(always)]
    fn product(a: &Self, b: &Self, key: &[u32; 8]) -> u64 {
        let [c, d, e, f, g, h, i, j] = *key;
        term(word!(a, 0, 1, 2, 3), word!(b, 0, 1, 2, 3), c, d)
            .wrapping_add(term(word!(a, 4, 5, 6, 7), word!(b, 4, 5, 6, 7), e, f))
            .wrapping_add(term(word!(a, 8, 9, 10, 11), word!(b, 8, 9, 10, 11), g, h))
            .wrapping_add(term(
                word!(a, 12, 13, 14, 15),
                word!(b, 12, 13, 14, 15),
                i,
                j,
            ))
    }
}
