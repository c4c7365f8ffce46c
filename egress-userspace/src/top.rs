//! The live view (OBS-5): pools, egress IPs, origins, rates and refusals, as they are and as they change.
//!
//! [`sampler`] looks at the maps twice and tells rates; [`rows`] makes tables of what it saw; [`keys`] says what a key
//! does to the view; [`screen`] draws it. None of them needs a terminal.

pub mod keys;
pub mod rows;
pub mod sampler;
pub mod screen;

use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::dataplane::api::{Protocol, TableStatus};
use crate::inventory::DaemonState;

/// What changes from second to second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// New connections a second.
    pub new_per_s: f64,
    /// Packets a second, of both directions.
    pub packets_per_s: f64,
    /// Bytes a second, of both directions, IP length.
    pub bytes_per_s: f64,
}

/// One look: `egress top --json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// Whether a daemon answers.
    pub daemon: DaemonState,
    /// Whether hooks, guard and configuration are in force.
    pub ready: bool,
    /// Seconds that the rates are of.
    pub interval_s: f64,
    /// Live connections.
    pub active: u64,
    /// All together.
    pub rates: Rates,
    /// Pools, by id.
    pub pools: Vec<PoolRow>,
    /// Egress IPs: members of pools, in their order.
    pub egress_ips: Vec<AddressRow>,
    /// Origins, the fullest first.
    pub origins: Vec<OriginRow>,
    /// Reasons for which packets were refused or dropped, the most frequent of now first.
    pub refusals: Vec<ReasonRow>,
    /// How full the tables are.
    pub tables: Vec<TableStatus>,
}

impl Snapshot {
    /// How it stands, and whether that is as it should be: yes, without a daemon, or no.
    pub fn state(&self) -> (&'static str, Option<bool>) {
        match (self.daemon, self.ready) {
            (DaemonState::Up, true) => ("daemon up, ready", Some(true)),
            (DaemonState::Up, false) => ("daemon up, NOT READY", Some(false)),
            (DaemonState::Down, true) => ("daemon down, data plane in place", None),
            (DaemonState::Down, false) => ("daemon down, NOT READY", Some(false)),
        }
    }
}

/// A pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PoolRow {
    /// Its id.
    pub pool: String,
    /// How many addresses and ranges it has here.
    pub addresses: u64,
    /// Live connections.
    pub active: u64,
    /// How full its fullest origin is, percent.
    pub utilization: f64,
    /// What changes.
    pub rates: Rates,
}

/// An egress IP or a range.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct AddressRow {
    /// As the pool has it.
    pub egress_ip: String,
    /// The pool's id.
    pub pool: String,
    /// Live connections.
    pub active: u64,
    /// Connections that this server admits to one origin.
    pub capacity: u64,
    /// How full its fullest origin is, percent.
    pub utilization: f64,
    /// Whether it takes no new connections.
    pub draining: bool,
    /// What changes.
    pub rates: Rates,
}

/// What one egress IP carries to one origin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OriginRow {
    /// The egress IP.
    pub egress_ip: IpAddr,
    /// The origin.
    pub origin: SocketAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// Live connections.
    pub active: u64,
    /// The most at once.
    pub peak: u64,
    /// Connections that this server admits.
    pub capacity: u64,
    /// How full it is, percent.
    pub utilization: f64,
    /// New connections refused because of it.
    pub refused: u64,
    /// What changes.
    pub rates: Rates,
}

/// Why packets were refused or dropped.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ReasonRow {
    /// The reason's name.
    pub reason: String,
    /// Packets since the maps were made.
    pub packets: u64,
    /// Packets a second.
    pub per_s: f64,
}
