//! The shared store with a real etcd on this host.

mod handing;
mod hosts;
mod odd;
mod tls;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::resource::{Account, Kind, Object, Owner};
use crate::store::conformance;

/// How long etcd may take for anything.
const LIMIT: Duration = Duration::from_secs(60);
const WIDE: Limits = Limits {
    last_zone: 60_000,
    last_pool: 60_000,
};

/// A member that runs alone; it ends with the value.
struct Server {
    child: Child,
    program: PathBuf,
    directory: tempfile::TempDir,
    port: u16,
    peer: u16,
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The program: on the path, or unpacked for the tests.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let unpacked = std::env::var_os("EGRESS_PROGRAMS").map(|root| Path::new(&root).join("usr/bin"));
    std::env::split_paths(&path)
        .chain(unpacked)
        .map(|directory| directory.join(name))
        .find(|program| program.exists())
}

impl Server {
    fn start(test: &str) -> Option<Self> {
        let Some(program) = program("etcd") else {
            println!("SKIPPED: {test}: the command etcd is not installed");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let (port, peer) = (free_port(), free_port());
        let child = launch(&program, directory.path(), port, peer);
        Some(Self {
            child,
            program,
            directory,
            port,
            peer,
        })
    }

    fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = launch(&self.program, self.directory.path(), self.port, self.peer);
    }

    fn config(&self) -> Etcd {
        Etcd {
            endpoints: vec![format!("http://127.0.0.1:{}", self.port)],
            prefix: "/egress".into(),
            user: None,
            password_file: None,
            ca: None,
            certificate: None,
            key: None,
        }
    }

    /// The store as one server has it, once it answers.
    fn open(&self, name: &str) -> EtcdStore {
        let copy = self.directory.path().join(name);
        let store = EtcdStore::open(&self.config(), &copy).unwrap();
        wait("etcd to answer", || {
            store.load().is_ok() && store.trouble()().is_none()
        });
        store
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn launch(program: &Path, directory: &Path, port: u16, peer: u16) -> Child {
    let (client, peer) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peer}"),
    );
    Command::new(program)
        .arg("--data-dir")
        .arg(directory.join("etcd"))
        .args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ])
        .args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ])
        .args(["--initial-cluster", &format!("default={peer}")])
        // Where this version asks for it.
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < LIMIT, "waited {LIMIT:?} for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn account(id: &str) -> Change {
    Change::Put {
        owner: Owner::File,
        object: Object::Account(Account {
            id: id.into(),
            name: id.into(),
            egress_tcp: true,
            egress_udp: true,
            policy_percent: None,
            pool_percent: None,
        }),
    }
}

fn count(store: &EtcdStore) -> usize {
    store.load().unwrap().objects.len()
}

#[test]
fn clu_1_etcd_keeps_the_same_promises() {
    let cases: [fn(&mut dyn StateStore); 5] = [
        conformance::keeps_what_was_committed,
        conformance::removes_what_was_removed,
        conformance::numbers_are_stable_and_reused_last,
        conformance::a_commit_that_fails_changes_nothing,
        conformance::hands_over_what_nobody_else_has_changed,
    ];
    for case in cases {
        let Some(server) = Server::start("clu_1_etcd_keeps_the_same_promises") else {
            return;
        };
        case(&mut server.open("copy.db"));
    }
}

#[test]
fn clu_1_of_two_servers_that_change_the_same_one_is_told() {
    let Some(server) = Server::start("clu_1_of_two_servers_that_change_the_same_one_is_told")
    else {
        return;
    };
    let (mut one, mut other) = (server.open("one.db"), server.open("other.db"));
    one.commit(&[account("a")], WIDE).unwrap();
    assert!(matches!(
        other.commit(&[account("b")], WIDE),
        Err(StoreError::Conflict)
    ));
    assert_eq!(count(&other), 1);
    other.commit(&[account("b")], WIDE).unwrap();
    assert_eq!(count(&one), 2);

    // Both at once, many times: each commit is there, and was made on top of all before it.
    let add = |mut store: EtcdStore, name: &'static str| {
        thread::spawn(move || {
            let mut conflicts = 0;
            for at in 0..40 {
                while let Err(error) = store.commit(&[account(&format!("{name}{at}"))], WIDE) {
                    assert!(matches!(error, StoreError::Conflict), "{error}");
                    conflicts += 1;
                    store.load().unwrap();
                }
                store.load().unwrap();
            }
            conflicts
        })
    };
    one.load().unwrap();
    let (first, second) = (add(one, "x"), add(other, "y"));
    let conflicts = first.join().unwrap() + second.join().unwrap();
    println!("{conflicts} conflicts");
    assert_eq!(count(&server.open("third.db")), 82);
}

#[test]
fn clu_1_ten_thousand_objects_are_one_commit() {
    let Some(server) = Server::start("clu_1_ten_thousand_objects_are_one_commit") else {
        return;
    };
    let (mut one, other) = (server.open("one.db"), server.open("other.db"));
    let mut heard = other.changes();
    heard.borrow_and_update();
    let many: Vec<Change> = (0..10_000).map(|at| account(&format!("{at:05}"))).collect();
    let watcher = thread::spawn(move || {
        // Whoever looks in between sees none or all.
        let mut seen = Vec::new();
        wait("the commit to be seen", || {
            seen.push(count(&other));
            seen.last() == Some(&10_000)
        });
        seen.dedup();
        (seen, other)
    });
    let began = Instant::now();
    one.commit(&many, WIDE).unwrap();
    println!("committed in {:?}", began.elapsed());
    let (seen, _other) = watcher.join().unwrap();
    assert_eq!(seen, [0, 10_000]);
    wait("the news of it", || heard.has_changed().unwrap());
    // What it took is gone again.
    let content = one.fetch().unwrap();
    assert!(!content.keys.keys().any(|key| key.starts_with("journal")));
}

#[test]
fn clu_2_without_etcd_the_copy_serves_and_nothing_can_be_changed() {
    const TEST: &str = "clu_2_without_etcd_the_copy_serves_and_nothing_can_be_changed";

    let Some(mut server) = Server::start(TEST) else {
        return;
    };
    let mut store = server.open("copy.db");
    store.commit(&[account("a")], WIDE).unwrap();
    let token = store
        .create_token(
            "t".into(),
            vec![Permission::ZoneSettingsRead],
            vec!["a".into()],
        )
        .unwrap();
    assert_eq!(count(&store), 1);
    server.stop();

    assert_eq!(count(&store), 1);
    wait("the loss to be noticed", || store.trouble()().is_some());
    assert!(matches!(
        store.current(),
        Err(StoreError::Unavailable { .. })
    ));
    let error = store.commit(&[account("b")], WIDE).unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    drop(store);
    // A server that starts now.
    let path = server.directory.path().join("copy.db");
    let mut store = EtcdStore::open(&server.config(), &path).unwrap();
    assert_eq!(count(&store), 1);
    let copy = SqliteStore::open_read_only(&path).unwrap();
    assert_eq!(
        copy.token_of(&token.token).unwrap(),
        Some(token.kept.clone())
    );
    // One that never had a copy.
    let fresh = EtcdStore::open(&server.config(), &server.directory.path().join("new.db")).unwrap();
    assert!(matches!(fresh.load(), Err(StoreError::Unavailable { .. })));

    let mut heard = store.changes();
    heard.borrow_and_update();
    server.restart();
    wait("the news that it answers", || heard.has_changed().unwrap());
    wait("etcd to answer", || {
        store.load().is_ok() && store.trouble()().is_none()
    });
    store.commit(&[account("b")], WIDE).unwrap();
    assert_eq!(count(&store), 2);
    assert!(store.revoke_token(&token.kept.id).unwrap());
    assert!(!store.revoke_token(&token.kept.id).unwrap());
    assert_eq!(store.tokens().unwrap(), []);

    // One that has lost everything is not taken for one that says that there is nothing.
    server.stop();
    fs::remove_dir_all(server.directory.path().join("etcd")).unwrap();
    server.restart();
    let mut said = String::new();
    wait("the loss of everything to be told", || {
        said = store.current().unwrap_err().to_string();
        said.contains("holds nothing at all")
    });
    assert!(said.contains("restore etcd"), "{said}");
    assert_eq!(count(&store), 2);
    assert!(store.commit(&[account("c")], WIDE).is_err());
}

#[test]
fn clu_1_a_newer_versions_keys_and_somebody_elses_are_refused() {
    const TEST: &str = "clu_1_a_newer_versions_keys_and_somebody_elses_are_refused";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let store = server.open("copy.db");
    let put = |key: &str, value: &str| {
        let ops = vec![(key.to_owned(), Some(value.to_owned()))];
        let txn = Transaction {
            conditions: Vec::new(),
            ops,
            prune: None,
        };
        assert!(store.remote.transact(&txn).unwrap().is_some());
    };
    put("other", "somebody else's");
    assert!(matches!(store.load(), Err(StoreError::Foreign { .. })));
    put("schema", "999");
    let error = store.load().unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found: 999, .. }),
        "{error}"
    );
    put("schema", &content::SCHEMA.to_string());
    put("object/account/a", "{\"owner\":");
    let error = store.load().unwrap_err();
    assert!(
        error.to_string().contains("account/a cannot be read"),
        "{error}"
    );
    // Half of a commit is none.
    put("object/account/a", "1");
    put("pending", "name");
    put("journal/name/000000", "[[\"object/account/a\",");
    let error = store.load().unwrap_err();
    assert!(
        matches!(error, StoreError::Corrupt { .. })
            && error.to_string().contains("journal/name/000000")
            && error.remedy().contains("etcdctl"),
        "{error}"
    );
}

/// A store of its own is nobody's copy: it would be overwritten.
#[test]
fn clu_1_a_store_of_its_own_is_not_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("egress.db");
    SqliteStore::open(&path)
        .unwrap()
        .commit(&[account("a")], WIDE)
        .unwrap();
    let config = Etcd {
        endpoints: vec!["http://127.0.0.1:1".into()],
        prefix: "/egress".into(),
        user: None,
        password_file: None,
        ca: None,
        certificate: None,
        key: None,
    };
    let error = EtcdStore::open(&config, &path).err().unwrap();
    assert!(matches!(error, StoreError::NotACopy { .. }), "{error}");
    let stored = SqliteStore::open(&path).unwrap().load().unwrap();
    assert!(stored.objects.contains_key(&(Kind::Account, "a".into())));
}
