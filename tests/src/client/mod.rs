//! Real clients: helper processes that open, hold, count and close connections.
//!
//! A process may have 20,000 files open here, so a crowd of connections is spread over several
//! processes, which also run on different CPUs.

pub mod churn;
pub mod fetch;
pub mod open;
pub mod protocol;
pub mod socket;
pub mod udp;

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

pub use self::protocol::{
    Churn, Close, Closer, Crowd, Fetch, Open, Outcome, Paced, Request, Times, Udp,
};
use crate::{
    netns::Namespace,
    worker::{Worker, cpus, helper},
};

/// Connections that are being opened at the same time by one process, unless said otherwise.
pub const WINDOW: usize = 128;
/// What a reply may take beyond the time the request itself allows: it is about many connections at once.
const GRACE: Duration = Duration::from_secs(300);

/// How client processes are started.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The mark of their sockets.
    pub mark: Option<u32>,
    /// The addresses they bind to, each process the next one; none for the kernel's choice.
    pub bind: Vec<IpAddr>,
}

/// Several client processes that act as one.
#[derive(Debug)]
pub struct Clients {
    workers: Vec<Worker>,
}

impl Clients {
    /// Starts processes in a namespace, spread over the CPUs.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(namespace: &Namespace, processes: usize, options: &Options) -> Result<Self> {
        Self::start_with(namespace, processes, options, |_| {})
    }

    /// Starts processes after `adjust` has had a look at their commands (a cgroup).
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_with(
        namespace: &Namespace,
        processes: usize,
        options: &Options,
        adjust: impl Fn(&mut Command),
    ) -> Result<Self> {
        let path = helper("lab-client")?;
        let workers = (0..processes)
            .map(|number| {
                let mut command = namespace.command(&path)?;
                command.arg("--cpu").arg((number % cpus()).to_string());
                if let Some(mark) = options.mark {
                    command.arg("--mark").arg(mark.to_string());
                }
                if let Some(bind) = options.bind.iter().cycle().nth(number) {
                    command.arg("--bind").arg(bind.to_string());
                }
                adjust(&mut command);
                Worker::start(&format!("client {number} in {}", namespace.name()), command)
            })
            .collect::<Result<_>>()?;
        Ok(Self { workers })
    }

    /// Opens `count` connections in all, from all processes at once, and holds them.
    ///
    /// # Errors
    /// When a process fails; that connections are refused is an outcome, not an error.
    pub fn open(&mut self, target: SocketAddr, count: usize, timeout: Duration) -> Result<Outcome> {
        let timeout_ms = milliseconds(timeout);
        self.divide(count, timeout, |count| {
            Request::Open(Open {
                target,
                count,
                timeout_ms,
                window: WINDOW,
            })
        })
    }

    /// Closes `count` connections in all, by FIN or by RST.
    ///
    /// # Errors
    /// When a process fails.
    pub fn close(&mut self, count: usize, reset: bool) -> Result<Outcome> {
        self.divide(count, Duration::ZERO, |count| {
            Request::Close(Close { count, reset })
        })
    }

    /// Closes every connection.
    ///
    /// # Errors
    /// When a process fails.
    pub fn close_all(&mut self, reset: bool) -> Result<Outcome> {
        self.all(
            Duration::ZERO,
            &Request::Close(Close {
                count: usize::MAX,
                reset,
            }),
        )
    }

    /// Checks every held connection by an echo.
    ///
    /// # Errors
    /// When a process fails.
    pub fn check(&mut self, timeout: Duration) -> Result<Outcome> {
        self.all(
            timeout,
            &Request::Check {
                timeout_ms: milliseconds(timeout),
            },
        )
    }

    /// Opens and closes short connections from all processes.
    ///
    /// # Errors
    /// When a process fails.
    pub fn churn(&mut self, churn: Churn) -> Result<Outcome> {
        self.all(
            Duration::from_millis(churn.duration_ms),
            &Request::Churn(churn),
        )
    }

    /// Opens and closes short connections from all processes, each at the rate.
    ///
    /// # Errors
    /// When a process fails.
    pub fn paced(&mut self, paced: Paced) -> Result<Outcome> {
        self.all(
            Duration::from_millis(paced.churn.duration_ms),
            &Request::Paced(paced),
        )
    }

    /// Opens `flows` UDP flows in all.
    ///
    /// # Errors
    /// When a process fails.
    pub fn udp(
        &mut self,
        target: SocketAddr,
        flows: usize,
        timeout: Duration,
        keep: bool,
    ) -> Result<Outcome> {
        let timeout_ms = milliseconds(timeout);
        self.divide(flows, timeout, |flows| {
            Request::Udp(Udp {
                target,
                flows,
                timeout_ms,
                keep,
            })
        })
    }

    /// Fetches the stream with the first process; `progress` is told the bytes so far.
    ///
    /// # Errors
    /// When the transfer ends early, stalls, or a byte is wrong.
    pub fn fetch(
        &mut self,
        fetch: Fetch,
        limit: Duration,
        progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<Outcome> {
        let worker = self.workers.first_mut().context("no client process")?;
        worker.send(&Request::Fetch(fetch))?;
        worker.answer_with(limit, progress)
    }

    fn divide(
        &mut self,
        count: usize,
        timeout: Duration,
        request: impl Fn(usize) -> Request,
    ) -> Result<Outcome> {
        let workers = self.workers.len();
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let share = count / workers + usize::from(number < count % workers);
            worker.send(&request(share))?;
        }
        self.gather(timeout)
    }

    fn all(&mut self, timeout: Duration, request: &Request) -> Result<Outcome> {
        for worker in &mut self.workers {
            worker.send(request)?;
        }
        self.gather(timeout)
    }

    fn gather(&mut self, timeout: Duration) -> Result<Outcome> {
        let mut sum = Outcome::default();
        for worker in &mut self.workers {
            sum.add(worker.answer(timeout + GRACE)?);
        }
        Ok(sum)
    }
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
