//! What the kernel's log says: a program that makes the kernel warn has gone through.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;

/// Beginnings of what a kernel says when something is wrong with it.
const BAD: [&str; 12] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "general protection",
    "stall",
    "refcount_t",
    "KASAN",
    "UBSAN",
    "soft lockup",
    "hw csum failure",
    "unregister_netdevice",
];

/// The kernel's log from now on.
pub(crate) struct Log(fs::File);

impl Log {
    /// From now on; `None` where it may not be read.
    pub(crate) fn now() -> Option<Self> {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// Warnings since then.
    pub(crate) fn warnings(&mut self) -> Vec<String> {
        let mut found = Vec::new();
        let mut record = [0; 8_192];
        // One record a read, until there is none; an overrun is only told.
        loop {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&record[..length]).into_owned();
                    if BAD.iter().any(|bad| line.contains(bad)) {
                        found.push(line);
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return found,
            }
        }
    }
}
