//! Live flows and connection counts, read from mapped memory while the data plane writes it.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::atomic::{Ordering, fence};

use aya::Pod;
use egress_common::count::{Count, Tally};
use egress_common::family::{Address, V4, V6};
use egress_common::index::{self, Bucket, HashKey, Place};
use egress_common::key::{self, OriginKey, Reference, realm};
use egress_common::slot::{Slot, SlotWord, State, flag, server_and_exit};
use egress_common::usage::{self, ERAS, Peak, Period};

use super::clock;
use super::maps::{Maps, Records};
use super::peers;
use crate::dataplane::api::{
    DataPlaneError, FlowFilter, FlowKey, FlowRecord, Names, OriginFilter, OriginRecord, Protocol,
    utilization,
};

/// How often a record is copied anew when it changed hands meanwhile.
const ATTEMPTS: usize = 4;
/// Nanoseconds of a second.
const SECOND: u64 = 1_000_000_000;
/// Of a flow that began here and leaves here.
const LOCAL: &str = "local";

/// The clock of the data plane: `bpf_ktime_get_coarse_ns`.
pub(super) fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to a struct of ours; the clock exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
    time.tv_sec
        .unsigned_abs()
        .wrapping_mul(SECOND)
        .wrapping_add(time.tv_nsec.unsigned_abs())
}

pub(super) fn protocol(number: u8) -> Option<Protocol> {
    match number {
        key::TCP => Some(Protocol::Tcp),
        key::UDP => Some(Protocol::Udp),
        _ => None,
    }
}

pub(super) fn socket(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// A family whose tables can be read.
pub(super) trait Tabled: Address + Into<IpAddr> {
    /// At the end of the names of its maps.
    const SUFFIX: &'static str;
}

impl Tabled for V4 {
    const SUFFIX: &'static str = "4";
}

impl Tabled for V6 {
    const SUFFIX: &'static str = "6";
}

pub(super) fn name<A: Tabled>(map: &str) -> String {
    format!("{map}{}", A::SUFFIX)
}

/// A copy of a slot whose flow is live and was the same from the first to the last byte read.
fn live<A: Tabled>(slots: &Records<Slot<A>>, index: u32) -> Option<Slot<A>>
where
    Slot<A>: Pod,
{
    of_state(slots, index, State::is_counted)
}

/// The same of a flow that is live or just over.
pub(super) fn linked<A: Tabled>(slots: &Records<Slot<A>>, index: u32) -> Option<Slot<A>>
where
    Slot<A>: Pod,
{
    of_state(slots, index, State::is_linked)
}

fn of_state<A: Tabled>(
    slots: &Records<Slot<A>>,
    index: u32,
    wanted: impl Fn(State) -> bool,
) -> Option<Slot<A>>
where
    Slot<A>: Pod,
{
    for _ in 0..ATTEMPTS {
        let before = SlotWord::from_bits(slots.word(index)?);
        if !wanted(before.state) {
            return None;
        }
        fence(Ordering::Acquire);
        let copy = slots.copy(index)?;
        fence(Ordering::Acquire);
        let after = SlotWord::from_bits(slots.word(index)?);
        // Endpoints do not change while the generation lasts.
        if after.generation == before.generation
            && copy.word().generation == before.generation
            && wanted(copy.word().state)
        {
            return Some(copy);
        }
    }
    None
}

/// Names for what slots hold as numbers.
struct Named<'n> {
    names: &'n Names,
    /// Other servers, by their numbers.
    servers: BTreeMap<u32, IpAddr>,
}

impl<'n> Named<'n> {
    fn now(maps: &Maps, names: &'n Names) -> Result<Self, DataPlaneError> {
        let servers = peers::numbers(maps)?
            .into_iter()
            .map(|(address, number)| (number, peers::address_of(address)))
            .collect();
        Ok(Self { names, servers })
    }

    /// The way a flow takes: `local`, `peer NAME` where another server translates it, `from NAME` where it is
    /// translated here for another server.
    fn path<A>(&self, slot: &Slot<A>) -> String {
        let name = |number: u32| {
            self.servers.get(&number).map_or_else(
                || format!("#{number}"),
                |address| self.names.server(*address),
            )
        };
        if slot.flags & flag::FORWARDED != 0 {
            return format!("peer {}", name(server_and_exit(slot.interface).0));
        }
        realm::peer(slot.flow.realm).map_or_else(
            || LOCAL.to_owned(),
            |number| format!("from {}", name(number)),
        )
    }
}

fn record<A: Tabled>(slot: &Slot<A>, named: &Named<'_>, now: u64) -> Option<FlowRecord> {
    let names = named.names;
    Some(FlowRecord {
        protocol: protocol(slot.flow.protocol)?,
        inside: socket(slot.flow.inside, slot.flow.inside_port),
        egress: socket(slot.egress, slot.egress_port),
        origin: socket(slot.flow.origin, slot.flow.origin_port),
        // Whose zone it is, only the server knows that it came from; a probe is of none.
        zone: match slot.zone {
            0 => String::new(),
            number => names.zone(number),
        },
        pool: names.pool(slot.pool),
        state: slot.word().state.name().to_owned(),
        age_s: slot.opened.age(now) / SECOND,
        idle_s: slot.last_seen.age(now) / SECOND,
        packets_out: slot.packets_out.into(),
        packets_in: slot.packets_in.into(),
        bytes_out: slot.bytes_out,
        bytes_in: slot.bytes_in,
        path: named.path(slot),
    })
}

fn wanted<A: Tabled>(slot: &Slot<A>, filter: &FlowFilter) -> bool {
    let protocol_matches = filter
        .protocol
        .is_none_or(|wanted| protocol(slot.flow.protocol) == Some(wanted));
    let egress: IpAddr = slot.egress.into();
    protocol_matches
        && filter.zone.is_none_or(|zone| zone == slot.zone)
        && filter.pool.is_none_or(|pool| pool == slot.pool)
        && filter.egress_ip.is_none_or(|wanted| wanted == egress)
        && filter
            .origin
            .is_none_or(|origin| origin.matches(socket(slot.flow.origin, slot.flow.origin_port)))
}

/// Visits the live flows that `filter` lets through.
pub(super) fn visit(
    maps: &Maps,
    names: &Names,
    filter: &FlowFilter,
    each: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
) -> Result<(), DataPlaneError> {
    if visit_family::<V4>(maps, names, filter, each)?.is_continue() {
        let _ = visit_family::<V6>(maps, names, filter, each)?;
    }
    Ok(())
}

fn visit_family<A: Tabled>(
    maps: &Maps,
    names: &Names,
    filter: &FlowFilter,
    each: &mut dyn FnMut(FlowRecord) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, DataPlaneError>
where
    Slot<A>: Pod,
{
    let slots = maps.records::<Slot<A>>(&name::<A>("SLOTS"))?;
    let named = Named::now(maps, names)?;
    let now = now();
    for index in 0..slots.len() {
        if let Some(slot) = live(&slots, index)
            && wanted(&slot, filter)
            && let Some(record) = record(&slot, &named, now)
            && each(record).is_break()
        {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The live flow with these endpoints; inside port 0 stands for any.
pub(super) fn find(
    maps: &Maps,
    names: &Names,
    wanted: &FlowKey,
) -> Result<Option<FlowRecord>, DataPlaneError> {
    match (wanted.inside.ip(), wanted.origin.ip()) {
        (IpAddr::V4(inside), IpAddr::V4(origin)) => {
            find_family(maps, names, wanted, inside.octets(), origin.octets())
        }
        (IpAddr::V6(inside), IpAddr::V6(origin)) => {
            find_family(maps, names, wanted, inside.octets(), origin.octets())
        }
        _ => Ok(None),
    }
}

fn find_family<A: Tabled>(
    maps: &Maps,
    names: &Names,
    wanted: &FlowKey,
    inside: A,
    origin: A,
) -> Result<Option<FlowRecord>, DataPlaneError>
where
    Slot<A>: Pod,
    key::FlowKey<A>: Pod,
{
    let key = key::FlowKey {
        inside,
        origin,
        inside_port: wanted.inside.port(),
        origin_port: wanted.origin.port(),
        protocol: wanted.protocol.number(),
        realm: wanted.realm.map_or(realm::COMMON, realm::of_zone),
        ..key::FlowKey::default()
    };
    let slots = maps.records::<Slot<A>>(&name::<A>("SLOTS"))?;
    let named = Named::now(maps, names)?;
    if key.inside_port != 0 {
        let buckets = maps.records::<Bucket>(&name::<A>("FLOWS"))?;
        let hash = key.hash(&maps.only::<HashKey>("HASH_KEY")?);
        let is_of = |slot: u32| slots.copy(slot).is_some_and(|slot| slot.flow == key);
        return Ok(look_up(&buckets, hash, is_of)
            .and_then(|slot| live(&slots, slot))
            .filter(|slot| slot.flow == key)
            .and_then(|slot| record(&slot, &named, now())));
    }
    let any_port = |slot: &Slot<A>| key::FlowKey {
        inside_port: 0,
        ..slot.flow
    };
    Ok((0..slots.len())
        .filter_map(|index| live(&slots, index))
        .find(|slot| any_port(slot) == key)
        .and_then(|slot| record(&slot, &named, now())))
}

/// The slot of the key with this hash, as the data plane looks for it.
fn look_up(buckets: &Records<Bucket>, hash: u64, is_of: impl Fn(u32) -> bool) -> Option<u32> {
    let place = Place::of(hash, buckets.len());
    for distance in 0..index::reach(buckets.len()) {
        let bucket = buckets.copy(index::after(place.bucket, distance, buckets.len()))?;
        let found = bucket
            .cells
            .iter()
            .find(|cell| cell.tag == place.tag && is_of(cell.slot));
        if let Some(cell) = found {
            return Some(cell.slot);
        }
        if bucket.overflow == 0 {
            break;
        }
    }
    None
}

/// A copy of a counter that counted the same origin from the first to the last byte read.
pub(super) fn counted<A: Tabled>(counts: &Records<Count<A>>, index: u32) -> Option<Count<A>>
where
    Count<A>: Pod,
{
    for _ in 0..ATTEMPTS {
        let before = Tally::from_bits(counts.word(index)?);
        fence(Ordering::Acquire);
        let copy = counts.copy(index)?;
        fence(Ordering::Acquire);
        let after = Tally::from_bits(counts.word(index)?);
        if before.generation == after.generation && copy.generation == before.generation {
            return Some(copy);
        }
    }
    None
}

/// Visits the counters in use. A counter is in use when the index of origins refers to it.
pub(super) fn visit_counts<A: Tabled>(
    maps: &Maps,
    mut each: impl FnMut(u32, &Count<A>),
) -> Result<(), DataPlaneError>
where
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    let counts = maps.records::<Count<A>>(&name::<A>("COUNTS"))?;
    let origins = OnceCell::new();
    for index in 0..counts.len() {
        let Some(count) = counted(&counts, index) else {
            continue;
        };
        if count.key == OriginKey::default() {
            continue;
        }
        let origins = match origins.get() {
            Some(origins) => origins,
            None => {
                let map = maps.hash::<OriginKey<A>, Reference>(&name::<A>("ORIGINS"))?;
                origins.get_or_init(|| map)
            }
        };
        let current = Reference {
            index,
            generation: count.generation,
        };
        if origins
            .get(&count.key, 0)
            .is_ok_and(|found| found == current)
        {
            each(index, &count);
        }
    }
    Ok(())
}

/// The connection counts that `filter` lets through.
pub(super) fn origins(
    maps: &Maps,
    filter: &OriginFilter,
) -> Result<Vec<OriginRecord>, DataPlaneError> {
    let clock = clock::told(maps)?;
    let era = usize::try_from(clock.era % ERAS as u64).unwrap_or(0);
    let today = usage::Place::of(clock.era, clock.eras[era], now()).period;
    let mut found = Vec::new();
    origins_family::<V4>(maps, filter, today, &mut found)?;
    origins_family::<V6>(maps, filter, today, &mut found)?;
    found.sort_by_key(|record| (record.egress_ip, record.origin, record.protocol));
    Ok(found)
}

fn origins_family<A: Tabled>(
    maps: &Maps,
    filter: &OriginFilter,
    today: Period,
    found: &mut Vec<OriginRecord>,
) -> Result<(), DataPlaneError>
where
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    visit_counts::<A>(maps, |_, count| {
        found.extend(
            origin_record(count, today)
                .filter(|one| filter.matches(one.egress_ip, one.origin, one.protocol)),
        );
    })
}

fn origin_record<A: Tabled>(count: &Count<A>, today: Period) -> Option<OriginRecord> {
    if count.key.egress == A::default() {
        // What is counted of forwarded flows is their server's connections, not an origin's.
        return None;
    }
    let peak = Peak::from_bits(count.usage.peak);
    // Since an earlier one nothing was opened.
    let most = if peak.period == today { peak.most } else { 0 };
    Some(OriginRecord {
        egress_ip: count.key.egress.into(),
        origin: socket(count.key.origin, count.key.origin_port),
        protocol: protocol(count.key.protocol)?,
        active: count.active.into(),
        peak: most.max(count.active).into(),
        capacity: count.capacity.into(),
        utilization: utilization(count.active.into(), count.capacity.into()),
        refused: count.refused,
    })
}
