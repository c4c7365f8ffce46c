//! SAFE-2: the daemon may die at any moment and come back as another build; connections do not notice.

use std::{env, path::PathBuf, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    client::Fetch,
    config::{Resources, Server},
    gateway::NEXT_BINARY_VARIABLE,
    needs,
    origin::{ECHO_PORT, HTTP_PORT},
    seed::Random,
    site::{CONNECT_LIMIT, Plan, Site, all_succeeded},
    standard::{A, BOUND},
};

const SIZE: u64 = 1 << 30;
/// Slow enough that the transfer lasts longer than all restarts.
const RATE: u64 = 48 << 20;
/// Kills while the transfer runs; two more come during the first start.
const KILLS: u64 = 8;
/// A kill during the first start comes within this time.
const START_WINDOW: u64 = 150_000;
/// No byte for so long means that the connection is lost.
const STALL: Duration = Duration::from_secs(10);
const TRANSFER_LIMIT: Duration = Duration::from_secs(300);
/// Half-open connections end soon, so that expiry can be watched.
const TIMERS: &str = "[timers]\ntcp_transitory = 2";
/// A port at which nobody answers.
const SILENT_PORT: u16 = 4444;

#[test]
fn a_transfer_survives_ten_kills_and_an_upgrade() -> Result<()> {
    const TEST: &str = "a_transfer_survives_ten_kills_and_an_upgrade";

    let Some(_turn) = needs::turn(TEST, &["nft", "bpftool"]) else {
        return Ok(());
    };
    let next = env::var_os(NEXT_BINARY_VARIABLE).map(PathBuf::from);
    if next.is_none() {
        needs::skip(
            &format!("{TEST}, the upgrade"),
            &format!("{NEXT_BINARY_VARIABLE} is not set"),
        );
    }
    let mut random = Random::announced(TEST);
    let server = Server {
        sections: TIMERS.to_owned(),
        ..Server::default()
    };
    let mut site = Site::prepare(&Plan {
        server,
        ..Plan::default()
    })?;
    site.node(A).nft(&format!(
        "table ip silent {{\n chain input {{\n type filter hook input priority 0;\n tcp dport {SILENT_PORT} drop\n }}\n}}"
    ))?;

    for _ in 0..2 {
        site.gateway.launch()?;
        // The instant is what is tried here, so there is no condition to wait for.
        thread::sleep(Duration::from_micros(random.below(START_WINDOW)));
        site.gateway.kill()?;
    }
    site.gateway.restart()?;
    let check = site.watch()?;

    let mut holder = site.clients(BOUND, 1)?;
    let echo = site.at_a(ECHO_PORT);
    all_succeeded(&holder.open(echo, 100, CONNECT_LIMIT)?, 100)?;

    let mut client = site.clients(BOUND, 1)?;
    let fetch = Fetch {
        target: site.at_a(HTTP_PORT),
        bytes: SIZE,
        rate: RATE,
        timeout_ms: STALL.as_millis() as u64,
    };
    let mut faults = 0;
    client.fetch(fetch, TRANSFER_LIMIT, |done| {
        // One fault at each tenth, the upgrade last.
        if done < SIZE / (KILLS + 2) * (faults + 1) {
            return Ok(());
        }
        if faults < KILLS {
            site.gateway.kill()?;
            site.gateway.restart()?;
        } else if let Some(next) = next.as_ref().filter(|_| faults == KILLS) {
            let before = site.gateway.program_tags()?;
            site.gateway.terminate()?;
            site.gateway.use_binary(next.clone());
            site.gateway.restart()?;
            let after = site.gateway.program_tags()?;
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
    all_succeeded(&holder.check(CONNECT_LIMIT)?, 100)?;
    ensure!(site.active(echo, "tcp")? == 100);

    // Expiry goes on, with the program of now.
    let silent = site.at_a(SILENT_PORT);
    let unanswered = client.open(silent, 20, Duration::from_millis(300))?;
    ensure!(unanswered.timed_out == 20, "{unanswered:?}");
    site.wait_active(silent, "tcp", 0, Duration::from_secs(10))?;
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
