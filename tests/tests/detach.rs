//! SAFE-4: `egress detach` needs no second try, whenever it comes in a daemon's start.

use std::{thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::LISTEN,
    config::Server,
    needs,
    site::{Plan, Site},
    wait,
};

/// Starts that are cut off. A start takes some tens of milliseconds: the commands are spread over all of it.
const ROUNDS: u32 = 12;
const STEP: Duration = Duration::from_millis(16);
/// As many more at the most until one is met: a busy machine takes longer.
const MOST_ROUNDS: u32 = 60;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn a_starting_daemon_is_detached_at_the_first_try() -> Result<()> {
    const TEST: &str = "a_starting_daemon_is_detached_at_the_first_try";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut site = Site::prepare(&Plan::default())?;
    let mut in_time = 0;
    for round in 0..MOST_ROUNDS {
        if round >= ROUNDS && in_time > 0 {
            break;
        }
        let when = STEP * round;
        site.gateway.launch()?;
        thread::sleep(when);
        detach(&site).with_context(|| format!("after {when:?}"))?;
        // The daemon ends; or it had not begun, begins now, and becomes ready.
        wait::until_true("the daemon's end or beginning", LIMIT, || {
            Ok(!site.gateway.is_running()? || is_ready(&site))
        })?;
        if is_ready(&site) && site.gateway.is_running()? && site.gateway.pin().exists() {
            detach(&site)?;
        } else {
            in_time += 1;
        }
        site.gateway.wait_end()?;
        let pin = site.gateway.pin();
        ensure!(!pin.exists(), "after {when:?}: {} is there", pin.display());
    }
    ensure!(in_time > 0, "no start was old enough to be met");
    Ok(())
}

/// What ends on purpose is no trouble: not for the recorder of utilization either, which finds nothing to count any more.
#[test]
fn a_detach_is_no_error_in_the_log() -> Result<()> {
    const TEST: &str = "a_detach_is_no_error_in_the_log";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let server = Server {
        sections: format!("[api]\nlisten = \"{LISTEN}\""),
        ..Server::default()
    };
    let mut site = Site::start(&Plan {
        server,
        ..Plan::default()
    })?;
    detach(&site)?;
    site.gateway.wait_end()?;
    let log = site.gateway.log();
    let wrong: Vec<_> = log
        .lines()
        .filter(|line| line.contains("ERROR") || line.contains("utilization"))
        .collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    ensure!(log.contains("detached"), "{log}");
    Ok(())
}

fn is_ready(site: &Site) -> bool {
    site.gateway
        .log()
        .lines()
        .any(|line| line.trim() == "ready")
}

fn detach(site: &Site) -> Result<()> {
    let output = site.gateway.egress(["detach"])?;
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
