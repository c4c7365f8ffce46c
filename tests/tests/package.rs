//! The Debian package under a real systemd: what it starts and when, what replaces a daemon that hangs, upgrades and removals.

use std::{
    env, fs,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    config::Resources,
    gateway,
    leak::Rules,
    needs, netns,
    origin::HTTP_PORT,
    peer::{self, Caller, Peers},
    site::{Plan, Site},
    standard::{A, BOUND, BOUND_ADDRESS, GATEWAY, POOL, UPLINK},
    systemd::Machine,
    wait,
};

/// The package that `cargo xtask dist` makes.
const PACKAGE_VARIABLE: &str = "EGRESS_PACKAGE";
const UNIT: &str = "egress.service";
const FORWARDING: &str = "egress-forwarding.service";
/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// Where nobody answers: only what leaves counts.
const NOWHERE: u16 = 9_001;
/// How long something that is to happen may take.
const LIMIT: Duration = Duration::from_secs(120);
/// In the pool after a reload.
const OTHER: &str = "203.0.113.12";
/// What is started in it is bound, on the gateway itself. It does not exist at first.
const SLICE: &str = "bound.slice";
/// At most so exposed, of 100, says `systemd-analyze security`.
const EXPOSURE: &str = "35";
/// What the unit's 30 seconds are here.
const WATCHDOG: &str = "[Service]\nWatchdogSec=10\n";
const CONFIG: &str = "[server]\nname = \"s1\"\n[dataplane]\nuplink = [\"up0\"]\ninside = [\"in0\", \"in1\"]\n\
                      max_flows = 4096\n[resources]\nfile = \"resources.toml\"\n";

/// The package that [`PACKAGE_VARIABLE`] names, or the one in the target folder.
fn package() -> Result<PathBuf> {
    if let Some(path) = env::var_os(PACKAGE_VARIABLE) {
        return Ok(path.into());
    }
    let this = env::current_exe()?;
    let dist = this.ancestors().map(|directory| directory.join("dist"));
    let found = dist
        .filter_map(|dist| fs::read_dir(dist).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    found.with_context(|| format!("no package: cargo xtask dist, or set {PACKAGE_VARIABLE}"))
}

/// The same package with a later version, and with the later build in it where there is one.
fn next_package(package: &Path, directory: &Path) -> Result<PathBuf> {
    let root = directory.join("next");
    netns::run(
        Command::new("dpkg-deb")
            .arg("--raw-extract")
            .args([package, &root]),
    )?;
    let control = root.join("DEBIAN/control");
    let text = fs::read_to_string(&control)?;
    ensure!(text.contains("\nVersion: 0."), "{text}");
    fs::write(&control, text.replace("\nVersion: 0.", "\nVersion: 9."))?;
    if let Some(next) = env::var_os(gateway::NEXT_BINARY_VARIABLE) {
        fs::copy(next, root.join("usr/bin/egress"))?;
    }
    let next = directory.join("next.deb");
    netns::run(
        Command::new("dpkg-deb")
            .args(["-Znone", "--build"])
            .args([&root, &next]),
    )?;
    Ok(next)
}

/// A zone by source, and by cgroup.
fn resources(machine: &Machine) -> Resources {
    let mut resources = Resources::default();
    resources.selectors += &format!("\ncgroups = [\"{}\"]", machine.cgroup(SLICE));
    resources
}

/// Bound traffic that goes on whatever happens, until this is dropped.
struct Stream<'a> {
    stop: &'a AtomicBool,
}

impl Drop for Stream<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends datagrams and SYNs to where nobody is.
fn send(to: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    while !stop.load(Ordering::Relaxed) {
        // Refused is as good as sent: somebody says so, by ICMP.
        let _ = socket.send_to(b"bound", to);
        let _ = TcpStream::connect_timeout(&to, Duration::from_millis(5));
        // Where it is refused at once as well.
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// The gateway's site, and a machine with systemd on the gateway.
struct Scene {
    machine: Machine,
    site: Site,
}

impl Scene {
    fn forwards(&self) -> Result<bool> {
        let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/{name}"));
        let gateway = self.site.node(GATEWAY);
        let [four, six] =
            gateway.run(|| ["ipv4/ip_forward", "ipv6/conf/all/forwarding"].map(read))?;
        let (four, six) = (four?, six?);
        ensure!(four == six, "{four:?} {six:?}");
        Ok(four.trim() == "1")
    }

    fn state(&self, unit: &str) -> Result<String> {
        self.machine.property(unit, "ActiveState")
    }

    fn pid(&self) -> Result<String> {
        self.machine.property(UNIT, "MainPID")
    }

    fn restarts(&self) -> Result<u32> {
        Ok(self.machine.property(UNIT, "NRestarts")?.parse()?)
    }

    /// As a boot finds the kernel: a data plane and a guard are nowhere, and nothing is forwarded.
    fn as_after_power_off(&self) -> Result<()> {
        let gateway = self.site.node(GATEWAY);
        gateway.nft("flush ruleset")?;
        gateway.sysctl("net/ipv4/ip_forward", "0")?;
        gateway.sysctl("net/ipv6/conf/all/forwarding", "0")
    }

    /// Everything is in force, says systemd and says the program.
    fn in_force(&self) -> Result<()> {
        ensure!(self.state(UNIT)? == "active", "{}", self.journal());
        self.machine.run(&["egress", "status"]).map(drop)
    }

    fn log(&self) -> Result<String> {
        let unit = ["journalctl", "--no-pager", "-u", UNIT];
        self.machine.run(&unit)
    }

    fn journal(&self) -> String {
        let lines = self.machine.run(&["journalctl", "--no-pager", "-n", "60"]);
        lines.unwrap_or_else(|error| format!("{error:#}"))
    }
}

#[test]
fn the_package_under_systemd() -> Result<()> {
    const TEST: &str = "the_package_under_systemd";

    let Some(_turn) = needs::turn(TEST, &["nft", "dpkg", "dpkg-deb", "curl"]) else {
        return Ok(());
    };
    if let Some(reason) = Machine::lacks() {
        needs::skip(TEST, &reason);
        return Ok(());
    }
    let package = match package() {
        Ok(package) => package,
        Err(error) => {
            needs::skip(TEST, &format!("{error:#}"));
            return Ok(());
        }
    };
    let site = Site::prepare(&Plan::default())?;
    let machine = Machine::prepare(&site.lab, GATEWAY).and_then(|mut machine| {
        machine.boot()?;
        Ok(machine)
    });
    let machine = match machine {
        Ok(machine) => machine,
        Err(error) => {
            needs::skip(TEST, &format!("systemd does not run here: {error:#}"));
            return Ok(());
        }
    };
    let mut scene = Scene { machine, site };
    let told = lives(&mut scene, &package);
    told.with_context(|| format!("the journal ends:\n{}", scene.journal()))
}

fn lives(scene: &mut Scene, package: &Path) -> Result<()> {
    scene.as_after_power_off()?;
    let begun = Instant::now();
    let say = |what: &str| println!("{:5.1} s: {what}", begun.elapsed().as_secs_f32());
    installs(scene, package)?;
    say("installed");
    stays_off_where_it_cannot_be_in_force(scene)?;
    say("wrong configurations");
    boots(scene)?;
    binds_a_slice(scene)?;
    say("booted");
    let listener = peer::listen(&scene.site.node(A), scene.site.at_a(PORT))?;
    let mut live = Peers::connect(&scene.site.node(BOUND), Caller::default(), &listener)?;
    ensure!(POOL.map(IpAddr::from).contains(&live.seen.ip()), "{live:?}");
    let watch = scene
        .site
        .watch_for(Rules::new().allow(POOL).allow([OTHER.parse::<IpAddr>()?]))?;
    is_replaced_when_it_hangs(scene, || {
        live.exchange()?;
        let new = Peers::connect(&scene.site.node(BOUND), Caller::default(), &listener)?;
        ensure!(POOL.map(IpAddr::from).contains(&new.seen.ip()), "{new:?}");
        Ok(())
    })?;
    live.exchange()?;
    say("watched");
    reloads(scene)?;
    live.exchange()?;
    say("reloaded");
    scene.machine.run(&["systemctl", "stop", UNIT])?;
    ensure!(scene.state(UNIT)? == "inactive");
    live.exchange()?;
    scene.machine.run(&["systemctl", "start", UNIT])?;
    scene.in_force()?;
    live.exchange()?;
    say("stopped and started");
    is_upgraded(scene, package)?;
    live.exchange()?;
    say("upgraded");
    watch.finish()?;
    is_purged(scene)?;
    say("purged");
    // It powers off in order, too.
    scene.machine.power_off()
}

/// Installs a package, without what other packages do whenever anything is installed.
fn install(machine: &Machine, package: &Path) -> Result<()> {
    machine.write("/root/egress.deb", fs::read(package)?)?;
    // What it depends on may have come otherwise than by a package.
    let install = ["dpkg", "--install", "--no-triggers", "--force-depends"];
    machine.run(&[&install[..], &["/root/egress.deb"]].concat())?;
    Ok(())
}

/// Nothing is started by itself, and systemd has no complaint.
fn installs(scene: &Scene, package: &Path) -> Result<()> {
    let machine = &scene.machine;
    install(machine, package)?;
    ensure!(scene.state(UNIT)? == "inactive" && scene.state(FORWARDING)? == "inactive");
    let said = machine
        .command(&["systemd-analyze", "verify", UNIT, FORWARDING])?
        .output()?;
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    ensure!(!said.contains("egress"), "{said}");
    let threshold = format!("--threshold={EXPOSURE}");
    let security = [
        "systemd-analyze",
        "security",
        "--no-pager",
        &threshold,
        UNIT,
    ];
    let said = machine.command(&security)?.output()?;
    let text = String::from_utf8_lossy(&said.stdout);
    ensure!(said.status.success(), "more than {EXPOSURE}: {text}");
    println!("{}", text.trim().lines().last().unwrap_or_default());
    machine.run(&["systemctl", "enable", UNIT, FORWARDING])?;
    Ok(())
}

/// Without a configuration, and with one that is wrong, nothing is forwarded.
fn stays_off_where_it_cannot_be_in_force(scene: &Scene) -> Result<()> {
    for config in [None, Some("[dataplane]\nuplinks = 1\n")] {
        if let Some(text) = config {
            scene.machine.write("/etc/egress/egress.toml", text)?;
        }
        for unit in [UNIT, FORWARDING] {
            let start = ["systemctl", "start", unit];
            ensure!(scene.machine.run(&start).is_err(), "{unit}: {config:?}");
        }
        ensure!(!scene.forwards()? && scene.state(UNIT)? != "active");
    }
    // Wrong today is wrong tomorrow: it is not tried again.
    ensure!(scene.state(UNIT)? == "failed" && scene.restarts()? == 0);
    ensure!(scene.machine.property(UNIT, "ExecMainStatus")? == "2");
    Ok(())
}

/// Nothing bound leaves as it is while a machine boots whose uplink comes late.
fn boots(scene: &mut Scene) -> Result<()> {
    let machine = &scene.machine;
    machine.write("/etc/egress/egress.toml", CONFIG)?;
    machine.write("/etc/egress/resources.toml", resources(machine).text())?;
    machine.write(
        "/etc/systemd/system/egress.service.d/watchdog.conf",
        WATCHDOG,
    )?;
    scene.machine.power_off()?;
    let gateway = scene.site.node(GATEWAY);
    scene.as_after_power_off()?;
    gateway.ip_batch(&[
        format!("link set {UPLINK} down"),
        format!("link set {UPLINK} name late0"),
    ])?;
    let watch = scene.site.watch()?;
    let stop = AtomicBool::new(false);
    let to = scene.site.at_a(NOWHERE);
    let bound = scene.site.node(BOUND);
    thread::scope(|scope| {
        let sends = scope.spawn(|| bound.run(|| send(to, &stop)));
        let stream = Stream { stop: &stop };
        scene.machine.boot()?;
        ensure!(!scene.forwards()? && scene.state(UNIT)? != "active");
        wait::until_true("a second try", LIMIT, || Ok(scene.restarts()? > 0))?;
        gateway.ip_batch(&[
            format!("link set late0 name {UPLINK}"),
            format!("link set {UPLINK} up"),
            "route add default via 203.0.113.1".to_owned(),
        ])?;
        wait::until_true("forwarding", LIMIT, || scene.forwards())?;
        scene.in_force()?;
        wait::until_true("bound packets on their way", LIMIT, || {
            Ok(watch.so_far().packets > 0)
        })?;
        drop(stream);
        sends
            .join()
            .unwrap_or_else(|_| bail!("the sender panicked"))??;
        watch.finish()?;
        Ok(())
    })
}

/// What systemd starts in a slice that was not there when the daemon began is bound.
fn binds_a_slice(scene: &Scene) -> Result<()> {
    let slice = format!("--slice={SLICE}");
    let url = format!("http://{}/ip", scene.site.at_a(HTTP_PORT));
    let seen = scene.machine.run(&[
        "systemd-run",
        "--quiet",
        "--wait",
        "--pipe",
        &slice,
        "curl",
        "--silent",
        "--show-error",
        "--max-time",
        "60",
        &url,
    ])?;
    let seen: IpAddr = seen.trim().parse().with_context(|| seen.clone())?;
    ensure!(POOL.map(IpAddr::from).contains(&seen), "{seen}");
    Ok(())
}

/// A daemon that does not say that it lives is replaced; packets go on meanwhile, and so they do with its successor.
fn is_replaced_when_it_hangs(scene: &Scene, goes_on: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = (scene.pid()?, scene.restarts()?);
    scene.machine.run(&["kill", "-STOP", &before.0])?;
    goes_on()?;
    wait::until_true("another daemon", LIMIT, || {
        Ok(scene.restarts()? > before.1 && scene.state(UNIT)? == "active")
    })?;
    ensure!(scene.pid()? != before.0);
    let journal = scene
        .machine
        .run(&["journalctl", "--no-pager", "-u", UNIT])?;
    ensure!(journal.contains("Watchdog timeout"), "{journal}");
    scene.in_force()
}

/// What is right is taken over by a reload; what is wrong stops nobody.
fn reloads(scene: &Scene) -> Result<()> {
    let before = scene.pid()?;
    let bound = || scene.site.curl(BOUND, scene.site.at_a(HTTP_PORT));
    let reload = |text: &str| {
        let file = "/etc/egress/resources.toml";
        scene.machine.write(file, text)?;
        scene.machine.run(&["systemctl", "reload", UNIT])
    };
    reload("[[zone]]\nthis is wrong")?;
    wait::until_true("a refusal in the journal", LIMIT, || {
        Ok(scene.log()?.contains("this is wrong"))
    })?;
    ensure!(!bound()?.contains(OTHER));
    let other = Resources {
        addresses: vec![OTHER.to_owned()],
        ..resources(&scene.machine)
    };
    reload(&other.text())?;
    wait::until_true("the other address", LIMIT, || Ok(bound()?.contains(OTHER)))?;
    ensure!(scene.pid()? == before);
    scene.in_force()
}

/// A later version takes the running one's place.
fn is_upgraded(scene: &Scene, package: &Path) -> Result<()> {
    let before = scene.pid()?;
    let next = next_package(package, &scene.site.lab.directory())?;
    install(&scene.machine, &next)?;
    ensure!(scene.pid()? != before);
    scene.in_force()
}

/// Nothing of it is left, neither in the kernel nor in files.
fn is_purged(scene: &Scene) -> Result<()> {
    let machine = &scene.machine;
    machine.run(&["dpkg", "--purge", "--no-triggers", "egress"])?;
    ensure!(machine.property(UNIT, "LoadState")? == "not-found");
    ensure!(machine.property(FORWARDING, "LoadState")? == "not-found");
    for gone in [
        "/etc/egress",
        "/var/lib/egress",
        "/var/log/egress",
        "/run/egress",
        "/sys/fs/bpf/egress",
        "/usr/bin/egress",
    ] {
        ensure!(machine.run(&["ls", "-d", gone]).is_err(), "{gone} is left");
    }
    let rules = machine.run(&["nft", "list", "ruleset"])?;
    ensure!(rules.is_empty(), "{rules}");
    // Nobody translates any more.
    let seen = scene.site.curl(BOUND, scene.site.at_a(HTTP_PORT))?;
    ensure!(seen.contains(&BOUND_ADDRESS.to_string()), "{seen}");
    Ok(())
}
