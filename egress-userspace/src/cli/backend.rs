//! What the command line needs of the data plane and the daemon.

use std::path::Path;

use crate::config::Config;
use crate::control::Failure;
use crate::dataplane::api::{DataPlaneError, DataPlaneView, Names};
use crate::resource::Address;

/// The parts that need a kernel; the rest of the command line is tested without one.
pub trait Backend {
    /// Opens what is pinned, for reading.
    fn open_view(
        &self,
        config: &Config,
        names: Names,
    ) -> Result<Box<dyn DataPlaneView>, DataPlaneError>;

    /// Refuses a place where nothing can be pinned: in a mount namespace that hides bpffs, for instance.
    fn check_pins(&self, config: &Config) -> Result<(), DataPlaneError>;

    /// Refuses egress IPs that this host or one of its routers has.
    fn check(&self, addresses: &[Address]) -> Result<(), DataPlaneError>;

    /// Removes what is pinned, attached and installed, with no daemon running; says what it removed (SAFE-4).
    fn detach(&self, config: &Config) -> Result<Vec<String>, DataPlaneError>;

    /// Runs the daemon until it is told to end.
    fn run(&self, config_path: &Path, config: Config) -> Result<(), Failure>;
}
