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
                if let Err(hidden) = self.backend.check_pins(&config) {
                    let remedy = hidden.remedy().unwrap_or_default();
                    writeln!(self.err, "note: {hidden}\n  = {remedy}")?;
                }
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
    let answer = Client::connect_for(&config.control.socket, request).and_then(|client| {
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
            None => Err(without_answer(&error, request)),
        },
    }
}

/// What to say where a daemon is there and gives no answer.
fn without_answer(error: &ClientError, request: &Request) -> CliError {
    let mut remedy = match error {
        ClientError::Silent { pid, .. } => format!(
            "{} starting, stopped or stuck: look at its log, kill it (SIGKILL) and start it again; the data plane goes on meanwhile, \
             and takes no changes",
            pid.map_or_else(|| "it is".to_owned(), |pid| format!("process {pid} is"))
        ),
        ClientError::Endless { .. } => "look at the daemon's log".to_owned(),
        _ => "look at the daemon's log, and run this as the daemon's user (root)".to_owned(),
    };
    let is_under_way = matches!(
        error,
        ClientError::Silent { .. } | ClientError::Endless { .. }
    );
    if is_under_way && !request.only_reads() {
        remedy.push_str("; what was asked for may be done yet: look before you ask again");
    }
    let failure = Failure::failed(error.to_string(), remedy);
    match error {
        ClientError::BrokeOff(_) => CliError::BrokeOff(failure),
        _ => failure.into(),
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
