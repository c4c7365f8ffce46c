//! The systemd unit's promises, without systemd: what it lets the daemon have is enough, and the daemon tells it how it is.

use std::{
    fs,
    net::IpAddr,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    gateway, needs,
    peer::{self, Caller, Peers},
    site::{Plan, Site},
    standard::{A, BOUND, POOL},
};

const UNIT: &str = include_str!("../../packaging/egress.service");
/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
const LIMIT: Duration = Duration::from_secs(30);

/// What the unit says of a key.
fn of_unit(key: &str) -> Result<&'static str> {
    let line = UNIT
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.with_context(|| format!("the unit has no {key}"))
}

/// Waits for a message that has this line.
fn told(socket: &UnixDatagram, wanted: &str) -> Result<()> {
    let begun = Instant::now();
    let mut buffer = [0; 4096];
    while begun.elapsed() < LIMIT {
        let Ok(length) = socket.recv(&mut buffer) else {
            continue;
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        if text.lines().any(|line| line == wanted) {
            return Ok(());
        }
    }
    bail!("nobody said {wanted}")
}

#[test]
fn the_daemon_lives_with_what_the_unit_gives_it() -> Result<()> {
    const TEST: &str = "the_daemon_lives_with_what_the_unit_gives_it";

    let Some(_turn) = needs::turn(TEST, &["nft", "setpriv"]) else {
        return Ok(());
    };
    for attach in ["auto", "clsact"] {
        lives(attach).with_context(|| attach)?;
    }
    Ok(())
}

fn lives(attach: &str) -> Result<()> {
    let mut plan = Plan::default();
    plan.server.dataplane = format!("attach = \"{attach}\"");
    // A cgroup that is waited for takes a program on a tracepoint.
    plan.resources
        .selectors
        .push_str("\ncgroups = [\"egress-unit.slice\"]");
    let mut site = Site::prepare(&plan)?;
    let directory = site.lab.directory();
    let capabilities: Vec<String> = of_unit("CapabilityBoundingSet")?
        .split(' ')
        .map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase()))
        .collect();
    ensure!(capabilities.len() > 2, "{capabilities:?}");
    ensure!(of_unit("Type")? == "notify" && of_unit("NoNewPrivileges")? == "yes");
    let watchdog: u64 = of_unit("WatchdogSec")?.parse()?;
    let wrapper = directory.join("as-the-unit");
    let path = directory.join("notify");
    fs::write(
        &wrapper,
        format!(
            "#!/bin/sh\nexport NOTIFY_SOCKET={} WATCHDOG_USEC={}\n\
             exec setpriv --no-new-privs --bounding-set=-all,{} {} \"$@\"\n",
            path.display(),
            watchdog * 1_000_000,
            capabilities.join(","),
            gateway::binary()?.display()
        ),
    )?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;

    site.gateway.use_binary(wrapper);
    site.gateway.restart()?;
    told(&socket, "READY=1")?;
    told(&socket, "WATCHDOG=1")?;
    let begun = Instant::now();
    told(&socket, "WATCHDOG=1")?;
    ensure!(
        begun.elapsed() < Duration::from_secs(watchdog / 2),
        "{:?}",
        begun.elapsed()
    );
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let mut live = Peers::connect(&site.node(BOUND), Caller::default(), &listener)?;
    ensure!(POOL.map(IpAddr::from).contains(&live.seen.ip()), "{live:?}");
    // Its successor takes over what it made.
    site.gateway.kill()?;
    site.gateway.restart()?;
    told(&socket, "READY=1")?;
    let log = site.gateway.log();
    ensure!(!log.contains("the segment was not told"), "{log}");
    ensure!(!log.contains("cannot be asked"), "{log}");
    live.exchange()?;
    let status = site.gateway.json(&["status"])?;
    ensure!(status["ready"] == true, "{status}");
    site.gateway.signal(nix::sys::signal::Signal::SIGHUP)?;
    told(&socket, "RELOADING=1")?;
    told(&socket, "READY=1")?;
    // Both ends are told what ends.
    let address = live.seen.ip().to_string();
    site.gateway.text(["pool", "drain", &address, "--reset"])?;
    peer::was_reset(&mut live.inside, LIMIT, "the inside")?;
    peer::was_reset(&mut live.origin, LIMIT, "the origin")?;
    ensure!(site.gateway.terminate()?.success());
    told(&socket, "STOPPING=1")?;
    Ok(())
}
