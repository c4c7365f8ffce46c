//! The loop of an origin process.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read as _},
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::{
    epoll::EpollFlags,
    socket::{
        AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt,
        socket, sockopt,
    },
};

use super::{
    ECHO_PORT, HTTP_PORT, Request, Stats, UDP_PORT,
    connection::{Connection, Kind, Wants, plain},
};
use crate::{
    client::socket::Poller,
    worker::{Line, say},
};

/// The number of standard input.
const INPUT: RawFd = 0;
/// The loop waits for events only; this merely bounds one wait.
const FOREVER: Duration = Duration::from_secs(60);

/// An origin process.
#[derive(Debug)]
pub struct Server {
    poller: Poller,
    listeners: HashMap<RawFd, (TcpListener, Kind)>,
    datagrams: HashMap<RawFd, UdpSocket>,
    connections: HashMap<RawFd, (Connection, Wants)>,
    // Counts since the start.
    stats: Stats,
}

impl Server {
    /// Listens on all ports of all addresses.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn new(addresses: &[IpAddr]) -> Result<Self> {
        let mut server = Self {
            poller: Poller::new()?,
            listeners: HashMap::new(),
            datagrams: HashMap::new(),
            connections: HashMap::new(),
            stats: Stats::default(),
        };
        for address in addresses {
            for (port, kind) in [(HTTP_PORT, Kind::Http), (ECHO_PORT, Kind::Echo)] {
                let socket = bound(SocketAddr::new(*address, port), SockType::Stream)?;
                listen(&socket, Backlog::MAXALLOWABLE)?;
                server.poller.add(&socket, EpollFlags::EPOLLIN)?;
                server
                    .listeners
                    .insert(socket.as_raw_fd(), (TcpListener::from(socket), kind));
            }
            let socket = bound(SocketAddr::new(*address, UDP_PORT), SockType::Datagram)?;
            server.poller.add(&socket, EpollFlags::EPOLLIN)?;
            server
                .datagrams
                .insert(socket.as_raw_fd(), UdpSocket::from(socket));
        }
        Ok(server)
    }

    /// Serves until standard input ends, or for ever if `detached`.
    ///
    /// # Errors
    /// When polling fails.
    pub fn run(mut self, detached: bool) -> Result<()> {
        let mut input = Vec::new();
        if !detached {
            self.poller.add(&io::stdin(), EpollFlags::EPOLLIN)?;
        }
        say(&Line::<()>::Ready)?;
        loop {
            for (number, _) in self.poller.wait(FOREVER)? {
                if number == INPUT && !detached {
                    if !self.obey(&mut input)? {
                        return Ok(());
                    }
                } else if self.listeners.contains_key(&number) {
                    self.accept(number)?;
                } else if let Some(socket) = self.datagrams.get(&number) {
                    answer(socket, &mut self.stats)?;
                } else {
                    self.advance(number)?;
                }
            }
        }
    }

    fn accept(&mut self, number: RawFd) -> Result<()> {
        while let Some((listener, kind)) = self.listeners.get(&number) {
            let kind = *kind;
            // Otherwise nothing is left, or the caller has gone again.
            let Ok((stream, caller)) = listener.accept() else {
                return Ok(());
            };
            stream.set_nonblocking(true)?;
            self.stats.accepted += 1;
            *self.stats.seen.entry(plain(caller.ip())).or_default() += 1;
            self.poller.add(&stream, EpollFlags::EPOLLIN)?;
            self.connections.insert(
                stream.as_raw_fd(),
                (Connection::new(stream, caller, kind), Wants::Read),
            );
        }
        Ok(())
    }

    fn advance(&mut self, number: RawFd) -> Result<()> {
        let Some((connection, before)) = self.connections.get_mut(&number) else {
            return Ok(());
        };
        let wants = connection.advance();
        self.stats.requests += std::mem::take(&mut connection.requests);
        if wants == Wants::End {
            self.connections.remove(&number);
        } else if wants != *before {
            let flags = if wants == Wants::Write {
                EpollFlags::EPOLLOUT
            } else {
                EpollFlags::EPOLLIN
            };
            self.poller.modify(connection.stream(), flags)?;
            *before = wants;
        }
        Ok(())
    }

    /// Reads requests; false when there will be no more.
    fn obey(&mut self, input: &mut Vec<u8>) -> Result<bool> {
        let mut buffer = [0; 4096];
        let got = io::stdin().read(&mut buffer)?;
        if got == 0 {
            return Ok(false);
        }
        input.extend_from_slice(&buffer[..got]);
        while let Some(end) = input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = input.drain(..=end).collect();
            match serde_json::from_slice(&line)? {
                Request::Stats => {}
                Request::Close { reset } => self.close(reset)?,
            }
            say(&Line::Done(self.stats()))?;
        }
        Ok(true)
    }

    fn close(&mut self, reset: bool) -> Result<()> {
        for (_, (connection, _)) in self.connections.drain() {
            if reset {
                setsockopt(
                    connection.stream(),
                    sockopt::Linger,
                    &libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                )?;
            }
        }
        Ok(())
    }

    fn stats(&self) -> Stats {
        let mut callers = BTreeMap::new();
        for (connection, _) in self.connections.values() {
            *callers.entry(plain(connection.caller.ip())).or_default() += 1;
        }
        Stats {
            open: self.connections.len(),
            callers,
            ..self.stats.clone()
        }
    }
}

/// Answers all waiting datagrams by where they came from.
fn answer(socket: &UdpSocket, stats: &mut Stats) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, caller)) => {
                stats.datagrams += 1;
                *stats.seen.entry(plain(caller.ip())).or_default() += 1;
                // A caller that is gone gets nothing.
                let _ = socket.send_to(format!("{caller}\n").as_bytes(), caller);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            // An ICMP error for an earlier answer.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error).context("receiving a datagram"),
        }
    }
}

fn bound(address: SocketAddr, kind: SockType) -> Result<OwnedFd> {
    let family = if address.is_ipv4() {
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
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))
        .with_context(|| format!("binding to {address}"))?;
    Ok(socket)
}
