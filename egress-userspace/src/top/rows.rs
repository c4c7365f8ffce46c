//! Tables of a snapshot: what stands in each cell, and by what it is sorted.

use std::cmp::Ordering;

use super::keys::{Shown, Table};
use super::{Rates, Snapshot};

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell {
    /// A name: to the left, sorted by its letters.
    Text(String),
    /// A figure: to the right, sorted by its value.
    Figure(f64, String),
}

impl Cell {
    /// What is shown.
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Figure(_, text) => text,
        }
    }

    /// The larger, or the earlier in the alphabet, first.
    fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Self::Figure(one, _), Self::Figure(other, _)) => other.total_cmp(one),
            (one, other) => one.text().cmp(other.text()),
        }
    }
}

/// A table: the names of its columns, and its rows.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Names of columns.
    pub header: Vec<&'static str>,
    /// A cell for each.
    pub rows: Vec<Vec<Cell>>,
}

const RATES: [&str; 3] = ["NEW/S", "PKT/S", "BYTE/S"];

/// The table that is shown, filtered and sorted.
pub fn of(snapshot: &Snapshot, shown: &Shown) -> Rows {
    let mut rows = all(snapshot, shown.table);
    let wanted = shown.filter.to_lowercase();
    rows.rows.retain(|row| {
        wanted.is_empty()
            || row
                .iter()
                .any(|cell| cell.text().to_lowercase().contains(&wanted))
    });
    if let Some(column) = shown.sort {
        rows.rows
            .sort_by(|one, other| match (one.get(column), other.get(column)) {
                (Some(one), Some(other)) => one.compare(other),
                _ => Ordering::Equal,
            });
    }
    if shown.ascending {
        rows.rows.reverse();
    }
    rows
}

/// A whole table, in the order of the snapshot.
pub fn all(snapshot: &Snapshot, table: Table) -> Rows {
    match table {
        Table::Origins => Rows {
            header: with_rates(&[
                "EGRESS IP",
                "ORIGIN",
                "PROTO",
                "ACTIVE",
                "PEAK",
                "CAP",
                "FULL",
                "REFUSED",
            ]),
            rows: snapshot
                .origins
                .iter()
                .map(|row| {
                    let cells = vec![
                        text(&row.egress_ip),
                        text(&row.origin),
                        text(&row.protocol),
                        count(row.active),
                        count(row.peak),
                        count(row.capacity),
                        percent(row.utilization),
                        count(row.refused),
                    ];
                    and_rates(cells, row.rates)
                })
                .collect(),
        },
        Table::Addresses => Rows {
            header: with_rates(&["EGRESS IP", "POOL", "ACTIVE", "CAP", "FULLEST", "DRAINS"]),
            rows: snapshot
                .egress_ips
                .iter()
                .map(|row| {
                    let cells = vec![
                        text(&row.egress_ip),
                        text(&row.pool),
                        count(row.active),
                        count(row.capacity),
                        percent(row.utilization),
                        text(&if row.draining { "yes" } else { "" }),
                    ];
                    and_rates(cells, row.rates)
                })
                .collect(),
        },
        Table::Pools => Rows {
            header: with_rates(&["POOL", "ADDRESSES", "ACTIVE", "FULLEST"]),
            rows: snapshot
                .pools
                .iter()
                .map(|row| {
                    let cells = vec![
                        text(&row.pool),
                        count(row.addresses),
                        count(row.active),
                        percent(row.utilization),
                    ];
                    and_rates(cells, row.rates)
                })
                .collect(),
        },
        Table::Refusals => Rows {
            header: vec!["REASON", "PACKETS", "PKT/S"],
            rows: snapshot
                .refusals
                .iter()
                .map(|row| vec![text(&row.reason), count(row.packets), rate(row.per_s)])
                .collect(),
        },
    }
}

fn with_rates(header: &[&'static str]) -> Vec<&'static str> {
    header.iter().chain(&RATES).copied().collect()
}

fn and_rates(mut cells: Vec<Cell>, rates: Rates) -> Vec<Cell> {
    cells.extend([rates.new_per_s, rates.packets_per_s, rates.bytes_per_s].map(rate));
    cells
}

/// Without what a terminal would take for more than letters: names are other people's.
fn text(value: &impl ToString) -> Cell {
    let text = value.to_string();
    Cell::Text(text.chars().filter(|letter| !letter.is_control()).collect())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "counts of connections and packets are far below 2^53"
)]
fn count(count: u64) -> Cell {
    Cell::Figure(count as f64, count.to_string())
}

fn percent(percent: f64) -> Cell {
    Cell::Figure(percent, format!("{percent:.2} %"))
}

fn rate(rate: f64) -> Cell {
    Cell::Figure(rate, short(rate))
}

/// A figure in four letters or so: `12`, `3.4k`, `56M`.
pub fn short(figure: f64) -> String {
    let (mut figure, mut unit) = (figure, "");
    for larger in ["k", "M", "G", "T"] {
        if figure < 999.5 {
            break;
        }
        figure /= 1_000.0;
        unit = larger;
    }
    if figure == 0.0 {
        "0".to_owned()
    } else if figure < 9.95 && (!unit.is_empty() || figure.fract() != 0.0) {
        format!("{figure:.1}{unit}")
    } else {
        format!("{figure:.0}{unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::top::{PoolRow, ReasonRow};

    fn pool(name: &str, active: u64) -> PoolRow {
        PoolRow {
            pool: name.into(),
            active,
            ..PoolRow::default()
        }
    }

    fn first_column(shown: &Shown) -> Vec<String> {
        let snapshot = Snapshot {
            pools: vec![pool("b\x1b[2J", 9), pool("a", 10), pool("c", 1)],
            ..Snapshot::default()
        };
        of(&snapshot, shown)
            .rows
            .iter()
            .map(|row| row[0].text().to_owned())
            .collect()
    }

    #[test]
    fn rows_are_filtered_and_sorted_by_value() {
        let mut shown = Shown {
            table: Table::Pools,
            ..Shown::default()
        };
        // As they are; and no name tells the terminal what to do.
        assert_eq!(first_column(&shown), ["b[2J", "a", "c"]);
        shown.sort = Some(0);
        assert_eq!(first_column(&shown), ["a", "b[2J", "c"]);
        // 10 is more than 9.
        shown.sort = Some(2);
        assert_eq!(first_column(&shown), ["a", "b[2J", "c"]);
        shown.ascending = true;
        assert_eq!(first_column(&shown), ["c", "b[2J", "a"]);
        shown.filter = "B[".into();
        assert_eq!(first_column(&shown), ["b[2J"]);
    }

    #[test]
    fn every_row_has_a_cell_for_every_column() {
        let snapshot = Snapshot {
            pools: vec![pool("a", 1)],
            refusals: vec![ReasonRow::default()],
            ..Snapshot::default()
        };
        for table in Table::ALL {
            let rows = all(&snapshot, table);
            assert!(rows.rows.iter().all(|row| row.len() == rows.header.len()));
        }
    }

    #[test]
    fn figures_are_short() {
        let cases = [
            (0.0, "0"),
            (0.5, "0.5"),
            (7.0, "7"),
            (999.4, "999"),
            (999.6, "1.0k"),
            (1_234.0, "1.2k"),
            (56_000_000.0, "56M"),
            (1e15, "1000T"),
        ];
        for (figure, text) in cases {
            assert_eq!(short(figure), text);
        }
    }
}
