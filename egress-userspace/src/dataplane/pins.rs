//! The pin directory: what keeps translating when the daemon is gone (SAFE-2).
//!
//! ```text
//! <pin>/maps/NAME               every map
//! <pin>/links/IFNAME:PROGRAM    every tcx link
//! <pin>/links/PROGRAM           the links of the tracepoints
//! <pin>-new                     a first start that has not come to its end
//! <pin>-gone                    a detach that has not come to its end
//! ```
//!
//! A first start fills `<pin>-new` and renames it; a detach renames `<pin>` to `<pin>-gone` and empties that. So
//! `<pin>` is complete or absent at any instant, and whatever bears one of the two other names is waste that the
//! next start or detach removes. Names under a bpffs must not hold a dot: the kernel reserves those.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::births::Tracepoint;
use super::hook::Hook;
use crate::dataplane::api::DataPlaneError;

/// `BPF_FS_MAGIC` of linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// A pin directory, there or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    root: PathBuf,
}

/// What is at the place of a pin directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing, or an empty directory.
    Absent,
    /// Pins of ours.
    Present,
    /// Something else.
    Foreign,
}

/// A pinned link by what its name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkPin {
    pub(super) interface: String,
    pub(super) hook: Hook,
    pub(super) path: PathBuf,
}

impl Pins {
    pub(super) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The directory itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The last part of its path.
    pub(super) fn name(&self) -> String {
        self.root
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }

    /// Where a first start builds.
    pub(super) fn fresh(&self) -> Self {
        self.beside("-new")
    }

    /// Where a detach moves what it takes off.
    pub(super) fn gone(&self) -> Self {
        self.beside("-gone")
    }

    fn beside(&self, suffix: &str) -> Self {
        let mut root = self.root.clone().into_os_string();
        root.push(suffix);
        Self { root: root.into() }
    }

    pub(super) fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    /// Whether there is a directory for links.
    pub(super) fn has_links(&self) -> bool {
        self.links().is_dir()
    }

    pub(super) fn link(&self, interface: &str, hook: Hook) -> PathBuf {
        self.links()
            .join(format!("{}:{}", escape(interface), hook.program()))
    }

    /// The link of a tracepoint.
    pub(super) fn tracepoint(&self, tracepoint: Tracepoint) -> PathBuf {
        self.links().join(tracepoint.program())
    }

    /// Every link that is pinned for an interface.
    pub(super) fn all_links(&self) -> Result<Vec<LinkPin>, DataPlaneError> {
        let directory = self.links();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("listing", &directory, error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| failed("listing", &directory, error))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some((interface, program)) = name.rsplit_once(':')
                && let Some(hook) = Hook::of_program(program)
            {
                found.push(LinkPin {
                    interface: unescape(interface),
                    hook,
                    path: entry.path(),
                });
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(found)
    }

    /// What is there now.
    pub(super) fn state(&self) -> Result<State, DataPlaneError> {
        let mut entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Absent),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Ok(State::Foreign);
            }
            Err(error) => return Err(failed("looking into", &self.root, error)),
        };
        if self.map("LAYOUT").exists() {
            return Ok(State::Present);
        }
        Ok(if entries.next().is_none() {
            State::Absent
        } else {
            State::Foreign
        })
    }

    /// How many maps are pinned.
    pub(super) fn count_maps(&self) -> Result<usize, DataPlaneError> {
        let directory = self.maps();
        fs::read_dir(&directory)
            .map(Iterator::count)
            .map_err(|error| failed("listing", &directory, error))
    }

    /// Makes the directories.
    pub(super) fn create(&self) -> Result<(), DataPlaneError> {
        for directory in [&self.root, &self.maps(), &self.links()] {
            fs::create_dir_all(directory)
                .map_err(|error| failed("creating directory", directory, error))?;
        }
        Ok(())
    }

    /// Renames to `target`, in one step.
    pub(super) fn rename(&self, target: &Self) -> Result<(), DataPlaneError> {
        fs::rename(&self.root, &target.root).map_err(|error| {
            DataPlaneError::failed(
                format!(
                    "renaming {} to {}",
                    self.root.display(),
                    target.root.display()
                ),
                error,
            )
        })
    }

    /// Removes the directory and every pin in it; false if there was none.
    pub(super) fn remove(&self) -> Result<bool, DataPlaneError> {
        match fs::remove_dir_all(&self.root) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(failed("removing", &self.root, error)),
        }
    }

    /// Checks that a bpffs is mounted where the directory is, or is to be.
    pub(super) fn check_filesystem(&self) -> Result<(), DataPlaneError> {
        let mut place = self.root.as_path();
        let kind = loop {
            match filesystem(place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => match place.parent() {
                    Some(parent) => place = parent,
                    None => return Err(failed("looking at", place, error)),
                },
                result => break result.map_err(|error| failed("looking at", place, error))?,
            }
        };
        if kind != BPF_FS_MAGIC {
            return Err(DataPlaneError::Refused {
                reason: format!(
                    "{} is not on a BPF file system, so nothing can be pinned there",
                    self.root.display()
                ),
                remedy: "mount one: `mount -t bpf bpf /sys/fs/bpf`. `ip netns exec` hides the one that is mounted: \
                         enter a network namespace with `nsenter --net=/run/netns/NAME` instead"
                    .to_owned(),
            });
        }
        let inside = self.root.strip_prefix(place).unwrap_or(&self.root);
        if inside.as_os_str().as_bytes().contains(&b'.') {
            return Err(DataPlaneError::Refused {
                reason: format!(
                    "{} holds a dot, and no name on a BPF file system may",
                    self.root.display()
                ),
                remedy: "write [dataplane] pin without one, for instance \"/sys/fs/bpf/egress\""
                    .to_owned(),
            });
        }
        Ok(())
    }
}

/// Checks that something can be pinned below `root`.
///
/// # Errors
/// [`DataPlaneError::Refused`] with the remedy: there is no BPF file system, or this mount namespace hides it.
pub fn check_pins(root: &Path) -> Result<(), DataPlaneError> {
    Pins::new(root).check_filesystem()
}

/// The magic number of the file system at `path`.
fn filesystem(path: &Path) -> io::Result<i64> {
    let text = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeros is a valid statfs.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated text and a struct of ours.
    if unsafe { libc::statfs(text.as_ptr(), &raw mut found) } != 0 {
        return Err(io::Error::last_os_error());
    }
    #[allow(
        clippy::useless_conversion,
        reason = "the field's width differs between architectures"
    )]
    Ok(i64::from(found.f_type) & 0xffff_ffff)
}

fn failed(doing: &str, path: &Path, error: io::Error) -> DataPlaneError {
    DataPlaneError::failed(format!("{doing} {}", path.display()), error)
}

/// An interface name as part of a file name: without dots (VLAN interfaces have them).
fn escape(interface: &str) -> String {
    interface.replace('%', "%25").replace('.', "%2e")
}

fn unescape(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_survive_without_dots() {
        for name in ["eth0.100", "%2e", "a%.b", "wlan0"] {
            assert!(!escape(name).contains('.'));
            assert_eq!(unescape(&escape(name)), name);
        }
        let pins = Pins::new(Path::new("/sys/fs/bpf/egress"));
        assert_eq!(
            pins.link("eth0.5", Hook::UplinkEgress),
            Path::new("/sys/fs/bpf/egress/links/eth0%2e5:uplink_egress")
        );
    }

    #[test]
    fn another_filesystem_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let error = Pins::new(&directory.path().join("a/b"))
            .check_filesystem()
            .unwrap_err();
        assert!(error.to_string().contains("not on a BPF file system"));
        assert!(error.remedy().unwrap().contains("mount -t bpf"));
    }

    #[test]
    fn a_directory_of_something_else_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let pins = Pins::new(directory.path());
        assert_eq!(pins.state().unwrap(), State::Absent);
        fs::write(directory.path().join("x"), "").unwrap();
        assert_eq!(pins.state().unwrap(), State::Foreign);
        pins.create().unwrap();
        fs::write(pins.map("LAYOUT"), "").unwrap();
        assert_eq!(pins.state().unwrap(), State::Present);
        assert_eq!(pins.fresh().state().unwrap(), State::Absent);
    }
}
