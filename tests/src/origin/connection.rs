//! One connection of an origin: HTTP or echo.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    os::fd::AsRawFd as _,
};

use crate::pattern;

/// How much of a stream is made at a time.
const BLOCK: usize = 1 << 16;
/// A request head longer than this is none.
const LONGEST_HEAD: usize = 8192;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Requests and answers.
    Http,
    /// What comes goes back.
    Echo,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Data from the client.
    Read,
    /// Room to send.
    Write,
    /// Nothing: it is over.
    End,
}

/// An accepted connection.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Who called.
    pub caller: SocketAddr,
    kind: Kind,
    input: Vec<u8>,
    output: Vec<u8>,
    sent: usize,
    // The part of the stream that is still to be made: from, to.
    stream_at: u64,
    stream_end: u64,
    close_after: bool,
    /// Requests answered.
    pub requests: u64,
}

impl Connection {
    /// Takes over an accepted socket, which must not block.
    #[must_use]
    pub fn new(stream: TcpStream, caller: SocketAddr, kind: Kind) -> Self {
        Self {
            stream,
            caller,
            kind,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            stream_at: 0,
            stream_end: 0,
            close_after: false,
            requests: 0,
        }
    }

    /// The socket.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads and writes as far as it goes.
    pub fn advance(&mut self) -> Wants {
        self.step().unwrap_or(Wants::End)
    }

    fn step(&mut self) -> io::Result<Wants> {
        loop {
            if !self.flush()? {
                return Ok(Wants::Write);
            }
            if self.close_after {
                return Ok(Wants::End);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Wants::End),
                Ok(got) => self.take(&buffer[..got]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Wants::Read),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends what there is to send; whether all of it went.
    fn flush(&mut self) -> io::Result<bool> {
        loop {
            if self.sent == self.output.len() {
                self.sent = 0;
                self.output.clear();
                let left = self.stream_end - self.stream_at;
                if left == 0 {
                    return Ok(true);
                }
                self.output.resize(left.min(BLOCK as u64) as usize, 0);
                pattern::fill(&mut self.output, self.stream_at);
                self.stream_at += self.output.len() as u64;
            }
            match self.stream.write(&self.output[self.sent..]) {
                Ok(written) => self.sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.kind == Kind::Echo {
            self.output.extend_from_slice(bytes);
            return;
        }
        self.input.extend_from_slice(bytes);
        if let Some(end) = self
            .input
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&self.input[..end]).into_owned();
            self.input.drain(..end + 4);
            self.answer(&head);
        } else if self.input.len() > LONGEST_HEAD {
            self.close_after = true;
        }
    }

    fn answer(&mut self, head: &str) {
        let request = head.lines().next().unwrap_or_default();
        let path = request.split(' ').nth(1).unwrap_or_default();
        self.requests += 1;
        self.close_after = request.ends_with("HTTP/1.0");
        let (status, body) = match path {
            "/ip" => ("200 OK", format!("{}\n", plain(self.caller.ip()))),
            "/port" => ("200 OK", format!("{}\n", self.caller)),
            _ => match stream_request(path) {
                Some((length, rate)) => {
                    if rate > 0 {
                        limit_rate(&self.stream, rate);
                    }
                    (self.stream_at, self.stream_end) = (0, length);
                    self.head("200 OK", length);
                    return;
                }
                None => (
                    "404 Not Found",
                    "there are /ip, /port and /bytes/N\n".to_owned(),
                ),
            },
        };
        self.head(status, body.len() as u64);
        self.output.extend_from_slice(body.as_bytes());
    }

    fn head(&mut self, status: &str, length: u64) {
        let connection = if self.close_after {
            "close"
        } else {
            "keep-alive"
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n"
        );
        self.output.extend_from_slice(head.as_bytes());
    }
}

/// An IPv4 caller of an IPv6 socket is shown as what it is.
#[must_use]
pub fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn stream_request(path: &str) -> Option<(u64, u64)> {
    let rest = path.strip_prefix("/bytes/")?;
    let (length, rate) = rest.split_once("?rate=").unwrap_or((rest, "0"));
    Some((length.parse().ok()?, rate.parse().ok()?))
}

/// Lets the kernel pace the connection.
fn limit_rate(stream: &TcpStream, rate: u64) {
    // SAFETY: the value lives until the call returns. A kernel that refuses sends faster.
    unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const rate).cast(),
            size_of_val(&rate) as u32,
        );
    }
}
