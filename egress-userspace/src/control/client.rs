//! The command line's end of the control socket.

use std::io::{self, BufReader, ErrorKind, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::line::{self, LineError};
use super::protocol::{Failure, Request, Response};

/// A daemon gives a sign of life within this time ([`SIGN`](super::server::SIGN)), however long its work takes.
pub const SILENCE: Duration = Duration::from_secs(10);
/// One that is just starting gives none yet: who takes everything off waits for it.
const STARTING: Duration = Duration::from_secs(60);
/// It is done within this time; filling maps for ten thousands of zones takes some of it.
const PATIENCE: Duration = Duration::from_secs(300);
/// Whoever waits longer is told for what.
const UNTOLD: Duration = Duration::from_secs(5);
/// The longest line of an answer: a plan or an explanation of every object there can be.
const MAX_RESPONSE: usize = 64 << 20;

/// A connection to the daemon, for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    socket: PathBuf,
    silence: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the daemon is down.
    #[error("no daemon answers on {}", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket cannot be used, for want of permission for instance.
    #[error("cannot use {}: {source}", socket.display())]
    Inaccessible {
        /// The socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nothing is heard of it.
    #[error("the daemon at {} does not answer within {} s", socket.display(), after.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
        /// How long nothing was heard.
        after: Duration,
        /// Its process, where that is known.
        pid: Option<i32>,
    },
    /// It works on, and does not come to an end.
    #[error("the daemon at {} has been {doing} for {} s without an end", socket.display(), after.as_secs())]
    Endless {
        /// The socket.
        socket: PathBuf,
        /// What it does.
        doing: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The conversation broke off.
    #[error("the daemon broke off: {0}")]
    BrokeOff(LineError),
    /// The daemon refused.
    #[error("{0}")]
    Failed(Failure),
}

impl Client {
    /// Connects to the daemon.
    pub fn connect(socket: &Path) -> Result<Self, ClientError> {
        Self::connect_within(socket, SILENCE)
    }

    /// Connects to a daemon for a request: that it detaches is asked of one that is just starting, too.
    pub fn connect_for(socket: &Path, request: &Request) -> Result<Self, ClientError> {
        let silence = match request {
            Request::Detach => STARTING,
            _ => SILENCE,
        };
        Self::connect_within(socket, silence)
    }

    /// Connects to a daemon that may be silent for as long.
    pub(super) fn connect_within(socket: &Path, silence: Duration) -> Result<Self, ClientError> {
        let failed = |source: io::Error| match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning {
                socket: socket.to_owned(),
            },
            // So many wait already that there is no room for one more.
            ErrorKind::WouldBlock => ClientError::Silent {
                socket: socket.to_owned(),
                after: silence,
                pid: None,
            },
            _ => ClientError::Inaccessible {
                socket: socket.to_owned(),
                source,
            },
        };
        let stream = SockAddr::unix(socket)
            .and_then(|address| {
                let stream = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                // It bounds the wait for a place, too.
                stream.set_write_timeout(Some(silence))?;
                stream.set_read_timeout(Some(silence))?;
                stream.connect(&address)?;
                Ok(stream)
            })
            .map_err(failed)?;
        Ok(Self {
            stream: UnixStream::from(OwnedFd::from(stream)),
            socket: socket.to_owned(),
            silence,
        })
    }

    /// Whoever listens at the other end.
    fn pid(&self) -> Option<i32> {
        let mut peer = libc::ucred {
            pid: 0,
            uid: 0,
            gid: 0,
        };
        let mut length = size_of::<libc::ucred>() as libc::socklen_t;
        // SAFETY: the structure is ours and as long as we say.
        let result = unsafe {
            libc::getsockopt(
                self.stream.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                std::ptr::from_mut(&mut peer).cast(),
                &raw mut length,
            )
        };
        (result == 0 && peer.pid > 0).then_some(peer.pid)
    }

    fn broke_off(&self, error: LineError) -> ClientError {
        match error {
            LineError::Io(error) if error.kind() == ErrorKind::WouldBlock => ClientError::Silent {
                socket: self.socket.clone(),
                after: self.silence,
                pid: self.pid(),
            },
            error => ClientError::BrokeOff(error),
        }
    }

    /// Asks for something that is no list.
    pub fn call(self, request: &Request) -> Result<Value, ClientError> {
        self.stream(request, &mut |_| Ok(()))
    }

    /// Asks for a list: `each` gets its members as they come, and breaks off by failing.
    pub fn stream(
        self,
        request: &Request,
        each: &mut dyn FnMut(Value) -> io::Result<()>,
    ) -> Result<Value, ClientError> {
        let mut writer = &self.stream;
        let mut sent = Vec::new();
        line::write(&mut sent, request).map_err(ClientError::BrokeOff)?;
        // A server that has no place answers without reading: look for its answer all the same.
        let written = writer.write_all(&sent);
        let mut reader = BufReader::new(&self.stream);
        let (since, mut told) = (Instant::now(), false);
        loop {
            let response = match line::read::<Response>(&mut reader, MAX_RESPONSE) {
                Ok(Some(response)) => response,
                Ok(None) => {
                    written.map_err(|error| self.broke_off(error.into()))?;
                    return Err(ClientError::BrokeOff(
                        io::Error::from(ErrorKind::UnexpectedEof).into(),
                    ));
                }
                Err(error) => return Err(self.broke_off(error)),
            };
            match response {
                Response::Item(value) => {
                    each(value).map_err(|error| ClientError::BrokeOff(error.into()))?;
                }
                Response::Working => {
                    let after = since.elapsed();
                    if after >= PATIENCE {
                        return Err(ClientError::Endless {
                            socket: self.socket.clone(),
                            doing: request.doing(),
                            after,
                        });
                    }
                    if after >= UNTOLD && !told {
                        told = true;
                        let sentence =
                            format!("note: the daemon is {}: waiting for it\n", request.doing());
                        drop(io::stderr().write_all(sentence.as_bytes()));
                    }
                }
                Response::Done(value) => return Ok(value),
                Response::Failed(failure) => return Err(ClientError::Failed(failure)),
            }
        }
    }
}
