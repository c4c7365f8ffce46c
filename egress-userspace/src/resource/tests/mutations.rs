//! What people and machines do to a valid file.

use std::path::Path;

use proptest::prelude::*;

use super::super::*;
use super::sample::{PLACED, POLICY, SAMPLE};

/// Up to five mutations of the sample.
fn mutated() -> impl Strategy<Value = String> {
    let cut = (any::<prop::sample::Index>(), any::<prop::sample::Index>());
    let pieces = prop::sample::select(vec![
        "\"",
        "[",
        "]",
        "[[",
        "]]",
        "=",
        "\n",
        "{",
        "}",
        "#",
        "é",
        "\u{0}",
        "0",
        "-1",
        "9999999999999999999",
        "1e9",
        "true",
        "[[pool]]\n",
        "[[zone]]\n",
        "[zone.aegis]\n",
        "id = \"partners\"\n",
        "addresses = []\n",
        "marks = [0]\n",
        "sources = [\"::/0\"]\n",
        "[[location]]\n",
        "[[placement]]\n",
        "share = 0",
        "fra01",
        "192.0.2.10",
        "/33",
        ",",
        ".",
        "\\",
        "'''",
    ]);
    prop::collection::vec((cut, pieces, 0..3_u8), 1..6).prop_map(|changes| {
        let mut text: Vec<char> = format!("{SAMPLE}{POLICY}{PLACED}").chars().collect();
        for ((one, other), piece, what) in changes {
            let (a, b) = (one.index(text.len() + 1), other.index(text.len() + 1));
            let (a, b) = (a.min(b), a.max(b));
            match what {
                0 => drop(text.splice(a..a, piece.chars())),
                1 => drop(text.splice(a..b.min(a + 12), piece.chars())),
                _ => drop(text.splice(a..b, [])),
            }
        }
        text.into_iter().collect()
    })
}

proptest! {
    #[test]
    fn no_mutation_of_a_file_panics_and_every_place_lies_within_it(text in mutated()) {
        let source = Source::new("resources.toml", text.as_str());
        for found in [parse(&source, None).1, Config::parse(&source, Path::new("/")).1] {
            let lines: Vec<&str> = text.split('\n').collect();
            for diagnostic in &found.0 {
                prop_assert!(diagnostic.line >= 1 && diagnostic.line <= lines.len(), "{diagnostic}");
                let width = lines[diagnostic.line - 1].chars().count();
                prop_assert!(diagnostic.column >= 1 && diagnostic.column <= width + 1, "{diagnostic}");
                prop_assert!(!diagnostic.reason.is_empty() && !diagnostic.remedy.is_empty(), "{diagnostic:?}");
                prop_assert!(!diagnostic.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_valid_model_survives_the_store(seed in mutated()) {
        if let Some(resources) = parse(&Source::new("r.toml", seed), None).0 {
            let json = serde_json::to_string(&resources).unwrap();
            prop_assert_eq!(serde_json::from_str::<Resources>(&json).unwrap(), resources);
        }
    }
}
