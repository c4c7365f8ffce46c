//! Connections of the daemon's own that leave by the egress IP they are told to (POOL-10): what they are told, and
//! what became of them.

use std::net::{IpAddr, SocketAddr};

use aya::Pod;
use aya::maps::MapError;
use egress_common::probe::{ADMITTED, Probe};
use egress_common::reason::Reason;
use egress_common::settings::{Candidate, candidate_flag};
use egress_common::slot::Slot;

use super::flows::Tabled;
use super::maps::Maps;
use super::pins::Pins;
use super::tables::{self, Tables};
use super::versions;
use crate::config::Dataplane;
use crate::dataplane::api::DataPlaneError;
use crate::resource::Address;

const MAP: &str = "PROBES";

/// The right to name the egress IP of a connection: who can write the pinned maps has it.
#[derive(Debug)]
pub struct Probes {
    maps: Maps,
}

/// An address of a pool by which this server may send, or a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeExit {
    /// As the pool has it.
    pub address: Address,
    /// Whether it takes new connections (POOL-9).
    pub draining: bool,
    /// As the maps have it.
    told: Probe,
}

/// What the data plane says of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// It has not seen the connection.
    None,
    /// It refused the connection.
    Refused(Reason),
    /// It admitted the connection.
    Admitted {
        /// Where it leaves from.
        egress: SocketAddr,
        /// Whether it has ended: by a RST of the origin, while nobody here has closed it.
        closed: bool,
    },
}

impl Probes {
    /// Opens the pinned map.
    ///
    /// # Errors
    /// [`DataPlaneError::Absent`] when nothing is pinned.
    pub fn open(config: &Dataplane) -> Result<Self, DataPlaneError> {
        Ok(Self {
            maps: Maps::open(&Pins::new(&config.pin))?,
        })
    }

    /// The addresses of a pool, or its ranges, as they are in force for new connections of this server to `origin`.
    ///
    /// # Errors
    /// When maps cannot be read.
    pub fn exits(&self, pool: u16, origin: IpAddr) -> Result<Vec<ProbeExit>, DataPlaneError> {
        let tables = Tables::read(&self.maps, versions::in_force(&self.maps)?)?;
        let number = u32::from(pool);
        let Some(pool) = tables.pools.get(&number) else {
            return Ok(Vec::new());
        };
        let Some((_, single, ranges)) = tables.pools().find(|(other, ..)| *other == number) else {
            return Ok(Vec::new());
        };
        Ok(match origin {
            IpAddr::V4(_) => exits(number, pool.first, single, |one| Some(tables::single(one))),
            IpAddr::V6(_) => exits(number, pool.first6, ranges, tables::range),
        })
    }

    /// Tells the connection of the socket with this cookie, which is yet to be opened, where to leave.
    ///
    /// # Errors
    /// When too many are under way.
    pub fn tell(&self, cookie: u64, exit: &ProbeExit) -> Result<(), DataPlaneError> {
        self.maps
            .hash::<u64, Probe>(MAP)?
            .insert(cookie, exit.told, 0)
            .map_err(failed("writing"))
    }

    /// What became of the connection.
    ///
    /// # Errors
    /// When maps cannot be read.
    pub fn look(&self, cookie: u64, origin: IpAddr) -> Result<Sight, DataPlaneError> {
        let probe = match self.maps.hash::<u64, Probe>(MAP)?.get(&cookie, 0) {
            Ok(probe) => probe,
            Err(MapError::KeyNotFound) => return Ok(Sight::None),
            Err(error) => return Err(failed("reading")(error)),
        };
        if let Some(reason) = probe.reason() {
            return Ok(Sight::Refused(reason));
        }
        if probe.outcome != ADMITTED {
            return Ok(Sight::None);
        }
        let seen = match origin {
            IpAddr::V4(_) => self.seen::<egress_common::family::V4>(&probe),
            IpAddr::V6(_) => self.seen::<egress_common::family::V6>(&probe),
        };
        Ok(seen?.unwrap_or(Sight::None))
    }

    fn seen<A: Tabled>(&self, probe: &Probe) -> Result<Option<Sight>, DataPlaneError>
    where
        Slot<A>: Pod,
    {
        let name = format!("SLOTS{}", A::SUFFIX);
        let slot = self
            .maps
            .array::<Slot<A>>(&name)?
            .get(&probe.slot.index, 0)
            .map_err(|error| DataPlaneError::failed(format!("reading map {name}"), error))?;
        let same = slot.word().generation == probe.slot.generation;
        Ok(same.then(|| Sight::Admitted {
            egress: SocketAddr::new(slot.egress.into(), slot.egress_port),
            closed: !slot.word().state.is_counted(),
        }))
    }

    /// Forgets what a connection was told: it is over.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn forget(&self, cookie: u64) -> Result<(), DataPlaneError> {
        match self.maps.hash::<u64, Probe>(MAP)?.remove(&cookie) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(error) => Err(failed("writing")(error)),
        }
    }
}

/// Forgets the probes of a daemon that was killed. Nothing would ever use what they were told, since no socket gets a
/// cookie that another one had; but they take up room.
pub(super) fn forget_all(maps: &Maps) -> Result<(), DataPlaneError> {
    let mut probes = maps.hash::<u64, Probe>(MAP)?;
    let cookies = probes.keys().collect::<Result<Vec<u64>, _>>();
    for cookie in cookies.map_err(failed("reading"))? {
        probes.remove(&cookie).map_err(failed("writing"))?;
    }
    Ok(())
}

fn failed(doing: &'static str) -> impl Fn(MapError) -> DataPlaneError {
    move |error| DataPlaneError::failed(format!("{doing} map {MAP}"), error)
}

/// Those of a pool's candidates that this server may use.
fn exits<A: Tabled>(
    pool: u32,
    first: u32,
    candidates: &[Candidate<A>],
    address: impl Fn(&Candidate<A>) -> Option<Address>,
) -> Vec<ProbeExit> {
    (first..)
        .zip(candidates)
        .filter(|(_, one)| one.slices != 0 && one.capacity != 0)
        .filter_map(|(index, one)| {
            Some(ProbeExit {
                address: address(one)?,
                draining: one.flags & candidate_flag::DRAINING != 0,
                told: Probe {
                    address: wide(one.address.into()),
                    candidate: index,
                    pool,
                    ..Probe::default()
                },
            })
        })
        .collect()
}

/// An address of either family as probes have it.
fn wide(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut wide = [0; 16];
            let [a, b, c, d, ..] = &mut wide;
            [*a, *b, *c, *d] = address.octets();
            wide
        }
        IpAddr::V6(address) => address.octets(),
    }
}
