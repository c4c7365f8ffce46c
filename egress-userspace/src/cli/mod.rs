//! The command line. One file a command; what they share is here.
//!
//! Answers go to standard output, diagnostics to standard error, both as JSON with `--json`. Exit codes: 0 done,
//! 1 failed, 2 wrong usage or invalid configuration.

mod apply;
mod backend;
mod context;
mod detach;
mod endpoint;
mod filter;
mod flows;
mod origins;
mod place;
mod pool;
mod pools;
mod probe;
mod reference;
mod run;
mod server;
mod status;
mod table;
mod token;
mod top;
mod validate;
mod why;
mod zone;
mod zones;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use backend::Backend;
use context::Context;

use crate::config;
use crate::control::Failure;

/// Dedicated egress IPs for Linux.
#[derive(Debug, Parser)]
#[command(name = "egress", version, about, max_term_width = 100)]
struct Cli {
    /// The server's configuration: socket, store and pins are found there.
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
    /// Print JSON for programs instead of text for people.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground.
    ///
    /// SIGHUP reads configuration and resources again. SIGTERM ends the daemon and leaves the data plane
    /// translating. Prints `ready` on standard error once hooks, guard and configuration are in force.
    Run,
    /// Check configuration and resources; print line, column and reason of every mistake.
    Validate(validate::Args),
    /// Plan and apply resources as a diff.
    Apply(apply::Args),
    /// Show hooks, tables and counters; exit 0 only if all hooks are in place.
    Status(place::Place),
    /// List live flows.
    Flows(filter::Args),
    /// List connection counts by egress IP and origin.
    Origins(filter::Args),
    /// List pools and their addresses.
    Pools(filter::Args),
    /// List zones and their settings.
    Zones(filter::Args),
    /// Change a zone's setting.
    Zone {
        #[command(subcommand)]
        change: zone::Change,
    },
    /// Keep new flows from an egress IP or a pool, or let them in again.
    Pool {
        #[command(subcommand)]
        change: pool::Change,
    },
    /// List servers, keep new connections from one, or give away what a fenced one holds.
    Server {
        #[command(subcommand)]
        change: server::Change,
    },
    /// Make, list and revoke tokens for the HTTP API.
    Token {
        #[command(subcommand)]
        change: token::Change,
    },
    /// Explain which way a packet leaves, and why.
    Why(why::Args),
    /// Connect to an origin from every egress IP of a pool, and say which ones it lets in.
    Probe(probe::Args),
    /// Watch pools, egress IPs, origins, rates and refusals live.
    Top(top::Args),
    /// Remove programs, pins and helper interfaces.
    Detach(place::Place),
    /// Print the completion script of a shell.
    Completions(reference::Completions),
    /// Write manual pages into a directory.
    #[command(hide = true)]
    Manual(reference::Manual),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It did what it should.
    Done,
    /// It failed, or what it looked at is not as it should be.
    Failed,
    /// It was used wrongly, or a configuration is invalid.
    Usage,
}

impl Exit {
    /// The process's exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
        }
    }
}

/// Why a command did not come to its end.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("{0}")]
    Failure(#[from] Failure),
    /// The daemon was there and went away.
    #[error("{0}")]
    BrokeOff(Failure),
    #[error(transparent)]
    Output(#[from] io::Error),
    #[error("the answer cannot be understood: {0}")]
    Json(#[from] serde_json::Error),
}

/// Runs the command of this process.
pub fn main(backend: &dyn Backend) -> ExitCode {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr());
    let exit = run_from(std::env::args_os(), backend, &mut out, &mut err);
    ExitCode::from(exit.code())
}

/// Runs a command: `args` begin with the program's name.
pub fn run_from(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    backend: &dyn Backend,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Exit {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(message) => {
            let text = message.render().to_string();
            return if message.use_stderr() {
                let told = if args.iter().any(|word| word == "--json") {
                    let reason = text.trim_start_matches("error: ").trim_end();
                    let failure = Failure::usage(reason, "");
                    format!("{}\n", serde_json::json!({ "error": failure }))
                } else {
                    text
                };
                drop(err.write_all(told.as_bytes()));
                Exit::Usage
            } else {
                drop(out.write_all(text.as_bytes()));
                Exit::Done
            };
        }
    };
    let json = cli.json;
    let mut context = Context::new(cli.config, json, backend, out, err);
    let ended = dispatch(cli.command, &mut context).and_then(|exit| {
        context.out.flush()?;
        Ok(exit)
    });
    match ended {
        Ok(exit) => exit,
        // Whoever read our output has seen enough, as `head` does.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Done,
        Err(CliError::Failure(failure) | CliError::BrokeOff(failure)) => {
            drop(context.report(&failure));
            if failure.usage {
                Exit::Usage
            } else {
                Exit::Failed
            }
        }
        Err(error) => {
            drop(context.report(&Failure::failed(error.to_string(), "")));
            Exit::Failed
        }
    }
}

fn dispatch(command: Command, context: &mut Context<'_>) -> Result<Exit, CliError> {
    match command {
        Command::Run => run::run(context),
        Command::Validate(args) => validate::run(context, &args),
        Command::Apply(args) => apply::run(context, &args),
        Command::Status(place) => status::run(context, &place),
        Command::Flows(args) => flows::run(context, &args.into()),
        Command::Origins(args) => origins::run(context, &args.into()),
        Command::Pools(args) => pools::run(context, &args.into()),
        Command::Zones(args) => zones::run(context, &args.into()),
        Command::Zone { change } => zone::run(context, change),
        Command::Server { change } => server::run(context, change),
        Command::Pool { change } => pool::run(context, change),
        Command::Token { change } => token::run(context, change),
        Command::Why(args) => why::run(context, args),
        Command::Probe(args) => probe::run(context, &args),
        Command::Top(args) => top::run(context, &args),
        Command::Detach(place) => detach::run(context, &place),
        Command::Completions(args) => reference::completions(context, &args),
        Command::Manual(args) => reference::manual(&args),
    }
}

#[cfg(test)]
mod tests;
