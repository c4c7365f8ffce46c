//! `egress run`: the daemon.

use super::context::Context;
use super::{CliError, Exit};

pub(super) fn run(context: &mut Context<'_>) -> Result<Exit, CliError> {
    let (config, warnings) = context.config()?;
    context.warn(&warnings)?;
    context.backend.run(context.config_path(), config)?;
    Ok(Exit::Done)
}
