//! The first process inside a machine: mounts what tests need, runs them one after the other, and tells the machine's
//! second serial line how it goes.
//!
//! Lines that begin with [`MARK`] are its own, all others are what the tests print.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io::Write as _,
    os::{
        fd::AsRawFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Command, ExitCode, ExitStatus},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

/// What its own lines begin with; then a word: `ready RELEASE`, `begin SUITE`, `end SUITE CODE SECONDS`.
pub(crate) const MARK: &str = "@@machine ";

/// What to run: a suite in a line, as [`line`] writes it.
pub(super) const PLAN: &str = "/plan";

/// The serial line for results; the kernel's console is the first one.
const RESULTS: &str = "/dev/ttyS1";

/// File systems, where they are mounted, and whether the machine is of no use without.
const MOUNTS: [(&str, &str, bool); 7] = [
    ("proc", "/proc", true),
    ("sysfs", "/sys", true),
    ("devtmpfs", "/dev", true),
    ("tmpfs", "/tmp", true),
    ("tmpfs", "/run", true),
    ("cgroup2", "/sys/fs/cgroup", false),
    ("bpf", "/sys/fs/bpf", true),
];

/// A line of the plan.
pub(super) fn line(suite: &str, program: &str, arguments: &[&str]) -> String {
    let words: Vec<&str> = [suite, program]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    words.join("\t") + "\n"
}

/// Runs the plan and turns the machine off. Does not return.
pub(crate) fn main() -> ExitCode {
    if let Err(error) = run() {
        // To the console, whose end is shown when a machine stops early.
        eprintln!("init: {error:#}");
    }
    // SAFETY: no parameters but the command. QEMU was told not to start again.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_AUTOBOOT);
    }
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "this is for the first process of a virtual machine"
    );
    for (kind, place, needed) in MOUNTS {
        let mounted = mount(kind, place);
        if needed {
            mounted?;
        }
    }
    results()?;
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    say(&format!("ready {}", release.trim()));
    let up = Command::new("/bin/ip")
        .args(["link", "set", "lo", "up"])
        .status();
    ensure!(up.is_ok_and(|up| up.success()), "cannot set lo up");
    for line in fs::read_to_string(PLAN)?.lines() {
        let mut words = line.split('\t');
        let (Some(suite), Some(program)) = (words.next(), words.next()) else {
            continue;
        };
        say(&format!("begin {suite}"));
        let start = Instant::now();
        let status = suite_status(Command::new(program).args(words));
        let code = match status {
            Ok(status) => status.to_string(),
            Err(error) => format!("{error:#}"),
        };
        say(&format!(
            "end {suite}\t{:.1}\t{code}",
            start.elapsed().as_secs_f32()
        ));
    }
    Ok(())
}

/// Runs a suite, and ends whatever its processes leave behind meanwhile: the first process inherits orphans.
fn suite_status(command: &mut Command) -> Result<ExitStatus> {
    let child = command
        .current_dir("/tmp")
        .env_clear()
        .env("PATH", "/bin:/sbin")
        .env("HOME", "/tmp")
        .env("TMPDIR", "/tmp")
        .env("RUST_BACKTRACE", "0")
        .env("EGRESS_BIN", "/bin/egress")
        // Emulation takes ten to thirty times as long: a tenth of the random cases.
        .env("EGRESS_EFFORT", "10")
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    loop {
        let mut status = 0;
        // SAFETY: writes the status of some child; nobody else waits for children here.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        ensure!(ended > 0, "there is no child to wait for");
        if ended as u32 == child.id() {
            return Ok(ExitStatus::from_raw(status));
        }
    }
}

fn mount(kind: &str, place: &str) -> Result<()> {
    fs::create_dir_all(place).with_context(|| format!("cannot create {place}"))?;
    let [kind_c, place_c] = [kind, place].map(CString::new);
    let (kind_c, place_c) = (kind_c?, place_c?);
    // SAFETY: strings that end, and no data.
    let status = unsafe {
        libc::mount(
            kind_c.as_ptr(),
            place_c.as_ptr(),
            kind_c.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    ensure!(
        status == 0,
        "cannot mount {kind} at {place}: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

/// Lets everything that is printed from here on go to the serial line for results, unchanged.
fn results() -> Result<()> {
    let line = OpenOptions::new()
        .read(true)
        .write(true)
        .open(RESULTS)
        .with_context(|| format!("cannot open {RESULTS}"))?;
    let fd = line.as_raw_fd();
    // SAFETY: an open terminal and a structure that the first call fills.
    unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        if libc::tcgetattr(fd, &raw mut settings) == 0 {
            libc::cfmakeraw(&raw mut settings);
            libc::tcsetattr(fd, libc::TCSANOW, &raw const settings);
        }
        ensure!(
            libc::dup2(fd, 1) == 1 && libc::dup2(fd, 2) == 2,
            "cannot print to {RESULTS}"
        );
    }
    Ok(())
}

/// A line of our own. An unfinished line of a test ends first.
fn say(what: &str) {
    let mut out = std::io::stdout().lock();
    // Without the line there is nobody to tell.
    let _ = write!(out, "\n{MARK}{what}\n");
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_suite_is_a_line() {
        assert_eq!(
            super::line("a b", "/bin/c", &["-d", "e"]),
            "a b\t/bin/c\t-d\te\n"
        );
    }
}
