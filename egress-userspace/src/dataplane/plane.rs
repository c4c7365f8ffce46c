//! The data plane as the daemon holds it: opened or made, configured, watched and repaired.

mod claim;
mod reading;
mod telling;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aya::maps::{MapData, RingBuf};
use egress_common::peer::Tunnel;
use egress_common::record::Cause;
use egress_common::settings::{Device, MAX_ZONES, Zone, zone_flag};
use egress_common::tag::TagField;
use ipnet::IpNet;

use super::addresses::{self, Addresses};
use super::announce::Announcement;
use super::attach::{self, Kind, Outcome};
use super::births;
use super::cgroups::{self, Cgroups};
use super::clock;
use super::deadline;
use super::detach;
use super::devices;
use super::events::Events;
use super::exits::{self, ExitNumbers};
use super::farewell;
use super::gratuitous::Gratuitous;
use super::guard::Guard;
use super::hook::Hook;
use super::interfaces::{Interface, Link};
use super::leftover;
use super::lock::{Lock, Starting};
use super::maps::Maps;
use super::neighbours;
use super::object::Object;
use super::peers;
use super::pins::Pins;
use super::probes;
use super::records::FlowRecords;
use super::rules::Rules;
use super::ruleset::Surroundings;
use super::start;
use super::sys;
use super::tables::Tables;
use super::taken::{self, Watch};
use super::tunnel::{self, Room};
use super::versions;
use super::view::View;
use super::watcher::Watcher;
use crate::config::Dataplane;
use crate::dataplane::api::{ApplyReport, DataPlane, DataPlaneError, Deadline, Names};
use crate::desired::Desired;
use crate::ownership::Slices;
use crate::resource::Address;

pub use claim::Claim;

/// The data plane and the right to change it.
pub struct Plane {
    config: Dataplane,
    pins: Pins,
    maps: Maps,
    object: Object,
    kind: Kind,
    field: TagField,
    guard: Guard,
    view: View,
    /// What was put in force last.
    desired: Option<Desired>,
    /// What the version in force holds; read from the maps when it is not known yet.
    tables: Option<Tables>,
    /// The configured interfaces as they were seen last; `None` for one that does not exist.
    seen: BTreeMap<String, Option<Interface>>,
    /// Uplinks on which every program is in place.
    ready: BTreeSet<u32>,
    /// The selected cgroups as they were seen last.
    found_cgroups: Cgroups,
    /// Selected cgroups that did not exist when we looked last.
    absent_cgroups: BTreeSet<String>,
    /// How many selected cgroups had been created when we looked last.
    births: u64,
    /// Name of the tunnel's interface, if there is to be one.
    tunnel: Option<String>,
    /// What fits it.
    room: Room,
    /// How often was looked for ways to other servers.
    looks: usize,
    /// Hooks of interfaces that left the configuration are yet to be taken off.
    departed: bool,
    /// What the sweep has ended and nobody has told yet.
    ended: RingBuf<MapData>,
    /// Routing rules, which the fast path may not be able to follow.
    rules: Rules,
    /// Addresses that the host is given while they are egress IPs.
    own: Watch,
    /// What the network is told about egress IPs, by routes and on the segment.
    announcement: Announcement,
    gratuitous: Gratuitous,
    lock: Lock,
}

impl Plane {
    /// Takes over the data plane that is pinned, or makes one; afterwards every program of this binary is in
    /// place, with the configuration that was in force before.
    ///
    /// Nothing that runs is touched before everything has been checked and loaded.
    ///
    /// # Errors
    /// [`DataPlaneError::Refused`] with the remedy for everything an administrator can change: privileges, file
    /// system, another daemon, an interface that does not exist, pins of another layout, a kernel without tcx.
    pub fn open_or_create(config: &Dataplane) -> Result<Self, DataPlaneError> {
        Self::open(Claim::of(config)?, config)
    }

    /// [`Self::open_or_create`] for whoever has the right to.
    ///
    /// # Errors
    /// The same.
    pub fn open(claim: Claim, config: &Dataplane) -> Result<Self, DataPlaneError> {
        let Claim { pins, lock } = claim;
        let mut uplinks = Vec::new();
        for name in &config.uplink {
            uplinks.push(Interface::require(name, "uplink")?);
        }
        let mut insides = Vec::new();
        for name in &config.inside {
            insides.push(Interface::require(name, "inside")?);
        }
        // Until our programs are attached, another instance that starts does not see them.
        let starting = Starting::take()?;
        neighbours::check(&pins, config, &uplinks, &insides)?;
        let uplink = uplinks.first().ok_or_else(|| DataPlaneError::Refused {
            reason: "[dataplane] uplink names no interface".to_owned(),
            remedy: "name the interfaces that lead to the origins".to_owned(),
        })?;
        let kind = Kind::choose(config.attach, uplink)?;
        let (layout, mut object) = start::programs(&pins, config)?;
        let field = TagField::new(layout.mark_mask).ok_or_else(|| DataPlaneError::Refused {
            reason: format!(
                "mark_mask {:#010x} is not at least 8 bits side by side",
                layout.mark_mask
            ),
            remedy: "write, for instance, mark_mask = \"0xffff0000\"".to_owned(),
        })?;
        let maps = Maps::open(&pins)?;
        clock::follow(&maps)?;
        let ended = maps.ring("ENDED")?;
        let announcement = Announcement::of(&pins, None)?;
        object.arm(&maps)?;
        probes::forget_all(&maps)?;
        let mut plane = Self {
            config: config.clone(),
            guard: Guard::of(&pins, field, config.hold_guard),
            view: View::open(config, Names::default())?,
            pins,
            maps,
            object,
            kind,
            field,
            desired: None,
            tables: None,
            seen: BTreeMap::new(),
            ready: BTreeSet::new(),
            found_cgroups: Cgroups::new(),
            absent_cgroups: BTreeSet::new(),
            births: 0,
            tunnel: None,
            room: Room::default(),
            looks: 0,
            departed: true,
            ended,
            rules: Rules::listen(field.mask)?,
            own: Watch::listen()?,
            announcement,
            gratuitous: Gratuitous::default(),
            lock,
        };
        plane.follow_rules()?;
        plane.guard.begin()?;
        plane.attach()?;
        drop(starting);
        Ok(plane)
    }

    /// When to call [`DataPlane::repair`].
    pub fn watcher(&self) -> Result<Watcher, DataPlaneError> {
        Watcher::new()
    }

    /// The ring buffer of the flow log.
    pub fn flow_records(&self) -> FlowRecords {
        FlowRecords::of(&self.maps)
    }

    /// The log of refusals.
    pub fn events(&self) -> Events {
        Events::of(&self.maps)
    }

    /// Takes the fast path away while a routing rule looks at bits of the mark that others write on the way.
    fn follow_rules(&mut self) -> Result<(), DataPlaneError> {
        let Some(found) = self.rules.look()? else {
            return Ok(());
        };
        let routed = self.config.accelerate && found.is_some();
        if routed == versions::is_routed(&self.maps)? {
            return Ok(());
        }
        versions::set_routed(&self.maps, routed)?;
        match found.filter(|_| routed) {
            Some(rule) => tracing::warn!(
                "{rule} looks at bits of the packet mark that are not ours: live flows do not pass routing and \
                 netfilter by while it is there"
            ),
            None => tracing::info!("live flows pass routing and netfilter by again"),
        }
        Ok(())
    }

    /// Puts every program on every configured interface that exists; says what was not in place. The interfaces
    /// and their devices are known afterwards, also when something failed.
    fn attach(&mut self) -> Result<Vec<String>, DataPlaneError> {
        let mut done = Vec::new();
        let mut failure = None;
        let mut wanted = BTreeMap::new();
        let mut ready = BTreeSet::new();
        let uplinks = self
            .config
            .uplink
            .iter()
            .map(|name| (name, &Hook::UPLINK[..]));
        let insides = self
            .config
            .inside
            .iter()
            .map(|name| (name, &Hook::INSIDE[..]));
        let tunnel = self.tunnel.iter().map(|name| (name, &Hook::TUNNEL[..]));
        for (name, hooks) in uplinks.chain(insides).chain(tunnel) {
            let interface = Interface::find(name)?;
            let before = self.seen.insert(name.clone(), interface.clone());
            match (&before, &interface) {
                (Some(Some(_)), None) => done.push(format!("interface {name} has disappeared")),
                (Some(None), Some(_)) => done.push(format!("interface {name} is back")),
                _ => {}
            }
            let Some(interface) = interface else { continue };
            if let Err(error) = interface.check_kind() {
                failure.get_or_insert(error);
                continue;
            }
            let mut complete = true;
            for hook in hooks {
                let outcome = self.object.program(*hook).and_then(|program| {
                    attach::ensure(program, &self.pins, self.kind, &interface, *hook)
                });
                match outcome {
                    Ok(Outcome::Unchanged) => {}
                    Ok(Outcome::Replaced) => {
                        done.push(format!("{} on {name} was replaced", hook.program()));
                    }
                    Ok(Outcome::Attached) => {
                        done.push(format!("{} on {name} was attached", hook.program()));
                    }
                    Err(error) => {
                        complete = false;
                        failure.get_or_insert(error);
                    }
                }
            }
            if !complete {
                continue;
            }
            let role = hooks.first().map_or(0, |hook| hook.role());
            if hooks == Hook::UPLINK {
                ready.insert(interface.index);
            }
            let device = Device {
                role,
                mac: interface.mac,
                bare: (interface.link == Link::Bare).into(),
                ..Device::default()
            };
            wanted.insert(interface.index, device);
        }
        match births::ensure(&mut self.object, &self.pins) {
            Ok(said) => done.extend(said),
            // Only who selects cgroups needs them.
            Err(error) if self.desired.as_ref().is_some_and(selects_cgroups) => {
                failure.get_or_insert(error);
            }
            Err(error) => tracing::debug!(error = %chain(&error), "cgroups are not watched"),
        }
        self.ready = ready;
        devices::set(&self.maps, &wanted)?;
        failure.map_or(Ok(done), Err)
    }

    /// Makes the tunnel's interface and puts its program on it, or does without.
    fn dig(&mut self, desired: &Desired) -> Result<(), DataPlaneError> {
        let wanted = desired.tunnel.as_ref().map(|tunnel| tunnel.device.clone());
        let made = match &desired.tunnel {
            Some(tunnel) => Some(tunnel::ensure(&self.pins, tunnel)?),
            None => None,
        };
        let seen = wanted.as_ref().and_then(|name| self.seen.get(name));
        if self.tunnel == wanted && (wanted.is_none() || seen == Some(&made)) {
            return Ok(());
        }
        if let Some(before) = self
            .tunnel
            .take()
            .filter(|before| Some(before) != wanted.as_ref())
        {
            self.seen.remove(&before);
            self.departed = true;
        }
        self.tunnel = wanted;
        for line in self.attach()? {
            tracing::info!("{line}");
        }
        Ok(())
    }

    /// Enters the other servers in the maps; returns what addresses are theirs, and how much changed.
    fn meet(
        &mut self,
        desired: &Desired,
        exits: &ExitNumbers,
    ) -> Result<(Theirs, u64), DataPlaneError> {
        let Some(tunnel) = &desired.tunnel else {
            self.room = Room::default();
            return Ok((Theirs::default(), 0));
        };
        let room = Room::of(tunnel)?;
        let (numbers, mut changed) = peers::enter(&self.maps, tunnel, exits)?;
        let end = Tunnel {
            interface: self.index(&tunnel.device).unwrap_or(0),
            // Where there is none, packets are dropped.
            uplink: self.ready.first().copied().unwrap_or(0),
            own: peers::underlay(tunnel.own),
            mtu: room.bytes,
        };
        changed += u64::from(peers::set_end(&self.maps, end)?);
        self.room = room;
        let theirs = Theirs {
            shared: peers::shared(tunnel),
            ranges: peers::ranges(tunnel, &numbers),
        };
        Ok((theirs, changed))
    }

    /// Takes out of the maps what is no server's any more, and the tunnel if nobody is left.
    fn part(&mut self, desired: &Desired, exits: &ExitNumbers) -> Result<u64, DataPlaneError> {
        if desired.tunnel.is_none() && peers::end(&self.maps)?.is_none() {
            return Ok(0);
        }
        let mut changed = peers::forget(&self.maps, desired.tunnel.as_ref(), exits)?;
        if desired.tunnel.is_none() {
            changed += u64::from(peers::set_end(&self.maps, Tunnel::default())?);
            tunnel::remove(&self.pins)?;
        }
        Ok(changed)
    }

    fn index(&self, name: &str) -> Option<u32> {
        Some(self.seen.get(name)?.as_ref()?.index)
    }

    fn surroundings(&self, cgroups: Cgroups) -> Surroundings {
        Surroundings {
            uplinks: self.ready.clone(),
            insides: self
                .config
                .inside
                .iter()
                .filter_map(|name| self.index(name))
                .collect(),
            inside_names: self.config.inside.iter().cloned().collect(),
            cgroups,
        }
    }

    /// Puts `desired` in force in the present surroundings; does nothing where nothing differs.
    fn put(&mut self, desired: &Desired) -> Result<ApplyReport, DataPlaneError> {
        if selects_cgroups(desired) {
            // Without them, one that is created anew would be nobody's until we see it.
            births::ensure(&mut self.object, &self.pins)?;
        }
        self.births = self.maps.only("CGROUP_BIRTHS")?;
        let cgroups = self.cgroups(desired)?;
        let elsewhere = u64::from(cgroups != self.found_cgroups);
        self.found_cgroups = cgroups.clone();
        self.dig(desired)?;
        let interfaces = self
            .seen
            .iter()
            .filter_map(|(name, interface)| Some((name.clone(), interface.as_ref()?.index)))
            .collect();
        let exits = exits::number(&self.maps, desired)?;
        let tables = Tables::of(
            desired,
            &self.config,
            self.field,
            &interfaces,
            &cgroups,
            &exits,
        )?;
        let surroundings = self.surroundings(cgroups);
        let (theirs, met) = self.meet(desired, &exits)?;
        let egress_ips = addresses::wanted(
            tables.addresses(),
            self.config.answer_arp,
            &theirs.shared,
            &theirs.ranges,
        );
        addresses::check(&self.maps, &egress_ips)?;
        let version = versions::in_force(&self.maps)?;
        let old = match self.tables.take() {
            Some(tables) => tables,
            None => Tables::read(&self.maps, version)?,
        };
        let changed = tables.differences(&old);
        // Known again only when all went well: after a failure the maps are asked.
        let guarded = self.guard.is(desired, &surroundings);
        if !guarded && changed > 0 {
            self.guard.announce(desired, &surroundings)?;
        }
        let mut report = ApplyReport {
            changed,
            version: u64::from(version),
        };
        if changed > 0 {
            let next = 1 - version;
            if let Err(error) = self.switch(&tables, &egress_ips, next) {
                self.guard.retract();
                return Err(error);
            }
            report.version = u64::from(next);
        } else {
            let added = addresses::add(&self.maps, &egress_ips)?;
            report.changed += added.len() as u64;
            report.changed += elsewhere.max(tables.take_up_cgroups(&self.maps, version)?);
        }
        report.changed += met;
        let moved = tables.moved_realms(&old);
        self.tables = Some(tables);
        self.view.rename(desired.names());
        self.desired = Some(desired.clone());
        // From here on the new configuration holds, so trouble is no reason to say that it does not: what is left
        // undone is on the careful side, and `repair` or the next change comes back to it.
        match addresses::retire(&self.maps, &egress_ips, self.config.answer_arp) {
            Ok(retired) => report.changed += retired,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "addresses that left the pools remain egress IPs for now");
            }
        }
        match self.part(desired, &exits) {
            Ok(parted) => report.changed += parted,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "what is known of servers that are gone remains for now");
            }
        }
        if !guarded && let Err(error) = self.guard.settle(desired, &surroundings) {
            tracing::warn!(error = %chain(&error), "the guard keeps the rules of both configurations for now");
        }
        self.tell(&egress_ips);
        if let Err(error) = self.end_strays(&moved) {
            tracing::warn!(error = %chain(&error), "connections that are not their zone's any more were not all ended");
        }
        if self.departed {
            match self.remove_departed() {
                Ok(()) => self.departed = false,
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "programs on interfaces that are not configured remain");
                }
            }
        }
        Ok(report)
    }

    /// Ends the live flows of zones whose addresses mean something else now, and tells both ends: their packets would
    /// find them no more, while their places under the cap stayed taken.
    fn end_strays(&mut self, moved: &BTreeMap<u16, u16>) -> Result<(), DataPlaneError> {
        if moved.is_empty() {
            return Ok(());
        }
        let uplinks = self.ready_uplinks();
        let uplinks: Vec<&Interface> = uplinks.iter().collect();
        let ended = farewell::reset(
            &self.maps,
            &mut self.object,
            &uplinks,
            Cause::ZoneMoved,
            |flow| {
                moved
                    .get(&flow.zone)
                    .is_some_and(|realm| *realm != flow.realm)
            },
        )?;
        if ended > 0 {
            tracing::warn!(
                connections = ended,
                "ended, since their zones' `interfaces` were added or removed: both ends were told"
            );
        }
        Ok(())
    }

    fn switch(
        &self,
        tables: &Tables,
        egress_ips: &Addresses,
        version: u32,
    ) -> Result<(), DataPlaneError> {
        let added = addresses::add(&self.maps, egress_ips)?;
        // Packets that began before the last switch may still be reading what we are about to overwrite.
        sys::wait_for_running_programs();
        tables
            .write(&self.maps, version)
            .and_then(|()| versions::switch(&self.maps, version))
            .inspect_err(|_| addresses::take_out(&self.maps, &added))
    }

    /// The uplinks on which every program is in place.
    fn ready_uplinks(&self) -> Vec<Interface> {
        self.seen
            .values()
            .flatten()
            .filter(|interface| self.ready.contains(&interface.index))
            .cloned()
            .collect()
    }

    /// Tells both ends of the flows that the sweep has ended, if that is wanted; what came before stays untold.
    fn tell_ended(&mut self) -> Result<(), DataPlaneError> {
        let wanted = self
            .desired
            .as_ref()
            .is_some_and(|desired| desired.timers.reset_idle);
        let uplinks = if wanted {
            self.ready_uplinks()
        } else {
            Vec::new()
        };
        let uplinks: Vec<&Interface> = uplinks.iter().collect();
        let told = farewell::tell_ended(&self.maps, &mut self.object, &mut self.ended, &uplinks)?;
        if wanted && told > 0 {
            tracing::info!(
                connections = told,
                "ended for their idleness: both ends were told"
            );
        }
        Ok(())
    }

    fn remove_departed(&self) -> Result<(), DataPlaneError> {
        let keep = |interface: &str, hook: Hook| {
            let names = match hook {
                Hook::InsideIngress => &self.config.inside,
                Hook::TunnelIngress | Hook::TunnelEgress => {
                    return self.tunnel.as_deref() == Some(interface);
                }
                _ => &self.config.uplink,
            };
            names.iter().any(|name| name == interface)
        };
        for line in detach::departed(&self.pins, keep)? {
            tracing::info!("not configured any more, removed: {line}");
        }
        Ok(())
    }

    /// Puts back what is missing; returns what that was.
    fn mend(&mut self) -> Result<Vec<String>, DataPlaneError> {
        let pinned = self.object.pin_again(&self.pins);
        let seen = self.seen.clone();
        let ready = self.ready.clone();
        let attached = self.attach();
        let before = self.room.bytes;
        let room_changed = self.room.has_changed();
        let stale = matches!(room_changed, Ok(true))
            || seen != self.seen
            || ready != self.ready
            || !self.guard.is_settled()
            || self.births != self.maps.only::<u64>("CGROUP_BIRTHS")?;
        if stale && let Some(desired) = self.desired.clone() {
            self.put(&desired)?;
        }
        let put_back = self.guard.look_after()?;
        self.follow_rules()?;
        let mut done = attached?;
        room_changed?;
        if self.room.bytes != before {
            done.push(self.said_of_room(before));
        }
        let pinned = pinned?;
        if pinned > 0 {
            done.push(format!(
                "{pinned} maps were pinned again: somebody had removed their pins"
            ));
        }
        if put_back {
            done.push("the guard was missing or changed, and was put back".to_owned());
        }
        Ok(done)
    }

    /// Looks for ways to other servers where there was none, and for what routers have said of them; no kernel announces
    /// either.
    fn look_for_ways(&mut self) -> Result<Option<String>, DataPlaneError> {
        self.looks = self.looks.wrapping_add(1);
        let tunnel = self
            .desired
            .as_ref()
            .and_then(|desired| desired.tunnel.as_ref());
        let outdated = match tunnel {
            Some(tunnel) => self.room.is_lacking() || self.room.is_outdated(tunnel, self.looks)?,
            None => false,
        };
        let Some(desired) = self.desired.clone().filter(|_| outdated) else {
            return Ok(None);
        };
        let before = self.room.bytes;
        let room = desired.tunnel.as_ref().map(Room::of).transpose()?;
        if room.as_ref() == Some(&self.room) {
            return Ok(None);
        }
        self.put(&desired)?;
        Ok((self.room.bytes != before).then(|| self.said_of_room(before)))
    }

    fn said_of_room(&self, before: u32) -> String {
        format!(
            "the longest packet that reaches the other servers uncut has {} bytes now, {before} before",
            self.room.bytes
        )
    }

    /// The selected cgroups that exist; warns when one is missing that was not missing before.
    fn cgroups(&mut self, desired: &Desired) -> Result<Cgroups, DataPlaneError> {
        let paths: BTreeSet<&String> = desired
            .zones
            .iter()
            .flat_map(|zone| &zone.selectors.cgroups)
            .collect();
        let found = cgroups::find(paths.iter().copied())?;
        let absent: BTreeSet<String> = paths
            .into_iter()
            .filter(|path| !found.contains_key(*path))
            .cloned()
            .collect();
        for path in absent.difference(&self.absent_cgroups) {
            tracing::warn!(
                cgroup = path,
                "a zone selects a cgroup that does not exist now: it will be taken up when it does"
            );
        }
        self.absent_cgroups = absent;
        Ok(found)
    }
}

/// Egress IPs that are other servers', as a whole or in part.
#[derive(Default)]
struct Theirs {
    shared: BTreeSet<Address>,
    ranges: BTreeMap<Address, u32>,
}

fn selects_cgroups(desired: &Desired) -> bool {
    desired
        .zones
        .iter()
        .any(|zone| !zone.selectors.cgroups.is_empty())
}

/// An error with its causes.
fn chain(error: &DataPlaneError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

impl DataPlane for Plane {
    fn bound(&self) -> Result<usize, DataPlaneError> {
        let version = versions::in_force(&self.maps)?;
        let zones: Vec<Zone> = self.maps.range("ZONES", version * MAX_ZONES, MAX_ZONES)?;
        let bound = zones
            .iter()
            .filter(|zone| zone.flags & zone_flag::ENABLED != 0);
        Ok(bound.count())
    }

    fn check(&self, addresses: &[Address]) -> Result<(), DataPlaneError> {
        taken::check_free(addresses)
    }

    fn apply(&mut self, desired: &Desired) -> Result<ApplyReport, DataPlaneError> {
        // Not asked when what is in force is put back: an address that was given to an interface later must not
        // keep the guard from being repaired.
        self.check(&desired.addresses().collect::<Vec<_>>())?;
        if let Some(tunnel) = &desired.tunnel {
            let uplinks = self.ready_uplinks();
            tunnel::check(tunnel, &uplinks, &self.config.inside)?;
        }
        self.put(desired)
    }

    fn repair(&mut self) -> Result<Vec<String>, DataPlaneError> {
        let mended = self.mend();
        // Above all where something is not mended.
        let told = self.announce_health();
        let mut done = mended?;
        done.extend(told?);
        Ok(done)
    }

    fn tidy(&mut self) -> Result<Vec<String>, DataPlaneError> {
        let unused = addresses::forget_unused(&self.maps)?;
        if !unused.is_empty() {
            self.wish_announced();
        }
        let mut done: Vec<String> = unused
            .into_iter()
            .map(|address| format!("{address} is no egress IP any more: its last flow has ended"))
            .collect();
        if clock::follow(&self.maps)? {
            done.push("the wall clock was set: utilization goes on in its five minutes".to_owned());
        }
        self.tell_ended()?;
        if let Some(desired) = &self.desired {
            let addresses: Vec<Address> = desired.addresses().collect();
            done.extend(self.own.look(&addresses)?);
        }
        done.extend(self.look_for_ways()?);
        if let Some(desired) = self.desired.clone()
            && selects_cgroups(&desired)
        {
            let report = self.put(&desired)?;
            if report.changed > 0 {
                done.push("selected cgroups changed".to_owned());
            }
        }
        Ok(done)
    }

    fn reset(&mut self, addresses: &[IpNet]) -> Result<u64, DataPlaneError> {
        let uplinks = self.ready_uplinks();
        let uplinks: Vec<&Interface> = uplinks.iter().collect();
        farewell::reset(
            &self.maps,
            &mut self.object,
            &uplinks,
            Cause::Operator,
            |flow| addresses.iter().any(|net| net.contains(&flow.egress)),
        )
    }

    fn occupied(&self, slices: &Slices) -> Result<Slices, DataPlaneError> {
        leftover::occupied(&self.maps, slices)
    }

    fn reset_slices(&mut self, slices: &Slices) -> Result<u64, DataPlaneError> {
        let uplinks = self.ready_uplinks();
        let uplinks: Vec<&Interface> = uplinks.iter().collect();
        farewell::reset(
            &self.maps,
            &mut self.object,
            &uplinks,
            Cause::Operator,
            |flow| !flow.forwarded && leftover::holds(slices, flow.egress, flow.port),
        )
    }

    fn deadline(&self) -> Arc<dyn Deadline> {
        Arc::new(deadline::Pinned::of(&self.maps))
    }

    fn detach(&mut self) -> Result<Vec<String>, DataPlaneError> {
        self.desired = None;
        self.tables = None;
        self.guard.release();
        let removed = detach::everything(&self.pins)?;
        self.lock.discard();
        Ok(removed)
    }
}
