//! `docs/rfc-compliance.md` says what is: every requirement once, every test it names exists, and each of those that
//! show that something is met was seen to fail.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, bail, ensure};

/// The states a row can have.
const STATES: [&str; 4] = ["met", "on purpose", "not applicable", "not yet"];
/// All requirements, in the order of their RFCs: a number, then how many letters it has.
const RFC_4787: [(&str, u8); 14] = [
    ("REQ-1", 0),
    ("REQ-2", 0),
    ("REQ-3", 1),
    ("REQ-4", 0),
    ("REQ-5", 3),
    ("REQ-6", 1),
    ("REQ-7", 0),
    ("REQ-8", 0),
    ("REQ-9", 1),
    ("REQ-10", 1),
    ("REQ-11", 0),
    ("REQ-12", 2),
    ("REQ-13", 1),
    ("REQ-14", 1),
];
const RFC_5382: [(&str, u8); 10] = [
    ("REQ-1", 0),
    ("REQ-2", 1),
    ("REQ-3", 2),
    ("REQ-4", 1),
    ("REQ-5", 1),
    ("REQ-6", 0),
    ("REQ-7", 0),
    ("REQ-8", 0),
    ("REQ-9", 0),
    ("REQ-10", 0),
];
const RFC_5508: [(&str, u8); 11] = [
    ("REQ-1", 1),
    ("REQ-2", 1),
    ("REQ-3", 4),
    ("REQ-4", 3),
    ("REQ-5", 3),
    ("REQ-6", 0),
    ("REQ-7", 1),
    ("REQ-8", 0),
    ("REQ-9", 0),
    ("REQ-10", 6),
    ("REQ-11", 0),
];
const RFC_7857: [(&str, u8); 14] = [
    ("2", 0),
    ("2.1", 0),
    ("2.2", 0),
    ("3", 0),
    ("4", 0),
    ("5", 0),
    ("6", 0),
    ("7", 0),
    ("7.1", 0),
    ("8", 0),
    ("9", 0),
    ("10", 0),
    ("11", 0),
    ("12", 0),
];
const RFC_6888: [(&str, u8); 15] = [
    ("REQ-1", 0),
    ("REQ-2", 0),
    ("REQ-3", 0),
    ("REQ-4", 0),
    ("REQ-5", 0),
    ("REQ-6", 0),
    ("REQ-7", 0),
    ("REQ-8", 0),
    ("REQ-9", 0),
    ("REQ-10", 0),
    ("REQ-11", 0),
    ("REQ-12", 0),
    ("REQ-13", 0),
    ("REQ-14", 0),
    ("REQ-15", 0),
];

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// One line of a table.
struct Row<'a> {
    id: &'a str,
    state: &'a str,
    how: &'a str,
}

/// The tables by RFC number.
fn tables(text: &str) -> Result<BTreeMap<&str, Vec<Row<'_>>>> {
    let mut tables: BTreeMap<&str, Vec<Row<'_>>> = BTreeMap::new();
    let mut rfc = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## RFC ") {
            rfc = title.get(..4);
        }
        let Some(row) = line
            .strip_prefix("| ")
            .and_then(|line| line.strip_suffix(" |"))
        else {
            continue;
        };
        let cells: Vec<_> = row.split(" | ").collect();
        let [id, _, state, how] = cells[..] else {
            bail!("not four cells: {line}");
        };
        if id == "id" {
            continue;
        }
        let rfc = rfc.with_context(|| format!("a row before the first RFC: {line}"))?;
        tables.entry(rfc).or_default().push(Row { id, state, how });
    }
    Ok(tables)
}

/// The tests that a text names, as file and function.
fn named(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|quoted| quoted.split_once(".rs::"))
}

/// Where the rules of IPv6 begin, and where the mutations do.
const IPV6: &str = "## What IPv6 has besides";
const BROKEN: &str = "## What was broken to see tests fail";

/// A change of the code that was made to see tests fail.
struct Mutation<'a> {
    line: String,
    /// RFC and requirement of the rows that it breaks.
    rows: BTreeSet<(String, String)>,
    /// Functions of the tests that failed.
    tests: BTreeSet<&'a str>,
}

/// The mutations: "- What was changed (4787 REQ-1, REQ-2): `a_test`, `another_test`."
fn mutations(text: &str) -> Result<Vec<Mutation<'_>>> {
    let (_, list) = text.split_once(BROKEN).context("no mutations")?;
    // Behind what is said about all of them.
    let (_, list) = list.split_once("\n### ").context("no mutations")?;
    let mut mutations = Vec::new();
    for item in list.split("\n- ").skip(1) {
        // What follows an empty line is no part of the list.
        let item = item.split("\n\n").next().unwrap_or(item);
        let line = item.split_whitespace().collect::<Vec<_>>().join(" ");
        let (what, _) = line
            .rsplit_once("): ")
            .with_context(|| format!("no rows: {line}"))?;
        let (_, ids) = what
            .rsplit_once('(')
            .with_context(|| format!("no rows: {line}"))?;
        let mut rfc = "";
        let mut rows = BTreeSet::new();
        for id in ids.split(", ") {
            let id = match id.split_once(' ') {
                Some((number, id)) => {
                    rfc = number;
                    id
                }
                None => id,
            };
            rows.insert((rfc.to_owned(), id.to_owned()));
        }
        let tests = item.rsplit_once("): ").or(item.rsplit_once("):\n"));
        let (_, tests) = tests.with_context(|| format!("no tests: {line}"))?;
        mutations.push(Mutation {
            rows,
            tests: tests.split('`').skip(1).step_by(2).collect(),
            line,
        });
    }
    Ok(mutations)
}

/// Whether a source file, named without `.rs`, holds this function as a test.
fn exists(file: &str, function: &str) -> Result<bool> {
    let path = root().join(format!("{file}.rs"));
    let mut text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // Unit tests may have moved into a file beside.
    text += &fs::read_to_string(root().join(format!("{file}/tests.rs"))).unwrap_or_default();
    let signature = format!("fn {function}(");
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    Ok(lines
        .iter()
        .enumerate()
        .filter(|(_, line)| line.starts_with(&signature))
        .any(|(at, _)| {
            lines[..at]
                .iter()
                .rev()
                .take_while(|line| line.starts_with('#') || line.starts_with("//"))
                .any(|line| *line == "#[test]")
        }))
}

#[test]
fn every_requirement_is_there_once_and_in_order() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/rfc-compliance.md"))?;
    let tables = tables(&text)?;
    let expected: [(&str, &[(&str, u8)]); 5] = [
        ("4787", &RFC_4787),
        ("5382", &RFC_5382),
        ("5508", &RFC_5508),
        ("7857", &RFC_7857),
        ("6888", &RFC_6888),
    ];
    ensure!(
        tables.keys().count() == expected.len(),
        "{:?}",
        tables.keys()
    );
    for (rfc, requirements) in expected {
        let mut wanted = Vec::new();
        for (number, letters) in requirements {
            wanted.push((*number).to_owned());
            wanted.extend((0..*letters).map(|at| format!("{number}{}", char::from(b'a' + at))));
        }
        let rows = tables
            .get(rfc)
            .with_context(|| format!("no table for RFC {rfc}"))?;
        let found: Vec<_> = rows.iter().map(|row| row.id.to_owned()).collect();
        ensure!(
            found == wanted,
            "RFC {rfc} has {found:?}, and the document should have {wanted:?}"
        );
    }
    Ok(())
}

#[test]
fn every_row_has_a_state_and_what_is_met_names_its_test() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/rfc-compliance.md"))?;
    for (rfc, rows) in tables(&text)? {
        for Row { id, state, how } in rows {
            ensure!(STATES.contains(&state), "RFC {rfc} {id}: {state:?}");
            ensure!(
                !how.trim().is_empty(),
                "RFC {rfc} {id}: neither test nor reason"
            );
            ensure!(
                state != "met" || named(how).next().is_some(),
                "RFC {rfc} {id} is met, but names no test"
            );
        }
    }
    Ok(())
}

#[test]
fn every_test_that_is_named_exists() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/rfc-compliance.md"))?;
    let mut count = 0;
    for (file, function) in named(&text).filter(|(_, function)| !function.is_empty()) {
        count += 1;
        ensure!(
            exists(file, function)?,
            "there is no test {file}.rs::{function}"
        );
    }
    ensure!(count > 50, "only {count} tests are named");
    ensure!(
        !exists("tests/tests/compliance", "exists")?,
        "a function is not a test"
    );
    Ok(())
}

#[test]
fn every_test_of_what_is_met_was_seen_to_fail() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/rfc-compliance.md"))?;
    let mutations = mutations(&text)?;
    let failed: BTreeSet<_> = mutations.iter().flat_map(|one| &one.tests).collect();
    let mut count = 0;
    for (rfc, rows) in tables(&text)? {
        for Row { id, how, .. } in rows.iter().filter(|row| row.state == "met") {
            count += 1;
            let tests: BTreeSet<_> = named(how).map(|(_, test)| test).collect();
            let row = (rfc.to_owned(), (*id).to_owned());
            ensure!(
                mutations
                    .iter()
                    .any(|one| one.rows.contains(&row) && !one.tests.is_disjoint(&tests)),
                "RFC {rfc} {id} is met, but no mutation breaks it and fails a test of its own"
            );
            for test in tests {
                ensure!(
                    failed.contains(&test),
                    "RFC {rfc} {id}: {test} never failed"
                );
            }
        }
    }
    ensure!(count > 50, "only {count} rows are met");
    let (tables, rest) = text.split_once(IPV6).context("no rules of IPv6")?;
    let (ipv6, _) = rest.split_once(BROKEN).context("no mutations")?;
    for (_, test) in named(ipv6) {
        ensure!(failed.contains(&test), "IPv6: {test} never failed");
    }
    let known: BTreeSet<_> = named(tables)
        .chain(named(ipv6))
        .map(|(_, test)| test)
        .collect();
    for one in &mutations {
        ensure!(
            !one.tests.is_empty() && one.tests.is_subset(&known),
            "a test that is named nowhere else: {}",
            one.line
        );
    }
    Ok(())
}
