//! The index against a slow, obvious one, and with threads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use proptest::prelude::*;

use super::*;
use crate::family::{V4, V6};

const KEY: HashKey = HashKey {
    words: [
        0x9e37_79b9,
        0x85eb_ca6b,
        0xc2b2_ae35,
        0x27d4_eb2f,
        0x1656_67b1,
        0xd6e8_feb8,
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
    ],
};

/// The index as the kernel programs walk it, with threads instead of CPUs. Slot `n` is of key `keys[n]`.
struct Table {
    lines: Vec<[AtomicU64; 1 + CELLS]>,
    keys: Vec<AtomicU32>,
}

struct Shared<'a>(&'a [AtomicU64; 1 + CELLS]);

impl<'a> Line for Shared<'a> {
    type Word = Ref<'a>;
    fn head(&self) -> Ref<'a> {
        Ref(&self.0[0])
    }
    fn cell(&self, nth: usize) -> Ref<'a> {
        Ref(&self.0[1 + nth])
    }
}

struct Ref<'a>(&'a AtomicU64);

impl Word for Ref<'_> {
    fn load(&self) -> u64 {
        Word::load(self.0)
    }
    fn swap(&self, old: u64, new: u64) -> Result<(), u64> {
        Word::swap(self.0, old, new)
    }
    fn add(&self, amount: u64) -> u64 {
        Word::add(self.0, amount)
    }
    fn store(&self, value: u64) {
        Word::store(self.0, value);
    }
}

impl Table {
    fn new(flows: u32) -> Self {
        Self {
            lines: (0..buckets(flows)).map(|_| Default::default()).collect(),
            keys: (0..flows).map(|_| AtomicU32::new(u32::MAX)).collect(),
        }
    }

    fn place(&self, key: u32) -> Place {
        let hash = hash::<V4>(&KEY, &key.to_be_bytes(), &[9, 9, 9, 9], 77, 6);
        Place::of(hash, self.lines.len() as u32)
    }

    fn line(&self, place: Place, distance: u32) -> Shared<'_> {
        let buckets = self.lines.len() as u32;
        Shared(&self.lines[after(place.bucket, distance, buckets) as usize])
    }

    fn steps(&self) -> impl Iterator<Item = (u32, Option<usize>)> + use<> {
        (0..steps(self.lines.len() as u32)).map(step)
    }

    fn find(&self, key: u32) -> Option<u32> {
        let place = self.place(key);
        for (distance, cell) in self.steps() {
            let line = self.line(place, distance);
            let Some(cell) = cell else {
                if overflows(line.head().load()) {
                    continue;
                }
                return None;
            };
            let entry = line.cell(cell).load();
            if is_tagged(entry, place.tag) && self.keys[entry as u32 as usize].load(SeqCst) == key {
                return Some(entry as u32);
            }
        }
        None
    }

    /// Inserts a key for a slot; how far away from its own bucket, or the slot that has it already.
    fn insert(&self, key: u32, slot: u32) -> Result<u32, Option<u32>> {
        self.keys[slot as usize].store(key, SeqCst);
        let place = self.place(key);
        let own = self.line(place, 0);
        while !try_lock(&own) {
            std::hint::spin_loop();
        }
        let result = match self.find(key) {
            Some(slot) => Err(Some(slot)),
            None => self.put(place, slot).ok_or(None),
        };
        unlock(&own);
        result
    }

    fn put(&self, place: Place, slot: u32) -> Option<u32> {
        if let Some((nth, _)) = first(&self.line(place, 0), |entry| entry == 0)
            && exchange(&self.line(place, 0), nth, 0, place.entry(slot))
        {
            return Some(0);
        }
        for (distance, cell) in self.steps() {
            let line = self.line(place, distance);
            match cell {
                Some(cell) if exchange(&line, cell, 0, place.entry(slot)) => return Some(distance),
                Some(_) => {}
                None => pass(&line),
            }
        }
        for distance in 0..reach(self.lines.len() as u32) {
            unpass(&self.line(place, distance));
        }
        None
    }

    fn remove(&self, key: u32, slot: u32) -> bool {
        let place = self.place(key);
        for (distance, cell) in self.steps() {
            let line = self.line(place, distance);
            if let Some(cell) = cell
                && exchange(&line, cell, place.entry(slot), 0)
            {
                for passed in 0..distance {
                    unpass(&self.line(place, passed));
                }
                return true;
            }
        }
        false
    }

    fn is_clean(&self) -> bool {
        self.lines
            .iter()
            .flatten()
            .all(|word| word.load(SeqCst) == 0)
    }
}

#[test]
fn a_table_of_any_size_holds_as_many_flows_as_it_has_slots() {
    for flows in [1, 2, 7, 64, 1_000, 262_144] {
        let table = Table::new(flows);
        let farthest = (0..flows)
            .map(|nth| table.insert(nth, nth).expect("there is room"))
            .max();
        println!("{flows} flows: at most {farthest:?} buckets away");
        for nth in 0..flows {
            assert_eq!(table.find(nth), Some(nth));
        }
        for nth in 0..flows {
            assert!(table.remove(nth, nth));
        }
        assert!(table.is_clean());
    }
}

proptest! {
    #[test]
    fn agrees_with_a_map(steps in prop::collection::vec((0u32..40, 0u8..3), 0..400)) {
        let table = Table::new(24);
        let mut model = HashMap::new();
        let mut free: Vec<u32> = (0..24).collect();
        for (key, what) in steps {
            match what {
                0 => {
                    let Some(slot) = free.pop() else { continue };
                    match model.get(&key) {
                        Some(taken) => {
                            prop_assert_eq!(table.insert(key, slot), Err(Some(*taken)));
                            free.push(slot);
                        }
                        None => {
                            prop_assert!(table.insert(key, slot).is_ok());
                            model.insert(key, slot);
                        }
                    }
                }
                1 => {
                    if let Some(slot) = model.remove(&key) {
                        prop_assert!(table.remove(key, slot));
                        free.insert(0, slot);
                    } else {
                        prop_assert!(!table.remove(key, 3));
                    }
                }
                _ => prop_assert_eq!(table.find(key), model.get(&key).copied()),
            }
        }
        for (key, slot) in model {
            prop_assert!(table.remove(key, slot));
        }
        prop_assert!(table.is_clean());
    }

    #[test]
    fn places_lie_within_the_table(hash: u64, buckets in 1u32.., distance in 0u32..REACH) {
        let place = Place::of(hash, buckets);
        prop_assert!(place.bucket < buckets);
        prop_assert_ne!(place.tag, 0);
        prop_assume!(buckets < u32::MAX - REACH);
        prop_assert!(after(place.bucket, distance.min(reach(buckets) - 1), buckets) < buckets);
    }

    #[test]
    fn every_bit_of_a_key_counts(a: [u8; 16], b: [u8; 16], ports: u32, rest: u32, bit in 0usize..320) {
        let one = hash::<V6>(&KEY, &a, &b, ports, rest);
        let (mut a, mut b, mut ports, mut rest) = (a, b, ports, rest);
        match bit {
            0..128 => a[bit / 8] ^= 1 << (bit % 8),
            128..256 => b[(bit - 128) / 8] ^= 1 << (bit % 8),
            256..288 => ports ^= 1 << (bit % 32),
            _ => rest ^= 1 << (bit % 32),
        }
        prop_assert_ne!(one, hash::<V6>(&KEY, &a, &b, ports, rest));
    }
}

#[test]
fn of_threads_that_insert_one_key_exactly_one_succeeds() {
    const ROUNDS: u32 = 3_000;
    const THREADS: u32 = 4;
    // So few buckets that every insertion meets others' overflow.
    let table = Table::new(16);
    let (arrived, wins) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (table, arrived, wins) = (&table, &arrived, &wins);
            scope.spawn(move || {
                let meet = |nth: u32| {
                    arrived.fetch_add(1, SeqCst);
                    while arrived.load(SeqCst) < THREADS * nth {
                        std::thread::yield_now();
                    }
                };
                for round in 0..ROUNDS {
                    meet(3 * round + 1);
                    // Two keys; each thread has slots of its own.
                    let mine: Vec<(u32, u32)> = (0..2)
                        .map(|nth| (2 * round + nth, 2 * thread + nth))
                        .filter(|(key, slot)| table.insert(*key, *slot).is_ok())
                        .collect();
                    wins.fetch_add(mine.len() as u32, SeqCst);
                    meet(3 * round + 2);
                    for (key, slot) in mine {
                        assert_eq!(table.find(key), Some(slot));
                        assert!(table.remove(key, slot));
                    }
                    meet(3 * round + 3);
                }
            });
        }
    });
    assert_eq!(wins.into_inner(), 2 * ROUNDS);
    assert!(table.is_clean());
}
