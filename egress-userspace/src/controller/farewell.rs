//! An enabled zone that a file takes away: what it held back leaves by the default egress from then on.

use crate::diagnostic::Report;
use crate::plan::Plan;
use crate::resource::Resources;

/// Says which enabled zones go.
pub(super) fn warn(before: &Resources, plan: &Plan, report: &Report<'_>) {
    let after = plan.after();
    for old in &before.zones {
        let stays = after.zones.iter().any(|zone| zone.id == old.id);
        if stays || !before.aegis(old).enabled {
            continue;
        }
        report.warning(
            &(0..0),
            format!(
                "zone {}, which is enabled, is not in the file any more: new connections of what only it selects take \
                 the default egress",
                old.name
            ),
            "keep the [[zone]] if its traffic is still to leave by its pool; live connections stay on their addresses",
        );
    }
}
