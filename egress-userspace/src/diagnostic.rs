//! Errors and warnings about a file: where, why, and what to do about it.
//!
//! A [`Report`] collects everything that is wrong with one [`Source`]; nothing stops at the first mistake
//! (SAFE-5: errors point at line and column).

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The largest file that is read: 16 MiB hold far more than 65,535 zones.
pub const MAX_SOURCE_BYTES: u64 = 16 << 20;

/// Longer source lines are not repeated in messages.
const MAX_SHOWN_LINE: usize = 200;

/// A half-open range of bytes in a [`Source`].
pub type Span = Range<usize>;

/// The text of a file with the name to call it by.
#[derive(Clone, Debug)]
pub struct Source {
    name: String,
    text: String,
    line_starts: Vec<usize>,
}

impl Source {
    /// A source that is in memory already.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let line_starts = std::iter::once(0)
            .chain(
                text.bytes()
                    .enumerate()
                    .filter(|(_, byte)| *byte == b'\n')
                    .map(|(at, _)| at + 1),
            )
            .collect();
        Self {
            name: name.into(),
            text,
            line_starts,
        }
    }

    /// Reads a file of at most [`MAX_SOURCE_BYTES`].
    pub fn read(path: &Path) -> Result<Self, SourceError> {
        let failed = |source| SourceError::Unreadable {
            path: path.display().to_string(),
            source,
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(failed)?;
        file.take(MAX_SOURCE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAX_SOURCE_BYTES {
            return Err(SourceError::TooLarge {
                path: path.display().to_string(),
            });
        }
        let text = String::from_utf8(bytes).map_err(|error| SourceError::NotText {
            path: path.display().to_string(),
            offset: error.utf8_error().valid_up_to(),
        })?;
        Ok(Self::new(path.display().to_string(), text))
    }

    /// The name of the file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column of a byte, both from 1; the column counts characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let offset = self.floor(offset);
        let line = self.line_starts.partition_point(|start| *start <= offset);
        let start = line
            .checked_sub(1)
            .and_then(|at| self.line_starts.get(at))
            .copied()
            .unwrap_or(0);
        let column = self
            .text
            .get(start..offset)
            .map_or(0, |before| before.chars().count());
        (line.max(1), column + 1)
    }

    /// The line (from 1) without its end.
    fn line(&self, line: usize) -> &str {
        let start = line
            .checked_sub(1)
            .and_then(|at| self.line_starts.get(at))
            .copied()
            .unwrap_or(0);
        self.text
            .get(start..)
            .and_then(|rest| rest.lines().next())
            .unwrap_or("")
    }

    /// The nearest character boundary at or before `offset`, within the text.
    fn floor(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }
}

/// Why a file could not be taken in at all.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It could not be opened or read.
    #[error("cannot read {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// It is larger than [`MAX_SOURCE_BYTES`].
    #[error("{path} is larger than {} MiB", MAX_SOURCE_BYTES >> 20)]
    TooLarge {
        /// The file.
        path: String,
    },
    /// It is not UTF-8.
    #[error("{path} is not UTF-8 text (byte {offset})")]
    NotText {
        /// The file.
        path: String,
        /// The first byte that is not part of a character.
        offset: usize,
    },
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The file is not accepted.
    Error,
    /// The file is accepted.
    Warning,
}

/// One thing to say about a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostic {
    /// Error or warning.
    pub severity: Severity,
    /// The file's name.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong, and what was expected.
    pub reason: String,
    /// What to do about it.
    pub remedy: String,
    /// The line itself.
    pub text: String,
    /// How many characters of the line are meant, at least 1.
    pub length: usize,
}

impl Diagnostic {
    /// Describes `span` of `source`.
    pub fn new(
        severity: Severity,
        source: &Source,
        span: &Span,
        reason: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (line, column) = source.position(span.start);
        let text = source.line(line);
        let rest_of_line = text.chars().count().saturating_sub(column - 1);
        let end = source.floor(span.end);
        let wanted = source
            .text
            .get(source.floor(span.start)..end)
            .map_or(0, |meant| meant.chars().count());
        Self {
            severity,
            file: source.name.clone(),
            line,
            column,
            reason: reason.into(),
            remedy: remedy.into(),
            text: if text.len() > MAX_SHOWN_LINE {
                String::new()
            } else {
                text.to_owned()
            },
            length: wanted.min(rest_of_line).max(1),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(
            f,
            "{}:{}:{}: {severity}: {}",
            self.file, self.line, self.column, self.reason
        )?;
        if !self.text.trim().is_empty() {
            // Tabs stay tabs under the caret line, so that both lines are as wide.
            let indent: String = self
                .text
                .chars()
                .take(self.column - 1)
                .map(|c| if c == '\t' { '\t' } else { ' ' })
                .collect();
            let number = self.line.to_string();
            write!(f, "\n  {number} | {}", self.text)?;
            write!(
                f,
                "\n  {:width$} | {indent}{}",
                "",
                "^".repeat(self.length),
                width = number.len()
            )?;
        }
        if !self.remedy.is_empty() {
            write!(f, "\n  = {}", self.remedy)?;
        }
        Ok(())
    }
}

/// Everything there is to say about one or more files, in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// Whether anything forbids the file.
    pub fn has_errors(&self) -> bool {
        self.0
            .iter()
            .any(|diagnostic| diagnostic.severity == Severity::Error)
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds what was found elsewhere.
    pub fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, diagnostic) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// Collects what is found about one source, by everyone who holds a reference.
#[derive(Debug)]
pub struct Report<'s> {
    source: &'s Source,
    found: RefCell<Vec<(usize, Diagnostic)>>,
    incomplete: Cell<bool>,
    /// Lines that are not valid TOML, and the first from which on nothing is.
    broken: RefCell<BTreeSet<usize>>,
    broken_from: Cell<Option<usize>>,
}

impl<'s> Report<'s> {
    /// Nothing found yet.
    pub fn new(source: &'s Source) -> Self {
        Self {
            source,
            found: RefCell::new(Vec::new()),
            incomplete: Cell::new(false),
            broken: RefCell::default(),
            broken_from: Cell::new(None),
        }
    }

    /// Parts of the file could not be read: from now on, what seems missing is not reported.
    pub fn mark_incomplete(&self) {
        self.incomplete.set(true);
    }

    /// The line of `span` is not valid: what is found on it from now on only follows from that, and is not reported.
    pub fn mark_broken(&self, span: &Span) {
        self.mark_incomplete();
        let (line, _) = self.source.position(span.start);
        self.broken.borrow_mut().insert(line);
    }

    /// The same for everything from the line of `span` on.
    pub fn mark_broken_from(&self, span: &Span) {
        self.mark_incomplete();
        let (line, _) = self.source.position(span.start);
        self.broken_from.set(Some(line));
    }

    /// Whether parts of the file could not be read.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.get()
    }

    /// The file under examination.
    pub fn source(&self) -> &'s Source {
        self.source
    }

    /// Notes an error.
    pub fn error(&self, span: &Span, reason: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Error, span, reason.into(), remedy.into());
    }

    /// Notes a warning.
    pub fn warning(&self, span: &Span, reason: impl Into<String>, remedy: impl Into<String>) {
        self.add(Severity::Warning, span, reason.into(), remedy.into());
    }

    fn add(&self, severity: Severity, span: &Span, reason: String, remedy: String) {
        let (line, _) = self.source.position(span.start);
        if self.broken.borrow().contains(&line)
            || self.broken_from.get().is_some_and(|from| line >= from)
        {
            return;
        }
        let diagnostic = Diagnostic::new(severity, self.source, span, reason, remedy);
        self.found.borrow_mut().push((span.start, diagnostic));
    }

    /// `line 12`, for messages that point at a second place.
    pub fn line(&self, span: &Span) -> String {
        format!("line {}", self.source.position(span.start).0)
    }

    /// Whether an error was noted so far.
    pub fn has_errors(&self) -> bool {
        self.found
            .borrow()
            .iter()
            .any(|(_, diagnostic)| diagnostic.severity == Severity::Error)
    }

    /// Everything found, in the order of the text.
    pub fn finish(self) -> Diagnostics {
        let mut found = self.found.into_inner();
        found.sort_by_key(|(start, _)| *start);
        Diagnostics(
            found
                .into_iter()
                .map(|(_, diagnostic)| diagnostic)
                .collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diagnostic_names_line_and_column_and_underlines_the_span() {
        let source = Source::new("a.toml", "one = 1\n\ttwö = 22\n");
        let span = 16..18;
        let found = Diagnostic::new(Severity::Error, &source, &span, "too much", "write less");
        assert_eq!(
            found.to_string(),
            "a.toml:2:8: error: too much\n  2 | \ttwö = 22\n    | \t      ^^\n  = write less"
        );
    }

    #[test]
    fn spans_outside_the_text_are_clamped() {
        let source = Source::new("a.toml", "é");
        let found = Diagnostic::new(Severity::Warning, &source, &(1..900), "r", "");
        assert_eq!((found.line, found.column, found.length), (1, 1, 1));
        assert_eq!(source.position(usize::MAX), (1, 2));
    }

    #[test]
    fn a_report_is_sorted_by_place() {
        let source = Source::new("a.toml", "a\nb\nc\n");
        let report = Report::new(&source);
        report.error(&(4..5), "third", "");
        report.warning(&(0..1), "first", "");
        assert!(report.has_errors());
        let lines: Vec<_> = report.finish().0.iter().map(|d| d.line).collect();
        assert_eq!(lines, [1, 3]);
    }
}
