//! The `egress` binary: parses its arguments and hands them to the library.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;

use egress_userspace::cli::{self, Backend};
use egress_userspace::config::Config;
use egress_userspace::control::Failure;
use egress_userspace::daemon;
use egress_userspace::dataplane::api::{DataPlaneError, DataPlaneView, Names};
use egress_userspace::resource::Address;
use tracing_subscriber::EnvFilter;

/// The data plane of this host.
struct Kernel;

impl Backend for Kernel {
    fn open_view(
        &self,
        config: &Config,
        names: Names,
    ) -> Result<Box<dyn DataPlaneView>, DataPlaneError> {
        daemon::open_view(config, names)
    }

    fn check_pins(&self, config: &Config) -> Result<(), DataPlaneError> {
        egress_userspace::dataplane::check_pins(&config.dataplane.pin)
    }

    fn check(&self, addresses: &[Address]) -> Result<(), DataPlaneError> {
        egress_userspace::dataplane::check_free(addresses)
    }

    fn detach(&self, config: &Config) -> Result<Vec<String>, DataPlaneError> {
        egress_userspace::dataplane::detach(&config.dataplane.pin)
    }

    fn run(&self, config_path: &Path, config: Config) -> Result<(), Failure> {
        // Before anything else, which would fail for the same reason and say another.
        egress_userspace::dataplane::check_privileges()?;
        daemon::run(config_path, config)
    }
}

fn main() -> ExitCode {
    log();
    cli::main(&Kernel)
}

/// Logs to stderr: for people on a terminal, else structured, one JSON object a line, when `EGRESS_LOG_FORMAT` is
/// `json`. `RUST_LOG` chooses what.
fn log() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    if std::env::var("EGRESS_LOG_FORMAT").as_deref() == Ok("json") {
        builder.json().init();
    } else {
        builder.init();
    }
}
