//! Resources against this server's configuration: interfaces, reserved mark bits, zone numbers.

use super::super::{Kind, Place};
use super::Checker;
use crate::config::Config;
use crate::document::nearest;

pub(super) fn check(checker: &Checker<'_, '_>, config: &Config) {
    let dataplane = &config.dataplane;
    let zones = &checker.resources.zones;
    if zones.len() > usize::from(dataplane.max_zone()) {
        checker.error(
            Place::object(Kind::Zone, usize::from(dataplane.max_zone())),
            format!(
                "{} zones are too many: mark_mask {:#010x} has room for {}",
                zones.len(),
                dataplane.mark_mask,
                dataplane.max_zone()
            ),
            "reserve more bits under [dataplane] mark_mask",
        );
    }
    for (object, zone) in zones.iter().enumerate() {
        let place = Place::object(Kind::Zone, object);
        for (item, interface) in zone.interfaces.iter().enumerate() {
            if dataplane.inside.contains(interface) {
                continue;
            }
            let remedy = nearest(interface, dataplane.inside.iter().map(String::as_str)).map_or_else(
                || format!("add \"{interface}\" to [dataplane] inside of the server's configuration"),
                |like| format!("did you mean \"{like}\"? Else add \"{interface}\" to [dataplane] inside"),
            );
            checker.error(
                place.field("interfaces").item(item),
                format!(
                    "interface {interface} of zone {} is no inside interface of this server",
                    zone.name
                ),
                remedy,
            );
        }
        for (item, mark) in zone.marks.iter().enumerate() {
            let reserved = dataplane.mark_mask;
            let taken = (mark.value | mark.mask.unwrap_or(0)) & reserved;
            if taken != 0 {
                checker.error(
                    place.field("marks").item(item),
                    format!("mark {mark} uses bits {taken:#x}, which are reserved ([dataplane] mark_mask {reserved:#010x})"),
                    format!("use only bits of {:#010x}", !reserved),
                );
            }
        }
    }
}
