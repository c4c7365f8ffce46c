//! Load on the cities: connections that are held, some of which are known one by one, and new ones all the time.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Attempts, Cities, ORIGINS, POOLS, Pace, SERVERS, crowd, server_named};
use crate::{
    client::{Clients, Options, Outcome},
    origin::ECHO_PORT,
    peer::{Caller, Peers},
    site::CONNECT_LIMIT,
};

/// Connections known one by one, of each server's client and zone.
const KNOWN: usize = 4;

/// A connection whose servers are known, numbered from 0.
#[derive(Debug)]
pub struct Known {
    /// Where it came in.
    pub entry: usize,
    /// Who translates it.
    pub owner: usize,
    /// It.
    pub live: Peers,
}

/// All of it.
#[derive(Debug)]
pub struct Load {
    /// Those that are held, by the server that their client is behind.
    pub held: Vec<Clients>,
    /// Those that are known.
    pub known: Vec<Known>,
    /// New ones.
    pub new: Attempts,
}

impl Load {
    /// Opens `count` connections, half to each origin, and as many as there are zones and servers times four that are known,
    /// and begins with new ones.
    ///
    /// # Errors
    /// When one fails.
    pub fn start(lab: &Cities, count: usize, listener: &TcpListener, pace: Pace) -> Result<Self> {
        let mut held = Vec::new();
        for (server, (name, ..)) in SERVERS.iter().enumerate() {
            // One process for each zone, each with an address that no other client uses.
            let bind = (1..=POOLS).map(|zone| IpAddr::from(crowd(zone)[server]));
            let options = Options {
                bind: bind.collect(),
                ..Options::default()
            };
            let mut clients = Clients::start(&lab.client(server), POOLS, &options)?;
            for (_, origin) in ORIGINS {
                let share = count / SERVERS.len() / ORIGINS.len();
                let at = SocketAddr::from((origin, ECHO_PORT));
                let opened = clients.open(at, share, CONNECT_LIMIT)?;
                ensure!(opened.succeeded == share, "{name}: {opened:?}");
            }
            held.push(clients);
        }
        let known = known(lab, listener)?;
        let new = Attempts::start(lab, pace);
        Ok(Self { held, known, new })
    }

    /// Has an echo on each connection that is held; what was lost is no longer held. By the server of the client.
    ///
    /// # Errors
    /// When a process fails.
    pub fn check(&mut self, timeout: Duration) -> Result<Vec<Outcome>> {
        self.held.iter_mut().map(|one| one.check(timeout)).collect()
    }

    /// Exchanges a byte on each known connection that `chosen` wants; how many, and how long the slowest took.
    ///
    /// # Errors
    /// When one does not answer.
    pub fn exchange(&mut self, chosen: impl Fn(&Known) -> bool) -> Result<(usize, Duration)> {
        let mut slowest = Duration::ZERO;
        let mut count = 0;
        for one in self.known.iter_mut().filter(|one| chosen(one)) {
            let began = Instant::now();
            one.live.exchange().with_context(|| {
                let name = |server: usize| SERVERS[server].0;
                format!("from {} by {}", name(one.entry), name(one.owner))
            })?;
            slowest = slowest.max(began.elapsed());
            count += 1;
        }
        Ok((count, slowest))
    }
}

/// Opens the connections that are known, and finds out whose they are.
fn known(lab: &Cities, listener: &TcpListener) -> Result<Vec<Known>> {
    let at = listener.local_addr()?;
    let mut all = Vec::new();
    for entry in 0..SERVERS.len() {
        let mut opened = Vec::new();
        for zone in 1..=POOLS {
            for address in crowd(zone).into_iter().step_by(2).take(KNOWN) {
                let caller = Caller {
                    address: Some(address.into()),
                    ..Caller::default()
                };
                opened.push(Peers::connect(&lab.client(entry), caller, listener)?);
            }
        }
        let paths = lab.paths(entry, &[at])?;
        for live in opened {
            let inside = live.inside.local_addr()?;
            let path = paths
                .iter()
                .find(|(end, _)| *end == inside.to_string())
                .map(|(_, path)| path.as_str());
            let owner = owner(entry, path.with_context(|| format!("no flow of {inside}"))?);
            all.push(Known {
                entry,
                owner: owner.with_context(|| format!("{path:?}"))?,
                live,
            });
        }
    }
    Ok(all)
}

/// Who translates a flow that came in at a server, by its path.
fn owner(entry: usize, path: &str) -> Option<usize> {
    match path.strip_prefix("peer ") {
        Some(name) => server_named(name),
        None => (path == "local").then_some(entry),
    }
}

impl Cities {
    /// The flows to some origins that came in at a server: their inside ends, and paths.
    ///
    /// # Errors
    /// When `egress flows` fails.
    pub fn paths(&self, server: usize, origins: &[SocketAddr]) -> Result<Vec<(String, String)>> {
        let origins: Vec<String> = origins.iter().map(ToString::to_string).collect();
        let text = self.gateways[server].text(["flows", "--json"])?;
        let mut found = Vec::new();
        for line in text.lines() {
            let flow: Value = serde_json::from_str(line)?;
            let word = |key: &str| flow[key].as_str().unwrap_or_default().to_owned();
            let (origin, path) = (word("origin"), word("path"));
            if origins.contains(&origin) && !path.starts_with("from ") {
                found.push((word("inside"), path));
            }
        }
        Ok(found)
    }

    /// How many of a crowd's connections that came in at a server another one translates; all, if it is the same one.
    ///
    /// # Errors
    /// As [`Cities::paths`].
    pub fn on(&self, entry: usize, server: usize) -> Result<usize> {
        let origins = ORIGINS.map(|(_, address)| SocketAddr::from((address, ECHO_PORT)));
        let paths = self.paths(entry, &origins)?;
        let is = |path: &str| entry == server || owner(entry, path) == Some(server);
        Ok(paths.iter().filter(|(_, path)| is(path)).count())
    }
}
