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
    /// How far it was read; ours to write.
    consumer: Mapped,
    /// How far it was written, and behind a page of its own, twice, the records.
    producer: Mapped,
    page: usize,
    size: u64,
    maps: Maps,
}

// SAFETY: plain memory that belongs to this process until it is dropped; nothing is bound to a thread.
unsafe impl Send for RecordRing {}

impl RecordRing {
    fn map(map: &MapData, maps: &Maps) -> io::Result<Self> {
        // SAFETY: a question without parameters that matter.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) })
            .map_err(io::Error::other)?;
        let size = map.info().map_err(io::Error::other)?.max_entries();
        let fd = map.fd().as_fd().as_raw_fd();
        let records = size as usize;
        Ok(Self {
            consumer: Mapped::new(fd, 0, page, libc::PROT_READ | libc::PROT_WRITE)?,
            producer: Mapped::new(fd, page, page + 2 * records, libc::PROT_READ)?,
            page,
            size: u64::from(size),
            maps: maps.clone(),
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

    /// Looks at the records that are there, the oldest first, until `each` says that it has enough. It is given each
    /// record with the place behind it, for [`Self::take`].
    pub fn look(&self, mut each: impl FnMut(&[u8], u64) -> bool) {
        let mut place = self.consumed().load(Ordering::Acquire);
        let end = self.produced();
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
            if bytes + HEADER > self.size {
                // No ring has such a record: leave it alone.
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

    /// Gives the kernel back what lies before this place.
    pub fn take(&self, place: u64) {
        self.consumed().store(place, Ordering::Release);
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
