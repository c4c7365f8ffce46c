//! A network namespace, a pin directory, and what is needed to look at both.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use egress_userspace::config::Dataplane;
use egress_userspace::dataplane::api::{DataPlaneStatus, DataPlaneView as _, Names};
use egress_userspace::dataplane::{View, detach};
use egress_userspace::desired::{
    ALL_SLICES, Candidate, Desired, DesiredPool, DesiredZone, Selectors,
};

/// Small tables: tests make many of them.
const FLOWS: u32 = 1_024;

/// Says why a test does not run, in the form that `cargo xtask test` counts.
fn skip(test: &str, reason: &str) {
    println!("SKIPPED: {test}: {reason}");
}

/// Whether the running kernel has tcx: by its version, not by what our own code makes of it.
pub(crate) fn has_tcx() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        panic!("the kernel's release is {release}");
    };
    (major, minor) >= (6, 6)
}

/// Whether the running kernel has tcx; says that the test, or a part of it, does not run if not.
pub(crate) fn needs_tcx(test: &str) -> bool {
    if !has_tcx() {
        skip(test, "this kernel has no tcx (Linux 6.6 and later)");
    }
    has_tcx()
}

/// Makes a device by `ip link add`; says that the test, or a part of it, does not run where the kernel has no such kind.
pub(crate) fn device(test: &str, arguments: &str) -> bool {
    let made = Command::new("ip")
        .args(["link", "add"])
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        skip(test, &format!("`ip link add {arguments}`: {}", said.trim()));
    }
    made.status.success()
}

/// Runs `body` in a network namespace of its own with the interfaces `up0` and `in0`, if this machine can.
pub(crate) fn run(test: &str, body: impl FnOnce(&Bench) + Send) {
    // SAFETY: takes nothing and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return skip(test, "network namespaces and kernel programs need root");
    }
    for command in ["ip", "nft", "mount"] {
        if Command::new(command).arg("--version").output().is_err() {
            return skip(test, &format!("the command {command} is not installed"));
        }
    }
    if !mount_bpffs() {
        return skip(test, "no BPF file system can be mounted");
    }
    thread::scope(|scope| {
        let body = scope.spawn(|| {
            enter_new_namespace();
            let bench = Bench::new();
            body(&bench);
        });
        if let Err(panic) = body.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn enter_new_namespace() {
    // SAFETY: changes this thread's namespace only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
}

/// The daemon explains how to mount it; tests just do.
fn mount_bpffs() -> bool {
    let mounted = || {
        fs::read_to_string("/proc/self/mounts")
            .unwrap_or_default()
            .lines()
            .any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf"))
    };
    mounted()
        || (Command::new("mount")
            .args(["-t", "bpf", "bpf", "/sys/fs/bpf"])
            .status()
            .is_ok_and(|status| status.success()))
        || mounted()
}

/// Where a test plays; cleaned up on drop, also when the test fails.
pub(crate) struct Bench {
    pub(crate) pin: PathBuf,
    neighbours: std::cell::RefCell<Vec<Child>>,
}

impl Bench {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let bench = Self {
            pin: PathBuf::from(format!(
                "/sys/fs/bpf/egress_plane_{}_{number}",
                std::process::id()
            )),
            neighbours: std::cell::RefCell::default(),
        };
        // Neighbour discovery of its own accord would be counted where tests count packets.
        drop(fs::write(
            "/proc/sys/net/ipv6/conf/default/disable_ipv6",
            "1",
        ));
        ip("link set lo up");
        for name in ["up0", "in0", "mgmt0"] {
            bench.link(name);
        }
        bench
    }

    /// Creates a pair of interfaces, `name` and `peer-name`, both up.
    pub(crate) fn link(&self, name: &str) {
        ip(&format!("link add {name} type veth peer name peer-{name}"));
        ip(&format!("link set {name} up"));
        ip(&format!("link set peer-{name} up"));
    }

    /// Moves `peer-name` into a namespace of its own with an address and a default route; returns how to run a
    /// command there.
    pub(crate) fn neighbour(
        &self,
        name: &str,
        address: &str,
        gateway: &str,
    ) -> impl Fn(&str) -> bool + use<> {
        let child = Command::new("unshare")
            .args(["--net", "sleep", "600"])
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let id = child.id();
        self.neighbours.borrow_mut().push(child);
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        until("the neighbour's namespace", || {
            fs::read_link(format!("/proc/{id}/ns/net")).is_ok_and(|other| other != own)
        });
        ip(&format!("link set peer-{name} netns {id}"));
        let run = move |command: &str| {
            Command::new("nsenter")
                .args(["-t", &id.to_string(), "--net", "sh", "-c", command])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        };
        assert!(run(&format!(
            "ip link set lo up && ip addr add {address} dev peer-{name} && ip link set peer-{name} up && \
             ip route add default via {gateway}"
        )));
        run
    }

    pub(crate) fn config(&self) -> Dataplane {
        Dataplane {
            uplink: vec!["up0".into()],
            inside: vec!["in0".into()],
            max_flows: FLOWS,
            max_origins: FLOWS,
            pin: self.pin.clone(),
            ..Dataplane::default()
        }
    }

    /// What a command line sees that finds no daemon.
    pub(crate) fn view(&self) -> View {
        View::open(&self.config(), Names::default()).unwrap()
    }

    /// The status, likewise.
    pub(crate) fn status(&self) -> DataPlaneStatus {
        self.view().status().unwrap()
    }

    /// How many entries a pinned map of ids has.
    pub(crate) fn entries(&self, name: &str) -> usize {
        let map = MapData::from_pin(self.pin.join("maps").join(name)).unwrap();
        let map: HashMap<MapData, [u64; 2], u32> =
            Map::from_map_data(map).unwrap().try_into().unwrap();
        map.keys().count()
    }

    /// The program on a hook.
    pub(crate) fn program(&self, hook: &str) -> Option<u32> {
        self.status()
            .hooks
            .iter()
            .find(|status| status.hook == hook)
            .and_then(|status| status.program_id)
    }

    pub(crate) fn assert_in_place(&self) {
        let status = self.status();
        assert!(status.guard, "{status:?}");
        assert_eq!(status.hooks.len(), 4);
        assert!(status.hooks.iter().all(|hook| hook.in_place), "{status:?}");
    }

    /// `<pin>-new` or `<pin>-gone`.
    pub(crate) fn beside(&self, suffix: &str) -> PathBuf {
        PathBuf::from(format!("{}{suffix}", self.pin.display()))
    }

    pub(crate) fn tables(&self) -> String {
        output("nft", "list tables")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for child in self.neighbours.get_mut() {
            drop(child.kill());
            drop(child.wait());
        }
        // Whatever the test left, in whatever state.
        for pin in [self.pin.clone(), self.beside("_second")] {
            drop(detach(&pin));
        }
        for place in [self.pin.clone(), self.beside("-new"), self.beside("-gone")] {
            drop(fs::remove_dir_all(place));
        }
    }
}

/// Runs `ip`, which must succeed.
pub(crate) fn ip(arguments: &str) {
    output("ip", arguments);
}

/// What a command prints; it must succeed.
pub(crate) fn output(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Waits for a condition, for as long as is reasonable on a busy machine.
pub(crate) fn until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A zone of these sources with a pool of these addresses.
pub(crate) fn desired(enabled: bool, sources: &[&str], addresses: &[&str]) -> Desired {
    Desired {
        zones: vec![DesiredZone {
            number: 1,
            id: "z".into(),
            name: "shop".into(),
            enabled,
            pool: Some(1),
            selectors: Selectors {
                sources: sources.iter().map(|net| net.parse().unwrap()).collect(),
                ..Selectors::default()
            },
            realm: false,
            egress_tcp: true,
            egress_udp: true,
        }],
        pools: vec![DesiredPool {
            number: 1,
            id: "p".into(),
            candidates: addresses
                .iter()
                .map(|address| Candidate {
                    address: address.parse::<Ipv4Addr>().unwrap(),
                    slices: ALL_SLICES,
                    cap: 40_000,
                    draining: false,
                })
                .collect(),
            prefixes: Vec::new(),
        }],
        ..Desired::default()
    }
}

/// The id of a pinned map.
pub(crate) fn map_id(pin: &Path, name: &str) -> u32 {
    aya::maps::MapInfo::from_pin(pin.join("maps").join(name))
        .unwrap()
        .id()
}
