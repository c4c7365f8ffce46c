//! The log of refused and dropped packets (OBS-4): from the data plane's ring buffer to structured log lines.
//!
//! A flood of refusals must not become a flood of lines: the first of a reason and zone is logged at once, then
//! one line a second says how many there were.

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use egress_common::reason::{Event, Reason};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval};

use super::maps::Maps;
use crate::dataplane::api::{DataPlaneError, Names};

/// How often repetitions are summed up.
const SUMMARY: Duration = Duration::from_secs(1);

/// Events read at a stretch: the kernel can fill the ring faster than it is read, and others share the thread.
const BATCH: u32 = 4_096;

/// Where the log is opened; it may be again once it has ended.
#[derive(Clone, Debug)]
pub struct Events {
    maps: Maps,
}

impl Events {
    pub(super) fn of(maps: &Maps) -> Self {
        Self { maps: maps.clone() }
    }

    /// Opens the log of refusals; needs a tokio runtime.
    ///
    /// # Errors
    /// The map is gone, or cannot be waited for.
    pub fn open(&self) -> Result<EventLog, DataPlaneError> {
        EventLog::open(&self.maps)
    }
}

/// The reader of the ring buffer; there must be only one, and the daemon that holds the pins has it.
pub struct EventLog {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl EventLog {
    /// Needs a tokio runtime.
    pub(super) fn open(maps: &Maps) -> Result<Self, DataPlaneError> {
        let ring = maps.ring("EVENTS")?;
        // SAFETY: the ring owns its descriptor, always gives out the same one, and closes it when dropped.
        let ring = unsafe { AsyncFd::register(ring) }
            .map_err(|error| DataPlaneError::failed("waiting for map EVENTS", error))?;
        Ok(Self { ring })
    }

    /// Logs events until it fails or is dropped. `names` stand for zone numbers.
    pub async fn run(mut self, names: watch::Receiver<Names>) -> io::Error {
        let mut summary = Summary::default();
        let mut ticks = interval(SUMMARY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                ready = self.ring.readable_mut() => {
                    let mut guard = match ready {
                        Ok(guard) => guard,
                        Err(error) => return error,
                    };
                    let ring = guard.get_inner_mut();
                    let mut empty = false;
                    for _ in 0..BATCH {
                        let Some(item) = ring.next() else {
                            empty = true;
                            break;
                        };
                        if let Some(event) = read(&item)
                            && summary.add(event, Instant::now())
                        {
                            log(&event, 1, &names.borrow());
                        }
                    }
                    if empty {
                        guard.clear_ready();
                    } else {
                        drop(guard);
                        yield_now().await;
                    }
                }
                _ = ticks.tick() => {
                    for (event, count) in summary.due(Instant::now()) {
                        log(&event, count, &names.borrow());
                    }
                }
            }
        }
    }
}

fn read(bytes: &[u8]) -> Option<Event> {
    let bytes: &[u8; size_of::<Event>()] = bytes.first_chunk()?;
    // SAFETY: as many bytes as an event has, which is `repr(C)` of integers, at whatever alignment.
    Some(unsafe { bytes.as_ptr().cast::<Event>().read_unaligned() })
}

/// What has been logged, and what has not been yet.
#[derive(Default)]
struct Summary {
    /// By reason and zone.
    kinds: BTreeMap<(u32, u32), Kind>,
}

struct Kind {
    logged: Instant,
    since: u64,
    last: Event,
}

impl Summary {
    /// Takes an event in; true if it is to be logged at once.
    fn add(&mut self, event: Event, now: Instant) -> bool {
        let key = (event.reason, event.zone);
        if let Some(kind) = self.kinds.get_mut(&key) {
            kind.since += 1;
            kind.last = event;
            return false;
        }
        self.kinds.insert(
            key,
            Kind {
                logged: now,
                since: 0,
                last: event,
            },
        );
        true
    }

    /// What is to be logged now: the last event of each kind, and how many there were. Kinds that have been
    /// quiet are forgotten.
    fn due(&mut self, now: Instant) -> Vec<(Event, u64)> {
        let mut due = Vec::new();
        self.kinds.retain(|_, kind| {
            if now.duration_since(kind.logged) < SUMMARY {
                return true;
            }
            if kind.since == 0 {
                return false;
            }
            due.push((kind.last, kind.since));
            kind.since = 0;
            kind.logged = now;
            true
        });
        due
    }
}

fn log(event: &Event, count: u64, names: &Names) {
    let (label, text) = Reason::from_number(event.reason).map_or(
        ("unknown", "a reason this version does not know"),
        |reason| (reason.label(), reason.text()),
    );
    let zone = match u16::try_from(event.zone) {
        Ok(0) => String::new(),
        Ok(number) => names.zone(number),
        Err(_) => format!("#{}", event.zone),
    };
    tracing::info!(
        target: "egress::refused",
        reason = label,
        zone,
        source = %SocketAddr::new(address(event.version, event.source), event.source_port),
        destination = %SocketAddr::new(address(event.version, event.destination), event.destination_port),
        protocol = event.protocol,
        count,
        "{text}"
    );
}

fn address(version: u8, bytes: [u8; 16]) -> IpAddr {
    if version == 6 {
        return Ipv6Addr::from(bytes).into();
    }
    let [a, b, c, d, ..] = bytes;
    Ipv4Addr::new(a, b, c, d).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: Reason, zone: u32, port: u16) -> Event {
        Event {
            reason: reason as u32,
            zone,
            source_port: port,
            version: 4,
            source: [10, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            ..Event::default()
        }
    }

    #[test]
    fn the_first_is_logged_at_once_and_the_rest_summed_up() {
        let start = Instant::now();
        let mut summary = Summary::default();
        assert!(summary.add(event(Reason::CapReached, 1, 1), start));
        assert!(
            summary.add(event(Reason::CapReached, 2, 1), start),
            "another zone"
        );
        for port in 2..100 {
            assert!(!summary.add(event(Reason::CapReached, 1, port), start));
        }
        assert!(summary.due(start).is_empty(), "not a second has passed");
        let due = summary.due(start + SUMMARY);
        assert_eq!(due.len(), 1);
        assert_eq!((due[0].0.source_port, due[0].1), (99, 98));
        assert!(summary.due(start + 2 * SUMMARY).is_empty());
        assert!(
            summary.add(event(Reason::CapReached, 1, 1), start + 2 * SUMMARY),
            "quiet: anew"
        );
    }

    #[test]
    fn an_event_is_read_whatever_its_alignment() {
        let mut bytes = vec![0_u8; size_of::<Event>() + 1];
        bytes[1 + 8..1 + 12].copy_from_slice(&3_u32.to_ne_bytes());
        assert_eq!(read(&bytes[1..]).unwrap().reason, 3);
        assert!(read(&bytes[2..]).is_none());
        assert_eq!(
            address(4, event(Reason::NoFlow, 0, 0).source),
            IpAddr::from([10, 1, 0, 2])
        );
    }
}
