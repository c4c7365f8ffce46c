//! A virtual machine: QEMU, its console, and the results that come out of it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{guest::MARK, package::Kernel};
use crate::{packages::Tool, report::Tally, test::forward, workspace::which};

/// Emulates; without hardware support, which few machines for tests give to their guests.
pub(super) const QEMU: Tool = Tool {
    command: "qemu-system-x86_64",
    package: "qemu-system-x86",
    purpose: "virtual machines for other kernels",
};

/// Memory: the root file system, and tables of tests.
const MEMORY: &str = "3G";
/// Several, because tests race on several.
const PROCESSORS: &str = "2";
/// A kernel that takes longer to boot hangs.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// With all that QEMU can emulate, but for a fifth level of page tables, which every walk would pay for.
const PROCESSOR: &str = "max,la57=off";
/// For the kernel: a panic ends the machine at once, and a timer that is late because this machine is busy is no
/// reason for one. What guards against other processes on the same processor, and what counts and clears the
/// kernel's own memory, only costs time here. `guest` is for the first process.
const COMMAND_LINE: &str = "console=ttyS0 panic=-1 no_timer_check quiet mitigations=off init_on_alloc=0 \
    cgroup.memory=nokmem -- guest";
/// Lines of the console that are shown when a machine fails.
const CONSOLE_LINES: usize = 40;

/// A machine that runs; it ends when the value is dropped.
pub(super) struct Machine {
    child: Child,
    lines: Receiver<String>,
    console: PathBuf,
    boot: Duration,
}

/// How a suite ended.
pub(super) struct Ended {
    pub(super) tally: Tally,
    /// All it printed.
    pub(super) lines: Vec<String>,
    /// By the machine's clock.
    pub(super) took: Duration,
}

impl Machine {
    /// Boots a kernel into a root file system and waits until its first process runs. The console goes to
    /// `log`.console.
    pub(super) fn boot(kernel: &Kernel, image: &Path, log: &Path) -> Result<Self> {
        let console = log.with_added_extension("console");
        let start = Instant::now();
        let mut command = Command::new(which(QEMU.command).context("QEMU is not installed")?);
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", PROCESSOR])
            .args(["-smp", PROCESSORS, "-m", MEMORY])
            .args(["-nodefaults", "-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&kernel.image)
            .arg("-initrd")
            .arg(image)
            .args(["-append", COMMAND_LINE])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", QEMU.command))?;
        let (sender, lines) = mpsc::channel();
        forward(child.stdout.take(), sender.clone());
        forward(child.stderr.take(), sender);
        let mut machine = Self {
            child,
            lines,
            console,
            boot: Duration::ZERO,
        };
        machine.until("ready", start + BOOT_LIMIT, |_| {})?;
        machine.boot = start.elapsed();
        Ok(machine)
    }

    /// How long it took until the first process ran.
    pub(super) fn boot_time(&self) -> Duration {
        self.boot
    }

    /// Shows and counts what the next suite prints, until it ends.
    ///
    /// # Errors
    /// When the machine ends or hangs before that.
    pub(super) fn suite(&mut self, name: &str, patience: Duration) -> Result<Ended> {
        let deadline = Instant::now() + patience;
        self.until(&format!("begin {name}"), deadline, |_| {})?;
        let mut tally = Tally::default();
        let mut lines = Vec::new();
        let end = self.until(&format!("end {name}"), deadline, |line| {
            println!("{line}");
            tally.line(line);
            lines.push(line.to_owned());
        })?;
        let mut words = end.split('\t').skip(1);
        let took = words.next().and_then(|seconds| seconds.parse().ok());
        let code = words.next().unwrap_or_default();
        if !code.ends_with(": 0") && tally.all_passed() {
            tally.broken = Some(format!("no test failed, yet it ended with {code}"));
        }
        Ok(Ended {
            tally,
            lines,
            took: Duration::from_secs_f32(took.unwrap_or_default()),
        })
    }

    /// Hands on lines until the first process says `what`; returns that line.
    fn until(
        &mut self,
        what: &str,
        deadline: Instant,
        mut other: impl FnMut(&str),
    ) -> Result<String> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => match line.strip_prefix(MARK) {
                    Some(said) if said.starts_with(what) => return Ok(said.to_owned()),
                    _ => other(&line),
                },
                Err(RecvTimeoutError::Timeout) => {
                    self.show_console();
                    // What comes later is of no use.
                    self.child.kill().context("cannot end the machine")?;
                    bail!("the machine hangs: it has not said `{what}` in time, and was ended");
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    self.show_console();
                    bail!("the machine ended ({status}) and has not said `{what}`");
                }
            }
        }
    }

    /// Prints the end of what the kernel had to say.
    fn show_console(&self) {
        let console = fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console);
        let lines: Vec<&str> = console.lines().collect();
        println!("the end of the console, {}:", self.console.display());
        for line in &lines[lines.len().saturating_sub(CONSOLE_LINES)..] {
            println!("    {}", line.trim_end());
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
