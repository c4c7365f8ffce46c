//! OBS-4: every connection is in the flow log, opened once and closed once, whatever becomes of files and daemon.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use egress_tests::{
    api::Api,
    config::{Resources, Server},
    needs,
    origin::{ECHO_PORT, UDP_PORT},
    site::{CONNECT_LIMIT, Plan, Site},
    standard::{BOUND, POOL, RANGE},
    wait,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Connections that there is room for, and attempts beyond.
const CAP: usize = 400;
const EXTRA: usize = 30;
/// What is written within a moment, on a busy machine too.
const LIMIT: Duration = Duration::from_secs(60);

fn server(file: &str) -> Server {
    Server {
        sections: format!(
            "[timers]\nudp = 2\n\n[api]\nlisten = \"127.0.0.1:8080\"\n\n[flow_log]\nfile = \"{file}\"\nrotate_mb = 1\n\
             keep = 100\nrefusals_per_second = 1000000"
        ),
        ..Server::default()
    }
}

fn plan() -> Plan {
    Plan {
        server: server("flows.log"),
        resources: Resources {
            addresses: vec![POOL[0].to_string(), RANGE.to_string()],
            connections_per_origin: CAP as u32,
            ..Resources::both_families()
        },
        ..Plan::default()
    }
}

/// The log's files.
struct Log {
    path: PathBuf,
}

impl Log {
    fn of(site: &Site) -> Self {
        Self {
            path: site.lab.directory().join("flows.log"),
        }
    }

    /// The files there are, the oldest first.
    fn files(&self) -> Vec<PathBuf> {
        let aside = |nth: u32| PathBuf::from(format!("{}.{nth}", self.path.display()));
        let kept = (1..).map(aside).take_while(|path| path.exists());
        let mut files: Vec<_> = kept.collect();
        files.reverse();
        files.extend(self.path.exists().then(|| self.path.clone()));
        files
    }

    fn lines(&self) -> Result<Vec<Value>> {
        let mut lines = Vec::new();
        for file in self.files() {
            let text = fs::read_to_string(&file)?;
            // The last line of all may be on its way.
            let whole = text.rfind('\n').map_or(0, |at| at + 1);
            for line in text[..whole].lines() {
                lines.push(serde_json::from_str(line).with_context(|| line.to_owned())?);
            }
        }
        Ok(lines)
    }

    /// The lines, once so many flows have opened and all of them have closed.
    fn settled(&self, opened: usize) -> Result<Vec<Value>> {
        let mut last = (0, 0);
        let settled = wait::until("every flow to be closed in the log", LIMIT, || {
            let lines = self.lines()?;
            let flows = flows(&lines);
            let closed = flows.values().filter(|(_, closed)| *closed > 0).count();
            last = (flows.len(), closed);
            Ok((last == (opened, opened)).then_some(lines))
        });
        settled.with_context(|| format!("{opened} were opened; in the log: {last:?}"))
    }
}

/// How often each flow opened and closed.
fn flows(lines: &[Value]) -> BTreeMap<&str, (u32, u32)> {
    let mut flows = BTreeMap::<&str, (u32, u32)>::new();
    for line in lines {
        if let Some(flow) = line["flow"].as_str() {
            let (opened, closed) = flows.entry(flow).or_default();
            match line["event"].as_str() {
                Some("open") => *opened += 1,
                _ => *closed += 1,
            }
        }
    }
    flows
}

/// How many lines have this event and this reason.
fn count(lines: &[Value], event: &str, reason: &str) -> usize {
    lines
        .iter()
        .filter(|line| line["event"] == event && line["reason"] == reason)
        .count()
}

/// Opens as many as there is room for, `more` in vain, and closes them.
fn round(site: &Site, v6: bool, more: usize, reset: bool) -> Result<()> {
    let origin = if v6 {
        site.at_a_v6(ECHO_PORT)
    } else {
        site.at_a(ECHO_PORT)
    };
    let mut clients = site.clients(BOUND, 1)?;
    let opened = clients.open(origin, CAP + more, CONNECT_LIMIT)?;
    ensure!(
        opened.succeeded == CAP && opened.refusals() == more,
        "{opened:?}"
    );
    clients.check(CONNECT_LIMIT)?;
    clients.close_all(reset)?;
    site.wait_active(origin, "tcp", 0, LIMIT)
}

/// The sum of a metric's samples with this label.
fn metric(site: &Site, sample: &str) -> Result<f64> {
    let text = Api::without_token(site).get("/metrics")?.text;
    let line = text.lines().find(|line| line.starts_with(sample));
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.context(sample.to_owned())?.parse()?)
}

#[test]
fn a_known_load_is_in_the_log_to_the_last_connection() -> Result<()> {
    const TEST: &str = "a_known_load_is_in_the_log_to_the_last_connection";
    const UDP: usize = 20;

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = Site::start(&plan())?;
    let log = Log::of(&site);
    round(&site, false, EXTRA, false)?;
    round(&site, false, EXTRA, true)?;
    round(&site, false, EXTRA, false)?;
    round(&site, true, 0, true)?;
    let answered = site
        .clients(BOUND, 1)?
        .udp(site.at_b(UDP_PORT), UDP, CONNECT_LIMIT, false)?;
    ensure!(answered.succeeded == UDP, "{answered:?}");

    let opened = 4 * CAP + UDP;
    let lines = log.settled(opened)?;
    let odd: Vec<_> = flows(&lines)
        .into_iter()
        .filter(|(_, pair)| *pair != (1, 1))
        .collect();
    ensure!(odd.is_empty(), "{odd:?}");
    ensure!(
        log.files().len() > 1,
        "no file was set aside: {:?}",
        log.files()
    );
    for (reason, expected) in [
        ("fin", 2 * CAP),
        ("reset_by_inside", 2 * CAP),
        ("timeout_udp", UDP),
    ] {
        let found = count(&lines, "close", reason);
        ensure!(found == expected, "{reason}: {found}, not {expected}");
    }
    let refused = count(&lines, "refused", "cap_reached");
    ensure!(refused as u64 == site.counted("cap_reached")?, "{refused}");
    ensure!(refused >= 3 * EXTRA, "{refused}");

    let sample = |event: &str, protocol: &str| {
        let mut all = lines.iter();
        all.find(|line| line["event"] == event && line["protocol"] == protocol)
            .with_context(|| format!("{event} {protocol}"))
    };
    let close = sample("close", "tcp")?;
    println!("{close}\n{}", sample("refused", "tcp")?);
    for (field, expected) in [
        ("zone", "shop.example"),
        ("account", egress_tests::api::ACCOUNT),
        ("pool", "partners"),
        ("origin_ip", &site.at_a(0).ip().to_string()),
        ("egress_ip", &POOL[0].to_string()),
        ("ingress_data_center", "lab"),
        ("egress_data_center", "lab"),
    ] {
        ensure!(close[field] == expected, "{field}: {close}");
    }
    let number = |line: &Value, field: &str| line[field].as_u64().unwrap_or(0);
    for line in lines.iter().filter(|line| line["event"] == "close") {
        let (out, back) = (number(line, "packets_out"), number(line, "packets_in"));
        // A byte each way, and handshakes.
        let least = if line["protocol"] == "tcp" { 3 } else { 1 };
        ensure!(out >= least && back >= least.min(2), "{line}");
        ensure!(
            number(line, "bytes_out") >= 20 * out && number(line, "bytes_in") >= 20 * back,
            "{line}"
        );
        ensure!(number(line, "egress_port") > 0, "{line}");
    }
    for (event, expected) in [("open", opened), ("close", opened), ("refused", refused)] {
        let found = metric(
            &site,
            &format!("egress_flow_log_lines_total{{event=\"{event}\"}}"),
        )?;
        ensure!(found == expected as f64, "{event}: {found}");
    }
    for reason in ["ring_full", "limited", "unreadable"] {
        let lost = metric(
            &site,
            &format!("egress_flow_log_lost_total{{reason=\"{reason}\"}}"),
        )?;
        ensure!(lost == 0.0, "{reason}: {lost}");
    }
    Ok(())
}

#[test]
fn a_log_that_cannot_be_written_keeps_nobody_and_catches_up() -> Result<()> {
    const TEST: &str = "a_log_that_cannot_be_written_keeps_nobody_and_catches_up";

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut plan = plan();
    // Not even root makes a file there.
    plan.server = server("/proc/self/flows.log");
    let mut site = Site::start(&plan)?;
    round(&site, false, 0, false)?;
    wait::until_true("the daemon says so", LIMIT, || {
        Ok(site
            .gateway
            .log()
            .contains("the flow log cannot be written"))
    })?;
    round(&site, false, 0, true)?;
    // What has come since the log was switched on waits in the kernel, over the end of a daemon too.
    let said = site.gateway.log().matches("cannot be written").count();
    ensure!(said == 1, "said {said} times");
    ensure!(site.gateway.terminate()?.success());
    site.gateway.restart()?;
    site.gateway.files().write_server(&server("flows.log"))?;
    site.gateway.signal(Signal::SIGHUP)?;
    let log = Log::of(&site);
    let lines = log.settled(2 * CAP)?;
    ensure!(flows(&lines).values().all(|pair| *pair == (1, 1)));

    // Switched off, it tells of nothing; what lives on then is closed without a word.
    let off = Server {
        sections: "[timers]\nudp = 2".into(),
        ..Server::default()
    };
    site.gateway.files().write_server(&off)?;
    let reloads = || site.gateway.log().matches("reloaded").count();
    let before = reloads();
    site.gateway.signal(Signal::SIGHUP)?;
    wait::until_true("another reload", LIMIT, || Ok(reloads() > before))?;
    round(&site, false, EXTRA, false)?;
    let before = reloads();
    site.gateway.files().write_server(&server("flows.log"))?;
    site.gateway.signal(Signal::SIGHUP)?;
    wait::until_true("another reload", LIMIT, || Ok(reloads() > before))?;
    round(&site, false, 0, false)?;
    let lines = log.settled(3 * CAP)?;
    ensure!(count(&lines, "refused", "cap_reached") == 0);
    ensure!(site.counted("flow_log_lost")? == 0);
    Ok(())
}

#[test]
fn a_daemon_that_is_killed_loses_no_connection() -> Result<()> {
    const TEST: &str = "a_daemon_that_is_killed_loses_no_connection";
    const KILLS: usize = 4;
    /// Connections between two kills: the kernel keeps the records of fifteen times as many for a daemon that is down.
    const MOST: usize = 1_000;

    let Some(_turn) = needs::turn(TEST, &["nft"]) else {
        return Ok(());
    };
    let mut site = Site::start(&plan())?;
    let log = Log::of(&site);
    let origin = site.at_a(ECHO_PORT);
    let mut clients = site.clients(BOUND, 1)?;
    let (allow, allowed) = mpsc::channel();
    let opened = thread::scope(|scope| -> Result<usize> {
        let load = scope.spawn(|| -> Result<usize> {
            let mut opened = 0;
            for () in allowed {
                for _ in 0..MOST / 50 {
                    let outcome = clients.open(origin, 50, CONNECT_LIMIT)?;
                    ensure!(outcome.succeeded == 50, "{outcome:?}");
                    opened += 50;
                    clients.close_all(opened % 100 == 0)?;
                }
            }
            Ok(opened)
        });
        let mut kills = || -> Result<()> {
            for _ in 0..KILLS {
                let before = size(&log.path);
                allow.send(()).context("the load has ended")?;
                wait::until_true("more lines", LIMIT, || Ok(size(&log.path) != before))?;
                site.gateway.kill()?;
                site.gateway.restart()?;
            }
            Ok(())
        };
        let killed = kills();
        drop(allow);
        let opened = load.join().map_err(|_| anyhow!("the load panicked"))??;
        killed?;
        Ok(opened)
    })?;
    site.wait_active(origin, "tcp", 0, LIMIT)?;
    let lines = log.settled(opened)?;
    // A batch that was written and not yet taken when the daemon was killed is written again: as many lines as that.
    let twice = flows(&lines)
        .values()
        .map(|(opened, closed)| opened - 1 + closed - 1)
        .sum::<u32>();
    println!("{opened} connections, {KILLS} kills: {twice} lines twice");
    ensure!(twice as usize <= KILLS * 65_536 / 200, "{twice}");
    ensure!(site.counted("flow_log_lost")? == 0);
    Ok(())
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}
