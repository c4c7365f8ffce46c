//! `[flow_log]`: the log of connections (OBS-4). Nothing is logged without the section.

use std::path::{Path, PathBuf};

use egress_common::record::kind;

use super::resolve;
use crate::document::Table;

/// One MB, as sizes of files are told.
const MB: u64 = 1_000_000;

/// What is logged, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowLog {
    /// Where lines go; `/var/log/egress/flows.log` by default.
    pub target: Target,
    /// Bits `1 << kind` of [`kind`]: what is logged; all by default.
    pub events: u32,
    /// Size at which a file is set aside, bytes; 100 MB by default.
    pub rotate: u64,
    /// How many files that were set aside are kept; 9 by default.
    pub keep: u32,
    /// Refusals logged in a second; 1,000 by default. Further ones are counted.
    pub refusals_per_second: u32,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// To the daemon's standard output.
    Stdout,
    /// To a file, set aside when it is large.
    File(PathBuf),
}

/// The events by name.
pub const EVENTS: [(&str, u32); 3] = [
    ("open", 1 << kind::OPEN),
    ("close", 1 << kind::CLOSE),
    ("refused", 1 << kind::REFUSED),
];

impl Default for FlowLog {
    fn default() -> Self {
        Self {
            target: Target::File("/var/log/egress/flows.log".into()),
            events: EVENTS.iter().fold(0, |all, (_, bit)| all | bit),
            rotate: 100 * MB,
            keep: 9,
            refusals_per_second: 1_000,
        }
    }
}

impl FlowLog {
    pub(super) fn read(mut table: Table<'_, '_>, directory: &Path) -> Self {
        let mut log = Self::default();
        if let Some(name) = table
            .get("file", "file = \"/var/log/egress/flows.log\"")
            .and_then(|value| value.name())
        {
            log.target = match name.as_str() {
                "stdout" => Target::Stdout,
                path => Target::File(resolve(directory, path)),
            };
        }
        let mut integer = |key, example, range, unit, to: &mut u32| {
            if let Some(number) = table
                .get(key, example)
                .and_then(|value| value.integer(range, unit))
            {
                *to = number;
            }
        };
        let mut megabytes = u32::try_from(log.rotate / MB).unwrap_or(u32::MAX);
        integer(
            "rotate_mb",
            "rotate_mb = 100",
            1..=1_000_000,
            "MB",
            &mut megabytes,
        );
        log.rotate = u64::from(megabytes) * MB;
        integer("keep", "keep = 9", 0..=1_000, "files", &mut log.keep);
        integer(
            "refusals_per_second",
            "refusals_per_second = 1000",
            0..=1_000_000,
            "refusals",
            &mut log.refusals_per_second,
        );
        const EXAMPLE: &str = "events = [\"open\", \"close\", \"refused\"]";
        if let Some(events) = table.get("events", EXAMPLE) {
            if events.array_len() == Some(0) {
                events.refuse(
                    "`events` is empty: nothing would be logged",
                    "name some of \"open\", \"close\" and \"refused\", or remove the section",
                );
            } else if let Some(named) = events.array() {
                let bits = named.iter().filter_map(|event| event.choice(&EVENTS));
                log.events = bits.fold(0, |all, bit| all | bit);
            }
        }
        table.finish();
        log
    }
}
