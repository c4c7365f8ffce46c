//! The `egress` binary: parses its arguments and hands them to the library.

use std::path::Path;
use std::process::ExitCode;

use egress_userspace::cli::{self, Backend};
use egress_userspace::config::Config;
use egress_userspace::control::Failure;
use egress_userspace::dataplane::api::{DataPlaneError, DataPlaneView, Names};

/// Stands in until the data plane is wired up here.
struct Unwired;

impl Backend for Unwired {
    fn open_view(
        &self,
        config: &Config,
        _: Names,
    ) -> Result<Box<dyn DataPlaneView>, DataPlaneError> {
        Err(DataPlaneError::Absent {
            pin: config.dataplane.pin.clone(),
        })
    }

    fn detach(&self, _: &Config) -> Result<Vec<String>, DataPlaneError> {
        Ok(Vec::new())
    }

    fn run(&self, _: &Path, _: Config) -> Result<(), Failure> {
        Err(Failure::failed(
            "this build has no data plane",
            "build it with `cargo xtask build`",
        ))
    }
}

fn main() -> ExitCode {
    cli::main(&Unwired)
}
