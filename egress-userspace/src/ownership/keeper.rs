//! One server's part in handing slices over: what it has stopped to open flows in, since when, and what it may pass on.
//!
//! Only this server's own clock is asked, and only for how long something has lasted: other servers' clocks, and what time of
//! day it is anywhere, do not matter.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use egress_common::placement;
use egress_common::port::ALL_SLICES;

use super::{Ownership, Slices, Step};

/// What this server has stopped to use.
#[derive(Clone, Debug, Default)]
pub struct Keeper {
    stopped: BTreeMap<(Ipv4Addr, u32), Stopped>,
    /// What this server held when something was put in force last.
    held: Option<Slices>,
    /// What it holds no more, with its flows not ended yet.
    lost: Slices,
    /// What it holds no more, with its flows ended: their ports rest, and so long a late packet finds them.
    resting: Slices,
    /// What was said of it in [`Ownership::forgotten`] when something was put in force last.
    mark: Option<i64>,
    /// Whether nothing has been left of what it held before, since this daemon began and since it was fenced last.
    whole: bool,
}

/// A slice that is to be passed on.
#[derive(Clone, Copy, Debug)]
struct Stopped {
    since: Instant,
    /// Whether what was left has been reset.
    is_reset: bool,
}

impl Keeper {
    /// After `ownership` was put in force: since now this server opens nothing in what it is to pass on.
    pub fn in_force(&mut self, ownership: &Ownership, server: &str, now: Instant) {
        let leaving = |address: &Ipv4Addr| ownership.leaving(server, *address);
        self.stopped
            .retain(|(address, slice), _| leaving(address) >> slice & 1 == 1);
        let held = ownership.rows.keys();
        let held: Slices = held
            .map(|address| (*address, ownership.held(server, *address)))
            .collect();
        let before = self.held.replace(held.clone());
        for (address, held) in &held {
            for slice in placement::slices(leaving(address)) {
                self.stopped.entry((*address, slice)).or_insert(Stopped {
                    since: now,
                    is_reset: false,
                });
            }
            let had = match &before {
                Some(before) => before.get(address).copied().unwrap_or(0),
                // Whatever an earlier daemon left.
                None => ALL_SLICES,
            };
            let lost = self.lost.get(address).copied().unwrap_or(0);
            let lost = (lost | had) & !held;
            if lost == 0 {
                self.lost.remove(address);
            } else {
                self.lost.insert(*address, lost);
            }
            if let Some(resting) = self.resting.get_mut(address) {
                *resting &= !held;
            }
        }
        let mark = ownership.forgotten.get(server).copied();
        if ownership.is_fenced(server) || mark != self.mark {
            self.whole = false;
        }
        self.mark = mark;
        self.whole |= self.is_clear();
    }

    /// Whether anything was put in force.
    pub fn has_begun(&self) -> bool {
        self.held.is_some()
    }

    /// What this server holds no more, or may have held before this daemon began: where it did not pass it on, others may
    /// have it, and what is left there of this server's flows has to end. Where it did, there are none.
    pub fn lost(&self) -> &Slices {
        &self.lost
    }

    /// What was lost has no live flows of this server any more.
    pub fn has_ended_lost(&mut self) {
        for (address, slices) in std::mem::take(&mut self.lost) {
            *self.resting.entry(address).or_default() |= slices;
        }
    }

    /// What was lost and ended, of which it is not known yet that nothing of this server's flows is left.
    pub fn resting(&self) -> &Slices {
        &self.resting
    }

    /// Of what was lost and ended, no more than this is `occupied`.
    pub fn have_rested(&mut self, occupied: &Slices) {
        self.resting.retain(|address, slices| {
            *slices &= occupied.get(address).copied().unwrap_or(0);
            *slices != 0
        });
        self.whole |= self.is_clear();
    }

    /// Whether nothing is left of what others may have taken: what this server has passed on itself it had let go of before.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether nothing is left of what this server held before, as far as that is known: then it may have slices again, where it was
    /// declared fenced.
    pub fn is_clear(&self) -> bool {
        self.held.is_some() && self.lost.is_empty() && self.resting.is_empty()
    }

    /// What this server has stopped to open flows in: to be passed on when nothing of it is left.
    pub fn stopped(&self) -> Slices {
        gathered(self.stopped.keys())
    }

    /// Of what was stopped, what has been for so long that what is left is to be reset. Says so once.
    pub fn overdue(&mut self, limit: Duration, now: Instant) -> Slices {
        let overdue = self.stopped.iter_mut().filter(|(_, stopped)| {
            !stopped.is_reset && now.saturating_duration_since(stopped.since) >= limit
        });
        let overdue = overdue.map(|(slice, stopped)| {
            stopped.is_reset = true;
            slice
        });
        gathered(overdue)
    }

    /// The steps that pass on what was stopped before it was looked at, where nothing was `occupied`.
    pub fn release(
        ownership: &Ownership,
        server: &str,
        stopped: &Slices,
        occupied: &Slices,
    ) -> Vec<Step> {
        let free = stopped.iter().map(|(address, slices)| {
            let taken = occupied.get(address).copied().unwrap_or(0);
            (*address, slices & !taken)
        });
        free.filter_map(|(address, slices)| {
            let before = ownership.rows.get(&address)?;
            let after = before.released(server, slices)?;
            Some(Step::Row {
                address,
                before: Some(before.clone()),
                after,
                fenced: BTreeMap::new(),
            })
        })
        .collect()
    }
}

fn gathered<'s>(all: impl Iterator<Item = &'s (Ipv4Addr, u32)>) -> Slices {
    let mut slices = Slices::new();
    for (address, slice) in all {
        *slices.entry(*address).or_default() |= 1 << slice;
    }
    slices
}
