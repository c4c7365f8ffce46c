//! SAFE-2: the daemon may die at any moment and come back as another build; connections do not notice.

use std::{
    env,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    client::Fetch,
    config::{Resources, Server},
    gateway::{NEXT_BINARY_VARIABLE, Sweep},
    needs,
    origin::{ECHO_PORT, HTTP_PORT},
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{A, BOUND},
    wait,
};

const SIZE: u64 = 1 << 30;
/// Slow enough that the transfer lasts longer than all restarts.
const RATE: u64 = 48 << 20;
/// Kills while the transfer runs.
const KILLS: u64 = 8;
/// Instants of the first start at which the daemon is killed: while it makes the maps, and with some of its hooks
/// in place.
const MOMENTS: [Moment; 2] = [
    Moment {
        name: "maps are being made",
        has_come: |pin| exists(&beside(pin, "-new/maps")),
    },
    Moment {
        name: "the first hook is in place",
        has_come: |pin| exists(&pin.join("links/up0:uplink_guard")),
    },
];
/// How long a start may take to come to such an instant.
const MOMENT_LIMIT: Duration = Duration::from_secs(60);
/// How often one is waited for.
const MOMENT_TRIES: usize = 50;
/// How often the log is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(20);
/// No byte for so long means that the connection is lost.
const STALL: Duration = Duration::from_secs(60);
const TRANSFER_LIMIT: Duration = Duration::from_secs(300);
/// A port at which nobody answers.
const SILENT_PORT: u16 = 4444;
/// Half-open connections to it.
const SILENT: usize = 20;
/// How long an unanswered attempt waits before it gives up, and then never sends again.
const SILENCE: Duration = Duration::from_millis(300);
/// How long the sweep may take to end what is due.
const SWEEP_LIMIT: Duration = Duration::from_secs(60);

/// The server's file; half-open connections are remembered for so many seconds.
fn server(transitory: u32) -> Server {
    Server {
        sections: format!("[timers]\ntcp_transitory = {transitory}"),
        ..Server::default()
    }
}

/// An instant of a start, by what it has left in the pin directory.
struct Moment {
    name: &'static str,
    has_come: fn(&Path) -> bool,
}

fn exists(path: &Path) -> bool {
    path.exists()
}

fn beside(pin: &Path, suffix: &str) -> PathBuf {
    let mut path = pin.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// Starts the daemon and kills it at the moment. That may be short, and the machine have others to serve just then: in
/// that case the start is undone, and tried again.
fn kill_at(site: &mut Site, moment: &Moment) -> Result<()> {
    let is_ready = |site: &Site| site.gateway.log().lines().any(|line| line == "ready");
    let pin = site.gateway.pin().to_owned();
    for _ in 0..MOMENT_TRIES {
        site.gateway.launch()?;
        let end = Instant::now() + MOMENT_LIMIT;
        let mut look = Instant::now() + LOOK;
        let mut come = (moment.has_come)(&pin);
        while !come {
            // Without a pause, but for the log.
            thread::yield_now();
            come = (moment.has_come)(&pin);
            if !come && Instant::now() > look {
                if is_ready(site) {
                    break;
                }
                ensure!(Instant::now() < end, "{} never came", moment.name);
                look = Instant::now() + LOOK;
            }
        }
        site.gateway.kill()?;
        if come && !is_ready(site) {
            return Ok(());
        }
        site.gateway.text(["detach"])?;
    }
    bail!("{}: each kill came after the start", moment.name)
}

/// Waits until the programs that run the sweep are those that armed it last.
fn sweep_taken_over(site: &Site) -> Result<Sweep> {
    wait::until("the sweep of the programs of now", SWEEP_LIMIT, || {
        let sweep = site.gateway.sweep()?;
        Ok((sweep.run_by == sweep.armed_by && sweep.ticks > 0).then_some(sweep))
    })
}

#[test]
fn a_transfer_survives_ten_kills_and_an_upgrade() -> Result<()> {
    const TEST: &str = "a_transfer_survives_ten_kills_and_an_upgrade";
    /// Longer than the test.
    const LONG: u32 = 3600;
    /// What holds after the upgrade: long enough for a busy machine to count what is half-open before it ends.
    const SHORT: u32 = 8;

    let Some(_turn) = needs::timed_turn(TEST, &["nft", "bpftool"]) else {
        return Ok(());
    };
    let next = env::var_os(NEXT_BINARY_VARIABLE).map(PathBuf::from);
    if next.is_none() {
        needs::skip(
            &format!("{TEST}, the upgrade"),
            &format!("{NEXT_BINARY_VARIABLE} is not set"),
        );
    }
    let mut site = Site::prepare(&Plan {
        server: server(LONG),
        ..Plan::default()
    })?;
    site.node(A).nft(&format!(
        "table ip silent {{\n chain input {{\n type filter hook input priority 0;\n tcp dport {SILENT_PORT} drop\n }}\n}}"
    ))?;

    for moment in &MOMENTS {
        kill_at(&mut site, moment)?;
    }
    site.gateway.restart()?;
    let check = site.watch()?;

    let mut holder = site.clients(BOUND, 1)?;
    let echo = site.at_a(ECHO_PORT);
    all_succeeded(&holder.open(echo, 100, CONNECT_LIMIT)?, 100)?;

    // Opened under the programs of before, and to be ended by those of after.
    let silent = site.at_a(SILENT_PORT);
    let mut early = site.clients(BOUND, 1)?;
    let unanswered = early.open(silent, SILENT, SILENCE)?;
    ensure!(unanswered.timed_out == SILENT, "{unanswered:?}");

    let mut client = site.clients(BOUND, 1)?;
    let fetch = Fetch {
        target: site.at_a(HTTP_PORT),
        bytes: SIZE,
        rate: RATE,
        timeout_ms: STALL.as_millis() as u64,
    };
    let mut faults = 0;
    let fetched = client.fetch(fetch, TRANSFER_LIMIT, |done| {
        // One fault at each tenth, the upgrade last.
        if done < SIZE / (KILLS + 2) * (faults + 1) {
            return Ok(());
        }
        if faults < KILLS {
            site.gateway.kill()?;
            site.gateway.restart()?;
        } else if let Some(next) = next.as_ref().filter(|_| faults == KILLS) {
            let before = site.gateway.program_tags()?;
            let swept_before = sweep_taken_over(&site)?;
            ensure!(site.active(silent, "tcp")? == SILENT as u64);
            site.gateway.terminate()?;
            site.gateway.use_binary(next.clone());
            site.gateway.files().write_server(&server(SHORT))?;
            site.gateway.restart()?;
            let after = site.gateway.program_tags()?;
            let swept_after = sweep_taken_over(&site)?;
            ensure!(
                swept_after.run_by != swept_before.run_by,
                "the sweep still runs the program of before: {swept_before:?}, {swept_after:?}"
            );
            ensure!(
                before.len() == after.len() && !before.is_empty(),
                "hooks before: {before:?}, after: {after:?}"
            );
            for (hook, tag) in &before {
                let new = after
                    .get(hook)
                    .with_context(|| format!("{hook} is gone after the upgrade"))?;
                ensure!(
                    new != tag,
                    "{hook} still has program {tag} after the upgrade"
                );
            }
        }
        faults += 1;
        Ok(())
    })?;
    ensure!(
        faults > KILLS,
        "the transfer was over after {faults} faults"
    );
    println!(
        "{SIZE} bytes verified in {:.1} s, through {} kills and {}",
        fetched.elapsed_us as f64 / 1e6,
        KILLS + MOMENTS.len() as u64,
        if next.is_some() {
            "an upgrade"
        } else {
            "no upgrade"
        }
    );
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 100)?;
    ensure!(site.active(echo, "tcp")? == 100);

    // Expiry goes on, with the program of now: for flows of before, and for new ones.
    if next.is_some() {
        site.wait_active(silent, "tcp", 0, SWEEP_LIMIT)?;
        let unanswered = client.open(silent, SILENT, SILENCE)?;
        ensure!(unanswered.timed_out == SILENT, "{unanswered:?}");
        ensure!(site.active(silent, "tcp")? == SILENT as u64);
        site.wait_active(silent, "tcp", 0, SWEEP_LIMIT)?;
    }
    holder.close_all(false)?;
    site.wait_active(echo, "tcp", 0, CONNECT_LIMIT)?;
    check.finish()?;
    Ok(())
}

#[test]
fn flows_end_and_are_counted_while_the_daemon_is_down() -> Result<()> {
    const TEST: &str = "flows_end_and_are_counted_while_the_daemon_is_down";

    let Some(_turn) = needs::turn(TEST, &[]) else {
        return Ok(());
    };
    let resources = Resources::default();
    let mut site = Site::start(&Plan {
        resources,
        ..Plan::default()
    })?;
    let check = site.watch()?;
    let echo = site.at_a(ECHO_PORT);
    let mut clients = site.clients(BOUND, 1)?;
    all_succeeded(&clients.open(echo, 50, CONNECT_LIMIT)?, 50)?;
    site.gateway.terminate()?;
    all_succeeded(&clients.check(CONNECT_LIMIT)?, 50)?;
    // New ones too: the data plane needs nobody.
    all_succeeded(&clients.open(echo, 50, CONNECT_LIMIT)?, 50)?;
    ensure!(site.active(echo, "tcp")? == 100);
    clients.close_all(false)?;
    site.wait_active(echo, "tcp", 0, CONNECT_LIMIT)?;
    site.gateway.restart()?;
    check.finish()?;
    Ok(())
}

/// tcx links and clsact filters take over from each other, and from the build before.
#[test]
fn another_way_to_attach_and_another_build_keep_every_connection() -> Result<()> {
    const HELD: usize = 50;
    const TEST: &str = "another_way_to_attach_and_another_build_keep_every_connection";

    let Some(_turn) = needs::turn(TEST, &["bpftool"]) else {
        return Ok(());
    };
    let attached_by = |kind: &str| Server {
        dataplane: format!("attach = \"{kind}\""),
        ..Server::default()
    };
    let mut site = Site::start(&Plan {
        server: attached_by("clsact"),
        ..Plan::default()
    })?;
    let check = site.watch()?;
    let echo = site.at_a(ECHO_PORT);
    let mut clients = site.clients(BOUND, 1)?;
    all_succeeded(&clients.open(echo, HELD, CONNECT_LIMIT)?, HELD)?;
    if let Some(next) = env::var_os(NEXT_BINARY_VARIABLE) {
        let before = site.gateway.program_tags()?;
        site.gateway.kill()?;
        site.gateway.use_binary(next.into());
        site.gateway.restart()?;
        let after = site.gateway.program_tags()?;
        ensure!(
            before.keys().eq(after.keys())
                && before
                    .iter()
                    .all(|(hook, tag)| after.get(hook) != Some(tag)),
            "hooks before: {before:?}, after: {after:?}"
        );
        all_succeeded(&clients.check(CONNECT_LIMIT)?, HELD)?;
    }
    for kind in ["tcx", "clsact", "tcx"] {
        site.gateway.terminate()?;
        site.gateway.files().write_server(&attached_by(kind))?;
        site.gateway.restart()?;
        let status = site.gateway.json(&["status"])?;
        let hooks = status["hooks"].as_array().context("no hooks")?;
        ensure!(
            hooks.iter().all(|hook| hook["kind"] == kind),
            "{kind}: {status}"
        );
        all_succeeded(&clients.check(CONNECT_LIMIT)?, HELD)?;
        all_succeeded(&clients.open(echo, 1, CONNECT_LIMIT)?, 1)?;
        all_succeeded(&clients.close(1, false)?, 1)?;
    }
    clients.close_all(false)?;
    site.wait_active(echo, "tcp", 0, CONNECT_LIMIT)?;
    check.finish()?;
    Ok(())
}
