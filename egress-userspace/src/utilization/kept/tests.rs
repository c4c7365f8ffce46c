use super::*;
use crate::dataplane::api::Protocol;
use crate::utilization::bucket::{Key, Series, Sum};
use crate::utilization::{History, Row};

fn bucket(start: i64) -> Bucket {
    let mut levels = Levels::zero();
    levels.raise(7, 9, start.unsigned_abs());
    let key = |last| Key {
        egress_ip: [192, 0, 2, last].into(),
        origin: "203.0.113.5:443".parse().unwrap(),
        protocol: Protocol::Tcp,
    };
    let series = |levels| Series {
        account: "a".into(),
        sum: Sum {
            all: 7,
            ..Sum::default()
        },
        max: 3,
        capacity: 20_000,
        whole: 40_000,
        levels,
        ..Series::default()
    };
    Bucket {
        start,
        levelled: 1,
        series: [
            (key(1), series(levels)),
            (key(2), series(Levels::default())),
        ]
        .into(),
        ..Bucket::default()
    }
}

/// The buckets whose rows have seconds.
fn told(history: &History) -> Vec<i64> {
    let mut rows: Vec<Row> = Vec::new();
    let each = &mut |row| {
        rows.push(row);
        true
    };
    history.visit("a", 0, i64::MAX, each).unwrap();
    let mut starts = Vec::new();
    for row in rows.iter().filter(|row| !row.seconds.is_empty()) {
        assert_eq!((row.egress_ip.as_str(), row.whole), ("192.0.2.1", 40_000));
        let levels = Levels::read(&row.seconds).unwrap();
        assert_eq!(i64::from(levels.all()[8]), row.start);
        starts.push(row.start);
    }
    starts.sort_unstable();
    starts
}

#[test]
fn seconds_are_kept_with_their_five_minutes_and_the_oldest_are_forgotten_first() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("utilization.db");
    let mut history = History::open(&path).unwrap();
    for start in [900, 300, 1_200, 600, 900] {
        history.save(&bucket(start), "fra01").unwrap();
    }
    assert_eq!(history.load(600), Ok(Some(bucket(600))));
    assert_eq!(told(&history), [300, 600, 900, 1_200]);

    let mut other = Connection::open(&path).unwrap();
    let mut tidied = |most| {
        let transaction = other.transaction().unwrap();
        tidy(&transaction, most).unwrap();
        transaction.commit().unwrap();
        told(&history)
    };
    assert_eq!(tidied(MOST), [300, 600, 900, 1_200]);
    // A row takes a hundred bytes and a few.
    assert_eq!(tidied(250), [900, 1_200]);
    assert_eq!(tidied(250), [900, 1_200]);
    assert_eq!(tidied(150), [1_200]);
    assert_eq!(tidied(10), [0; 0]);
    // The five minutes are still there, and may get theirs again.
    let left = history.load(900).unwrap().unwrap();
    assert_eq!((left.series.len(), left.levelled), (2, 0));
    history.save(&bucket(1_200), "fra01").unwrap();
    assert_eq!(told(&history), [1_200]);
}
