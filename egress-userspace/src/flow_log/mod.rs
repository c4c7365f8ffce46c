//! The flow log (OBS-4): what opened, closed and was refused, a JSON object a line.
//!
//! A line's way: the data plane writes a record into a ring buffer and goes on; a thread of its own looks at what is
//! there ([`entry`]), finds the names ([`directory`]), writes lines ([`line`], [`file`]) and only then takes the
//! records out ([`writer`], one at a time: [`turn`]). So the ring is the only queue: whatever keeps lines from being written, and however the
//! daemon ends, records wait there, and what does not fit is lost and counted by the data plane.

mod directory;
mod entry;
mod file;
mod line;
mod turn;
mod writer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use directory::Directory;
pub use turn::Turn;
pub(crate) use writer::monotonic;

/// What writer, controller and metrics share.
#[derive(Debug, Default)]
pub struct Shared {
    directory: Mutex<Arc<Directory>>,
    counts: Counts,
}

impl Shared {
    /// The names of now.
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(
            &self
                .directory
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Another configuration is in force.
    pub fn publish(&self, directory: Directory) {
        let mut known = self
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *known = Arc::new(directory.after(&known));
    }

    /// What became of records since this daemon began.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// What became of records since this daemon began.
#[derive(Debug, Default)]
pub struct Counts {
    written: [AtomicU64; 3],
    limited: AtomicU64,
    unreadable: AtomicU64,
}

/// [`Counts`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Lines written: opens, closes, refusals.
    pub written: [u64; 3],
    /// Refusals above the limit.
    pub limited: u64,
    /// Records of other programs than this version knows.
    pub unreadable: u64,
}

impl Counts {
    fn add(&self, more: Snapshot) {
        for (count, more) in self.written.iter().zip(more.written) {
            count.fetch_add(more, Ordering::Relaxed);
        }
        self.limited.fetch_add(more.limited, Ordering::Relaxed);
        self.unreadable
            .fetch_add(more.unreadable, Ordering::Relaxed);
    }

    /// What they are now.
    pub fn snapshot(&self) -> Snapshot {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Snapshot {
            written: self.written.each_ref().map(load),
            limited: load(&self.limited),
            unreadable: load(&self.unreadable),
        }
    }
}
