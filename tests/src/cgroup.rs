//! A cgroup of its own for a command, below the cgroup2 mount.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::wait;

/// A cgroup that is removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    mount: PathBuf,
    name: String,
}

impl Cgroup {
    /// Where cgroup2 is mounted, if it is.
    #[must_use]
    pub fn mount() -> Option<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").ok()?;
        mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind) = (words.next()?, words.next()?);
            (kind == "cgroup2").then(|| Path::new(place).to_owned())
        })
    }

    /// Creates a cgroup; `name` is a path below the mount.
    ///
    /// # Errors
    /// When cgroup2 is not mounted or cannot be written.
    pub fn create(name: &str) -> Result<Self> {
        let mount = Self::mount().context("cgroup2 is not mounted")?;
        let path = mount.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating cgroup {}", path.display()))?;
        Ok(Self {
            mount,
            name: name.to_owned(),
        })
    }

    /// The path below the mount, as zones name it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes a command start in the cgroup.
    pub fn enter(&self, command: &mut Command) {
        let procs = self.path().join("cgroup.procs");
        // SAFETY: writing a file between fork and exec: the path is built before, and nothing here
        // touches a lock that another thread of the parent may have held.
        unsafe {
            command.pre_exec(move || fs::write(&procs, b"0"));
        }
    }

    fn path(&self) -> PathBuf {
        self.mount.join(&self.name)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy until the kernel has reaped its last process.
        let removed = wait::until_true("an empty cgroup", Duration::from_secs(60), || {
            Ok(!self.path().exists() || fs::remove_dir(self.path()).is_ok())
        });
        if let Err(error) = removed {
            eprintln!("removing cgroup {}: {error:#}", self.name);
        }
    }
}
