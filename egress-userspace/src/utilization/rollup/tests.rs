use std::collections::BTreeMap;

use super::*;
use crate::dataplane::api::Protocol;
use crate::utilization::{Bucket, History, Key, Series, Sum};

/// A midnight of 2023.
const MIDNIGHT: i64 = 19_700 * DAY;

fn key(last: u8) -> Key {
    Key {
        egress_ip: [192, 0, 2, last].into(),
        origin: "203.0.113.5:443".parse().unwrap(),
        protocol: Protocol::Tcp,
    }
}

/// Connections on the average and the most, in these five minutes.
fn load(start: i64) -> (u64, u64) {
    let nth = u64::try_from(start / FIVE_MINUTES).unwrap();
    (nth % 97, nth % 97 + nth % 13 + 1)
}

fn bucket(start: i64) -> Bucket {
    let (average, max) = load(start);
    let series = |times: u64, capacity| Series {
        account: "a".into(),
        sum: Sum {
            all: average * times * 300_000,
            ..Sum::default()
        },
        max: max * times,
        capacity,
        ..Series::default()
    };
    // One whose capacity changes within the hour.
    let capacity = if start % HOUR < 1_800 { 1_000 } else { 500 };
    Bucket {
        start,
        covered: Sum {
            all: 300_000,
            ..Sum::default()
        },
        series: [(key(1), series(1, 1_000)), (key(2), series(2, capacity))].into(),
        ..Bucket::default()
    }
}

/// What there is of an egress IP: start to sum, possible, and the maximum in ten-thousandths.
fn rows(history: &History, egress: &str) -> BTreeMap<i64, (u64, u64, u64)> {
    let mut found = BTreeMap::new();
    history
        .visit("a", 0, i64::MAX, &mut |row| {
            if row.egress_ip == egress {
                let fullest = row.max * 10_000 / row.capacity;
                let twice = found.insert(row.start, (row.sum, row.possible, fullest));
                assert_eq!(twice, None, "{}", row.start);
            }
            true
        })
        .unwrap();
    found
}

/// What five minutes add up to, from one time to another.
fn truth(from: i64, to: i64, egress: u8) -> (u64, u64, u64) {
    let mut all = (0, 0, 0);
    for start in (from..to).step_by(300) {
        let bucket = bucket(start);
        let series = &bucket.series[&key(egress)];
        all.0 += series.sum.all;
        all.1 += 300_000 * series.capacity;
        all.2 = all.2.max(series.max * 10_000 / series.capacity);
    }
    all
}

#[test]
fn obs_2_what_is_older_is_told_by_the_hour_and_then_by_the_day() {
    let directory = tempfile::tempdir().unwrap();
    let mut history = History::open(&directory.path().join("utilization.db")).unwrap();
    let kept = Retention {
        five_minutes: DAY,
        hours: 2 * DAY,
        days: 4 * DAY,
    };
    assert_eq!(history.longest(), Ok(Retention::default().longest()));
    // Six days and a bit.
    let end = MIDNIGHT + 6 * DAY + 2 * HOUR + 600;
    for start in (MIDNIGHT..end).step_by(300) {
        history.save(&bucket(start), "p").unwrap();
        // As a recorder does, but not each time.
        if start % 1_500 == 0 {
            history.tidy(start, &kept).unwrap();
        }
    }
    history.tidy(end, &kept).unwrap();
    assert_eq!(history.longest(), Ok(4 * DAY));
    for egress in [1, 2] {
        let found = rows(&history, &format!("192.0.2.{egress}"));
        let fine = (end - DAY) / HOUR * HOUR;
        let hours = (end - 2 * DAY) / DAY * DAY;
        let days = (end - 4 * DAY) / DAY * DAY;
        let mut expected = BTreeMap::new();
        for (from, to, length) in [(days, hours, DAY), (hours, fine, HOUR), (fine, end, 300)] {
            for start in (from..to).step_by(usize::try_from(length).unwrap()) {
                expected.insert(start, truth(start, start + length, egress));
            }
        }
        for (start, all) in &expected {
            assert_eq!(found.get(start), Some(all), "{start}");
        }
        assert_eq!(found.len(), expected.len());
    }

    // The clock is set back: an hour that is in its day by now gets more.
    let mut again = bucket(end - 6 * HOUR);
    for series in again.series.values_mut() {
        series.sum.all += 7_000_000;
    }
    history.save(&again, "p").unwrap();
    let shorter = Retention {
        five_minutes: HOUR,
        hours: HOUR,
        days: 40 * DAY,
    };
    let later = end / DAY * DAY + DAY;
    history.tidy(later, &shorter).unwrap();
    let found = rows(&history, "192.0.2.1");
    let today = end / DAY * DAY;
    let yesterday = (end - 6 * HOUR) / DAY * DAY;
    let (sum, possible, fullest) = truth(yesterday, yesterday + DAY, 1);
    assert_eq!(yesterday + DAY, today, "the test's own times");
    assert_eq!(found[&yesterday], (sum + 7_000_000, possible, fullest));
    // Of today hours are left: they begin where whole days end.
    assert_eq!(found[&today], truth(today, today + HOUR, 1));
    assert_eq!(found[&(today + 2 * HOUR)], truth(today + 2 * HOUR, end, 1));
    // Longer from now on does not bring back what was forgotten.
    history.tidy(later, &Retention::default()).unwrap();
    assert!(rows(&history, "192.0.2.1") == found);
}
