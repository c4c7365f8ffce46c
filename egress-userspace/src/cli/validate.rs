//! `egress validate FILE...`: is every file in order?

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::context::Context;
use super::{CliError, Exit};
use crate::config::{self, Config};
use crate::diagnostic::{Diagnostics, Report, Source};
use crate::{document, resource};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Server configurations and resources files, told apart by their sections. Resources are checked against
    /// the server configuration that stands beside them.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum FileKind {
    ServerConfiguration,
    Resources,
}

impl FileKind {
    const fn words(self) -> &'static str {
        match self {
            Self::ServerConfiguration => "server configuration",
            Self::Resources => "resources",
        }
    }
}

/// The verdict on one file: an element of `egress validate --json`.
#[derive(Debug, Serialize)]
struct Verdict {
    file: String,
    kind: Option<FileKind>,
    ok: bool,
    diagnostics: Diagnostics,
    /// Why the file could not be read at all.
    unreadable: Option<String>,
}

pub(super) fn run(context: &mut Context<'_>, args: &Args) -> Result<Exit, CliError> {
    let sources: Vec<_> = args
        .files
        .iter()
        .map(|path| (path, Source::read(path)))
        .collect();
    // Resources are checked against a server's configuration when exactly one is given.
    let mut configs = sources.iter().filter_map(|(path, source)| {
        let source = source.as_ref().ok()?;
        (kind(source) == Some(FileKind::ServerConfiguration))
            .then(|| Config::parse(source, directory(path)).0)
            .flatten()
    });
    let config = configs.next().filter(|_| configs.next().is_none());
    let verdicts: Vec<Verdict> = sources
        .iter()
        .map(|(path, source)| match source {
            Ok(source) => judge(path, source, config.as_ref()),
            Err(error) => Verdict {
                file: path.display().to_string(),
                kind: None,
                ok: false,
                diagnostics: Diagnostics::default(),
                unreadable: Some(error.to_string()),
            },
        })
        .collect();
    for verdict in &verdicts {
        if let Some(reason) = verdict.unreadable.as_ref().filter(|_| !context.json) {
            writeln!(context.err, "error: {reason}")?;
        }
        context.warn(&verdict.diagnostics)?;
    }
    context.print(&verdicts, || {
        let ok = verdicts.iter().filter(|verdict| verdict.ok);
        let line = |verdict: &Verdict| {
            format!(
                "ok {} ({})",
                verdict.file,
                verdict.kind.map_or("empty", FileKind::words)
            )
        };
        ok.map(line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if verdicts.iter().all(|verdict| verdict.ok) {
        Exit::Done
    } else {
        Exit::Usage
    })
}

fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

fn judge(path: &Path, source: &Source, config: Option<&Config>) -> Verdict {
    let kind = kind(source);
    let diagnostics = match kind {
        Some(FileKind::ServerConfiguration) => Config::parse(source, directory(path)).1,
        Some(FileKind::Resources) => resource::parse(source, config).1,
        None => unknown_kind(source),
    };
    Verdict {
        file: source.name().to_owned(),
        kind,
        ok: !diagnostics.has_errors(),
        diagnostics,
        unreadable: None,
    }
}

/// What most of the file's sections belong to; `None` when there are none that either kind knows.
fn kind(source: &Source) -> Option<FileKind> {
    let report = Report::new(source);
    let document = document::parse(&report);
    let keys: Vec<&str> = document
        .get_ref()
        .keys()
        .map(|key| key.get_ref().as_ref())
        .collect();
    let count = |known: &[&str]| keys.iter().filter(|key| known.contains(*key)).count();
    let (server, resources) = (count(&config::SECTIONS), count(&resource::SECTIONS));
    if server == 0 && resources == 0 {
        None
    } else if server >= resources {
        Some(FileKind::ServerConfiguration)
    } else {
        Some(FileKind::Resources)
    }
}

fn unknown_kind(source: &Source) -> Diagnostics {
    let report = Report::new(source);
    drop(document::parse(&report));
    if !report.has_errors() {
        report.error(
            &(0..0),
            "this is neither a server configuration nor a resources file: it has none of their sections",
            "a server configuration has [dataplane]; a resources file has [[account]], [[pool]] or [[zone]]",
        );
    }
    report.finish()
}
