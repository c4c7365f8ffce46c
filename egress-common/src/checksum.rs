//! The Internet checksum (RFC 1071) for packets we make ourselves.

/// Adds a 16-bit word to a running sum.
#[inline(always)]
pub const fn add(sum: u32, word: u16) -> u32 {
    sum + word as u32
}

/// Folds a running sum of up to 65,536 words to 16 bits, not complemented.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// Sum of the 16-bit words of a header of even length.
#[inline(always)]
pub fn sum<const N: usize>(bytes: &[u8; N]) -> u32 {
    let mut total = 0;
    let (words, _) = bytes.as_chunks::<2>();
    for word in words {
        total = add(total, u16::from_be_bytes(*word));
    }
    total
}

/// Sum of a pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1).
#[inline(always)]
pub fn pseudo<const N: usize>(
    source: [u8; N],
    destination: [u8; N],
    protocol: u8,
    length: u16,
) -> u32 {
    sum(&source) + sum(&destination) + protocol as u32 + length as u32
}

/// A header checksum after an IPv4 address in the header was replaced (RFC 1624, equation 3).
#[inline(always)]
pub fn replaced(checksum: u16, from: [u8; 4], to: [u8; 4]) -> u16 {
    let [f0, f1, f2, f3] = from;
    !fold(!checksum as u32 + sum(&[!f0, !f1, !f2, !f3]) + sum(&to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071's own algorithm over bytes of any length.
    fn oracle(bytes: &[u8]) -> u16 {
        let mut total: u64 = 0;
        for pair in bytes.chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while total >> 16 != 0 {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(
            fold(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])),
            0xddf2
        );
    }

    proptest! {
        #[test]
        fn replacing_an_address_equals_summing_anew(mut header: [u8; 20], to: [u8; 4]) {
            header[0] = 0x45; // never all zero
            header[10..12].fill(0);
            let check = !oracle(&header);
            let from = [header[12], header[13], header[14], header[15]];
            header[12..16].copy_from_slice(&to);
            prop_assert_eq!(replaced(check, from, to), !oracle(&header));
        }

        #[test]
        fn agrees_with_the_rfc(bytes: [u8; 20]) {
            prop_assert_eq!(fold(sum(&bytes)), oracle(&bytes));
        }
    }
}
