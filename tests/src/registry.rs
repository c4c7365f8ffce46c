//! Which labs exist on this machine.
//!
//! Each lab has a directory that holds its files (configuration, database, logs) and a lock that its
//! owner keeps while it lives. The kernel drops the lock of a killed owner, so a directory whose lock
//! is free is a left-over, and [`sweep`] takes down what it names.

use std::{
    fs::{self, File, OpenOptions},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::signal::{Signal, kill},
    unistd::{Pid, getpid},
};

use crate::netns::Namespace;

/// Where labs keep their state.
const STATE_DIR: &str = "/run/egress-lab";
/// Every namespace of a lab starts with this.
const NAMESPACE_PREFIX: &str = "egl";
/// The BPF file system.
const BPF_DIR: &str = "/sys/fs/bpf";
/// More labs than this at once is a mistake.
const MOST_LABS: usize = 1000;

/// A lab's place on the machine: its number, its directory, its lock.
#[derive(Debug)]
pub struct Entry {
    id: String,
    // Held, not read: the lock says that the owner lives. None for a persistent lab.
    _lock: Option<Flock<File>>,
}

impl Entry {
    /// Takes a new place for a lab that lives as long as this process.
    ///
    /// # Errors
    /// When the state directory cannot be written (not root).
    pub fn claim() -> Result<Self> {
        let _all = lock_all()?;
        for number in 0..MOST_LABS {
            let id = number.to_string();
            match fs::create_dir(directory(&id)) {
                Ok(()) => {
                    let lock = try_lock(&id)?.context("a new lab is locked already")?;
                    return Ok(Self {
                        id,
                        _lock: Some(lock),
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("creating {}", directory(&id).display()));
                }
            }
        }
        bail!("{MOST_LABS} labs exist already in {STATE_DIR}")
    }

    /// Takes the place `name` for a lab that outlives this process; [`Entry::open`] finds it again.
    ///
    /// # Errors
    /// When a lab of that name exists.
    pub fn claim_persistent(name: &str) -> Result<Self> {
        let _all = lock_all()?;
        let directory = directory(name);
        if directory.exists() {
            bail!("lab {name} is up already; take it down first");
        }
        fs::create_dir(&directory)?;
        fs::write(directory.join("persistent"), "")?;
        Ok(Self {
            id: name.to_owned(),
            _lock: None,
        })
    }

    /// Opens a persistent lab.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        if !is_persistent(name) {
            bail!("lab {name} is not up");
        }
        Ok(Self {
            id: name.to_owned(),
            _lock: None,
        })
    }

    /// The lab's number or name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The directory for the lab's files.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        directory(&self.id)
    }

    /// The directory for the lab's pinned BPF objects.
    #[must_use]
    pub fn pin(&self) -> PathBuf {
        pin(&self.id)
    }

    /// The namespace of a node.
    #[must_use]
    pub fn namespace(&self, node: &str) -> Namespace {
        Namespace::named(&format!("{}{node}", namespace_prefix(&self.id)))
    }

    /// Takes down everything that belongs to the lab: processes, namespaces, pins, files.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is still tried.
    pub fn destroy(&self) -> Result<()> {
        destroy(&self.id)
    }
}

/// The names of all persistent labs.
///
/// # Errors
/// When the state directory cannot be read.
pub fn persistent() -> Result<Vec<String>> {
    Ok(ids()?.into_iter().filter(|id| is_persistent(id)).collect())
}

/// Takes down the left-overs of runs that were killed, and returns their numbers.
///
/// # Errors
/// When a left-over cannot be removed.
pub fn sweep() -> Result<Vec<String>> {
    let _all = lock_all()?;
    let mut swept = Vec::new();
    for id in ids()? {
        if is_persistent(&id) {
            continue;
        }
        if let Some(_lock) = try_lock(&id)? {
            destroy(&id).with_context(|| format!("removing the left-over lab {id}"))?;
            swept.push(id);
        }
    }
    Ok(swept)
}

fn destroy(id: &str) -> Result<()> {
    let mut first_error = Ok(());
    let mut note = |result: Result<()>| {
        if first_error.is_ok() {
            first_error = result;
        }
    };
    let namespaces = namespaces(&namespace_prefix(id));
    for namespace in &namespaces {
        for pid in namespace.processes() {
            if pid != getpid().as_raw() {
                // Only what runs inside a namespace of this lab; gone already is as good.
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        note(namespace.delete());
    }
    for pin in pins(id) {
        note(remove_dir(&pin));
    }
    note(remove_dir(&directory(id)));
    first_error
}

/// The lab's pin directory and those beside it: of a second daemon, of a start that was killed.
fn pins(id: &str) -> Vec<PathBuf> {
    let own = pin(id);
    let name = own.file_name().unwrap_or_default().to_string_lossy();
    let beside = format!("{name}-");
    let Ok(entries) = fs::read_dir(BPF_DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|entry| *entry == *name || entry.starts_with(&beside))
        .map(|entry| Path::new(BPF_DIR).join(entry))
        .collect()
}

fn namespaces(prefix: &str) -> Vec<Namespace> {
    let Ok(entries) = fs::read_dir("/run/netns") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .map(|name| Namespace::named(&name))
        .collect()
}

fn remove_dir(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn ids() -> Result<Vec<String>> {
    let mut ids = Vec::new();
    match fs::read_dir(STATE_DIR) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry?;
                if entry.file_type()?.is_dir()
                    && let Ok(id) = entry.file_name().into_string()
                {
                    ids.push(id);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context(STATE_DIR),
    }
    ids.sort();
    Ok(ids)
}

fn is_persistent(id: &str) -> bool {
    directory(id).join("persistent").exists()
}

fn directory(id: &str) -> PathBuf {
    Path::new(STATE_DIR).join(id)
}

fn pin(id: &str) -> PathBuf {
    Path::new(BPF_DIR).join(format!("egress-lab-{id}"))
}

fn namespace_prefix(id: &str) -> String {
    format!("{NAMESPACE_PREFIX}-{id}-")
}

/// Where a file is that all labs have in common.
pub(crate) fn file(name: &str) -> Result<PathBuf> {
    fs::create_dir_all(STATE_DIR).with_context(|| format!("creating {STATE_DIR}"))?;
    Ok(Path::new(STATE_DIR).join(name))
}

/// Serialises creation and sweeping between processes.
fn lock_all() -> Result<Flock<File>> {
    let file = open_lock(&file("lock")?)?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("locking the lab directory")
}

/// The lab's own lock, or nothing if its owner lives.
fn try_lock(id: &str) -> Result<Option<Flock<File>>> {
    let file = open_lock(&directory(id).join("lock"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error).with_context(|| format!("locking lab {id}")),
    }
}

/// Opens a file to lock.
pub(crate) fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Mounts the BPF file system where it is missing.
///
/// # Errors
/// When the kernel has none, or the caller is not root.
pub fn ensure_bpf_mount() -> Result<()> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

    let is_bpf = nix::sys::statfs::statfs(BPF_DIR)
        .is_ok_and(|found| found.filesystem_type().0 == BPF_FS_MAGIC);
    if !is_bpf {
        nix::mount::mount(
            Some("bpf"),
            BPF_DIR,
            Some("bpf"),
            nix::mount::MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting the BPF file system at {BPF_DIR}"))?;
    }
    Ok(())
}
