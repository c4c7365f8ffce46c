//! Tells the data plane the wall clock: its five minutes are those of wall-clock time (OBS-1).
//!
//! Programs have a clock that nobody sets. What lies between it and the wall clock changes only when somebody sets that
//! one, or when the machine sleeps; then a new era begins, and what was counted until then stays with the old one.

use egress_common::usage::{ERAS, Era, WallClock};

use super::maps::Maps;
use crate::dataplane::api::DataPlaneError;

/// The map with what was told.
const MAP: &str = "WALL_CLOCK";
/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;
/// What the clocks may differ from what was told, ns: less than this is no step.
const TOLERANCE: u64 = 100_000_000;
/// The least length of an era, ns: everybody sees each of them, however often the clock is set.
const SHORTEST: u64 = 5_000_000_000;
/// How often both clocks are read to find them close together.
const READINGS: usize = 5;

/// Both clocks at one instant, ns: the one that nobody sets, and what lies between it and the wall clock.
#[derive(Clone, Copy, Debug)]
struct Reading {
    now: u64,
    offset: u64,
}

impl Reading {
    fn take() -> Self {
        let readings = (0..READINGS).map(|_| {
            let before = read(libc::CLOCK_MONOTONIC);
            let wall = read(libc::CLOCK_REALTIME);
            let after = read(libc::CLOCK_MONOTONIC);
            let middle = before + (after - before) / 2;
            (after - before, middle, wall - middle)
        });
        let best = readings.min_by_key(|(took, ..)| *took);
        let (_, now, offset) = best.unwrap_or_default();
        Self {
            now: now.unsigned_abs(),
            // A wall clock of before 1970 wraps around, here as in the data plane.
            offset: u64::from_ne_bytes(offset.to_ne_bytes()),
        }
    }
}

fn read(clock: libc::clockid_t) -> i64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes to a struct of ours; both clocks are older than any kernel we run on.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time.tv_sec.wrapping_mul(SECOND).wrapping_add(time.tv_nsec)
}

/// The time since the machine was started, ns: as the programs have it, and sleep counts.
pub(super) fn since_start() -> u64 {
    read(libc::CLOCK_BOOTTIME).unsigned_abs()
}

/// Where this process has a clock of its own for that: a line a clock, with seconds and nanoseconds (time_namespaces(7)).
const OFFSETS: &str = "/proc/self/timens_offsets";

/// Refuses to tell the programs times where this process has another [`since_start`] than they.
///
/// # Errors
/// [`DataPlaneError::Refused`] in a time namespace that says so.
pub(super) fn check() -> Result<(), DataPlaneError> {
    // Kernels without time namespaces have no such file.
    let offsets = std::fs::read_to_string(OFFSETS).unwrap_or_default();
    if is_shifted(&offsets) {
        return Err(DataPlaneError::Refused {
            reason: format!(
                "`takeover_after` needs the kernel's own clock, and this daemon is in a time namespace with another one ({OFFSETS})"
            ),
            remedy: "start it outside of that namespace, or leave `takeover_after` out".to_owned(),
        });
    }
    Ok(())
}

fn is_shifted(offsets: &str) -> bool {
    let boot = offsets
        .lines()
        .find_map(|line| line.strip_prefix("boottime"));
    boot.is_some_and(|offset| offset.split_whitespace().any(|number| number != "0"))
}

/// What the data plane was told.
pub(super) fn told(maps: &Maps) -> Result<WallClock, DataPlaneError> {
    maps.only(MAP)
}

/// Begins the first era of new maps.
pub(super) fn begin(maps: &Maps) -> Result<(), DataPlaneError> {
    maps.set(MAP, 0, first(Reading::take()))
}

/// Begins a new era if the wall clock was set; true if so.
pub(super) fn follow(maps: &Maps) -> Result<bool, DataPlaneError> {
    let Some(next) = next(&told(maps)?, Reading::take()) else {
        return Ok(false);
    };
    // First all that it means, then that it counts.
    maps.set(
        MAP,
        0,
        WallClock {
            era: next.era.wrapping_sub(1),
            ..next
        },
    )?;
    maps.set(MAP, 0, next)?;
    Ok(true)
}

fn first(reading: Reading) -> WallClock {
    let mut eras = [Era::default(); ERAS];
    eras[0] = Era {
        offset: reading.offset,
        since: reading.now,
    };
    WallClock {
        era: 0,
        made: reading.now.wrapping_add(reading.offset),
        eras,
    }
}

fn place(era: u64) -> usize {
    usize::try_from(era % ERAS as u64).unwrap_or(0)
}

/// The clock with one era more, if there is to be one.
fn next(told: &WallClock, reading: Reading) -> Option<WallClock> {
    let last = told.eras[place(told.era)];
    // Either way round: both wrap.
    let off = reading.offset.wrapping_sub(last.offset);
    let off = off.min(off.wrapping_neg());
    if off <= TOLERANCE || reading.now < last.since.saturating_add(SHORTEST) {
        return None;
    }
    let mut clock = *told;
    clock.era = told.era.wrapping_add(1);
    clock.eras[place(clock.era)] = Era {
        offset: reading.offset,
        since: reading.now,
    };
    Some(clock)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clu_3_a_clock_of_ones_own_is_noticed() {
        assert!(!is_shifted(""));
        assert!(!is_shifted(
            "monotonic           0         0\nboottime            0         0\n"
        ));
        assert!(!is_shifted(
            "monotonic          77         0\nboottime            0         0\n"
        ));
        for offset in ["100         0", "-7         0", "0       123"] {
            let text = format!("monotonic 0 0\nboottime  {offset}\n");
            assert!(is_shifted(&text), "{text}");
        }
    }

    const SECOND: u64 = 1_000_000_000;

    fn reading(now: u64, offset: u64) -> Reading {
        Reading { now, offset }
    }

    #[test]
    fn a_step_begins_an_era_and_a_drift_does_not() {
        let mut clock = first(reading(SECOND, 50 * SECOND));
        assert_eq!((clock.era, clock.made), (0, 51 * SECOND));
        assert_eq!(
            next(&clock, reading(90 * SECOND, 50 * SECOND + TOLERANCE)),
            None
        );
        for (era, offset) in [(1, 51), (2, 10), (3, 4_000)] {
            let now = 100 * era * SECOND;
            let stepped = next(&clock, reading(now, offset * SECOND)).unwrap();
            assert_eq!(stepped.era, era);
            let means = stepped.eras[place(era)];
            assert_eq!((means.since, means.offset), (now, offset * SECOND));
            assert_eq!(
                stepped.eras[..place(era)],
                clock.eras[..place(era)],
                "as they were"
            );
            // Not again at once.
            let soon = reading(now + SHORTEST - 1, 9 * SECOND);
            assert_eq!(next(&stepped, soon), None);
            clock = stepped;
        }
        let before_1970 = 0_u64.wrapping_sub(7 * SECOND);
        let stepped = next(&clock, reading(900 * SECOND, before_1970)).unwrap();
        assert_eq!(stepped.eras[4].offset, before_1970);
        let same = reading(990 * SECOND, before_1970.wrapping_add(2));
        assert_eq!(next(&stepped, same), None);
    }

    #[test]
    fn both_clocks_are_read_at_one_instant() {
        let (one, other) = (Reading::take(), Reading::take());
        assert!(other.now >= one.now);
        assert!(one.offset.abs_diff(other.offset) < SECOND);
    }
}
