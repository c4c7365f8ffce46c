//! One daemon a pin directory, and one start at a time in a network namespace.
//!
//! A file under `/run`, named after the pin directory, is locked for as long as its holder lives: the kernel
//! drops the lock however the holder ends, so a SIGKILL leaves nothing to clean up. The file holds the id of its
//! last holder, and goes with `egress detach`. (A lock on the pin directory itself would not do: that directory
//! does not exist before the first start, and is built aside and renamed.)

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::dataplane::api::DataPlaneError;

/// Where lock files are kept.
const DIRECTORY: &str = "/run/egress";

/// How long a holder that was killed may take to let go.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long another instance may take to start: the verifier reads its programs first.
const START: Duration = Duration::from_secs(120);

/// Held for as long as the value lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock of a pin directory.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] that names the pins and the holder, if there is one.
    pub(super) fn take(pin: &Path) -> Result<Self, DataPlaneError> {
        Self::take_file(file_of(pin), pin)
    }

    fn take_file(path: PathBuf, pin: &Path) -> Result<Self, DataPlaneError> {
        let failed = |error| unusable(&path, &error);
        make_directory(&path).map_err(failed)?;
        let mut file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match patiently(&file, PATIENCE) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who cannot be named is still there.
                drop(file.read_to_string(&mut holder));
                return Err(DataPlaneError::Refused {
                    reason: format!(
                        "another egress process (pid {}) uses the pins in {}",
                        if holder.trim().is_empty() {
                            "unknown"
                        } else {
                            holder.trim()
                        },
                        pin.display()
                    ),
                    remedy: "stop it first, or give this instance a directory of its own with [dataplane] pin"
                        .to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if !is_at(&file, &path) {
            // A detach removed the file while we waited for its lock: whoever comes next makes a new one.
            return Self::take_file(path, pin);
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(Self { _file: file, path })
    }

    /// Removes the file. The lock is still held, by a file that nobody finds any more.
    pub(super) fn discard(&self) {
        // A file that stays does no harm.
        drop(fs::remove_file(&self.path));
    }
}

/// The right to start in this thread's network namespace, held until the programs are attached: what two
/// instances may not share is looked for on the interfaces, where only programs are seen that are there already.
#[derive(Debug)]
pub(super) struct Starting {
    _file: File,
    path: PathBuf,
}

impl Starting {
    /// Waits until nobody else is starting here.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] when another start comes to no end.
    pub(super) fn take() -> Result<Self, DataPlaneError> {
        let namespace = fs::metadata("/proc/thread-self/ns/net")
            .map_err(|error| DataPlaneError::failed("looking at the network namespace", error))?;
        let path = Path::new(DIRECTORY).join(format!("start-{}", namespace.ino()));
        let failed = |error| unusable(&path, &error);
        loop {
            make_directory(&path).map_err(failed)?;
            let file = File::options()
                .create(true)
                .write(true)
                .truncate(false)
                .open(&path)
                .map_err(failed)?;
            match patiently(&file, START) {
                // Who had it before has removed the file: whoever comes next makes a new one.
                Ok(()) if !is_at(&file, &path) => {}
                Ok(()) => return Ok(Self { _file: file, path }),
                Err(TryLockError::WouldBlock) => {
                    return Err(DataPlaneError::Refused {
                        reason: format!(
                            "another instance has been starting in this network namespace for {} seconds",
                            START.as_secs()
                        ),
                        remedy: "look at that one's log, and start this one again".to_owned(),
                    });
                }
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        // Still locked, so nobody else's. A file that stays does no harm.
        drop(fs::remove_file(&self.path));
    }
}

/// Makes the directory of a lock file.
fn make_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// A lock file that cannot be made, opened or written, which is for the administrator to change.
fn unusable(path: &Path, error: &io::Error) -> DataPlaneError {
    let directory = path.parent().unwrap_or(path).display();
    DataPlaneError::Refused {
        reason: format!("cannot lock {}: {error}", path.display()),
        remedy: format!(
            "{directory} must be a directory in which this user can make files: run this as root, and see that \
             /run is there and writable (systemd: RuntimeDirectory=egress)"
        ),
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}

/// Tries for a while: a holder that was killed lets go only when the kernel is done with it, and a command it had
/// just started shares its files until it runs.
fn patiently(file: &File, patience: Duration) -> Result<(), TryLockError> {
    const PAUSE: Duration = Duration::from_millis(10);
    let end = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => thread::sleep(PAUSE),
            result => return result,
        }
    }
}

/// The lock file of a pin directory: its path with `-` for `/`, and `-` and `%` escaped.
fn file_of(pin: &Path) -> PathBuf {
    let mut name = String::new();
    for &byte in pin
        .as_os_str()
        .as_bytes()
        .strip_prefix(b"/")
        .unwrap_or_default()
    {
        match byte {
            b'/' => name.push('-'),
            b'-' | b'%' => name.push_str(&format!("%{byte:02x}")),
            byte if byte.is_ascii_graphic() => name.push(char::from(byte)),
            byte => name.push_str(&format!("%{byte:02x}")),
        }
    }
    Path::new(DIRECTORY).join(format!("{name}.lock"))
}

/// The pin directories of this host's instances: everyone that was started since the last boot and not detached.
pub(super) fn known_pins() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| pin_of(entry.ok()?.file_name().as_bytes()))
        .collect()
}

/// The pin directory of a lock file's name: the reverse of [`file_of`].
fn pin_of(name: &[u8]) -> Option<PathBuf> {
    let mut rest = name.strip_suffix(b".lock")?;
    let mut path = vec![b'/'];
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        path.push(match byte {
            b'-' => b'/',
            b'%' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?
            }
            byte => *byte,
        });
    }
    Some(PathBuf::from(OsString::from_vec(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_cannot_be_made_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("egress");
        fs::write(&file, "no directory").unwrap();
        let error = Lock::take_file(file.join("pins.lock"), Path::new("/pins")).unwrap_err();
        let remedy = error.remedy().unwrap_or_default();
        assert!(error.to_string().contains("egress/pins.lock"), "{error}");
        assert!(remedy.contains("must be a directory"), "{error}; {remedy}");
        let good = Lock::take_file(directory.path().join("new/pins.lock"), Path::new("/pins"));
        drop(good.unwrap());
    }

    #[test]
    fn different_pins_have_different_locks() {
        assert_eq!(
            file_of(Path::new("/sys/fs/bpf/egress")),
            Path::new("/run/egress/sys-fs-bpf-egress.lock")
        );
        assert_ne!(file_of(Path::new("/a/b-c")), file_of(Path::new("/a/b/c")));
        assert_ne!(file_of(Path::new("/a/b%2dc")), file_of(Path::new("/a/b-c")));
        for pin in ["/sys/fs/bpf/egress", "/a/b-c", "/a/b%2dc", "/a b/\u{e9}"] {
            let file = file_of(Path::new(pin));
            let name = file.file_name().unwrap();
            assert_eq!(pin_of(name.as_bytes()).unwrap(), Path::new(pin));
        }
        assert_eq!(pin_of(b"egress.sock"), None);
        assert_eq!(pin_of(b"a%2.lock"), None);
    }
}
