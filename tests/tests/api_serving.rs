//! API-4, OBS-3: how the API serves: by TLS, within limits, whatever others do; and what a scrape says.

use std::{
    env, fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use egress_tests::{
    api::{self, Api, LISTEN, aegis},
    certificate,
    config::ZONE_ID,
    needs,
    peer::{self, Caller, Peers},
    site::Site,
    standard::{A, BOUND, GATEWAY, POOL},
    wait,
};
use serde_json::Value;

/// The port at which the tests themselves are the origin.
const PORT: u16 = 9_000;
/// What may take its time on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Where the page goes that somebody wants to look at.
const PAGE: &str = "EGRESS_PAGE";
/// What changes settings.
const WRITE: &str = "zone-settings:write";

/// API-4: TLS beyond loopback, limits, metrics for whoever may, and an end in order.
#[test]
fn it_serves_by_tls_within_limits_and_ends_in_order() -> Result<()> {
    const TEST: &str = "it_serves_by_tls_within_limits_and_ends_in_order";
    const INSIDE: &str = "10.1.0.1:8443";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl", "openssl"]) else {
        return Ok(());
    };
    let mut site = api::prepare(&format!(
        "[api]\nlisten = \"{INSIDE}\"\ncertificate = \"api.crt\"\nkey = \"api.key\"\nrequests_per_five_minutes = 6"
    ))?;
    let refused = site.gateway.restart().err().context("no certificate")?;
    let refused = format!("{refused:#}");
    ensure!(refused.contains("cannot read the certificate"), "{refused}");
    site.gateway.wait_end()?;
    let address = INSIDE.parse::<SocketAddr>()?.ip();
    certificate::make(&site.lab.directory(), "api", Some(address))?;
    site.gateway.restart()?;
    let api = Api::new(&site, "acme", &[WRITE])?;
    let directory = site.lab.directory();
    let authority = directory.join("api.crt").display().to_string();
    let base = format!("https://{INSIDE}");
    let far = api.from(site.node(BOUND), &base, &["--cacert", &authority]);
    let got = far.get(&aegis(ZONE_ID))?;
    ensure!(got.outcome()? == (200, 0), "{got:?}");
    ensure!(
        got.headers
            .contains("x-ratelimit-limit: 6\r\nx-ratelimit-remaining: 5\r\n"),
        "{got:?}"
    );
    let plain = api.from(site.node(BOUND), &format!("http://{INSIDE}"), &[]);
    ensure!(
        plain.get(&aegis(ZONE_ID)).is_err(),
        "plain HTTP on a TLS port"
    );
    ensure!(
        far.get("/metrics")?.outcome()? == (403, 10000),
        "metrics of all accounts"
    );
    let reader = Api::new(&site, "acme", &["metrics:read"])?.from(
        site.node(BOUND),
        &base,
        &["--cacert", &authority],
    );
    let metrics = reader.get("/metrics")?;
    ensure!(metrics.text.contains("\negress_ready 1\n"), "{metrics:?}");
    for _ in 0..4 {
        ensure!(far.get(&aegis(ZONE_ID))?.status == 200);
    }
    let over = far.get(&aegis(ZONE_ID))?;
    ensure!(
        over.outcome()? == (429, 1429) && over.headers.contains("retry-after: "),
        "{over:?}"
    );
    let other =
        Api::new(&site, "acme", &[WRITE])?.from(site.node(BOUND), &base, &["--cacert", &authority]);
    ensure!(
        other.get(&aegis(ZONE_ID))?.status == 200,
        "another token has requests of its own"
    );

    // Somebody who never says anything does not keep the daemon from ending.
    let idle = site
        .node(GATEWAY)
        .run(|| TcpStream::connect(INSIDE.parse::<SocketAddr>()?).map_err(anyhow::Error::from))??;
    let asked = Instant::now();
    let status = site.gateway.terminate()?;
    ensure!(status.success(), "{status}");
    println!("ended in {:?} with an idle connection", asked.elapsed());
    drop(idle);
    Ok(())
}

/// OBS-3: a scrape says what the status says, and what connections there are.
#[test]
fn a_scrape_says_what_is() -> Result<()> {
    const TEST: &str = "a_scrape_says_what_is";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let (site, _api) = api::enabled(&[WRITE])?;
    let node = site.node(BOUND);
    let listener = peer::listen(&site.node(A), site.at_a(PORT))?;
    let mut live = [
        Peers::connect(&node, Caller::default(), &listener)?,
        Peers::connect(&node, Caller::default(), &listener)?,
    ];
    // Nobody asked for this: it is dropped and counted.
    let unsolicited = site.node(A).run(move || {
        TcpStream::connect_timeout(&(POOL[0], 4_000).into(), Duration::from_millis(300))
    })?;
    ensure!(unsolicited.is_err(), "{unsolicited:?}");

    // Whatever else happens to be dropped meanwhile is in both, or they are compared again.
    let reasons = || -> Result<Value> { Ok(site.gateway.json(&["status"])?["reasons"].take()) };
    let (scrape, status) = wait::until("a moment without drops", LIMIT, || {
        let before = reasons()?;
        let scrape = Api::without_token(&site).get("/metrics")?;
        Ok((reasons()? == before).then_some((scrape, before)))
    })?;
    ensure!(
        scrape
            .headers
            .contains("content-type: application/openmetrics-text"),
        "{scrape:?}"
    );
    let has = |line: &str| scrape.text.lines().any(|found| found == line);
    let of = format!("{{pool=\"partners\",egress_ip=\"{}\"}}", POOL[0]);
    ensure!(
        has(&format!("egress_active_connections{of} 2.0")),
        "{}",
        scrape.text
    );
    ensure!(
        has(&format!(
            "egress_fullest_origin_utilization_percent{of} 0.005"
        )),
        "{}",
        scrape.text
    );
    for line in [
        "egress_ready 1",
        "egress_frozen 0",
        "egress_behind 0",
        "egress_troubles{kind=\"interface\"} 0.0",
        "egress_troubles{kind=\"own_address\"} 0.0",
        "egress_troubles{kind=\"server_name\"} 0.0",
    ] {
        ensure!(has(line), "{line}: {}", scrape.text);
    }
    the_ports_that_were_tried_are_told(&scrape.text)?;
    let reasons = status.as_array().context("no reasons")?;
    let mut dropped = 0;
    for count in reasons {
        let (reason, packets) = (&count["reason"], &count["packets"]);
        let line = if reason == "flow_log_lost" {
            // Among the other reasons for which the flow log lacks something.
            format!("egress_flow_log_lost_total{{reason=\"ring_full\"}} {packets}")
        } else {
            format!("_total{{reason={reason}}} {packets}")
        };
        ensure!(
            scrape.text.lines().any(|found| found.ends_with(&line)),
            "{line}\n{}",
            scrape.text
        );
        dropped += packets.as_u64().unwrap_or(0);
    }
    ensure!(dropped > 0, "nothing was dropped: {status}");
    println!("{} lines a scrape", scrape.text.lines().count());
    for direction in ["out", "in"] {
        for what in ["packets", "bytes"] {
            let of =
                format!("egress_pool_{what}_total{{pool=\"partners\",direction=\"{direction}\"}} ");
            wait::until_true(&of, LIMIT, || {
                live.iter_mut().try_for_each(Peers::exchange)?;
                let text = Api::without_token(&site).get("/metrics")?.text;
                let found = text.lines().find_map(|line| line.strip_prefix(&of));
                Ok(found.context(text.clone())?.parse::<u64>()? > 0)
            })?;
        }
    }
    the_page_says_what_is(&site)
}

/// OBS-3: two connections or more have a port, and each of them has tried one at least.
fn the_ports_that_were_tried_are_told(scrape: &str) -> Result<()> {
    let figure = |name: &str| -> Result<f64> {
        let found = scrape.lines().find_map(|line| line.strip_prefix(name));
        let found = found.with_context(|| format!("no {name}in\n{scrape}"))?;
        Ok(found.parse()?)
    };
    let tried = figure("egress_ports_tried_sum ")?;
    let connections = figure("egress_ports_tried_count ")?;
    let all = figure("egress_ports_tried_bucket{le=\"+Inf\"} ")?;
    ensure!(
        connections >= 2.0 && tried >= connections && (all - connections).abs() < 0.5,
        "{tried} ports, {connections} connections, {all} in groups"
    );
    Ok(())
}

/// OBS-5: the page for people: to whom, under which policy, and that nothing can be done by it.
fn the_page_says_what_is(site: &Site) -> Result<()> {
    let anonymous = Api::without_token(site);
    let page = anonymous.get("/status")?;
    ensure!(page.status == 200, "{page:?}");
    if let Some(path) = env::var_os(PAGE) {
        let reader = Api::new(site, "acme", &["metrics:read"])?;
        fs::write(path, reader.get("/status")?.text)?;
    }
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; style-src 'sha256-",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
    ] {
        ensure!(page.headers.contains(header), "{header}: {page:?}");
    }
    let origin = site.at_a(PORT).to_string();
    let pool = POOL[0].to_string();
    for word in ["ready", "partners", &pool, "uplink_egress", "unsolicited"] {
        ensure!(page.text.contains(word), "{word}: {page:?}");
    }
    // Zones and origins are for a token: as a browser shows it, too.
    for secret in [&origin, "shop.example"] {
        ensure!(!page.text.contains(secret), "{secret}: {page:?}");
    }
    let asked = anonymous.get("/status?all")?;
    ensure!(
        asked.outcome()? == (401, 10000) && asked.headers.contains("www-authenticate: basic "),
        "{asked:?}"
    );
    let reader = Api::new(site, "acme", &["metrics:read"])?;
    let user = format!("me:{}", reader.token());
    let known = anonymous.call("/status?all", &["--user", &user])?;
    ensure!(known.status == 200, "{known:?}");
    for word in [&origin, "shop.example"] {
        ensure!(known.text.contains(word), "{word}: {known:?}");
    }
    let wrong = anonymous.call("/status", &["--user", "me:nonsense"])?;
    ensure!(wrong.outcome()? == (401, 10000), "{wrong:?}");
    let other = Api::new(site, "acme", &[WRITE])?;
    ensure!(
        other.get("/status")?.outcome()? == (403, 10000),
        "another permission"
    );
    // A name that a stranger's web page lets lead here.
    for path in ["/status", "/metrics"] {
        let rebound = anonymous.call(path, &["--header", "Host: evil.example"])?;
        ensure!(rebound.outcome()? == (401, 10000), "{path}: {rebound:?}");
    }
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        let written = anonymous.call("/status", &["--request", method])?;
        ensure!(written.outcome()? == (405, 7001), "{method}: {written:?}");
    }
    Ok(())
}

/// A head that does not come, and a body that does not: neither keeps others waiting.
#[test]
fn slow_clients_hold_up_nobody() -> Result<()> {
    const TEST: &str = "slow_clients_hold_up_nobody";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    let site = api::started()?;
    let api = Api::new(&site, "acme", &[WRITE])?;
    let head = format!(
        "PATCH {} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nContent-Length: 40\r\n\r\n{{",
        aegis(ZONE_ID),
        api.token()
    );
    let mut slow = site.node(GATEWAY).run(|| -> Result<Vec<TcpStream>> {
        (0..60)
            .map(|number| {
                let mut stream = TcpStream::connect(LISTEN)?;
                let part = if number % 2 == 0 { &head[..20] } else { &head };
                stream.write_all(part.as_bytes())?;
                Ok(stream)
            })
            .collect()
    })??;
    let asked = Instant::now();
    let got = api.get(&aegis(ZONE_ID))?;
    ensure!(got.status == 200, "{got:?} after {:?}", asked.elapsed());
    // Nobody else was given up for that: all of them are still waited for.
    for waiting in &slow {
        waiting.set_nonblocking(true)?;
        let said = waiting.peek(&mut [0]);
        ensure!(
            matches!(&said, Err(error) if error.kind() == ErrorKind::WouldBlock),
            "{said:?} after {:?}",
            asked.elapsed()
        );
        waiting.set_nonblocking(false)?;
    }
    // The body's patience ends first, and the client is told.
    let waiting = &mut slow[1];
    waiting.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut answer = [0; 12];
    waiting.read_exact(&mut answer)?;
    ensure!(
        &answer == b"HTTP/1.1 408",
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    Ok(())
}
