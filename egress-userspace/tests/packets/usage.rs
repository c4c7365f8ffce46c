//! OBS-1: connections times time, and the most at once, as the data plane keeps them.

use egress_common::key::TCP;
use egress_common::usage::{
    Area, ERAS, Era, PERIOD, Peak, Period, Second, Seconds, UNIT, Usage, WallClock,
};

use super::{DataPlane, EGRESS, Endpoint, INSIDE, ORIGIN, Packet};
use crate::packet::{ACK, RST, SYN};
use crate::world::SECOND;

/// Longer than a tick of any kernel.
const TICK: u64 = SECOND / 50;
/// A number of five minutes of 2023.
const NUMBER: u64 = 5_666_667;

/// Makes it so long after the beginning of five minutes, in an era that has just begun or in one of long ago.
fn set(plane: &mut DataPlane, era: u64, number: u64, after: u64, since: Option<u64>) -> u64 {
    let now = DataPlane::now();
    let mut eras = [Era::default(); ERAS];
    eras[era as usize % ERAS] = Era {
        offset: (number * PERIOD + after).wrapping_sub(now),
        since: since.unwrap_or(now),
    };
    let clock = WallClock {
        era,
        eras,
        ..WallClock::default()
    };
    plane.array("WALL_CLOCK", 0, clock);
    now
}

fn usage(plane: &DataPlane) -> Usage {
    plane.count(EGRESS, ORIGIN, TCP).unwrap().usage
}

fn open(plane: &DataPlane, port: u16) -> Endpoint {
    plane.leaves(&Packet::tcp((INSIDE.0, port), ORIGIN, SYN).numbers(7, 0))
}

/// The origin says no.
fn close(plane: &DataPlane, egress: Endpoint, port: u16) {
    let no = Packet::tcp(ORIGIN, egress, RST | ACK).numbers(0, 8);
    plane.arrives(&no, (INSIDE.0, port));
}

#[test]
fn obs_1_five_minutes_of_wall_clock_time_have_their_area_and_maximum() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    let first = Period::new(3, NUMBER);
    // A hundred seconds before these five minutes end.
    let begun = set(&mut plane, 3, NUMBER, PERIOD - 100 * SECOND, None);
    let egress: Vec<Endpoint> = (1_000..1_003).map(|port| open(&plane, port)).collect();
    close(&plane, egress[1], 1_001);
    let took = DataPlane::now() - begun + TICK;
    let found = usage(&plane);
    let area = Area::from_bits(found.area);
    assert_eq!((area.period, area.level), (first, 2));
    assert_eq!(
        Peak::from_bits(found.peak),
        Peak {
            period: first,
            most: 3
        }
    );
    assert_eq!(
        Area::from_bits(found.last_area),
        Area::begun(first, 0),
        "it was made then"
    );
    // The close found three, in whatever second it was.
    let seconds = Seconds::from_bits(found.seconds);
    assert_eq!(seconds.most, 3);
    let number = NUMBER * (PERIOD / SECOND) + 200;
    let after = seconds.second.after(Second::new(3, number));
    let most = i32::try_from(took / SECOND).unwrap() + 1;
    assert!((0..=most).contains(&after), "{after}");
    // From the era's beginning on: 100 s are left of the five minutes.
    let told = area.until(100 * SECOND);
    let (least, most) = ((200 * SECOND).saturating_sub(2 * took), 200 * SECOND + took);
    assert!(
        (least.saturating_sub(4 * UNIT)..=most + 4 * UNIT).contains(&told),
        "{told}: {least} to {most}"
    );
    plane.consistent();

    let Some(era) = begun.checked_sub(900 * SECOND) else {
        println!(
            "SKIPPED: OBS-1, two periods later: this machine has run for less than 15 minutes"
        );
        return;
    };
    // Two periods later, by the same clock, one more; what was between has the level of before.
    let later = Period::new(3, NUMBER + 2);
    set(&mut plane, 3, NUMBER + 2, 200 * SECOND, Some(era));
    let before = DataPlane::now();
    open(&plane, 1_005);
    let after = DataPlane::now();
    let found = usage(&plane);
    assert_eq!(
        Area::from_bits(found.last_area),
        area,
        "the last one stands as it was"
    );
    assert_eq!(
        Peak::from_bits(found.last_peak),
        Peak {
            period: first,
            most: 3
        }
    );
    let area = Area::from_bits(found.area);
    assert_eq!((area.period, area.level), (later, 3));
    assert_eq!(
        Peak::from_bits(found.peak),
        Peak {
            period: later,
            most: 3
        }
    );
    let seconds = Seconds::from_bits(found.seconds);
    assert_eq!((seconds.most, seconds.before), (3, 2));
    // Two all the time, and one since 200 s.
    let told = area.until(PERIOD);
    let expected = 2 * PERIOD + 100 * SECOND;
    let bound = after - before + TICK + UNIT;
    assert!(told.abs_diff(expected) <= bound, "{told}, not {expected}");

    // The clock is set back: another era, whose five minutes were there before.
    let again = Period::new(4, NUMBER);
    set(&mut plane, 4, NUMBER, 10 * SECOND, None);
    close(&plane, egress[0], 1_000);
    let found = usage(&plane);
    assert_eq!(Area::from_bits(found.last_area), area);
    let now = Area::from_bits(found.area);
    assert_eq!((now.period, now.level), (again, 2));
    assert_eq!(
        Peak::from_bits(found.peak),
        Peak {
            period: again,
            most: 3
        },
        "what it began with"
    );
    plane.consistent();
}

#[test]
fn obs_1_the_sweep_takes_old_periods_along() {
    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    set(&mut plane, 0, NUMBER, 0, None);
    open(&plane, 1_000);
    plane.arm();
    let ticks = plane.progress().ticks;
    // A hundred ticks are once around.
    crate::harness::eventually("a sweep", || plane.progress().ticks > ticks + 250);
    let period = || Area::from_bits(usage(&plane).area).period;
    assert_eq!(period(), Period::new(0, NUMBER), "those of now stay");
    drop(plane);

    let Some(mut plane) = DataPlane::new() else {
        return;
    };
    set(&mut plane, 0, NUMBER, 0, None);
    open(&plane, 1_000);
    set(&mut plane, 1, NUMBER + 9, 0, None);
    plane.arm();
    crate::harness::eventually("another era", || {
        Area::from_bits(usage(&plane).area).period == Period::new(1, NUMBER + 9)
    });
    let found = usage(&plane);
    assert_eq!(Area::from_bits(found.area).level, 1);
    assert_eq!(
        Area::from_bits(found.last_area).period,
        Period::new(0, NUMBER)
    );
    assert_eq!(Peak::from_bits(found.peak).most, 1);
}
