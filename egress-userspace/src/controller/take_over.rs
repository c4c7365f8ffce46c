//! A placement that makes other servers' slices this one's: nobody sees to it yet that those have drained (CLU-3).

use crate::config::Config;
use crate::diagnostic::Report;
use crate::placed;
use crate::plan::Plan;
use crate::resource::{Kind, Place, Places, Resources};

/// Says which slices this server takes over from others.
pub(super) fn warn(
    before: &Resources,
    plan: &Plan,
    places: &Places,
    config: &Config,
    report: &Report<'_>,
) {
    let after = plan.after();
    let name = &config.server.name;
    for (object, placement) in after.placements.iter().enumerate() {
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
            "apply this there first, and here when the connections it has on them have ended: this version does not \
             hand slices over by itself",
        );
    }
}
