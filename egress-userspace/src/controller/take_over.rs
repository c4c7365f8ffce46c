//! A change that makes other servers' slices this one's, where servers share no store; or parts of IPv6 ranges: nobody sees to
//! it that those have drained (CLU-3).

use crate::config::Config;
use crate::diagnostic::Report;
use crate::placed;
use crate::plan::Plan;
use crate::resource::{Address, Kind, Place, Places, Resources};

/// What to do about it.
const REMEDY: &str = "apply this there first, and here when the connections it has on them have ended: only slices, and \
                      only by a store that servers share, are handed over by themselves";

/// Says what this server takes over from others.
pub(super) fn warn(
    before: &Resources,
    plan: &Plan,
    places: &Places,
    config: &Config,
    report: &Report<'_>,
) {
    let after = plan.after();
    let name = &config.server.name;
    // With a shared store slices are handed over.
    let unseen = before.ownership.is_none();
    for (object, placement) in after.placements.iter().enumerate().filter(|_| unseen) {
        let (slices, from) = placed::taken_over(before, after, name, placement.address);
        if slices == 0 {
            continue;
        }
        let place = Place::object(Kind::Placement, object);
        let span = places.span(place).cloned().unwrap_or(0..0);
        report.warning(
            &span,
            format!(
                "{name} takes over {} of the 31 slices of {} from {}",
                slices.count_ones(),
                placement.address,
                from.join(", ")
            ),
            REMEDY,
        );
    }
    for (object, pool) in after.pools.iter().enumerate() {
        for (item, address) in pool.addresses.iter().enumerate() {
            let Address::V6(range) = *address else {
                continue;
            };
            let from = placed::taken_over_part(before, after, name, range);
            let Some(part) = placed::part_of(after, name, range).filter(|_| !from.is_empty())
            else {
                continue;
            };
            let place = Place::object(Kind::Pool, object)
                .field("addresses")
                .item(item);
            let span = places.span(place).cloned().unwrap_or(0..0);
            report.warning(
                &span,
                format!("{name} takes over {part} from {}", from.join(", ")),
                REMEDY,
            );
        }
    }
}
