//! The real daemon, in the gateway's namespace.

mod ask;

pub use self::ask::{COUNTS, COUNTS_V6, Sweep};

use std::{
    env,
    fs::{self, File, OpenOptions},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    config::{Files, Resources, Server},
    lab::Lab,
    netns::Namespace,
    standard, wait,
};

/// The daemon to run; without it, the release build of this workspace.
pub const BINARY_VARIABLE: &str = "EGRESS_BIN";
/// A later build of the daemon, for upgrade tests.
pub const NEXT_BINARY_VARIABLE: &str = "EGRESS_BIN_NEXT";
/// How long the daemon has to say that it is ready.
const READY_LIMIT: Duration = Duration::from_secs(600);
/// How long it has to end.
const END_LIMIT: Duration = Duration::from_secs(60);
/// Lines of its log in an error message.
const LOG_LINES: usize = 40;

/// The gateway's daemon: started, killed, restarted, asked.
#[derive(Debug)]
pub struct Gateway {
    namespace: Namespace,
    binary: PathBuf,
    files: Files,
    child: Option<Child>,
    starts: u32,
    detach: bool,
}

impl Gateway {
    /// Writes the configuration without starting anything.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn prepare(
        lab: &Lab,
        binary: &Path,
        server: &Server,
        resources: &Resources,
    ) -> Result<Self> {
        let files = Files {
            directory: lab.directory(),
            pin: lab.pin(),
        };
        Self::on(
            lab.node(standard::GATEWAY),
            files,
            binary,
            server,
            resources,
        )
    }

    /// As [`Gateway::prepare`], on a node and with files of one's own.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn on(
        namespace: Namespace,
        files: Files,
        binary: &Path,
        server: &Server,
        resources: &Resources,
    ) -> Result<Self> {
        files.write_server(server)?;
        files.write_resources(resources)?;
        Ok(Self {
            namespace,
            binary: binary.to_owned(),
            files,
            child: None,
            starts: 0,
            detach: true,
        })
    }

    /// The files, to change them before a reload.
    #[must_use]
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// The directory of the pins.
    #[must_use]
    pub fn pin(&self) -> &Path {
        &self.files.pin
    }

    /// Runs another build from the next start on.
    pub fn use_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Leaves the daemon and the data plane running when the value is dropped (a persistent lab).
    pub fn keep(mut self) {
        self.detach = false;
        self.child = None;
    }

    /// Starts the daemon (again) and waits until it is ready.
    ///
    /// # Errors
    /// When it is running already or does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts the daemon without waiting for anything.
    ///
    /// # Errors
    /// When it is running already or cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the daemon is running already");
        self.starts += 1;
        let log = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .open(self.log_path())?;
        self.child = Some(self.spawn(log)?);
        Ok(())
    }

    /// Waits until the daemon that was launched has said that it is ready.
    ///
    /// # Errors
    /// When it ends before, or is not in time; the message ends with its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = wait::until_true("the daemon to be ready", READY_LIMIT, || {
            if self.log().lines().any(|line| line.trim() == "ready") {
                return Ok(true);
            }
            let child = self.child.as_mut().context("the daemon is not running")?;
            match child.try_wait()? {
                Some(status) => bail!("the daemon ended: {status}"),
                None => Ok(false),
            }
        });
        ready.with_context(|| self.last_words())
    }

    /// What the daemon that was started last has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Whether the daemon runs.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn is_running(&mut self) -> Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// The daemon's process id, if it was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends the daemon a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the daemon is not running")?;
        kill(Pid::from_raw(pid.cast_signed()), signal)
            .with_context(|| format!("sending {signal} to the daemon"))
    }

    /// Kills the daemon at once, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run, or was not ended by the signal.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let status = self.wait_end()?;
        ensure!(
            status.signal() == Some(libc::SIGKILL),
            "the daemon ended by itself: {status}\n{}",
            self.last_words()
        );
        Ok(())
    }

    /// Asks the daemon to end, and waits until it has.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end()
    }

    /// Waits until the daemon has ended.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_end(&mut self) -> Result<ExitStatus> {
        let child = self.child.as_mut().context("the daemon is not running")?;
        let status = wait::until("the daemon to end", END_LIMIT, || Ok(child.try_wait()?))?;
        self.child = None;
        Ok(status)
    }

    /// The end of the log, for messages.
    #[must_use]
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let from = lines.len().saturating_sub(LOG_LINES);
        format!(
            "the daemon's log ({}) ends:\n{}",
            self.log_path().display(),
            lines[from..].join("\n")
        )
    }

    fn command(&self) -> Result<Command> {
        self.namespace.command(&self.binary)
    }

    fn spawn(&self, log: File) -> Result<Child> {
        let mut command = self.command()?;
        command
            .args(["run", "--config"])
            .arg(self.files.config())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C at the terminal ends the lab in order; the daemon is told when it is its turn.
            .process_group(0);
        command
            .spawn()
            .with_context(|| format!("starting {command:?}"))
    }

    fn log_path(&self) -> PathBuf {
        self.files
            .directory
            .join(format!("daemon-{}.log", self.starts))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.detach && self.starts > 0 {
            // The lab removes what this leaves; errors after a failed start are expected.
            let _ = self.egress(["detach"]);
        }
    }
}

/// The daemon that `EGRESS_BIN` names, or the release build beside this program's directory.
///
/// # Errors
/// When it has not been built.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os(BINARY_VARIABLE) {
        return existing(PathBuf::from(path));
    }
    // target/debug/deps/TEST and target/debug/xtask both have target above them.
    let this = env::current_exe()?;
    let built = this
        .ancestors()
        .map(|directory| directory.join("release/egress"))
        .find(|path| path.exists());
    built.with_context(|| {
        format!("the daemon is not built: cargo xtask build, or set {BINARY_VARIABLE}")
    })
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    ensure!(
        path.exists(),
        "{BINARY_VARIABLE} names {}, which does not exist",
        path.display()
    );
    Ok(path)
}
