//! Writing captures as pcap files, to be looked at with other tools.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};

/// The magic number of a pcap file with nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
/// The link type of Ethernet.
const ETHERNET: u32 = 1;
/// The longest packet the header promises.
const LONGEST: u32 = 262_144;

/// A pcap file that is being written.
#[derive(Debug)]
pub struct Writer {
    out: BufWriter<File>,
}

impl Writer {
    /// Creates the file.
    ///
    /// # Errors
    /// When it cannot be created or written.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let mut out = BufWriter::new(file);
        for word in [MAGIC, 0x0004_0002, 0, 0, LONGEST, ETHERNET] {
            out.write_all(&word.to_ne_bytes())?;
        }
        Ok(Self { out })
    }

    /// Adds a packet: when it came (since the epoch), what was kept of it, how long it was.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn add(&mut self, at: Duration, bytes: &[u8], length: usize) -> Result<()> {
        let seconds = u32::try_from(at.as_secs()).unwrap_or(u32::MAX);
        let kept = u32::try_from(bytes.len()).unwrap_or(LONGEST);
        let length = u32::try_from(length).unwrap_or(LONGEST);
        for word in [seconds, at.subsec_nanos(), kept, length] {
            self.out.write_all(&word.to_ne_bytes())?;
        }
        self.out.write_all(bytes)?;
        Ok(())
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        self.out.flush().context("writing the capture")
    }
}
