//! Every port that was given out, and by whom: what must never be two servers' at once.
//!
//! A data plane that has to stop at some time does so at that very time, for every packet: here, before anything else is written
//! down that happens later.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use egress_common::placement;
use egress_userspace::ownership::Slices;

/// What all data planes have done.
#[derive(Default)]
pub(crate) struct History(Mutex<Now>);

#[derive(Default)]
struct Now {
    planes: BTreeMap<String, Plane>,
    /// Ports in use or at rest, by address.
    ports: BTreeMap<(Ipv4Addr, u16), String>,
    /// Slices that servers may open flows in.
    open: BTreeMap<(Ipv4Addr, u32), BTreeSet<String>>,
    /// Who had a slice open last.
    last: BTreeMap<(Ipv4Addr, u32), String>,
    given: u64,
    moved: u64,
    lapsed: u64,
    wrong: Vec<String>,
}

/// What a data plane has, used or not.
#[derive(Default)]
struct Plane {
    open: Slices,
    ports: BTreeSet<(Ipv4Addr, u16)>,
    /// When it stops to use it.
    lapse: Option<Instant>,
    has_stopped: bool,
}

impl Now {
    /// Data planes stop whose time has come.
    fn stop(&mut self) {
        let now = Instant::now();
        let due = self
            .planes
            .iter()
            .filter(|(_, plane)| !plane.has_stopped && plane.lapse.is_some_and(|at| at <= now));
        let due: Vec<String> = due.map(|(server, _)| server.clone()).collect();
        for server in due {
            self.lapsed += 1;
            self.leave(&server);
            self.planes.get_mut(&server).unwrap().has_stopped = true;
        }
    }

    /// A server uses nothing any more.
    fn leave(&mut self, server: &str) {
        self.open.retain(|_, by| {
            by.remove(server);
            !by.is_empty()
        });
        self.ports.retain(|_, by| by != server);
    }

    /// A server may open flows in these slices from now on, and in no others.
    fn enter(&mut self, server: &str, slices: &Slices) {
        self.open.retain(|_, by| {
            by.remove(server);
            !by.is_empty()
        });
        for (address, bitmap) in slices {
            for slice in placement::slices(*bitmap) {
                let by = self.open.entry((*address, slice)).or_default();
                by.insert(server.to_owned());
                if by.len() > 1 {
                    let wrong = format!("slice {slice} of {address} is open at {by:?}");
                    self.wrong.push(wrong);
                }
                let ports = u16::try_from(slice << 11).unwrap();
                let mut used = self
                    .ports
                    .range((*address, ports)..=(*address, ports | 2_047));
                if let Some((port, other)) = used.find(|(_, by)| *by != server) {
                    let wrong = format!("{server} opens {slice} where {other} has {port:?}");
                    self.wrong.push(wrong);
                }
                let last = self.last.insert((*address, slice), server.to_owned());
                if last.is_some_and(|last| last != server) {
                    self.moved += 1;
                }
            }
        }
    }

    fn give(&mut self, server: &str, at: (Ipv4Addr, u16)) {
        let before = self.ports.insert(at, server.to_owned());
        if let Some(before) = before {
            let wrong = format!("{server} uses {at:?}, which is {before}'s");
            self.wrong.push(wrong);
        }
    }
}

impl History {
    fn now(&self) -> MutexGuard<'_, Now> {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        now.stop();
        now
    }

    /// A server may open flows in these slices from now on, and in no others.
    pub(crate) fn opens(&self, server: &str, slices: &Slices) {
        let mut now = self.now();
        let plane = now.planes.entry(server.to_owned()).or_default();
        plane.open.clone_from(slices);
        if !plane.has_stopped {
            now.enter(server, slices);
        }
    }

    /// A server is to stop at some time, or at another one than before.
    pub(crate) fn stops_at(&self, server: &str, lapse: Option<Instant>) {
        let mut now = self.now();
        let plane = now.planes.entry(server.to_owned()).or_default();
        plane.lapse = lapse;
        if plane.has_stopped && lapse.is_none_or(|at| at > Instant::now()) {
            plane.has_stopped = false;
            let (open, ports) = (plane.open.clone(), plane.ports.clone());
            for port in ports {
                now.give(server, port);
            }
            now.enter(server, &open);
        }
        now.stop();
    }

    /// A server gives a port out, unless it has stopped.
    pub(crate) fn gives(&self, server: &str, address: Ipv4Addr, port: u16) -> bool {
        let mut now = self.now();
        let plane = now.planes.entry(server.to_owned()).or_default();
        if plane.has_stopped {
            return false;
        }
        plane.ports.insert((address, port));
        now.given += 1;
        now.give(server, (address, port));
        true
    }

    /// A port has rested.
    pub(crate) fn frees(&self, server: &str, address: Ipv4Addr, port: u16) {
        let mut now = self.now();
        let plane = now.planes.entry(server.to_owned()).or_default();
        plane.ports.remove(&(address, port));
        if plane.has_stopped {
            return;
        }
        let before = now.ports.remove(&(address, port));
        if before.as_deref() != Some(server) {
            let wrong = format!("{server} frees {address}:{port}, which is {before:?}'s");
            now.wrong.push(wrong);
        }
    }

    /// A server's machine is switched off.
    pub(crate) fn ends(&self, server: &str) {
        let mut now = self.now();
        now.leave(server);
        now.planes.remove(server);
    }

    /// How many slices somebody may open flows in.
    pub(crate) fn open(&self) -> usize {
        self.now().open.len()
    }

    /// How many slices this server may open flows in.
    pub(crate) fn open_at(&self, server: &str) -> usize {
        let now = self.now();
        now.open.values().filter(|by| by.contains(server)).count()
    }

    /// How many ports were given out, how often a slice was opened by another server than before, and how often a server
    /// stopped by itself.
    pub(crate) fn figures(&self) -> (u64, u64, u64) {
        let now = self.now();
        (now.given, now.moved, now.lapsed)
    }

    /// Nothing was two servers' at once.
    pub(crate) fn check(&self) {
        let now = self.now();
        assert!(now.wrong.is_empty(), "{:#?}", now.wrong);
    }
}
