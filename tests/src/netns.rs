//! A network namespace: create, enter for a moment, start commands in.
//!
//! Only the *network* namespace is entered. `ip netns exec` would also remount `/sys`, which hides
//! the BPF file system and the cgroup mount from the command.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::MetadataExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

/// Where iproute2 keeps named namespaces.
const NETNS_DIR: &str = "/run/netns";

/// A named network namespace. The value is a name: dropping it deletes nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates the namespace and brings its loopback up.
    ///
    /// # Errors
    /// When the name is taken or the caller is not root.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self::named(name);
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Refers to a namespace that may or may not exist.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
        }
    }

    /// The name as `ip netns list` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that keeps the namespace alive.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Whether the namespace exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path().exists()
    }

    /// Deletes the name; the namespace goes once no process is left in it.
    ///
    /// # Errors
    /// When it exists and cannot be deleted.
    pub fn delete(&self) -> Result<()> {
        if self.exists() {
            run(Command::new("ip").args(["netns", "del", &self.name]))?;
        }
        Ok(())
    }

    /// The ids of all processes whose main thread is in the namespace.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let Ok(namespace) = fs::metadata(self.path()) else {
            return Vec::new();
        };
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            if let Ok(of_process) = fs::metadata(format!("/proc/{pid}/ns/net"))
                && of_process.ino() == namespace.ino()
                && of_process.dev() == namespace.dev()
            {
                found.push(pid);
            }
        }
        found
    }

    /// Runs `work` inside the namespace, on a thread of its own so that the caller stays where it is.
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` panicked.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET).context("setns")?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("a closure in namespace {} panicked", self.name))?
        })
    }

    /// A command that will run in the namespace.
    ///
    /// # Errors
    /// When the namespace does not exist.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let file = self.open()?;
        let mut command = Command::new(program);
        let enter = move || {
            // SAFETY: the descriptor is open, because the closure owns its file; setns is a plain
            // system call, so it may be made between fork and exec.
            match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: `enter` makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }

    /// Runs `ip ARGUMENTS` in the namespace.
    ///
    /// # Errors
    /// When `ip` fails; the message holds what it said.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(arguments.split_whitespace()))
    }

    /// Runs several `ip` commands, one a line, in one process.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        feed(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            &lines.join("\n"),
        )?;
        Ok(())
    }

    /// Runs an nftables script in the namespace.
    ///
    /// # Errors
    /// When `nft` fails.
    pub fn nft(&self, script: &str) -> Result<()> {
        feed(self.command("nft")?.args(["-f", "-"]), script)?;
        Ok(())
    }

    /// Sets a sysctl of the namespace, named with dots or slashes.
    ///
    /// # Errors
    /// When it does not exist or refuses the value.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        // Interface names may hold dots, so a name that has a slash is taken as it is.
        let relative = if name.contains('/') {
            name.to_owned()
        } else {
            name.replace('.', "/")
        };
        let path = Path::new("/proc/sys").join(relative);
        self.run(|| fs::write(&path, value))?
            .with_context(|| format!("writing {value} to {} in {}", path.display(), self.name))
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("opening namespace {}", self.name))
    }
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the message holds what it printed on standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    finish(command, &output)
}

/// Runs a command with `input` on its standard input.
///
/// # Errors
/// As [`run`].
pub fn feed(command: &mut Command, input: &str) -> Result<String> {
    use std::io::Write as _;

    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that stops reading says why when it ends.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    finish(command, &output).with_context(|| format!("given the input:\n{input}"))
}

fn finish(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
