//! A wire between two tun devices: interfaces without a link layer, as a VPN has them, joined by a thread.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Read as _, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::OpenOptionsExt as _,
    },
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Namespace;

/// Ioctls and flags of linux/if_tun.h.
const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const IFF_TUN: i16 = 0x0001;
const IFF_NO_PI: i16 = 0x1000;
const IFF_VNET_HDR: i16 = 0x4000;
/// Checksums left open, and super-packets of TCP over IPv4 and IPv6.
const OFFLOADS: libc::c_ulong = 0x01 | 0x02 | 0x04;
/// The longest packet with its offload header.
const LONGEST: usize = 65_536 + 10;
/// How often the thread looks whether it should end, in milliseconds.
const POLL: u16 = 20;

/// Two devices and the thread between them; all go when the value is dropped.
#[derive(Debug)]
pub struct Wire {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Makes a device at each end, down and without address. With `offload`, checksums stay open and large packets
    /// whole from end to end, as the kernel hands them over.
    ///
    /// # Errors
    /// When this kernel has no tun devices, or a name is taken.
    pub fn join(ends: [(&Namespace, &str); 2], offload: bool) -> Result<Self> {
        let [one, other] = ends.map(|(namespace, name)| {
            namespace
                .run(|| open(name, offload))?
                .with_context(|| format!("making tun device {name} in {}", namespace.name()))
        });
        let mut files = [one?, other?];
        let stop = Arc::new(AtomicBool::new(false));
        let should_stop = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; LONGEST];
            while !should_stop.load(Ordering::SeqCst) {
                if wait(&files).is_err() {
                    return;
                }
                for (from, to) in [(0, 1), (1, 0)] {
                    while let Ok(length) = files[from].read(&mut buffer) {
                        // A device that is down takes nothing, as a wire that is cut.
                        let _ = files[to].write(&buffer[..length]);
                    }
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until either end has a packet, or it is time to look round.
fn wait(files: &[File; 2]) -> io::Result<()> {
    let mut polled = files
        .each_ref()
        .map(|file| PollFd::new(file.as_fd(), PollFlags::POLLIN));
    poll(&mut polled, PollTimeout::from(POLL))?;
    Ok(())
}

/// Makes a device in this thread's network namespace.
fn open(name: &str, offload: bool) -> Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        bail!("{name} is too long for an interface name");
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let headers = if offload { IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags = IFF_TUN | IFF_NO_PI | headers;
    // SAFETY: the request lives until the call returns.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    if offload {
        // SAFETY: takes a number.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, OFFLOADS) })?;
    }
    Ok(file)
}

fn check(result: libc::c_int) -> Result<()> {
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() == ErrorKind::InvalidInput {
            bail!("the kernel does not know such a device: {error}");
        }
        return Err(error).context("ioctl");
    }
    Ok(())
}
