//! What must hold for fragments (NAT-6): a later one goes where its first one went, and one that comes out late
//! is one that went in.

use std::time::{Duration, Instant};

use super::driver::Entry;
use super::map::Map;
use super::read::{self, Address, Ip, Layers, Part};

/// Longer than the data plane remembers a datagram after its latest fragment.
const REMEMBERED: Duration = Duration::from_secs(12);
/// Datagrams of one key, and stopped fragments of one, that are remembered.
const EACH: usize = 1_024;
/// Keys that may be remembered before old ones are forgotten.
const MANY: usize = 1 << 16;

/// Entry, source, destination, identification, protocol.
type Datagram = (u8, Address, Address, u32, u8);
/// Where it went: an address, and an identification or whether it was handed to a realm.
type Way = (Address, u32);
/// Entry, source, identification, protocol.
type Held = (u8, Address, u32, u8);

/// Fragments so far.
#[derive(Default)]
pub(crate) struct Parts {
    ways: Map<Datagram, (Vec<Way>, Instant)>,
    stopped: Map<Held, (Vec<Vec<u8>>, Instant)>,
    /// Of each later fragment: what it is of, and where it went; it may be one of several.
    doubts: Vec<Vec<(Datagram, Way)>>,
}

fn held(entry: Entry, bytes: &[u8]) -> Option<Held> {
    let bytes = &read::untagged(bytes);
    let Layers::Ip(ip) = read::frame(bytes) else {
        return None;
    };
    let ours = ip.part != Part::Whole && matches!(ip.protocol, 6 | 17);
    ours.then_some((entry as u8, ip.source, ip.id, ip.protocol))
}

/// Adds to the latest of a key.
fn add<T>((latest, seen): &mut (Vec<T>, Instant), one: T) {
    if latest.len() == EACH {
        latest.remove(0);
    }
    latest.push(one);
    *seen = Instant::now();
}

impl Parts {
    /// A packet did not come out: it may be held.
    pub(crate) fn stopped(&mut self, entry: Entry, input: &[u8]) {
        if let Some(key) = held(entry, input) {
            let all = self.stopped.entry(key);
            add(
                all.or_insert_with(|| (Vec::new(), Instant::now())),
                input.to_vec(),
            );
        }
    }

    /// Packets that may have been held with `of`, a packet of the same datagram.
    pub(crate) fn held(&self, entry: Entry, of: &[u8]) -> Vec<Vec<u8>> {
        let all = held(entry, of).and_then(|key| self.stopped.get(&key));
        all.map_or_else(Vec::new, |(inputs, _)| inputs.clone())
    }

    /// A fragment came out, if it is one: a later one goes the way of its first.
    pub(crate) fn passed(&mut self, entry: Entry, ip: &Ip, way: Way) {
        let key = (entry as u8, ip.source, ip.destination, ip.id, ip.protocol);
        match ip.part {
            Part::Whole => {}
            Part::First => {
                let all = self.ways.entry(key);
                add(all.or_insert_with(|| (Vec::new(), Instant::now())), way);
            }
            Part::Later => self.doubts.push(vec![(key, way)]),
        }
    }

    /// Doubts so far.
    pub(crate) fn doubtful(&self) -> usize {
        self.doubts.len()
    }

    /// All doubts since there were `before` are about one fragment: it is one of these.
    pub(crate) fn one_of(&mut self, before: usize) {
        let all: Vec<_> = self.doubts.drain(before..).flatten().collect();
        if !all.is_empty() {
            self.doubts.push(all);
        }
    }

    /// Whether later fragments went the way of a first one, be it seen after them.
    pub(crate) fn doubts(&mut self) -> Result<(), String> {
        for likely in std::mem::take(&mut self.doubts) {
            let mut right = false;
            for (key, way) in &likely {
                if let Some((ways, seen)) = self.ways.get_mut(key) {
                    *seen = Instant::now();
                    right |= ways.contains(way);
                }
            }
            if !right {
                let known = likely.iter().map(|(key, _)| self.ways.get(key));
                let known: Vec<_> = known.collect();
                return Err(format!(
                    "LEAK: {likely:?} did not go as its first one: {known:?}"
                ));
            }
        }
        Ok(())
    }

    /// Forgets what the data plane has forgotten, if it is much.
    pub(crate) fn forget(&mut self) {
        let now = Instant::now();
        if self.ways.len() > MANY {
            self.ways.retain(|_, (_, seen)| now - *seen < REMEMBERED);
        }
        if self.stopped.len() > MANY {
            self.stopped.retain(|_, (_, seen)| now - *seen < REMEMBERED);
        }
    }
}
