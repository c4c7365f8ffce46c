//! What the network is told about where egress IPs are (ANN-1): routes in a table that a routing daemon exports, for
//! as long as the data plane is sound.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::pins::Pins;
use super::routes::{Entry, Routes};
use super::stake::Stake;
use crate::config::{Announce, WhenDown};
use crate::dataplane::api::DataPlaneError;
use crate::resource::Address;

/// How long a data plane must be sound again before it is announced again: one that comes and goes would make all
/// routers on the way count it as flapping (RFC 2439).
const SOUND_AGAIN: Duration = Duration::from_secs(3);
/// Between two looks whether somebody else has changed the routes.
const LOOK: Duration = Duration::from_secs(1);

/// The announcement of this instance.
#[derive(Debug)]
pub(super) struct Announcement {
    config: Option<Announce>,
    routes: Routes,
    /// What the routes hang on, where they are to go with the daemon.
    stake: Option<Stake>,
    health: Health,
    /// Whether what it has of IPv4 is its own.
    lapse: Health,
    /// What is to be announced while the data plane is sound; nothing before a configuration is in force.
    wanted: Option<BTreeSet<IpNet>>,
    /// What was announced last, and when that was looked at.
    last: Option<(BTreeSet<IpNet>, Instant)>,
}

impl Announcement {
    /// That of a pin directory. Without a configuration, routes of an earlier one are taken away.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] where the routes are to go with the daemon, and there is no tun device.
    pub(super) fn of(pins: &Pins, config: Option<Announce>) -> Result<Self, DataPlaneError> {
        let withdraws = |config: &Announce| config.when_down == WhenDown::Withdraw;
        let stake = match &config {
            Some(config) if withdraws(config) => Some(Stake::drive()?),
            _ => None,
        };
        Ok(Self {
            config,
            routes: Routes::of(pins),
            stake,
            health: Health::Sound,
            lapse: Health::Sound,
            wanted: None,
            last: None,
        })
    }

    /// These are the egress IPs from now on.
    pub(super) fn wish(&mut self, addresses: impl IntoIterator<Item = Address>) {
        self.wanted = Some(match &self.config {
            Some(config) => prefixes(addresses, &config.aggregates),
            None => BTreeSet::new(),
        });
    }

    /// Announces what is wished for if the data plane is `sound`, and nothing otherwise; nothing of IPv4 where this server's slices
    /// have `lapsed` (CLU-3): others who have them by now do. Returns what changed, one line each.
    ///
    /// # Errors
    /// When the kernel does not take a route; the next call tries again.
    pub(super) fn settle(
        &mut self,
        sound: bool,
        lapsed: bool,
    ) -> Result<Vec<String>, DataPlaneError> {
        let Some(wanted) = self.wanted.clone() else {
            return Ok(Vec::new());
        };
        let now = Instant::now();
        self.health = self.health.after(sound, now);
        let mut wanted = match self.health {
            Health::Sound => wanted,
            _ => BTreeSet::new(),
        };
        self.lapse = self.lapse.after(!lapsed, now);
        if self.lapse != Health::Sound {
            wanted.retain(|prefix| matches!(prefix, IpNet::V6(_)));
        }
        if let Some((last, looked)) = &self.last
            && *last == wanted
            && now.duration_since(*looked) < LOOK
        {
            return Ok(Vec::new());
        }
        let before = self.last.take().map(|(last, _)| last);
        let done = self.reconcile(&wanted)?;
        let lines = match before {
            Some(before) if before != wanted => {
                vec![self.say(before.len(), wanted.len(), sound, lapsed)]
            }
            Some(_) if done > 0 => vec![format!(
                "{done} announced routes were missing or changed, and were put right"
            )],
            _ => Vec::new(),
        };
        self.last = Some((wanted, now));
        Ok(lines)
    }

    fn say(&self, before: usize, after: usize, sound: bool, lapsed: bool) -> String {
        match (after, sound) {
            _ if sound && lapsed && after < before => format!(
                "withdrew {} routes of IPv4: others may have these egress IPs by now (`takeover_after`)",
                before - after
            ),
            (0, false) => format!(
                "withdrew all {before} routes: the data plane is not in place on any uplink"
            ),
            _ if before == 0 => format!("announced {after} routes"),
            _ => format!("announced {after} routes, {before} before"),
        }
    }

    /// Makes the kernel's routes those that are wanted; returns how many were not.
    fn reconcile(&self, wanted: &BTreeSet<IpNet>) -> Result<usize, DataPlaneError> {
        let table = self.config.as_ref().map_or(0, |config| config.table);
        let device = self.stake.as_ref().map(Stake::index);
        let wanted: BTreeSet<Entry> = wanted
            .iter()
            .map(|prefix| Entry {
                table,
                prefix: *prefix,
                device,
            })
            .collect();
        let there = self.routes.all()?;
        let mut done = 0;
        // What is in the way of another goes first: one with the same prefix that hangs elsewhere.
        for entry in there.difference(&wanted) {
            self.routes.remove(*entry)?;
            done += 1;
        }
        for entry in wanted.difference(&there) {
            self.routes.add(*entry)?;
            done += 1;
        }
        Ok(done)
    }
}

/// Whether the data plane has been sound for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Sound,
    Sick,
    /// Sound again since then.
    Mending(Instant),
}

impl Health {
    fn after(self, sound: bool, now: Instant) -> Self {
        match self {
            _ if !sound => Self::Sick,
            Self::Sick => Self::Mending(now),
            Self::Mending(since) if now.duration_since(since) >= SOUND_AGAIN => Self::Sound,
            same => same,
        }
    }
}

/// The routes to these addresses, with the aggregates that have any of them inside.
fn prefixes(addresses: impl IntoIterator<Item = Address>, aggregates: &[IpNet]) -> BTreeSet<IpNet> {
    let mut all: BTreeSet<IpNet> = addresses.into_iter().map(Address::net).collect();
    let covering = aggregates
        .iter()
        .filter(|aggregate| all.iter().any(|prefix| aggregate.contains(prefix)));
    let covering: Vec<IpNet> = covering.copied().collect();
    all.extend(covering);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(list: &[&str]) -> BTreeSet<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn ann_1_an_aggregate_is_announced_with_an_address_inside_it() {
        let aggregates = ["192.0.2.0/24", "198.51.100.0/24", "2001:db8::/48"];
        let aggregates = aggregates.map(|net| net.parse().unwrap());
        let found = |list: &[&str]| {
            let addresses = list.iter().map(|one| one.parse::<Address>().unwrap());
            prefixes(addresses, &aggregates)
        };
        assert_eq!(
            found(&["192.0.2.10"]),
            set(&["192.0.2.10/32", "192.0.2.0/24"])
        );
        assert_eq!(
            found(&["2001:db8:0:7::/64"]),
            set(&["2001:db8:0:7::/64", "2001:db8::/48"])
        );
        assert_eq!(found(&["203.0.113.1"]), set(&["203.0.113.1/32"]));
        assert_eq!(found(&[]), set(&[]));
    }

    #[test]
    fn ann_1_what_was_sick_is_announced_again_after_a_while_only() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let sick = Health::Sound.after(false, at(0));
        assert_eq!(sick, Health::Sick);
        let mending = sick.after(true, at(10));
        assert_eq!(mending.after(true, at(12)), Health::Mending(at(10)));
        assert_eq!(mending.after(true, at(13)), Health::Sound);
        assert_eq!(
            mending.after(false, at(12)).after(true, at(14)),
            Health::Mending(at(14))
        );
        assert_eq!(Health::Sound.after(true, at(1)), Health::Sound);
    }
}
