//! A whole site: the standard network, both origins, and the real daemon on the gateway.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    client::{Clients, Options as ClientOptions, Outcome},
    config::{Resources, Server},
    gateway::{self, Gateway},
    lab::Lab,
    leak::{LeakCheck, Rules},
    netns::Namespace,
    offload::{self, Offload},
    origin::{self, Origin},
    standard::{self, A, B, BOUND, GATEWAY, INSIDE_BOUND, Kind, NET, Options, POOL, UPLINK},
    wait,
};

/// How long something that is to happen may take: a connection, an answer, a count. No rule is about it, and machines
/// have others to serve, so it is long enough for several retransmissions; for what is not to happen it is too long.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// What a site is made of.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The network.
    pub network: Options,
    /// `egress.toml`.
    pub server: Server,
    /// `resources.toml`.
    pub resources: Resources,
    /// The daemon, if not the one that [`crate::gateway::binary`] finds.
    pub binary: Option<PathBuf>,
}

/// A site that stands. Its parts go in the order in which they are declared.
#[derive(Debug)]
pub struct Site {
    /// The daemon.
    pub gateway: Gateway,
    /// Origin A.
    pub a: Origin,
    /// Origin B.
    pub b: Origin,
    /// The network.
    pub lab: Lab,
    /// What is between gateway and origins.
    pub kind: Kind,
}

impl Site {
    /// Sets everything up; the daemon is ready when this returns.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(plan: &Plan) -> Result<Self> {
        let mut site = Self::prepare(plan)?;
        site.gateway.restart()?;
        Ok(site)
    }

    /// Sets everything up but does not start the daemon.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn prepare(plan: &Plan) -> Result<Self> {
        let kind = plan.network.kind;
        let lab = Lab::up(&standard::topology(&plan.network))?;
        let binary = plan.binary.clone().map_or_else(gateway::binary, Ok)?;
        let gateway = Gateway::prepare(&lab, &binary, &plan.server, &plan.resources)?;
        let start = |node| Origin::start(&lab.node(node), &kind.addresses(node), origin::PROCESSES);
        Ok(Self {
            gateway,
            a: start(A)?,
            b: start(B)?,
            lab,
            kind,
        })
    }

    /// A port of origin A.
    #[must_use]
    pub fn at_a(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.kind.origin(A).into(), port)
    }

    /// A port of origin B.
    #[must_use]
    pub fn at_b(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.kind.origin(B).into(), port)
    }

    /// A port of origin A, by IPv6.
    #[must_use]
    pub fn at_a_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.kind.origin_v6(A).into(), port)
    }

    /// A port of origin B, by IPv6.
    #[must_use]
    pub fn at_b_v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.kind.origin_v6(B).into(), port)
    }

    /// The namespace of a node.
    #[must_use]
    pub fn node(&self, name: &str) -> Namespace {
        self.lab.node(name)
    }

    /// Client processes on a node.
    ///
    /// # Errors
    /// When they do not start.
    pub fn clients(&self, node: &str, processes: usize) -> Result<Clients> {
        Clients::start(&self.node(node), processes, &ClientOptions::default())
    }

    /// Client processes on the bound node, from several addresses: for tens of thousands of connections.
    ///
    /// # Errors
    /// When they do not start.
    pub fn crowd(&self, processes: usize) -> Result<Clients> {
        let options = ClientOptions {
            bind: standard::CROWD_ADDRESSES.map(IpAddr::from).to_vec(),
            ..ClientOptions::default()
        };
        Clients::start(&self.node(BOUND), processes, &options)
    }

    /// Begins to watch what leaves by the uplink; only the pool's addresses are allowed.
    ///
    /// # Errors
    /// When the capture does not start.
    pub fn watch(&self) -> Result<LeakCheck> {
        self.watch_for(Rules::new().allow(POOL))
    }

    /// Begins to watch what leaves by the uplink, with rules of the test's own.
    ///
    /// # Errors
    /// When the capture does not start.
    pub fn watch_for(&self, rules: Rules) -> Result<LeakCheck> {
        LeakCheck::start(&self.node(NET), UPLINK, rules)
    }

    /// What the web server at `origin` says about where a request of `curl` on `node` came from.
    ///
    /// # Errors
    /// When `curl` gets no answer.
    pub fn curl(&self, node: &str, origin: SocketAddr) -> Result<String> {
        self.curl_for(node, origin, CONNECT_LIMIT)
    }

    /// As [`Site::curl`], where no answer is to come, after some seconds at the latest.
    ///
    /// # Errors
    /// When `curl` gets no answer, as is expected.
    pub fn curl_in_vain(&self, node: &str, origin: SocketAddr) -> Result<String> {
        self.curl_for(node, origin, Duration::from_secs(5))
    }

    fn curl_for(&self, node: &str, origin: SocketAddr, limit: Duration) -> Result<String> {
        let url = format!("http://{origin}/ip");
        let limit = limit.as_secs().to_string();
        let command = [
            "curl",
            "--silent",
            "--show-error",
            "--max-time",
            &limit,
            &url,
        ];
        Ok(self.lab.exec(node, &command)?.trim().to_owned())
    }

    /// The sum of `active` over all entries of `egress origins --json` for an origin.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn active(&self, origin: SocketAddr, protocol: &str) -> Result<u64> {
        let list = self.gateway.json(&["origins"])?;
        let entries = list.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(entries
            .iter()
            .filter(|entry| entry["origin"] == origin.to_string() && entry["protocol"] == protocol)
            .filter_map(|entry| entry["active"].as_u64())
            .sum())
    }

    /// Clients whose packets the gateway forwards, and clients on the gateway itself whose sockets bear `mark`; the
    /// checksums of both are left to devices, or not.
    ///
    /// # Errors
    /// When one cannot be started, or a device cannot be told.
    pub fn forwarded_and_own(
        &self,
        mark: u32,
        offload: bool,
    ) -> Result<[(&'static str, Clients); 2]> {
        for (node, interface) in [(BOUND, "eth0"), (GATEWAY, INSIDE_BOUND), (GATEWAY, UPLINK)] {
            offload::set(&self.node(node), interface, Offload::TxChecksum, offload)?;
        }
        let marked = ClientOptions {
            mark: Some(mark),
            ..ClientOptions::default()
        };
        Ok([
            ("forwarded", self.clients(BOUND, 1)?),
            ("own", Clients::start(&self.node(HOST), 1, &marked)?),
        ])
    }

    /// Packets counted under a reason, by `egress status --json`.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn counted(&self, reason: &str) -> Result<u64> {
        let status = self.gateway.json(&["status"])?;
        let reasons = status["reasons"].as_array();
        Ok(reasons
            .context("egress status lists no reasons")?
            .iter()
            .filter(|entry| entry["reason"] == reason)
            .filter_map(|entry| entry["packets"].as_u64())
            .sum())
    }

    /// Waits until the count of an origin is `expected`.
    ///
    /// # Errors
    /// When it is another one after `limit`.
    pub fn wait_active(
        &self,
        origin: SocketAddr,
        protocol: &str,
        expected: u64,
        limit: Duration,
    ) -> Result<()> {
        let mut last = None;
        let reached = wait::until_true(
            &format!("{expected} active {protocol} connections to {origin}"),
            limit,
            || {
                let now = self.active(origin, protocol)?;
                last = Some(now);
                Ok(now == expected)
            },
        );
        reached.map_err(|error| error.context(format!("the last count was {last:?}")))
    }
}

/// What a refusal may take, in microseconds (CAP-5: at once).
const REFUSAL_LIMIT: u64 = 10_000;
/// How often that is tried: a busy machine may serve others just when an answer has come.
const REFUSAL_ROUNDS: usize = 50;

/// Has `count` attempts refused at once by `error`: all of them each time, and once in time as the middle one of
/// them. How long that took, in microseconds.
///
/// # Errors
/// When one attempt ends otherwise, or refusals take too long whenever they are tried.
pub fn refused_at_once(
    error: &str,
    count: usize,
    mut attempt: impl FnMut() -> Result<Outcome>,
) -> Result<u64> {
    let mut last = 0;
    for _ in 0..REFUSAL_ROUNDS {
        let outcome = attempt()?;
        ensure!(
            outcome.refused.get(error) == Some(&count) && outcome.succeeded == 0,
            "expected {count} x {error}: {outcome:?}"
        );
        last = outcome.refusal_us.median;
        if last <= REFUSAL_LIMIT {
            return Ok(last);
        }
    }
    bail!("a refusal takes longer than {REFUSAL_LIMIT} us, the last ones {last} us")
}

/// Checks that every attempt of an outcome succeeded.
///
/// # Errors
/// When one did not.
pub fn all_succeeded(outcome: &Outcome, expected: usize) -> Result<()> {
    ensure!(
        outcome.succeeded == expected,
        "expected {expected} to succeed: {outcome:?}"
    );
    Ok(())
}

/// The gateway's own namespace, for clients that run on the host itself.
pub const HOST: &str = GATEWAY;
