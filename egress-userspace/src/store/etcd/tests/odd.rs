//! An etcd that answers slowly, wrongly, too late or not at all, and what it does not take.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::resource::{Address, Pool, PoolUse};

/// Bytes go through, each after a while.
const SLOW: u8 = 0;
/// Questions go through, and answers are lost.
const MUTE: u8 = 1;
/// Connections of before end; new ones are like the first.
const CUT: u8 = 2;
/// Before bytes go on.
const PAUSE: Duration = Duration::from_millis(50);

/// Something between a store and its etcd.
struct Proxy {
    port: u16,
    mode: Arc<AtomicU8>,
}

impl Proxy {
    fn to(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(AtomicU8::new(SLOW));
        let shared = Arc::clone(&mode);
        // It ends with the process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else {
                    continue;
                };
                // Each connection has a mode of its own once it was cut.
                let born = shared.load(Ordering::SeqCst);
                for (from, to, answers) in [(&client, &server, false), (&server, &client, true)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let mode = Arc::clone(&shared);
                    thread::spawn(move || carry(from, to, answers, born, &mode));
                }
            }
        });
        Self { port, mode }
    }

    fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::SeqCst);
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, answers: bool, born: u8, mode: &AtomicU8) {
    from.set_read_timeout(Some(PAUSE)).unwrap();
    let mut buffer = [0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer);
        thread::sleep(PAUSE);
        match (mode.load(Ordering::SeqCst), read) {
            (CUT, _) if born != CUT => break,
            (_, Ok(0)) => break,
            (MUTE, _) if answers => {}
            (_, Ok(length)) => {
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            (_, Err(error)) if error.kind() == ErrorKind::WouldBlock => {}
            (_, Err(_)) => break,
        }
    }
    for stream in [from, to] {
        stream.shutdown(Shutdown::Both).ok();
    }
}

fn at(endpoint: String) -> Etcd {
    Etcd {
        endpoints: vec![endpoint],
        prefix: "/egress".into(),
        user: None,
        password_file: None,
        ca: None,
        certificate: None,
        key: None,
    }
}

#[test]
fn clu_2_what_became_of_a_commit_whose_answer_was_lost_is_found_out() {
    const TEST: &str = "clu_2_what_became_of_a_commit_whose_answer_was_lost_is_found_out";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    let direct = server.open("direct.db");
    let proxy = Proxy::to(server.port);
    let copy = server.directory.path().join("copy.db");
    let config = at(format!("http://127.0.0.1:{}", proxy.port));
    let mut store = EtcdStore::open(&config, &copy).unwrap();
    // One that is slow is slow, and no more.
    wait("etcd to answer slowly", || store.current().is_ok());
    let stored = store.commit(&[account("a")], WIDE).unwrap();
    assert_eq!(stored, direct.load().unwrap());

    thread::scope(|scope| {
        scope.spawn(|| {
            wait("the commit to be made", || count(&direct) == 2);
            proxy.set(CUT);
        });
        let mut agrees = |after: &Stored| {
            proxy.set(MUTE);
            after.objects.len() == 2
        };
        store.commit_if(&[account("b")], WIDE, &mut agrees).unwrap();
    });
    // It is known what the next one is made on top of.
    store.commit(&[account("c")], WIDE).unwrap();
    assert_eq!(count(&direct), 3);
}

#[test]
fn clu_2_something_else_at_etcds_address_is_told_as_what_it_is() {
    const TEST: &str = "clu_2_something_else_at_etcds_address_is_told_as_what_it_is";

    let Some(server) = Server::start(TEST) else {
        return;
    };
    drop(server.open("direct.db"));
    let speaking = |words: &'static [u8]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let _ = client.read(&mut [0; 1024]);
                let _ = client.write_all(words);
            }
        });
        format!("http://127.0.0.1:{port}")
    };
    let cases = [
        (
            "a web server: ",
            speaking(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n"),
        ),
        (
            "noise: ",
            speaking(b"\0\x01\x02 nothing of the sort \xff\xfe"),
        ),
        ("one that hangs up: ", speaking(b"")),
        (
            "nobody: Connection refused",
            format!("http://127.0.0.1:{}", free_port()),
        ),
        (
            "etcd without TLS: http:// instead of https://",
            format!("https://127.0.0.1:{}", server.port),
        ),
    ];
    thread::scope(|scope| {
        for (which, endpoint) in cases {
            let port = endpoint.rsplit(':').next().unwrap();
            let copy = server.directory.path().join(port);
            scope.spawn(move || {
                let mut store = EtcdStore::open(&at(endpoint.clone()), &copy).unwrap();
                for error in [
                    store.load().unwrap_err(),
                    store.commit(&[account("a")], WIDE).unwrap_err(),
                ] {
                    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
                    let said = error.to_string();
                    println!("{which}: {said}");
                    let place = endpoint.split("//").nth(1).unwrap();
                    let (_, why) = which.split_once(": ").unwrap();
                    assert!(said.contains(place) && said.contains(why), "{said}");
                }
                let trouble = store.trouble()().unwrap();
                println!("{which}: {trouble}");
            });
        }
    });
}

#[test]
fn clu_1_what_is_too_large_for_etcd_is_refused_by_name() {
    let Some(server) = Server::start("clu_1_what_is_too_large_for_etcd_is_refused_by_name") else {
        return;
    };
    let mut store = server.open("copy.db");
    let pool = |count: u32| Change::Put {
        owner: Owner::File,
        object: Object::Pool(Pool {
            id: "many".into(),
            name: None,
            account: "a".into(),
            kind: None,
            addresses: (0..count)
                .map(|at| Address::V4((0x6440_0000 + at).into()))
                .collect(),
            draining: Vec::new(),
            connections_per_origin: 100,
            used_for: PoolUse::Cdn,
            allow_empty: false,
            made: false,
        }),
    };
    let error = store.commit(&[pool(120_000)], WIDE).unwrap_err();
    assert!(
        matches!(&error, StoreError::TooLarge { what, bytes, .. } if what == "pool many" && *bytes > journal::LARGEST),
        "{error}"
    );
    assert_eq!(count(&store), 0);
    // The largest that is let through, by the way that takes most: a journal.
    let ops = |count: u32| {
        Content::default()
            .ops(&[pool(count)], WIDE, Path::new(""))
            .unwrap()
    };
    let mut fits = 120_000;
    while journal::too_large(&ops(fits)).is_some() {
        fits -= 1_000;
    }
    println!("{fits} addresses");
    let mut changes: Vec<Change> = (0..150).map(|at| account(&at.to_string())).collect();
    changes.push(pool(fits));
    store.commit(&changes, WIDE).unwrap();
    assert_eq!(count(&store), 151);
}
