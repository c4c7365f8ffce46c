//! A bulk transfer that is verified byte by byte while it runs.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::SockType,
};

use super::{
    Fetch, Outcome,
    socket::{Maker, error_of},
};
use crate::pattern;

/// How much is read between two reports of progress.
const STEP: u64 = 4 << 20;

/// Fetches `/bytes/N` and compares it with the pattern.
///
/// # Errors
/// When the connection fails or stalls, ends early, or a byte differs.
pub fn fetch(
    maker: &Maker,
    fetch: &Fetch,
    mut progress: impl FnMut(u64) -> Result<()>,
) -> Result<Outcome> {
    let start = Instant::now();
    let timeout = Duration::from_millis(fetch.timeout_ms);
    let mut stream = connect(maker, fetch, timeout)?;
    write!(
        stream,
        "GET /bytes/{}?rate={} HTTP/1.0\r\n\r\n",
        fetch.bytes, fetch.rate
    )?;
    let mut reader = BufReader::with_capacity(1 << 18, stream);
    loop {
        let mut line = String::new();
        reader
            .read_line(&mut line)
            .context("reading the answer's head")?;
        if line.trim().is_empty() {
            break;
        }
    }
    let mut buffer = vec![0; 1 << 18];
    let mut done = 0;
    let mut reported = 0;
    while done < fetch.bytes {
        let got = reader
            .read(&mut buffer)
            .with_context(|| format!("after {done} of {} bytes", fetch.bytes))?;
        if got == 0 {
            bail!("the transfer ended after {done} of {} bytes", fetch.bytes);
        }
        if !pattern::matches(&buffer[..got], done) {
            bail!("wrong data between bytes {done} and {}", done + got as u64);
        }
        done += got as u64;
        if done - reported >= STEP {
            progress(done)?;
            reported = done;
        }
    }
    Ok(Outcome {
        succeeded: 1,
        elapsed_us: start.elapsed().as_micros() as u64,
        ..Outcome::default()
    })
}

fn connect(maker: &Maker, fetch: &Fetch, timeout: Duration) -> Result<TcpStream> {
    let socket = maker
        .connect(SockType::Stream, fetch.target)
        .context("connecting")?;
    let milliseconds = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    if poll(
        &mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)],
        milliseconds,
    )? == 0
    {
        bail!("{} did not answer within {timeout:?}", fetch.target);
    }
    if let Some(error) = error_of(&socket) {
        return Err(error).with_context(|| format!("connecting to {}", fetch.target));
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(timeout))?;
    Ok(stream)
}
