//! CAP-7 with real kernels: ports on which an origin holds TIME_WAIT are used again, and no connection waits for it.

use std::{
    collections::HashSet,
    env,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use egress_tests::{
    capture::Tap,
    client::{Churn, Closer, Crowd, Outcome, Paced},
    config::Resources,
    leak::Rules,
    needs,
    origin::HTTP_PORT,
    packet::{SYN, Transport},
    path::Family,
    site::{Plan, Site},
    standard::{A, BOUND, GATEWAY, INSIDE_BOUND, POOL, RANGE, ZONE_PREFIX, ZONE_PREFIX_V6},
};

/// How many seconds the load lasts, if not [`SHORT`]: 60 and more are held against the promise.
const VARIABLE: &str = "EGRESS_REUSE_SECONDS";
/// Long enough that almost every connection meets a port that rests.
const SHORT: u64 = 8;
/// So long an origin holds TIME_WAIT (Linux, `TCP_TIMEWAIT_LEN`).
const TIME_WAIT: u64 = 60;
/// Connections in a second, if the machine can.
const RATE: u64 = 3_000;
/// Connections at once of a process: few, so that none waits for a second because of the others.
const PARALLEL: usize = 64;
/// Connections after which some would have met a port that rests even if they chose theirs blindly.
const ENOUGH: usize = 18_000;
/// Times [`SHORT`] in which there are that many on any machine.
const STRETCHES: usize = 40;
/// How long a count may take to fall: a round of the sweep, and a machine that has others to serve.
const COUNT_LIMIT: Duration = Duration::from_secs(60);

/// Inside addresses of the crowd: more than one client, so that neither numbers nor timestamps of one tell anything
/// about another's. All leave from one address.
fn crowd(family: Family) -> Crowd {
    let first = match family {
        Family::V4 => Ipv4Addr::new(10, 1, 4, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 4, 1).into(),
    };
    Crowd { first, count: 64 }
}

/// The one address of the pool.
fn egress(family: Family) -> IpAddr {
    let mut of_range = RANGE.addr().segments();
    of_range[7] = 7;
    match family {
        Family::V4 => POOL[0].into(),
        Family::V6 => of_range.into(),
    }
}

/// Client processes, one a CPU of a small machine.
const PROCESSES: usize = 2;
/// Source ports that the clients' kernel chooses from: all addresses use the same few, so that almost every
/// connection asks for a port on which another one rests.
const CLIENT_PORTS: &str = "30000 31999";
/// TIME_WAIT sockets that the origin may hold.
const TIME_WAITS: &str = "1000000";

/// What a load has shown.
#[derive(Debug)]
struct Shown {
    outcome: Outcome,
    /// Ports that the origin has seen.
    ports: usize,
    /// How many connections the origin remembers at the end.
    remembered: usize,
}

/// Short connections from the crowd, the origin closing first.
fn crowded(family: Family, seconds: u64) -> Result<Shown> {
    let crowd = crowd(family);
    let site = Site::start(&Plan {
        resources: Resources {
            addresses: vec![egress(family).to_string()],
            selectors: format!("sources = [\"{ZONE_PREFIX}\", \"{ZONE_PREFIX_V6}\"]"),
            ..Resources::default()
        },
        ..Plan::default()
    })?;
    let (bound, origin) = (site.node(BOUND), site.node(A));
    let addresses: Vec<String> = (0..u64::from(crowd.count))
        .map(|nth| match crowd.address(nth) {
            IpAddr::V4(address) => format!("address add {address}/32 dev eth0"),
            IpAddr::V6(address) => format!("address add {address}/128 dev eth0 nodad"),
        })
        .collect();
    bound.ip_batch(&addresses)?;
    bound.sysctl("net.ipv4.ip_local_port_range", CLIENT_PORTS)?;
    origin.sysctl("net.ipv4.tcp_max_tw_buckets", TIME_WAITS)?;
    site.node(GATEWAY)
        .ip(&format!("route add 10.1.4.0/24 dev {INSIDE_BOUND}"))?;
    let check = site.watch_for(Rules::new().allow([egress(family)]))?;
    let target = family.at(&site, A, HTTP_PORT);
    let ports: Arc<Mutex<HashSet<u16>>> = Arc::default();
    let seen = Arc::clone(&ports);
    let tap = Tap::start(&origin, "eth0", move |frame| {
        if let Some(Transport::Tcp {
            source, flags: SYN, ..
        }) = frame.packet().map(|packet| packet.transport)
        {
            seen.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(source);
        }
    })?;
    let mut clients = site.clients(BOUND, PROCESSES)?;
    let paced = Paced {
        churn: Churn {
            target,
            duration_ms: seconds * 1000,
            parallel: PARALLEL,
            closer: Closer::Server,
        },
        rate: RATE / PROCESSES as u64,
        from: crowd,
    };
    let mut outcome = clients.paced(paced)?;
    // How many ports are met again goes by how many connections there were, which a slow machine needs longer for. What
    // lasts as long as a TIME_WAIT has to be fast enough.
    let mut stretches = 1;
    while seconds < TIME_WAIT && outcome.succeeded < ENOUGH {
        ensure!(stretches < STRETCHES, "too slow: {outcome:?}");
        stretches += 1;
        outcome.add(clients.paced(paced)?);
    }
    tap.stop()?;
    // Those of IPv6 are counted here, too.
    let remembered = time_waits(&site.lab.exec(A, &["cat", "/proc/net/sockstat"])?)?;
    let resent = site.lab.exec(BOUND, &["cat", "/proc/net/netstat"])?;
    let ports = ports.lock().unwrap_or_else(PoisonError::into_inner).len();
    println!(
        "{family:?}: {} connections in {:.1} s over {ports} ports, the origin remembers {remembered}; \
         connect, us: {:?}",
        outcome.succeeded,
        outcome.elapsed_us as f64 / 1e6,
        outcome.connect_us,
    );
    ensure!(
        outcome.refusals() + outcome.failures() + outcome.timed_out == 0,
        "{outcome:?}"
    );
    ensure!(
        counter(&resent, "TCPSynRetrans")? == 0,
        "an origin in TIME_WAIT did not take a SYN: {outcome:?}"
    );
    site.wait_active(target, "tcp", 0, COUNT_LIMIT)?;
    check.finish()?;
    Ok(Shown {
        outcome,
        ports,
        remembered,
    })
}

/// `tw` of the line `TCP: inuse 5 orphan 0 tw 12 ...`.
fn time_waits(text: &str) -> Result<usize> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "tw");
    Ok(at
        .and_then(|at| words.get(at + 1))
        .context("no TIME_WAIT count")?
        .parse()?)
}

/// A counter of `/proc/net/netstat`: a line of names, then one of numbers.
fn counter(text: &str, name: &str) -> Result<u64> {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks(2) {
        let [names, numbers] = pair else { continue };
        if let Some(at) = names.split_whitespace().position(|word| word == name) {
            let number = numbers.split_whitespace().nth(at);
            return Ok(number.context("a line is short")?.parse()?);
        }
    }
    bail!("no counter {name}")
}

/// CAP-7, PERF-10: a port on which an origin holds TIME_WAIT goes only to a connection that it accepts at once. For a
/// minute each family, after which every port of the address rests: `EGRESS_REUSE_SECONDS=60 cargo test -p egress-tests --test
/// reuse -- --nocapture`, on a machine that does nothing else.
#[test]
fn cap_7_ports_are_used_again_while_the_origin_holds_time_wait() -> Result<()> {
    const TEST: &str = "cap_7_ports_are_used_again_while_the_origin_holds_time_wait";
    /// A SYN that is lost is sent again after a second.
    const LIMIT_US: u64 = 100_000;

    let seconds = match env::var(VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{VARIABLE}={text}"))?,
        Err(_) => SHORT,
    };
    let Some(_turn) = needs::loud_turn(TEST, &[]) else {
        return Ok(());
    };
    for family in Family::ALL {
        let shown = crowded(family, seconds)?;
        let reuses = shown.outcome.succeeded.saturating_sub(shown.ports);
        ensure!(
            reuses > shown.outcome.succeeded / 10,
            "hardly a port was used again: {shown:?}"
        );
        if seconds >= TIME_WAIT {
            let asked = RATE * seconds;
            ensure!(
                shown.outcome.succeeded as u64 > asked - asked / 20,
                "too slow: {shown:?}"
            );
            ensure!(
                shown.ports > 60_000 && shown.remembered > 60_000,
                "ports were left: {shown:?}"
            );
            ensure!(
                shown.outcome.connect_us.max < LIMIT_US,
                "a connect took {} us",
                shown.outcome.connect_us.max
            );
        }
    }
    Ok(())
}
