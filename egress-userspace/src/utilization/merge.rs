//! Several servers' parts of one count put together: what the data center had (OBS-1).
//!
//! The maximum is that of the sums of each second. A server that does not tell its seconds counts with its most throughout,
//! so the sum of the peaks is what is left without any: more than there was, perhaps, and never less.

use std::collections::BTreeMap;

use super::history::Row;
use super::levels::{LENGTH, Levels};

/// What a data center had of a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Whole {
    /// Connections times ms.
    pub sum: u128,
    /// As many as there could have been.
    pub possible: u128,
    /// The most connections at once.
    pub max: u64,
    /// The most that its servers admit at once.
    pub capacity: u64,
}

/// Puts rows together that are alike in all dimensions. TCP and UDP stay apart, and so do lengths of time.
pub fn merge(rows: &[Row]) -> Vec<Whole> {
    if let [row] = rows {
        // Most are alone.
        let max = row.max;
        return vec![Whole {
            max,
            ..averaged(&[row], &[], false)
        }];
    }
    let mut kinds: BTreeMap<(i64, u8), Vec<&Row>> = BTreeMap::new();
    let mut untold: BTreeMap<i64, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        let length = length(row);
        if row.protocol == 0 {
            // Of a server of an older version. It goes to each protocol there is: that may be too much, and is never too
            // little.
            untold.entry(length).or_default().push(row);
        } else {
            let kind = (length, row.protocol);
            kinds.entry(kind).or_default().push(row);
        }
    }
    for length in untold.keys() {
        if !kinds.keys().any(|(one, _)| one == length) {
            kinds.insert((*length, 0), Vec::new());
        }
    }
    let mut last = None;
    let mut found = Vec::with_capacity(kinds.len());
    for ((length, _), told) in kinds {
        let none = Vec::new();
        let untold = untold.get(&length).unwrap_or(&none);
        let mut whole = averaged(&told, untold, last != Some(length));
        let more: u64 = untold.iter().map(|row| row.max).sum();
        whole.max = (most(&told) + more).min(whole.capacity.max(most(&told)));
        found.push(whole);
        last = Some(length);
    }
    found
}

/// Seconds that a row is of.
fn length(row: &Row) -> i64 {
    const GRAINS: [i64; 3] = [300, 3_600, 86_400];
    if row.length > 0 {
        return row.length;
    }
    // An older version does not say so, and nothing is known for longer than it lasts.
    let known = i64::try_from(known(row) / 1_000).unwrap_or(i64::MAX);
    let fits = GRAINS.into_iter().find(|grain| known <= *grain);
    fits.unwrap_or(GRAINS[2])
}

/// ms of which a row knows what there was.
fn known(row: &Row) -> u64 {
    row.possible.checked_div(row.capacity).unwrap_or_default()
}

/// Sums and capacities. Where one knows less of the time than another one, its average stands for the rest.
fn averaged(told: &[&Row], untold: &[&Row], with_untold: bool) -> Whole {
    let all = || told.iter().chain(untold);
    let one_by_one: u64 = told.iter().map(|row| row.capacity).sum();
    let whole = all().map(|row| row.whole.max(row.capacity)).max();
    let capacity = whole.unwrap_or_default().max(one_by_one);
    let time = all().map(|row| known(row)).max().unwrap_or_default();
    let count = if with_untold { untold } else { &[] };
    let sum = |row: &&Row| match known(row) {
        0 => u128::from(row.sum),
        known => u128::from(row.sum) * u128::from(time) / u128::from(known),
    };
    Whole {
        sum: told.iter().chain(count).map(sum).sum(),
        possible: u128::from(time) * u128::from(capacity),
        max: 0,
        capacity,
    }
}

/// The highest of the sums of each second.
fn most(rows: &[&Row]) -> u64 {
    let peaks = || rows.iter().map(|row| row.max);
    let highest = peaks().max().unwrap_or_default();
    // Another server's numbers are what it says.
    let all = peaks().fold(0, u64::saturating_add);
    if rows.len() < 2 {
        return highest;
    }
    let mut sums = [0; LENGTH];
    let mut rest = 0_u64;
    for row in rows {
        let Some(levels) = Levels::read(&row.seconds) else {
            rest = rest.saturating_add(row.max);
            continue;
        };
        for (sum, level) in sums.iter_mut().zip(levels.all()) {
            *sum += u64::from(*level);
        }
    }
    let told = sums.into_iter().max().unwrap_or_default();
    // The data plane's own maximum of one server stands.
    told.saturating_add(rest).clamp(highest, all)
}

#[cfg(test)]
mod tests;
