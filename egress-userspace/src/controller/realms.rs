//! A zone that gets its first `interfaces` selector, or loses the last: its live connections cannot stay (ZONE-2).
//!
//! Zones that are selected by interface may use the same inside addresses as others, so their flows are kept apart. To
//! look for a flow on the other side as well would hand one tenant's packets to another's connection.

use crate::diagnostic::Report;
use crate::plan::Plan;
use crate::resource::{Kind, Place, Places, Resources};

/// Says which zones' live connections end.
pub(super) fn warn(before: &Resources, plan: &Plan, places: &Places, report: &Report<'_>) {
    let after = plan.after();
    for old in &before.zones {
        let object = after.zones.iter().position(|zone| zone.id == old.id);
        let is_realm = object.is_some_and(|object| after.zones[object].is_realm());
        if is_realm == old.is_realm() {
            continue;
        }
        let place = object.map(|object| Place::object(Kind::Zone, object).field("interfaces"));
        let span = place
            .and_then(|place| places.span(place))
            .cloned()
            .unwrap_or(0..0);
        let what = match object {
            None => "goes, which was selected by interface",
            Some(_) if is_realm => "is selected by interface from now on",
            Some(_) => "is not selected by interface any more",
        };
        report.warning(
            &span,
            format!(
                "zone {} {what}: its live connections end, and both ends are told",
                old.name
            ),
            "apply this when they may be cut: addresses of zones that are selected by interface are kept apart from all \
             others",
        );
    }
}
