//! What every task needs that touches the kernel: root, the programs labs call, and a mounted bpf file system.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    packages,
    workspace::{Workspace, is_root},
};

/// Where pins live; the same place everywhere by convention, and the daemon's default.
const BPFFS: &str = "/sys/fs/bpf";

/// Makes this machine ready for `task`, or says what to do. Quick when it is ready already.
pub(crate) fn ready(task: &str) -> Result<Workspace> {
    ensure!(
        is_root(),
        "`cargo xtask {task}` loads programs into the kernel and makes network namespaces: run it as root, for \
         example with `sudo -E env PATH=\"$PATH\" cargo xtask {task}`"
    );
    packages::ensure_tools()?;
    mount_bpffs()?;
    Workspace::find()
}

/// Mounts the bpf file system if nobody has; most distributions' init does.
fn mount_bpffs() -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    });
    if mounted {
        return Ok(());
    }
    eprintln!("xtask: mounting a bpf file system at {BPFFS} (for pinned programs and maps)");
    let output = Command::new("mount")
        .args(["-t", "bpf", "bpf", BPFFS])
        .output()
        .context("cannot run mount")?;
    ensure!(
        output.status.success(),
        "cannot mount a bpf file system at {BPFFS}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
