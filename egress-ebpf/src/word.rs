//! Atomics on map values.
//!
//! `core` has no read-modify-write atomics for this target, and LLVM 22 miscompiles a relaxed one
//! whose result is used (llvm/llvm-project#210280): everything here is sequentially consistent.

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};
use core::ptr::{read_volatile, write_volatile};

use egress_common::tcp::after;
use egress_common::word::Word;

const SEQ: AtomicOrdering = AtomicOrdering::SeqCst;

/// How often a number is moved forward when other CPUs move it too; each of them leaves a higher one.
const RAISES: u32 = 8;

/// A 64-bit word of a map value.
#[derive(Clone, Copy)]
pub struct MapWord(*mut u64);

impl MapWord {
    /// The first eight bytes of a map value.
    ///
    /// # Safety
    /// `value` points to a map value of at least eight bytes, 8-aligned.
    #[inline(always)]
    pub unsafe fn first_of<T>(value: *mut T) -> Self {
        Self(value.cast())
    }
}

impl Word for MapWord {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: valid by construction; volatile so that it is one load, where it is written.
        unsafe { read_volatile(self.0) }
    }

    #[inline(always)]
    fn swap(&self, old: u64, new: u64) -> Result<(), u64> {
        // SAFETY: valid by construction.
        let (seen, _) = unsafe { atomic_cxchg::<u64, SEQ, SEQ>(self.0, old, new) };
        if seen == old { Ok(()) } else { Err(seen) }
    }

    #[inline(always)]
    fn add(&self, amount: u64) -> u64 {
        // SAFETY: valid by construction.
        unsafe { atomic_xadd::<u64, u64, SEQ>(self.0, amount) }
    }

    #[inline(always)]
    fn store(&self, value: u64) {
        // SAFETY: valid by construction; volatile so that it is one store.
        unsafe { write_volatile(self.0, value) };
    }
}

/// Adds to a counter shared by all CPUs.
///
/// # Safety
/// `counter` points into a live map value, 8-aligned.
#[inline(always)]
pub unsafe fn add(counter: *mut u64, amount: u64) {
    // SAFETY: promised by the caller. The result is left unused on purpose.
    unsafe {
        let _ = atomic_xadd::<u64, u64, SEQ>(counter, amount);
    }
}

/// Moves a TCP sequence number forward that other CPUs move too; never back.
///
/// # Safety
/// `number` points into a live map value, 4-aligned.
#[inline(always)]
pub unsafe fn forward(number: *mut u32, value: u32) {
    // SAFETY: promised by the caller.
    let mut seen = unsafe { read_volatile(number) };
    for _ in 0..RAISES {
        if !after(value, seen) {
            return;
        }
        // SAFETY: promised by the caller.
        let (now, _) = unsafe { atomic_cxchg::<u32, SEQ, SEQ>(number, seen, value) };
        if now == seen {
            return;
        }
        seen = now;
    }
}
