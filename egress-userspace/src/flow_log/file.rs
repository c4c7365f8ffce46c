//! The file that lines go to: appended to, set aside when it is large, and never left with half a line.
//!
//! Setting files aside is done here and not by a crate: what we ask for is what happens when it fails (the disk is
//! full, the directory is gone, somebody else has moved the file), and that is most of this file. `logrotate` may
//! move or remove the file as well; nobody has to be told.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::config::{FlowLog, Target};

/// The longest line that is looked for at the end of a file, bytes; ours are shorter by far.
const LONGEST: u64 = 65_536;

/// Where lines go.
pub(super) enum Output {
    /// A descriptor that is open as long as the process.
    Stdout(RawFd),
    File(LogFile),
}

/// What of some lines was written, and what went wrong then.
#[derive(Debug)]
pub(super) struct Unwritten {
    /// Bytes of whole lines that were written.
    pub(super) written: usize,
    pub(super) error: io::Error,
}

impl Output {
    pub(super) fn of(log: &FlowLog) -> Self {
        match &log.target {
            Target::Stdout => Self::Stdout(libc::STDOUT_FILENO),
            Target::File(path) => Self::File(LogFile {
                path: path.clone(),
                rotate: log.rotate,
                keep: log.keep,
                open: None,
                stuck: false,
            }),
        }
    }

    /// Writes whole lines.
    ///
    /// # Errors
    /// Lines before [`Unwritten::written`] are written, nothing of the others is.
    pub(super) fn write(&mut self, lines: &[u8]) -> Result<(), Unwritten> {
        match self {
            Self::Stdout(descriptor) => {
                // Without the library's own buffer, which would keep what it could not write.
                let mut file = Descriptor(*descriptor);
                let (written, outcome) = all(&mut file, lines);
                outcome.map_err(|error| Unwritten {
                    written: whole(lines, written),
                    error,
                })
            }
            Self::File(file) => file.write(lines),
        }
    }

    /// What is named in messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Stdout(_) => "standard output".into(),
            Self::File(file) => file.path.display().to_string(),
        }
    }
}

/// An open descriptor, written to as it is.
struct Descriptor(RawFd);

impl io::Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: as many bytes as are there; a descriptor that is not open is refused.
        let written = unsafe { libc::write(self.0, bytes.as_ptr().cast(), bytes.len()) };
        usize::try_from(written).map_err(|_| io::Error::last_os_error())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is set aside when it is large.
pub(super) struct LogFile {
    path: PathBuf,
    rotate: u64,
    keep: u32,
    open: Option<Open>,
    /// It could not be set aside; said once.
    stuck: bool,
}

struct Open {
    file: File,
    /// Device and inode.
    identity: (u64, u64),
    size: u64,
}

impl LogFile {
    fn write(&mut self, lines: &[u8]) -> Result<(), Unwritten> {
        let nothing = |error| Unwritten { written: 0, error };
        if self.is_gone() {
            self.open = None;
        }
        let size = self.open().map_err(nothing)?.size;
        if size > 0 && size + lines.len() as u64 > self.rotate {
            self.set_aside();
        }
        let open = self.open().map_err(nothing)?;
        let (written, outcome) = all(&mut open.file, lines);
        let Err(error) = outcome else {
            open.size += written as u64;
            return Ok(());
        };
        let written = whole(lines, written);
        open.size += written as u64;
        // Half a line is taken back: now, or where that fails by whoever opens the file next.
        drop(open.file.set_len(open.size));
        self.open = None;
        Err(Unwritten { written, error })
    }

    /// Whether somebody has moved or removed the file.
    fn is_gone(&self) -> bool {
        self.open.as_ref().is_some_and(|open| {
            fs::metadata(&self.path).map_or(true, |now| (now.dev(), now.ino()) != open.identity)
        })
    }

    fn open(&mut self) -> io::Result<&mut Open> {
        let open = match self.open.take() {
            Some(open) => open,
            None => open(&self.path)?,
        };
        Ok(self.open.insert(open))
    }

    /// Renames the file to `.1`, that one to `.2` and so on; the oldest one goes. Where that fails, the file grows on.
    fn set_aside(&mut self) {
        let outcome = set_aside(&self.path, self.keep);
        match outcome {
            Ok(()) => {
                self.open = None;
                self.stuck = false;
            }
            Err(error) if !self.stuck => {
                tracing::error!(
                    "{} cannot be set aside, and grows on: {error}",
                    self.path.display()
                );
                self.stuck = true;
            }
            Err(_) => {}
        }
    }
}

fn open(path: &Path) -> io::Result<Open> {
    if let Some(directory) = path.parent().filter(|directory| !directory.exists()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(directory)?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o640)
        // Nobody waits for the other end of a pipe.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let size = end_of_lines(&mut file, found.len())?;
    if size != found.len() {
        file.set_len(size)?;
    }
    Ok(Open {
        file,
        identity: (found.dev(), found.ino()),
        size,
    })
}

/// Where the last whole line ends: a daemon that was killed may have left half of one.
fn end_of_lines(file: &mut File, size: u64) -> io::Result<u64> {
    let from = size.saturating_sub(LONGEST);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(LONGEST).read_to_end(&mut tail)?;
    match tail.iter().rposition(|byte| *byte == b'\n') {
        Some(at) => Ok(from + at as u64 + 1),
        None if from == 0 => Ok(0),
        None => Err(io::Error::other(
            "it does not consist of lines: it is somebody else's file",
        )),
    }
}

/// The name of the `nth` file that was set aside.
fn aside(path: &Path, nth: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{nth}"));
    name.into()
}

fn set_aside(path: &Path, keep: u32) -> io::Result<()> {
    if keep == 0 {
        return fs::remove_file(path);
    }
    for nth in (1..keep).rev() {
        match fs::rename(aside(path, nth), aside(path, nth + 1)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::rename(path, aside(path, 1))
}

/// Writes all of it, or says how much was.
fn all(to: &mut impl io::Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match to.write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

/// Bytes of the whole lines among the first `written`.
fn whole(lines: &[u8], written: usize) -> usize {
    let written = lines.get(..written).unwrap_or(lines);
    written
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(path: &Path, rotate: u64, keep: u32) -> Output {
        Output::of(&FlowLog {
            target: Target::File(path.to_owned()),
            rotate,
            keep,
            ..FlowLog::default()
        })
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn obs_4_files_are_set_aside_by_size_and_none_loses_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/flows.log");
        let mut output = log(&path, 30, 2);
        for number in 0..10 {
            output
                .write(format!("line {number:04}\n").as_bytes())
                .unwrap();
        }
        // Three lines of ten bytes each.
        assert_eq!(read(&path), "line 0009\n");
        assert_eq!(read(&aside(&path, 1)), "line 0006\nline 0007\nline 0008\n");
        assert_eq!(read(&aside(&path, 2)), "line 0003\nline 0004\nline 0005\n");
        assert!(!aside(&path, 3).exists());
        // What is longer than a file may be stands alone.
        output
            .write(&[b"x".repeat(50), b"\n".to_vec()].concat())
            .unwrap();
        assert_eq!(read(&aside(&path, 1)), "line 0009\n");
        output.write(b"after\n").unwrap();
        assert_eq!(read(&path), "after\n");
    }

    #[test]
    fn obs_4_a_file_that_somebody_moves_or_removes_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.log");
        let mut output = log(&path, 1_000, 2);
        output.write(b"one\n").unwrap();
        fs::rename(&path, directory.path().join("moved")).unwrap();
        output.write(b"two\n").unwrap();
        fs::remove_file(&path).unwrap();
        output.write(b"three\n").unwrap();
        assert_eq!(read(&directory.path().join("moved")), "one\n");
        assert_eq!(read(&path), "three\n");
    }

    #[test]
    fn obs_4_half_a_line_of_a_daemon_that_was_killed_is_taken_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.log");
        for (left, expected) in [
            ("whole\nhal", "whole\nnext\n"),
            ("hal", "next\n"),
            ("whole\n", "whole\nnext\n"),
            ("", "next\n"),
        ] {
            fs::write(&path, left).unwrap();
            log(&path, 1_000, 2).write(b"next\n").unwrap();
            assert_eq!(read(&path), expected);
        }
        // Somebody else's file is left alone.
        fs::write(&path, [0; 100_000]).unwrap();
        assert!(log(&path, 1_000_000, 2).write(b"next\n").is_err());
        assert_eq!(fs::metadata(&path).unwrap().len(), 100_000);
    }

    #[test]
    fn obs_4_what_cannot_be_written_is_said_and_nothing_of_it_stays() {
        let directory = tempfile::tempdir().unwrap();
        let mut output = log(directory.path(), 1_000, 2);
        assert!(output.write(b"one\n").is_err(), "a directory");
        let mut output = log(Path::new("/dev/null/flows.log"), 1_000, 2);
        assert!(output.write(b"one\n").is_err());
        assert_eq!(whole(b"one\ntwo\nthree\n", 9), 8);
        assert_eq!(whole(b"one\ntwo\n", 3), 0);
        assert_eq!(whole(b"one\n", 4), 4);
    }
}
