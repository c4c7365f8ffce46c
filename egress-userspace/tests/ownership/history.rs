//! Every port that was given out, and by whom: what must never be two servers' at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use egress_common::placement;
use egress_userspace::ownership::Slices;

/// What all data planes have done.
#[derive(Default)]
pub(crate) struct History(Mutex<Now>);

#[derive(Default)]
struct Now {
    /// Ports in use or at rest, by address.
    ports: BTreeMap<(Ipv4Addr, u16), String>,
    /// Slices that servers may open flows in.
    open: BTreeMap<(Ipv4Addr, u32), BTreeSet<String>>,
    /// Who had a slice open last.
    last: BTreeMap<(Ipv4Addr, u32), String>,
    given: u64,
    moved: u64,
    wrong: Vec<String>,
}

impl History {
    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server may open flows in these slices from now on, and in no others.
    pub(crate) fn opens(&self, server: &str, slices: &Slices) {
        let mut now = self.now();
        now.open.retain(|_, by| {
            by.remove(server);
            !by.is_empty()
        });
        let mut wrong = Vec::new();
        for (address, bitmap) in slices {
            for slice in placement::slices(*bitmap) {
                let by = now.open.entry((*address, slice)).or_default();
                by.insert(server.to_owned());
                if by.len() > 1 {
                    wrong.push(format!("slice {slice} of {address} is open at {by:?}"));
                }
                let ports = u16::try_from(slice << 11).unwrap();
                let mut used = now
                    .ports
                    .range((*address, ports)..=(*address, ports | 2_047));
                if let Some((port, other)) = used.find(|(_, by)| *by != server) {
                    wrong.push(format!("{server} opens {slice} where {other} has {port:?}"));
                }
                let last = now.last.insert((*address, slice), server.to_owned());
                if last.is_some_and(|last| last != server) {
                    now.moved += 1;
                }
            }
        }
        now.wrong.extend(wrong);
    }

    /// A server gives a port out.
    pub(crate) fn gives(&self, server: &str, address: Ipv4Addr, port: u16) {
        let mut now = self.now();
        now.given += 1;
        let before = now.ports.insert((address, port), server.to_owned());
        if let Some(before) = before {
            let wrong = format!("{server} gives out {address}:{port}, which is {before}'s");
            now.wrong.push(wrong);
        }
    }

    /// A port has rested.
    pub(crate) fn frees(&self, server: &str, address: Ipv4Addr, port: u16) {
        let mut now = self.now();
        let before = now.ports.remove(&(address, port));
        if before.as_deref() != Some(server) {
            let wrong = format!("{server} frees {address}:{port}, which is {before:?}'s");
            now.wrong.push(wrong);
        }
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

    /// How many ports were given out, and how often a slice was opened by another server than before.
    pub(crate) fn figures(&self) -> (u64, u64) {
        let now = self.now();
        (now.given, now.moved)
    }

    /// Nothing was two servers' at once.
    pub(crate) fn check(&self) {
        let now = self.now();
        assert!(now.wrong.is_empty(), "{:#?}", now.wrong);
    }
}
