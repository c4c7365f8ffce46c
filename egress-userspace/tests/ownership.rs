//! CLU-3 under faults: daemons' real judgement and a real etcd, with a history of every port that was given out.
//!
//! Each server is a whole daemon but for packets: its data plane is a model that opens and ends flows by itself all the time,
//! from what was put in force last, as the kernel does, whatever becomes of its daemon. Between each daemon and etcd there is a
//! link that is cut, or holds back what was sent and delivers it later. Daemons stop for a while at the worst places,
//! or are killed; etcd is stopped, killed and started again; an operator changes shares, drains servers, and has one that he
//! switched off forgotten. All but one have opted into `takeover_after`, now and then with another time, and their clocks run up to a tenth too
//! fast or too slow.
//! What time of day it is each daemon has its own opinion of, which changes. No port may ever be two servers' at once, and no slice open at two.
//!
//! It takes 15 seconds; `EGRESS_FAULTS=300` makes it 300. `EGRESS_SEED` is printed and can be set; threads run as they like.

#![cfg(feature = "etcd")]
#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it should be"
)]

#[path = "ownership/clock.rs"]
mod clock;
#[path = "ownership/etcd.rs"]
mod etcd;
#[path = "ownership/history.rs"]
mod history;
#[path = "ownership/link.rs"]
mod link;
#[path = "ownership/model.rs"]
mod model;
#[path = "ownership/random.rs"]
mod random;
#[path = "ownership/server.rs"]
mod server;
#[path = "ownership/wall.rs"]
mod wall;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use egress_userspace::diagnostic::Source;

use etcd::Etcd;
use history::History;
use link::Mode;
use random::Random;
use server::{Server, TAKEOVER};

/// Names of the servers, each in a data center of its own.
const NAMES: [&str; 4] = ["s1", "s2", "s3", "s4"];
/// How long it may take until all is well after the last fault.
const LIMIT: Duration = Duration::from_secs(120);

/// What all servers share, with these shares of the two addresses.
fn resources(shares: [u32; 4]) -> Source {
    let mut text = String::from(
        "account = [{ id = \"acme\" }]\n[[pool]]\nid = \"p\"\naccount = \"acme\"\naddresses = [\"192.0.2.10\", \"192.0.2.11\"]\n",
    );
    for name in NAMES {
        text += &format!(
            "[[location]]\nname = \"l{name}\"\n[[location.data_center]]\nname = \"d{name}\"\nserver = [{{ name = \"{name}\" }}]\n"
        );
    }
    let all: Vec<String> = NAMES
        .iter()
        .zip(shares)
        .map(|(name, share)| format!("{{ data_center = \"d{name}\", share = {share} }}"))
        .collect();
    for address in ["192.0.2.10", "192.0.2.11"] {
        text += &format!(
            "[[placement]]\naddress = \"{address}\"\nshares = [{}]\n",
            all.join(", ")
        );
    }
    Source::new("r.toml", text)
}

fn shares(random: &mut Random) -> [u32; 4] {
    let mut shares = [0; 4];
    for share in &mut shares {
        *share = u32::try_from(random.below(5)).unwrap();
    }
    shares[random.at(4)] += 1;
    shares
}

/// One has not opted in: it is waited for.
fn takeover_of(name: &str) -> Option<Duration> {
    (name != NAMES[3]).then_some(TAKEOVER)
}

/// What went wrong in the world, and how often.
#[derive(Debug, Default)]
struct Faults {
    cuts: u32,
    held_back: u32,
    unheard: u32,
    promises: u32,
    kills: u32,
    etcd_kills: u32,
    etcd_stops: u32,
    changes: u32,
    drains: u32,
    offs: u32,
    forgotten: u32,
}

/// One thing that happens.
fn befall(random: &mut Random, etcd: &mut Etcd, servers: &mut [Server], faults: &mut Faults) {
    wall::set(random);
    let at = random.at(servers.len());
    etcd.look_after();
    match random.below(100) {
        0..12 => {
            faults.cuts += 1;
            servers[at].link.set(Mode::Cut);
        }
        12..20 => {
            faults.held_back += 1;
            servers[at].link.set(Mode::Held);
        }
        20..24 => {
            faults.unheard += 1;
            servers[at].link.set(Mode::Deaf);
        }
        24..29 => {
            faults.promises += 1;
            let all = [None, Some(TAKEOVER), Some(TAKEOVER * 2)];
            servers[at].promise(all[random.at(all.len())]);
        }
        29..48 => {
            for server in servers.iter() {
                if random.below(2) == 0 {
                    server.link.set(Mode::Open);
                }
            }
        }
        48..54 => {
            faults.kills += 1;
            servers[at].kill();
            thread::sleep(Duration::from_millis(random.below(300)));
            servers[at].start();
        }
        54..57 => {
            faults.etcd_kills += 1;
            etcd.kill();
            thread::sleep(Duration::from_millis(random.below(500)));
            etcd.start();
        }
        57..60 => {
            faults.etcd_stops += 1;
            etcd.signal(libc::SIGSTOP);
            thread::sleep(Duration::from_millis(random.below(1_500)));
            etcd.signal(libc::SIGCONT);
        }
        60..75 => {
            let source = resources(shares(random));
            faults.changes += u32::from(servers[at].told(|writer| writer.apply(&source, false)));
        }
        75..92 => {
            let name = NAMES[random.at(NAMES.len())];
            let done = if random.below(3) == 0 {
                servers[at].told(|writer| writer.drain_server(name))
            } else {
                servers[at].told(|writer| writer.undrain_server(name))
            };
            faults.drains += u32::from(done);
        }
        _ => {
            // Switched off, data plane and all; and mostly another one is told so, until it says that it is done.
            let other = (at + 1) % servers.len();
            servers[at].switch_off();
            if random.below(3) == 0 {
                faults.offs += 1;
            } else {
                faults.forgotten += 1;
                until("a server to be forgotten", || {
                    etcd.look_after();
                    servers[other].link.set(Mode::Open);
                    servers[other].told(|writer| writer.forget_server(NAMES[at], false))
                });
                servers[at].remove_copy();
            }
            thread::sleep(Duration::from_millis(random.below(500)));
            servers[at].start();
        }
    }
}

#[test]
fn clu_3_no_port_is_two_servers_at_once_whatever_fails() {
    const TEST: &str = "clu_3_no_port_is_two_servers_at_once_whatever_fails";

    let Some(mut etcd) = Etcd::begin() else {
        println!("SKIPPED: {TEST}: the command etcd is not installed");
        return;
    };
    let seconds = random::variable("EGRESS_FAULTS").unwrap_or(15);
    let mut random = Random::announced(TEST);
    let history = Arc::new(History::default());
    let directory = tempfile::tempdir().unwrap();
    let mut servers: Vec<Server> = NAMES
        .iter()
        .map(|name| {
            let (path, random) = (directory.path().join(name), random.split());
            let (history, takeover_after) = (Arc::clone(&history), takeover_of(name));
            Server::new(name, &path, etcd.port(), takeover_after, history, random)
        })
        .collect();
    for server in &mut servers {
        server.start();
    }
    let source = resources([1; 4]);
    until("the first resources to be applied", || {
        etcd.look_after();
        servers[0].told(|writer| writer.apply(&source, false))
    });

    let mut faults = Faults::default();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        befall(&mut random, &mut etcd, &mut servers, &mut faults);
        history.check();
        thread::sleep(Duration::from_millis(random.below(250)));
    }
    println!("{faults:?}");

    // All is well again: what is to move does, and everything is open at somebody.
    for (server, name) in servers.iter_mut().zip(NAMES) {
        server.link.set(Mode::Open);
        server.promise(takeover_of(name));
    }
    let source = resources([1; 4]);
    until("the first shares to be back", || {
        etcd.look_after();
        servers[0].told(|writer| writer.apply(&source, false))
    });
    for name in NAMES {
        until("nobody to drain", || {
            etcd.look_after();
            servers[0].told(|writer| writer.undrain_server(name))
        });
    }
    until("every slice to be open at somebody", || {
        etcd.look_after();
        history.check();
        history.open() == 2 * 31 && servers.iter().all(Server::is_settled)
    });
    // Whatever befell: one that is cut off from etcd stops, others take over, and it comes back.
    until("one to hold something", || history.open_at(NAMES[1]) > 0);
    let (_, _, before) = history.figures();
    servers[1].link.set(Mode::Cut);
    until("others to have what a server had that is cut off", || {
        etcd.look_after();
        history.check();
        history.open_at(NAMES[1]) == 0 && history.open() == 2 * 31
    });
    assert!(history.figures().2 > before, "it has stopped by itself");
    // By its copy it has all that it had.
    servers[1].switch_off();
    servers[1].start();
    until("it to start by its copy", || servers[1].is_up());
    history.check();
    assert_eq!(history.open_at(NAMES[1]), 0, "others have it");
    servers[1].link.set(Mode::Open);
    until("it to have slices again", || {
        etcd.look_after();
        history.check();
        history.open_at(NAMES[1]) > 0 && servers.iter().all(Server::is_settled)
    });
    // A server that has a quarter passes it on, 7 slices of each address at least.
    let (_, before, _) = history.figures();
    until("one to drain", || {
        etcd.look_after();
        servers[0].told(|writer| writer.drain_server(NAMES[3]))
    });
    until("its slices to be open at others", || {
        etcd.look_after();
        history.check();
        history.figures().1 >= before + 14 && history.open() == 2 * 31
    });
    let (given, moved, lapsed) = history.figures();
    println!(
        "{given} ports given out, {moved} times a slice came to another server, {lapsed} times one stopped"
    );
    assert!(given > 100, "only {given} ports were given out");
    for server in &mut servers {
        server.switch_off();
    }
    history.check();
}

/// The operator was wrong: the server is at work, and others have what it had. Until its ports have rested it translates late
/// packets of what it has ended, so it does not say before that it is back.
#[test]
fn clu_3_a_forgotten_server_is_not_back_before_its_ports_have_rested() {
    const TEST: &str = "clu_3_a_forgotten_server_is_not_back_before_its_ports_have_rested";

    let Some(mut etcd) = Etcd::begin() else {
        println!("SKIPPED: {TEST}: the command etcd is not installed");
        return;
    };
    let mut random = Random::announced(TEST);
    // It is of no use here: what must not be is, as the operator said what is not so.
    let history = Arc::new(History::default());
    let directory = tempfile::tempdir().unwrap();
    let mut servers: Vec<Server> = NAMES[..2]
        .iter()
        .map(|name| {
            let (path, random) = (directory.path().join(name), random.split());
            Server::new(name, &path, etcd.port(), None, Arc::clone(&history), random)
        })
        .collect();
    for server in &mut servers {
        server.start();
    }
    let source = resources([1, 1, 0, 0]);
    until("the resources to be applied", || {
        etcd.look_after();
        servers[0].told(|writer| writer.apply(&source, false))
    });
    until("every slice to be open at somebody", || {
        etcd.look_after();
        history.open() == 2 * 31 && servers.iter().all(Server::is_settled)
    });

    servers[1].kernel().rests(true);
    until("one to be forgotten", || {
        etcd.look_after();
        servers[0].told(|writer| writer.forget_server(NAMES[1], true))
    });
    let before = servers[1].kernel().looks();
    until("it to look what is left", || {
        etcd.look_after();
        servers[1].kernel().looks() >= before + 3
            || servers[0].has_forgotten(NAMES[1]) == Some(false)
    });
    assert_eq!(servers[0].has_forgotten(NAMES[1]), Some(true));
    servers[1].kernel().rests(false);
    until("it to be back, with its share", || {
        etcd.look_after();
        servers[0].has_forgotten(NAMES[1]) == Some(false)
            && servers.iter().all(Server::is_settled)
            && history.open_at(NAMES[1]) >= 2 * 15
    });
    for server in &mut servers {
        server.switch_off();
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        let last = server::last_failure();
        assert!(
            began.elapsed() < LIMIT,
            "waited {LIMIT:?} for {what}: {last}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}
