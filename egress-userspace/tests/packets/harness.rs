//! A data plane in a box: the real programs with maps of their own, pinned nowhere and attached to
//! nothing.

mod look;
mod send;
mod told;

use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf};
use aya::programs::SchedClassifier;
use egress_common::armed;
use egress_common::count::Count;
use egress_common::ended::{self, Ended};
use egress_common::expiry::Progress;
use egress_common::family::{V4, V6};
use egress_common::fragment::{Datagram, FRAME, FRAMES};
use egress_common::free::FreeList;
use egress_common::key::{OriginKey, Reference};
use egress_common::policy::{MAX_RULES, MAX_SETS, PORTS};
use egress_common::reason::Counter;
use egress_common::record::Cause;
use egress_common::settings::{
    Candidate, Device, EgressAddress, InterfaceKey, MAX_CANDIDATES, MAX_EXITS, MAX_MARKS,
    MAX_ZONES, MarkSelector, Pool, Prefixed as _, Selected, Settings, Switch, VERSION_BITS, Zone,
    egress_flag, role, zone_flag,
};
use egress_common::siphash::Secret;
use egress_common::slot::Slot;
use egress_common::tag::{Tag, TagField};
use egress_userspace::policy::compile::Tables;

use crate::family::{Family, TWIN_BITS, twin};
use crate::index::{HASH_KEY, Index};
use crate::load::Lease;
use crate::packet::Endpoint;
use crate::run::{Meta, Verdict};
use crate::world::{INSIDE_INTERFACE, UPLINK, UPLINK_MAC, World};

pub(crate) use told::{FlowLog, Told, name};

/// This load, as the sweep reports it.
pub(crate) const LOAD_ID: u64 = 0x5eed;

/// How long to wait for what must happen: only a test that fails waits for so long, and an emulated machine is slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// The programs, by their names in the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    InsideIngress,
    UplinkEgress,
    UplinkGuard,
    UplinkIngress,
    TunnelIngress,
    TunnelEgress,
    Arm,
    EndFlow,
    Inject,
}

impl Hook {
    pub(crate) const ALL: [(Self, &'static str); 9] = [
        (Self::InsideIngress, "inside_ingress"),
        (Self::UplinkEgress, "uplink_egress"),
        (Self::UplinkGuard, "uplink_guard"),
        (Self::UplinkIngress, "uplink_ingress"),
        (Self::TunnelIngress, "tunnel_ingress"),
        (Self::TunnelEgress, "tunnel_egress"),
        (Self::Arm, "arm"),
        (Self::EndFlow, "end_flow"),
        (Self::Inject, "inject"),
    ];
}

/// The sweep's map value: a timer, which reads as zeros, and how far the sweep got.
#[repr(C)]
#[derive(Clone, Copy)]
struct Sweeper {
    timer: [u64; 2],
    progress: Progress,
}

// SAFETY: `repr(C)` of integers without padding.
unsafe impl Pod for Sweeper {}

/// A buffer of a held frame, as words: the first one is 0 or says since when.
#[repr(C)]
#[derive(Clone, Copy)]
struct Buffer([u64; 3 + FRAME / 8]);

// SAFETY: whole words.
unsafe impl Pod for Buffer {}

/// Programs, and maps of one family; those of the other are there too.
pub(crate) struct Plane<A>
where
    Slot<A>: Pod,
    Count<A>: Pod,
{
    pub(crate) load: Lease,
    pub(crate) world: World,
    pub(crate) flows: Index,
    pub(crate) reverse: Index,
    pub(crate) slots: Array<MapData, Slot<A>>,
    pub(crate) free_slots: Array<MapData, FreeList>,
    pub(crate) origins: HashMap<MapData, OriginKey<A>, Reference>,
    pub(crate) counts: Array<MapData, Count<A>>,
    pub(crate) free_counts: Array<MapData, FreeList>,
    reasons: PerCpuArray<MapData, Counter>,
    sweeper: Array<MapData, Sweeper>,
}

/// What tests of IPv4 look at.
pub(crate) type DataPlane = Plane<V4>;

/// Whether this process may load programs; says `SKIPPED` if not.
pub(crate) fn permitted() -> bool {
    // SAFETY: a system call without parameters.
    if unsafe { libc::geteuid() } == 0 {
        return true;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("packets");
    println!("SKIPPED: {test}: loading programs into the kernel needs root");
    false
}

/// The version of the running kernel.
pub(crate) fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|part| part.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The mark of a packet that entered and belongs to no zone, as the first configuration says.
pub(crate) fn unbound(mask: u32) -> u32 {
    unbound_by(mask, 0)
}

/// As [`unbound`], by the configuration of a number.
pub(crate) fn unbound_by(mask: u32, number: u32) -> u32 {
    let field = TagField::new(mask).unwrap();
    field.write(0, Tag::Unbound(number % field.generations()))
}

/// The tag of packets that the uplink's program has dealt with.
pub(crate) fn done(mask: u32) -> u32 {
    TagField::new(mask).unwrap().write(0, Tag::Done)
}

/// The mark of packets of a zone.
pub(crate) fn tagged(mask: u32, zone: u32) -> u32 {
    TagField::new(mask)
        .unwrap()
        .write(0, Tag::Zone(zone as u16))
}

impl<A: Family> Plane<A>
where
    Slot<A>: Pod,
    Count<A>: Pod,
    OriginKey<A>: Pod,
{
    /// The default world's data plane; `None` where it may not be loaded.
    pub(crate) fn new() -> Option<Self> {
        Self::of(World::default())
    }

    /// A world's data plane; `None` where it may not be loaded.
    pub(crate) fn of(world: World) -> Option<Self> {
        if !permitted() {
            return None;
        }
        // Routes and interfaces of the machine are none of a test's business.
        // SAFETY: changes only this thread's network namespace.
        let status = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(status, 0, "a network namespace of the test's own");
        let load = Lease::of(&world);
        let own = |name: &str| format!("{name}{}", A::SUFFIX);
        let mut plane = Self {
            flows: map(&load, &own("FLOWS"), Array::try_from).into(),
            reverse: map(&load, &own("REVERSE"), Array::try_from).into(),
            slots: map(&load, &own("SLOTS"), Array::try_from),
            free_slots: map(&load, &own("FREE_SLOTS"), Array::try_from),
            origins: map(&load, &own("ORIGINS"), HashMap::try_from),
            counts: map(&load, &own("COUNTS"), Array::try_from),
            free_counts: map(&load, &own("FREE_COUNTS"), Array::try_from),
            reasons: map(&load, "REASONS", PerCpuArray::try_from),
            sweeper: map(&load, "SWEEPER", Array::try_from),
            load,
            world,
        };
        plane.configure();
        Some(plane)
    }

    /// What the daemon writes into the maps.
    fn configure(&mut self) {
        self.array(
            "SECRET",
            0,
            Secret {
                k0: 0x0123_4567,
                k1: 0x89ab_cdef,
            },
        );
        self.array("HASH_KEY", 0, HASH_KEY);
        for (interface, role) in [(UPLINK, role::UPLINK), (INSIDE_INTERFACE, role::INSIDE)] {
            self.hash(
                "DEVICES",
                interface,
                Device {
                    role,
                    mac: UPLINK_MAC,
                    ..Device::default()
                },
            );
        }
        let world = self.world.clone();
        self.write(0, &world);
        self.switch(0);
    }

    /// Writes a configuration as version 0 or 1.
    pub(crate) fn write(&mut self, version: u32, world: &World) {
        self.array(
            "SETTINGS",
            version,
            Settings {
                marks: world.marks.len() as u32,
                exempt: world.exempt.len() as u32,
                interfaces: world.interfaces.len() as u32,
                enabled: world
                    .zones
                    .iter()
                    .filter(|(_, flags, _)| flags & zone_flag::ENABLED != 0)
                    .count() as u32,
                ..world.settings
            },
        );
        for (number, flags, pool) in &world.zones {
            let zone = Zone {
                flags: *flags,
                pool: *pool,
                exit: 0,
            };
            self.array("ZONES", version * MAX_ZONES + number, zone);
        }
        for (address, length, zone) in &world.sources {
            self.selects("SOURCES", version, (*address, *length), *zone);
        }
        for (address, length) in &world.exempt {
            self.selects("EXEMPT", version, (*address, *length), 0);
        }
        for (nth, selector) in world.marks.iter().enumerate() {
            self.array::<MarkSelector>("MARKS", version * MAX_MARKS + nth as u32, *selector);
        }
        for (interface, zone) in &world.interfaces {
            let key = InterfaceKey {
                version,
                interface: *interface,
            };
            self.hash("INTERFACES", key, Selected { zone: *zone });
        }
        for (address, length, zone) in &world.sources6 {
            let key = Key::new(VERSION_BITS + length, V6::data(version, *address));
            self.prefix("SOURCES6", &key, Selected { zone: *zone });
        }
        for (nth, range) in world.ranges.iter().flatten().enumerate() {
            self.range(version, nth as u32, range);
        }
        let mut first = 0;
        for (number, candidates) in &world.pools {
            let count = candidates.len() as u32;
            // Ranges, where there are any, are the one pool's that such tests use.
            let (first6, count6) = match &world.ranges {
                Some(ranges) => (0, ranges.len() as u32),
                None => (first, count),
            };
            let pool = Pool {
                first,
                count,
                first6,
                count6,
            };
            self.array("POOLS", version * MAX_EXITS + number, pool);
            for candidate in candidates {
                self.array::<Candidate<V4>>(
                    "CANDIDATES4",
                    version * MAX_CANDIDATES + first,
                    *candidate,
                );
                let flags = egress_flag::ANSWER;
                self.hash(
                    "EGRESS4",
                    candidate.address,
                    EgressAddress { flags, owner: 0 },
                );
                if world.ranges.is_none() {
                    self.range(version, first, &twin(candidate));
                }
                first += 1;
            }
        }
    }

    /// Writes egress policies into version 0 or 1, as the daemon does.
    pub(crate) fn police(&mut self, version: u32, tables: &Tables) {
        for (rule, at) in tables.rules.iter().zip(0..) {
            self.array("POLICY_RULES", version * MAX_RULES + at, *rule);
        }
        for (set, at) in tables.sets.iter().zip(0..) {
            self.array("POLICY_SETS", version * MAX_SETS + at, *set);
        }
        for (zone, set) in &tables.zones {
            self.array("POLICY_ZONES", version * MAX_ZONES + zone, *set);
        }
        for (port, at) in tables.ports.iter().zip(0..) {
            self.array("POLICY_PORTS", version * PORTS + at, *port);
        }
        for (side, prefixes) in [("FROM", &tables.from), ("TO", &tables.to)] {
            for (net, set) in prefixes {
                let length = VERSION_BITS + u32::from(net.prefix_len());
                let selected = Selected { zone: *set };
                let name = |family| format!("POLICY_{side}{family}");
                match net.addr() {
                    IpAddr::V4(address) => {
                        let data = V4::data(version, address.octets());
                        self.prefix(&name(4), &Key::new(length, data), selected);
                    }
                    IpAddr::V6(address) => {
                        let data = V6::data(version, address.octets());
                        self.prefix(&name(6), &Key::new(length, data), selected);
                    }
                }
            }
        }
        let settings = self.elements::<Settings>("SETTINGS")[version as usize];
        let rules = tables.rules.len() as u32;
        self.array("SETTINGS", version, Settings { rules, ..settings });
    }

    /// A prefix in both families' tries of this name.
    fn selects(&mut self, name: &str, version: u32, prefix: (V4, u32), zone: u32) {
        let (address, length) = prefix;
        let key = Key::new(VERSION_BITS + length, V4::data(version, address));
        self.prefix(&format!("{name}4"), &key, Selected { zone });
        let data = V6::data(version, V6::at(address));
        let key = Key::new(VERSION_BITS + TWIN_BITS + length, data);
        self.prefix(&format!("{name}6"), &key, Selected { zone });
    }

    /// A range, or an address, of IPv6.
    fn range(&mut self, version: u32, nth: u32, range: &Candidate<V6>) {
        self.array::<Candidate<V6>>("CANDIDATES6", version * MAX_CANDIDATES + nth, *range);
        let key = Key::new(VERSION_BITS + range.length, V6::data(0, range.address));
        let flags = egress_flag::ANSWER;
        self.prefix("EGRESS6", &key, EgressAddress { flags, owner: 0 });
    }

    /// Makes a version of the configuration the one that counts.
    pub(crate) fn switch(&mut self, version: u32) {
        self.array(
            "SWITCH",
            0,
            Switch {
                version,
                ..Switch::default()
            },
        );
    }

    /// Changes the settings in place.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut World)) {
        let mut world = self.world.clone();
        change(&mut world);
        self.write(0, &world);
        self.world = world;
    }

    pub(crate) fn array<T: Pod>(&mut self, name: &str, index: u32, value: T) {
        self.load.touch(name, index);
        let mut array: Array<_, T> = self.load.map_mut(name).expect(name).try_into().unwrap();
        array.set(index, value, 0).unwrap();
    }

    pub(crate) fn hash<K: Pod, T: Pod>(&mut self, name: &str, key: K, value: T) {
        let mut hash: HashMap<_, K, T> = self.load.map_mut(name).expect(name).try_into().unwrap();
        hash.insert(key, value, 0).unwrap();
    }

    /// Takes an element out of a hash.
    pub(crate) fn unhash<K: Pod, T: Pod>(&mut self, name: &str, key: K) {
        let mut hash: HashMap<_, K, T> = self.load.map_mut(name).expect(name).try_into().unwrap();
        hash.remove(&key).unwrap();
    }

    /// All elements of an array.
    pub(crate) fn elements<T: Pod>(&self, name: &str) -> Vec<T> {
        let array: Array<_, T> = self.load.map(name).expect(name).try_into().unwrap();
        array.iter().map(|element| element.unwrap()).collect()
    }

    /// An element of a per-CPU array.
    pub(crate) fn per_cpu<T: Pod>(&self, name: &str, index: u32) -> Vec<T> {
        let array = map(&self.load, name, PerCpuArray::<_, T>::try_from);
        array.get(&index, 0).unwrap().to_vec()
    }

    /// Puts a prefix into a trie.
    pub(crate) fn prefix<K: Pod, T: Pod>(&mut self, name: &str, key: &Key<K>, value: T) {
        let mut trie: LpmTrie<_, K, T> = self.load.map_mut(name).expect(name).try_into().unwrap();
        trie.insert(key, value, 0).unwrap();
    }

    /// Instructions the verifier looked at.
    pub(crate) fn verified(&self, name: &str) -> u32 {
        let program: &SchedClassifier = self.load.program(name).expect(name).try_into().unwrap();
        program
            .info()
            .unwrap()
            .verified_instruction_count()
            .unwrap()
    }

    /// A program, to attach it.
    pub(crate) fn descriptor(&self, hook: Hook) -> i32 {
        self.load.attached();
        self.load.fd(hook).as_raw_fd()
    }

    /// Replaces a slot's record.
    pub(crate) fn overwrite(&mut self, index: u32, slot: Slot<A>) {
        self.slots.set(index, slot, 0).unwrap();
    }

    /// Every record of datagrams in fragments.
    pub(crate) fn datagrams(&self) -> Vec<Datagram<V4>> {
        let records: Array<_, Datagram<V4>> = self
            .load
            .map("DATAGRAMS4")
            .expect("DATAGRAMS4")
            .try_into()
            .unwrap();
        records.iter().map(Result::unwrap).collect()
    }

    /// Frames that are held: their buffers' numbers.
    pub(crate) fn buffers(&self) -> Vec<u32> {
        let buffers: Array<_, Buffer> = self.load.map("HELD").expect("HELD").try_into().unwrap();
        (0..FRAMES as u32)
            .filter(|index| buffers.get(index, 0).unwrap().0[0] != 0)
            .collect()
    }

    /// Makes frames that are held look `age` ns old.
    pub(crate) fn rewind(&mut self, age: u64) {
        let now = Self::now();
        let mut buffers: Array<_, Buffer> =
            self.load.map_mut("HELD").expect("HELD").try_into().unwrap();
        for index in 0..FRAMES as u32 {
            let mut buffer = buffers.get(&index, 0).unwrap();
            if buffer.0[0] != 0 {
                buffer.0[0] = now - age;
                buffers.set(index, buffer, 0).unwrap();
            }
        }
    }

    /// Makes one port of an address exempt, as a resolver is.
    pub(crate) fn exempt_port(&mut self, of: Endpoint) {
        self.selects("EXEMPT", 0, (of.0, 32), u32::from(of.1));
        let mut settings = self.world.settings;
        settings.enabled = 1;
        settings.exempt = 1;
        self.array("SETTINGS", 0, settings);
    }

    /// Arms the sweep's timer; the kernel may have no memory for it at once.
    pub(crate) fn arm(&self) {
        eventually("memory for a timer", || {
            let outcome = self.try_bytes(Hook::Arm, &[0; 14], Meta::default());
            let answer = outcome.unwrap().verdict;
            let again = answer == Verdict::Other(armed::NO_MEMORY);
            assert!(again || answer == Verdict::Other(armed::DONE), "{answer:?}");
            !again
        });
    }

    /// Ends a slot's flow as the daemon does; whether it was alive.
    pub(crate) fn end(&self, slot: Reference) -> bool {
        self.end_because(slot, Cause::Operator)
    }

    /// Ends a slot's flow for a cause.
    pub(crate) fn end_because(&self, slot: Reference, cause: Cause) -> bool {
        let mut packet = vec![0; ended::OFFSET as usize];
        packet.extend(Ended::new::<A>(slot).because(cause).bytes());
        let outcome = self.try_bytes(Hook::EndFlow, &packet, Meta::default());
        outcome.unwrap().verdict == Verdict::Other(1)
    }

    /// Uses up what may be said for a long time to come.
    pub(crate) fn no_more_replies(&mut self) {
        let map = self.load.map_mut("REPLIES").unwrap();
        let mut buckets: PerCpuArray<_, [u64; 2]> = map.try_into().unwrap();
        let cpus = buckets.get(&0, 0).unwrap().len();
        let empty = PerCpuValues::try_from(vec![[u64::MAX, 0]; cpus]).unwrap();
        buckets.set(0, empty, 0).unwrap();
    }

    /// The flows that the sweep has said it ended, since the last time somebody asked.
    pub(crate) fn told(&mut self) -> Vec<Reference> {
        let map = self.load.map_mut("ENDED").unwrap();
        let mut ring = RingBuf::try_from(map).unwrap();
        let mut found = Vec::new();
        while let Some(item) = ring.next() {
            let word = |at: usize| u32::from_ne_bytes(item[at..at + 4].try_into().unwrap());
            assert_eq!((item.len(), word(8)), (16, A::VERSION));
            found.push(Reference {
                index: word(0),
                generation: word(4),
            });
        }
        found
    }

    /// How far the sweep got.
    pub(crate) fn progress(&self) -> Progress {
        self.sweeper.get(&0, 0).unwrap().progress
    }

    /// The clock of the records.
    pub(crate) fn now() -> u64 {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: writes the structure it is given.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }
}

/// Waits until something holds.
#[track_caller]
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn map<T>(load: &Lease, name: &str, typed: impl FnOnce(Map) -> Result<T, MapError>) -> T {
    typed(load.handle(name)).expect(name)
}
