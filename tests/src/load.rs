//! Traffic of the zone that goes on while something happens to the gateway.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Result, anyhow, ensure};

use crate::{
    client::{Churn, Clients, Closer, Outcome},
    origin::{HTTP_PORT, UDP_PORT},
    site::Site,
    standard::{BOUND, POOL},
};

/// One stretch of load between two looks whether to stop.
const STRETCH: u64 = 100;

/// Connects and sends, over and over, while `fault` happens; tells what came of it.
///
/// # Errors
/// What the fault returned, or the clients did.
pub fn under_load(
    site: &mut Site,
    fault: impl FnOnce(&mut Site) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let (http, udp) = (site.at_a(HTTP_PORT), site.at_b(UDP_PORT));
    let mut clients = site.clients(BOUND, 1)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<Vec<Outcome>> {
            let mut outcomes = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                outcomes.push(stretch(&mut clients, http, udp)?);
            }
            Ok(outcomes)
        });
        let result = fault(site);
        stop.store(true, Ordering::SeqCst);
        let outcomes = load.join().map_err(|_| anyhow!("the load panicked"))?;
        result?;
        outcomes
    })
}

fn stretch(clients: &mut Clients, http: SocketAddr, udp: SocketAddr) -> Result<Outcome> {
    clients.udp(udp, 5, Duration::from_millis(50), false)?;
    clients.churn(Churn {
        target: http,
        duration_ms: STRETCH,
        parallel: 4,
        closer: Closer::Client,
    })
}

/// How many connections succeeded.
#[must_use]
pub fn total(outcomes: &[Outcome]) -> usize {
    outcomes.iter().map(|outcome| outcome.succeeded).sum()
}

/// Checks that a bound client is seen with an address of the pool.
///
/// # Errors
/// When it is not seen, or with another address.
pub fn seen_from_pool(site: &Site, origin: SocketAddr) -> Result<()> {
    let seen = site.curl(BOUND, origin)?;
    ensure!(
        POOL.iter().any(|address| address.to_string() == seen),
        "seen as {seen}"
    );
    Ok(())
}
