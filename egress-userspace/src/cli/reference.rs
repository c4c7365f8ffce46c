//! `egress completions` and `egress manual`: what the command line knows of itself, for shells and for man(1).

use std::fs;
use std::path::PathBuf;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::context::Context;
use super::{Cli, CliError, Exit};

/// The shell to complete in.
#[derive(Debug, clap::Args)]
pub(super) struct Completions {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Where manual pages go.
#[derive(Debug, clap::Args)]
pub(super) struct Manual {
    /// An existing directory, for one page a command.
    directory: PathBuf,
}

pub(super) fn completions(context: &mut Context<'_>, args: &Completions) -> Result<Exit, CliError> {
    // It panics where it cannot write, and whoever reads it may have seen enough.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "egress", &mut script);
    context.out.write_all(&script)?;
    Ok(Exit::Done)
}

pub(super) fn manual(args: &Manual) -> Result<Exit, CliError> {
    // One left from an earlier version would tell of commands that are gone.
    for entry in fs::read_dir(&args.directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("egress") && name.ends_with(".1") {
            fs::remove_file(&path)?;
        }
    }
    clap_mangen::generate_to(Cli::command(), &args.directory)?;
    Ok(Exit::Done)
}
