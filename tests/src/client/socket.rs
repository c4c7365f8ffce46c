//! A client's sockets: marked, bound, not blocking.

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollEvent, EpollFlags},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt,
            setsockopt, socket, sockopt,
        },
    },
};

/// How sockets are made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Maker {
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// The local address.
    pub bind: Option<IpAddr>,
}

impl Maker {
    /// A socket that has begun to connect to `target`.
    ///
    /// # Errors
    /// The error of the first call that failed at once; a refusal comes later.
    pub fn connect(&self, kind: SockType, target: SocketAddr) -> nix::Result<OwnedFd> {
        let family = if target.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        let socket = socket(
            family,
            kind,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        if let Some(mark) = self.mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        if let Some(address) = self.bind {
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            bind(
                socket.as_raw_fd(),
                &SockaddrStorage::from(SocketAddr::new(address, 0)),
            )?;
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(target)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(socket),
            Err(error) => Err(error),
        }
    }
}

/// The error that a socket has met, if any.
#[must_use]
pub fn error_of(socket: &impl AsFd) -> Option<Errno> {
    match getsockopt(socket, sockopt::SocketError) {
        Ok(0) => None,
        Ok(error) => Some(Errno::from_raw(error)),
        Err(error) => Some(error),
    }
}

/// Whether an error means that the network refused: RST, or an ICMP error of either family.
#[must_use]
pub fn is_refusal(error: Errno) -> bool {
    matches!(
        error,
        Errno::ECONNREFUSED
            | Errno::ECONNRESET
            | Errno::EHOSTUNREACH
            | Errno::ENETUNREACH
            | Errno::EACCES
            | Errno::EPROTO
            | Errno::ENOPROTOOPT
    )
}

/// The name of an error, as `errno.h` spells it.
#[must_use]
pub fn name_of(error: Errno) -> String {
    format!("{error:?}")
}

/// Readiness of many sockets.
#[derive(Debug)]
pub struct Poller {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poller {
    /// An empty poller.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new() -> Result<Self> {
        let epoll = Epoll::new(nix::sys::epoll::EpollCreateFlags::EPOLL_CLOEXEC)
            .context("creating a poller")?;
        Ok(Self {
            epoll,
            events: vec![EpollEvent::empty(); 256],
        })
    }

    /// Watches a socket; its number comes back with each event.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, socket: &impl AsFd, flags: EpollFlags) -> Result<()> {
        let number = u64::from(socket.as_fd().as_raw_fd().cast_unsigned());
        self.epoll
            .add(socket, EpollEvent::new(flags, number))
            .context("watching a socket")
    }

    /// Watches a socket for something else.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn modify(&self, socket: &impl AsFd, flags: EpollFlags) -> Result<()> {
        let number = u64::from(socket.as_fd().as_raw_fd().cast_unsigned());
        self.epoll
            .modify(socket, &mut EpollEvent::new(flags, number))
            .context("watching a socket")
    }

    /// Watches a socket no more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, socket: &impl AsFd) -> Result<()> {
        self.epoll.delete(socket).context("forgetting a socket")
    }

    /// Waits for events: the numbers of sockets and what happened to them.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn wait(&mut self, limit: Duration) -> Result<Vec<(i32, EpollFlags)>> {
        let milliseconds = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        match self.epoll.wait(&mut self.events, milliseconds) {
            Ok(count) => Ok(self.events[..count]
                .iter()
                .map(|event| ((event.data() as u32).cast_signed(), event.events()))
                .collect()),
            Err(Errno::EINTR) => Ok(Vec::new()),
            Err(error) => Err(error).context("waiting for sockets"),
        }
    }
}
