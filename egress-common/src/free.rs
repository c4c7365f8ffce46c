//! Lists of free records, one per CPU, threaded through the records themselves.
//!
//! A Treiber stack: the head word holds the first free index and a tag that grows with every
//! change, so that a head seen before cannot be mistaken for the same index freed again. A record
//! returns to its home list (index modulo number of lists); taking starts at the CPU's own list and
//! goes on to the others before the table counts as full.

use crate::word::Word;

/// End of a list.
pub const NONE: u32 = u32::MAX;
/// How often a change of a head is retried.
pub const ATTEMPTS: usize = 64;

/// Head of one list, as it stands in the map.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct FreeList {
    /// First free index or [`NONE`]; shares a word with `tag`.
    pub first: u32,
    /// Grows with every change.
    pub tag: u32,
    /// Free records on the list (a hint: updated after the list).
    pub available: u64,
}

const _: () = assert!(size_of::<FreeList>() == 16);

/// The `next` fields of the records.
pub trait Links {
    /// The record after `index`, or `None` if there is no such record.
    fn next(&self, index: u32) -> Option<u32>;
    /// Sets the record after `index`; false if there is no such record.
    fn set_next(&self, index: u32, next: u32) -> bool;
}

#[inline(always)]
const fn bits(first: u32, tag: u32) -> u64 {
    (tag as u64) << 32 | first as u64
}

/// What came of taking a record off a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Popped {
    /// It is the caller's.
    Taken(u32),
    /// The list has none.
    Empty,
    /// Another CPU changed the list meanwhile: try again.
    Contended,
}

/// Tries once to take a record off a list.
#[inline(always)]
pub fn pop(head: &impl Word, links: &impl Links) -> Popped {
    let seen = head.load();
    let first = seen as u32;
    if first == NONE {
        return Popped::Empty;
    }
    let Some(next) = links.next(first) else {
        return Popped::Empty;
    };
    match head.swap(seen, bits(next, ((seen >> 32) as u32).wrapping_add(1))) {
        Ok(()) => Popped::Taken(first),
        Err(_) => Popped::Contended,
    }
}

/// Puts a record on a list; false if other CPUs won [`ATTEMPTS`] times in a row.
#[inline(always)]
pub fn push(head: &impl Word, links: &impl Links, index: u32) -> bool {
    let mut seen = head.load();
    for _ in 0..ATTEMPTS {
        if !links.set_next(index, seen as u32) {
            return false;
        }
        match head.swap(seen, bits(index, ((seen >> 32) as u32).wrapping_add(1))) {
            Ok(()) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

/// The list a record returns to.
#[inline(always)]
pub const fn home(index: u32, lists: u32) -> u32 {
    if lists == 0 { 0 } else { index % lists }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    struct Table(Vec<AtomicU32>);

    impl Links for Table {
        fn next(&self, index: u32) -> Option<u32> {
            Some(self.0.get(index as usize)?.load(Ordering::SeqCst))
        }
        fn set_next(&self, index: u32, next: u32) -> bool {
            self.0
                .get(index as usize)
                .map(|link| link.store(next, Ordering::SeqCst))
                .is_some()
        }
    }

    #[test]
    fn threads_never_share_a_record_and_none_is_lost() {
        const RECORDS: u32 = 64;
        let table = Table((0..RECORDS).map(|_| AtomicU32::new(NONE)).collect());
        let owner: Vec<AtomicU32> = (0..RECORDS).map(|_| AtomicU32::new(0)).collect();
        let head = AtomicU64::new(bits(NONE, 0));
        for index in 0..RECORDS {
            assert!(push(&head, &table, index));
        }
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Popped::Taken(index) = pop(&head, &table) else {
                            continue;
                        };
                        let before = owner[index as usize].fetch_add(1, Ordering::SeqCst);
                        assert_eq!(before, 0, "record {index} was handed out twice");
                        owner[index as usize].fetch_sub(1, Ordering::SeqCst);
                        while !push(&head, &table, index) {}
                    }
                });
            }
        });
        let mut left: Vec<u32> = std::iter::from_fn(|| match pop(&head, &table) {
            Popped::Taken(index) => Some(index),
            _ => None,
        })
        .collect();
        left.sort_unstable();
        assert_eq!(left, (0..RECORDS).collect::<Vec<_>>());
    }
}
