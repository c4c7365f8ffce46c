//! What every command works with: configuration, output, and the daemon or, while it is down, the pinned maps.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Backend, CliError};
use crate::config::{Config, ConfigError};
use crate::control::{Client, ClientError, Failure, Request};
use crate::dataplane::api::{DataPlaneError, DataPlaneView};
use crate::diagnostic::Diagnostics;
use crate::store::{SqliteStore, StateStore, Stored};

pub(super) struct Context<'a> {
    config_path: PathBuf,
    /// Whether output is for programs.
    pub(super) json: bool,
    pub(super) backend: &'a dyn Backend,
    pub(super) out: &'a mut dyn Write,
    pub(super) err: &'a mut dyn Write,
}

/// What a command can use while no daemon answers.
pub(super) struct Local {
    pub(super) config: Config,
    pub(super) stored: Stored,
    /// `None` when nothing is pinned.
    pub(super) view: Option<Box<dyn DataPlaneView>>,
}

impl<'a> Context<'a> {
    pub(super) fn new(
        config_path: PathBuf,
        json: bool,
        backend: &'a dyn Backend,
        out: &'a mut dyn Write,
        err: &'a mut dyn Write,
    ) -> Self {
        Self {
            config_path,
            json,
            backend,
            out,
            err,
        }
    }

    pub(super) fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// The configuration and its warnings.
    pub(super) fn config(&self) -> Result<(Config, Diagnostics), Failure> {
        Config::load(&self.config_path).map_err(|error| match error {
            ConfigError::Source(error) => Failure::usage(
                error.to_string(),
                "name the configuration with --config FILE; the README has one to begin with",
            ),
            ConfigError::Invalid(found) => {
                Failure::invalid(&self.config_path.display().to_string(), found)
            }
        })
    }

    /// What is stored, read without a daemon. A store that cannot be read costs names, no more.
    pub(super) fn stored(&mut self, config: &Config) -> io::Result<Stored> {
        match SqliteStore::open_read_only(&config.store.sqlite).and_then(|store| store.load()) {
            Ok(stored) => Ok(stored),
            Err(error) => {
                writeln!(
                    self.err,
                    "note: {error}; zones and pools are known by number only"
                )?;
                Ok(Stored::default())
            }
        }
    }

    /// Store and pinned maps, read without a daemon.
    pub(super) fn local(&mut self, config: Config) -> Result<Local, CliError> {
        let stored = self.stored(&config)?;
        let view = match self.backend.open_view(&config, stored.names()) {
            Ok(view) => Some(view),
            Err(error @ DataPlaneError::Absent { .. }) => {
                writeln!(self.err, "note: {error}")?;
                None
            }
            Err(error) => return Err(Failure::from(error).into()),
        };
        Ok(Local {
            config,
            stored,
            view,
        })
    }

    /// Prints a value as JSON, or the text.
    pub(super) fn print<T: Serialize>(
        &mut self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), CliError> {
        if self.json {
            serde_json::to_writer(&mut *self.out, value).map_err(io::Error::from)?;
            writeln!(self.out)?;
        } else {
            let text = text();
            if !text.is_empty() {
                writeln!(self.out, "{text}")?;
            }
        }
        Ok(())
    }

    /// Prints a failure on standard error.
    pub(super) fn report(&mut self, failure: &Failure) -> io::Result<()> {
        if self.json {
            serde_json::to_writer(&mut *self.err, &json!({ "error": failure }))?;
            writeln!(self.err)
        } else {
            writeln!(self.err, "{failure}")
        }
    }

    /// Prints warnings on standard error; with `--json` they are part of the answer instead.
    pub(super) fn warn(&mut self, warnings: &Diagnostics) -> io::Result<()> {
        if self.json || warnings.is_empty() {
            return Ok(());
        }
        writeln!(self.err, "{warnings}")
    }
}

/// Asks the daemon; `None` when none answers. Members of a list go to `each`.
pub(super) fn ask(
    config: &Config,
    request: &Request,
    each: &mut dyn FnMut(Value) -> io::Result<()>,
) -> Result<Option<Value>, CliError> {
    let mut broken = None;
    let answer = Client::connect(&config.control.socket).and_then(|client| {
        client.stream(request, &mut |value| {
            each(value).map_err(|error| {
                let kind = error.kind();
                broken = Some(error);
                kind.into()
            })
        })
    });
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::NotRunning { .. }) => Ok(None),
        Err(ClientError::Failed(failure)) => Err(failure.into()),
        Err(error) => match broken {
            Some(output) => Err(output.into()),
            None => {
                let failure = Failure::failed(
                    error.to_string(),
                    "look at the daemon's log, and run this as the daemon's user (root)",
                );
                Err(match error {
                    ClientError::BrokeOff(_) => CliError::BrokeOff(failure),
                    _ => failure.into(),
                })
            }
        },
    }
}

/// Asks the daemon, which must be up.
pub(super) fn demand<T: DeserializeOwned>(
    config: &Config,
    request: &Request,
) -> Result<T, CliError> {
    match ask(config, request, &mut |_| Ok(()))? {
        Some(value) => Ok(serde_json::from_value(value)?),
        None => Err(Failure::failed(
            format!("no daemon answers on {}", config.control.socket.display()),
            "start it with `egress run`, or check [control] socket",
        )
        .into()),
    }
}

/// Asks the daemon for a list; `None` when none answers.
pub(super) fn list<T: DeserializeOwned>(
    config: &Config,
    request: &Request,
) -> Result<Option<Vec<T>>, CliError> {
    let mut found = Vec::new();
    let answer = ask(config, request, &mut |value| {
        found.push(serde_json::from_value(value)?);
        Ok(())
    })?;
    Ok(answer.map(|_| found))
}
