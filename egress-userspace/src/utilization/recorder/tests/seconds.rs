//! What was in each second, of an address that servers share.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::utilization::{Row, merge};

/// Connections at a time in ms: steps of some seconds, and bursts of 20 ms that no look sees.
fn load(seed: u64, ms: i64) -> u64 {
    let number = |of: i64| {
        // SplitMix64.
        let mut z = seed.wrapping_add(of.cast_unsigned().wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let base = match number(ms / 7_300) % 4 {
        0 => 0,
        kind => number(ms / 7_300) / 4 % (60 * kind),
    };
    let second = number(1_000_000 + ms / 1_000);
    let at = i64::try_from(second >> 8 & 0x3ff).unwrap() % 980;
    let burst = second.is_multiple_of(9) && (at..at + 20).contains(&(ms % 1_000));
    base + if burst { second >> 20 & 0x7f } else { 0 }
}

impl Bench {
    /// The rows of the bucket that many after the first, as another server is told them.
    fn rows(&self, nth: i64) -> Vec<Row> {
        let start = FIRST + nth * 300;
        let mut rows = Vec::new();
        let history = History::open(&self.path).unwrap();
        let each = &mut |row| {
            rows.push(row);
            true
        };
        history.visit("a1", start, start, each).unwrap();
        rows
    }

    /// Each second of that bucket, with what it truly had.
    fn seconds(&self, nth: i64) -> Vec<(u64, u64)> {
        let start = FIRST + nth * 300;
        let history = History::open(&self.path).unwrap();
        let bucket = history.load(start).unwrap().unwrap();
        let series = bucket.series.values().next().unwrap();
        let told = series.levels.all().iter().zip(start..);
        let truth = |second| self.seconds.get(&second).copied().unwrap_or_default();
        let found: Vec<_> = told
            .map(|(told, second)| (u64::from(*told), truth(second)))
            .collect();
        assert_eq!(found.len(), 300);
        for (at, (told, truth)) in found.iter().enumerate() {
            assert!(
                told >= truth && *told <= series.max,
                "{at}: {told}, not {truth}"
            );
        }
        found
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn obs_1_two_servers_maximum_is_that_of_the_sums_of_their_seconds(seeds: [u64; 2]) {
        let benches = seeds.map(|seed| {
            let mut bench = Bench::new();
            bench.start();
            bench.run(0..631, |ms| load(seed, ms));
            bench
        });
        for (told, truth) in benches.iter().flat_map(|bench| bench.seconds(1)) {
            prop_assert_eq!(told, truth);
        }
        let [one, two] = &benches;
        let mut expected = 0;
        for second in FIRST + 300..FIRST + 600 {
            expected = expected.max(one.seconds[&second] + two.seconds[&second]);
        }
        let rows = [one.rows(1), two.rows(1)].concat();
        let found = merge(&rows);
        prop_assert_eq!(found.len(), 1);
        prop_assert_eq!((found[0].max, found[0].capacity), (expected, 40_000));
        let sum = one.truth[&(FIRST + 300)].0 + two.truth[&(FIRST + 300)].0;
        prop_assert!(found[0].sum.abs_diff(u128::from(sum)) * 1_000 <= u128::from(sum));
        prop_assert_eq!(found[0].possible, 300_000 * 40_000);
    }

    #[test]
    fn obs_1_no_second_is_told_as_less_than_it_was(
        seed: u64, killed in 32i64..250, gap in 1i64..45, by in -200i64..200,
    ) {
        let mut bench = Bench::new();
        bench.start();
        bench.run(0..killed, |ms| load(seed, ms));
        bench.kill();
        bench.run(killed..killed + gap, |ms| load(seed, ms));
        bench.start();
        bench.run(killed + gap..332, |ms| load(seed, ms));
        // What was kept before, and what was looked at after, is known.
        let (from, to) = (killed - 31 - 30, killed + gap + 1 - 30);
        for (at, (told, truth)) in (0..).zip(bench.seconds(1)) {
            prop_assert!(told == truth || (from..to).contains(&at), "{}: {}, not {}", at, told, truth);
        }
        // The wall clock is set while it runs.
        let mut bench = Bench::new();
        bench.start();
        bench.run(0..killed, |ms| load(seed, ms));
        bench.at(killed * 1_000);
        bench.origin.set(by * 1_000 + 300);
        bench.set = by * 1_000 + 300;
        bench.run(killed..700, |ms| load(seed, ms));
        bench.end(700);
        for nth in 0..2 {
            if bench.has(nth) {
                bench.seconds(nth);
            }
        }
    }
}

#[test]
fn an_address_that_is_shared_from_now_on_has_had_the_most_until_then() {
    let mut bench = Bench::new();
    bench.start();
    bench.recorder.as_mut().unwrap().shared = Some(HashMap::new());
    bench.run(0..60, |_| 3);
    // What it has is kept, and the resources are read again.
    bench.run(60..332, |_| 2);
    let told: Vec<u64> = bench.seconds(1).iter().map(|second| second.0).collect();
    assert_eq!(told[200], 2);
    assert_eq!(told[0], 3);
}
