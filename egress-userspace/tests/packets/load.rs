//! Loaded programs with their maps, lent to one test after another.
//!
//! Most of a test's time would be the verifier's, which finds the same every time. So tests whose worlds have the
//! same sizes use the same load, one after the other.
//!
//! Promises: whoever is lent a load finds every map as it was when the load was made ([`crate::contents`]), and the
//! sweep's timer stopped. Not lent again is a load whose programs were attached, because packets may still come, and
//! neither is the load of a test that failed.

use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use aya::maps::{Array, Map, MapData, RingBuf};
use aya::programs::{ProgramFd, SchedClassifier};
use aya::{Ebpf, EbpfLoader, Pod};
use egress_common::clock::Moment;
use egress_common::count::Count;
use egress_common::family::{V4, V6};
use egress_common::free::{self, FreeList};
use egress_common::index::buckets;
use egress_common::slot::Slot;

use crate::contents::{Contents, data, is_constant, scribble};
use crate::family::Family;
use crate::harness::{DataPlane, Hook, LOAD_ID, eventually, permitted};
use crate::packet::{ACK, Packet};
use crate::world::{self, World};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/egress"));

/// Loads that nobody uses, the one that was used last at the end.
static IDLE: Mutex<Vec<Load>> = Mutex::new(Vec::new());

/// How many of them are kept: each has some 30 MB of maps.
const KEPT: usize = 24;

/// Files that may be open: a load has about seventy, and the usual limit is 1,024.
const OPEN_FILES: u64 = 16_384;
static FILES: Once = Once::new();

/// Raises the limit of open files, as far as that is allowed.
fn allow_files() {
    let limit = libc::rlimit {
        rlim_cur: OPEN_FILES,
        rlim_max: OPEN_FILES,
    };
    let mut now = limit;
    // SAFETY: both calls read or write the structure they are given.
    unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut now);
        if now.rlim_cur < OPEN_FILES && libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) != 0
        {
            now.rlim_cur = now.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const now);
        }
    }
}

/// Large arrays that programs only read: of these only those elements are put back that the harness has written.
const CONFIGURATION: [&str; 8] = [
    "ZONES",
    "POOLS",
    "CANDIDATES4",
    "CANDIDATES6",
    "POLICY_ZONES",
    "POLICY_PORTS",
    "POLICY_SETS",
    "POLICY_RULES",
];

/// What of a world cannot be changed once the programs are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    max_flows: u32,
    max_origins: u32,
    lists: u32,
    counter_lists: u32,
    mark_mask: u32,
    accelerate: bool,
}

impl Sizes {
    fn of(world: &World) -> Self {
        Self {
            max_flows: world.max_flows,
            max_origins: world.max_origins,
            lists: world.lists,
            counter_lists: world.counter_lists(),
            mark_mask: world.mark_mask,
            accelerate: world.accelerate,
        }
    }
}

/// Programs and maps.
struct Load {
    sizes: Sizes,
    ebpf: Ebpf,
    programs: Vec<(Hook, ProgramFd)>,
    beginning: Vec<Contents>,
    /// Maps of the configuration, and elements of theirs that were written.
    written: Vec<(&'static str, u32)>,
    /// The sweep's timer may run.
    armed: bool,
}

/// A load in use; given back when it is dropped.
pub(crate) struct Lease {
    load: Option<Load>,
    /// Packets may come after the test.
    attached: AtomicBool,
    armed: AtomicBool,
}

impl Lease {
    /// The programs for worlds of this one's sizes, with maps that nobody has configured.
    pub(crate) fn of(world: &World) -> Self {
        let sizes = Sizes::of(world);
        let idle = {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            let place = idle.iter().rposition(|load| load.sizes == sizes);
            place.map(|place| idle.remove(place))
        };
        let load = match idle {
            Some(mut load) => {
                load.put_back();
                load
            }
            None => Load::new(world),
        };
        Self {
            load: Some(load),
            attached: AtomicBool::new(false),
            armed: AtomicBool::new(false),
        }
    }

    /// Makes every map what it was in the beginning.
    fn put_back(&mut self) {
        let armed = self.armed.load(Ordering::Relaxed);
        let load = self.load.as_mut().expect("until it is dropped");
        load.armed |= armed;
        load.put_back();
    }

    /// An element of an array is about to be written.
    pub(crate) fn touch(&mut self, name: &str, n: u32) {
        let load = self.load.as_mut();
        load.expect("until it is dropped").touch(name, n);
    }

    fn load(&self) -> &Load {
        self.load.as_ref().expect("until it is dropped")
    }

    /// A program.
    pub(crate) fn fd(&self, hook: Hook) -> BorrowedFd<'_> {
        if hook == Hook::Arm {
            self.armed.store(true, Ordering::Relaxed);
        }
        let mut programs = self.load().programs.iter();
        let (_, program) = programs.find(|(of, _)| *of == hook).unwrap();
        program.as_fd()
    }

    /// A program is attached: packets may come after the test.
    pub(crate) fn attached(&self) {
        self.attached.store(true, Ordering::Relaxed);
    }

    /// A map, to be kept for as long as one likes.
    pub(crate) fn handle(&self, name: &str) -> Map {
        let map = self.load().ebpf.map(name).expect(name);
        let fd = data(map).fd().as_fd().try_clone_to_owned().expect(name);
        Map::from_map_data(MapData::from_fd(fd).expect(name)).expect(name)
    }
}

impl Deref for Lease {
    type Target = Ebpf;

    fn deref(&self) -> &Ebpf {
        &self.load().ebpf
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Ebpf {
        let load = self.load.as_mut();
        &mut load.expect("until it is dropped").ebpf
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.attached.load(Ordering::Relaxed) || std::thread::panicking() {
            return;
        }
        if let Some(load) = &mut self.load {
            load.armed |= self.armed.load(Ordering::Relaxed);
        }
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        idle.extend(self.load.take());
        let more = idle.len().saturating_sub(KEPT);
        // The kernel takes its time to free the maps; nobody waits for that.
        drop(idle.drain(..more));
    }
}

impl Load {
    /// Loads the programs.
    fn new(world: &World) -> Self {
        FILES.call_once(allow_files);
        let (buckets, accelerate) = (buckets(world.max_flows), u32::from(world.accelerate));
        let sizes = [
            ("FLOWS", buckets),
            ("REVERSE", buckets),
            ("SLOTS", world.max_flows),
            ("FREE_SLOTS", world.lists),
            ("ORIGINS", world.max_origins),
            ("COUNTS", world.max_origins),
            ("FREE_COUNTS", world.counter_lists()),
        ];
        let sizes: Vec<(String, u32)> = ["4", "6"]
            .iter()
            .flat_map(|family| sizes.map(|(name, size)| (format!("{name}{family}"), size)))
            .collect();
        let mut loader = EbpfLoader::new();
        loader
            .override_global("MARK_MASK", &world.mark_mask, true)
            .override_global("MAX_FLOWS", &world.max_flows, true)
            .override_global("MAX_ORIGINS", &world.max_origins, true)
            .override_global("LISTS", &world.lists, true)
            .override_global("ACCELERATE", &accelerate, true)
            .override_global("LOAD_ID", &LOAD_ID, true)
            .override_global("BUCKETS", &buckets, true);
        // Soon full, and large enough for what a test writes.
        loader.map_max_entries("FLOW_LOG", 524_288);
        for (name, size) in &sizes {
            loader.map_max_entries(name, *size);
        }
        let mut ebpf = loader.load(OBJECT).expect("the object fits this kernel");
        let mut programs = Vec::new();
        for (hook, name) in Hook::ALL {
            let program: &mut SchedClassifier =
                ebpf.program_mut(name).expect(name).try_into().expect(name);
            if let Err(error) = program.load() {
                // The verifier's reason is at the end of its log.
                let message = format!("{name}: {error:?}");
                let tail = message.len().saturating_sub(2_000);
                panic!("{name}: {}", message.get(tail..).unwrap_or(&message));
            }
            programs.push((hook, program.fd().unwrap().try_clone().unwrap()));
        }
        fill::<V4>(&mut ebpf, world);
        fill::<V6>(&mut ebpf, world);
        let beginning = ebpf.maps().map(|(name, map)| Contents::of(name, map));
        Self {
            sizes: Sizes::of(world),
            beginning: beginning.collect(),
            ebpf,
            programs,
            written: Vec::new(),
            armed: false,
        }
    }

    /// Makes every map what it was in the beginning.
    fn put_back(&mut self) {
        self.disarm();
        let Self {
            ebpf,
            beginning,
            written,
            ..
        } = self;
        for contents in beginning {
            let name = contents.name();
            let map = ebpf.map_mut(name).unwrap();
            if CONFIGURATION.contains(&name) {
                let elements = written.iter().filter(|(of, _)| *of == name);
                contents.put_back_elements(map, elements.map(|(_, n)| *n));
            } else {
                contents.put_back(map);
            }
        }
        written.clear();
    }

    /// Stops the sweep's timer, and waits for a tick that goes on.
    fn disarm(&mut self) {
        if !std::mem::take(&mut self.armed) {
            return;
        }
        // With the element that it is in, the kernel takes away the timer.
        let name = "SWEEPER";
        let sweeper = self.beginning.iter().find(|of| of.name() == name).unwrap();
        sweeper.put_back_elements(self.ebpf.map(name).unwrap(), [0]);
        // This is `synchronize_rcu()` by another name, and a tick is inside an RCU read-side section.
        // SAFETY: takes two integers and no memory.
        let status =
            unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
        assert_eq!(status, 0, "waiting for the timer");
    }

    /// What all maps hold.
    fn contents(&self) -> Vec<Contents> {
        let maps = self.ebpf.maps();
        maps.map(|(name, map)| Contents::of(name, map)).collect()
    }

    /// An element is about to be written by the harness.
    fn touch(&mut self, name: &str, n: u32) {
        if let Some(name) = CONFIGURATION.iter().find(|of| **of == name) {
            self.written.push((name, n));
        }
    }
}

/// All records of a family on their free lists, as the daemon puts them when it makes the maps.
fn fill<A: Family>(ebpf: &mut Ebpf, world: &World)
where
    Slot<A>: Pod,
    Count<A>: Pod,
{
    let own = |name: &str| format!("{name}{}", A::SUFFIX);
    let slot = |next| Slot::<A> {
        last_seen: Moment(next),
        ..Slot::default()
    };
    let slots = members(world.max_flows, world.lists);
    list(ebpf, &own("SLOTS"), &slots, slot);
    heads(ebpf, &own("FREE_SLOTS"), &slots, world.lists);
    let count = |next| Count::<A> {
        next,
        ..Count::default()
    };
    let counts = members(world.max_origins, world.lists);
    list(ebpf, &own("COUNTS"), &counts, count);
    heads(ebpf, &own("FREE_COUNTS"), &counts, world.counter_lists());
}

/// Which records are on which list.
fn members(total: u32, lists: u32) -> Vec<Vec<u32>> {
    let of = |list| (0..total).filter(move |index| free::home(*index, lists) == list);
    (0..lists).map(|list| of(list).collect()).collect()
}

/// Links the records of each list.
fn list<T: Pod>(ebpf: &mut Ebpf, name: &str, lists: &[Vec<u32>], linked: impl Fn(u32) -> T) {
    let mut records: Array<_, T> = ebpf.map_mut(name).expect(name).try_into().unwrap();
    for list in lists {
        for (nth, index) in list.iter().enumerate() {
            let next = *list.get(nth + 1).unwrap_or(&free::NONE);
            records.set(*index, linked(next), 0).unwrap();
        }
    }
}

/// The lists' beginnings, as many as there are.
fn heads(ebpf: &mut Ebpf, name: &str, lists: &[Vec<u32>], there: u32) {
    let mut heads: Array<_, FreeList> = ebpf.map_mut(name).expect(name).try_into().unwrap();
    for (nth, list) in (0..there).zip(lists) {
        let head = FreeList {
            first: *list.first().unwrap_or(&free::NONE),
            tag: 0,
            available: list.len() as u64,
        };
        heads.set(nth, head, 0).unwrap();
    }
}

#[test]
fn whoever_is_lent_a_load_finds_nothing_of_what_others_left() {
    if !permitted() {
        return;
    }
    let mut load = Load::new(&World::default());
    assert!(load.contents() == load.beginning, "reading changes nothing");
    let maps = load.ebpf.maps();
    let written = maps.filter(|(name, map)| scribble(name, map));
    let written: Vec<String> = written.map(|(name, _)| name.to_owned()).collect();
    for name in CONFIGURATION {
        let entries = data(load.ebpf.map(name).unwrap())
            .info()
            .unwrap()
            .max_entries();
        (0..entries).for_each(|n| load.touch(name, n));
    }
    let untouched: Vec<&str> = load
        .ebpf
        .maps()
        .map(|(name, _)| name)
        .filter(|name| !written.iter().any(|other| other == name))
        .collect();
    let known = |name: &&str| is_constant(name) || ["ENDED", "EVENTS", "FLOW_LOG"].contains(name);
    assert!(untouched.iter().all(known), "{untouched:?}");
    for (name, map) in load
        .ebpf
        .maps()
        .filter(|(_, map)| matches!(map, Map::Array(_)))
    {
        let before = load.beginning.iter().find(|of| of.name() == name).unwrap();
        assert!(
            untouched.contains(&name) || Contents::of(name, map) != *before,
            "{name} is as before"
        );
    }
    load.put_back();
    for (now, before) in load.contents().iter().zip(&load.beginning) {
        assert!(now == before, "{}", now.name());
    }
}

#[test]
fn whoever_is_lent_a_load_hears_nothing_that_others_were_to_hear() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let messages = |plane: &mut DataPlane| {
        let mut ring = RingBuf::try_from(plane.load.map_mut("EVENTS").unwrap()).unwrap();
        std::iter::from_fn(|| ring.next().map(drop)).count()
    };
    let segment: Packet = Packet::tcp(world::INSIDE, world::ORIGIN, ACK);
    plane.answered(&segment);
    assert_eq!(messages(&mut plane), 1, "what is refused is told of");
    plane.answered(&segment);
    plane.load.put_back();
    assert_eq!(messages(&mut plane), 0);
    let load = plane.load.load();
    assert!(load.contents() == load.beginning, "nor anything else");
}

#[test]
fn whoever_is_lent_a_load_is_alone_with_it() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let Some(other) = DataPlane::new() else {
        return;
    };
    plane.arm();
    eventually("the sweep goes on", || plane.progress().ticks > 2);
    plane.load.put_back();
    other.arm();
    // As long as it would have taken for several ticks more.
    eventually("another sweep goes on", || other.progress().ticks > 5);
    let load = plane.load.load();
    assert!(load.contents() == load.beginning, "the sweep is over");
}
