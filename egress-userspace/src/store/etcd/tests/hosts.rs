//! Two hosts that go by the name of one server (CLU-3).

use std::net::Ipv4Addr;

use super::*;
use crate::ownership::{Impostor, Ownership, Row, Step};
use crate::resource::Resources;
use crate::store::identity::{Identity, beside};

const NAME: &str = "s1";

impl Server {
    /// The store as the daemon of a host has it, in a directory of its own, as soon as etcd answers.
    fn host(&self, name: &str) -> EtcdStore {
        let store = self.begun(name);
        wait("etcd to answer", || {
            let read = store.current();
            !matches!(read, Err(StoreError::Unavailable { .. })) && store.trouble()().is_none()
        });
        store
    }

    /// The same, whether etcd answers or not.
    fn begun(&self, name: &str) -> EtcdStore {
        let copy = self.copy(name);
        let store = EtcdStore::open(&self.config(), &copy).unwrap();
        store.of_server(NAME).unwrap()
    }

    fn copy(&self, name: &str) -> PathBuf {
        self.directory.path().join(format!("{name}.db"))
    }
}

fn address() -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 1)
}

/// The step that gives the server an address.
fn first(at: Ipv4Addr) -> Step {
    Step::Row {
        address: at,
        before: None,
        after: Row::first(&[(NAME, 0xff00)]),
        fenced: Default::default(),
    }
}

fn owned(store: &EtcdStore) -> Ownership {
    store.current().unwrap().ownership.unwrap()
}

fn impostor(store: &EtcdStore) -> Option<Impostor> {
    store.load().unwrap().ownership.unwrap().impostor
}

/// The rows of who owns what as somebody sees them who is no server.
fn rows(server: &Server) -> usize {
    owned(&server.open("look.db")).rows.len()
}

#[test]
fn clu_3_of_two_hosts_of_one_name_the_first_is_the_server() {
    const TEST: &str = "clu_3_of_two_hosts_of_one_name_the_first_is_the_server";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let mut one = server.host("one");
    // Before anything is stored there is nothing to be used, and nothing to write.
    assert!(one.remote.read().unwrap().keys.is_empty());
    one.commit(&[account("a")], WIDE).unwrap();
    // As the writer does: the first attempt finds that the name is not taken yet.
    let made = one.hand_over(&[first(address())]);
    assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    assert_eq!(owned(&one).impostor, None);
    one.hand_over(&[first(address())]).unwrap();
    assert_eq!(owned(&one).open(NAME, address()), 0xff00);

    // A copied configuration.
    let mut other = server.host("other");
    let found = impostor(&other).unwrap();
    assert_eq!(found.server, NAME);
    assert!(
        found.reason().starts_with("another host is s1: "),
        "{}",
        found.reason()
    );
    let seen = owned(&other);
    assert_eq!(
        (seen.open(NAME, address()), seen.held(NAME, address())),
        (0, 0)
    );
    assert_eq!(seen.to_do(&Resources::default(), NAME), []);
    for step in [first(Ipv4Addr::new(192, 0, 2, 2)), seen.fence("s2", 7)] {
        let made = other.hand_over(&[step]);
        assert!(matches!(made, Err(StoreError::Impostor(_))), "{made:?}");
    }
    assert_eq!(rows(&server), 1);
    // The first one does not notice.
    assert_eq!(impostor(&one), None);
    one.hand_over(&[first(Ipv4Addr::new(192, 0, 2, 3))])
        .unwrap();

    // Without etcd both stay what they are, also where the daemon is another one.
    let mut server = server;
    drop(other);
    server.stop();
    assert!(impostor(&server.begun("other")).is_some());
    drop(one);
    assert_eq!(impostor(&server.begun("one")), None);
    // A copied disk.
    let file = beside(&server.copy("one"));
    let mut identity = Identity::at(&file).unwrap();
    identity.machine = "0123456789abcdef".into();
    identity.boot = "another".into();
    identity.keep(&file).unwrap();
    let found = impostor(&server.begun("one")).unwrap();
    assert!(
        found
            .reason()
            .contains("another host's, or another server's, or /etc/machine-id"),
        "{}",
        found.reason()
    );
    // etcd knows better.
    server.restart();
    assert_eq!(impostor(&server.host("one")), None);
}

/// What a host was about to do under a name that is another one's by now is not done, also where it has not heard of that.
#[test]
fn clu_3_an_operators_word_makes_another_host_the_server() {
    const TEST: &str = "clu_3_an_operators_word_makes_another_host_the_server";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let mut one = server.host("one");
    one.commit(&[account("a")], WIDE).unwrap();
    assert_eq!(impostor(&one), None);
    let other = server.host("other");
    let had = impostor(&other).unwrap().other.unwrap();
    let (before, done) = server.begun("other").take_name().unwrap();
    assert!(done);
    assert_eq!(before, Some(had));
    let made = one.hand_over(&[first(address())]);
    assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    assert_eq!(rows(&server), 0);
    // The daemon, which runs all the time, goes on from there; the other one has heard of it.
    assert_eq!(impostor(&other), None);
    assert!(impostor(&one).is_some());
    let mut other = other;
    other.hand_over(&[first(address())]).unwrap();
    assert_eq!(owned(&other).open(NAME, address()), 0xff00);
    let again = server.begun("other").take_name().unwrap();
    assert_eq!(again, (None, false));
    assert_eq!(impostor(&other), None);

    // Who is forgotten by another server has the name no more: whoever is there first has it, and is fenced as ever.
    let mut third = server.open("third.db");
    let fence = owned(&third).fence(NAME, 7);
    third.hand_over(&[fence]).unwrap();
    assert_eq!(impostor(&one), None);
    assert!(owned(&one).is_fenced(NAME));
    assert!(impostor(&other).is_some());
    assert_eq!(owned(&other).may_return(NAME), None);
}

/// A virtual machine that was copied whole, and is started: it has the identity of the one that is at work.
#[test]
fn clu_3_a_copy_that_starts_asks_and_the_one_at_work_does_not_notice() {
    const TEST: &str = "clu_3_a_copy_that_starts_asks_and_the_one_at_work_does_not_notice";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let mut one = server.host("one");
    one.commit(&[account("a")], WIDE).unwrap();
    assert_eq!(impostor(&one), None);
    fs::copy(beside(&server.copy("one")), beside(&server.copy("copy"))).unwrap();
    let copy = server.begun("copy");
    copy.claim.as_ref().unwrap().of_boot("another");
    let mut found = None;
    thread::scope(|scope| {
        let starting = scope.spawn(|| {
            wait("etcd to answer the copy", || copy.current().is_ok());
            impostor(&copy)
        });
        // As its daemon does, which hears of the question.
        while !starting.is_finished() {
            assert_eq!(impostor(&one), None);
            thread::sleep(Duration::from_millis(20));
        }
        found = starting.join().unwrap();
    });
    let reason = found.unwrap().reason();
    assert!(reason.contains("with the identity of this one"), "{reason}");
    // It stays so, whatever its operator says.
    let word = copy.take_name();
    assert!(matches!(word, Err(StoreError::Impostor(_))), "{word:?}");
    assert!(impostor(&copy).is_some());
    one.hand_over(&[first(address())]).unwrap();
    assert!(impostor(&copy).is_some());
    assert_eq!(impostor(&one), None);
}

/// A virtual machine that was copied while it was at work has the identity of the other one, too.
#[test]
fn clu_3_of_two_copies_the_daemon_that_started_last_is_the_server() {
    const TEST: &str = "clu_3_of_two_copies_the_daemon_that_started_last_is_the_server";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let mut one = server.host("one");
    one.commit(&[account("a")], WIDE).unwrap();
    assert_eq!(impostor(&one), None);
    fs::copy(beside(&server.copy("one")), beside(&server.copy("clone"))).unwrap();
    let clone = server.host("clone");
    assert_eq!(impostor(&clone), None);
    let made = one.hand_over(&[first(address())]);
    assert!(matches!(made, Err(StoreError::Conflict)), "{made:?}");
    let found = impostor(&one).unwrap();
    assert!(
        found.reason().contains("with the identity of this one"),
        "{}",
        found.reason()
    );
    // They do not take it from each other as long as they run.
    assert_eq!(impostor(&clone), None);
    assert!(impostor(&one).is_some());
    let key = format!("ownership/hosts/{NAME}");
    let row = || clone.remote.read().unwrap().keys[&key].clone();
    let before = row();
    drop(one);
    let one = server.host("one");
    assert_eq!(impostor(&one), None);
    assert!(impostor(&clone).is_some());
    // A store that was restored names an earlier daemon of the same host.
    let restored = Transaction {
        conditions: Vec::new(),
        ops: vec![(key.clone(), Some(before))],
        prune: None,
    };
    one.remote.transact(&restored).unwrap();
    assert_eq!(impostor(&one), None);
    assert!(impostor(&clone).is_some());
}
