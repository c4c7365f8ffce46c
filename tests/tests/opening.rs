//! NAT-7 (RFC 5382 REQ-2): two ends that connect to each other at once, each from the port that the other one asks
//! for. Kernels do so; it takes a SYN that does not arrive to make them do it in a test.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use egress_tests::{
    config::Resources,
    needs,
    netns::Namespace,
    path::Family,
    peer::Caller,
    site::{CONNECT_LIMIT, Plan, Site},
    standard::{A, BOUND, NET, POOL, RANGE, ZONE_PREFIX, ZONE_PREFIX_V6},
    wait,
};

/// The port of the inside, which it keeps, and the origin's.
const INSIDE_PORT: u16 = 40_321;
const ORIGIN_PORT: u16 = 9_000;
/// How long it may take until a SYN is sent again, and again.
const LIMIT: Duration = Duration::from_secs(60);

/// The one address of the pool.
fn egress(family: Family) -> SocketAddr {
    let mut of_range = RANGE.addr().segments();
    of_range[7] = 7;
    let address = match family {
        Family::V4 => POOL[0].into(),
        Family::V6 => of_range.into(),
    };
    SocketAddr::new(address, INSIDE_PORT)
}

fn start(family: Family) -> Result<Site> {
    Site::start(&Plan {
        resources: Resources {
            addresses: vec![egress(family).ip().to_string()],
            selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
            ..Resources::default()
        },
        ..Plan::default()
    })
}

/// Waits until a node has sent a SYN and nobody has answered.
fn has_asked(site: &Site, node: &str) -> Result<()> {
    wait::until_true(&format!("{node} to send a SYN"), CONNECT_LIMIT, || {
        let waiting = site
            .lab
            .exec(node, &["ss", "-H", "-t", "-n", "state", "syn-sent"])?;
        Ok(!waiting.trim().is_empty())
    })
}

fn call(node: &Namespace, port: u16, to: SocketAddr) -> Result<TcpStream> {
    let caller = Caller {
        port: Some(port),
        ..Caller::default()
    };
    caller.connect(node, to)
}

/// Two connects at once; `between` comes after the first one's SYN.
fn both_connect(
    site: &Site,
    family: Family,
    inside_first: bool,
    between: impl FnOnce() -> Result<()>,
) -> Result<[TcpStream; 2]> {
    let inside = (
        site.node(BOUND),
        INSIDE_PORT,
        family.at(site, A, ORIGIN_PORT),
    );
    let origin = (site.node(A), ORIGIN_PORT, egress(family));
    let (first, second) = if inside_first {
        (inside, origin)
    } else {
        (origin, inside)
    };
    thread::scope(|scope| {
        let first = scope.spawn(move || call(&first.0, first.1, first.2));
        has_asked(site, if inside_first { BOUND } else { A })?;
        between()?;
        let second = call(&second.0, second.1, second.2).context("the second")?;
        let first = first
            .join()
            .map_err(|_| anyhow!("the first panicked"))?
            .context("the first")?;
        Ok([first, second])
    })
}

fn exchange([first, second]: &[TcpStream; 2]) -> Result<()> {
    for (mut from, mut to) in [(first, second), (second, first)] {
        let mut got = [0; 5];
        from.write_all(b"hello")?;
        to.read_exact(&mut got)?;
        ensure!(got == *b"hello");
    }
    Ok(())
}

#[test]
fn nat_7_both_ends_may_open_at_once() -> Result<()> {
    const TEST: &str = "nat_7_both_ends_may_open_at_once";

    let Some(_turn) = needs::turn(TEST, &["nft", "ss"]) else {
        return Ok(());
    };
    for family in Family::ALL {
        // The inside's SYN is lost behind the gateway; the origin's meets it.
        at_once(family, true).with_context(|| format!("{family:?}, at the inside"))?;
        // The origin's comes before anybody has asked for it; the inside's meets it.
        at_once(family, false).with_context(|| format!("{family:?}, at the origin"))?;
    }
    Ok(())
}

fn at_once(family: Family, at_inside: bool) -> Result<()> {
    let site = start(family)?;
    let check = site.watch_for(family.rules())?;
    let origin = family.at(&site, A, ORIGIN_PORT);
    if at_inside {
        site.node(NET).nft(&format!(
            "table inet lost {{
                chain forward {{
                    type filter hook forward priority 0;
                    tcp dport {ORIGIN_PORT} tcp flags & (syn | ack) == syn drop
                }}
            }}"
        ))?;
    }
    let ends = both_connect(&site, family, at_inside, || {
        if at_inside {
            site.wait_active(origin, "tcp", 1, LIMIT)
        } else {
            ensure!(
                site.active(origin, "tcp")? == 0,
                "who was not asked was let in"
            );
            Ok(())
        }
    })?;
    exchange(&ends)?;
    ensure!(site.active(origin, "tcp")? == 1);
    let flows = site.gateway.text(["flows", "--json"])?;
    ensure!(
        flows.lines().count() == 1 && flows.contains("\"established\""),
        "{flows}"
    );
    drop(ends);
    site.wait_active(origin, "tcp", 0, LIMIT)?;
    check.finish()?;
    Ok(())
}
