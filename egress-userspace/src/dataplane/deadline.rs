//! The time at which the programs stop to use this server's slices (CLU-3, `takeover_after`): it is in the maps, so it holds with or
//! without a daemon.

use super::clock;
use super::maps::Maps;
use super::versions;
use crate::dataplane::api::{DataPlaneError, Deadline};

/// That of a pin directory.
#[derive(Debug)]
pub(super) struct Pinned {
    maps: Maps,
}

impl Pinned {
    pub(super) fn of(maps: &Maps) -> Self {
        Self { maps: maps.clone() }
    }
}

impl Deadline for Pinned {
    fn now(&self) -> u64 {
        clock::since_start()
    }

    fn get(&self) -> Result<u64, DataPlaneError> {
        versions::lapse(&self.maps)
    }

    fn set(&self, at: u64) -> Result<(), DataPlaneError> {
        // Neither never nor at once depends on a clock.
        if at > 1 {
            clock::check()?;
        }
        versions::set_lapse(&self.maps, at)
    }

    fn check(&self) -> Result<(), DataPlaneError> {
        clock::check()
    }
}
