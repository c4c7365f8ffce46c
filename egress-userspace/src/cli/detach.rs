//! `egress detach`: takes everything off again (SAFE-4).

use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::context::{self, Context};
use super::place::Place;
use super::{CliError, Exit};
use crate::config::Config;
use crate::control::{Failure, Request, Server};
use crate::dataplane::api::DataPlaneError;

/// How long a daemon may take to start before it is asked in vain.
const PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// `egress detach --json`.
#[derive(Debug, Serialize)]
struct Detached {
    /// What was removed, one line each.
    removed: Vec<String>,
}

pub(super) fn run(context: &mut Context<'_>, place: &Place) -> Result<Exit, CliError> {
    let config = place.config(context)?;
    let removed = take_off(context, &config)?;
    let detached = Detached { removed };
    context.print(&detached, || {
        if detached.removed.is_empty() {
            return "nothing to remove".to_owned();
        }
        detached
            .removed
            .iter()
            .map(|line| format!("removed {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    })?;
    Ok(Exit::Done)
}

/// A running daemon would put its hooks back: it takes them off itself, and ends. One that is just starting is waited
/// for; one that then fails to start leaves the work to us.
fn take_off(context: &Context<'_>, config: &Config) -> Result<Vec<String>, CliError> {
    let end = Instant::now() + PATIENCE;
    loop {
        let last = match context::ask(config, &Request::Detach, &mut |_| Ok(())) {
            Ok(Some(answer)) => return Ok(serde_json::from_value(answer)?),
            Ok(None) if Server::is_claimed(&config.control.socket) => {
                // It holds the socket's lock and does not serve it yet, or is about to end.
                Failure::failed(
                    format!(
                        "a daemon holds {} and does not answer",
                        config.control.socket.display()
                    ),
                    "look at its log, and stop it",
                )
                .into()
            }
            Ok(None) => match context.backend.detach(config) {
                Ok(removed) => return Ok(removed),
                // Its pins are somebody's: perhaps a daemon that has come up meanwhile.
                Err(error @ DataPlaneError::Refused { .. })
                    if Server::is_claimed(&config.control.socket) =>
                {
                    Failure::from(error).into()
                }
                Err(error) => return Err(Failure::from(error).into()),
            },
            Err(error @ CliError::BrokeOff(_)) => error,
            Err(error) => return Err(error),
        };
        if Instant::now() >= end {
            return Err(last);
        }
        thread::sleep(PAUSE);
    }
}
