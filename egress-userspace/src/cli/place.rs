//! Which instance is meant, for the commands that must work when its configuration does not.

use std::path::{Path, PathBuf};

use super::CliError;
use super::context::Context;
use crate::config::{self, Config};
use crate::control::Failure;

#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The instance's pin directory, instead of the configuration's. If a daemon holds it, name its socket as well.
    #[arg(long, value_name = "DIR")]
    pub(super) pin: Option<PathBuf>,
    /// The daemon's control socket, instead of the configuration's.
    #[arg(long, value_name = "FILE")]
    pub(super) socket: Option<PathBuf>,
}

impl Place {
    /// The configuration as far as it can be read, with what the command line says; a note says what was assumed.
    ///
    /// # Errors
    /// It does not say which instance is meant: a file that was named is not there, or its `pin` cannot be read.
    pub(super) fn config(&self, context: &mut Context<'_>) -> Result<Config, CliError> {
        let mut config = match context.config() {
            Ok((config, _)) => config,
            Err(failure) => self.assumed(context, failure)?,
        };
        if let Some(pin) = &self.pin
            && *pin != config.dataplane.pin
        {
            config.dataplane.pin.clone_from(pin);
            // The configuration's daemon is another instance's and is not to be asked. Below pins there are no
            // sockets: if a daemon holds these, it has to be named.
            config.control.socket = pin.join("socket");
        }
        if let Some(socket) = &self.socket {
            config.control.socket.clone_from(socket);
        }
        Ok(config)
    }

    fn assumed(&self, context: &mut Context<'_>, failure: Failure) -> Result<Config, CliError> {
        let path = context.config_path().to_owned();
        let (config, pin_is_known) = match Config::salvage(&path) {
            Some(found) => found,
            // Nothing was configured, so everything is as it is without.
            None => (Config::default(), path == Path::new(config::DEFAULT_PATH)),
        };
        if !pin_is_known && self.pin.is_none() {
            return Err(Failure {
                remedy: format!(
                    "{}{}name the instance with --pin DIR (by default {}) and --socket FILE",
                    failure.remedy,
                    if failure.remedy.is_empty() {
                        ""
                    } else {
                        "; or "
                    },
                    Config::default().dataplane.pin.display()
                ),
                ..failure
            }
            .into());
        }
        let pin = self.pin.as_ref().unwrap_or(&config.dataplane.pin);
        let socket = self.socket.as_ref().unwrap_or(&config.control.socket);
        writeln!(
            context.err,
            "note: {} is not usable as it is (`egress validate {}` says why); assuming pins in {} and the control \
             socket {}: others with --pin and --socket",
            path.display(),
            path.display(),
            pin.display(),
            socket.display()
        )?;
        Ok(config)
    }
}
