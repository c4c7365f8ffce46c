//! A machine with a real systemd on a node: the distribution's, as the first process of namespaces of its own.
//!
//! Its root is this machine's, with a layer of its own above: what is written there, packages that are installed too,
//! outlives a [`power_off`](Machine::power_off) but not the value. The network is the node's; processes and BPF file system are its
//! own, its cgroups are below one of this machine's, and kernel parameters beyond `net` cannot be written. It boots no kernel.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cgroup::Cgroup,
    lab::Lab,
    needs,
    netns::{self, Namespace},
    wait,
};

/// Where distributions have it.
const PROGRAMS: [&str; 2] = ["/usr/lib/systemd/systemd", "/lib/systemd/systemd"];
/// Makes the layer, says `up`, and keeps both until nobody listens to it any more.
const HOLD: &str = include_str!("systemd/hold.sh");
/// Puts on the file systems of a machine that boots, and becomes its first process.
const BOOT: &str = include_str!("systemd/boot.sh");
/// How long a boot or its end may take.
const LIMIT: Duration = Duration::from_secs(120);
/// What is called from outside.
const COMMANDS: [&str; 7] = [
    "unshare",
    "nsenter",
    "setpriv",
    "mount",
    "umount",
    "pivot_root",
    "systemctl",
];

/// A machine with a systemd. It goes when the value is dropped.
#[derive(Debug)]
pub struct Machine {
    booted: Option<Child>,
    holder: Child,
    cgroup: String,
    layer: PathBuf,
    namespace: Namespace,
}

impl Machine {
    /// Why there cannot be one here.
    #[must_use]
    pub fn lacks() -> Option<String> {
        if !PROGRAMS.iter().any(|path| Path::new(path).exists()) {
            return Some("there is no systemd here".to_owned());
        }
        if let Some(missing) = COMMANDS.iter().find(|name| !needs::has_command(name)) {
            return Some(format!("the command {missing} is not installed"));
        }
        if Cgroup::mount().is_none() {
            return Some("cgroup2 is not mounted".to_owned());
        }
        None
    }

    /// A machine on a node, before its first boot.
    ///
    /// # Errors
    /// When this kernel or container does not let layers be mounted.
    pub fn prepare(lab: &Lab, node: &str) -> Result<Self> {
        let namespace = lab.node(node);
        let layer = lab.directory().join("systemd");
        fs::create_dir_all(&layer)?;
        let mut command = namespace.command("unshare")?;
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                HOLD,
                "hold",
            ])
            .arg(&layer);
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("starting unshare")?;
        let mut line = String::new();
        if let Some(output) = holder.stdout.take() {
            BufReader::new(output).read_line(&mut line)?;
        }
        let machine = Self {
            booted: None,
            holder,
            cgroup: format!("egress-lab-systemd-{}", lab.id()),
            layer,
            namespace,
        };
        ensure!(
            line == "up\n",
            "no layer above this machine's root: {line:?}"
        );
        Ok(machine)
    }

    /// Boots: every unit that is enabled has been started, or has failed, when this returns.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn boot(&mut self) -> Result<()> {
        self.power_on()?;
        self.wait_booted()
    }

    /// Begins to boot.
    ///
    /// # Errors
    /// When it is up already, or does not start.
    pub fn power_on(&mut self) -> Result<()> {
        ensure!(self.booted.is_none(), "it is up already");
        let cgroup = Cgroup::mount()
            .context("cgroup2 is not mounted")?
            .join(&self.cgroup);
        fs::create_dir_all(&cgroup)?;
        let mut command = self.namespace.command("sh")?;
        command
            .args(["-c", "echo 0 >\"$0/cgroup.procs\" && exec \"$@\""])
            .arg(&cgroup)
            .args(["nsenter", "--mount", "--target"])
            .arg(self.holder.id().to_string())
            .args(["unshare", "--pid", "--fork", "--kill-child"])
            .args(["--mount", "--uts", "--ipc", "sh", "-c", BOOT, "boot"])
            .arg(&self.layer)
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        self.booted = Some(command.spawn().context("starting systemd")?);
        Ok(())
    }

    /// Waits until a boot is over.
    ///
    /// # Errors
    /// When it does not come to its end.
    pub fn wait_booted(&mut self) -> Result<()> {
        wait::until_true("systemd to be up", LIMIT, || {
            let child = self.booted.as_mut().context("nobody has switched it on")?;
            if let Some(status) = child.try_wait()? {
                bail!("systemd ended: {status}");
            }
            // Degraded is a state, too: a unit failed. While there is no systemd yet, this fails.
            let state = self.command(&["systemctl", "is-system-running"]);
            let Ok(output) = state.and_then(|mut command| Ok(command.output()?)) else {
                return Ok(false);
            };
            let state = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            Ok(["running", "degraded"].contains(&state.as_str()))
        })
    }

    /// Ends everything in order, and switches it off: BPF file system, `/run` and processes are gone then.
    ///
    /// # Errors
    /// When it does not end.
    pub fn power_off(&mut self) -> Result<()> {
        // Its first process ends while this asks: whether it is answered says nothing.
        let _ = self
            .command(&["systemctl", "--no-block", "poweroff"])?
            .output();
        let child = self.booted.as_mut().context("it is off already")?;
        wait::until("systemd to end", LIMIT, || Ok(child.try_wait()?))?;
        self.booted = None;
        Ok(())
    }

    /// The path of one of its cgroups below the cgroup2 mount, as zones name it.
    #[must_use]
    pub fn cgroup(&self, inside: &str) -> String {
        format!("{}/{inside}", self.cgroup)
    }

    /// Runs a command inside to its end and returns its output.
    ///
    /// # Errors
    /// When it fails; the message holds what it printed on standard error.
    pub fn run(&self, command: &[&str]) -> Result<String> {
        netns::run(&mut self.command(command)?)
    }

    /// A command that will run inside.
    ///
    /// # Errors
    /// When the machine is off.
    pub fn command(&self, words: &[&str]) -> Result<Command> {
        let init = self.init()?.to_string();
        let mut command = Command::new("nsenter");
        command
            .args(["--all", "--target", &init])
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Where a path of the machine is found from outside, booted or not; not what is on file systems of a boot's own.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        let layer = self.layer.to_string_lossy();
        PathBuf::from(format!(
            "/proc/{}/root{layer}/root{inside}",
            self.holder.id()
        ))
    }

    /// Writes a file, with the directories above it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, inside: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.path(inside);
        let directory = path.parent().context("a file in no directory")?;
        fs::create_dir_all(directory)?;
        fs::write(&path, content).with_context(|| format!("writing {inside}"))
    }

    /// What systemd says of a unit's property.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.run(&["systemctl", "show", "--value", "--property", name, unit])?;
        Ok(value.trim().to_owned())
    }

    /// Its first process, as this machine counts.
    fn init(&self) -> Result<u32> {
        let outside = self.booted.as_ref().context("it is off")?.id();
        let path = format!("/proc/{outside}/task/{outside}/children");
        let children = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let first = children.split_whitespace().next();
        first.context("it has not begun")?.parse().context(path)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut booted) = self.booted.take() {
            // The first process dies with it, and all others with that.
            let _ = booted.kill();
            let _ = booted.wait();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if let Some(mount) = Cgroup::mount() {
            let cgroup = mount.join(&self.cgroup);
            let gone = wait::until_true("empty cgroups", LIMIT, || {
                Ok(!cgroup.exists() || remove_tree(&cgroup).is_ok())
            });
            if let Err(error) = gone {
                eprintln!("removing {}: {error:#}", cgroup.display());
            }
        }
    }
}

/// Removes a cgroup with all below it. Its files go with it.
fn remove_tree(cgroup: &Path) -> Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    Ok(fs::remove_dir(cgroup)?)
}
