//! What programs send by themselves: copies of packets on the loopback interface of the test's own
//! network namespace, seen by a packet socket.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long to wait for what must come.
const PATIENCE: Duration = Duration::from_secs(300);
/// Longest frame.
const ROOM: usize = 70_000;

/// Which way a copy was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It left by the interface.
    Out,
    /// It arrived on the interface.
    In,
}

/// The loopback interface, up and watched.
pub(crate) struct Loopback(OwnedFd);

impl Loopback {
    /// Brings the interface up and listens.
    pub(crate) fn watch() -> Self {
        let status = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        // SAFETY: plain system calls on a descriptor that is checked; the address is as long as said.
        unsafe {
            let every = u32::from((libc::ETH_P_ALL as u16).to_be());
            let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            let fd = libc::socket(libc::AF_PACKET, kind, every as i32);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            let socket = Self(OwnedFd::from_raw_fd(fd));
            let size: libc::c_int = 64 << 20;
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const size).cast(),
                4,
            );
            socket
        }
    }

    fn next(&self) -> Option<(Sent, Vec<u8>)> {
        let mut bytes = vec![0; ROOM];
        // SAFETY: all zeroes is a valid address; the kernel writes within the lengths given.
        let (length, address) = unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            let mut size = size_of_val(&address) as u32;
            let length = libc::recvfrom(
                self.0.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                ROOM,
                0,
                (&raw mut address).cast(),
                &raw mut size,
            );
            (length, address)
        };
        if length < 0 {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
            return None;
        }
        bytes.truncate(length as usize);
        let sent = if address.sll_pkttype == libc::PACKET_OUTGOING {
            Sent::Out
        } else {
            Sent::In
        };
        Some((sent, bytes))
    }

    /// The next `count` frames that were sent this way. What leaves by this interface also arrives:
    /// the other way's are not looked at.
    #[track_caller]
    pub(crate) fn frames(&self, way: Sent, count: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut frames = Vec::new();
        while frames.len() < count {
            match self.next() {
                Some((sent, bytes)) if sent == way => frames.push(bytes),
                Some(_) => {}
                None => {
                    assert!(
                        Instant::now() < deadline,
                        "{} of {count} frames came",
                        frames.len()
                    );
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
        frames
    }

    /// Every frame that has been sent so far.
    pub(crate) fn rest(&self) -> Vec<(Sent, Vec<u8>)> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
