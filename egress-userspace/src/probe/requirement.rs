//! Probes that a zone asks for before it is enabled (`require_probe`).

use std::net::SocketAddr;

use super::{Outcome, PATIENCE, ProbeRecord, Task};
use crate::control::Failure;
use crate::resource::Address;

/// Failures after which no more is tried: they are enough to read.
const ENOUGH: usize = 16;

/// What must succeed before a zone's setting may be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// The zone's name.
    pub zone: String,
    /// The number of the pool that it is to leave by.
    pub pool: u16,
    /// That pool's id.
    pub pool_id: String,
    /// The pool's members, as they are in force.
    pub addresses: Vec<Address>,
    /// The origins that must let them in.
    pub origins: Vec<SocketAddr>,
}

/// What a change may go by that needs probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Permit {
    /// Nothing yet.
    #[default]
    None,
    /// These have succeeded.
    Probed(Need),
    /// The operator will have it so, whatever origins say.
    Forced,
}

impl Permit {
    /// Whether it covers what is needed.
    pub fn covers(&self, need: &Need) -> bool {
        match self {
            Self::None => false,
            Self::Probed(probed) => probed == need,
            Self::Forced => true,
        }
    }
}

impl Need {
    /// The probes.
    pub fn task(&self) -> Task {
        Task {
            pool: self.pool,
            name: self.pool_id.clone(),
            origins: self.origins.clone(),
            patience: PATIENCE,
            enough: ENOUGH,
        }
    }

    /// Whether all have succeeded.
    ///
    /// # Errors
    /// Who does not let which address in.
    pub fn judge(&self, records: &[ProbeRecord]) -> Result<(), Failure> {
        let bad: Vec<String> = records
            .iter()
            .filter(|record| !record.is_good())
            .map(ToString::to_string)
            .collect();
        let connected = |record: &ProbeRecord| record.outcome == Outcome::Connected;
        if bad.is_empty() && records.iter().any(connected) {
            return Ok(());
        }
        if bad.is_empty() {
            return Err(Failure::failed(
                format!(
                    "zone {} stays as it is: all addresses of pool {} drain, so none could be probed",
                    self.zone, self.pool_id
                ),
                "`egress pool undrain`, or another pool",
            ));
        }
        let more = if bad.len() >= ENOUGH {
            "; no more was tried"
        } else {
            ""
        };
        Err(Failure::failed(
            format!(
                "zone {} stays as it is: {}{more}",
                self.zone,
                bad.join("; ")
            ),
            "have the origin's operator let in the pool's addresses; `egress probe` tries again, and `--force` does \
             without",
        ))
    }
}
