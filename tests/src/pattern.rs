//! A byte stream whose every offset is known: what arrives can be verified while it arrives, and a
//! byte that is missing, doubled or moved shows at once.

use crate::seed::mix;

/// Bytes of one word of the stream.
const WORD: usize = 8;

/// Fills `buffer` with the stream from `offset` on.
pub fn fill(buffer: &mut [u8], offset: u64) {
    each_word(buffer.len(), offset, |range, bytes| {
        buffer[range].copy_from_slice(bytes);
        true
    });
}

/// Whether `buffer` is the stream from `offset` on.
#[must_use]
pub fn matches(buffer: &[u8], offset: u64) -> bool {
    each_word(buffer.len(), offset, |range, bytes| buffer[range] == *bytes)
}

/// Calls `visit` with the pieces of the stream until it returns false.
fn each_word(
    length: usize,
    offset: u64,
    mut visit: impl FnMut(std::ops::Range<usize>, &[u8]) -> bool,
) -> bool {
    let mut done = 0;
    while done < length {
        let at = offset + done as u64;
        let word = mix(at / WORD as u64).to_le_bytes();
        let skip = (at % WORD as u64) as usize;
        let take = (WORD - skip).min(length - done);
        if !visit(done..done + take, &word[skip..skip + take]) {
            return false;
        }
        done += take;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_of_the_stream_matches_at_its_offset_only() {
        let mut whole = vec![0; 1000];
        fill(&mut whole, 0);
        for (from, to) in [(0, 1000), (3, 5), (7, 900), (8, 16)] {
            assert!(matches(&whole[from..to], from as u64));
            assert!(!matches(&whole[from..to], from as u64 + 8));
        }
    }
}
