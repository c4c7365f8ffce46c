//! Opening connections and holding them.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd as _, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use anyhow::Result;
use nix::{
    errno::Errno,
    sys::{
        epoll::EpollFlags,
        socket::{MsgFlags, SockType, recv, send, setsockopt, sockopt},
    },
};

use super::{
    Close, Open, Outcome, Times,
    socket::{Maker, Poller, error_of, is_refusal, name_of},
};

/// How often attempts that take too long are looked for.
const TICK: Duration = Duration::from_millis(20);

/// The connections of one process.
#[derive(Debug, Default)]
pub struct Held {
    sockets: Vec<OwnedFd>,
}

impl Held {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.sockets.len()
    }

    /// Opens connections, at most `window` at a time.
    ///
    /// # Errors
    /// When polling fails.
    pub fn open(&mut self, maker: &Maker, open: &Open) -> Result<Outcome> {
        let start = Instant::now();
        let timeout = Duration::from_millis(open.timeout_ms);
        let mut attempts = Attempts::new()?;
        let mut started = 0;
        let mut look = start + TICK;
        while started < open.count || !attempts.pending.is_empty() {
            while started < open.count && attempts.pending.len() < open.window.max(1) {
                started += 1;
                attempts.start(maker, open)?;
            }
            for (number, _) in attempts.poller.wait(TICK)? {
                if let Some(socket) = attempts.end(number)? {
                    self.sockets.push(socket);
                }
            }
            if Instant::now() >= look {
                attempts.give_up(timeout);
                look = Instant::now() + TICK;
            }
        }
        Ok(Outcome {
            success_us: Times::of(&attempts.successes),
            refusal_us: Times::of(&attempts.refusals),
            elapsed_us: start.elapsed().as_micros() as u64,
            held: self.count(),
            ..attempts.outcome
        })
    }

    /// Closes the oldest connections.
    ///
    /// # Errors
    /// When a socket cannot be told to reset.
    pub fn close(&mut self, close: &Close) -> Result<Outcome> {
        let start = Instant::now();
        let count = close.count.min(self.sockets.len());
        for socket in self.sockets.drain(..count) {
            if close.reset {
                setsockopt(
                    &socket,
                    sockopt::Linger,
                    &libc::linger {
                        l_onoff: 1,
                        l_linger: 0,
                    },
                )?;
            }
        }
        Ok(Outcome {
            succeeded: count,
            elapsed_us: start.elapsed().as_micros() as u64,
            held: self.count(),
            ..Outcome::default()
        })
    }

    /// Sends a byte on each connection and waits for its echo.
    ///
    /// # Errors
    /// When polling fails.
    pub fn check(&mut self, timeout: Duration) -> Result<Outcome> {
        let start = Instant::now();
        let mut poller = Poller::new()?;
        let mut outcome = Outcome::default();
        let mut waiting = 0;
        for socket in &self.sockets {
            match send(socket.as_raw_fd(), b"?", MsgFlags::MSG_NOSIGNAL) {
                Ok(_) => {
                    poller.add(socket, EpollFlags::EPOLLIN)?;
                    waiting += 1;
                }
                Err(error) => *outcome.refused.entry(name_of(error)).or_default() += 1,
            }
        }
        let mut times = Vec::new();
        while waiting > 0 && start.elapsed() < timeout {
            for (number, _) in poller.wait(TICK)? {
                let mut byte = [0; 16];
                let result = recv(number, &mut byte, MsgFlags::empty());
                // Not watched any more, whatever came: one answer is enough.
                // SAFETY: the descriptor is one of `self.sockets`, which stay open here.
                let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(number) };
                match result {
                    Ok(1..) => {
                        outcome.succeeded += 1;
                        times.push(start.elapsed());
                    }
                    Ok(_) => *outcome.refused.entry("EOF".to_owned()).or_default() += 1,
                    Err(Errno::EAGAIN) => continue,
                    Err(error) => *outcome.refused.entry(name_of(error)).or_default() += 1,
                }
                poller.remove(&socket)?;
                waiting -= 1;
            }
        }
        Ok(Outcome {
            timed_out: waiting,
            success_us: Times::of(&times),
            elapsed_us: start.elapsed().as_micros() as u64,
            held: self.count(),
            ..outcome
        })
    }
}

/// Connections that are being opened.
struct Attempts {
    poller: Poller,
    pending: HashMap<RawFd, (OwnedFd, Instant)>,
    outcome: Outcome,
    successes: Vec<Duration>,
    refusals: Vec<Duration>,
}

impl Attempts {
    fn new() -> Result<Self> {
        Ok(Self {
            poller: Poller::new()?,
            pending: HashMap::new(),
            outcome: Outcome::default(),
            successes: Vec::new(),
            refusals: Vec::new(),
        })
    }

    fn start(&mut self, maker: &Maker, open: &Open) -> Result<()> {
        let began = Instant::now();
        match maker.connect(SockType::Stream, open.target) {
            Ok(socket) => {
                self.poller.add(&socket, EpollFlags::EPOLLOUT)?;
                self.pending.insert(socket.as_raw_fd(), (socket, began));
            }
            Err(error) => self.note(error, began),
        }
        Ok(())
    }

    /// The attempt came to an end: returns the connection if there is one.
    fn end(&mut self, number: RawFd) -> Result<Option<OwnedFd>> {
        let Some((socket, began)) = self.pending.remove(&number) else {
            return Ok(None);
        };
        if let Some(error) = error_of(&socket) {
            self.note(error, began);
            return Ok(None);
        }
        self.poller.remove(&socket)?;
        self.outcome.succeeded += 1;
        self.successes.push(began.elapsed());
        Ok(Some(socket))
    }

    fn give_up(&mut self, timeout: Duration) {
        let before = self.pending.len();
        self.pending
            .retain(|_, (_, began)| began.elapsed() < timeout);
        self.outcome.timed_out += before - self.pending.len();
    }

    fn note(&mut self, error: Errno, began: Instant) {
        let table = if is_refusal(error) {
            self.refusals.push(began.elapsed());
            &mut self.outcome.refused
        } else {
            &mut self.outcome.failed
        };
        *table.entry(name_of(error)).or_default() += 1;
    }
}
