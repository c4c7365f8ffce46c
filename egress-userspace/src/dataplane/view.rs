//! Reading the data plane from its pins: true whether or not a daemon is running (SAFE-2).

mod pools;

use std::net::IpAddr;
use std::ops::ControlFlow;

use aya::maps::{MapData, PerCpuArray};
use egress_common::free::FreeList;
use egress_common::layout::Layout;
use egress_common::port;
use egress_common::reason::{Counter, Reason, of_effort};
use egress_common::settings::{Settings, role};

use pools::Caps;

use super::attach::{self, Kind};
use super::births;
use super::deadline;
use super::devices;
use super::flows;
use super::guard;
use super::hook::Hook;
use super::interfaces::Interface;
use super::maps::Maps;
use super::meters;
use super::peers;
use super::pins::Pins;
use super::privileges;
use super::route::{self, Route};
use super::routes::Routes;
use super::tables::Tables;
use super::troubles;
use super::usage;
use super::versions;
use crate::config::{Attach, Dataplane, Tunnel};
use crate::dataplane::api::{
    DataPlaneError, DataPlaneStatus, DataPlaneView, Deadline as _, Exit, FlowFilter, FlowKey,
    FlowRecord, HookStatus, Meter, Names, OriginFilter, OriginRecord, PoolLive, PortsTried,
    ReasonCount, TableStatus, Traveller, TroubleKind, UsageLook, Way, utilization,
};

/// Behind the names of tables that are for IPv6.
const IPV6_TABLE: &str = "-ipv6";

/// A reader of the data plane. The command line opens one itself when no daemon answers.
#[derive(Clone, Debug)]
pub struct View {
    config: Dataplane,
    maps: Maps,
    names: Names,
}

impl View {
    /// Opens the pins that `config` names; `names` stand for the numbers in the maps.
    ///
    /// # Errors
    /// [`DataPlaneError::Absent`] when nothing is pinned there; [`DataPlaneError::Refused`] without privileges.
    pub fn open(config: &Dataplane, names: Names) -> Result<Self, DataPlaneError> {
        let maps = Maps::open(&Pins::new(&config.pin));
        if !matches!(maps, Err(DataPlaneError::Absent { .. })) {
            privileges::check()?;
        }
        Ok(Self {
            config: config.clone(),
            maps: maps?,
            names,
        })
    }

    /// Uses other names from now on.
    pub(super) fn rename(&mut self, names: Names) {
        self.names = names;
    }

    /// The names of uplinks and inside interfaces.
    fn interfaces(&self) -> Result<(Vec<String>, Vec<String>), DataPlaneError> {
        if !self.config.uplink.is_empty() {
            return Ok((self.config.uplink.clone(), self.config.inside.clone()));
        }
        // Without a configuration that can be read, what the daemon has entered last.
        let names = devices::names(&self.maps)?;
        let of = |role| {
            names
                .iter()
                .filter(move |(_, found)| *found == role)
                .map(|(name, _)| name.clone())
                .collect()
        };
        Ok((of(role::UPLINK), of(role::INSIDE)))
    }

    fn hooks(&self) -> Result<Vec<HookStatus>, DataPlaneError> {
        let (uplink, inside) = self.interfaces()?;
        let uplinks = uplink.iter().map(|name| (name, &Hook::UPLINK[..]));
        let insides = inside.iter().map(|name| (name, &Hook::INSIDE[..]));
        let settings: Vec<Settings> =
            self.maps
                .range("SETTINGS", versions::in_force(&self.maps)?, 1)?;
        let mut found = if settings.iter().any(|settings| settings.cgroup_levels != 0) {
            births::status(self.maps.pins())?
        } else {
            Vec::new()
        };
        let tunnel = peers::end(&self.maps)?;
        let tunnel = match tunnel {
            Some(tunnel) => Interface::all()?
                .into_iter()
                .find(|interface| interface.index == tunnel.interface)
                // One that was deleted has no name left.
                .map_or_else(|| Some(Tunnel::default().device), |found| Some(found.name)),
            None => None,
        };
        let tunnel = tunnel.iter().map(|name| (name, &Hook::TUNNEL[..]));
        for (name, hooks) in uplinks.chain(insides).chain(tunnel) {
            let interface = Interface::find(name)?;
            for hook in hooks {
                let attached = match &interface {
                    Some(interface) => attach::in_place(self.maps.pins(), interface, *hook)?,
                    None => None,
                };
                let kind = match (&attached, &interface) {
                    (Some((kind, _)), _) => *kind,
                    (None, Some(interface)) => Kind::choose(self.config.attach, interface)?,
                    (None, None) if self.config.attach == Attach::Clsact => Kind::Clsact,
                    (None, None) => Kind::Tcx,
                };
                found.push(HookStatus {
                    hook: hook.program().to_owned(),
                    interface: name.clone(),
                    kind: kind.name().to_owned(),
                    program_id: attached.map(|(_, program)| program),
                    in_place: attached.is_some(),
                });
            }
        }
        Ok(found)
    }

    fn table(&self, name: &str, list: &str, capacity: u32) -> Result<TableStatus, DataPlaneError> {
        let mut free = 0_u64;
        for head in self.maps.array::<FreeList>(list)?.iter() {
            let head =
                head.map_err(|error| DataPlaneError::failed(format!("reading map {list}"), error))?;
            // Each is a hint that may be a moment behind its list; their sum is right all the same.
            free = free.wrapping_add(head.available);
        }
        let capacity = u64::from(capacity);
        Ok(TableStatus {
            table: name.to_owned(),
            used: capacity.saturating_sub(free),
            capacity,
        })
    }

    fn reasons(&self) -> Result<Vec<ReasonCount>, DataPlaneError> {
        let counters = self.maps.per_cpu::<Counter>("REASONS")?;
        let guarded = guard::dropped(self.maps.pins());
        let mut found = Vec::new();
        for reason in Reason::ALL {
            let mut packets = sum(&counters, *reason as u32)?.packets;
            if *reason == Reason::HookMissing {
                // The program behind the uplink's hook and the nftables table are two halves of one guard.
                packets += guarded;
            }
            found.push(ReasonCount {
                reason: reason.label().to_owned(),
                packets,
            });
        }
        Ok(found)
    }

    fn ports_tried(&self) -> Result<Vec<PortsTried>, DataPlaneError> {
        let counters = self.maps.per_cpu::<Counter>("REASONS")?;
        let group = |group| {
            let Counter { packets, bytes } = sum(&counters, of_effort(group))?;
            Ok(PortsTried {
                most: port::most_tried(group),
                flows: packets,
                ports: bytes,
            })
        };
        (0..port::EFFORTS).map(group).collect()
    }

    /// A counter remembers the cap of its last use; what counts is the cap in force.
    fn put_caps(&self, records: &mut [OriginRecord]) -> Result<(), DataPlaneError> {
        let tables = self.tables_in_force()?;
        let caps = Caps::of(&tables);
        for record in records {
            if let Some(cap) = caps.on(record.egress_ip) {
                record.capacity = u64::from(cap);
                record.utilization = utilization(record.active, record.capacity);
            }
        }
        Ok(())
    }

    fn tables_in_force(&self) -> Result<Tables, DataPlaneError> {
        Tables::read(&self.maps, versions::in_force(&self.maps)?)
    }
}

/// A counter's sum over all CPUs.
fn sum(counters: &PerCpuArray<MapData, Counter>, number: u32) -> Result<Counter, DataPlaneError> {
    let all = counters
        .get(&number, 0)
        .map_err(|error| DataPlaneError::failed("reading map REASONS", error))?;
    Ok(Counter {
        packets: all.iter().map(|one| one.packets).sum(),
        bytes: all.iter().map(|one| one.bytes).sum(),
    })
}

impl DataPlaneView for View {
    fn status(&self) -> Result<DataPlaneStatus, DataPlaneError> {
        let (uplinks, insides) = self.interfaces()?;
        let layout: Layout = self.maps.only("LAYOUT")?;
        Ok(DataPlaneStatus {
            hooks: self.hooks()?,
            guard: guard::is_installed(self.maps.pins())?,
            configured: versions::is_configured(&self.maps)?,
            tables: vec![
                self.table("flows", "FREE_SLOTS4", layout.max_flows)?,
                self.table("origins", "FREE_COUNTS4", layout.max_origins)?,
                self.table(
                    &format!("flows{IPV6_TABLE}"),
                    "FREE_SLOTS6",
                    layout.max_flows,
                )?,
                self.table(
                    &format!("origins{IPV6_TABLE}"),
                    "FREE_COUNTS6",
                    layout.max_origins,
                )?,
            ],
            reasons: self.reasons()?,
            ports_tried: self.ports_tried()?,
            draining: self.draining()?,
            peers: peers::status(&self.maps)?,
            routed: versions::is_routed(&self.maps)?,
            announced: Routes::of(self.maps.pins()).prefixes()?,
            lapses_in: deadline::Pinned::of(&self.maps)
                .left()?
                .map(|left| left.div_ceil(1_000_000_000)),
            troubles: troubles::look(&self.maps, &self.names, &uplinks, &insides)?,
        })
    }

    fn flows(
        &self,
        filter: &FlowFilter,
        each: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
    ) -> Result<(), DataPlaneError> {
        flows::visit(&self.maps, &self.names, filter, each)
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<FlowRecord>, DataPlaneError> {
        flows::find(&self.maps, &self.names, key)
    }

    fn origins(&self, filter: &OriginFilter) -> Result<Vec<OriginRecord>, DataPlaneError> {
        let mut records = flows::origins(&self.maps, filter)?;
        self.put_caps(&mut records)?;
        Ok(records)
    }

    fn usage(&self) -> Result<UsageLook, DataPlaneError> {
        usage::look(&self.maps)
    }

    fn meters(&self, each: &mut dyn FnMut(Meter)) -> Result<(), DataPlaneError> {
        meters::visit(&self.maps, each)
    }

    fn pools(&self) -> Result<Vec<PoolLive>, DataPlaneError> {
        self.live_pools()
    }

    fn candidate_order(
        &self,
        pool: u16,
        inside: IpAddr,
        realm: Option<u16>,
    ) -> Result<Vec<IpAddr>, DataPlaneError> {
        self.order_of(pool, inside, realm)
    }

    fn way(&self, traveller: &Traveller) -> Result<Way, DataPlaneError> {
        let status = self.status()?;
        let family = match traveller.destination {
            IpAddr::V4(_) => "",
            IpAddr::V6(_) => IPV6_TABLE,
        };
        let full = |name: &str| {
            let name = format!("{name}{family}");
            status
                .tables
                .iter()
                .any(|table| table.table == name && table.used >= table.capacity)
        };
        let exit = match route::of(traveller)? {
            Route::Here => Exit::Here,
            Route::None(text) => Exit::NoRoute { text },
            Route::By(index) => {
                let interface = Interface::all()?
                    .into_iter()
                    .find(|interface| interface.index == index)
                    .map_or_else(|| format!("#{index}"), |interface| interface.name);
                if self.config.uplink.contains(&interface) {
                    let missing = status
                        .hooks
                        .iter()
                        .filter(|hook| hook.interface == interface && !hook.in_place)
                        .map(|hook| hook.hook.clone())
                        .collect();
                    let unusable = status
                        .troubles
                        .iter()
                        .find(|trouble| {
                            trouble.kind == TroubleKind::Interface && trouble.subject == interface
                        })
                        .map(|trouble| trouble.text.clone());
                    Exit::Uplink {
                        interface,
                        missing,
                        unusable,
                    }
                } else if self.config.inside.contains(&interface) {
                    Exit::Inside { interface }
                } else {
                    Exit::Elsewhere { interface }
                }
            }
        };
        Ok(Way {
            exit: Some(exit),
            flows_full: full("flows"),
            origins_full: full("origins"),
            lapsed: traveller.destination.is_ipv4()
                && status
                    .troubles
                    .iter()
                    .any(|trouble| trouble.kind == TroubleKind::Lapsed),
        })
    }
}
