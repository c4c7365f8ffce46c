//! Probing: does an origin let a pool's egress IPs in (POOL-10)?
//!
//! Real connections, one from each address that this server may use. They go through the data plane like everybody's:
//! they are admitted, counted under the cap, translated and closed. Only which address they leave by is told by us
//! ([`Probes`]), and afterwards the data plane says which one it was. Where it has not seen the connection, the origin
//! may have let in somebody else, so that is a failure too.

mod connection;
mod requirement;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use requirement::{Need, Permit};

use crate::control::Failure;
use crate::dataplane::{ProbeExit, Probes};
use crate::resource::Address;

/// How long an origin may take to answer unless something else is said.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The longest that may be said: twice as long the control socket waits for an answer.
pub const MAX_PATIENCE: Duration = Duration::from_secs(30);
/// Connections under way at once.
const AT_ONCE: usize = 64;

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The origin let it in.
    Connected,
    /// The origin answered with a RST.
    Refused,
    /// Nobody answered in time.
    TimedOut,
    /// A router, or the origin, said by ICMP that it does not go there.
    Icmp,
    /// This server had no place for it: whether the origin lets it in is not known.
    NoCapacity,
    /// The address takes no new connections, so none was tried (POOL-9).
    Draining,
    /// It did not leave by an uplink as a connection of this address: whether the origin lets it in is not known.
    NotSent,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "let in",
            Self::Refused => "refused (RST)",
            Self::TimedOut => "timed out",
            Self::Icmp => "ICMP error",
            Self::NoCapacity => "no capacity",
            Self::Draining => "draining, not tried",
            Self::NotSent => "not sent",
        })
    }
}

/// What became of one address: an element of `egress probe --json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProbeRecord {
    /// The origin.
    pub origin: SocketAddr,
    /// The pool's member: an address or a range.
    pub address: Address,
    /// The address that it left from; of a range one of its addresses. Absent where nothing left.
    pub egress_ip: Option<IpAddr>,
    /// What became of it.
    pub outcome: Outcome,
    /// Milliseconds until the origin let it in or refused it.
    pub ms: Option<f64>,
    /// What else is known.
    pub detail: Option<String>,
}

impl ProbeRecord {
    /// Whether nothing stands against new connections of this address to the origin.
    pub fn is_good(&self) -> bool {
        matches!(self.outcome, Outcome::Connected | Outcome::Draining)
    }
}

impl fmt::Display for ProbeRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} does not let in {}: {}",
            self.origin, self.address, self.outcome
        )?;
        self.detail
            .as_ref()
            .map_or(Ok(()), |detail| write!(f, ", {detail}"))
    }
}

/// What to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The pool's number.
    pub pool: u16,
    /// Its id, for messages.
    pub name: String,
    /// To which origins.
    pub origins: Vec<SocketAddr>,
    /// How long each connection may take.
    pub patience: Duration,
    /// No further connections are begun when so many are not good.
    pub enough: usize,
}

/// Takes what becomes of each address, in the order in which that is known; false to stop.
pub type Each<'a> = &'a mut dyn FnMut(ProbeRecord) -> bool;

/// Connects to each origin from every address of the pool that this server may use.
///
/// # Errors
/// When there is no such address, or the data plane cannot be told.
pub fn run(probes: &Probes, task: &Task, each: Each<'_>) -> Result<(), Failure> {
    let mut work = Vec::new();
    for &origin in &task.origins {
        let exits = probes.exits(task.pool, origin.ip())?;
        if exits.is_empty() {
            let family = if origin.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(Failure::failed(
                format!(
                    "pool {} has no {family} address that this server may use, so nothing reaches {origin}",
                    task.name
                ),
                "`egress pools` lists what there is",
            ));
        }
        work.extend(exits.into_iter().map(|exit| (origin, exit)));
    }
    let workers = work.len().min(AT_ONCE);
    let work = Mutex::new(work.into_iter());
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..workers {
            let (sender, work) = (sender.clone(), &work);
            thread::Builder::new()
                .name("probe".into())
                .spawn_scoped(scope, move || {
                    while let Some((origin, exit)) = next(work) {
                        if sender
                            .send(probe(probes, origin, &exit, task.patience))
                            .is_err()
                        {
                            return;
                        }
                    }
                })
                .map_err(|error| Failure::failed(format!("cannot start a thread: {error}"), ""))?;
        }
        drop(sender);
        let mut bad = 0;
        // Dropping the receiver ends the workers after what they have begun.
        for record in receiver {
            let record = record?;
            bad += usize::from(!record.is_good());
            if !each(record) || bad >= task.enough {
                break;
            }
        }
        Ok(())
    })
}

fn next(
    work: &Mutex<impl Iterator<Item = (SocketAddr, ProbeExit)>>,
) -> Option<(SocketAddr, ProbeExit)> {
    work.lock().unwrap_or_else(PoisonError::into_inner).next()
}

fn probe(
    probes: &Probes,
    origin: SocketAddr,
    exit: &ProbeExit,
    patience: Duration,
) -> Result<ProbeRecord, Failure> {
    let mut record = ProbeRecord {
        origin,
        address: exit.address,
        egress_ip: None,
        outcome: Outcome::Draining,
        ms: None,
        detail: None,
    };
    if !exit.draining {
        connection::attempt(probes, exit, patience, &mut record)?;
    }
    Ok(record)
}
