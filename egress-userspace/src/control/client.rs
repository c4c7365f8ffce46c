//! The command line's end of the control socket.

use std::io::{self, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::line::{self, LineError};
use super::protocol::{Failure, Request, Response};

/// The daemon answers within this time; filling maps for ten thousands of zones takes some of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// The longest line of an answer: a plan or an explanation of every object there can be.
const MAX_RESPONSE: usize = 64 << 20;

/// A connection to the daemon, for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
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
        let stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => ClientError::NotRunning {
                socket: socket.to_owned(),
            },
            _ => ClientError::Inaccessible {
                socket: socket.to_owned(),
                source,
            },
        })?;
        stream
            .set_read_timeout(Some(PATIENCE))
            .and_then(|()| stream.set_write_timeout(Some(PATIENCE)))
            .map_err(|source| ClientError::Inaccessible {
                socket: socket.to_owned(),
                source,
            })?;
        Ok(Self { stream })
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
        loop {
            let response = match line::read::<Response>(&mut reader, MAX_RESPONSE) {
                Ok(Some(response)) => response,
                Ok(None) => {
                    written.map_err(|error| ClientError::BrokeOff(error.into()))?;
                    return Err(ClientError::BrokeOff(
                        io::Error::from(ErrorKind::UnexpectedEof).into(),
                    ));
                }
                Err(error) => return Err(ClientError::BrokeOff(error)),
            };
            match response {
                Response::Item(value) => {
                    each(value).map_err(|error| ClientError::BrokeOff(error.into()))?;
                }
                Response::Done(value) => return Ok(value),
                Response::Failed(failure) => return Err(ClientError::Failed(failure)),
            }
        }
    }
}
