use super::*;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// A word that is seen by others.
enum Seen<'a> {
    Plain(&'a AtomicU64),
    /// Remembers all that was ever stored.
    Log(&'a Mutex<Vec<u64>>),
    /// Lets others act between load and add, once.
    Raced(&'a AtomicU64, RefCell<Option<Box<dyn Fn() + 'a>>>),
    /// Is changed by others before each swap, by this much.
    Busy(&'a AtomicU64, Cell<u32>, u64),
}

impl Word for Seen<'_> {
    fn load(&self) -> u64 {
        match self {
            Self::Plain(word) | Self::Raced(word, _) | Self::Busy(word, ..) => word.load(SeqCst),
            Self::Log(_) => unreachable!("nobody reads a last period"),
        }
    }

    fn swap(&self, old: u64, new: u64) -> Result<(), u64> {
        match self {
            Self::Plain(word) | Self::Raced(word, _) => Word::swap(*word, old, new),
            Self::Busy(word, left, by) => {
                if left.get() > 0 {
                    left.set(left.get() - 1);
                    word.fetch_add(*by, SeqCst);
                }
                Word::swap(*word, old, new)
            }
            Self::Log(_) => unreachable!("a last period is only stored"),
        }
    }

    fn add(&self, amount: u64) -> u64 {
        match self {
            Self::Plain(word) | Self::Busy(word, ..) => word.fetch_add(amount, SeqCst),
            Self::Raced(word, other) => {
                if let Some(act) = other.take() {
                    act();
                }
                word.fetch_add(amount, SeqCst)
            }
            Self::Log(_) => unreachable!("a last period is only stored"),
        }
    }

    fn store(&self, value: u64) {
        match self {
            Self::Plain(word) | Self::Raced(word, _) | Self::Busy(word, ..) => {
                word.store(value, SeqCst);
            }
            Self::Log(log) => log.lock().unwrap().push(value),
        }
    }
}

/// The words of one count.
#[derive(Default)]
struct Record([AtomicU64; 5]);

impl Record {
    fn begun(place: Place) -> Self {
        let usage = Usage::begun(place);
        let words = [
            usage.area,
            usage.last_area,
            usage.peak,
            usage.last_peak,
            usage.seconds,
        ];
        Self(words.map(AtomicU64::new))
    }

    fn words(&self) -> Words<Seen<'_>> {
        let [area, last_area, peak, last_peak, seconds] = &self.0;
        Words {
            area: Seen::Plain(area),
            last_area: Seen::Plain(last_area),
            peak: Seen::Plain(peak),
            last_peak: Seen::Plain(last_peak),
            seconds: Seen::Plain(seconds),
        }
    }

    fn area(&self) -> Area {
        Area::from_bits(self.0[0].load(SeqCst))
    }

    fn last_area(&self) -> Area {
        Area::from_bits(self.0[1].load(SeqCst))
    }

    fn peak(&self) -> Peak {
        Peak::from_bits(self.0[2].load(SeqCst))
    }

    fn last_peak(&self) -> Peak {
        Peak::from_bits(self.0[3].load(SeqCst))
    }

    fn seconds(&self) -> Seconds {
        Seconds::from_bits(self.0[4].load(SeqCst))
    }

    /// A connection more, as the data plane enters it.
    fn open(&self, place: Place, active: u32) {
        self.words().enter(place, Change::Opened);
        self.words().raise(place.period, active);
    }

    fn close(&self, place: Place) {
        self.words().enter(place, Change::Closed);
    }
}

/// Some time of 2023, as the offset of a machine that booted then.
const BOOT: u64 = 1_700_000_000 * 1_000_000_000;
const SECOND: u64 = 1_000_000_000;

fn era(offset: u64, since: u64) -> Era {
    Era { offset, since }
}

fn place(ns: u64) -> Place {
    Place::of(0, era(BOOT, 0), ns)
}

/// What a slow and obvious model has of a period.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Truth {
    /// Connections times ns.
    area: u128,
    most: u32,
    changes: u64,
}

/// Walks through all boundaries of eras and periods, and adds up what was there between two changes.
#[derive(Default)]
struct Model {
    now: u64,
    level: u32,
    eras: Vec<Era>,
    periods: BTreeMap<(usize, u64), Truth>,
    /// Each change: when, in which era, and the level after it.
    changes: Vec<(u64, usize, u32)>,
}

impl Model {
    fn key(&self) -> (usize, u64) {
        let era = self.eras.len() - 1;
        (era, (self.now + self.eras[era].offset) / PERIOD)
    }

    fn advance(&mut self, to: u64) {
        loop {
            let (era, number) = self.key();
            let end = ((number + 1) * PERIOD - self.eras[era].offset).min(to);
            let level = self.level;
            let truth = self.periods.entry((era, number)).or_default();
            truth.area += u128::from(level) * u128::from(end - self.now);
            truth.most = truth.most.max(level);
            self.now = end;
            if end == to {
                let key = self.key();
                let truth = self.periods.entry(key).or_default();
                truth.most = truth.most.max(level);
                return;
            }
        }
    }

    fn change(&mut self, level: u32) {
        self.level = level;
        let key = self.key();
        let truth = self.periods.entry(key).or_default();
        truth.most = truth.most.max(level);
        truth.changes += 1;
        self.look();
    }

    fn look(&mut self) {
        self.changes
            .push((self.now, self.eras.len() - 1, self.level));
    }

    /// The second of the last change or look, and the most in so many before it; none where there was no such second of its era.
    fn most_in(&self, back: u64) -> Option<(Second, u32)> {
        let &(at, era, _) = self.changes.last()?;
        let means = self.eras[era];
        let second = (at + means.offset) / SECOND - back;
        let ended = self.eras.get(era + 1).map_or(u64::MAX, |next| next.since);
        let begun = (second * SECOND)
            .saturating_sub(means.offset)
            .max(means.since);
        let ended = ((second + 1) * SECOND)
            .checked_sub(means.offset)?
            .min(ended);
        if begun >= ended {
            return None;
        }
        let of_era = |change: &&(u64, usize, u32)| change.1 == era;
        let within = self.changes.iter().filter(of_era);
        let within = within.filter(|change| (begun..ended).contains(&change.0));
        let before = |change: &&(u64, usize, u32)| change.1 < era || change.0 < begun;
        let level = self
            .changes
            .iter()
            .rev()
            .find(before)
            .map_or(0, |change| change.2);
        let most = within.map(|change| change.2).fold(level, u32::max);
        Some((Second::new(era as u64, second), most))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Close,
    /// Look, without a change.
    Touch,
    /// The wall clock is set: so many seconds forward or back.
    Set(i64),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let wait = prop_oneof![
        6 => 0..20 * SECOND,
        2 => 0..10_000_000u64,
        1 => 0..4 * PERIOD,
    ];
    let step = prop_oneof![
        6 => Just(Step::Open),
        5 => Just(Step::Close),
        1 => Just(Step::Touch),
        1 => (-4_000i64..4_000).prop_map(Step::Set),
    ];
    prop::collection::vec((wait, step), 1..120)
}

proptest! {
    #[test]
    fn obs_1_areas_and_maxima_are_those_of_the_model(steps in steps(), start in 0..2 * PERIOD) {
        let mut model = Model { now: start, eras: vec![era(BOOT, 0)], ..Model::default() };
        let here = |model: &Model| {
            let newest = model.eras.len() - 1;
            Place::of(newest as u64, model.eras[newest], model.now)
        };
        let record = Record::begun(here(&model));
        let made = model.key();
        let mut used = vec![made];
        for (wait, step) in steps {
            model.advance(model.now + wait);
            if let Step::Set(by) = step {
                let last = model.eras[model.eras.len() - 1];
                let offset = last.offset.wrapping_add_signed(by * SECOND as i64);
                model.eras.push(era(offset, model.now));
                model.advance(model.now);
                // As the sweep does before two eras could be mistaken for each other.
                record.words().enter(here(&model), Change::None);
                model.look();
            } else {
                let place = here(&model);
                match step {
                    Step::Open => {
                        model.change(model.level + 1);
                        record.open(place, model.level);
                    }
                    Step::Close if model.level > 0 => {
                        model.change(model.level - 1);
                        record.close(place);
                    }
                    _ => {
                        record.words().enter(place, Change::None);
                        model.look();
                    }
                }
            }
            if used.last() != Some(&model.key()) {
                used.push(model.key());
            }
            let check = |(era, number): (usize, u64), area: Area, peak: Peak| {
                let truth = model.periods[&(era, number)];
                let means = model.eras[era];
                let newest = model.eras.len() as u64 - 1;
                assert_eq!(area.period, Period::new(era as u64, number));
                assert_eq!(area.period.era(newest), era as u64);
                // From the beginning of the period, or of its era within it, to its end, or to now.
                let begun = (number * PERIOD).max(means.since + means.offset) - means.offset;
                let ended = model.eras.get(era + 1).map_or(model.now, |next| next.since);
                let ended = ended.min((number + 1) * PERIOD - means.offset);
                let told = u128::from(area.until(ended - begun));
                assert!(
                    told.abs_diff(truth.area) <= u128::from(truth.changes * UNIT),
                    "{told} instead of {truth:?}"
                );
                assert_eq!((peak.period, peak.most), (area.period, truth.most));
            };
            check(model.key(), record.area(), record.peak());
            prop_assert_eq!(u32::from(record.area().level), model.level);
            let seconds = record.seconds();
            if let Some((second, most)) = model.most_in(0) {
                prop_assert_eq!((seconds.second, u32::from(seconds.most)), (second, most));
            }
            if let Some((_, most)) = model.most_in(1) {
                prop_assert_eq!(u32::from(seconds.before), most);
            }
            if let [.., last, _] = used[..] {
                check(last, record.last_area(), record.last_peak());
            } else {
                prop_assert_eq!(record.last_area(), Area::begun(record.area().period, 0));
            }
        }
    }

    #[test]
    fn words_hold_what_was_put_into_them(period in 0u16..1 << 14, level in 0u16..40_000, most: u32) {
        let area = Area::begun(Period(period), level);
        prop_assert_eq!(Area::from_bits(area.bits()), area);
        let peak = Peak { period: Period(period), most };
        prop_assert_eq!(Peak::from_bits(peak.bits()), peak);
        let second = Second::new(most.into(), most.into());
        let seconds = Seconds { second, most: level, before: period };
        prop_assert_eq!(Seconds::from_bits(seconds.bits()), seconds);
    }

    #[test]
    fn seconds_are_ordered_within_their_reach(
        era in 0u64..1_000, number in 1_700_000_000u64..2_100_000_000, eras in 0u64..8, by in 0i32..100_000_000,
    ) {
        let first = Second::new(era, number);
        let later = Second::new(era + eras, number + u64::from(by.unsigned_abs()));
        prop_assert_eq!(later.is_of_era(first), eras == 0);
        prop_assert_eq!((later.after(first), first.after(later)), (by, -by));
        prop_assert_eq!(first.is_of_earlier_era(later), eras > 0);
        prop_assert_eq!(later, Second::new(era + eras, number).plus(by.unsigned_abs()));
        prop_assert!(!later.is_of_earlier_era(first));
    }

    #[test]
    fn periods_are_ordered_within_their_reach(
        era in 0u64..1_000, number in 5_000_000u64..6_000_000, eras in 0u64..8, numbers in 0u64..512,
    ) {
        let first = Period::new(era, number);
        let later = Period::new(era + eras, number + numbers);
        let expected = if eras + numbers == 0 { Ordering::Equal } else { Ordering::Greater };
        prop_assert_eq!(later.order(first), expected);
        prop_assert_eq!(first.order(later), expected.reverse());
        prop_assert_eq!(first.number(number + numbers), number);
        prop_assert_eq!(first.era(era + eras), era);
        prop_assert_eq!(later.is_far_after(first), eras > 0 || numbers >= u64::from(STALE));
        prop_assert!(!first.is_far_after(later));
    }
}

#[test]
fn obs_1_forty_thousand_connections_fit_into_a_word() {
    let record = Record::begun(place(0));
    let end = PERIOD - BOOT % PERIOD - 1;
    for n in 1..=40_000 {
        record.open(place(0), n);
    }
    for _ in 0..40_000 {
        record.close(place(end));
    }
    assert_eq!(record.area().period, place(0).period);
    let told = record.area().until(end);
    assert!(told.abs_diff(40_000 * end) <= 40_000 * UNIT, "{told}");
    assert_eq!((record.area().level, record.peak().most), (0, 40_000));
    // The other way round: all open at the end.
    for n in 1..=40_000 {
        record.open(place(end), n);
    }
    assert_eq!(record.area().level, 40_000);
    let late = record.area().until(end);
    assert!(late.abs_diff(told) <= 40_000 * UNIT, "{late}, {told}");
}

#[test]
fn obs_1_threads_that_change_at_once_lose_nothing() {
    const ROUNDS: u64 = 30_000;
    let record = Record::begun(place(0));
    let (active, highest, durations) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (record, active, highest, durations) = (&record, &active, &highest, &durations);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    // All within a minute, in any order.
                    let opened = (round * 7 + thread) % 5_000 * 10_000_000;
                    let closed = opened + (round * 13 + thread) % 997 * 10_000_000;
                    let now = active.fetch_add(1, SeqCst) + 1;
                    record.open(place(opened), now);
                    highest.fetch_max(now, SeqCst);
                    record.close(place(closed));
                    active.fetch_sub(1, SeqCst);
                    let units = u64::from(place(closed).at - place(opened).at);
                    durations.fetch_add(units, SeqCst);
                }
            });
        }
    });
    assert_eq!(record.area().level, 0);
    assert_eq!(record.area().until(0) / UNIT, durations.load(SeqCst));
    assert_eq!(record.peak().most, highest.load(SeqCst));
}

#[test]
fn obs_1_threads_that_cross_periods_lose_nothing() {
    const ROUNDS: u64 = 20_000;
    // About a hundred changes a period.
    const STEP: u64 = PERIOD / 100;
    let (areas, peaks) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let record = Record::begun(place(0));
    let clock = AtomicU64::new(1);
    let (held, late) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (record, areas, peaks) = (&record, &areas, &peaks);
            let (clock, held, late) = (&clock, &held, &late);
            scope.spawn(move || {
                let words = Words {
                    area: Seen::Plain(&record.0[0]),
                    last_area: Seen::Log(areas),
                    peak: Seen::Plain(&record.0[2]),
                    last_peak: Seen::Log(peaks),
                    seconds: Seen::Plain(&record.0[4]),
                };
                for _ in 0..ROUNDS {
                    let opened = clock.fetch_add(STEP, SeqCst);
                    words.enter(place(opened), Change::Opened);
                    late.fetch_add(clock.load(SeqCst) - opened, SeqCst);
                    let closed = clock.fetch_add(STEP, SeqCst);
                    words.enter(place(closed), Change::Closed);
                    late.fetch_add(clock.load(SeqCst) - closed, SeqCst);
                    held.fetch_add(closed - opened, SeqCst);
                }
            });
        }
    });
    assert_eq!(record.area().level, 0);
    let areas = areas.into_inner().unwrap();
    assert!(areas.len() > 1_000, "{} periods", areas.len());
    let current = record.0[0].load(SeqCst);
    let all = areas.iter().chain([&current]).skip(1);
    let first = PERIOD - BOOT % PERIOD;
    // What was open when a period ended has no more than the rest of it.
    let told: u64 = Area::from_bits(areas[0]).until(first)
        + all
            .map(|bits| Area::from_bits(*bits).until(PERIOD))
            .sum::<u64>();
    // Each change is off by how late it was entered, and by a unit.
    let bound = late.load(SeqCst) + 8 * ROUNDS * UNIT;
    let held = held.load(SeqCst);
    assert!(
        told.abs_diff(held) <= bound,
        "{told} instead of {held}, {bound}"
    );
}

#[test]
fn obs_1_a_period_that_begins_between_load_and_add_has_the_change_at_its_beginning() {
    for change in [Change::Opened, Change::Closed] {
        let end = PERIOD - BOOT % PERIOD;
        let record = Record::begun(place(0));
        for n in 1..=3 {
            record.open(place(0), n);
        }
        let next = || record.words().enter(place(end), Change::None);
        let mut words = record.words();
        words.area = Seen::Raced(&record.0[0], RefCell::new(Some(Box::new(next))));
        words.enter(place(end - 1), change);
        let level = if change == Change::Opened { 4 } else { 2 };
        assert_eq!(record.area(), Area::begun(place(end).period, level));
        assert_eq!(record.last_area().level, 3);
        assert_eq!(record.last_peak().most, 3);
        assert_eq!(record.peak().most, 3, "what a period begins with");
    }
}

#[test]
fn obs_1_a_late_change_counts_from_the_beginning_of_the_period_that_is() {
    let end = PERIOD - BOOT % PERIOD;
    let record = Record::begun(place(0));
    record.open(place(end), 1);
    record.open(place(end - 5 * SECOND), 2);
    assert_eq!(record.area(), Area::begun(place(end).period, 2));
    assert_eq!(
        record.peak(),
        Peak {
            period: place(end).period,
            most: 2
        }
    );
}

#[test]
fn obs_1_a_word_that_others_change_before_every_swap_still_gets_the_change() {
    let end = PERIOD - BOOT % PERIOD;
    let record = Record::begun(place(0));
    let mut words = record.words();
    // Late changes of the period that is.
    words.area = Seen::Busy(&record.0[0], Cell::new(u32::MAX), LEVEL);
    words.enter(place(end + 7 * SECOND), Change::Opened);
    let found = record.area();
    assert_eq!(found.period, place(0).period, "nobody could begin the next");
    assert_eq!(u32::from(found.level), ATTEMPTS + 1);
    record.words().enter(place(end + 8 * SECOND), Change::None);
    assert_eq!(u32::from(record.area().level), ATTEMPTS + 1);
}

#[test]
fn obs_1_a_late_change_raises_the_second_that_it_is_of() {
    let begun = SECOND - BOOT % SECOND;
    let record = Record::begun(place(begun));
    for n in 1..=5 {
        record.open(place(begun + 10), n);
    }
    for _ in 0..4 {
        record.close(place(begun + 20));
    }
    // Another CPU is in the next second already, and one is two behind.
    record.open(place(begun + SECOND), 2);
    for n in 3..=7 {
        record.open(place(begun + SECOND - 1), n);
    }
    record.open(place(begun - 1), 8);
    let found = record.seconds();
    assert_eq!(found.second, place(begun + SECOND).second);
    assert_eq!((found.most, found.before), (2, 7));
    // The next change finds what there is by now.
    record.close(place(begun + 3 * SECOND));
    let found = record.seconds();
    assert_eq!((found.most, found.before), (8, 8));
}

#[test]
fn obs_1_a_second_that_others_change_before_every_swap_is_unknown() {
    let record = Record::begun(place(0));
    let mut words = record.words();
    words.seconds = Seen::Busy(&record.0[4], Cell::new(u32::MAX), 1);
    words.enter(place(0), Change::Opened);
    let found = record.seconds();
    assert_eq!(found.second, place(0).second);
    assert_eq!((found.most, found.before), (u16::MAX, u16::MAX));
    // Until it is over.
    record.open(place(2 * SECOND), 2);
    let found = record.seconds();
    assert_eq!((found.most, found.before), (2, 1));
}

#[test]
fn closing_what_is_not_open_changes_nothing() {
    let record = Record::begun(place(0));
    record.close(place(SECOND));
    assert_eq!(record.area(), Area::begun(place(0).period, 0));
}

#[test]
fn an_era_that_begins_within_five_minutes_has_the_rest_of_them() {
    let wall = 1_700_000_200 * SECOND;
    let place = Place::of(3, era(wall - 50 * SECOND, 40 * SECOND), 50 * SECOND);
    assert_eq!(place.period, Period::new(3, wall / PERIOD));
    assert_eq!(u64::from(place.at), 10 * SECOND / UNIT);
    // A clock that is before it began.
    let early = Place::of(3, era(wall - 50 * SECOND, 40 * SECOND), 39 * SECOND);
    assert_eq!(early.at, 0);
}
