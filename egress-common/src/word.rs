//! A 64-bit word shared by all CPUs: load, store, compare-and-swap and add, nothing else.
//!
//! In the kernel it is a map value behind a compiler intrinsic, on the host an [`AtomicU64`]: the
//! protocols built on it (counts, flow states, free lists) are tested with threads on the host and
//! run unchanged in the data plane.

/// A shared word.
pub trait Word {
    /// Reads the word.
    fn load(&self) -> u64;
    /// Replaces `old` by `new`; `Err` carries what was there instead.
    ///
    /// # Errors
    /// The word's value when it was not `old`.
    fn swap(&self, old: u64, new: u64) -> Result<(), u64>;
    /// Adds, wrapping around; returns what was there before.
    fn add(&self, amount: u64) -> u64;
    /// Writes the word.
    fn store(&self, value: u64);
}

#[cfg(test)]
impl Word for std::sync::atomic::AtomicU64 {
    fn load(&self) -> u64 {
        self.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn swap(&self, old: u64, new: u64) -> Result<(), u64> {
        use std::sync::atomic::Ordering::SeqCst;
        self.compare_exchange(old, new, SeqCst, SeqCst).map(|_| ())
    }

    fn add(&self, amount: u64) -> u64 {
        self.fetch_add(amount, std::sync::atomic::Ordering::SeqCst)
    }

    fn store(&self, value: u64) {
        self.store(value, std::sync::atomic::Ordering::SeqCst);
    }
}
