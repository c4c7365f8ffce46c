//! An etcd of the test's own, with data that outlive it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// One that runs alone; it ends with the value.
pub(crate) struct Etcd {
    child: Option<Child>,
    program: PathBuf,
    directory: tempfile::TempDir,
    port: u16,
    peer: u16,
}

/// One that the kernel gives to nobody who connects while etcd is down, and that no other test has.
fn free_port() -> u16 {
    let mut taken = TAKEN.lock().unwrap();
    let first = 20_000 + u16::try_from(std::process::id() % 10_000).unwrap();
    let mut ports = (first..30_000).chain(20_000..first);
    let free =
        ports.find(|port| !taken.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok());
    let free = free.unwrap();
    taken.push(free);
    free
}

/// Those that were given out.
static TAKEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());

/// The program: on the path, or unpacked for the tests.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = std::env::var_os("EGRESS_PROGRAMS").map(|root| Path::new(&root).join("usr/bin"));
    std::env::split_paths(&path)
        .chain(unpacked)
        .map(|directory| directory.join("etcd"))
        .find(|program| program.exists())
}

impl Etcd {
    /// One that has nothing yet; none where the program is not installed.
    pub(crate) fn begin() -> Option<Self> {
        let mut etcd = Self {
            child: None,
            program: program()?,
            directory: tempfile::tempdir().unwrap(),
            port: free_port(),
            peer: free_port(),
        };
        etcd.start();
        Some(etcd)
    }

    /// Where it listens on the loopback interface.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn start(&mut self) {
        let (client, peer) = (
            format!("http://127.0.0.1:{}", self.port),
            format!("http://127.0.0.1:{}", self.peer),
        );
        let child = Command::new(&self.program)
            .arg("--data-dir")
            .arg(self.directory.path().join("etcd"))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("default={peer}")])
            // Where this version asks for it.
            .env("ETCD_UNSUPPORTED_ARCH", "arm64")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// Starts it again if it ended by itself.
    pub(crate) fn look_after(&mut self) {
        let ended = self.child.as_mut().map(|child| child.try_wait().unwrap());
        if let Some(Some(status)) = ended {
            println!("etcd has ended: {status}");
            self.start();
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) fn signal(&self, signal: i32) {
        let process = self.child.as_ref().unwrap().id();
        // SAFETY: no memory is involved; the process is our child, which has not been waited for.
        unsafe { libc::kill(i32::try_from(process).unwrap(), signal) };
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
