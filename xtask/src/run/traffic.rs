//! The traffic of a run: each client to each origin, by TCP with curl and by UDP.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result};
use egress_tests::{
    client::Clients,
    origin::{ECHO_PORT, HTTP_PORT, UDP_PORT},
    site::{CONNECT_LIMIT, Site},
    standard::{A, B, BOUND, DEFAULT_EGRESS, POOL, UNBOUND},
};

/// TCP connections held to origin A and to origin B while the state is shown.
const HELD: [usize; 2] = [30, 20];
/// UDP flows held to origin A.
const HELD_DATAGRAMS: usize = 5;

/// What an origin saw of a client.
pub(crate) struct Sight {
    pub(crate) client: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) origin: SocketAddr,
    pub(crate) seen: Result<IpAddr>,
}

impl Sight {
    /// Whether the address is one that the client's traffic should have.
    pub(crate) fn is_right(&self) -> bool {
        match &self.seen {
            Ok(IpAddr::V4(seen)) if self.client == BOUND => POOL.contains(seen),
            Ok(seen) => *seen == DEFAULT_EGRESS,
            Err(_) => false,
        }
    }

    /// What it should be, in words.
    pub(crate) fn expected(&self) -> &'static str {
        if self.client == BOUND {
            "an egress IP of the pool"
        } else {
            "the default address"
        }
    }
}

/// Sends a request of each kind and asks the origin who it was from.
pub(crate) fn send(site: &Site) -> Result<Vec<Sight>> {
    let mut sights = Vec::new();
    for client in [BOUND, UNBOUND] {
        let mut datagrams = site.clients(client, 1)?;
        for node in [A, B] {
            let address = IpAddr::V4(site.kind.origin(node));
            let origin = SocketAddr::new(address, HTTP_PORT);
            let seen = site.curl(client, origin).and_then(|seen| parse(&seen));
            sights.push(Sight {
                client,
                protocol: "TCP",
                origin,
                seen,
            });
            let origin = SocketAddr::new(address, UDP_PORT);
            let seen = datagram(&mut datagrams, origin);
            sights.push(Sight {
                client,
                protocol: "UDP",
                origin,
                seen,
            });
        }
    }
    Ok(sights)
}

/// A few more requests, so that a live view lives.
pub(crate) fn again(site: &Site) -> Result<()> {
    for node in [A, B] {
        let origin = SocketAddr::new(site.kind.origin(node).into(), HTTP_PORT);
        site.curl(BOUND, origin)?;
    }
    Ok(())
}

fn datagram(clients: &mut Clients, origin: SocketAddr) -> Result<IpAddr> {
    let outcome = clients.udp(origin, 1, CONNECT_LIMIT, false)?;
    match outcome.seen.keys().next() {
        Some(seen) => parse(seen),
        None => anyhow::bail!("no answer: {:?}", outcome.refused),
    }
}

fn parse(seen: &str) -> Result<IpAddr> {
    seen.parse()
        .with_context(|| format!("the origin said {seen:?}"))
}

/// Connections that stay open, so that there is something to show.
pub(crate) struct Held {
    _clients: Clients,
}

impl Held {
    /// Opens them.
    pub(crate) fn open(site: &mut Site) -> Result<Self> {
        let mut clients = site.clients(BOUND, 1)?;
        for (origin, count) in [site.at_a(ECHO_PORT), site.at_b(ECHO_PORT)]
            .into_iter()
            .zip(HELD)
        {
            clients.open(origin, count, CONNECT_LIMIT)?;
        }
        clients.udp(
            site.at_a(UDP_PORT),
            HELD_DATAGRAMS,
            Duration::from_secs(2),
            true,
        )?;
        Ok(Self { _clients: clients })
    }
}
