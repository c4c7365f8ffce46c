//! Flows found by their endpoints, from either side: the steps of `egress_common::index` on the maps.
//!
//! Nearly always the first bucket says everything. What lies beyond it is walked by `bpf_loop`, because
//! the verifier would follow every step of a loop.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_loop;
use egress_common::index::{self, Bucket, CELLS, Cell, HashKey, Line, Place, after};
use egress_common::key::{FlowKey, ReverseKey};
use egress_common::reason::Reason;
use egress_common::slot::Slot;
use egress_common::word::Word;

use crate::family::Family;
use crate::frame::between;
use crate::maps::HASH_KEY;
use crate::word::MapWord;
use crate::{globals, report};

/// How often a lock that another CPU holds is asked for: longer than any insertion takes.
const SPINS: u32 = 1 << 16;

/// One of the two indexes of a family.
pub trait Index<A: Family> {
    type Key: Copy + 'static;
    fn bucket(nth: u32) -> Option<*mut Bucket>;
    fn hash(key: &Self::Key, secret: &HashKey) -> u64;
    /// Whether the slot is of this key.
    ///
    /// # Safety
    /// `slot` is a live map value.
    unsafe fn is_of(slot: *const Slot<A>, key: &Self::Key) -> bool;
    /// This CPU's record of a walk.
    fn walk() -> Option<&'static mut Walk<Self::Key>>;
}

/// By the inside's endpoints: packets on their way out.
pub struct ByInside;
/// By the dedicated address and port: packets on their way back, and the reservation of ports.
pub struct ByEgress;

impl<A: Family> Index<A> for ByInside {
    type Key = FlowKey<A>;
    #[inline(always)]
    fn bucket(nth: u32) -> Option<*mut Bucket> {
        A::flows(nth)
    }
    #[inline(always)]
    fn hash(key: &FlowKey<A>, secret: &HashKey) -> u64 {
        key.hash(secret)
    }
    #[inline(always)]
    unsafe fn is_of(slot: *const Slot<A>, key: &FlowKey<A>) -> bool {
        // SAFETY: promised by the caller.
        unsafe { (*slot).flow == *key }
    }
    #[inline(always)]
    fn walk() -> Option<&'static mut Walk<FlowKey<A>>> {
        // SAFETY: nobody else runs on this CPU meanwhile, and a walk is over before the next begins.
        A::walk_flows().map(|record| unsafe { &mut *record })
    }
}

impl<A: Family> Index<A> for ByEgress {
    type Key = ReverseKey<A>;
    #[inline(always)]
    fn bucket(nth: u32) -> Option<*mut Bucket> {
        A::reverse(nth)
    }
    #[inline(always)]
    fn hash(key: &ReverseKey<A>, secret: &HashKey) -> u64 {
        key.hash(secret)
    }
    #[inline(always)]
    unsafe fn is_of(slot: *const Slot<A>, key: &ReverseKey<A>) -> bool {
        // SAFETY: promised by the caller.
        unsafe { (*slot).reverse() == *key }
    }
    #[inline(always)]
    fn walk() -> Option<&'static mut Walk<ReverseKey<A>>> {
        // SAFETY: as above.
        A::walk_reverse().map(|record| unsafe { &mut *record })
    }
}

/// A bucket of the map.
#[derive(Clone, Copy)]
struct MapLine(*mut Bucket);

impl Line for MapLine {
    type Word = MapWord;
    #[inline(always)]
    fn head(&self) -> MapWord {
        // SAFETY: a live map value, 64-aligned.
        unsafe { MapWord::first_of(self.0) }
    }
    #[inline(always)]
    fn cell(&self, nth: usize) -> MapWord {
        // SAFETY: `nth` is below the number of cells, each of them one aligned word.
        unsafe { MapWord::first_of((&raw mut (*self.0).cells).cast::<Cell>().add(nth)) }
    }
}

#[inline(always)]
fn place<A: Family, I: Index<A>>(key: &I::Key) -> Option<Place> {
    let secret = HASH_KEY.get(0)?;
    Some(Place::of(I::hash(key, secret), globals::buckets()))
}

#[inline(always)]
fn line<A: Family, I: Index<A>>(place: Place, distance: u32) -> Option<MapLine> {
    I::bucket(after(place.bucket, distance, globals::buckets())).map(MapLine)
}

/// Whether the slot of an entry is the key's.
#[inline(always)]
fn is_of<A: Family, I: Index<A>>(slot: u32, key: &I::Key) -> bool {
    // SAFETY: a live map value.
    let mine = A::slot(slot).is_some_and(|slot| unsafe { I::is_of(slot, key) });
    if !mine {
        // Two keys with one tag are rarer than anything that could go wrong here.
        report::count_bytes(Reason::IndexInconsistent, 0);
    }
    mine
}

/// A walk from a key's own bucket on, cell by cell. It stands in a map: on the stack it would not fit.
/// Whole words: narrower fields would be set together by stores that the verifier calls misaligned.
#[repr(C)]
pub struct Walk<K> {
    key: K,
    bucket: u64,
    tag: u64,
    /// The entry that is put, replaced or removed, and what replaces it.
    entry: u64,
    with: u64,
    /// How far it was, once it is done: a bucket's distance plus one.
    done: u64,
    /// What was found: a slot plus one.
    found: u64,
}

impl<K: Copy> Walk<K> {
    #[inline(always)]
    fn place(&self) -> Place {
        Place {
            bucket: self.bucket as u32,
            tag: self.tag as u32,
        }
    }

    #[inline(always)]
    fn begin(&mut self, place: Place, key: &K, entry: u64, with: u64) {
        self.key = *key;
        self.bucket = place.bucket as u64;
        self.tag = place.tag as u64;
        self.entry = entry;
        self.with = with;
        self.done = 0;
        self.found = 0;
    }
}

/// [`index::step`] with a bound on the cell that older kernels keep too: "not seven" is none to them.
#[inline(always)]
fn step(nth: u32) -> (u32, Option<usize>) {
    let (distance, cell) = index::step(nth);
    (distance, cell.and_then(|cell| between(cell, 0, CELLS - 1)))
}

/// Runs `step` up to `times`, on this CPU's walk of the index.
#[inline(always)]
fn walk(times: u32, step: unsafe extern "C" fn(u32, *mut c_void) -> i64) {
    // SAFETY: the callback is given nothing.
    unsafe {
        bpf_loop(times, step as *mut c_void, core::ptr::null_mut(), 0);
    }
}

/// The slot of a key, plus one; 0 if there is none.
#[inline(always)]
fn search<A: Family, I: Index<A>>(place: Place, key: &I::Key) -> u32 {
    let Some(own) = line::<A, I>(place, 0) else {
        return 0;
    };
    match index::first(&own, |entry| index::is_tagged(entry, place.tag)) {
        Some((_, entry)) if is_of::<A, I>(entry as u32, key) => entry as u32 + 1,
        None if !index::overflows(own.head().load()) => 0,
        _ => farther::<A, I>(place, key),
    }
}

/// [`search`] cell by cell: beyond the first bucket, or past an entry of another key with this tag.
#[inline(never)]
fn farther<A: Family, I: Index<A>>(place: Place, key: &I::Key) -> u32 {
    let Some(record) = I::walk() else { return 0 };
    record.begin(place, key, 0, 0);
    walk(index::steps(globals::buckets()), look_on::<A, I>);
    record.found as u32
}

unsafe extern "C" fn look_on<A: Family, I: Index<A>>(nth: u32, _: *mut c_void) -> i64 {
    let Some(record) = I::walk() else { return 1 };
    let place = record.place();
    let (distance, cell) = step(nth);
    let Some(line) = line::<A, I>(place, distance) else {
        return 1;
    };
    let Some(cell) = cell else {
        return !index::overflows(line.head().load()) as i64;
    };
    let entry = line.cell(cell).load();
    if index::is_tagged(entry, place.tag) && is_of::<A, I>(entry as u32, &record.key) {
        record.found = entry as u32 as u64 + 1;
        return 1;
    }
    0
}

/// The slot of a key, plus one; 0 if there is none.
///
/// Whoever uses it looks at the slot's state: it may have ended meanwhile.
#[inline(never)]
pub fn find<A: Family, I: Index<A>>(key: &I::Key) -> u32 {
    match place::<A, I>(key) {
        Some(place) => search::<A, I>(place, key),
        None => 0,
    }
}

/// What came of an insertion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    Done,
    /// This slot has the key.
    Exists(u32),
    /// No room within reach.
    Full,
    /// Another CPU held the lock for too long.
    Busy,
}

impl Inserted {
    #[inline(always)]
    fn of(code: u32) -> Self {
        match code {
            code::DONE => Self::Done,
            code::FULL => Self::Full,
            code::BUSY => Self::Busy,
            slot => Self::Exists(slot - code::EXISTS),
        }
    }
}

/// [`Inserted`] as a number.
mod code {
    pub(super) const DONE: u32 = 0;
    pub(super) const FULL: u32 = 1;
    pub(super) const BUSY: u32 = 2;
    /// Plus the slot.
    pub(super) const EXISTS: u32 = 3;
}

/// Inserts a key if it is not there. The slot must hold the key already.
#[inline(always)]
pub fn insert<A: Family, I: Index<A>>(key: &I::Key, slot: u32) -> Inserted {
    Inserted::of(insert_if_absent::<A, I>(key, slot))
}

#[inline(never)]
fn insert_if_absent<A: Family, I: Index<A>>(key: &I::Key, slot: u32) -> u32 {
    let Some(place) = place::<A, I>(key) else {
        return code::FULL;
    };
    let Some(own) = line::<A, I>(place, 0) else {
        return code::FULL;
    };
    if !index::try_lock(&own) && wait::<A, I>(place, key) == 0 {
        return code::BUSY;
    }
    let holder = search::<A, I>(place, key);
    let result = if holder != 0 {
        holder - 1 + code::EXISTS
    } else if let Some((cell, _)) = index::first(&own, |entry| entry == 0)
        && index::exchange(&own, cell, 0, place.entry(slot))
    {
        code::DONE
    } else {
        spill::<A, I>(place, key, slot)
    };
    index::unlock(&own);
    result
}

/// Waits for a bucket's lock and takes it; 0 if it waited too long.
#[inline(never)]
fn wait<A: Family, I: Index<A>>(place: Place, key: &I::Key) -> u32 {
    let Some(record) = I::walk() else { return 0 };
    record.begin(place, key, 0, 0);
    walk(SPINS, try_again::<A, I>);
    record.done as u32
}

unsafe extern "C" fn try_again<A: Family, I: Index<A>>(_: u32, _: *mut c_void) -> i64 {
    let Some(record) = I::walk() else { return 1 };
    let Some(own) = line::<A, I>(record.place(), 0) else {
        return 1;
    };
    if index::try_lock(&own) {
        record.done = 1;
        return 1;
    }
    0
}

/// Puts an entry into the first empty cell within reach.
#[inline(never)]
fn spill<A: Family, I: Index<A>>(place: Place, key: &I::Key, slot: u32) -> u32 {
    let Some(record) = I::walk() else {
        return code::FULL;
    };
    record.begin(place, key, place.entry(slot), 0);
    walk(index::steps(globals::buckets()), claim_or_pass::<A, I>);
    if record.done != 0 {
        return code::DONE;
    }
    let reach = index::reach(globals::buckets());
    record.done = reach as u64 + 1;
    walk(reach, unpass::<A, I>);
    code::FULL
}

unsafe extern "C" fn claim_or_pass<A: Family, I: Index<A>>(nth: u32, _: *mut c_void) -> i64 {
    let Some(record) = I::walk() else { return 1 };
    let (distance, cell) = step(nth);
    let Some(line) = line::<A, I>(record.place(), distance) else {
        return 1;
    };
    let Some(cell) = cell else {
        index::pass(&line);
        return 0;
    };
    if index::exchange(&line, cell, 0, record.entry) {
        record.done = distance as u64 + 1;
        return 1;
    }
    0
}

/// Takes the note of an entry's passing back from every bucket before the one where it was.
unsafe extern "C" fn unpass<A: Family, I: Index<A>>(distance: u32, _: *mut c_void) -> i64 {
    let Some(record) = I::walk() else { return 1 };
    if distance as u64 + 1 >= record.done {
        return 1;
    }
    if let Some(line) = line::<A, I>(record.place(), distance) {
        index::unpass(&line);
    }
    0
}

/// Takes an entry out; 0 if it is not there. Exactly this one: another slot's entry of the same key
/// stays.
#[inline(never)]
pub fn remove<A: Family, I: Index<A>>(key: &I::Key, slot: u32) -> u32 {
    match place::<A, I>(key) {
        Some(place) => exchange::<A, I>(place, key, slot, 0),
        None => 0,
    }
}

/// Hands an entry from one slot to another; 0 if it was not there.
#[inline(never)]
pub fn hand_over<A: Family, I: Index<A>>(key: &I::Key, from: u32, to: u32) -> u32 {
    match place::<A, I>(key) {
        Some(place) => exchange::<A, I>(place, key, from, place.entry(to)),
        None => 0,
    }
}

/// Replaces an entry by another one, or by nothing.
#[inline(always)]
fn exchange<A: Family, I: Index<A>>(place: Place, key: &I::Key, slot: u32, with: u64) -> u32 {
    let Some(own) = line::<A, I>(place, 0) else {
        return 0;
    };
    let entry = place.entry(slot);
    if let Some((cell, _)) = index::first(&own, |found| found == entry) {
        return index::exchange(&own, cell, entry, with) as u32;
    }
    if index::overflows(own.head().load()) {
        return exchange_farther::<A, I>(place, key, slot, with);
    }
    0
}

/// [`exchange`] beyond the first bucket.
#[inline(never)]
fn exchange_farther<A: Family, I: Index<A>>(
    place: Place,
    key: &I::Key,
    slot: u32,
    with: u64,
) -> u32 {
    let Some(record) = I::walk() else { return 0 };
    record.begin(place, key, place.entry(slot), with);
    walk(index::steps(globals::buckets()), exchange_on::<A, I>);
    if record.done == 0 {
        return 0;
    }
    if with == 0 {
        walk(index::reach(globals::buckets()), unpass::<A, I>);
    }
    1
}

unsafe extern "C" fn exchange_on<A: Family, I: Index<A>>(nth: u32, _: *mut c_void) -> i64 {
    let Some(record) = I::walk() else { return 1 };
    let (distance, cell) = step(nth);
    let Some(line) = line::<A, I>(record.place(), distance) else {
        return 1;
    };
    let Some(cell) = cell else {
        return !index::overflows(line.head().load()) as i64;
    };
    if line.cell(cell).load() == record.entry
        && index::exchange(&line, cell, record.entry, record.with)
    {
        record.done = distance as u64 + 1;
        return 1;
    }
    0
}

/// Whether an entry of this slot is there.
#[inline(always)]
pub fn holds<A: Family, I: Index<A>>(key: &I::Key, slot: u32) -> bool {
    find::<A, I>(key) == slot + 1
}
