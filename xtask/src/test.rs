//! `cargo xtask test`: formatting, lints, and every test there is, from the pure logic to real traffic through
//! the release binary in network namespaces.
//!
//! Each test binary runs by itself, so that one that crashes or hangs hides no other; those that wait more than they
//! compute run two at a time. Tests find in their
//! environment `EGRESS_BIN`, the release binary, `EGRESS_BIN_NEXT`, the same with kernel programs of other tags, to
//! upgrade to, `EGRESS_PACKAGE`, the Debian package, `EGRESS_PROGRAMS`, the folder where other people's programs are
//! unpacked, and `EGRESS_PYTHON` and `EGRESS_NODE_MODULES`, where libraries are.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    build,
    dist::{self, Compression},
    libraries::Libraries,
    programs,
    report::{Report, Tally},
    setup,
    toolchain::Toolchain,
    workspace::{FEATURES, Workspace},
};

mod elsewhere;
mod lanes;

/// A test binary that takes longer hangs, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// How long to listen on after a test binary has ended: whatever it left running may hold its output open. Long enough
/// for a busy machine to hand over what it said itself.
const LINGER: Duration = Duration::from_secs(10);

/// How often to look whether a silent test binary has ended.
const GLANCE: Duration = Duration::from_millis(50);

/// The package of the labs, whose tests go one after the other within a binary.
const LAB_PACKAGE: &str = "egress-tests";

/// Options of `cargo xtask test`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    kernels: elsewhere::Options,
}

/// Checks and tests everything, and prints the report; its closing line is the last that is printed.
pub(crate) fn main(args: &Args) -> Result<ExitCode> {
    let workspace = setup::ready("test")?;
    let mut report = Report::default();

    let toolchain = report.step("compiler for the kernel programs", || {
        Toolchain::ensure(&workspace)
    });
    if args.kernels.only {
        let current = args
            .kernels
            .need_release()
            .then(|| report.step("release binary", || build::release(&workspace)));
        let binaries = report.step("test binaries", || {
            test_binaries(&workspace, &args.kernels.targets())
        });
        args.kernels.run(
            &mut report,
            &workspace,
            binaries.as_deref(),
            current.flatten().as_deref(),
        );
        return Ok(end(&report));
    }
    lint(&mut report, &workspace, toolchain.as_ref());

    let programs = programs::unpack(&workspace);
    let libraries = Libraries::ensure(&workspace);
    let next = report.step("release binary for the upgrade test", || next(&workspace));
    let current = report.step("release binary", || build::release(&workspace));
    let package = current.as_deref().and_then(|binary| {
        report.step("package", || {
            dist::package(&workspace, binary, Compression::None)
        })
    });
    let binaries = report.step("test binaries", || test_binaries(&workspace, &EVERYTHING));

    let mut labs = Vec::new();
    for test in binaries.iter().flatten() {
        let name = format!("tests of {}: {}", test.package, test.name);
        if test.integration && test.package == LAB_PACKAGE && (current.is_none() || next.is_none())
        {
            report.skip(&name, "the release binaries do not build");
            continue;
        }
        let mut command = test.command();
        command.env("EGRESS_PROGRAMS", &programs);
        libraries.tell(&mut command);
        for (variable, binary) in [
            ("EGRESS_BIN", &current),
            ("EGRESS_BIN_NEXT", &next),
            ("EGRESS_PACKAGE", &package),
        ] {
            if let Some(binary) = binary {
                command.env(variable, binary);
            }
        }
        if test.integration {
            labs.push(lanes::Entry { name, command });
        } else {
            report.tests(&name, || watch(command, ""));
        }
    }
    println!("\n== tests of programs and labs, side by side");
    lanes::run(labs, |lanes::Ended { name, tally, time }| {
        report.ended(&name, tally, time);
    });
    if binaries.is_some() {
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--doc", "--workspace", "--exclude", "egress-ebpf"]);
        cargo.args(FEATURES);
        cargo.args(["--quiet", "--no-fail-fast"]);
        report.tests("tests in the documentation", || watch(cargo, ""));
    }
    args.kernels.run(
        &mut report,
        &workspace,
        binaries.as_deref(),
        current.as_deref(),
    );
    Ok(end(&report))
}

/// Prints the report, and says by the exit code whether all is well.
fn end(report: &Report) -> ExitCode {
    println!("\n{report}");
    if report.good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Formatting, and lints with warnings as errors, for the host's crates and for the kernel's.
fn lint(report: &mut Report, workspace: &Workspace, toolchain: Option<&Toolchain>) {
    if has_component(workspace, "fmt") {
        report.step("formatting", || {
            succeed(workspace.cargo().args(["fmt", "--all", "--check"]))
        });
    } else {
        report.skip("formatting", "this Rust toolchain has no rustfmt");
    }

    if has_component(workspace, "clippy") {
        report.step("lints", || {
            let mut cargo = workspace.cargo();
            cargo.args(["clippy", "--workspace", "--exclude", "egress-ebpf"]);
            cargo.args(FEATURES);
            succeed(cargo.args(["--all-targets", "--quiet", "--", "-D", "warnings"]))
        });
    } else {
        report.skip("lints", "this Rust toolchain has no clippy");
    }

    const KERNEL: &str = "lints of the kernel programs";
    match toolchain.map(|toolchain| toolchain.clippy(workspace)) {
        Some(Ok(mut clippy)) => {
            report.step(KERNEL, || {
                succeed(clippy.args(["--quiet", "--", "-D", "warnings"]))
            });
        }
        Some(Err(reason)) => report.skip(KERNEL, &format!("{reason:#}")),
        None => report.skip(KERNEL, "there is no compiler for them"),
    }
}

/// Whether the user's toolchain has `cargo NAME`.
fn has_component(workspace: &Workspace, name: &str) -> bool {
    workspace
        .cargo()
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Runs a command; an error unless it succeeds.
fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// Builds the binary to upgrade to and puts it aside, before the real one takes its place in the target folder.
fn next(workspace: &Workspace) -> Result<PathBuf> {
    build::compile(workspace, 1)?;
    let binary = workspace.target.join("next/egress");
    if let Some(dir) = binary.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    // A daemon left over from an earlier run may still execute the file: make a new one.
    if binary.exists() {
        fs::remove_file(&binary).with_context(|| format!("cannot remove {}", binary.display()))?;
    }
    fs::copy(workspace.release_binary(), &binary)
        .with_context(|| format!("cannot write {}", binary.display()))?;
    Ok(binary)
}

/// A compiled test binary.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct TestBinary {
    /// False sorts first: unit tests before integration tests.
    integration: bool,
    package: String,
    name: String,
    executable: PathBuf,
    /// The package's folder, where its tests expect to run.
    folder: PathBuf,
}

impl TestBinary {
    /// From one message of cargo, if that is about a test binary.
    fn from_message(line: &str) -> Option<Self> {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
            return None;
        }
        let folder = Path::new(message["manifest_path"].as_str()?).parent()?;
        let target = &message["target"];
        let kind = target["kind"][0].as_str()?;
        let name = target["name"].as_str()?;
        Some(Self {
            integration: kind == "test",
            // Package ids end in `#NAME@VERSION`, or in `FOLDER#VERSION` when the folder is named after it.
            package: package_name(message["package_id"].as_str()?).to_owned(),
            name: match kind {
                "test" => format!("tests/{name}.rs"),
                "bin" => format!("binary {name}"),
                _ => "library".to_owned(),
            },
            executable: PathBuf::from(message["executable"].as_str()?),
            folder: folder.to_path_buf(),
        })
    }

    /// How to run it: in its package's folder, as cargo does.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder);
        command.args(self.arguments());
        command
    }

    /// With what arguments.
    fn arguments(&self) -> Vec<&'static str> {
        if self.package == LAB_PACKAGE {
            // Shown at once, the output survives a crash.
            vec!["--test-threads=1", "--nocapture"]
        } else if self.package == env!("CARGO_PKG_NAME") {
            // Our own tests print examples of results, which are not to be counted.
            Vec::new()
        } else {
            // Skips are to be seen.
            vec!["--show-output"]
        }
    }
}

/// The package's name in a package id of cargo.
fn package_name(id: &str) -> &str {
    let (path, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => path.rsplit('/').next().unwrap_or(path),
    }
}

/// What cargo calls all tests for the host.
const EVERYTHING: [&str; 5] = [
    "--workspace",
    "--exclude",
    "egress-ebpf",
    FEATURES[0],
    FEATURES[1],
];

/// Compiles tests for the host, and lists them in the order to run them in.
fn test_binaries(workspace: &Workspace, targets: &[&str]) -> Result<Vec<TestBinary>> {
    let output = workspace
        .cargo()
        .arg("test")
        .args(targets)
        .args(["--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the tests do not compile");
    let mut binaries: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(TestBinary::from_message)
        .collect();
    // Cheap ones first, the labs last.
    binaries.sort_by(|a, b| {
        (a.package == LAB_PACKAGE)
            .cmp(&(b.package == LAB_PACKAGE))
            .then_with(|| a.cmp(b))
    });
    if binaries.is_empty() {
        bail!("there are no tests");
    }
    Ok(binaries)
}

/// Runs a test binary, or cargo doing so: shows its output with `label` in front of each line, counts, and gives up on it
/// when it hangs.
fn watch(mut command: Command, label: &str) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let (sender, lines) = mpsc::channel();
    forward(child.stdout.take(), sender.clone());
    forward(child.stderr.take(), sender);

    let mut tally = Tally::default();
    let deadline = Instant::now() + PATIENCE;
    let mut ended: Option<Instant> = None;
    loop {
        match lines.recv_timeout(GLANCE) {
            Ok(line) => {
                println!("{label}{line}");
                tally.line(&line);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some(ended) = ended {
            if ended.elapsed() > LINGER {
                println!("{label}(it left processes behind that hold its output open)");
                break;
            }
        } else if child.try_wait()?.is_some() {
            ended = Some(Instant::now());
        } else if Instant::now() > deadline {
            child.kill().context("cannot end the hanging test")?;
            tally.broken = Some(format!(
                "still running after {} s, killed",
                PATIENCE.as_secs()
            ));
            ended = Some(Instant::now());
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.broken.is_none() && tally.all_passed() {
        tally.broken = Some(format!("no test failed, yet it ended with {status}"));
    }
    Ok(tally)
}

/// Sends the lines of an output to whoever watches, from a thread of its own.
pub(crate) fn forward(output: Option<impl Read + Send + 'static>, sender: Sender<String>) {
    let Some(output) = output else { return };
    thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        // Not `lines()`: what a test prints need not be UTF-8.
        while output
            .read_until(b'\n', &mut line)
            .is_ok_and(|read| read > 0)
        {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches('\n').to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{package_name, watch};

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn package_names() {
        assert_eq!(package_name("path+file:///a/xtask#0.1.0"), "xtask");
        assert_eq!(
            package_name("path+file:///a/tests#egress-tests@0.1.0"),
            "egress-tests"
        );
    }

    #[test]
    fn a_binary_that_crashes_without_a_result_is_broken() {
        let crash =
            watch(shell("echo 'test one ... '; kill -SEGV $$"), "").map(|tally| tally.broken);
        assert!(crash.is_ok_and(|broken| broken.is_some()));
    }

    #[test]
    fn a_failure_on_stderr_or_stdout_is_counted_once() {
        let result = "test result: FAILED. 0 passed; 1 failed; 0 ignored";
        let failed = watch(shell(&format!("echo '{result}'; exit 101")), "");
        assert!(failed.is_ok_and(|tally| tally.broken.is_none() && !tally.all_passed()));
    }

    #[test]
    fn processes_left_behind_do_not_hold_up_the_run() {
        let start = std::time::Instant::now();
        let tally = watch(
            shell("sleep 120 & echo 'test result: ok. 1 passed; 0 failed'"),
            "",
        );
        assert!(tally.is_ok_and(|tally| tally.broken.is_none()));
        assert!(start.elapsed().as_secs() < 100);
    }
}
