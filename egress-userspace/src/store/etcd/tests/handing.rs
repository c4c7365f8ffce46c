//! Who owns what, in a real etcd: what its limits, its loss and other versions do to it (CLU-3).

use std::net::Ipv4Addr;

use super::*;
use crate::ownership::{Ownership, Row, Step};
use crate::resource::Resources;

fn address(at: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, at)
}

/// The step that gives an address its first row.
fn first(at: u8, division: &[(&str, u32)]) -> Step {
    Step::Row {
        address: address(at),
        before: None,
        after: Row::first(division),
        fenced: Default::default(),
    }
}

fn owned(store: &EtcdStore) -> Ownership {
    store.current().unwrap().ownership.unwrap()
}

/// A transaction of etcd compares 128 keys at most.
#[test]
fn clu_3_two_servers_that_are_fenced_lose_all_that_they_have() {
    let Some(server) = Server::start("clu_3_two_servers_that_are_fenced_lose_all_that_they_have")
    else {
        return;
    };
    let mut store = server.open("one.db");
    store.commit(&[account("a")], WIDE).unwrap();
    let division = [("s1", 0xff00), ("s2", 0xf0), ("s3", 0xe)];
    let rows: Vec<Step> = (0..120).map(|at| first(at, &division)).collect();
    store.current().unwrap();
    store.hand_over(&rows).unwrap();
    for name in ["s1", "s2"] {
        let fence = owned(&store).fence(name, 7);
        store.hand_over(&[fence]).unwrap();
    }
    let steps = owned(&store).to_do(&Resources::default(), "s3");
    assert_eq!(steps.len(), 120);
    store.hand_over(&steps).unwrap();
    let after = owned(&store);
    let held = |name: &str| {
        let held = after.rows.values().map(|row| row.held(name).count_ones());
        held.sum::<u32>()
    };
    assert_eq!([held("s1"), held("s2"), held("s3")], [0, 0, 120 * 3]);
}

/// A server of an earlier version, which would go on by what it can read, reads nothing any more.
#[test]
fn clu_3_whoever_hands_over_raises_the_version_and_nobody_lowers_it() {
    const TEST: &str = "clu_3_whoever_hands_over_raises_the_version_and_nobody_lowers_it";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let mut store = server.open("one.db");
    store.commit(&[account("a")], WIDE).unwrap();
    let schema = |version: i64| Transaction {
        conditions: Vec::new(),
        ops: vec![(content::SCHEMA_KEY.to_owned(), Some(version.to_string()))],
        prune: None,
    };
    let known = || store.remote.read().unwrap().keys[content::SCHEMA_KEY].clone();
    // As a server of the version before has left it.
    store.remote.transact(&schema(content::SCHEMA - 1)).unwrap();
    store.current().unwrap();
    assert_eq!(known(), (content::SCHEMA - 1).to_string());
    let mut other = server.open("other.db");
    other.hand_over(&[first(1, &[("s1", 0xff00)])]).unwrap();
    assert_eq!(known(), content::SCHEMA.to_string());
    drop(other);

    // A later one has: nothing is read, and nothing is written.
    let before = owned(&store);
    store.remote.transact(&schema(content::SCHEMA + 1)).unwrap();
    let read = store.current();
    assert!(matches!(read, Err(StoreError::Newer { .. })), "{read:?}");
    let made = store.hand_over(&[before.fence("s9", 7)]);
    assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    let made = store.commit(&[account("b")], WIDE);
    assert!(made.is_err(), "{made:?}");
    let now = store.remote.read().unwrap().keys[content::SCHEMA_KEY].clone();
    assert_eq!(now, (content::SCHEMA + 1).to_string());
}

/// An etcd without anything is no store that says that nobody has anything.
#[test]
fn clu_3_a_wiped_etcd_is_not_begun_anew_by_whoever_hands_over() {
    const TEST: &str = "clu_3_a_wiped_etcd_is_not_begun_anew_by_whoever_hands_over";

    let Some(mut server) = Server::start(TEST) else {
        return;
    };
    let mut store = server.open("one.db");
    store.commit(&[account("a")], WIDE).unwrap();
    store.current().unwrap();
    store.hand_over(&[first(1, &[("s1", 0xff00)])]).unwrap();
    let promise = owned(&store).promise("s1", Some(Duration::from_secs(60)));
    store.hand_over(&[promise.unwrap()]).unwrap();
    let before = owned(&store);
    let promise = before.promised("s1").unwrap();
    let pulse = store.pulse().unwrap();
    pulse.beat("s1", promise, None).unwrap();
    assert!(pulse.beats().unwrap()["s1"].starts_with("1 "));

    server.stop();
    fs::remove_dir_all(server.directory.path().join("etcd")).unwrap();
    server.restart();
    wait("etcd to answer", || store.remote.read().is_ok());
    let read = store.current();
    let said = read.unwrap_err().to_string();
    assert!(said.contains("holds nothing at all"), "{said}");
    // What is known of who owns what is the copy's.
    assert_eq!(store.load().unwrap().ownership, Some(before.clone()));
    for step in [first(2, &[("s2", 0xff00)]), before.fence("s2", 7)] {
        let made = store.hand_over(&[step]);
        assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    }
    let beat = pulse.beat("s1", promise, None);
    assert!(matches!(beat, Err(StoreError::Conflict)), "{beat:?}");
    assert!(store.remote.read().unwrap().keys.is_empty());
}

/// Each of the two makes the other void, and nothing else is taken for either.
#[test]
fn clu_3_a_sign_of_life_and_a_take_over_exclude_each_other() {
    const TEST: &str = "clu_3_a_sign_of_life_and_a_take_over_exclude_each_other";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let mut store = server.open("one.db");
    store.commit(&[account("a")], WIDE).unwrap();
    store.current().unwrap();
    let promise = owned(&store).promise("s1", Some(Duration::from_secs(60)));
    store.hand_over(&[promise.unwrap()]).unwrap();
    let pulse = store.pulse().unwrap();
    let before = owned(&store);
    let promise = before.promised("s1").unwrap();
    pulse.beat("s1", promise, None).unwrap();
    let silence = || ownership::Silence {
        promise,
        beat: pulse.beats().unwrap()["s1"].clone(),
    };
    let seen = silence();
    let late = before.promise("s1", None).unwrap();
    pulse.beat("s1", promise, None).unwrap();
    let made = pulse.take_over(&before.fence("s1", 7).after_silence(seen));
    assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    pulse
        .take_over(&before.fence("s1", 7).after_silence(silence()))
        .unwrap();
    assert!(owned(&store).is_fenced("s1"));
    let made = store.hand_over(&[late]);
    assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    for mark in [None, Some(7), Some(-7)] {
        let beat = pulse.beat("s1", promise, mark);
        // Who knows that it is fenced says nothing: the controller sees to that.
        assert_eq!(beat.is_ok(), mark == Some(7), "{mark:?}: {beat:?}");
    }
    store
        .hand_over(&[owned(&store).may_return("s1").unwrap()])
        .unwrap();
    pulse.beat("s1", promise, Some(-7)).unwrap();
    // What is promised anew makes those under the old promise void.
    let seen = silence();
    let change = owned(&store).promise("s1", None).unwrap();
    store.hand_over(&[change]).unwrap();
    let made = pulse.take_over(&owned(&store).fence("s1", 9).after_silence(seen));
    assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    let beat = pulse.beat("s1", promise, Some(-7));
    assert!(matches!(beat, Err(StoreError::Conflict)), "{beat:?}");
}

/// A copy on a disk that is full says by name that nothing is passed on.
#[test]
fn clu_3_what_cannot_be_copied_is_not_passed_on_and_says_so() {
    const TEST: &str = "clu_3_what_cannot_be_copied_is_not_passed_on_and_says_so";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let mut store = server.open("one.db");
    store.commit(&[account("a")], WIDE).unwrap();
    store.current().unwrap();
    store.hand_over(&[first(1, &[("s1", 0xff00)])]).unwrap();
    let row = owned(&store).rows[&address(1)].clone();
    store.copy().refuse_writes(true);
    let step = |before: &Row, after: Row| Step::Row {
        address: address(1),
        before: Some(before.clone()),
        after,
        fenced: Default::default(),
    };
    let leaving = row.given(&[("s2", 0xff00)]).unwrap();
    // That it leaves the copy does not have to know before.
    store.hand_over(&[step(&row, leaving.clone())]).unwrap();
    assert_eq!(owned(&store).rows[&address(1)], leaving);
    let released = step(&leaving, leaving.released("s1", 0xff00).unwrap());
    let made = store.hand_over(std::slice::from_ref(&released));
    let said = made.unwrap_err().to_string();
    assert!(
        said.contains("one.db could not be written: attempt to write a readonly database"),
        "{said}"
    );
    store.copy().refuse_writes(false);
    store.current().unwrap();
    store.hand_over(&[released]).unwrap();
    assert_eq!(owned(&store).open("s2", address(1)), 0xff00);
}
