//! The index from a flow's endpoints to its slot: an array of buckets, one cache line each.
//!
//! An entry is the slot's number and a tag of the key's hash; the key itself stands in the slot, so
//! an entry takes eight bytes and cannot disagree with its flow. A key belongs into the bucket its
//! hash names; where that one is full, into one of the next ones, and every bucket that was passed
//! counts one more overflow. Who looks for a key goes on only while there is overflow: nearly always
//! one cache line says everything.
//!
//! Concurrency. A cell changes from empty to an entry and back by compare-and-swap. Two CPUs that
//! insert the same key both begin at its first bucket: the bucket's lock makes "insert if absent"
//! exact. Readers and removals take no lock. An entry is removed before its slot is freed, and a slot
//! is freed a grace period later, so an entry that is seen always leads to a slot whose endpoints
//! stand still.

use crate::family::Address;
use crate::word::Word;

/// Entries of a bucket: with its head they fill one cache line.
pub const CELLS: usize = 7;

/// Buckets a key may be away from its own, at most.
pub const REACH: u32 = 128;

/// Flows for each bucket when the table is full: five of seven cells.
const LOAD: u32 = 5;

/// One cache line of the index.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// 1 while a CPU inserts a key whose own bucket this is.
    pub lock: u32,
    /// Entries that passed by because this bucket was full.
    pub overflow: u32,
    /// The entries, in no order.
    pub cells: [Cell; CELLS],
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// One entry.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    /// Number of the slot.
    pub slot: u32,
    /// 0: empty. Else 31 bits of the key's hash under a bit that is always set.
    pub tag: u32,
}

impl Cell {
    /// The entry as it stands in memory (little-endian).
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        (self.tag as u64) << 32 | self.slot as u64
    }
}

/// Secret numbers of the hash; drawn when the maps are made.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKey {
    /// For the words of a key, one each.
    pub words: [u32; 10],
}

/// Hash of two addresses, two ports, and whatever else there is in 32 bits.
///
/// NH (RFC 4418, section 5.2.2): two different keys collide with a chance of 2^-32 whatever they are,
/// as long as the secret is one. Then a bijection that lets every bit reach every other.
#[inline(always)]
pub fn hash<A: Address>(key: &HashKey, a: &A, b: &A, ports: u32, rest: u32) -> u64 {
    let [first @ .., x, y] = &key.words;
    let ends = (ports.wrapping_add(*x) as u64).wrapping_mul(rest.wrapping_add(*y) as u64);
    let mut hash = A::product(a, b, first).wrapping_add(ends);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}

/// Buckets of an index for this many flows.
#[inline(always)]
pub const fn buckets(flows: u32) -> u32 {
    flows / LOAD + 1
}

/// Where a key belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its own bucket.
    pub bucket: u32,
    /// The tag of its entry.
    pub tag: u32,
}

impl Place {
    /// The place of a key with this hash among `buckets`.
    #[inline(always)]
    pub const fn of(hash: u64, buckets: u32) -> Self {
        Self {
            bucket: ((hash as u32 as u64 * buckets as u64) >> 32) as u32,
            tag: (hash >> 32) as u32 | 1 << 31,
        }
    }

    /// The entry of `slot` here.
    #[inline(always)]
    pub const fn entry(self, slot: u32) -> u64 {
        Cell {
            slot,
            tag: self.tag,
        }
        .bits()
    }
}

/// The bucket `distance` after this one.
#[inline(always)]
pub const fn after(bucket: u32, distance: u32, buckets: u32) -> u32 {
    let next = bucket + distance;
    if next >= buckets {
        next - buckets
    } else {
        next
    }
}

/// How far from its own bucket a key may be.
#[inline(always)]
pub const fn reach(buckets: u32) -> u32 {
    if buckets < REACH { buckets } else { REACH }
}

/// Words of a bucket: a walk takes the cells of each first, and its head last.
const WORDS: u32 = CELLS as u32 + 1;

/// Steps of a walk that looks at every word within reach.
#[inline(always)]
pub const fn steps(buckets: u32) -> u32 {
    reach(buckets) * WORDS
}

/// What the `nth` step of a walk looks at: the bucket at this distance, and which of its cells; `None`
/// is its head.
#[inline(always)]
pub const fn step(nth: u32) -> (u32, Option<usize>) {
    let cell = (nth % WORDS) as usize;
    (nth / WORDS, if cell < CELLS { Some(cell) } else { None })
}

/// A bucket that is shared by all CPUs.
pub trait Line {
    /// What its words are.
    type Word: Word;
    /// Lock and overflow.
    fn head(&self) -> Self::Word;
    /// One of its [`CELLS`] cells.
    fn cell(&self, nth: usize) -> Self::Word;
}

/// Whether entries went past the bucket whose head this is.
#[inline(always)]
pub const fn overflows(head: u64) -> bool {
    head >> 32 != 0
}

/// Whether an entry has this tag.
#[inline(always)]
pub const fn is_tagged(entry: u64, tag: u32) -> bool {
    (entry >> 32) as u32 == tag
}

/// The first cell that holds what `wanted` accepts.
#[inline(always)]
pub fn first(line: &impl Line, wanted: impl Fn(u64) -> bool) -> Option<(usize, u64)> {
    for nth in 0..CELLS {
        let entry = line.cell(nth).load();
        if wanted(entry) {
            return Some((nth, entry));
        }
    }
    None
}

/// Exchanges what a cell holds, once: false if it holds something else by now.
#[inline(always)]
pub fn exchange(line: &impl Line, nth: usize, old: u64, new: u64) -> bool {
    line.cell(nth).swap(old, new).is_ok()
}

/// Tries once to take a bucket's lock.
#[inline(always)]
pub fn try_lock(line: &impl Line) -> bool {
    let head = line.head();
    let seen = head.load();
    seen as u32 == 0 && head.swap(seen, seen | 1).is_ok()
}

/// Gives back the lock that [`try_lock`] took.
#[inline(always)]
pub fn unlock(line: &impl Line) {
    line.head().add(u64::MAX);
}

/// Notes that an entry goes past this bucket.
#[inline(always)]
pub fn pass(line: &impl Line) {
    line.head().add(1 << 32);
}

/// Notes that an entry that went past this bucket is gone.
#[inline(always)]
pub fn unpass(line: &impl Line) {
    line.head().add((1_u64 << 32).wrapping_neg());
}

#[cfg(test)]
mod tests;
