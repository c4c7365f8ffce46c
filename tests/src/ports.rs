//! Which server has used which slice of source ports at which time, by captures of what the servers send (CLU-3).
//!
//! A slice may go to another server and come back. But before it goes, what its owner had there has ended and rested.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    capture::{Frame, Tap},
    netns::Namespace,
    packet::{ACK, Packet, SYN, Transport},
};

/// A packet from one of the slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Use {
    at: Duration,
    server: usize,
    port: u16,
    to: SocketAddr,
    begins: bool,
}

/// A slice of an address: 2,048 ports.
type Slice = (IpAddr, u16);

/// A watch over all slices.
#[derive(Debug)]
pub struct Ports {
    taps: Vec<Tap>,
    used: Arc<Mutex<BTreeMap<Slice, Vec<Use>>>>,
    rest: Duration,
}

impl Ports {
    /// Begins to watch what comes from each of the servers: where, and by which interface. Between one server's last packet from a
    /// slice of one of these addresses and another's first one is `rest` at least.
    ///
    /// # Errors
    /// When a capture does not start.
    pub fn start(
        servers: impl IntoIterator<Item = (Namespace, String)>,
        addresses: &[IpAddr],
        rest: Duration,
    ) -> Result<Self> {
        let used = Arc::new(Mutex::new(BTreeMap::<Slice, Vec<Use>>::new()));
        let taps = servers
            .into_iter()
            .enumerate()
            .map(|(server, (node, port))| {
                let (used, addresses) = (Arc::clone(&used), addresses.to_vec());
                Tap::start(&node, &port, move |frame: Frame| {
                    let Some(packet) = frame.packet().filter(|_| frame.received) else {
                        return;
                    };
                    let ours = addresses.contains(&packet.source);
                    if let Some((from, to)) = ends(&packet).filter(|_| ours) {
                        // Of other protocols nobody sees where a flow begins.
                        let begins = match packet.transport {
                            Transport::Tcp { flags, .. } => flags & (SYN | ACK) == SYN,
                            _ => true,
                        };
                        let mut used = used.lock().unwrap_or_else(PoisonError::into_inner);
                        let slice = (from.ip(), from.port() >> 11);
                        used.entry(slice).or_default().push(Use {
                            at: frame.at,
                            server,
                            port: from.port(),
                            to,
                            begins,
                        });
                    }
                })
            });
        let taps = taps.collect::<Result<_>>()?;
        Ok(Self { taps, used, rest })
    }

    /// How many pairs of source and destination were used, how often a slice came to another server, and what two servers used at
    /// once.
    ///
    /// # Errors
    /// When a capture lost packets, so that nothing can be said.
    pub fn finish(self) -> Result<(usize, usize, Vec<String>)> {
        for tap in self.taps {
            let lost = tap.stop()?.lost;
            ensure!(lost == 0, "a capture lost {lost} packets");
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut pairs, mut passed, mut wrong) = (0, 0, Vec::new());
        for ((address, slice), uses) in used.iter_mut() {
            // Each server has a capture of its own.
            uses.sort();
            let different: BTreeSet<_> = uses.iter().map(|one| (one.port, one.to)).collect();
            pairs += different.len();
            let (changes, found) = changes(uses, self.rest);
            passed += changes;
            wrong.extend(found.map(|why| format!("slice {slice} of {address}: {why}")));
        }
        Ok((pairs, passed, wrong))
    }
}

/// Source and destination, with their ports.
pub(crate) fn ends(packet: &Packet) -> Option<(SocketAddr, SocketAddr)> {
    Some((
        (packet.source, packet.source_port()?).into(),
        (packet.destination, packet.destination_port()?).into(),
    ))
}

/// How often a slice came to another server, and what is wrong with that.
fn changes(uses: &[Use], rest: Duration) -> (usize, Option<String>) {
    let mut changes = 0;
    // Connections of the server that has the slice, once it was another's.
    let mut live: Option<BTreeSet<(u16, SocketAddr)>> = None;
    for pair in uses.windows(2) {
        let [before, now] = pair else { continue };
        if before.server != now.server {
            changes += 1;
            live = Some(BTreeSet::new());
            let pause = now.at.saturating_sub(before.at);
            if pause < rest {
                let why = format!("{before:?}, and after {pause:?} {now:?}");
                return (changes, Some(why));
            }
        }
        if let Some(live) = &mut live
            && live.insert((now.port, now.to))
            && !now.begins
        {
            let why = format!("{now:?} goes on after it was another's");
            return (changes, Some(why));
        }
    }
    (changes, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(1);

    fn at(milliseconds: u64, server: usize, origin: u16, begins: bool) -> Use {
        Use {
            at: Duration::from_millis(milliseconds),
            server,
            port: 40_000,
            to: ([198, 51, 100, 1], origin).into(),
            begins,
        }
    }

    #[test]
    fn what_rested_may_be_anothers() {
        let uses = [
            at(0, 1, 80, false),
            at(10, 1, 81, false),
            at(2_000, 2, 80, true),
            at(2_010, 2, 80, false),
            at(9_000, 1, 80, true),
            at(9_001, 1, 80, false),
        ];
        assert_eq!(changes(&uses, REST), (2, None));
    }

    #[test]
    fn nothing_is_two_servers_at_once() {
        let early = [at(0, 1, 80, true), at(999, 2, 81, true)];
        // Held, and quiet while another one used the slice.
        let held = [
            at(0, 1, 80, true),
            at(5_000, 2, 80, true),
            at(9_000, 1, 80, false),
        ];
        // As before, with another origin first.
        let hidden = [
            at(0, 1, 80, true),
            at(5_000, 2, 80, true),
            at(9_000, 1, 81, true),
            at(9_010, 1, 80, false),
        ];
        for uses in [&early[..], &held, &hidden] {
            assert!(changes(uses, REST).1.is_some(), "{uses:?}");
        }
    }
}
