//! `egress detach`: takes everything off again (SAFE-4).

use serde::Serialize;

use super::context::{self, Context};
use super::{CliError, Exit};
use crate::control::{Failure, Request};

/// `egress detach --json`.
#[derive(Debug, Serialize)]
struct Detached {
    /// What was removed, one line each.
    removed: Vec<String>,
}

pub(super) fn run(context: &mut Context<'_>) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    // A running daemon would put its hooks back: it takes them off itself, and ends.
    let removed = match context::ask(&config, &Request::Detach, &mut |_| Ok(()))? {
        Some(answer) => serde_json::from_value(answer)?,
        None => context.backend.detach(&config).map_err(Failure::from)?,
    };
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
