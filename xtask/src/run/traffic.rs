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
    standard::{A, B, BOUND, DEFAULT_EGRESS, DEFAULT_EGRESS_V6, POOL, RANGE, UNBOUND},
};

/// TCP connections held to origin A, to origin B, and to each by IPv6, while the state is shown.
const HELD: [usize; 4] = [30, 20, 10, 5];
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
        let bound = self.client == BOUND;
        match (&self.seen, self.origin) {
            (Ok(IpAddr::V4(seen)), SocketAddr::V4(_)) if bound => POOL.contains(seen),
            (Ok(IpAddr::V6(seen)), SocketAddr::V6(_)) if bound => RANGE.contains(seen),
            (Ok(seen), SocketAddr::V4(_)) => *seen == DEFAULT_EGRESS,
            (Ok(seen), SocketAddr::V6(_)) => *seen == DEFAULT_EGRESS_V6,
            (Err(_), _) => false,
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
        for address in [A, B]
            .into_iter()
            .flat_map(|node| site.kind.addresses(node))
        {
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
    for address in [A, B]
        .into_iter()
        .flat_map(|node| site.kind.addresses(node))
    {
        site.curl(BOUND, SocketAddr::new(address, HTTP_PORT))?;
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
        let origins = [
            site.at_a(ECHO_PORT),
            site.at_b(ECHO_PORT),
            site.at_a_v6(ECHO_PORT),
            site.at_b_v6(ECHO_PORT),
        ];
        for (origin, count) in origins.into_iter().zip(HELD) {
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
