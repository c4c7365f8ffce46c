//! The pinned maps, opened by name and type.

use std::io;
use std::marker::PhantomData;
use std::mem::size_of;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::ptr::NonNull;

use aya::Pod;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, RingBuf};

use super::pins::{Pins, State};
use super::sys;
use crate::dataplane::api::DataPlaneError;

/// The maps of a pin directory.
#[derive(Clone, Debug)]
pub(super) struct Maps {
    pins: Pins,
}

impl Maps {
    /// # Errors
    /// [`DataPlaneError::Absent`] when nothing is pinned there.
    pub(super) fn open(pins: &Pins) -> Result<Self, DataPlaneError> {
        match pins.state()? {
            State::Present => Ok(Self { pins: pins.clone() }),
            State::Absent | State::Foreign => Err(DataPlaneError::Absent {
                pin: pins.root().to_owned(),
            }),
        }
    }

    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    pub(super) fn data(&self, name: &str) -> Result<MapData, DataPlaneError> {
        let path = self.pins.map(name);
        MapData::from_pin(&path).map_err(|error| failed("opening", &path, error))
    }

    fn typed<T>(&self, name: &str) -> Result<T, DataPlaneError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        Map::from_map_data(self.data(name)?)
            .and_then(T::try_from)
            .map_err(|error| failed("opening", &self.pins.map(name), error))
    }

    pub(super) fn array<T: Pod>(&self, name: &str) -> Result<Array<MapData, T>, DataPlaneError> {
        self.typed(name)
    }

    pub(super) fn per_cpu<T: Pod>(
        &self,
        name: &str,
    ) -> Result<PerCpuArray<MapData, T>, DataPlaneError> {
        self.typed(name)
    }

    pub(super) fn hash<K: Pod, V: Pod>(
        &self,
        name: &str,
    ) -> Result<HashMap<MapData, K, V>, DataPlaneError> {
        self.typed(name)
    }

    pub(super) fn trie<K: Pod, V: Pod>(
        &self,
        name: &str,
    ) -> Result<LpmTrie<MapData, K, V>, DataPlaneError> {
        self.typed(name)
    }

    pub(super) fn ring(&self, name: &str) -> Result<RingBuf<MapData>, DataPlaneError> {
        self.typed(name)
    }

    /// The first element of an array.
    pub(super) fn only<T: Pod>(&self, name: &str) -> Result<T, DataPlaneError> {
        self.array(name)?
            .get(&0, 0)
            .map_err(|error| failed("reading", &self.pins.map(name), error))
    }

    /// Sets an element of an array.
    pub(super) fn set<T: Pod>(
        &self,
        name: &str,
        index: u32,
        value: T,
    ) -> Result<(), DataPlaneError> {
        self.array(name)?
            .set(index, value, 0)
            .map_err(|error| failed("writing", &self.pins.map(name), error))
    }

    /// Elements of an array from `first` on.
    pub(super) fn range<T: Pod + Default>(
        &self,
        name: &str,
        first: u32,
        count: u32,
    ) -> Result<Vec<T>, DataPlaneError> {
        let data = self.data(name)?;
        sys::read_range(data.fd().as_fd(), first, count)
            .map_err(|error| failed("reading", &self.pins.map(name), error))
    }

    /// All entries of a trie that nobody else changes meanwhile.
    pub(super) fn entries<K: Pod, V: Pod>(
        &self,
        name: &str,
    ) -> Result<Vec<(K, V)>, DataPlaneError> {
        let data = self.data(name)?;
        sys::read_all(data.fd().as_fd())
            .map_err(|error| failed("reading", &self.pins.map(name), error))
    }

    /// Writes elements of an array from `first` on.
    pub(super) fn set_range<T: Pod>(
        &self,
        name: &str,
        first: u32,
        values: &[T],
    ) -> Result<(), DataPlaneError> {
        let data = self.data(name)?;
        sys::write_range(data.fd().as_fd(), first, values)
            .map_err(|error| failed("writing", &self.pins.map(name), error))
    }

    /// An array's records, mapped into memory for reading.
    pub(super) fn records<T: Pod>(&self, name: &str) -> Result<Records<T>, DataPlaneError> {
        Records::map(&self.data(name)?, &self.pins.map(name), false)
    }

    /// An array's records, mapped into memory for writing: to be filled before anybody uses them, or to change single
    /// words of them.
    pub(super) fn records_to_fill<T: Pod>(&self, name: &str) -> Result<Records<T>, DataPlaneError> {
        Records::map(&self.data(name)?, &self.pins.map(name), true)
    }
}

fn failed(
    doing: &str,
    path: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> DataPlaneError {
    DataPlaneError::failed(format!("{doing} map {}", path.display()), error)
}

/// A memory-mapped array: a million records are read without a system call.
///
/// The data plane writes to it all the time, so records are only ever copied out, word by word; whoever copies
/// one checks afterwards that it was not given to somebody else meanwhile.
pub(super) struct Records<T> {
    start: NonNull<u64>,
    bytes: usize,
    count: u32,
    writable: bool,
    kind: PhantomData<T>,
}

impl<T: Pod> Records<T> {
    const WORDS: usize = size_of::<T>() / size_of::<u64>();

    fn map(data: &MapData, path: &Path, writable: bool) -> Result<Self, DataPlaneError> {
        const {
            assert!(
                size_of::<T>().is_multiple_of(size_of::<u64>()),
                "array elements are multiples of eight bytes"
            );
        }
        let info = data
            .info()
            .map_err(|error| failed("looking at", path, error))?;
        let count = info.max_entries();
        if info.value_size() as usize != size_of::<T>() {
            return Err(failed(
                "mapping",
                path,
                io::Error::other("its values are of another size"),
            ));
        }
        let bytes = size_of::<T>() * count as usize;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                data.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(failed("mapping", path, io::Error::last_os_error()));
        }
        NonNull::new(start.cast())
            .map(|start| Self {
                start,
                bytes,
                count,
                writable,
                kind: PhantomData,
            })
            .ok_or_else(|| failed("mapping", path, io::Error::other("mapped at zero")))
    }

    /// Number of records.
    pub(super) fn len(&self) -> u32 {
        self.count
    }

    fn record(&self, index: u32) -> Option<NonNull<u64>> {
        if index >= self.count {
            return None;
        }
        // SAFETY: `index` is below the number of records that were mapped.
        Some(unsafe { self.start.add(index as usize * Self::WORDS) })
    }

    /// The record's first word, where state and generation are.
    pub(super) fn word(&self, index: u32) -> Option<u64> {
        // SAFETY: a record is at least one word, mapped and aligned.
        self.record(index)
            .map(|record| unsafe { record.read_volatile() })
    }

    /// A copy of the record. Words are whole; the copy as a whole may be torn.
    pub(super) fn copy(&self, index: u32) -> Option<T> {
        let record = self.record(index)?;
        let mut copy = std::mem::MaybeUninit::<T>::uninit();
        let target = copy.as_mut_ptr().cast::<u64>();
        for word in 0..Self::WORDS {
            // SAFETY: `word` is within the record and within the copy, which are of the same size; the copy may
            // be aligned to less than a word.
            unsafe {
                target
                    .add(word)
                    .write_unaligned(record.add(word).read_volatile());
            };
        }
        // SAFETY: all bytes were written, and any bytes make a `Pod`.
        Some(unsafe { copy.assume_init() })
    }

    /// The word at this offset of a record, in bytes; `None` if there is no such word.
    pub(super) fn word_at(&self, index: u32, offset: usize) -> Option<u64> {
        let record = self.record(index)?;
        let word = offset / size_of::<u64>();
        if !offset.is_multiple_of(size_of::<u64>()) || word >= Self::WORDS {
            return None;
        }
        // SAFETY: within the record, mapped and aligned.
        Some(unsafe { record.add(word).read_volatile() })
    }

    /// Replaces a record of a table that no program uses yet, if it was mapped to be filled.
    pub(super) fn put(&mut self, index: u32, value: &T) {
        let Some(record) = self.record(index).filter(|_| self.writable) else {
            return;
        };
        let source = std::ptr::from_ref(value).cast::<u64>();
        for word in 0..Self::WORDS {
            // SAFETY: as in `copy`, and the mapping is writable.
            unsafe {
                record
                    .add(word)
                    .write_volatile(source.add(word).read_unaligned());
            };
        }
    }
}

impl<T> Drop for Records<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
