//! A real origin: a server that tells callers which address it sees, holds tens of thousands of
//! connections, and streams data that can be verified.
//!
//! Several processes share each port (`SO_REUSEPORT`), since one may not have enough files open.

pub mod connection;
pub mod serve;

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    net::IpAddr,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{
    netns::Namespace,
    wait,
    worker::{Worker, cpus, helper},
};

/// HTTP: `/ip`, `/port`, `/bytes/N?rate=R`.
pub const HTTP_PORT: u16 = 80;
/// TCP connections are held until the client closes, and what they send comes back.
pub const ECHO_PORT: u16 = 7;
/// A datagram is answered by the address and port it came from.
pub const UDP_PORT: u16 = 7;
/// Processes of an origin: enough for 40,000 connections even if they spread unevenly.
pub const PROCESSES: usize = 3;
/// What an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What an origin is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Tell the counts.
    Stats,
    /// Close all held connections.
    Close {
        /// By a RST instead of a FIN.
        reset: bool,
    },
}

/// What an origin counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// TCP connections accepted since the start.
    pub accepted: u64,
    /// HTTP requests answered.
    pub requests: u64,
    /// Datagrams answered.
    pub datagrams: u64,
    /// Connections open now.
    pub open: usize,
    /// Connections open now, by the caller's address.
    pub callers: BTreeMap<IpAddr, usize>,
    /// Connections and datagrams since the start, by the caller's address.
    pub seen: BTreeMap<IpAddr, u64>,
}

impl Stats {
    fn add(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.requests += other.requests;
        self.datagrams += other.datagrams;
        self.open += other.open;
        for (address, count) in other.callers {
            *self.callers.entry(address).or_default() += count;
        }
        for (address, count) in other.seen {
            *self.seen.entry(address).or_default() += count;
        }
    }
}

/// A running origin.
#[derive(Debug)]
pub struct Origin {
    workers: Vec<Worker>,
}

impl Origin {
    /// Starts `processes` processes that listen on all `addresses`.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(namespace: &Namespace, addresses: &[IpAddr], processes: usize) -> Result<Self> {
        let workers = (0..processes)
            .map(|number| {
                let mut command = command(namespace, addresses)?;
                command.arg("--cpu").arg((number % cpus()).to_string());
                Worker::start(&format!("origin {number} in {}", namespace.name()), command)
            })
            .collect::<Result<_>>()?;
        Ok(Self { workers })
    }

    /// Starts one process that outlives its driver, for a persistent lab; its output goes to `log`.
    ///
    /// # Errors
    /// When it cannot be started or does not say that it is ready.
    pub fn detached(namespace: &Namespace, addresses: &[IpAddr], log: &Path) -> Result<()> {
        let out = OpenOptions::new().create(true).append(true).open(log)?;
        let mut child = command(namespace, addresses)?
            .arg("--detached")
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .process_group(0)
            .spawn()?;
        wait::until_true("a detached origin", LIMIT, || {
            ensure!(
                child.try_wait()?.is_none(),
                "the origin ended, see {}",
                log.display()
            );
            Ok(std::fs::metadata(log)?.len() > 0)
        })
    }

    /// What all processes counted together.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn stats(&mut self) -> Result<Stats> {
        self.ask(&Request::Stats)
    }

    /// The same, once `open` connections are accepted: what has come about waits until the origin finds the time.
    ///
    /// # Errors
    /// When there are more, or not as many in time.
    pub fn accepted(&mut self, open: usize) -> Result<Stats> {
        let what = format!("{open} connections to be accepted");
        wait::until(&what, LIMIT, || {
            let stats = self.stats()?;
            ensure!(stats.open <= open, "more than {open}: {stats:?}");
            Ok((stats.open == open).then_some(stats))
        })
    }

    /// Closes all held connections.
    ///
    /// # Errors
    /// When a process does not answer.
    pub fn close(&mut self, reset: bool) -> Result<Stats> {
        self.ask(&Request::Close { reset })
    }

    fn ask(&mut self, request: &Request) -> Result<Stats> {
        let mut sum = Stats::default();
        for worker in &mut self.workers {
            sum.add(worker.ask(request, LIMIT)?);
        }
        Ok(sum)
    }
}

fn command(namespace: &Namespace, addresses: &[IpAddr]) -> Result<Command> {
    let mut command = namespace.command(helper("lab-origin")?)?;
    for address in addresses {
        command.arg("--address").arg(address.to_string());
    }
    Ok(command)
}
