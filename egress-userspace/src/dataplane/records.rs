//! The flow log's ring buffer: read in place, and taken once what was read is safe (OBS-4).
//!
//! The library's reader takes each record as soon as it is looked at. A daemon that is killed would lose what it had
//! taken and not yet written; here the kernel keeps it, and the next daemon reads it again.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aya::maps::MapData;

use super::maps::Maps;
use super::peers;
use crate::dataplane::api::DataPlaneError;

/// Bits of a record's length (linux/bpf.h): it is still being written, it was given up.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Bytes in front of a record.
const HEADER: u64 = 8;

/// Where the ring is; it may be opened more than once, by one reader at a time.
#[derive(Clone, Debug)]
pub struct FlowRecords {
    maps: Maps,
}

impl FlowRecords {
    pub(super) fn of(maps: &Maps) -> Self {
        Self { maps: maps.clone() }
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// The map is gone, or cannot be mapped.
    pub fn open(&self) -> Result<RecordRing, DataPlaneError> {
        let map = self.maps.data("FLOW_LOG")?;
        RecordRing::map(&map, &self.maps)
            .map_err(|error| DataPlaneError::failed("mapping FLOW_LOG", error))
    }
}

/// The ring in memory. There must be only one reader, and the daemon that holds the pins has it.
pub struct RecordRing {
    ring: Ring,
    maps: Maps,
}

struct Ring {
    /// How far it was read; ours to write.
    consumer: Mapped,
    /// How far it was written, and behind a page of its own, twice, the records.
    producer: Mapped,
    page: usize,
    size: u64,
}

// SAFETY: plain memory that belongs to this process until it is dropped; nothing is bound to a thread.
unsafe impl Send for Ring {}

impl RecordRing {
    fn map(map: &MapData, maps: &Maps) -> io::Result<Self> {
        let size = map.info().map_err(io::Error::other)?.max_entries();
        Ok(Self {
            ring: Ring::map(map.fd().as_fd().as_raw_fd(), size)?,
            maps: maps.clone(),
        })
    }

    /// Looks at the records that are there, the oldest first, until `each` says that it has enough. It is given each
    /// record with the place behind it, for [`Self::take`].
    pub fn look(&self, each: impl FnMut(&[u8], u64) -> bool) {
        self.ring.look(each);
    }

    /// Gives the kernel back what lies before this place.
    pub fn take(&self, place: u64) {
        self.ring.take(place);
    }

    /// Where the other servers are reached whose numbers stand in records.
    ///
    /// # Errors
    /// The map of them is gone.
    pub fn servers(&self) -> Result<BTreeMap<u32, IpAddr>, DataPlaneError> {
        let numbers = peers::numbers(&self.maps)?.into_iter();
        Ok(numbers
            .map(|(address, number)| (number, peers::address_of(address)))
            .collect())
    }
}

impl Ring {
    fn map(fd: i32, size: u32) -> io::Result<Self> {
        // SAFETY: a question without parameters that matter.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(io::Error::other)?;
        let records = size as usize;
        Ok(Self {
            consumer: Mapped::new(fd, 0, page, libc::PROT_READ | libc::PROT_WRITE)?,
            producer: Mapped::new(fd, page, page + 2 * records, libc::PROT_READ)?,
            page,
            size: u64::from(size),
        })
    }

    fn consumed(&self) -> &AtomicU64 {
        // SAFETY: the mapping begins with this number, aligned to a page, and lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.consumer.start.as_ptr().cast()) }
    }

    fn produced(&self) -> u64 {
        // SAFETY: as above. Only loaded: the mapping is for reading.
        unsafe { AtomicU64::from_ptr(self.producer.start.as_ptr().cast()) }.load(Ordering::Acquire)
    }

    fn look(&self, mut each: impl FnMut(&[u8], u64) -> bool) {
        let mut place = self.consumed().load(Ordering::Acquire);
        let end = self.produced();
        if end.wrapping_sub(place) > self.size {
            // Nobody knows any more where a record begins: what is there is one that cannot be read.
            each(&[], end);
            return;
        }
        while place < end {
            let at = self.page + usize::try_from(place % self.size).unwrap_or(0);
            // SAFETY: within the records, which are mapped twice in a row, so that none is cut at the end; the length
            // in front of a record is aligned to 8 bytes. Only loaded.
            let length = unsafe {
                AtomicU32::from_ptr(self.producer.start.as_ptr().add(at).cast())
                    .load(Ordering::Acquire)
            };
            if length & BUSY != 0 {
                // A program on another CPU is about to finish it.
                return;
            }
            let bytes = u64::from(length & !DISCARDED);
            let next = place + (bytes + HEADER).next_multiple_of(HEADER);
            if next > end {
                // No ring has such a record: as above.
                each(&[], end);
                return;
            }
            if length & DISCARDED == 0 {
                // SAFETY: a record that is complete stands still until it is taken, and lies within the mapping.
                let record = unsafe {
                    std::slice::from_raw_parts(
                        self.producer.start.as_ptr().add(at + HEADER as usize),
                        bytes as usize,
                    )
                };
                if !each(record, next) {
                    return;
                }
            }
            place = next;
        }
    }

    /// Never goes back: what was given back may have been overwritten since.
    fn take(&self, place: u64) {
        self.consumed().fetch_max(place, Ordering::Release);
    }
}

/// A piece of memory that the kernel shares.
struct Mapped {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapped {
    fn new(fd: i32, offset: usize, bytes: usize, protection: i32) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice, of a descriptor that is open.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                fd,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Self { start, bytes })
            .ok_or_else(|| io::Error::other("mapped at zero"))
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing borrows from it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::FromRawFd as _;
    use std::os::unix::fs::FileExt as _;

    use super::*;

    /// Bytes of the ring's records.
    const SIZE: u32 = 4_096;

    /// What a ring in a file looks like to its reader, as (record, place behind it).
    struct Kept {
        file: File,
        ring: Ring,
    }

    impl Kept {
        fn new() -> Self {
            // SAFETY: a name that ends with 0, and no flags.
            let fd = unsafe { libc::memfd_create(c"ring".as_ptr(), 0) };
            assert!(fd >= 0);
            // SAFETY: the kernel has just opened this descriptor for us.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(u64::from(2 * SIZE) + 2 * 65_536).unwrap();
            let ring = Ring::map(file.as_raw_fd(), SIZE).unwrap();
            Self { file, ring }
        }

        fn put(&self, at: u64, length: u32) {
            let at = 2 * self.ring.page as u64 + at;
            self.file.write_all_at(&length.to_ne_bytes(), at).unwrap();
        }

        fn produced(&self, place: u64) {
            let at = self.ring.page as u64;
            self.file.write_all_at(&place.to_ne_bytes(), at).unwrap();
        }

        fn seen(&self) -> Vec<(usize, u64)> {
            let mut seen = Vec::new();
            self.ring.look(|record, place| {
                seen.push((record.len(), place));
                true
            });
            seen
        }
    }

    #[test]
    fn obs_4_the_place_of_the_reader_never_goes_back() {
        let kept = Kept::new();
        kept.put(0, 8);
        kept.put(16, 12 | DISCARDED);
        kept.put(40, 3);
        kept.put(56, 9 | BUSY);
        kept.produced(80);
        assert_eq!(
            kept.seen(),
            [(8, 16), (3, 56)],
            "up to the one that is being written"
        );
        kept.ring.take(56);
        kept.ring.take(16);
        assert_eq!(kept.seen(), []);
        kept.put(56, 9);
        assert_eq!(kept.seen(), [(9, 80)]);
    }

    #[test]
    fn obs_4_what_cannot_be_in_a_ring_is_one_record_that_cannot_be_read() {
        let kept = Kept::new();
        kept.put(0, 8);
        kept.produced(u64::from(SIZE) + 8);
        assert_eq!(kept.seen(), [(0, u64::from(SIZE) + 8)], "more than fits");
        kept.produced(u64::from(SIZE));
        kept.put(16, SIZE);
        assert_eq!(
            kept.seen(),
            [(8, 16), (0, u64::from(SIZE))],
            "longer than what is there"
        );
        kept.produced(16);
        assert_eq!(kept.seen(), [(8, 16)]);
    }
}
