//! `[utilization]`: how long the history of utilization is kept (OBS-2).

use crate::document::Table;
use crate::utilization::Retention;

/// Seconds of a day.
const DAY: i64 = 86_400;

/// Reads the section.
pub(super) fn read(mut table: Table<'_, '_>) -> Retention {
    let default = Retention::default();
    let mut days = |key, example, default| {
        let days = table
            .get(key, example)
            .and_then(|value| value.integer(1..=36_500, "days"));
        days.map_or(default, |days| i64::from(days) * DAY)
    };
    let retention = Retention {
        five_minutes: days("five_minutes", "five_minutes = 31", default.five_minutes),
        hours: days("hours", "hours = 93", default.hours),
        days: days("days", "days = 1100", default.days),
    };
    table.finish();
    retention
}
