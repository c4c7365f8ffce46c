//! Memory set to zeros by words. The compiler's own way is a call of a loop over bytes, which the verifier follows
//! byte by byte.

/// Sets so many words to zero.
///
/// # Safety
/// They must be there, at an address that is a multiple of eight.
#[inline(always)]
pub unsafe fn zero<const WORDS: usize>(start: *mut u64) {
    for word in 0..WORDS {
        // Volatile, or it would be recognised and become a call of that loop.
        // SAFETY: the caller's promise.
        unsafe { start.add(word).write_volatile(0) };
    }
}
