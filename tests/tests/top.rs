//! OBS-5: `egress top` at a real terminal, and one look for scripts.

use std::{env, fs, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, LISTEN},
    needs,
    peer::{self, Caller, Peers},
    standard::{A, BOUND, POOL},
    terminal::Terminal,
    wait,
};
use nix::sys::signal::Signal;

/// The port at which the test itself is the origin.
const PORT: u16 = 9_000;
/// Connections that are live all the while.
const LIVE: usize = 3;
/// How long a rate may take to be seen.
const LIMIT: Duration = Duration::from_secs(60);
/// Where an image of the screen goes, if somebody wants one.
const IMAGE: &str = "EGRESS_TOP_IMAGE";

/// The line in which something stands.
fn line<'t>(text: &'t str, word: &str) -> &'t str {
    text.lines()
        .find(|line| line.contains(word))
        .unwrap_or_default()
}

#[test]
fn it_shows_what_is_follows_keys_and_sizes_and_leaves_the_terminal_as_it_was() -> Result<()> {
    const TEST: &str = "it_shows_what_is_follows_keys_and_sizes_and_leaves_the_terminal_as_it_was";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let mut site = api::prepare(&format!("[api]\nlisten = \"{LISTEN}\""))?;

    // Before anything is there: it says so, and stays for what may come.
    let mut early = Terminal::start(&mut site.gateway.asking(["top"])?, 100, 20)?;
    early.shows("what is missing", |text| text.contains("nothing is pinned"))?;
    site.gateway.restart()?;
    early.shows("the daemon that came", |text| {
        text.contains("daemon up, ready")
    })?;
    early.signal(Signal::SIGTERM)?;
    ensure!(early.wait_end()?.success());
    early.wait_restored().context("after SIGTERM")?;

    let zone = ["zone", "enable", "shop.example", "--pool", "partners"];
    site.gateway.text(zone)?;
    let node = site.node(BOUND);
    let origin = site.at_a(PORT);
    let listener = peer::listen(&site.node(A), origin)?;
    let mut live = Vec::new();
    for _ in 0..LIVE {
        live.push(Peers::connect(&node, Caller::default(), &listener)?);
    }

    // Without a terminal it says what to do instead.
    let piped = site.gateway.egress(["top"])?;
    let said = String::from_utf8_lossy(&piped.stderr);
    ensure!(piped.status.code() == Some(2), "{piped:?}");
    ensure!(
        said.contains("needs a terminal") && said.contains("--once"),
        "{said}"
    );

    let mut top = Terminal::start(&mut site.gateway.asking(["top"])?, 120, 30)?;
    let (ip, at) = (POOL[0].to_string(), origin.to_string());
    let text = top.shows("the origin", |text| text.contains(&at))?;
    for word in [
        "daemon up, ready",
        "3 active",
        "partners",
        "second",
        "q quit",
    ] {
        ensure!(text.contains(word), "{word} is not on\n{text}");
    }
    let words: Vec<&str> = line(&text, &at).split_whitespace().collect();
    ensure!(
        words[..5] == [ip.as_str(), at.as_str(), "tcp", "3", "3"],
        "{text}"
    );
    // What happens is shown, with its rate.
    live.push(Peers::connect(&node, Caller::default(), &listener)?);
    top.shows("another connection", |text| text.contains("4 active"))?;
    wait::until_true("a rate", LIMIT, || {
        live.iter_mut().try_for_each(Peers::exchange)?;
        let text = top.text();
        let words: Vec<&str> = line(&text, &at).split_whitespace().collect();
        Ok(words.len() > 2 && words[words.len() - 2] != "0")
    })
    .with_context(|| top.text())?;
    if let Some(path) = env::var_os(IMAGE) {
        fs::write(path, top.svg())?;
    }

    // Keys: a table of its own, a filter, a pause.
    top.press("2")?;
    top.shows("egress IPs", |text| {
        text.contains("DRAINS") && text.contains(&ip)
    })?;
    top.press("/second\r")?;
    top.shows("the filtered ones", |text| {
        text.contains("[second]") && !line(text, &ip).contains("partners")
    })?;
    // By itself: with a letter behind it, it would be that letter with Alt.
    top.press("\x1b")?;
    top.shows("all of them again", |text| {
        !text.contains("[second]") && line(text, &ip).contains("partners")
    })?;
    top.press("1p")?;
    top.shows("origins, paused", |text| {
        text.contains("PAUSED") && text.contains(&at)
    })?;
    top.press("p")?;
    // A key that comes together with a new size is read with the next one.
    top.shows("no pause", |text| !text.contains("PAUSED"))?;

    // Sizes: columns are whole or not there, and what cannot be read is not drawn.
    top.resize(60, 12)?;
    let text = top.shows("a narrow one", |text| {
        text.contains(&at) && !text.contains("BYTE/S")
    })?;
    ensure!(line(&text, &at).contains("0.01 %"), "{text}");
    top.resize(30, 5)?;
    top.shows("nothing", |text| {
        text.contains("too small") && !text.contains(&at)
    })?;
    top.resize(200, 50)?;
    top.shows("all of it", |text| {
        text.contains("BYTE/S") && text.contains("partners")
    })?;

    // Without the daemon: the kernel goes on, and so does this.
    site.gateway.terminate()?;
    let text = top.shows("the daemon's end", |text| {
        text.contains("daemon down, data plane in place")
    })?;
    ensure!(line(&text, "active").contains("4 active"), "{text}");
    ensure!(line(&text, &at).contains(&ip), "{text}");
    live.push(Peers::connect(&node, Caller::default(), &listener)?);
    top.shows("one more", |text| text.contains("5 active"))?;
    top.press("q")?;
    let status = top.wait_end()?;
    ensure!(status.success(), "{status}");
    top.wait_restored().context("after q")?;

    // One look, for scripts.
    let one = site.gateway.json(&["top"])?;
    ensure!(one["daemon"] == "down" && one["ready"] == true, "{one}");
    ensure!(
        one["active"] == 5 && one["origins"][0]["active"] == 5,
        "{one}"
    );
    ensure!(
        one["interval_s"].as_f64().is_some_and(|s| s >= 1.0),
        "{one}"
    );
    let pool = one["pools"].as_array().and_then(|all| all.first());
    ensure!(pool.context("no pool")?["pool"] == "partners", "{one}");
    let mut once = site.gateway.asking(["top", "--once"])?;
    let text = once.stdin(Stdio::null()).output()?;
    let text = String::from_utf8_lossy(&text.stdout);
    ensure!(
        text.starts_with("daemon down") && text.contains("5 active") && text.contains(&at),
        "{text}"
    );
    Ok(())
}
