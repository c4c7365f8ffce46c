//! Commits of any size, each wholly or not at all.
//!
//! A transaction of etcd has at most 128 operations, and a request at most 1.5 MiB. What needs more is written to a journal
//! first; the transaction that puts *pending* is the commit. Readers read what a pending journal says as if it were there,
//! and whoever finds one carries it out before a commit of their own: it does not matter who, or how often, or how
//! far the one who wrote it came.

use std::collections::BTreeMap;

use super::content::{self, Content, GENERATION, JOURNAL, Op, PENDING};

/// Operations of one transaction, besides those that every commit makes.
const MOST_OPS: usize = 100;
/// Bytes of keys and values of one transaction.
const MOST_BYTES: usize = 512 * 1024;

/// Bytes of an operation as a journal has it, of the 1.5 MiB that a request to etcd may have.
pub(super) const LARGEST: usize = 1_500_000;

/// What a transaction depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// Nobody has committed since this revision (0: nobody at all).
    Generation(i64),
    /// This journal is still pending.
    Pending(String),
    /// This key has this value; none where it is not there.
    Value(String, Option<String>),
}

/// One transaction: all of it, if the conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) conditions: Vec<Condition>,
    pub(super) ops: Vec<Op>,
    /// Everything below this is removed.
    pub(super) prune: Option<String>,
}

impl Transaction {
    /// Whether it is what others see as a commit.
    pub(super) fn commits(&self) -> bool {
        self.ops.iter().any(|(key, _)| key == GENERATION)
    }
}

/// One step of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// If it does not hold, the commit has not happened.
    Must(Transaction),
    /// If it does not hold, somebody else has done it.
    Then(Transaction),
}

/// A name for a commit, which no other one has: daemons in containers are all process 1.
///
/// # Errors
/// When the kernel has no random bytes yet.
pub(super) fn mark() -> std::io::Result<String> {
    let random = u64::from_ne_bytes(crate::store::random()?);
    Ok(format!("{:x}-{random:016x}", crate::store::now()))
}

/// The steps that commit `ops` on top of `before`, as the commit of this name.
///
/// # Errors
/// When the journal of an earlier commit cannot be read.
pub(super) fn steps(before: &Content, ops: Vec<Op>, mark: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    // What is pending is committed already: it comes first.
    if let Some((name, pending)) = pending(before)? {
        steps.extend(carry_out(&name, pending));
    }
    let guard = Condition::Generation(before.generation);
    // A later version may have raised it since, without a commit.
    let guards = || {
        let schema = Condition::Value(content::SCHEMA_KEY.to_owned(), before.schema());
        vec![guard.clone(), schema]
    };
    let head = || {
        vec![
            content::put_schema(),
            (GENERATION.to_owned(), Some(mark.to_owned())),
        ]
    };
    let mut parts = parts(ops);
    if parts.len() <= 1 {
        let mut ops = head();
        ops.extend(parts.pop().unwrap_or_default());
        steps.push(Step::Must(Transaction {
            conditions: guards(),
            ops,
            prune: None,
        }));
        return Ok(steps);
    }
    for (at, part) in parts.iter().enumerate() {
        let text = serde_json::to_string(part).unwrap_or_default();
        steps.push(Step::Must(Transaction {
            conditions: vec![guard.clone()],
            ops: vec![(format!("{JOURNAL}{mark}/{at:06}"), Some(text))],
            prune: None,
        }));
    }
    let mut ops = head();
    ops.push((PENDING.to_owned(), Some(mark.to_owned())));
    steps.push(Step::Must(Transaction {
        conditions: guards(),
        ops,
        prune: None,
    }));
    steps.extend(carry_out(mark, parts));
    Ok(steps)
}

/// The steps that do what a journal says and remove it; other journals, which nobody committed, go with it.
fn carry_out(name: &str, parts: Vec<Vec<Op>>) -> Vec<Step> {
    let condition = || vec![Condition::Pending(name.to_owned())];
    let mut steps: Vec<Step> = parts
        .into_iter()
        .map(|ops| {
            Step::Then(Transaction {
                conditions: condition(),
                ops,
                prune: None,
            })
        })
        .collect();
    steps.push(Step::Then(Transaction {
        conditions: condition(),
        ops: vec![(PENDING.to_owned(), None)],
        prune: Some(JOURNAL.to_owned()),
    }));
    steps
}

/// A journal's name, and what it changes.
type Journal = (String, Vec<Vec<Op>>);

/// The journal that is pending.
fn pending(content: &Content) -> Result<Option<Journal>, String> {
    let Some(name) = content.keys.get(PENDING) else {
        return Ok(None);
    };
    let prefix = format!("{JOURNAL}{name}/");
    let parts = content
        .keys
        .range(prefix.clone()..)
        .take_while(|(key, _)| key.starts_with(&prefix))
        .map(|(key, text)| {
            serde_json::from_str(text).map_err(|error| format!("{key} cannot be read: {error}"))
        })
        .collect::<Result<_, _>>()?;
    Ok(Some((name.clone(), parts)))
}

/// What `content` is once its pending journal is carried out.
///
/// # Errors
/// When that cannot be read: half of a commit is none.
pub(super) fn settled(content: &Content) -> Result<BTreeMap<String, String>, String> {
    let mut keys = content.keys.clone();
    for (key, value) in pending(content)?
        .into_iter()
        .flat_map(|(_, parts)| parts)
        .flatten()
    {
        match value {
            Some(value) => keys.insert(key, value),
            None => keys.remove(&key),
        };
    }
    Ok(keys)
}

/// The first operation that is too large for a transaction of its own: its key, and its bytes as they stand in a journal.
pub(super) fn too_large(ops: &[Op]) -> Option<(&str, usize)> {
    ops.iter().find_map(|op| {
        let length = op.0.len() + op.1.as_ref().map_or(0, String::len);
        // Quotes in it are written as two.
        if length * 2 <= LARGEST {
            return None;
        }
        let written = serde_json::to_string(op).map_or(length, |text| text.len());
        (written > LARGEST).then_some((op.0.as_str(), written))
    })
}

/// Operations in parts that a transaction takes.
fn parts(ops: Vec<Op>) -> Vec<Vec<Op>> {
    let mut parts: Vec<Vec<Op>> = Vec::new();
    let mut bytes = 0;
    for op in ops {
        let length = op.0.len() + op.1.as_ref().map_or(0, String::len);
        let fits = bytes + length <= MOST_BYTES;
        match parts
            .last_mut()
            .filter(|part| fits && part.len() < MOST_OPS)
        {
            Some(part) => {
                bytes += length;
                part.push(op);
            }
            None => {
                bytes = length;
                parts.push(vec![op]);
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(key: usize) -> Op {
        (format!("object/account/{key:05}"), Some("1".to_owned()))
    }

    /// What a store does with a transaction, the obvious way.
    fn transact(content: &mut Content, revision: &mut i64, txn: &Transaction) -> bool {
        let holds = txn.conditions.iter().all(|condition| match condition {
            Condition::Generation(seen) => content.generation == *seen,
            Condition::Pending(name) => content.keys.get(PENDING) == Some(name),
            Condition::Value(key, value) => content.keys.get(key) == value.as_ref(),
        });
        if !holds {
            return false;
        }
        *revision += 1;
        for (key, value) in &txn.ops {
            if key == GENERATION {
                content.generation = *revision;
            }
            match value {
                Some(value) => content.keys.insert(key.clone(), value.clone()),
                None => content.keys.remove(key),
            };
        }
        if let Some(prefix) = &txn.prune {
            content.keys.retain(|key, _| !key.starts_with(prefix));
        }
        true
    }

    fn objects(keys: &BTreeMap<String, String>) -> usize {
        keys.keys().filter(|key| key.starts_with("object/")).count()
    }

    /// Whoever stops after whichever step: all of a large commit is to be seen, or nothing, and the next one carries on.
    #[test]
    fn clu_1_a_large_commit_that_stops_anywhere_has_happened_or_not() {
        let ops: Vec<Op> = (0..1_050).map(op).collect();
        let all = steps(&Content::default(), ops, "large").unwrap();
        assert_eq!(all.len(), 11 + 1 + 11 + 1);
        for stop in 0..=all.len() {
            let (mut content, mut revision) = (Content::default(), 0);
            for step in &all[..stop] {
                let (Step::Must(txn) | Step::Then(txn)) = step;
                assert!(transact(&mut content, &mut revision, txn));
            }
            let seen = objects(&settled(&content).unwrap());
            assert_eq!(
                seen,
                if stop < 12 { 0 } else { 1_050 },
                "after {stop} steps"
            );
            // The next writer, with one small change.
            for step in steps(&content, vec![op(5_000)], "next").unwrap() {
                let (Step::Must(txn) | Step::Then(txn)) = step;
                assert!(transact(&mut content, &mut revision, &txn));
            }
            assert_eq!(
                objects(&content.keys),
                seen + 1,
                "after {stop} steps and a commit"
            );
            assert!(!content.keys.contains_key(PENDING));
        }
    }

    #[test]
    fn clu_1_of_two_writers_one_commits() {
        let (mut content, mut revision) = (Content::default(), 0);
        let first = steps(&content, vec![op(1)], "one").unwrap();
        let second = steps(&content, (0..300).map(op).collect(), "two").unwrap();
        let run = |content: &mut Content, revision: &mut i64, steps: &[Step]| {
            for step in steps {
                match step {
                    Step::Must(txn) if !transact(content, revision, txn) => return false,
                    Step::Must(_) => {}
                    Step::Then(txn) => {
                        transact(content, revision, txn);
                    }
                }
            }
            true
        };
        // The second has written its journal when the first commits.
        let Step::Must(journal) = &second[0] else {
            panic!()
        };
        assert!(transact(&mut content, &mut revision, journal));
        assert!(run(&mut content, &mut revision, &first));
        assert!(!run(&mut content, &mut revision, &second[1..]));
        assert_eq!(objects(&settled(&content).unwrap()), 1);
    }

    #[test]
    fn a_part_is_no_larger_than_a_transaction_takes() {
        let large: Vec<Op> = (0..10)
            .map(|at| (at.to_string(), Some("x".repeat(200 * 1024))))
            .collect();
        let parts = parts(large);
        assert_eq!(parts.len(), 5);
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 10);
    }

    /// Half of a commit is none.
    #[test]
    fn clu_1_a_journal_that_cannot_be_read_is_an_error() {
        let ops: Vec<Op> = (0..300).map(op).collect();
        let (mut content, mut revision) = (Content::default(), 0);
        for step in &steps(&Content::default(), ops, "large").unwrap()[..4] {
            let (Step::Must(txn) | Step::Then(txn)) = step;
            assert!(transact(&mut content, &mut revision, txn));
        }
        assert_eq!(objects(&settled(&content).unwrap()), 300);
        let part = content.keys.get_mut("journal/large/000001").unwrap();
        part.pop();
        let error = settled(&content).unwrap_err();
        assert!(error.contains("journal/large/000001"), "{error}");
        assert!(steps(&content, vec![op(5_000)], "next").is_err());
    }

    #[test]
    fn what_is_too_large_for_etcd_is_found() {
        let of = |bytes: usize, text: &str| {
            vec![
                op(1),
                ("object/pool/p".to_owned(), Some(text.repeat(bytes))),
            ]
        };
        assert_eq!(too_large(&of(1_400_000, "x")), None);
        assert_eq!(
            too_large(&of(1_500_000, "x")),
            Some(("object/pool/p", 1_500_000 + 5 + "object/pool/p".len() + 2))
        );
        assert_eq!(too_large(&of(700_000, "\"")), None);
        assert!(too_large(&of(800_000, "\"")).is_some());
    }
}
