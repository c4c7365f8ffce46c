//! `egress apply -f FILE [--dry-run]`: what would change, and the change.

use std::path::{Path, PathBuf};

use super::context::{self, Context};
use super::{CliError, Exit};
use crate::control::protocol::Applied;
use crate::control::{Failure, Request};
use crate::controller::plan_file;
use crate::diagnostic::Source;
use crate::resolve;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The resources file.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Print the plan and change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(context: &mut Context<'_>, args: &Args) -> Result<Exit, CliError> {
    let (config, _) = context.config()?;
    let source = Source::read(&args.file).map_err(Failure::from)?;
    let request = Request::Apply {
        file: source.name().to_owned(),
        text: source.text().to_owned(),
        dry_run: args.dry_run,
    };
    let own_file = config.resources.file.clone();
    let mut applied: Applied = match context::ask(&config, &request, &mut |_| Ok(()))? {
        Some(answer) => serde_json::from_value(answer)?,
        // A plan needs no daemon, only what is stored.
        None if args.dry_run => {
            let local = context.local(config)?;
            let (plan, warnings) = plan_file(&source, &local.stored, &local.config)?;
            let addresses = resolve::addresses(plan.after(), &local.config);
            context.backend.check(&addresses).map_err(Failure::from)?;
            Applied {
                plan,
                warnings,
                ..Applied::default()
            }
        }
        None => context::demand(&config, &request)?,
    };
    if applied.applied && own_file.is_some_and(|own| !same_file(&own, &args.file)) {
        applied.notes.push(
            "the daemon applies the file of [resources] again at its next start and on SIGHUP: make this change there too"
                .into(),
        );
    }
    context.warn(&applied.warnings)?;
    context.print(&applied, || {
        let mut text = applied.plan.to_string();
        for note in &applied.notes {
            text.push_str(&format!("\nnote: {note}"));
        }
        if applied.applied && !applied.plan.is_empty() {
            text.push_str("\napplied");
        }
        text
    })?;
    Ok(Exit::Done)
}

fn same_file(one: &Path, other: &Path) -> bool {
    match (one.canonicalize(), other.canonicalize()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
