//! Whether pinned maps are what this binary's programs expect (SAFE-2: migrated or refused, never misread).

use aya::maps::MapInfo;
use egress_common::layout::{LAYOUT, Layout};

use super::maps::Maps;
use super::object::{self, Shape};
use super::pins::Pins;
use crate::config::Dataplane;
use crate::dataplane::api::DataPlaneError;

/// A pinned map as it is.
fn shape(pins: &Pins, name: &str) -> Result<Shape, DataPlaneError> {
    let path = pins.map(name);
    let info = MapInfo::from_pin(&path)
        .map_err(|error| DataPlaneError::failed(format!("looking at {}", path.display()), error))?;
    let kind = info
        .map_type()
        .map_err(|error| DataPlaneError::failed(format!("looking at {}", path.display()), error))?;
    Ok(Shape {
        kind: kind as u32,
        key: info.key_size(),
        value: info.value_size(),
        entries: info.max_entries(),
        flags: info.map_flags(),
    })
}

/// Compares all pinned maps; returns the layout they were made with.
///
/// # Errors
/// [`DataPlaneError::Refused`] that names what differs.
pub(super) fn compatible(pins: &Pins) -> Result<Layout, DataPlaneError> {
    let found = shape(pins, "LAYOUT")?;
    if found.value as usize != size_of::<Layout>() {
        return Err(refused(
            pins,
            &format!("map LAYOUT has values of {} bytes", found.value),
        ));
    }
    let layout: Layout = Maps::open(pins)?.only("LAYOUT")?;
    if layout.version != LAYOUT {
        return Err(refused(
            pins,
            &format!(
                "they have layout {}, and this binary knows layout {LAYOUT}",
                layout.version
            ),
        ));
    }
    for (name, expected) in object::shapes(&layout)? {
        if !pins.map(&name).exists() {
            return Err(refused(pins, &format!("map {name} is missing")));
        }
        let found = shape(pins, &name)?;
        if let Some(difference) = difference(&name, found, expected) {
            return Err(refused(pins, &difference));
        }
    }
    Ok(layout)
}

fn difference(name: &str, found: Shape, expected: Shape) -> Option<String> {
    let fields = [
        ("type", found.kind, expected.kind),
        ("key size", found.key, expected.key),
        ("value size", found.value, expected.value),
        ("number of entries", found.entries, expected.entries),
        ("flags", found.flags, expected.flags),
    ];
    fields
        .into_iter()
        .find(|(_, found, expected)| found != expected)
        .map(|(field, found, expected)| {
            format!("map {name} has {field} {found}, and this binary expects {expected}")
        })
}

fn refused(pins: &Pins, difference: &str) -> DataPlaneError {
    DataPlaneError::Refused {
        reason: format!(
            "the pinned maps in {} were made by another version of egress: {difference}",
            pins.root().display()
        ),
        remedy: "run the version that made them; or `egress detach` and start again, which ends all live flows"
            .to_owned(),
    }
}

/// Settings that only a first start can change, as sentences.
pub(super) fn kept(layout: &Layout, config: &Dataplane) -> Vec<String> {
    let numbers = [
        ("max_flows", layout.max_flows, config.max_flows),
        ("max_origins", layout.max_origins, config.max_origins),
    ];
    let mut kept: Vec<String> = numbers
        .into_iter()
        .filter(|(_, pinned, wanted)| pinned != wanted)
        .map(|(key, pinned, wanted)| sentence(key, &pinned.to_string(), &wanted.to_string()))
        .collect();
    if layout.mark_mask != config.mark_mask {
        // Packets on their way would be read with a mask they were not tagged with.
        kept.push(sentence(
            "mark_mask",
            &format!("{:#010x}", layout.mark_mask),
            &format!("{:#010x}", config.mark_mask),
        ));
    }
    kept
}

fn sentence(key: &str, pinned: &str, wanted: &str) -> String {
    format!(
        "{key} stays {pinned}, with which the pinned maps were made, although the configuration says {wanted}: \
         `egress detach` and start again to change it, which ends all live flows"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_named() {
        let shape = Shape {
            kind: 1,
            key: 20,
            value: 8,
            entries: 100,
            flags: 0,
        };
        assert_eq!(difference("FLOWS4", shape, shape), None);
        let said = difference("FLOWS4", Shape { value: 16, ..shape }, shape).unwrap();
        assert!(
            said.contains("FLOWS4") && said.contains("value size 16"),
            "{said}"
        );
    }

    #[test]
    fn changed_sizes_are_named_with_both_values() {
        let layout = Layout {
            max_flows: 1_000,
            max_origins: Dataplane::default().max_origins,
            mark_mask: 0xff,
            ..Layout::default()
        };
        let said = kept(&layout, &Dataplane::default());
        assert_eq!(said.len(), 2);
        assert!(said[0].contains("1000") && said[0].contains("262144"));
        assert!(said[1].contains("0x000000ff"));
    }
}
