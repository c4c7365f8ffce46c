use super::super::conformance;
use super::*;
use crate::store::TokenStore as _;

fn fresh() -> (tempfile::TempDir, SqliteStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("sub/egress.db")).unwrap();
    (directory, store)
}

#[test]
fn it_keeps_the_promises_of_a_store() {
    conformance::keeps_what_was_committed(&mut fresh().1);
    conformance::removes_what_was_removed(&mut fresh().1);
    conformance::numbers_are_stable_and_reused_last(&mut fresh().1);
    conformance::a_commit_that_fails_changes_nothing(&mut fresh().1);
    conformance::hands_over_what_nobody_else_has_changed(&mut fresh().1);
}

#[test]
fn what_was_committed_is_there_after_opening_again() {
    let (directory, mut store) = fresh();
    conformance::keeps_what_was_committed(&mut store);
    let before = store.load().unwrap();
    let path = directory.path().join("sub/egress.db");
    assert_eq!(
        SqliteStore::open_read_only(&path).unwrap().load().unwrap(),
        before,
        "beside the writer"
    );
    drop(store);
    assert_eq!(SqliteStore::open(&path).unwrap().load().unwrap(), before);
    assert_eq!(
        SqliteStore::open_read_only(&path).unwrap().load().unwrap(),
        before
    );
}

#[test]
fn a_corrupt_file_is_refused_by_path_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("egress.db");
    std::fs::write(
        &path,
        "this is not a database at all, whatever its name says".repeat(100),
    )
    .unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()));
    assert!(error.remedy().contains("move"));
    assert!(matches!(
        SqliteStore::open_read_only(&path),
        Err(StoreError::Corrupt { .. })
    ));
}

#[test]
fn damage_in_the_middle_of_a_file_is_noticed() {
    let (directory, mut store) = fresh();
    conformance::keeps_what_was_committed(&mut store);
    drop(store);
    let path = directory.path().join("sub/egress.db");
    let mut bytes = std::fs::read(&path).unwrap();
    for byte in &mut bytes[4096..] {
        *byte = 0x5a;
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(
        SqliteStore::open(&path),
        Err(StoreError::Corrupt { .. })
    ));
}

#[test]
fn a_row_that_cannot_be_read_is_named() {
    let (_directory, store) = fresh();
    store
        .connection
        .execute(
            "INSERT INTO object (kind, id, owner, value) VALUES ('pool', 'p', 'file', '{\"kind\":\"pool\"}')",
            [],
        )
        .unwrap();
    assert!(
        store
            .load()
            .unwrap_err()
            .to_string()
            .contains("pool p cannot be read")
    );
}

#[test]
fn a_store_without_placements_is_taken_over() {
    let (directory, store) = fresh();
    store
        .connection
        .pragma_update(None, "user_version", 2)
        .unwrap();
    drop(store);
    let store = SqliteStore::open(&directory.path().join("sub/egress.db")).unwrap();
    assert_eq!(store.pragma("user_version").unwrap(), SCHEMA_VERSION);
}

#[test]
fn only_the_daemon_brings_a_store_up_to_date() {
    let (directory, store) = fresh();
    let path = directory.path().join("sub/egress.db");
    assert!(SqliteStore::open_beside(&path).is_ok());
    store
        .connection
        .pragma_update(None, "user_version", 2)
        .unwrap();
    let error = SqliteStore::open_beside(&path).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Older {
                found: 2,
                known: SCHEMA_VERSION,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.remedy().contains("restart the daemon"));
    assert_eq!(store.pragma("user_version").unwrap(), 2, "untouched");
    assert!(matches!(
        SqliteStore::open_beside(&directory.path().join("none.db")),
        Err(StoreError::Absent { .. })
    ));
    assert!(!directory.path().join("none.db").exists());
}

#[test]
fn a_newer_version_is_refused_by_name() {
    let (directory, store) = fresh();
    store
        .connection
        .pragma_update(None, "user_version", 9)
        .unwrap();
    drop(store);
    let error = SqliteStore::open(&directory.path().join("sub/egress.db")).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Newer {
                found: 9,
                known: SCHEMA_VERSION,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn another_applications_database_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("theirs.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE theirs (x)")
        .unwrap();
    assert!(matches!(
        SqliteStore::open(&path),
        Err(StoreError::Foreign { .. })
    ));
}

#[test]
fn a_missing_store_is_not_created_by_a_reader() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("egress.db");
    assert!(matches!(
        SqliteStore::open_read_only(&path),
        Err(StoreError::Absent { .. })
    ));
    assert!(!path.exists());
}

/// A store that nobody can look at is not one that is not there. (Root may look everywhere, so a loop stands for
/// the missing permission.)
#[test]
fn a_store_that_cannot_be_looked_at_is_not_called_missing() {
    let directory = tempfile::tempdir().unwrap();
    let round = directory.path().join("loop");
    std::os::unix::fs::symlink(&round, &round).unwrap();
    let path = round.join("egress.db");
    for opened in [
        SqliteStore::open_beside(&path),
        SqliteStore::open_read_only(&path),
    ] {
        let error = opened.unwrap_err();
        assert!(
            matches!(error, StoreError::Inaccessible { .. }),
            "{error:?}"
        );
        assert!(error.remedy().contains("root"), "{}", error.remedy());
    }
}

/// What the first version wrote.
const FIRST: &str = "
CREATE TABLE object (
    kind  TEXT NOT NULL,
    id    TEXT NOT NULL,
    owner TEXT NOT NULL CHECK (owner IN ('file', 'api')),
    value TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE TABLE number (
    kind     TEXT NOT NULL,
    id       TEXT NOT NULL,
    number   INTEGER NOT NULL CHECK (number > 0),
    released INTEGER,
    PRIMARY KEY (kind, id),
    UNIQUE (kind, number)
) STRICT, WITHOUT ROWID;
INSERT INTO object VALUES ('drain', 'p', 'api', '{\"kind\":\"drain\",\"value\":{\"subject\":\"p\"}}');
INSERT INTO number VALUES ('pool', 'p', 7, NULL);
PRAGMA application_id = 1162302035;
PRAGMA user_version = 1;";

#[test]
fn a_store_of_the_first_version_is_read_as_it_is_and_migrated_by_the_writer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("egress.db");
    Connection::open(&path)
        .unwrap()
        .execute_batch(FIRST)
        .unwrap();
    let read = SqliteStore::open_read_only(&path).unwrap().load().unwrap();
    assert_eq!(read.numbers.pools["p"], 7);
    assert!(read.modified.is_empty());
    let mut store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.load().unwrap(), read);
    assert!(store.tokens().unwrap().is_empty());
    let change = Change::Put {
        owner: Owner::Api,
        object: read.objects[&(Kind::Drain, "p".into())].1.clone(),
    };
    let limits = Limits {
        last_zone: 9,
        last_pool: 9,
    };
    store.commit(&[change], limits).unwrap();
    let modified = SqliteStore::open(&path).unwrap().load().unwrap().modified;
    assert!(modified[&(Kind::Drain, "p".into())] > 0);
}

/// Of two processes on a host, the one that asked the shared store first may be the last to write.
#[cfg(feature = "etcd")]
#[test]
fn api_2_a_copy_goes_back_only_with_the_store_itself() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&directory.path().join("copy.db")).unwrap();
    store.become_copy_of("/egress").unwrap();
    store.become_copy_of("/egress").unwrap();
    let nothing = Stored::default();
    let at = |at| Asked::of("this boot", at);
    let mut copied = |generation, asked| {
        let asked = at(asked);
        store
            .copy(&Copy {
                stored: &nothing,
                tokens: &[],
                generation,
                revision: generation,
                asked: &asked,
                told: &asked,
            })
            .unwrap();
        store.generation().unwrap()
    };
    assert_eq!(copied(5, 100), Some(5));
    assert_eq!(copied(6, 102), Some(6));
    // A slower process, from before a token was revoked.
    assert_eq!(copied(5, 101), Some(6));
    assert_eq!(copied(7, 90), Some(7), "a later commit, by whatever clock");
    // etcd was restored from a backup.
    assert_eq!(copied(3, 103), Some(3));
    assert_eq!(copied(4, 104), Some(4));
}

/// Who owns what changes without a commit, and a slower process may have read it before.
#[cfg(feature = "etcd")]
#[test]
fn clu_3_the_copy_of_who_owns_what_does_not_go_back() {
    use crate::ownership::{Ownership, Row};

    let address = std::net::Ipv4Addr::new(192, 0, 2, 10);
    let first = Row::first(&[("s1", 0xff00)]);
    let leaving = first.given(&[("s2", 0xff00)]).unwrap();
    let stored = |row: &Row| Stored {
        ownership: Some(Ownership {
            rows: [(address, row.clone())].into(),
            ..Ownership::default()
        }),
        ..Stored::default()
    };
    let directory = tempfile::tempdir().unwrap();
    let mut store = SqliteStore::open(&directory.path().join("copy.db")).unwrap();
    store.become_copy_of("/egress").unwrap();
    let mut copied = |row: &Row, generation, revision, asked: Asked, told: Asked| {
        store
            .copy(&Copy {
                stored: &stored(row),
                tokens: &[],
                generation,
                revision,
                asked: &asked,
                told: &told,
            })
            .unwrap();
        store.ownership().unwrap().unwrap().open("s1", address)
    };
    let at = |at| Asked::of("this boot", at);
    assert_eq!(copied(&first, 5, 7, at(100), at(100)), 0xff00);
    assert_eq!(copied(&leaving, 5, 8, at(102), at(102)), 0);
    assert_eq!(
        copied(&first, 5, 7, at(101), at(101)),
        0,
        "a slower process"
    );
    assert_eq!(copied(&leaving, 9, 8, at(103), at(109)), 0, "with a commit");
    assert_eq!(copied(&first, 5, 7, at(108), at(108)), 0);
    // Nobody who asked before the machine was started again is still there: this store was restored.
    let booted = Asked::of("another boot", 1);
    assert_eq!(copied(&first, 5, 7, booted.clone(), booted), 0xff00);
}
