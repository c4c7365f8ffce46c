//! The indexes of a data plane in a box, read as the programs read them, and changed under their hands.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{Array, IterableMap as _, MapData};
use egress_common::index::{self, Bucket, CELLS, Cell, HashKey, Place};

/// The secret of every data plane in a box.
pub(crate) const HASH_KEY: HashKey = HashKey {
    words: [
        0x243f_6a88,
        0x85a3_08d3,
        0x1319_8a2e,
        0x0370_7344,
        0xa409_3822,
        0x299f_31d0,
        0x082e_fa98,
        0xec4e_6c89,
        0x4528_21e6,
        0x38d0_1377,
    ],
};

/// One index, mapped into memory.
pub(crate) struct Index {
    start: *mut Bucket,
    buckets: u32,
    /// Keeps the map.
    _map: Array<MapData, Bucket>,
}

// SAFETY: plain memory; every access is one volatile word.
unsafe impl Sync for Index {}
// SAFETY: as above.
unsafe impl Send for Index {}

impl From<Array<MapData, Bucket>> for Index {
    fn from(map: Array<MapData, Bucket>) -> Self {
        let buckets = map.len();
        // SAFETY: a new mapping of a map that is open; it stays for the rest of the test.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                buckets as usize * size_of::<Bucket>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.map().fd().as_fd().as_raw_fd(),
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        Self {
            start: start.cast(),
            buckets,
            _map: map,
        }
    }
}

impl Index {
    /// Where a key with this hash belongs.
    pub(crate) fn place(&self, hash: u64) -> Place {
        Place::of(hash, self.buckets)
    }

    fn bucket(&self, number: u32) -> Bucket {
        assert!(number < self.buckets);
        // SAFETY: within the mapping.
        unsafe { self.start.add(number as usize).read_volatile() }
    }

    fn all(&self) -> impl Iterator<Item = Bucket> {
        (0..self.buckets).map(|number| self.bucket(number))
    }

    /// The slot of the key with this hash.
    pub(crate) fn find(&self, hash: u64, is_of: impl Fn(u32) -> bool) -> Option<u32> {
        let place = self.place(hash);
        for distance in 0..index::reach(self.buckets) {
            let bucket = self.bucket(index::after(place.bucket, distance, self.buckets));
            let tagged = |cell: &&Cell| cell.tag == place.tag && is_of(cell.slot);
            if let Some(cell) = bucket.cells.iter().find(tagged) {
                return Some(cell.slot);
            }
            if bucket.overflow == 0 {
                return None;
            }
        }
        None
    }

    /// Entries in all buckets.
    pub(crate) fn len(&self) -> usize {
        self.all()
            .flat_map(|bucket| bucket.cells)
            .filter(|cell| cell.tag != 0)
            .count()
    }

    /// Whether nobody holds a lock, and nothing passes by where nothing is.
    #[track_caller]
    pub(crate) fn at_rest(&self) {
        assert!(self.all().all(|bucket| bucket.lock == 0), "a lock is held");
        assert!(
            self.len() != 0 || self.all().all(|bucket| bucket.overflow == 0),
            "overflow of nothing"
        );
    }

    /// The cell of an entry, to be changed while programs run.
    pub(crate) fn cell(&self, place: Place, slot: u32) -> SharedCell {
        let nth = (0..CELLS)
            .find(|nth| self.bucket(place.bucket).cells[*nth].bits() == place.entry(slot))
            .expect("the entry is in its own bucket");
        // SAFETY: within the mapping.
        let cell = unsafe {
            let bucket = self.start.add(place.bucket as usize);
            (&raw mut (*bucket).cells).cast::<Cell>().add(nth)
        };
        SharedCell(cell.cast())
    }
}

/// One cell of an index that programs use meanwhile.
pub(crate) struct SharedCell(*mut u64);

// SAFETY: plain memory that outlives the test; every access is one volatile word.
unsafe impl Sync for SharedCell {}

impl SharedCell {
    pub(crate) fn set(&self, entry: u64) {
        // SAFETY: mapped and aligned.
        unsafe { self.0.write_volatile(entry) };
    }
}

/// Two values whose hashes say the same place among `buckets`, the first two met.
pub(crate) fn collision<K>(
    buckets: u32,
    keys: &(impl Iterator<Item = K> + Clone),
    hash: impl Fn(&K) -> u64,
) -> [K; 2] {
    let mut seen = std::collections::HashMap::new();
    for (nth, key) in keys.clone().enumerate() {
        let place = Place::of(hash(&key), buckets);
        if let Some(first) = seen.insert((place.bucket, place.tag), nth) {
            let first = keys.clone().nth(first).unwrap();
            return [first, key];
        }
    }
    panic!("no two of the keys collide");
}
