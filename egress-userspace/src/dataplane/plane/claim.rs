//! The right to use a pin directory.

use crate::config::Dataplane;
use crate::dataplane::api::DataPlaneError;
use crate::dataplane::lock::Lock;
use crate::dataplane::pins::Pins;
use crate::dataplane::privileges;

/// The right to use a pin directory, which one daemon at a time has.
#[derive(Debug)]
pub struct Claim {
    pub(super) pins: Pins,
    pub(super) lock: Lock,
}

impl Claim {
    /// Checks privileges and the file system, and takes the lock. Nothing is changed.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] with the remedy; another daemon's process id, if one uses the pins.
    pub fn of(config: &Dataplane) -> Result<Self, DataPlaneError> {
        privileges::check()?;
        let pins = Pins::new(&config.pin);
        pins.check_filesystem()?;
        let lock = Lock::take(&config.pin)?;
        Ok(Self { pins, lock })
    }
}
