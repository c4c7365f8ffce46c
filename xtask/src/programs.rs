//! Other people's clients and servers that tests run through the gateway.
//!
//! Promises: they are unpacked below the target folder and not installed, because a distribution starts the servers
//! that it installs, now and at each boot; whoever watches reads what is unpacked and what for; and where one cannot be
//! had, a line says so and the tests that need it say `SKIPPED`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    packages::{self, Tool},
    workspace::{Workspace, which},
};

/// What the tests call besides what labs need (`packages.rs`).
const PROGRAMS: [Tool; 16] = [
    Tool {
        command: "stun",
        package: "stun-client",
        purpose: "what kind of NAT a client sees",
    },
    Tool {
        command: "stund",
        package: "stun-server",
        purpose: "the server to that",
    },
    Tool {
        command: "turnutils_natdiscovery",
        package: "coturn",
        purpose: "what kind of NAT a client sees, by RFC 5780",
    },
    Tool {
        command: "nginx",
        package: "nginx-light",
        purpose: "a web server",
    },
    Tool {
        command: "dig",
        package: "bind9-dnsutils",
        purpose: "DNS queries",
    },
    Tool {
        command: "nsd",
        package: "nsd",
        purpose: "a DNS server",
    },
    Tool {
        command: "openssl",
        package: "openssl",
        purpose: "TLS",
    },
    Tool {
        command: "gtlsclient",
        package: "ngtcp2-client",
        purpose: "QUIC",
    },
    Tool {
        command: "gtlsserver",
        package: "ngtcp2-server",
        purpose: "a QUIC server",
    },
    Tool {
        command: "vsftpd",
        package: "vsftpd",
        purpose: "an FTP server",
    },
    Tool {
        command: "lftp",
        package: "lftp",
        purpose: "FTP in passive mode",
    },
    Tool {
        command: "tracepath",
        package: "iputils-tracepath",
        purpose: "the path and its MTU",
    },
    Tool {
        command: "ethtool",
        package: "ethtool",
        purpose: "switching VLAN offload",
    },
    Tool {
        command: "bird",
        package: "bird2",
        purpose: "announcing egress IPs by BGP",
    },
    Tool {
        command: "etcd",
        package: "etcd-server",
        purpose: "the store that servers share",
    },
    Tool {
        command: "promtool",
        package: "prometheus",
        purpose: "checking metrics and alert rules",
    },
];

/// Unpacks what is neither installed nor unpacked yet, and returns the folder that stands for `/`.
pub(crate) fn unpack(workspace: &Workspace) -> PathBuf {
    let root = workspace.target.join("programs");
    for tool in &PROGRAMS {
        if which(tool.command).is_some() || is_unpacked(&root, tool.command) {
            continue;
        }
        eprintln!(
            "xtask: unpacking {} into {} (for {}; it is not installed, nothing is started)",
            tool.package,
            root.display(),
            tool.purpose
        );
        if let Err(error) = fetch(&root, tool) {
            eprintln!(
                "xtask: no {}, so the tests that need it will say SKIPPED: {error:#}",
                tool.command
            );
        }
    }
    root
}

/// Unpacks what a lab cannot do without, and lets it be found.
///
/// # Errors
/// When one is not there and cannot be had; the message names its package.
pub(crate) fn provide(workspace: &Workspace, commands: &[&str]) -> Result<()> {
    let root = workspace.target.join("programs");
    if std::env::var_os(egress_tests::programs::VARIABLE).is_none() {
        egress_tests::programs::use_folder(root.clone());
    }
    for tool in PROGRAMS
        .iter()
        .filter(|tool| commands.contains(&tool.command))
    {
        if egress_tests::programs::find(tool.command).is_some() {
            continue;
        }
        eprintln!(
            "xtask: unpacking {} into {} (for {}; it is not installed, nothing is started)",
            tool.package,
            root.display(),
            tool.purpose
        );
        fetch(&root, tool).with_context(|| {
            format!(
                "this lab needs {} (for {}): install the package {}, or let apt reach its mirrors",
                tool.command, tool.purpose, tool.package
            )
        })?;
    }
    Ok(())
}

/// Whether a command is among those unpacked before.
fn is_unpacked(root: &Path, command: &str) -> bool {
    ["usr/bin", "usr/sbin", "bin", "sbin"]
        .iter()
        .any(|directory| root.join(directory).join(command).exists())
}

/// Downloads a package with whatever it depends on that is not installed, and unpacks all of it.
fn fetch(root: &Path, tool: &Tool) -> Result<()> {
    let archives = root.join("archives");
    // apt wants this one to be there.
    fs::create_dir_all(archives.join("partial"))
        .with_context(|| format!("cannot create {}", archives.display()))?;
    packages::download(tool.package, &archives)?;
    for entry in fs::read_dir(&archives)? {
        let archive = entry?.path();
        if archive
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            let output = Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&archive)
                .arg(root)
                .output()
                .context("cannot run dpkg-deb")?;
            ensure!(
                output.status.success(),
                "cannot unpack {}: {}",
                archive.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
            fs::remove_file(&archive)?;
        }
    }
    ensure!(
        is_unpacked(root, tool.command),
        "package {} has no {}",
        tool.package,
        tool.command
    );
    Ok(())
}
