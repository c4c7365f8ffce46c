//! A topology that is up.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, Result};

use crate::{
    interrupt,
    netns::{self, Namespace},
    registry::{self, Entry},
    topology::{End, Topology},
};

/// A lab that stands; it goes when the value is dropped, on Ctrl-C, and at the latest when a later
/// run sweeps.
#[derive(Debug)]
pub struct Lab {
    standing: Arc<Standing>,
}

/// What stands of a lab, shared with the signal handler.
#[derive(Debug)]
pub(crate) struct Standing {
    entry: Entry,
    down: AtomicBool,
}

impl Standing {
    /// Takes the lab down, once.
    pub(crate) fn take_down(&self) -> Result<()> {
        if self.down.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.entry.destroy()
    }
}

impl Lab {
    /// Sweeps left-overs and sets the network up.
    ///
    /// # Errors
    /// When something cannot be set up; what was set up until then is taken down.
    pub fn up(topology: &Topology) -> Result<Self> {
        registry::sweep()?;
        registry::ensure_bpf_mount()?;
        let lab = Self::of(Entry::claim()?);
        interrupt::watch(Arc::downgrade(&lab.standing))?;
        lab.build(topology)?;
        Ok(lab)
    }

    /// Sets up a network that outlives this process, until [`Lab::down`].
    ///
    /// # Errors
    /// As [`Lab::up`], and when a lab of that name is up.
    pub fn up_persistent(name: &str, topology: &Topology) -> Result<Self> {
        registry::sweep()?;
        registry::ensure_bpf_mount()?;
        let lab = Self::of(Entry::claim_persistent(name)?);
        lab.build(topology)?;
        Ok(lab)
    }

    /// Finds a persistent lab; dropping the value leaves it standing.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn open(name: &str) -> Result<Self> {
        let lab = Self::of(Entry::open(name)?);
        lab.standing.down.store(true, Ordering::SeqCst);
        Ok(lab)
    }

    /// Takes the lab down now, and says what went wrong.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn down(self) -> Result<()> {
        self.standing.down.store(false, Ordering::SeqCst);
        self.standing.take_down()
    }

    /// Leaves the lab standing (a persistent one).
    pub fn keep(self) {
        self.standing.down.store(true, Ordering::SeqCst);
    }

    /// The lab's number or name.
    #[must_use]
    pub fn id(&self) -> &str {
        self.standing.entry.id()
    }

    /// The directory for the lab's files.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.standing.entry.directory()
    }

    /// The directory for the lab's pinned BPF objects.
    #[must_use]
    pub fn pin(&self) -> PathBuf {
        self.standing.entry.pin()
    }

    /// A directory for the pins of a second daemon.
    #[must_use]
    pub fn second_pin(&self) -> PathBuf {
        let mut name = self.pin().into_os_string();
        name.push("-second");
        name.into()
    }

    /// The namespace of a node.
    #[must_use]
    pub fn node(&self, name: &str) -> Namespace {
        self.standing.entry.namespace(name)
    }

    /// Runs a command on a node to its end and returns its output.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn exec(&self, node: &str, command: &[&str]) -> Result<String> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        netns::run(self.node(node).command(program)?.args(arguments))
    }

    fn of(entry: Entry) -> Self {
        Self {
            standing: Arc::new(Standing {
                entry,
                down: AtomicBool::new(false),
            }),
        }
    }

    fn build(&self, topology: &Topology) -> Result<()> {
        for node in &topology.nodes {
            let namespace = Namespace::create(self.node(&node.name).name())?;
            // Addresses must be usable at once, and only traffic that a test sends should flow.
            for family in ["all", "default"] {
                namespace.sysctl(&format!("net/ipv6/conf/{family}/accept_dad"), "0")?;
                namespace.sysctl(&format!("net/ipv6/conf/{family}/accept_ra"), "0")?;
                namespace.sysctl(&format!("net/ipv6/conf/{family}/router_solicitations"), "0")?;
            }
            // Kernels send few errors to one address, and before Linux 6.13 few in all, whatever the namespace: here no kind
            // of them counts, or one lab's errors would be missing in another.
            namespace.sysctl("net.ipv4.icmp_ratemask", "0")?;
            namespace.sysctl("net.ipv6.icmp.ratemask", "\n")?;
            for (name, value) in &node.sysctls {
                namespace.sysctl(name, value)?;
            }
            for bridge in &node.bridges {
                namespace.ip(&format!("link add {bridge} type bridge"))?;
                namespace.ip(&format!("link set {bridge} up"))?;
            }
        }
        for (one, other) in &topology.links {
            self.link(one, other)?;
        }
        for node in &topology.nodes {
            for route in &node.routes {
                let family = if route.contains(':') { "-6" } else { "-4" };
                self.node(&node.name)
                    .ip(&format!("{family} route add {route}"))?;
            }
            for script in &node.nft {
                self.node(&node.name).nft(script)?;
            }
        }
        Ok(())
    }

    fn link(&self, one: &End, other: &End) -> Result<()> {
        self.node(&one.node).ip(&format!(
            "link add {} type veth peer name {} netns {}",
            one.interface,
            other.interface,
            self.node(&other.node).name()
        ))?;
        for end in [one, other] {
            self.configure(end)?;
        }
        Ok(())
    }

    /// Gives an interface that exists its addresses, and brings it up.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn configure(&self, end: &End) -> Result<()> {
        let interface = &end.interface;
        let mut lines = Vec::new();
        if let Some(mac) = &end.mac {
            lines.push(format!("link set {interface} address {mac}"));
        }
        if let Some(bridge) = &end.bridge {
            lines.push(format!("link set {interface} master {bridge}"));
        }
        for address in &end.addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            lines.push(format!("address add {address} dev {interface}{nodad}"));
        }
        lines.push(format!("link set {interface} up"));
        self.node(&end.node).ip_batch(&lines)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.standing.take_down() {
            eprintln!("taking lab {} down: {error:#}", self.id());
        }
    }
}
