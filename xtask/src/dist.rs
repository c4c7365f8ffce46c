//! `cargo xtask dist`: a Debian package at `target/dist`.
//!
//! The binary brings its manual pages, completions and kernel programs along; this puts them where the distribution
//! expects them, with the units of `packaging/` and the documentation.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};

use crate::{build, packages, workspace::Workspace};

/// Options of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Documentation that is of use on a server.
const DOCUMENTS: [&str; 8] = [
    "README.md",
    "docs/operations.md",
    "docs/api.md",
    "docs/rules.md",
    "docs/egress.toml",
    "docs/resources.toml",
    "docs/prometheus/rules.yml",
    "docs/prometheus/dashboard.json",
];

/// Run when the package is installed or upgraded: a running daemon is replaced, and nothing is started by itself.
const POSTINST: &str = "#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
    systemctl try-restart egress.service
fi
";
/// Run before the package is removed, or upgraded: only a removal takes the data plane off.
const PRERM: &str = "#!/bin/sh
set -e
if [ \"$1\" = remove ]; then
    if [ -d /run/systemd/system ]; then
        systemctl disable --now egress-forwarding.service egress.service || true
    fi
    egress detach || true
fi
";
/// Run after the package is gone: systemd forgets its units, and what is purged leaves no files of ours.
const POSTRM: &str = "#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
if [ \"$1\" = remove ]; then
    rm -rf /run/egress
fi
if [ \"$1\" = purge ]; then
    rm -rf /etc/egress /var/lib/egress /var/log/egress
fi
";

/// Builds the package and says where it is.
pub(crate) fn main(_args: &Args) -> Result<()> {
    let workspace = Workspace::find()?;
    let binary = build::release(&workspace)?;
    let package = package(&workspace, &binary, Compression::Best)?;
    let shown = package.strip_prefix(&workspace.root).unwrap_or(&package);
    println!("{}", shown.display());
    Ok(())
}

/// How much work to put into a small package.
#[derive(Clone, Copy)]
pub(crate) enum Compression {
    /// As small as can be, for those who download it.
    Best,
    /// None, for tests.
    None,
}

/// The package of a binary.
pub(crate) fn package(
    workspace: &Workspace,
    binary: &Path,
    compression: Compression,
) -> Result<PathBuf> {
    packages::ensure_commands(&[packages::Tool {
        command: "dpkg-deb",
        package: "dpkg",
        purpose: "the package",
    }])?;
    let dist = workspace.target.join("dist");
    let root = dist.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    let installed = root.join("usr/bin/egress");
    put(binary, &installed, 0o755)?;
    strip(&installed)?;
    for unit in ["egress.service", "egress-forwarding.service"] {
        let from = workspace.root.join("packaging").join(unit);
        put(
            &from,
            &root.join("usr/lib/systemd/system").join(unit),
            0o644,
        )?;
    }
    let documents = root.join("usr/share/doc/egress");
    for document in DOCUMENTS {
        let from = workspace.root.join(document);
        let name = document.strip_prefix("docs/").unwrap_or(document);
        put(&from, &documents.join(name), 0o644)?;
    }
    let manual = root.join("usr/share/man/man1");
    fs::create_dir_all(&manual)?;
    run(Command::new(binary).arg("manual").arg(&manual))?;
    for (shell, place) in [
        ("bash", "usr/share/bash-completion/completions/egress"),
        ("zsh", "usr/share/zsh/vendor-completions/_egress"),
        ("fish", "usr/share/fish/vendor_completions.d/egress.fish"),
    ] {
        let output = Command::new(binary).args(["completions", shell]).output()?;
        ensure!(output.status.success(), "no completions for {shell}");
        write(&root.join(place), &output.stdout, 0o644)?;
    }
    let architecture = text(Command::new("dpkg").arg("--print-architecture"))?;
    let version = env!("CARGO_PKG_VERSION");
    write(
        &root.join("DEBIAN/control"),
        format!(
            "Package: egress\nVersion: {version}\nArchitecture: {architecture}\nSection: net\nPriority: optional\n\
             Maintainer: the egress authors <egress@localhost>\n\
             Installed-Size: {}\nDepends: libc6, nftables, procps\n\
             Description: dedicated egress IPs for Linux\n \
             Connections of bound containers, proxies and networks leave from addresses that are reserved\n for them, \
             or not at all. Kernel programs translate; a daemon manages them.\n",
            size(&root)?.div_ceil(1024)
        )
        .as_bytes(),
        0o644,
    )?;
    write(&root.join("DEBIAN/postinst"), POSTINST.as_bytes(), 0o755)?;
    write(&root.join("DEBIAN/prerm"), PRERM.as_bytes(), 0o755)?;
    write(&root.join("DEBIAN/postrm"), POSTRM.as_bytes(), 0o755)?;
    let package = dist.join(format!("egress_{version}_{architecture}.deb"));
    let compress: &[&str] = match compression {
        Compression::Best => &[],
        Compression::None => &["-Znone"],
    };
    run(Command::new("dpkg-deb")
        .args(compress)
        .args(["--root-owner-group", "--build"])
        .args([&root, &package]))?;
    Ok(package)
}

/// Copies a file, with the directories above it.
fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    write(to, &bytes, mode)
}

fn write(to: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let directory = to.parent().context("a file in no directory")?;
    fs::create_dir_all(directory)?;
    fs::write(to, bytes).with_context(|| format!("writing {}", to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// Without what only debuggers read, where there is a program for it.
fn strip(binary: &Path) -> Result<()> {
    if crate::workspace::which("strip").is_some() {
        run(Command::new("strip").arg("--strip-debug").arg(binary))?;
    }
    Ok(())
}

/// Bytes of all files below.
fn size(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

fn text(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
