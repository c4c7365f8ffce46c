//! SAFE-1 as a check: what leaves the gateway has an allowed source, or it is a leak.
//!
//! The check runs where the gateway's packets arrive, so every source is either one of the egress IPs, or
//! was allowed by name, or is foreign: an inside address, or the gateway's own on traffic of a zone.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Result, bail};
use ipnet::IpNet;

use crate::{
    capture::{Frame, Tap},
    netns::Namespace,
    packet::{ICMPV6, Packet, Transport},
};

/// Examples kept of what leaked.
const EXAMPLES: usize = 20;
/// Router and neighbour messages, and multicast listener reports: types of `ICMPv6`.
const HOUSEKEEPING: [std::ops::RangeInclusive<u8>; 2] = [130..=137, 143..=143];

/// A source that may be seen.
#[derive(Clone, Copy, Debug)]
struct Allowed {
    source: IpNet,
    destination_port: Option<u16>,
}

/// Which sources may be seen.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    allowed: Vec<Allowed>,
    complainers: Vec<(IpAddr, Vec<Ipv4Addr>)>,
}

impl Rules {
    /// Nothing is allowed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows addresses, to any destination: the pool's.
    #[must_use]
    pub fn allow(mut self, sources: impl IntoIterator<Item = impl Into<IpAddr>>) -> Self {
        self.allowed
            .extend(sources.into_iter().map(|source| Allowed {
                source: IpNet::from(source.into()),
                destination_port: None,
            }));
        self
    }

    /// Allows all addresses of a range, to any destination.
    #[must_use]
    pub fn allow_range(mut self, source: IpNet) -> Self {
        self.allowed.push(Allowed {
            source,
            destination_port: None,
        });
        self
    }

    /// Allows a prefix to one destination port: what an unbound client does beside the zone's traffic.
    #[must_use]
    pub fn allow_to_port(mut self, source: IpNet, port: u16) -> Self {
        self.allowed.push(Allowed {
            source,
            destination_port: Some(port),
        });
        self
    }

    /// Allows a router's own ICMP errors about packets to these addresses: nobody inside ever sees such a packet,
    /// so no such error is of the zone.
    #[must_use]
    pub fn allow_errors_about(mut self, router: Ipv4Addr, addresses: &[Ipv4Addr]) -> Self {
        self.complainers.push((router.into(), addresses.to_vec()));
        self
    }

    /// Whether a packet that left the gateway is a leak.
    #[must_use]
    pub fn forbid(&self, packet: &Packet) -> bool {
        let allowed = self.allowed.iter().any(|rule| {
            rule.source.contains(&packet.source)
                && rule
                    .destination_port
                    .is_none_or(|port| packet.destination_port() == Some(port))
        });
        !allowed && !is_housekeeping(packet) && !self.is_complaint(packet)
    }

    fn is_complaint(&self, packet: &Packet) -> bool {
        let Transport::Icmp {
            about: Some(about), ..
        } = packet.transport
        else {
            return false;
        };
        self.complainers
            .iter()
            .any(|(router, addresses)| packet.source == *router && addresses.contains(&about))
    }
}

/// Neighbour discovery and its like, which the gateway sends for itself.
fn is_housekeeping(packet: &Packet) -> bool {
    packet.protocol == ICMPV6
        && matches!(packet.transport, Transport::Icmp { kind, .. } if HOUSEKEEPING.iter().any(|range| range.contains(&kind)))
}

/// What the check saw.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// IP packets that left the gateway.
    pub packets: u64,
    /// How many came from each source.
    pub sources: BTreeMap<IpAddr, u64>,
    /// How many were leaks.
    pub leaks: u64,
    /// Some of the leaks.
    pub examples: Vec<String>,
}

/// A running check.
#[derive(Debug)]
pub struct LeakCheck {
    tap: Tap,
    report: Arc<Mutex<Report>>,
}

impl LeakCheck {
    /// Watches what `interface` receives.
    ///
    /// # Errors
    /// When the interface cannot be captured on.
    pub fn start(namespace: &Namespace, interface: &str, rules: Rules) -> Result<Self> {
        let report = Arc::new(Mutex::new(Report::default()));
        let shared = Arc::clone(&report);
        let tap = Tap::start(namespace, interface, move |frame: Frame| {
            if frame.received
                && let Some(packet) = frame.packet()
            {
                let mut report = shared.lock().unwrap_or_else(PoisonError::into_inner);
                report.packets += 1;
                *report.sources.entry(packet.source).or_default() += 1;
                if rules.forbid(&packet) {
                    report.leaks += 1;
                    if report.examples.len() < EXAMPLES {
                        report.examples.push(packet.to_string());
                    }
                }
            }
        })?;
        Ok(Self { tap, report })
    }

    /// What was seen so far.
    #[must_use]
    pub fn so_far(&self) -> Report {
        self.report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends the check and tells what it saw, leaks or not.
    ///
    /// # Errors
    /// When the capture lost packets, so that nothing can be said.
    pub fn report(self) -> Result<Report> {
        let counts = self.tap.stop()?;
        if counts.lost > 0 {
            bail!(
                "the leak check lost {} of {} packets, so it says nothing",
                counts.lost,
                counts.seen + counts.lost
            );
        }
        Ok(self
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone())
    }

    /// Ends the check; traffic must have been seen, and no leak.
    ///
    /// # Errors
    /// When a packet leaked, nothing was seen, or packets were lost.
    pub fn finish(self) -> Result<Report> {
        let report = self.report()?;
        if report.leaks > 0 {
            bail!(
                "{} of {} packets leaked: {}",
                report.leaks,
                report.packets,
                report.examples.join("; ")
            );
        }
        if report.packets == 0 {
            bail!("the leak check saw no packet, so it proves nothing");
        }
        Ok(report)
    }
}
