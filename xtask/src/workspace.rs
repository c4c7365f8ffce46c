//! Where things are, and how the user's own cargo is called.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// The checkout this task runs in.
pub(crate) struct Workspace {
    /// The folder with the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Where the user's cargo leaves what it builds: `target`, unless configured otherwise.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Finds the checkout from the variables that `cargo xtask` runs with.
    pub(crate) fn find() -> Result<Self> {
        let package = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = package
            .parent()
            .context("xtask is not inside its workspace")?
            .to_path_buf();
        let metadata = cargo(&root)
            .args(["metadata", "--no-deps", "--format-version=1"])
            .output()
            .context("cannot run `cargo metadata`")?;
        ensure!(
            metadata.status.success(),
            "`cargo metadata` failed: {}",
            String::from_utf8_lossy(&metadata.stderr)
        );
        let metadata: serde_json::Value =
            serde_json::from_slice(&metadata.stdout).context("`cargo metadata` is not JSON")?;
        let target = metadata["target_directory"]
            .as_str()
            .context("`cargo metadata` names no target directory")?;
        Ok(Self {
            target: PathBuf::from(target),
            root,
        })
    }

    /// The user's cargo, which builds everything that runs on the host.
    pub(crate) fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// Where the compiler of the kernel programs is set up and written down. Always inside the checkout, where
    /// the daemon's build script looks for it, also when the target directory is elsewhere.
    pub(crate) fn bpf_dir(&self) -> PathBuf {
        self.root.join("target/bpf")
    }

    /// The release binary.
    pub(crate) fn release_binary(&self) -> PathBuf {
        self.target.join("release/egress")
    }
}

/// What the packaged binary has besides the defaults: the store that servers share.
pub(crate) const FEATURES: [&str; 2] = ["--features", "egress-userspace/etcd"];

/// Cargo in `root`, with the compiler of protocol buffers that etcd's client wants, and without what `cargo xtask` has put into the environment about the package xtask: build
/// scripts that watch such a variable would otherwise run again after every plain `cargo build`.
fn cargo(root: &Path) -> Command {
    let program = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(root);
    // Comes with a crate, so that nothing has to be installed. Where there is none for this machine, cargo says what it
    // lacks.
    if env::var_os("PROTOC").is_none()
        && let Ok(program) = protoc_bin_vendored::protoc_bin_path()
        && let Ok(include) = protoc_bin_vendored::include_path()
    {
        command
            .env("PROTOC", program)
            .env("PROTOC_INCLUDE", include);
    }
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Finds a program on the PATH, and where administrators' programs are although many a PATH lacks them.
pub(crate) fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether this process may do what only root may.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing, touches no memory of ours and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Writes `text` to `path` unless that is what it says already, so that nobody rebuilds for nothing.
pub(crate) fn write_if_changed(path: &Path, text: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
