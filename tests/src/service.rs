//! A real server on a node: somebody else's program, started, waited for, and ended.

use std::{
    fs::{self, File, Permissions},
    io::Write as _,
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Namespace, programs, wait};

/// How long a server has to listen.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long it has to end.
const END_LIMIT: Duration = Duration::from_secs(30);
/// Seconds that a client may take before it counts as hanging.
const CLIENT_LIMIT: &str = "120";

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
pub enum Port {
    /// TCP.
    Tcp(u16),
    /// UDP.
    Udp(u16),
}

impl Port {
    /// Whether a socket of the namespace is bound there.
    fn is_open(self, namespace: &Namespace) -> Result<bool> {
        // Of /proc/net/tcp: an address is followed by the port in four hex digits; 0A is LISTEN.
        let (protocol, port) = match self {
            Self::Tcp(port) => ("tcp", port),
            Self::Udp(port) => ("udp", port),
        };
        let end = format!(":{port:04X}");
        let tables = namespace.run(|| {
            ["", "6"].map(|family| {
                fs::read_to_string(format!("/proc/thread-self/net/{protocol}{family}"))
                    .unwrap_or_default()
            })
        })?;
        Ok(tables.iter().flat_map(|table| table.lines()).any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (local, state) = (words.next(), words.nth(1));
            local.is_some_and(|local| local.ends_with(&end))
                && (protocol == "udp" || state == Some("0A"))
        }))
    }
}

/// A running server; it ends when the value is dropped.
#[derive(Debug)]
pub struct Service {
    name: String,
    child: Child,
    log: PathBuf,
    kept: bool,
}

impl Service {
    /// Starts `command` (a program that stays in the foreground) on a node, in `directory`, where its output
    /// goes to `NAME.log`, and waits until it listens on all `ports`.
    ///
    /// # Errors
    /// When it cannot be started, ends, or does not listen in time; the message holds its output.
    pub fn start(
        namespace: &Namespace,
        directory: &Path,
        command: &[&str],
        ports: &[Port],
    ) -> Result<Self> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        let name = Path::new(program)
            .file_name()
            .map_or_else(|| "server".into(), |name| name.to_string_lossy())
            .into_owned();
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let program = programs::find(program).unwrap_or_else(|| program.into());
        let mut server = namespace.command(&program)?;
        let child = programs::with_libraries(&mut server, &program)
            .args(arguments)
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C at the terminal ends the lab in order; a server is told when it is its turn.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        let mut service = Self {
            name,
            child,
            log,
            kept: false,
        };
        let listens = wait::until_true(&format!("{} to listen", service.name), START_LIMIT, || {
            if let Some(status) = service.child.try_wait()? {
                bail!("it ended: {status}");
            }
            for port in ports {
                if !port.is_open(namespace)? {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        listens.with_context(|| format!("{} said:\n{}", service.name, service.said()))?;
        Ok(service)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("sending {signal} to {}", self.name))
    }

    /// Leaves it running when the value is dropped (a persistent lab).
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// What it has written so far.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // Asked first: some servers have children of their own, which they take along.
        let _ = kill(
            Pid::from_raw(self.child.id().cast_signed()),
            Signal::SIGTERM,
        );
        let ended = wait::until_true("a server to end", END_LIMIT, || {
            Ok(self.child.try_wait()?.is_some())
        });
        if ended.is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a client on a node to its end, with `input` on its standard input, for a bounded time.
///
/// # Errors
/// When it cannot be started, fails, or hangs; the message holds all it printed.
pub fn client(namespace: &Namespace, command: &[&str], input: &str) -> Result<String> {
    let output = attempt(namespace, command, input)?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{command:?}: {}: {printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(printed)
}

/// As [`client`]; that it fails is in the output.
///
/// # Errors
/// When it cannot be started.
pub fn attempt(namespace: &Namespace, command: &[&str], input: &str) -> Result<Output> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    let program = programs::find(program).unwrap_or_else(|| program.into());
    let mut bounded = namespace.command("timeout")?;
    let mut child = programs::with_libraries(&mut bounded, &program)
        .args(["--kill-after=1", CLIENT_LIMIT])
        .arg(&program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A client that does not read is none the worse for it.
        let _ = stdin.write_all(input.as_bytes());
    }
    Ok(child.wait_with_output()?)
}

/// A directory below `parent` that servers which give up root can read, too.
///
/// # Errors
/// When it cannot be made.
pub fn shared_directory(parent: &Path, name: &str) -> Result<PathBuf> {
    let directory = parent.join(name);
    fs::create_dir_all(&directory)?;
    for path in [parent, &directory] {
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
    }
    Ok(directory)
}

/// A certificate and its key in `directory`: made by `openssl` for the test, trusted by nobody else.
///
/// # Errors
/// When `openssl` fails.
pub fn certificate(directory: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (directory.join("cert.pem"), directory.join("key.pem"));
    let program = programs::find("openssl").context("openssl is not installed")?;
    let mut command = Command::new(&program);
    programs::with_libraries(&mut command, &program)
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "1"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", "/CN=origin.test", "-addext"])
        .arg(format!("subjectAltName={name}"))
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    crate::netns::run(&mut command)?;
    Ok((certificate, key))
}
