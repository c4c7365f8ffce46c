//! A helper process that is driven by JSON lines: a request on its standard input, a reply on its
//! standard output. It ends when its standard input does, so it never outlives its driver.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::wait;

/// Where the helpers are looked for before anywhere else, see [`use_helpers`].
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
/// How long a helper has to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a helper has to end by itself once its input has ended.
const END_LIMIT: Duration = Duration::from_secs(30);

/// A line from a helper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    /// It listens to requests.
    Ready,
    /// The answer to the request.
    Done(T),
    /// How far a long request has come.
    Progress(u64),
    /// The request failed.
    Failed(String),
}

/// A running helper.
#[derive(Debug)]
pub struct Worker {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Worker {
    /// Starts the helper that `command` describes and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn start(name: &str, mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {name} as {command:?}"))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name} has no pipes");
        };
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let mut worker = Self {
            name: name.to_owned(),
            child,
            input: Some(input),
            lines,
        };
        match worker.line::<()>(START_LIMIT)? {
            Line::Ready => Ok(worker),
            other => bail!("{name} said {other:?} instead of that it is ready"),
        }
    }

    /// Sends a request without waiting for the answer.
    ///
    /// # Errors
    /// When the helper has ended.
    pub fn send(&mut self, request: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let input = self
            .input
            .as_mut()
            .context("the helper's input is closed")?;
        input
            .write_all(line.as_bytes())
            .with_context(|| format!("sending {line:?} to {}", self.name))
    }

    /// Waits for the answer to the last request.
    ///
    /// # Errors
    /// When it does not come within `limit`, or says that the request failed.
    pub fn answer<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T> {
        self.answer_with(limit, |_| Ok(()))
    }

    /// Waits for the answer to the last request, and is told of progress until then.
    ///
    /// # Errors
    /// As [`Worker::answer`], and when `progress` fails.
    pub fn answer_with<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
        mut progress: impl FnMut(u64) -> Result<()>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            match self.line(end.saturating_duration_since(Instant::now()))? {
                Line::Done(answer) => return Ok(answer),
                Line::Progress(done) => progress(done)?,
                Line::Failed(why) => bail!("{}: {why}", self.name),
                Line::Ready => {}
            }
        }
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// As [`Worker::send`] and [`Worker::answer`].
    pub fn ask<T: DeserializeOwned>(
        &mut self,
        request: &impl Serialize,
        limit: Duration,
    ) -> Result<T> {
        self.send(request)?;
        self.answer(limit)
    }

    /// The helper's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn line<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<Line<T>> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => {
                serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.name))
            }
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} did not answer within {limit:?}", self.name)
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(anyhow!("{} ended: {}", self.name, self.child.wait()?))
            }
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.input.take());
        let ended = wait::until_true("a helper to end", END_LIMIT, || {
            Ok(self.child.try_wait()?.is_some())
        });
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Takes the helpers from a directory; the first call holds.
pub fn use_helpers(directory: PathBuf) {
    // A second call changes nothing, as promised.
    let _ = DIRECTORY.set(directory);
}

/// The path of a helper: where [`use_helpers`] says, beside this program, or a directory above it (tests).
///
/// # Errors
/// When it has not been built.
pub fn helper(name: &str) -> Result<PathBuf> {
    let this = env::current_exe()?;
    let named = DIRECTORY.get().cloned();
    let places = named
        .into_iter()
        .chain(this.ancestors().skip(1).take(2).map(PathBuf::from));
    places
        .map(|directory| directory.join(name))
        .find(|path| path.exists())
        .with_context(|| format!("{name} is not built: cargo build -p egress-tests"))
}

/// For a helper: runs on one CPU only.
///
/// # Errors
/// When there is no such CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("running on CPU {cpu}"))
}

/// For a helper: as many open files as allowed.
///
/// # Errors
/// When the limit cannot be read or set.
pub fn raise_file_limit() -> Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the structure lives until the call returns.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: as above.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0 {
            return Ok(());
        }
    }
    Err(std::io::Error::last_os_error()).context("raising the limit of open files")
}

/// How many CPUs there are.
#[must_use]
pub fn cpus() -> usize {
    thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// For a helper: prints a line for its driver.
///
/// # Errors
/// When the driver is gone.
pub fn say<T: Serialize>(line: &Line<T>) -> Result<()> {
    let mut text = serde_json::to_string(line)?;
    text.push('\n');
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}
