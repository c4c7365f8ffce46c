//! How a count was used: connections times time, and the most at once, in five minutes of wall-clock time (OBS-1).
//!
//! Each count has a level of its own, which follows `active`, and the area under it since the period began. Of a level
//! that changed at the times tᵢ the area until t is *level·t − Σ opened tᵢ + Σ closed tᵢ*: every change adds one number
//! to one word, in any order, and level and area never disagree. So no change waits for another, and a reader needs
//! neither `active` nor a lock. Whoever finds the word of an earlier period begins the new one by compare-and-swap and
//! keeps the old word as the last.
//!
//! Beside them stand the most connections at once in this second and in the one before ([`Seconds`]): who looks once a second
//! has the maximum of each, to add it to other servers'.
//!
//! The bound of the error: a change is entered to [`UNIT`] exact. One that is a few microseconds late and meets the next
//! period counts from its beginning on. No change is ever left out of the level.

use core::cmp::Ordering;

use crate::word::Word;

/// Length of a period, ns of wall-clock time.
pub const PERIOD: u64 = 300_000_000_000;
/// Nanoseconds of a unit, as a power of two: 4.2 ms, about a tick of the kernel's.
pub const UNIT_SHIFT: u32 = 22;
/// Nanoseconds of a unit.
pub const UNIT: u64 = 1 << UNIT_SHIFT;
/// Units of a whole period.
pub const UNITS: u32 = (PERIOD >> UNIT_SHIFT) as u32;
/// How many eras are remembered.
pub const ERAS: usize = 16;
/// How often a period is begun anew because another CPU changed the word meanwhile. Only late changes of the period
/// before do that, and whoever begins the new one.
const ATTEMPTS: u32 = 3;
/// How often a maximum is raised when other CPUs raise it too; each of them leaves a higher one.
const RAISES: u32 = 8;

/// Bits of a word: period (14), level (16), area (34).
const LEVEL_SHIFT: u32 = 34;
const PERIOD_SHIFT: u32 = 50;
const LEVEL: u64 = 1 << LEVEL_SHIFT;
/// What the area's bits hold for 0: 40,000 connections add and take away less than that in five minutes.
const ZERO: u64 = 1 << 33;
/// Bits of a period that number five minutes; above them its era.
const NUMBER_BITS: u32 = 10;
const NUMBERS: u64 = 1 << NUMBER_BITS;

const _: () = assert!(crate::port::CONNECTIONS_PER_ORIGIN < 1 << 16);
const _: () = assert!(crate::port::CONNECTIONS_PER_ORIGIN as u64 * UNITS as u64 <= ZERO - 64);
const _: () = assert!(ERAS == 1 << (64 - PERIOD_SHIFT - NUMBER_BITS));

/// Periods after which the sweep begins a new one for a count that nobody changes, so that periods can be told apart.
pub const STALE: u32 = 256;

/// From a clock that nobody sets to wall-clock time, for as long as nobody sets that.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Era {
    /// Wall-clock time since 1970 less the monotonic clock's, ns.
    pub offset: u64,
    /// When it began, ns of the monotonic clock.
    pub since: u64,
}

/// What the daemon has told of the wall clock; each time that it is set begins a new era.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallClock {
    /// The era that counts; eras are numbered from 0.
    pub era: u64,
    /// When the maps were made, ns since 1970: whose numbers of eras these are.
    pub made: u64,
    /// The last eras, e at `e % ERAS`.
    pub eras: [Era; ERAS],
}

/// Five minutes of an era, or what the era has of them: the lowest bits of both numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period(pub u16);

impl Period {
    /// The period of an era and a number of five minutes since 1970.
    #[inline(always)]
    pub const fn new(era: u64, number: u64) -> Self {
        let era = era & (ERAS as u64 - 1);
        Self((era << NUMBER_BITS | number & (NUMBERS - 1)) as u16)
    }

    /// How many eras this one is after the other; below 0 if it is before.
    #[inline(always)]
    const fn eras_after(self, other: Self) -> i32 {
        // Four bits with a sign.
        ((self.0 >> NUMBER_BITS).wrapping_sub(other.0 >> NUMBER_BITS) << 12) as i16 as i32 >> 12
    }

    /// How many times five minutes of the same era this one is after the other.
    #[inline(always)]
    const fn numbers_after(self, other: Self) -> i32 {
        (self.0.wrapping_sub(other.0) << 6) as i16 as i32 >> 6
    }

    /// Whether this is a later period than the other. They are not far apart: see [`STALE`].
    #[inline(always)]
    pub const fn order(self, other: Self) -> Ordering {
        let eras = self.eras_after(other);
        let by = if eras == 0 {
            self.numbers_after(other)
        } else {
            eras
        };
        if by > 0 {
            Ordering::Greater
        } else if by < 0 {
            Ordering::Less
        } else {
            Ordering::Equal
        }
    }

    /// Whether a count that has stayed in `other` until this period is to be taken along.
    #[inline(always)]
    pub const fn is_far_after(self, other: Self) -> bool {
        let eras = self.eras_after(other);
        eras > 0 || eras == 0 && self.numbers_after(other) >= STALE as i32
    }

    /// The era's number, if it is one of the last [`ERAS`] up to `newest`.
    pub const fn era(self, newest: u64) -> u64 {
        let back = newest.wrapping_sub((self.0 >> NUMBER_BITS) as u64) & (ERAS as u64 - 1);
        newest.wrapping_sub(back)
    }

    /// The number of five minutes since 1970, if it is not long before `newest`.
    pub const fn number(self, newest: u64) -> u64 {
        let back = newest.wrapping_sub(self.0 as u64) & (NUMBERS - 1);
        newest.wrapping_sub(back)
    }
}

/// Bits of a second's number; above them its era.
const SECOND_BITS: u32 = 28;
const SECONDS: u32 = 1 << SECOND_BITS;

/// A second of an era: the lowest bits of both numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Second(pub u32);

impl Second {
    /// The second of an era and a number of seconds since 1970.
    #[inline(always)]
    pub const fn new(era: u64, number: u64) -> Self {
        Self((era as u32) << SECOND_BITS | number as u32 & (SECONDS - 1))
    }

    /// Whether both are of one era.
    #[inline(always)]
    pub const fn is_of_era(self, other: Self) -> bool {
        (self.0 ^ other.0) >> SECOND_BITS == 0
    }

    /// How many seconds of the same era this one is after the other.
    #[inline(always)]
    pub const fn after(self, other: Self) -> i32 {
        (self.0.wrapping_sub(other.0) << (32 - SECOND_BITS)) as i32 >> (32 - SECOND_BITS)
    }

    /// So many seconds later, in the same era.
    pub const fn plus(self, by: u32) -> Self {
        let number = self.0.wrapping_add(by) & (SECONDS - 1);
        Self(self.0 & !(SECONDS - 1) | number)
    }

    /// Whether its era is before the other's. They are not far apart.
    pub const fn is_of_earlier_era(self, other: Self) -> bool {
        let eras = (self.0 >> SECOND_BITS).wrapping_sub(other.0 >> SECOND_BITS) << SECOND_BITS;
        (eras as i32) < 0
    }
}

/// The most connections at once in two seconds: one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seconds {
    /// The last second in which something changed.
    pub second: Second,
    /// The most in it, with what it began with.
    pub most: u16,
    /// The most in the second before it.
    pub before: u16,
}

impl Seconds {
    /// In place of a maximum that nobody knows: it is the period's at most.
    pub const UNKNOWN: u16 = u16::MAX;

    /// As it stands in memory.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        (self.second.0 as u64) << 32 | (self.most as u64) << 16 | self.before as u64
    }

    /// Reads a word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            second: Second((bits >> 32) as u32),
            most: (bits >> 16) as u16,
            before: bits as u16,
        }
    }

    /// With a change in a second that found `level` and had `most`, the more of before and after it. `None`: nothing is
    /// new.
    #[inline(always)]
    pub const fn with(self, second: Second, level: u16, most: u16) -> Option<Self> {
        let mut next = self;
        let by = if second.is_of_era(self.second) {
            second.after(self.second)
        } else {
            i32::MAX
        };
        if by == 0 && most > self.most {
            next.most = most;
        } else if by == -1 && most > self.before {
            // A change that is late.
            next.before = most;
        } else if by > 0 {
            next.second = second;
            next.most = most;
            // Since the last change nothing changed.
            next.before = if by == 1 { self.most } else { level };
        } else {
            return None;
        }
        Some(next)
    }
}

/// A time as counts have it: in which period, and how long after its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// In which period.
    pub period: Period,
    /// In which second.
    pub second: Second,
    /// Units since that began; at most [`UNITS`].
    pub at: u32,
}

impl Place {
    /// Where `now` (ns of the monotonic clock) is in an era.
    #[inline(always)]
    pub const fn of(era: u64, means: Era, now: u64) -> Self {
        let wall = now.wrapping_add(means.offset);
        let number = wall / PERIOD;
        let begun = number.wrapping_mul(PERIOD);
        let since = means.since.wrapping_add(means.offset);
        // An era that begins within five minutes has the rest of them.
        let begun = if since > begun { since } else { begun };
        Self {
            period: Period::new(era, number),
            second: Second::new(era, wall / 1_000_000_000),
            at: (wall.saturating_sub(begun) >> UNIT_SHIFT) as u32,
        }
    }
}

/// A level and the area under it in one period: one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Which period.
    pub period: Period,
    /// Connections.
    pub level: u16,
    /// Units at which connections were closed less those at which they were opened.
    sum: i64,
}

impl Area {
    /// A period that begins with this level.
    #[inline(always)]
    pub const fn begun(period: Period, level: u16) -> Self {
        Self {
            period,
            level,
            sum: 0,
        }
    }

    /// As it stands in memory.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        (self.period.0 as u64) << PERIOD_SHIFT
            | (self.level as u64) << LEVEL_SHIFT
            | (self.sum.wrapping_add(ZERO as i64) as u64) & (LEVEL - 1)
    }

    /// Reads a word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            period: Period((bits >> PERIOD_SHIFT) as u16),
            level: (bits >> LEVEL_SHIFT) as u16,
            sum: ((bits & (LEVEL - 1)) as i64).wrapping_sub(ZERO as i64),
        }
    }

    /// Connections times ns, from the period's beginning until so many ns later.
    pub const fn until(self, ns: u64) -> u64 {
        let all = (self.level as i64).wrapping_mul(ns as i64);
        let area = all.wrapping_add(self.sum.wrapping_mul(UNIT as i64));
        // A change of the instant that is looked at may be a tick ahead.
        if area < 0 { 0 } else { area as u64 }
    }
}

/// The most connections at once in a period: one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// Which period.
    pub period: Period,
    /// Connections.
    pub most: u32,
}

impl Peak {
    /// As it stands in memory.
    #[inline(always)]
    pub const fn bits(self) -> u64 {
        (self.period.0 as u64) << 32 | self.most as u64
    }

    /// Reads a word.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            period: Period((bits >> 32) as u16),
            most: bits as u32,
        }
    }
}

/// What a count keeps of its use: this period, and the last one in which it was used.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// See [`Area`].
    pub area: u64,
    /// That of the period before; the same period where there was none.
    pub last_area: u64,
    /// See [`Peak`].
    pub peak: u64,
    /// That of the period before.
    pub last_peak: u64,
    /// See [`Seconds`].
    pub seconds: u64,
}

const _: () = assert!(size_of::<Usage>() == 40);
const _: () = assert!(size_of::<WallClock>() == 16 + ERAS * 16);

impl Usage {
    /// That of a count that is made then.
    #[inline(always)]
    pub const fn begun(place: Place) -> Self {
        let (period, second) = (place.period, place.second);
        let area = Area::begun(period, 0).bits();
        let peak = Peak { period, most: 0 }.bits();
        let seconds = Seconds {
            second,
            most: 0,
            before: 0,
        };
        Self {
            area,
            last_area: area,
            peak,
            last_peak: peak,
            seconds: seconds.bits(),
        }
    }
}

/// What happened to a count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A connection more.
    Opened,
    /// A connection less.
    Closed,
    /// Nothing; but the period is to begin.
    None,
}

/// The words of a [`Usage`] that is in use.
#[derive(Clone, Copy, Debug)]
pub struct Words<W> {
    /// Of [`Usage::area`].
    pub area: W,
    /// Of [`Usage::last_area`].
    pub last_area: W,
    /// Of [`Usage::peak`].
    pub peak: W,
    /// Of [`Usage::last_peak`].
    pub last_peak: W,
    /// Of [`Usage::seconds`].
    pub seconds: W,
}

impl<W: Word> Words<W> {
    /// Enters a change. A level is that of `active` or below it: a connection is entered after it was counted, and taken
    /// out before it is not any more.
    #[inline(always)]
    pub fn enter(&self, place: Place, change: Change) {
        let mut at = place.at;
        let mut seen = self.area.load();
        for _ in 0..ATTEMPTS {
            let found = Area::from_bits(seen);
            match place.period.order(found.period) {
                Ordering::Equal => {
                    at = place.at;
                    break;
                }
                // Of before that period: in it from the beginning on.
                Ordering::Less => {
                    at = 0;
                    break;
                }
                Ordering::Greater => {}
            }
            let begun = Area::begun(place.period, found.level).bits();
            match self.area.swap(seen, begun) {
                Ok(()) => {
                    self.last_area.store(seen);
                    self.raise(place.period, u32::from(found.level));
                    at = place.at;
                    seen = begun;
                    break;
                }
                Err(now) => {
                    // If that was the last attempt, it is entered at the end of the period that was.
                    at = UNITS;
                    seen = now;
                }
            }
        }
        let level = Area::from_bits(seen).level;
        let (amount, later) = match change {
            Change::Opened => (LEVEL.wrapping_sub(at as u64), at as u64),
            // Nothing to close: a mistake, which must not reach the other bits.
            Change::Closed if level == 0 => return,
            Change::Closed => (
                LEVEL.wrapping_neg().wrapping_add(at as u64),
                (at as u64).wrapping_neg(),
            ),
            // So that eras can be told apart.
            Change::None => return self.tell(place.second, level, level),
        };
        let before = self.area.add(amount);
        if (before ^ seen) >> PERIOD_SHIFT != 0 {
            // A new period began in between: in it from the beginning on.
            self.area.add(later);
        }
        let level = Area::from_bits(before).level;
        let most = match change {
            Change::Opened => level.wrapping_add(1),
            Change::Closed | Change::None => level,
        };
        self.tell(place.second, level, most);
    }

    /// Enters into the maximum of a second a change that found `level`.
    #[inline(always)]
    fn tell(&self, second: Second, level: u16, most: u16) {
        let mut seen = self.seconds.load();
        for _ in 0..ATTEMPTS {
            let Some(next) = Seconds::from_bits(seen).with(second, level, most) else {
                return;
            };
            match self.seconds.swap(seen, next.bits()) {
                Ok(()) => return,
                Err(now) => seen = now,
            }
        }
        // Too many at once: nobody knows, rather than too little. Of the later second, should this change be late.
        let found = Seconds::from_bits(seen).second;
        let late = second.is_of_era(found) && second.after(found) < 0;
        let unknown = Seconds {
            second: if late { found } else { second },
            most: Seconds::UNKNOWN,
            before: Seconds::UNKNOWN,
        };
        self.seconds.store(unknown.bits());
    }

    /// Raises the maximum of a period, or of the one after it that has begun.
    #[inline(always)]
    pub fn raise(&self, period: Period, most: u32) {
        let mut seen = self.peak.load();
        for _ in 0..RAISES {
            let found = Peak::from_bits(seen);
            let begins = matches!(period.order(found.period), Ordering::Greater);
            if !begins && found.most >= most {
                return;
            }
            let period = if begins { period } else { found.period };
            match self.peak.swap(seen, Peak { period, most }.bits()) {
                Ok(()) => {
                    if begins {
                        self.last_peak.store(seen);
                    }
                    return;
                }
                Err(now) => seen = now,
            }
        }
    }
}

#[cfg(test)]
mod tests;
