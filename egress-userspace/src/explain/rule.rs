//! Which zone a packet belongs to (ZONE-3).

use std::cmp::Reverse;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::Query;
use crate::desired::{Desired, DesiredZone};

/// A selector that a packet meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `mark`, `cgroup`, `interface` or `source`.
    pub by: String,
    /// The selector as written.
    pub selector: String,
    /// The zone it selects.
    pub zone: String,
}

/// Every rule that the packet meets, the deciding one first: mark, then cgroup, then interface, then the longest
/// source prefix (ZONE-3); within marks the longest mask, within cgroups the deepest path.
pub(super) fn matching<'d>(desired: &'d Desired, query: &Query) -> Vec<(&'d DesiredZone, Rule)> {
    let mut found = Vec::new();
    for zone in &desired.zones {
        let selectors = &zone.selectors;
        let mut add = |class: u8, weight: usize, by: &str, selector: String| {
            let rule = Rule {
                by: by.into(),
                selector,
                zone: zone.name.clone(),
            };
            found.push((class, Reverse(weight), zone, rule));
        };
        for mark in selectors
            .marks
            .iter()
            .filter(|mark| query.mark & mark.mask == mark.value)
        {
            add(
                0,
                mark.mask.count_ones() as usize,
                "mark",
                format!("{:#x}/{:#x}", mark.value, mark.mask),
            );
        }
        if let Some(cgroup) = &query.cgroup {
            for path in selectors.cgroups.iter().filter(|path| below(cgroup, path)) {
                add(1, path.split('/').count(), "cgroup", path.clone());
            }
        }
        if let Some(interface) = &query.interface {
            for name in selectors
                .interfaces
                .iter()
                .filter(|name| *name == interface)
            {
                add(2, 0, "interface", name.clone());
            }
        }
        for net in selectors
            .sources
            .iter()
            .filter(|net: &&IpNet| net.contains(&query.source))
        {
            add(3, usize::from(net.prefix_len()), "source", net.to_string());
        }
    }
    found.sort_by_key(|(class, weight, ..)| (*class, *weight));
    found
        .into_iter()
        .map(|(_, _, zone, rule)| (zone, rule))
        .collect()
}

/// Whether `path` is `around` or below it.
fn below(path: &str, around: &str) -> bool {
    path.trim_matches('/')
        .strip_prefix(around)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
