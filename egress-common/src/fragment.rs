//! Fragments of datagrams that are translated one by one, never reassembled (NAT-6).
//!
//! The first fragment holds the ports and finds the flow; a [`Datagram`] notes it for the later ones,
//! which have addresses and an identification only. A later one that comes before its first is held.
//!
//! Of every datagram we remember which parts were seen, because a firewall behind us and the host
//! behind it may put overlapping fragments together differently: an overlap ends the datagram, as in
//! RFC 5722 and in Linux for IPv4. A fragment that lies within what was seen is a duplicate and is
//! dropped alone. Parts are counted in the eight bytes that fragment offsets are made of.

use crate::family::{Address, V4, V6};
use crate::key::Reference;
use crate::siphash::{Secret, siphash};

/// How long a datagram is remembered after its latest fragment, ns: five seconds. A network does not
/// delay one fragment longer than the others, and identifications come again.
pub const LIFETIME: u64 = 5_000_000_000;

/// Unconnected runs of a datagram that are remembered; what would be one more is dropped. The longest
/// datagram in 45 fragments of 1,500 bytes has at most 23, in whatever order they come.
pub const RUNS: usize = 32;

/// Datagrams that share a lock and compete for places.
pub const WAYS: u32 = 8;
/// Places of [`WAYS`] that one source may have while others want them.
pub const SHARE: u32 = 4;
/// Groups of [`WAYS`] datagrams, each way.
pub const GROUPS: u32 = 1_024;
/// Datagrams remembered, both ways together.
pub const DATAGRAMS: usize = 2 * (GROUPS * WAYS) as usize;

/// Frames that may be held for one source, and for those that share its window by chance. The
/// longest datagram has 45 fragments of 1,500 bytes.
pub const WINDOW: u32 = 64;
/// Windows, each way.
pub const WINDOWS: u32 = 16;
/// Frames held, both ways together.
pub const FRAMES: usize = 2 * (WINDOWS * WINDOW) as usize;
/// Longest frame that is held, bytes.
pub const FRAME: usize = 2_048;

/// Counters that identifications come from.
pub const COUNTERS: u32 = 4_096;

/// What a datagram may carry at most, header included, bytes (RFC 791).
const LONGEST: u32 = 65_535;

/// Which way a fragment travels, as an index.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the inside to the origin.
    Out = 0,
    /// From the origin to the inside.
    Back = 1,
}

/// What tells one datagram from another (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DatagramKey<A> {
    /// Source as it stands in the fragment.
    pub source: A,
    /// Destination as it stands in the fragment.
    pub destination: A,
    /// Identification; 16 bits for IPv4.
    pub identification: u32,
    /// Address space of the source (see [`crate::key::realm`]).
    pub realm: u32,
    /// Protocol of the datagram.
    pub protocol: u32,
    /// Always zero.
    pub pad: u32,
}

/// An address as words, for comparing and hashing without a loop over bytes.
pub trait Words: Address {
    /// All bytes of the address.
    fn words(&self) -> [u64; 2];
}

impl Words for V4 {
    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        [u32::from_ne_bytes(*self) as u64, 0]
    }
}

impl Words for V6 {
    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self;
        [
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        ]
    }
}

impl<A: Words> DatagramKey<A> {
    /// Whether two keys are the same.
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        let [a, b] = self.source.words();
        let [c, d] = other.source.words();
        let [e, f] = self.destination.words();
        let [g, h] = other.destination.words();
        (a ^ c) | (b ^ d) | (e ^ g) | (f ^ h) == 0
            && self.identification == other.identification
            && self.realm == other.realm
            && self.protocol == other.protocol
    }

    /// Whether two keys have the same source.
    #[inline(always)]
    pub fn of_source(&self, other: &Self) -> bool {
        let [a, b] = self.source.words();
        let [c, d] = other.source.words();
        (a ^ c) | (b ^ d) == 0 && self.realm == other.realm
    }

    /// The group a datagram belongs to. Keyed: nobody chooses whom to compete with.
    #[inline(always)]
    pub fn group(&self, secret: Secret, direction: Direction) -> u32 {
        let [a, b] = self.source.words();
        let [c, d] = self.destination.words();
        let rest = (self.identification as u64) << 32 | self.protocol as u64;
        let hash = siphash(secret, [a, b, c, d, rest, self.realm as u64]);
        direction as u32 * GROUPS + (hash as u32 & (GROUPS - 1))
    }

    /// The window whose frames are held for this source.
    #[inline(always)]
    pub fn window(&self, secret: Secret, direction: Direction) -> u32 {
        let [a, b] = self.source.words();
        let hash = siphash(secret, [a, b, self.realm as u64]);
        direction as u32 * WINDOWS + (hash as u32 & (WINDOWS - 1))
    }
}

/// Where identifications come from that are unique for an egress IP, an origin and a protocol for as
/// long as 16 bits allow (RFC 6864, section 5.3.1): which counter, and an unguessable start.
#[inline(always)]
pub fn identification<A: Words>(secret: Secret, egress: A, origin: A, protocol: u32) -> (u32, u32) {
    let [a, b] = egress.words();
    let [c, d] = origin.words();
    let hash = siphash(secret, [a, b, c, d, protocol as u64]);
    (hash as u32 & (COUNTERS - 1), (hash >> 32) as u32)
}

/// One fragment's part of its datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins, in units of eight bytes.
    pub begin: u32,
    /// Where it ends; the datagram's last unit may be incomplete.
    pub end: u32,
    /// 1 if nothing comes behind it.
    pub last: u32,
}

impl Piece {
    /// The part a fragment of `payload` bytes at `offset` (in units of eight bytes) stands for;
    /// `header` bytes of the datagram's longest length are taken by headers before it.
    ///
    /// None where no datagram can have such a fragment: empty, beyond the longest datagram (RFC 791),
    /// or incomplete units in the middle (RFC 8200, section 4.5).
    #[inline(always)]
    pub const fn new(offset: u16, payload: u32, more: bool, header: u32) -> Option<Self> {
        let begin = offset as u32;
        if payload == 0
            || payload > LONGEST
            || begin * 8 + payload + header > LONGEST
            || (more && payload & 7 != 0)
        {
            return None;
        }
        Some(Self {
            begin,
            end: begin + ((payload + 7) >> 3),
            last: !more as u32,
        })
    }
}

/// A contiguous part of a datagram, in units of eight bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// First unit.
    pub begin: u16,
    /// First unit behind it.
    pub end: u16,
}

/// What was seen of a datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Disjoint runs that do not touch, in no order.
    pub runs: [Run; RUNS],
    /// How many of them count.
    pub count: u16,
    /// Where the datagram ends; 0 until its last fragment was seen.
    pub end: u16,
    /// 1 once nothing is missing.
    pub complete: u32,
}

/// How a fragment fits what was seen.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It is new.
    New = 0,
    /// All of it was seen.
    Duplicate = 1,
    /// A part of it was seen, or it contradicts where the datagram ends.
    Overlap = 2,
    /// It would be one run too many.
    TooMany = 3,
}

/// A look at every run of a datagram, one a step: bounded wherever it runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// The fragment.
    pub piece: Piece,
    /// Set if a run holds all of it.
    pub within: u32,
    /// Set if a run overlaps it, or lies behind the end it claims.
    pub overlap: u32,
    /// The run that ends where it begins, plus one.
    pub left: u32,
    /// The run that begins where it ends, plus one.
    pub right: u32,
}

impl Survey {
    /// A survey for a fragment.
    #[inline(always)]
    pub const fn new(piece: Piece) -> Self {
        Self {
            piece,
            within: 0,
            overlap: 0,
            left: 0,
            right: 0,
        }
    }

    /// Looks at one run.
    #[inline(always)]
    pub fn look(&mut self, nth: u32, run: Run) {
        let Piece { begin, end, last } = self.piece;
        let (run_begin, run_end) = (run.begin as u32, run.end as u32);
        if begin >= run_begin && end <= run_end {
            self.within = 1;
        }
        if begin < run_end && run_begin < end {
            self.overlap = 1;
        }
        if last != 0 && run_end > end {
            self.overlap = 1;
        }
        if run_end == begin {
            self.left = nth + 1;
        }
        if run_begin == end {
            self.right = nth + 1;
        }
    }
}

impl Seen {
    /// A run by number.
    #[inline(always)]
    pub fn run(&self, nth: u32) -> Run {
        match self.runs.get(nth as usize & (RUNS - 1)) {
            Some(run) => *run,
            None => Run { begin: 0, end: 0 },
        }
    }

    #[inline(always)]
    fn put(&mut self, nth: u32, run: Run) {
        if let Some(place) = self.runs.get_mut(nth as usize & (RUNS - 1)) {
            *place = run;
        }
    }

    /// How a fragment fits after `survey` has looked at every run.
    #[inline(always)]
    pub fn fit(&self, survey: &Survey) -> Fit {
        let Piece { end, last, .. } = survey.piece;
        let known = self.end as u32;
        // What was seen of a duplicate was seen with the same end.
        if survey.within != 0 && (last == 0 || known == end) {
            return Fit::Duplicate;
        }
        if survey.overlap != 0 || (known != 0 && (end > known || (last != 0 && end != known))) {
            return Fit::Overlap;
        }
        if survey.left == 0 && survey.right == 0 && self.count as usize >= RUNS {
            return Fit::TooMany;
        }
        Fit::New
    }

    /// Adds a fragment likewise; nothing changes unless it is new.
    #[inline(always)]
    pub fn add(&mut self, survey: &Survey) -> Fit {
        let Piece { begin, end, last } = survey.piece;
        match self.fit(survey) {
            Fit::New => {}
            other => return other,
        }
        let mut run = Run {
            begin: begin as u16,
            end: end as u16,
        };
        if survey.left != 0 && survey.right != 0 {
            // It closes a gap: one run less. The last one moves into the place of the right one.
            let (left, right) = (survey.left - 1, survey.right - 1);
            run.begin = self.run(left).begin;
            run.end = self.run(right).end;
            self.put(left, run);
            self.count -= 1;
            self.put(right, self.run(self.count as u32));
        } else if survey.left != 0 {
            run.begin = self.run(survey.left - 1).begin;
            self.put(survey.left - 1, run);
        } else if survey.right != 0 {
            run.end = self.run(survey.right - 1).end;
            self.put(survey.right - 1, run);
        } else {
            self.put(self.count as u32, run);
            self.count += 1;
        }
        if last != 0 {
            self.end = end as u16;
        }
        if run.begin == 0 && run.end == self.end {
            self.complete = 1;
        }
        Fit::New
    }
}

/// What happens to the fragments of a datagram.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fate {
    /// Its first fragment has not come: later ones are held.
    #[default]
    Awaited = 0,
    /// They belong to a flow and are translated.
    Flow = 1,
    /// They take the default egress as they are.
    Pass = 2,
    /// They are dropped.
    Dropped = 3,
    /// They belong to another server, whose number stands in place of the flow's, and are sent on (FWD-5).
    Elsewhere = 4,
}

impl Fate {
    /// Reads a number; unknown ones are dropped.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 => Self::Awaited,
            1 => Self::Flow,
            2 => Self::Pass,
            4 => Self::Elsewhere,
            _ => Self::Dropped,
        }
    }
}

/// A datagram of which a fragment was seen.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagram<A> {
    /// Its latest fragment, ns of the coarse monotonic clock; 0 while the record was never used.
    pub time: u64,
    /// Which datagram.
    pub key: DatagramKey<A>,
    /// Its flow, if that is its fate.
    pub flow: Reference,
    /// [`Fate`] as a number.
    pub fate: u32,
    /// Grows each time the record is taken for another datagram: held frames name it.
    pub generation: u32,
    /// The identification it leaves with.
    pub identification: u32,
    /// Frames that were held for it.
    pub held: u32,
    /// What was seen of it.
    pub seen: Seen,
}

const _: () = assert!(size_of::<DatagramKey<V4>>() == 24);
const _: () = assert!(size_of::<DatagramKey<V6>>() == 48);
const _: () = assert!(size_of::<Datagram<V4>>() == 192);

/// A look at every record of a group, one a step: which one is this datagram's, or else may become it.
///
/// Nobody's datagram is forgotten for one whose first fragment is missing: a flood of later fragments
/// competes with its like alone. And a source that has its share of a group gives up its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Now, ns.
    pub now: u64,
    /// Set if the first fragment of the newcomer is missing.
    pub awaits: u32,
    /// The record of this very datagram, plus one.
    pub found: u32,
    /// The longest unused of those that are free, plus one, and since when.
    free: u32,
    own: u32,
    own_oldest: u32,
    awaited_oldest: u32,
    known_oldest: u32,
    pad: u32,
    free_time: u64,
    own_time: u64,
    awaited_time: u64,
    known_time: u64,
}

/// Takes note of a record if it is the oldest of its kind so far.
#[inline(always)]
fn oldest(nth: u32, time: u64, place: &mut u32, known: &mut u64) {
    if *place == 0 || time < *known {
        *place = nth + 1;
        *known = time;
    }
}

impl Choice {
    /// A choice for a newcomer.
    #[inline(always)]
    pub fn new(now: u64, awaits: bool) -> Self {
        Self {
            now,
            awaits: awaits as u32,
            ..Self::default()
        }
    }

    /// Looks at one record.
    #[inline(always)]
    pub fn look<A: Words>(&mut self, nth: u32, key: &DatagramKey<A>, record: &Datagram<A>) {
        let time = record.time;
        // A fragment on another CPU may be a tick ahead.
        let expired = time == 0 || self.now > time.saturating_add(LIFETIME);
        if expired {
            oldest(nth, time, &mut self.free, &mut self.free_time);
            return;
        }
        if record.key.same(key) {
            self.found = nth + 1;
            return;
        }
        if record.seen.complete != 0 {
            oldest(nth, time, &mut self.free, &mut self.free_time);
            return;
        }
        let awaited = record.fate == Fate::Awaited as u32;
        if (awaited || self.awaits == 0) && record.key.of_source(key) {
            self.own += 1;
            oldest(nth, time, &mut self.own_oldest, &mut self.own_time);
        }
        if awaited {
            oldest(nth, time, &mut self.awaited_oldest, &mut self.awaited_time);
        } else {
            oldest(nth, time, &mut self.known_oldest, &mut self.known_time);
        }
    }

    /// The record to take for the newcomer, plus one; 0 if there is none for it.
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        if self.free != 0 {
            self.free
        } else if self.own >= SHARE {
            self.own_oldest
        } else if self.awaited_oldest != 0 {
            self.awaited_oldest
        } else if self.awaits == 0 {
            self.known_oldest
        } else {
            0
        }
    }
}

impl<A: Words> Datagram<A> {
    /// Makes the record another datagram's.
    #[inline(always)]
    pub fn begin(&mut self, key: &DatagramKey<A>) {
        self.key = *key;
        self.flow = Reference::default();
        self.fate = Fate::Awaited as u32;
        self.generation = self.generation.wrapping_add(1);
        self.identification = 0;
        self.held = 0;
        self.seen.count = 0;
        self.seen.end = 0;
        self.seen.complete = 0;
    }
}

#[cfg(test)]
mod tests;
