//! Against a slow, obvious model: a set of units.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// What a host that reassembles would know.
#[derive(Clone, Debug, Default)]
struct Model {
    units: BTreeSet<u32>,
    end: Option<u32>,
}

impl Model {
    /// Unconnected runs.
    fn runs(&self) -> usize {
        self.units
            .iter()
            .filter(|unit| **unit == 0 || !self.units.contains(&(**unit - 1)))
            .count()
    }

    fn complete(&self) -> bool {
        self.end
            .is_some_and(|end| (0..end).all(|unit| self.units.contains(&unit)))
    }

    fn fit(&self, piece: Piece) -> Fit {
        let last = piece.last != 0;
        let mut part = piece.begin..piece.end;
        let contradicts_end = self
            .end
            .is_some_and(|end| piece.end > end || (last && piece.end != end));
        let beyond = last && self.units.iter().any(|unit| *unit >= piece.end);
        if part.clone().all(|unit| self.units.contains(&unit))
            && (!last || self.end == Some(piece.end))
        {
            return Fit::Duplicate;
        }
        if contradicts_end || beyond || part.any(|unit| self.units.contains(&unit)) {
            return Fit::Overlap;
        }
        let mut after = self.clone();
        after.units.extend(piece.begin..piece.end);
        if after.runs() > RUNS {
            return Fit::TooMany;
        }
        Fit::New
    }

    fn add(&mut self, piece: Piece) -> Fit {
        let fit = self.fit(piece);
        if fit == Fit::New {
            self.units.extend(piece.begin..piece.end);
            if piece.last != 0 {
                self.end = Some(piece.end);
            }
        }
        fit
    }
}

/// As the kernel does it.
fn add(seen: &mut Seen, piece: Piece) -> Fit {
    let mut survey = Survey::new(piece);
    for nth in 0..u32::from(seen.count) {
        survey.look(nth, seen.run(nth));
    }
    seen.add(&survey)
}

/// Runs that are disjoint, do not touch, and hold what the model holds.
fn agrees(seen: &Seen, model: &Model) {
    let runs = &seen.runs[..usize::from(seen.count)];
    let units: Vec<u32> = runs
        .iter()
        .flat_map(|run| u32::from(run.begin)..u32::from(run.end))
        .collect();
    let set: BTreeSet<u32> = units.iter().copied().collect();
    assert_eq!(set.len(), units.len(), "runs overlap: {seen:?}");
    assert_eq!(set, model.units);
    assert_eq!(runs.len(), model.runs(), "runs touch: {seen:?}");
    assert_eq!(u32::from(seen.end), model.end.unwrap_or(0));
    assert_eq!(seen.complete != 0, model.complete(), "{seen:?}");
}

fn any_piece(units: u32) -> impl Strategy<Value = Piece> {
    (0..units, 1..12u32, prop::bool::weighted(0.1)).prop_map(|(begin, length, last)| Piece {
        begin,
        end: begin + length,
        last: u32::from(last),
    })
}

/// A datagram of `units`, cut at random places.
fn cut(units: u32, cuts: &[u32]) -> Vec<Piece> {
    let mut places: BTreeSet<u32> = cuts.iter().map(|cut| cut % units).collect();
    places.insert(0);
    places.insert(units);
    let places: Vec<u32> = places.into_iter().collect();
    places
        .windows(2)
        .map(|pair| Piece {
            begin: pair[0],
            end: pair[1],
            last: u32::from(pair[1] == units),
        })
        .collect()
}

proptest! {
    #[test]
    fn nat_6_any_fragments_in_any_order(pieces in prop::collection::vec(any_piece(64), 0..60)) {
        let (mut seen, mut model) = (Seen::default(), Model::default());
        for piece in pieces {
            prop_assert_eq!(add(&mut seen, piece), model.add(piece), "{:?} {:?}", piece, seen);
            agrees(&seen, &model);
        }
    }

    #[test]
    fn nat_6_more_gaps_than_are_remembered(pieces in prop::collection::vec(any_piece(8_000), 0..90)) {
        let (mut seen, mut model) = (Seen::default(), Model::default());
        for piece in pieces {
            prop_assert_eq!(add(&mut seen, piece), model.add(piece), "{:?} {:?}", piece, seen);
            agrees(&seen, &model);
        }
    }

    #[test]
    fn nat_6_an_honest_datagram_is_complete_in_any_order(
        cuts in prop::collection::vec(any::<u32>(), 0..31),
        order in any::<prop::sample::Index>(),
        units in 1..8_190u32,
        shuffle: u64,
    ) {
        let mut pieces = cut(units, &cuts);
        // Fewer pieces than runs: no order can have too many gaps.
        let mut state = shuffle;
        for nth in (1..pieces.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            pieces.swap(nth, (state >> 33) as usize % (nth + 1));
        }
        let again = *order.get(&pieces);
        let mut seen = Seen::default();
        for (nth, piece) in pieces.iter().enumerate() {
            prop_assert_eq!(seen.complete, 0);
            prop_assert_eq!(add(&mut seen, *piece), Fit::New, "{}: {:?}", nth, pieces);
        }
        prop_assert_eq!(seen.complete, 1);
        prop_assert_eq!(add(&mut seen, again), Fit::Duplicate);
    }

    #[test]
    fn no_piece_is_beyond_what_a_datagram_may_be(offset in 0..0x2000u16, payload: u16, more: bool) {
        let piece = Piece::new(offset, u32::from(payload), more, 20);
        let end = u32::from(offset) * 8 + u32::from(payload);
        let possible = payload != 0 && end + 20 <= 65_535 && (!more || payload % 8 == 0);
        prop_assert_eq!(piece.is_some(), possible);
        if let Some(piece) = piece {
            prop_assert!(piece.begin < piece.end && piece.end <= 8_192);
            prop_assert_eq!(piece.end, end.div_ceil(8));
        }
    }

    #[test]
    fn a_choice_is_fair(records in prop::collection::vec((0..10u64, 0..3u8, 0..4u32, any::<bool>()), 8), awaits: bool) {
        let now = 8 * LIFETIME;
        let key = key(0, 77);
        let records: Vec<Datagram<V4>> = records
            .into_iter()
            .enumerate()
            .map(|(nth, (age, source, fate, complete))| Datagram {
                time: now - age * LIFETIME / 5 - nth as u64,
                key: self::key(source, nth as u32),
                fate,
                seen: Seen { complete: u32::from(complete), ..Seen::default() },
                ..Datagram::default()
            })
            .collect();
        let mut choice = Choice::new(now, awaits);
        for (nth, record) in records.iter().enumerate() {
            choice.look(nth as u32, &key, record);
        }
        prop_assert_eq!(choice.found, 0);
        // The model: sort what may be given up.
        let oldest = |which: &dyn Fn(&Datagram<V4>) -> bool| {
            records
                .iter()
                .enumerate()
                .filter(|(_, record)| which(record))
                .min_by_key(|(_, record)| record.time)
                .map(|(nth, _)| nth as u32 + 1)
        };
        let free = |record: &Datagram<V4>| now - record.time > LIFETIME || record.seen.complete != 0;
        let awaited = |record: &Datagram<V4>| !free(record) && record.fate == Fate::Awaited as u32;
        let own = |record: &Datagram<V4>| {
            !free(record) && record.key.source == key.source && (!awaits || awaited(record))
        };
        let share = records.iter().filter(|record| own(record)).count() as u32 >= SHARE;
        let expected = oldest(&free)
            .or_else(|| if share { oldest(&own) } else { None })
            .or_else(|| oldest(&awaited))
            .or_else(|| if awaits { None } else { oldest(&|record| !free(record)) });
        prop_assert_eq!(choice.place(), expected.unwrap_or(0), "{:?}", records);
    }
}

fn key(source: u8, identification: u32) -> DatagramKey<V4> {
    DatagramKey {
        source: [10, 0, 0, source],
        destination: [192, 0, 2, 7],
        identification,
        protocol: 17,
        ..DatagramKey::default()
    }
}

#[test]
fn a_record_is_found_until_it_expires() {
    let now = 10 * LIFETIME;
    for (age, found) in [(0, 3), (LIFETIME, 3), (LIFETIME + 1, 0)] {
        let record = Datagram {
            time: now - age,
            key: key(1, 5),
            ..Datagram::default()
        };
        let mut choice = Choice::new(now, true);
        choice.look(2, &key(1, 5), &record);
        assert_eq!(choice.found, found);
    }
    // Every part of the key counts.
    let record = Datagram {
        time: now,
        key: key(1, 5),
        ..Datagram::default()
    };
    for other in [
        key(2, 5),
        key(1, 6),
        DatagramKey {
            destination: [192, 0, 2, 8],
            ..key(1, 5)
        },
        DatagramKey {
            protocol: 6,
            ..key(1, 5)
        },
        DatagramKey {
            realm: 1,
            ..key(1, 5)
        },
    ] {
        let mut choice = Choice::new(now, true);
        choice.look(2, &other, &record);
        assert_eq!(choice.found, 0, "{other:?}");
    }
}

/// A flood of datagrams of one source, against others that are under way.
fn flood(group: &mut [Datagram<V4>], source: u8, first: u32, now: u64, fate: Fate) {
    for nth in 0..1_000 {
        let key = key(source, first + nth);
        let mut choice = Choice::new(now + u64::from(nth), fate == Fate::Awaited);
        for (way, record) in group.iter().enumerate() {
            choice.look(way as u32, &key, record);
        }
        let Some(way) = choice.place().checked_sub(1) else {
            continue;
        };
        let record = &mut group[way as usize];
        record.begin(&key);
        record.time = now + u64::from(nth);
        record.fate = fate as u32;
    }
}

#[test]
fn nat_6_a_flood_of_one_source_leaves_others_their_places() {
    for fate in [Fate::Awaited, Fate::Flow] {
        let mut group = vec![Datagram::<V4>::default(); WAYS as usize];
        let now = 10 * LIFETIME;
        for other in 0..4 {
            group[other as usize].begin(&key(10 + other, 1));
            group[other as usize].time = now;
            group[other as usize].fate = Fate::Flow as u32;
        }
        let before = group[..4].to_vec();
        flood(&mut group, 1, 100, now + 1, fate);
        assert_eq!(group[..4], before, "{fate:?}");
    }
}

#[test]
fn nat_6_later_fragments_alone_displace_nobody_who_has_a_flow() {
    let mut group = vec![Datagram::<V4>::default(); WAYS as usize];
    let now = 10 * LIFETIME;
    for (way, record) in group.iter_mut().enumerate() {
        record.begin(&key(way as u8, 1));
        record.time = now;
        record.fate = Fate::Flow as u32;
    }
    let before = group.clone();
    for source in 100..200 {
        flood(&mut group, source, 1, now + 1, Fate::Awaited);
    }
    assert_eq!(group, before);
}

#[test]
fn identifications_start_elsewhere_for_everybody() {
    let secret = Secret { k0: 1, k1: 2 };
    let mut seen = std::collections::HashSet::new();
    for origin in 0..=255 {
        let (counter, start) =
            identification::<V4>(secret, [198, 51, 100, 1], [192, 0, 2, origin], 17);
        assert!(counter < COUNTERS);
        seen.insert(start);
    }
    assert!(seen.len() > 250, "{}", seen.len());
    assert_ne!(
        identification::<V4>(secret, [1; 4], [2; 4], 17),
        identification::<V4>(Secret { k0: 3, k1: 4 }, [1; 4], [2; 4], 17)
    );
}

#[test]
fn groups_and_windows_of_each_way_are_its_own() {
    let secret = Secret { k0: 1, k1: 2 };
    for source in 0..=255 {
        let key = key(source, 9);
        assert!(key.group(secret, Direction::Out) < GROUPS);
        assert!((GROUPS..2 * GROUPS).contains(&key.group(secret, Direction::Back)));
        assert!(key.window(secret, Direction::Out) < WINDOWS);
        assert!((WINDOWS..2 * WINDOWS).contains(&key.window(secret, Direction::Back)));
    }
}
