use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use egress_common::placement;
use egress_common::port::ALL_SLICES;
use proptest::prelude::*;

use super::*;
use crate::diagnostic::Source;
use crate::resource::{self, Drain};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
const SERVERS: [&str; 4] = ["a1", "a2", "b1", "c1"];

/// Three data centers with these shares.
fn resources(shares: [u32; 3]) -> Resources {
    let text = format!(
        r#"
account = [{{ id = "acme" }}]
[[pool]]
id = "partners"
account = "acme"
addresses = ["192.0.2.10"]
[[location]]
name = "x"
[[location.data_center]]
name = "a"
server = [{{ name = "a1" }}, {{ name = "a2" }}]
[[location]]
name = "y"
[[location.data_center]]
name = "b"
server = [{{ name = "b1" }}]
[[location.data_center]]
name = "c"
server = [{{ name = "c1" }}]
[[placement]]
address = "192.0.2.10"
shares = [ {{ data_center = "a", share = {} }}, {{ data_center = "b", share = {} }}, {{ data_center = "c", share = {} }} ]
"#,
        shares[0], shares[1], shares[2]
    );
    let (model, found) = resource::parse(&Source::new("r.toml", &text), None);
    model.unwrap_or_else(|| panic!("{found}"))
}

/// What a store does with steps, the obvious way.
pub(crate) fn make(store: &mut Ownership, step: &Step) -> bool {
    match step {
        Step::Row {
            address,
            before,
            after,
            fenced,
        } => {
            let mut fenced = fenced.iter();
            let holds = store.rows.get(address) == before.as_ref()
                && fenced.all(|(server, said)| store.forgotten.get(server) == Some(said));
            if holds {
                store.rows.insert(*address, after.clone());
            }
            holds
        }
        Step::Forgotten {
            server,
            before,
            after,
            ..
        } => {
            let holds = store.forgotten.get(server) == before.as_ref();
            if holds {
                store.forgotten.insert(server.clone(), *after);
            }
            holds
        }
        Step::Promised {
            server,
            before,
            after,
            mark,
        } => {
            let holds = store.promises.get(server) == before.as_ref()
                && store.forgotten.get(server) == mark.as_ref();
            if holds {
                store.promises.insert(server.clone(), *after);
            }
            holds
        }
    }
}

fn settle(store: &mut Ownership, resources: &Resources) {
    for _ in 0..3 {
        for step in store.to_do(resources, "a1") {
            assert!(make(store, &step));
        }
    }
    assert_eq!(store.to_do(resources, "a1"), [], "it comes to an end");
}

fn drain(resources: &mut Resources, server: &str) {
    resources.drains.insert(Drain::of_server(server));
}

fn held(store: &Ownership, server: &str) -> u32 {
    store.rows[&ADDRESS].held(server)
}

#[test]
fn clu_3_the_first_rows_are_the_division_and_are_read_as_they_were_written() {
    let resources = resources([3, 1, 1]);
    let mut store = Ownership::default();
    settle(&mut store, &resources);
    for (one, slices) in placed::owners(&resources, ADDRESS) {
        let row = &store.rows[&ADDRESS];
        assert_eq!(row.held(&one.server.name), slices);
        assert_eq!(row.open(&one.server.name), slices);
        assert_eq!(row.leaving(&one.server.name), 0);
    }
    let text = serde_json::to_string(&store).unwrap();
    assert_eq!(serde_json::from_str::<Ownership>(&text).unwrap(), store);
    let moving = store.rows[&ADDRESS].given(&[("b1", ALL_SLICES)]).unwrap();
    let text = serde_json::to_string(&moving).unwrap();
    assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), moving);
}

#[test]
fn fwd_7_a_server_that_drains_passes_on_all_it_has_and_gets_it_back() {
    let mut resources = resources([2, 1, 1]);
    let mut store = Ownership::default();
    settle(&mut store, &resources);
    let before = store.clone();
    let had = held(&store, "b1");
    drain(&mut resources, "b1");
    settle(&mut store, &resources);
    let row = &store.rows[&ADDRESS];
    assert_eq!((row.held("b1"), row.open("b1")), (had, 0));
    // What is taken back before it went is at once open again, and nothing of it has to be waited for.
    let mut back = store.clone();
    settle(&mut back, &resources_without_drains(&resources));
    assert_eq!(back.rows[&ADDRESS].open("b1"), had);
    let mut keeper = Keeper::default();
    keeper.in_force(&before, "b1", Instant::now());
    keeper.in_force(&store, "b1", Instant::now());
    let stopped = keeper.stopped();
    assert_eq!(stopped, [(ADDRESS, had)].into());
    // All but one slice are empty.
    let busy = 1 << had.trailing_zeros();
    for step in Keeper::release(&store, "b1", &stopped, &[(ADDRESS, busy)].into()) {
        assert!(make(&mut store, &step));
        assert!(!make(&mut store, &step), "and not twice");
    }
    assert_eq!(held(&store, "b1"), busy);
    keeper.in_force(&store, "b1", Instant::now());
    for step in Keeper::release(&store, "b1", &keeper.stopped(), &Slices::new()) {
        assert!(make(&mut store, &step));
    }
    assert_eq!(held(&store, "b1"), 0);
    let row = &store.rows[&ADDRESS];
    let open = ["a1", "a2", "c1"].map(|name| row.open(name));
    assert_eq!(open.iter().fold(0, |all, one| all ^ one), ALL_SLICES);
}

fn resources_without_drains(resources: &Resources) -> Resources {
    Resources {
        drains: BTreeSet::new(),
        ..resources.clone()
    }
}

#[test]
fn clu_3_nobody_is_left_to_take_over_from_all_that_drain() {
    let mut resources = resources([1, 1, 1]);
    let mut store = Ownership::default();
    settle(&mut store, &resources);
    let before = store.clone();
    for server in SERVERS {
        drain(&mut resources, server);
    }
    settle(&mut store, &resources);
    assert_eq!(store, before, "what nobody takes stays where it is");
}

#[test]
fn clu_3_what_was_forgotten_is_the_others_and_a_late_word_of_it_counts_no_more() {
    let resources = resources([1, 1, 1]);
    let mut store = Ownership::default();
    settle(&mut store, &resources);
    let had = held(&store, "c1");
    // It was about to pass something on.
    let mut moving = store.clone();
    let mut draining = resources.clone();
    drain(&mut draining, "c1");
    settle(&mut moving, &draining);
    let late = Keeper::release(&moving, "c1", &[(ADDRESS, had)].into(), &Slices::new());
    let mut store = moving;
    store.forgotten.insert("c1".into(), 1);
    settle(&mut store, &draining);
    assert_eq!(held(&store, "c1"), 0);
    assert!(!make(&mut store, &late[0]));
    // It comes back, and is told that it has nothing.
    let mut keeper = Keeper::default();
    assert!(!keeper.is_clear(), "nothing is known yet");
    keeper.in_force(&store, "c1", Instant::now());
    assert_eq!(
        keeper.lost()[&ADDRESS],
        ALL_SLICES,
        "whatever it has there ends"
    );
    assert!(!keeper.is_clear());
    keeper.has_ended_lost();
    for left in [ALL_SLICES, 1 << 9] {
        keeper.have_rested(&[(ADDRESS, left)].into());
        assert!(!keeper.is_clear(), "a port rests");
        assert_eq!(keeper.resting()[&ADDRESS], left);
    }
    keeper.have_rested(&Slices::new());
    assert!(keeper.is_clear());
    let back = store.may_return("c1").unwrap();
    assert!(make(&mut store, &back) && !make(&mut store, &back));
    settle(&mut store, &resources);
    assert_ne!(store.rows[&ADDRESS].coming("c1"), 0);
}

#[test]
fn clu_3_what_is_left_for_too_long_is_reset_once() {
    let mut resources = resources([1, 1, 1]);
    let mut store = Ownership::default();
    settle(&mut store, &resources);
    drain(&mut resources, "c1");
    settle(&mut store, &resources);
    let (mut keeper, now) = (Keeper::default(), Instant::now());
    let limit = Duration::from_secs(60);
    keeper.in_force(&store, "c1", now);
    keeper.in_force(&store, "c1", now + Duration::from_secs(50));
    assert_eq!(
        keeper.overdue(limit, now + Duration::from_secs(59)),
        Slices::new()
    );
    let overdue = keeper.overdue(limit, now + limit);
    assert_eq!(overdue, [(ADDRESS, held(&store, "c1"))].into());
    assert_eq!(keeper.overdue(limit, now + limit), Slices::new());
}

#[test]
fn clu_3_without_locations_the_first_one_has_it() {
    let mut resources = resources([1, 1, 1]);
    (resources.locations, resources.placements) = Default::default();
    let mut store = Ownership::default();
    settle(&mut store, &resources);
    assert_eq!(held(&store, "a1"), ALL_SLICES);
    assert_eq!(store.to_do(&resources, "b1"), []);
}

#[derive(Clone, Debug)]
enum Event {
    /// The operator changes shares.
    Shares([u32; 3]),
    /// Or has a server drain, or not.
    Drains(usize, bool),
    /// Or switches one off and says so. What it has sent may still arrive.
    Forgets(usize),
    /// A server reads the store.
    Reads(usize),
    /// It makes the steps that it sees, by what it has read.
    Divides(usize),
    /// It puts in force what it has read.
    Applies(usize),
    /// It sends what it may pass on; that arrives whenever.
    Releases(usize),
    /// What was sent arrives, the n-th of it.
    Arrives(usize),
    /// Its data plane opens a flow in a slice, if it may.
    Opens(usize, u32),
    /// All of its flows in a slice end.
    Ends(usize, u32),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let server = 0..SERVERS.len();
    let slice = 1u32..32;
    let event = prop_oneof![
        1 => [1u32..4, 0u32..4, 0u32..4].prop_map(Event::Shares),
        1 => (server.clone(), any::<bool>()).prop_map(|(server, is)| Event::Drains(server, is)),
        1 => server.clone().prop_map(Event::Forgets),
        6 => server.clone().prop_map(Event::Reads),
        3 => server.clone().prop_map(Event::Divides),
        6 => server.clone().prop_map(Event::Applies),
        4 => server.clone().prop_map(Event::Releases),
        6 => (0usize..8).prop_map(Event::Arrives),
        16 => (server.clone(), slice.clone()).prop_map(|(server, slice)| Event::Opens(server, slice)),
        8 => (server, slice).prop_map(|(server, slice)| Event::Ends(server, slice)),
    ];
    proptest::collection::vec(event, 0..400)
}

/// A server: what it has read, what is in force, and its flows.
#[derive(Clone, Default)]
struct Member {
    read: Ownership,
    in_force: Ownership,
    keeper: Keeper,
    flows: BTreeSet<u32>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Servers with views of any age, words that arrive at any time, and an operator who changes his mind. The model:
    /// which servers have flows in a slice, and which may open some. Two at once is what must not be.
    #[test]
    fn clu_3_no_two_servers_have_flows_in_a_slice(events in events()) {
        let mut resources = resources([1, 1, 1]);
        let mut store = Ownership::default();
        let mut members: BTreeMap<usize, Member> =
            (0..SERVERS.len()).map(|at| (at, Member::default())).collect();
        let mut sent: Vec<Step> = Vec::new();
        let mut forgotten = 0;
        for event in events {
            match event.clone() {
                Event::Shares(shares) => {
                    let drains = std::mem::take(&mut resources.drains);
                    resources = self::resources(shares);
                    resources.drains = drains;
                }
                Event::Drains(at, true) => drain(&mut resources, SERVERS[at]),
                Event::Drains(at, false) => {
                    resources.drains.remove(&Drain::of_server(SERVERS[at]));
                }
                Event::Forgets(at) => {
                    forgotten += 1;
                    let step = store.fence(SERVERS[at], forgotten);
                    make(&mut store, &step);
                    // And again, which is under way for a while.
                    sent.push(step);
                    // Switched off; when it is on again it begins with what it reads then.
                    members.insert(at, Member::default());
                }
                Event::Reads(at) => members.get_mut(&at).unwrap().read = store.clone(),
                Event::Divides(at) => {
                    for step in members[&at].read.to_do(&resources, SERVERS[at]) {
                        sent.push(step);
                    }
                }
                Event::Applies(at) => {
                    let member = members.get_mut(&at).unwrap();
                    member.in_force = member.read.clone();
                    member.keeper.in_force(&member.in_force, SERVERS[at], Instant::now());
                    let lost = member.keeper.lost().get(&ADDRESS).copied().unwrap_or(0);
                    member.flows.retain(|slice| lost >> slice & 1 == 0);
                    member.keeper.has_ended_lost();
                    sent.extend(member.in_force.may_return(SERVERS[at]));
                }
                Event::Releases(at) => {
                    let member = &members[&at];
                    let stopped = member.keeper.stopped();
                    let occupied = member.flows.iter().fold(0, |all, slice| all | 1 << slice);
                    let occupied = [(ADDRESS, occupied)].into();
                    sent.extend(Keeper::release(&member.in_force, SERVERS[at], &stopped, &occupied));
                }
                Event::Arrives(nth) => {
                    if nth < sent.len() {
                        let step = sent.remove(nth);
                        make(&mut store, &step);
                    }
                }
                Event::Opens(at, slice) => {
                    let member = members.get_mut(&at).unwrap();
                    let open = member.in_force.open(SERVERS[at], ADDRESS);
                    if open >> slice & 1 == 1 {
                        member.flows.insert(slice);
                    }
                }
                Event::Ends(at, slice) => {
                    members.get_mut(&at).unwrap().flows.remove(&slice);
                }
            }
            for slice in placement::slices(ALL_SLICES) {
                let using = members.iter().filter(|(at, member)| {
                    let open = member.in_force.open(SERVERS[**at], ADDRESS);
                    member.flows.contains(&slice) || open >> slice & 1 == 1
                });
                let using: Vec<&str> = using.map(|(at, _)| SERVERS[*at]).collect();
                prop_assert!(using.len() <= 1, "{event:?}: {using:?} use slice {slice}");
                if let (Some(row), Some(user)) = (store.rows.get(&ADDRESS), using.first()) {
                    prop_assert!(row.held(user) >> slice & 1 == 1, "{event:?}: replies to {slice} go astray");
                }
            }
        }
    }
}
