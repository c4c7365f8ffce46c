//! SipHash-1-3 over a few words: the keyed hash behind unguessable ports (RFC 6056, NAT-9).

/// A secret drawn once when the data plane is first created.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Secret {
    /// First half of the key.
    pub k0: u64,
    /// Second half of the key.
    pub k1: u64,
}

#[inline(always)]
fn round(v: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = v;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// SipHash-1-3 of `words`, each taken as eight little-endian bytes.
#[inline(always)]
pub fn siphash<const N: usize>(secret: Secret, words: [u64; N]) -> u64 {
    let mut v = [
        secret.k0 ^ 0x736f_6d65_7073_6575,
        secret.k1 ^ 0x646f_7261_6e64_6f6d,
        secret.k0 ^ 0x6c79_6765_6e65_7261,
        secret.k1 ^ 0x7465_6462_7974_6573,
    ];
    for word in words {
        v = absorb(v, word);
    }
    v = absorb(v, ((N as u64 * 8) & 0xff) << 56);
    let [a, b, c, d] = v;
    let [a, b, c, d] = round(round(round([a, b, c ^ 0xff, d])));
    a ^ b ^ c ^ d
}

#[inline(always)]
fn absorb(v: [u64; 4], word: u64) -> [u64; 4] {
    let [a, b, c, d] = v;
    let [a, b, c, d] = round([a, b, c, d ^ word]);
    [a ^ word, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::hash::Hasher;

    proptest! {
        #[test]
        fn agrees_with_the_standard_library_on_a_zero_key(words: [u64; 3]) {
            let mut oracle = std::collections::hash_map::DefaultHasher::new();
            for word in words {
                oracle.write(&word.to_le_bytes());
            }
            prop_assert_eq!(siphash(Secret::default(), words), oracle.finish());
        }

        #[test]
        fn the_key_matters(k0: u64, k1: u64, words: [u64; 2]) {
            prop_assume!(k0 != 0 || k1 != 0);
            prop_assert_ne!(siphash(Secret { k0, k1 }, words), siphash(Secret::default(), words));
        }
    }
}
