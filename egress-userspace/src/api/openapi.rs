//! The OpenAPI document: what `openapi.json` says, and its further parts, as one.

use std::sync::LazyLock;

use serde_json::Value;

const PARTS: [&str; 3] = [
    include_str!("openapi.json"),
    include_str!("openapi/egress.json"),
    include_str!("openapi/addressing.json"),
];

/// The whole document.
pub(super) fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
        let mut whole = Value::Null;
        for part in PARTS {
            // They are compiled in, and the tests read them.
            merge(&mut whole, serde_json::from_str(part).unwrap_or_default());
        }
        whole
    });
    &DOCUMENT
}

/// Adds what `part` has: objects become one, of everything else the later one counts.
fn merge(whole: &mut Value, part: Value) {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => {
            for (key, value) in part {
                merge(whole.entry(key).or_insert(Value::Null), value);
            }
        }
        (whole, part) => *whole = part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_takes_anything_from_another() {
        fn leaves(value: &Value) -> usize {
            value
                .as_object()
                .map_or(1, |map| map.values().map(leaves).sum())
        }
        let parts: Vec<Value> = PARTS
            .iter()
            .map(|part| serde_json::from_str(part).unwrap())
            .collect();
        assert_eq!(leaves(document()), parts.iter().map(leaves).sum::<usize>());
    }
}
