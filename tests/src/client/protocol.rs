//! What a client process is asked, and what it answers.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// What a client is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Open TCP connections and hold them.
    Open(Open),
    /// Close held connections, oldest first.
    Close(Close),
    /// Send a byte on every held connection and wait for its echo.
    Check {
        /// Milliseconds until a connection that does not answer counts as dead.
        timeout_ms: u64,
    },
    /// Connect, request, close, again and again.
    Churn(Churn),
    /// The same at a rate, from many addresses.
    Paced(Paced),
    /// Read the deterministic stream and verify it.
    Fetch(Fetch),
    /// Send datagrams and read what the origin saw.
    Udp(Udp),
}

/// Opens TCP connections.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Open {
    /// The origin.
    pub target: SocketAddr,
    /// How many.
    pub count: usize,
    /// Milliseconds until an attempt counts as timed out.
    pub timeout_ms: u64,
    /// How many at the same time.
    pub window: usize,
}

/// Closes held connections.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Close {
    /// How many.
    pub count: usize,
    /// By a RST instead of a FIN.
    pub reset: bool,
}

/// Who closes first in a churn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Closer {
    /// The origin, after its answer.
    Server,
    /// The client, once it has the answer.
    Client,
}

/// Short connections.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Churn {
    /// The origin's HTTP port.
    pub target: SocketAddr,
    /// For how long, in milliseconds.
    pub duration_ms: u64,
    /// How many at the same time.
    pub parallel: usize,
    /// Who closes.
    pub closer: Closer,
}

/// Short connections at a rate, from many addresses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Paced {
    /// What is done.
    pub churn: Churn,
    /// Connections begun in a second by each process.
    pub rate: u64,
    /// The local addresses, one after the other.
    pub from: Crowd,
}

/// Addresses that follow each other.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Crowd {
    /// The first one.
    pub first: IpAddr,
    /// How many there are.
    pub count: u32,
}

impl Crowd {
    /// The `nth` address, beginning anew behind the last one.
    #[must_use]
    pub fn address(&self, nth: u64) -> IpAddr {
        let offset = nth.checked_rem(u64::from(self.count)).unwrap_or(0);
        match self.first {
            IpAddr::V4(first) => {
                Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset as u32)).into()
            }
            IpAddr::V6(first) => {
                Ipv6Addr::from_bits(first.to_bits().wrapping_add(offset.into())).into()
            }
        }
    }
}

/// A bulk transfer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Fetch {
    /// The origin's HTTP port.
    pub target: SocketAddr,
    /// How many bytes.
    pub bytes: u64,
    /// Bytes a second at which the origin sends, 0 for no limit.
    pub rate: u64,
    /// Milliseconds without a byte after which the transfer has failed.
    pub timeout_ms: u64,
}

/// UDP flows, each with a socket of its own.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Udp {
    /// The origin's UDP port.
    pub target: SocketAddr,
    /// How many flows.
    pub flows: usize,
    /// Milliseconds until an unanswered datagram counts as lost.
    pub timeout_ms: u64,
    /// Keep the sockets, so that their ports stay taken.
    pub keep: bool,
}

/// Microseconds: the distribution of some times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// How many.
    pub count: usize,
    /// The shortest.
    pub min: u64,
    /// The middle one.
    pub median: u64,
    /// 99 of 100 are no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Times {
    /// Sums up times.
    #[must_use]
    pub fn of(times: &[Duration]) -> Self {
        let mut sorted: Vec<_> = times
            .iter()
            .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
            .collect();
        sorted.sort_unstable();
        let at = |share: usize| {
            sorted
                .get((sorted.len() * share / 100).min(sorted.len().saturating_sub(1)))
                .copied()
        };
        Self {
            count: sorted.len(),
            min: at(0).unwrap_or(0),
            median: at(50).unwrap_or(0),
            p99: at(99).unwrap_or(0),
            max: at(100).unwrap_or(0),
        }
    }

    /// The worse of two distributions, for reports of several processes.
    pub(super) fn worst(self, other: Self) -> Self {
        if other.count == 0 {
            return self;
        }
        if self.count == 0 {
            return other;
        }
        Self {
            count: self.count + other.count,
            min: self.min.min(other.min),
            median: self.median.max(other.median),
            p99: self.p99.max(other.p99),
            max: self.max.max(other.max),
        }
    }
}

/// How attempts ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Opened (TCP), answered (UDP), completed (churn), alive (check), closed (close).
    pub succeeded: usize,
    /// Refused by a RST or an ICMP error; by the name of the error that the application saw.
    pub refused: BTreeMap<String, usize>,
    /// Nothing came back in time.
    pub timed_out: usize,
    /// Failed on this side: no port, no route; by the name of the error.
    pub failed: BTreeMap<String, usize>,
    /// How long success took.
    pub success_us: Times,
    /// How long it took until the connection stood, where more belongs to success (churn).
    #[serde(default)]
    pub connect_us: Times,
    /// How long refusal took.
    pub refusal_us: Times,
    /// How long all of it took.
    pub elapsed_us: u64,
    /// Connections held afterwards.
    pub held: usize,
    /// The addresses that the origin said it saw, where it says so, and how often.
    pub seen: BTreeMap<String, usize>,
}

impl Outcome {
    /// Attempts that were refused, for whatever reason.
    #[must_use]
    pub fn refusals(&self) -> usize {
        self.refused.values().sum()
    }

    /// Attempts that failed on this side.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failed.values().sum()
    }

    /// Adds the outcome of another process, or of another stretch.
    pub fn add(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.timed_out += other.timed_out;
        self.held += other.held;
        self.elapsed_us = self.elapsed_us.max(other.elapsed_us);
        self.success_us = self.success_us.worst(other.success_us);
        self.connect_us = self.connect_us.worst(other.connect_us);
        self.refusal_us = self.refusal_us.worst(other.refusal_us);
        for (into, from) in [
            (&mut self.refused, other.refused),
            (&mut self.failed, other.failed),
            (&mut self.seen, other.seen),
        ] {
            for (name, count) in from {
                *into.entry(name).or_default() += count;
            }
        }
    }
}
