//! Which other servers are there, and how far they are (FWD-3, FWD-7): ICMP echoes between the servers' tunnel addresses.
//!
//! The kernel answers them, so a server whose daemon is down is there: its data plane goes on. One that falls silent gets no
//! new connections within three seconds; one that is back gets some when it has answered for a while.

mod prober;
mod record;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use prober::{Prober, Watched};
pub use record::{RETURN_AFTER, Record, SILENCE};

/// What is known of one other server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Whether it gets new connections.
    pub state: State,
    /// The settled round-trip time, µs (FWD-3); absent until it has answered.
    pub round_trip_us: Option<u32>,
}

/// Whether a server gets new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It has not been heard of, nor has anybody else: echoes may be filtered. It is believed to be there.
    #[default]
    Unknown,
    /// It answers.
    Alive,
    /// It does not: no new connections go there.
    Silent,
    /// It answers again, not for long enough yet: no new connections go there.
    Returning,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unknown => "unknown",
            Self::Alive => "alive",
            Self::Silent => "silent",
            Self::Returning => "returning",
        })
    }
}

impl Health {
    /// Whether new connections may go there.
    pub fn takes(self) -> bool {
        matches!(self.state, State::Unknown | State::Alive)
    }
}

/// What is known of the other servers, by their tunnel addresses; who is missing is unknown.
pub type Healths = BTreeMap<IpAddr, Health>;
