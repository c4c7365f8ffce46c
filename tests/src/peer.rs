//! One connection with both of its ends in hand: a socket on an inside node, and the origin's.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket,
        sockopt,
    },
    time::TimeVal,
};

use crate::netns::Namespace;

/// How long a byte may take.
const LIMIT: Duration = Duration::from_secs(30);

/// How the inside's socket is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Caller {
    /// `SO_MARK`.
    pub mark: Option<u32>,
    /// The local port; the kernel's choice if there is none.
    pub port: Option<u16>,
    /// The local address, likewise.
    pub address: Option<IpAddr>,
    /// How long `connect` may take; as long as the kernel tries, if there is none.
    pub patience: Option<Duration>,
}

impl Caller {
    /// Connects from a node.
    ///
    /// # Errors
    /// Whatever `connect` says.
    pub fn connect(&self, node: &Namespace, to: SocketAddr) -> Result<TcpStream> {
        let caller = *self;
        node.run(move || caller.open(to))?
    }

    /// Connects in the network namespace of this thread.
    ///
    /// # Errors
    /// Whatever `connect` says.
    pub fn open(&self, to: SocketAddr) -> Result<TcpStream> {
        let (family, any) = match to {
            SocketAddr::V4(_) => (AddressFamily::Inet, IpAddr::from([0; 4])),
            SocketAddr::V6(_) => (AddressFamily::Inet6, IpAddr::from([0; 16])),
        };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        if let Some(mark) = self.mark {
            setsockopt(&socket, sockopt::Mark, &mark)?;
        }
        if let Some(patience) = self.patience {
            let seconds = TimeVal::new(
                i64::try_from(patience.as_secs())?,
                patience.subsec_micros().into(),
            );
            setsockopt(&socket, sockopt::SendTimeout, &seconds)?;
        }
        if self.port.is_some() || self.address.is_some() {
            setsockopt(&socket, sockopt::ReuseAddr, &true)?;
            let any = SocketAddr::new(self.address.unwrap_or(any), self.port.unwrap_or(0));
            bind(socket.as_raw_fd(), &SockaddrStorage::from(any))?;
        }
        connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }
}

/// Both ends.
#[derive(Debug)]
pub struct Peers {
    /// The inside's.
    pub inside: TcpStream,
    /// The origin's.
    pub origin: TcpStream,
    /// The address and port that the origin sees.
    pub seen: SocketAddr,
}

/// Listens on a node for callers.
///
/// # Errors
/// When the port is taken.
pub fn listen(node: &Namespace, at: SocketAddr) -> Result<TcpListener> {
    node.run(move || TcpListener::bind(at))?
        .with_context(|| format!("listening on {at}"))
}

impl Peers {
    /// Connects, and exchanges a byte each way.
    ///
    /// # Errors
    /// When the connection does not come about.
    pub fn connect(node: &Namespace, caller: Caller, listener: &TcpListener) -> Result<Self> {
        let inside = caller.connect(node, listener.local_addr()?)?;
        let (origin, seen) = listener.accept()?;
        origin.set_read_timeout(Some(LIMIT))?;
        let mut peers = Self {
            inside,
            origin,
            seen,
        };
        peers.exchange()?;
        Ok(peers)
    }

    /// A byte each way.
    ///
    /// # Errors
    /// When one does not arrive.
    pub fn exchange(&mut self) -> Result<()> {
        let mut byte = [0];
        self.inside.write_all(b"?")?;
        self.origin.read_exact(&mut byte).context("at the origin")?;
        self.origin.write_all(b"!")?;
        self.inside.read_exact(&mut byte).context("at the inside")?;
        Ok(())
    }
}

/// Waits until a socket says that the connection was reset, without sending anything.
///
/// # Errors
/// When it says something else, or nothing within `limit`.
pub fn was_reset(socket: &mut TcpStream, limit: Duration, who: &str) -> Result<()> {
    socket.set_read_timeout(Some(limit))?;
    let said = socket.read(&mut [0; 16]);
    ensure!(
        matches!(&said, Err(error) if error.kind() == io::ErrorKind::ConnectionReset),
        "{who} was not told: {said:?}"
    );
    Ok(())
}
