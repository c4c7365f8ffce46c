//! What was on the wire: an `AF_PACKET` socket on an interface, read by a thread.
//!
//! The kernel hands over a packet before the sender goes on, so when [`Tap::stop`] returns, everything
//! that was sent before the call has been seen, or is counted as lost.

mod socket;

use std::{
    ffi::c_int,
    mem,
    os::fd::{AsRawFd as _, OwnedFd},
    path::Path,
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use self::socket::{Batch, lost, open};
use crate::{netns::Namespace, packet::Packet, pcap};

/// How often the thread looks whether it should end.
const POLL: c_int = 20;

/// A captured frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When it passed the interface, since the epoch.
    pub at: Duration,
    /// Whether the interface received it; otherwise it sent it.
    pub received: bool,
    /// Its length on the wire.
    pub length: usize,
    /// The VLAN tag, when the kernel keeps it beside the frame.
    pub vlan: Option<u16>,
    /// Its first bytes, from the Ethernet header on.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// The headers, if it is an IP packet.
    #[must_use]
    pub fn packet(&self) -> Option<Packet> {
        let packet = Packet::parse(&self.bytes)?;
        Some(Packet {
            vlan: packet.vlan.or(self.vlan),
            ..packet
        })
    }
}

/// What the socket counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Packets handed to the sink.
    pub seen: u64,
    /// Packets that did not fit into the buffer.
    pub lost: u64,
}

/// A running capture that hands each frame to a sink.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Counts>>>,
}

impl Tap {
    /// Starts to capture; when this returns, no packet is missed any more.
    ///
    /// # Errors
    /// When the interface does not exist or packet sockets are not allowed.
    pub fn start(
        namespace: &Namespace,
        interface: &str,
        sink: impl FnMut(Frame) + Send + 'static,
    ) -> Result<Self> {
        let socket = namespace
            .run(|| open(interface))?
            .with_context(|| format!("capturing on {interface} in {}", namespace.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let should_stop = Arc::clone(&stop);
        let thread = thread::spawn(move || read_all(&socket, &should_stop, sink));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Reads what is left and ends.
    ///
    /// # Errors
    /// When reading failed.
    pub fn stop(mut self) -> Result<Counts> {
        self.stop.store(true, Ordering::SeqCst);
        let Some(thread) = self.thread.take() else {
            bail!("the capture ended before")
        };
        thread
            .join()
            .map_err(|_| anyhow!("the capture's thread panicked"))?
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A capture that keeps its frames in memory.
#[derive(Debug)]
pub struct Capture {
    tap: Tap,
    frames: Arc<(Mutex<Vec<Frame>>, Condvar)>,
}

impl Capture {
    /// Starts to capture.
    ///
    /// # Errors
    /// As [`Tap::start`].
    pub fn start(namespace: &Namespace, interface: &str) -> Result<Self> {
        let frames = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let shared = Arc::clone(&frames);
        let tap = Tap::start(namespace, interface, move |frame| {
            shared
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(frame);
            shared.1.notify_all();
        })?;
        Ok(Self { tap, frames })
    }

    /// Waits until the packets so far satisfy a condition.
    ///
    /// # Errors
    /// When they do not within `limit`; the message lists the last ones.
    pub fn wait_for(
        &self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&[Frame]) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        let mut frames = self.frames.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if done(&frames) {
                return Ok(());
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else {
                break;
            };
            frames = self
                .frames
                .1
                .wait_timeout(frames, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let last: Vec<_> = frames
            .iter()
            .rev()
            .filter_map(Frame::packet)
            .take(10)
            .map(|packet| packet.to_string())
            .collect();
        bail!(
            "waited {limit:?} for {what} among {} frames; the last: {}",
            frames.len(),
            last.join("; ")
        )
    }

    /// The frames so far.
    #[must_use]
    pub fn frames(&self) -> Vec<Frame> {
        self.frames
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends and returns all frames.
    ///
    /// # Errors
    /// When packets were lost.
    pub fn finish(self) -> Result<Vec<Frame>> {
        let counts = self.tap.stop()?;
        if counts.lost > 0 {
            bail!(
                "the capture lost {} of {} packets",
                counts.lost,
                counts.seen + counts.lost
            );
        }
        Ok(mem::take(
            &mut *self.frames.0.lock().unwrap_or_else(PoisonError::into_inner),
        ))
    }

    /// Writes frames to a pcap file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save(frames: &[Frame], path: &Path) -> Result<()> {
        let mut writer = pcap::Writer::create(path)?;
        for frame in frames {
            writer.add(frame.at, &frame.bytes, frame.length)?;
        }
        writer.finish()
    }
}

fn read_all(socket: &OwnedFd, stop: &AtomicBool, mut sink: impl FnMut(Frame)) -> Result<Counts> {
    let mut batch = Batch::new();
    let mut counts = Counts::default();
    loop {
        // Looked at before reading: what came before the flag was set is read in any case.
        let last = stop.load(Ordering::SeqCst);
        while let n @ 1.. = batch.receive(socket)? {
            for frame in batch.frames(n) {
                counts.seen += 1;
                sink(frame);
            }
        }
        if last {
            break;
        }
        let mut poll = libc::pollfd {
            fd: socket.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd, alive until the call returns.
        unsafe { libc::poll(&raw mut poll, 1, POLL) };
    }
    counts.lost = lost(socket)?;
    Ok(counts)
}
