//! Where new connections go, from resources alone.

use super::*;
use crate::config::Config;
use crate::desired::{Desired, DesiredExit};
use crate::diagnostic::Source;
use crate::liveness::Healths;
use crate::ownership::Ownership;
use crate::{resolve, resource};

/// One server in Frankfurt and one in Amsterdam, of which each has an address of the pool to itself.
const FILE: &str = r#"
account = [{ id = "acme" }]
[[location]]
name = "frankfurt"
[[location.data_center]]
name = "fra01"
[[location.data_center.server]]
name = "fra01-s1"
number = 1
tunnel = "10.9.0.1"
[[location]]
name = "amsterdam"
[[location.data_center]]
name = "ams01"
[[location.data_center.server]]
name = "ams01-s1"
number = 2
tunnel = "10.9.0.2"
[[placement]]
address = "192.0.2.1"
shares = [{ data_center = "fra01", share = 1 }]
[[placement]]
address = "192.0.2.2"
shares = [{ data_center = "ams01", share = 1 }]
[[pool]]
id = "both"
account = "acme"
addresses = ["192.0.2.1", "192.0.2.2"]
"#;

fn model(text: &str) -> Resources {
    let (found, said) = resource::parse(&Source::new("r.toml", text), None);
    found.unwrap_or_else(|| panic!("{said}"))
}

fn desired(resources: &Resources, server: &str) -> Desired {
    among(resources, server, &Healths::new())
}

fn among(resources: &Resources, server: &str, healths: &Healths) -> Desired {
    let mut config = Config::default();
    config.server.name = server.to_owned();
    let numbers = Numbers {
        zones: [("shop".to_owned(), 5), ("free".to_owned(), 6)].into(),
        pools: [("both".to_owned(), 3), ("a".to_owned(), 4)].into(),
    };
    resolve::resolve_among(resources, &config, &numbers, healths).unwrap()
}

#[test]
fn pool_9_what_drains_is_nothing_that_a_server_has() {
    let draining = |addresses: &str| {
        let with = format!("id = \"both\"\ndraining = [{addresses}]");
        let resources = model(&FILE.replace("id = \"both\"", &with));
        let desired = desired(&resources, "fra01-s1");
        let to = desired.forwarded(3, [10, 1, 0, 2].into());
        to.map(|(peer, _)| peer.name.clone())
    };
    assert_eq!(draining(""), None, "it leaves here");
    assert_eq!(draining("\"192.0.2.2\""), None);
    assert_eq!(draining("\"192.0.2.1\"").as_deref(), Some("ams01-s1"));
    assert_eq!(
        draining("\"192.0.2.1\", \"192.0.2.2\""),
        None,
        "nobody has any"
    );
}

#[test]
fn fwd_6_a_tunnel_id_is_made_of_the_pools_id_alone() {
    let alone = desired(&model(FILE), "fra01-s1").tunnel.unwrap().pools;
    let more = "[[pool]]\nid = \"a\"\naccount = \"acme\"\naddresses = [\"2001:db8::/64\"]\n";
    let resources = model(&format!("{FILE}{more}"));
    let found = targets(&resources);
    assert_eq!(found["both"], alone[0].target);
    assert_eq!(found.len(), 2);
}

/// Two zones of the pool; the first one is confined.
fn confined(regions: &str) -> Resources {
    model(&format!(
        "{FILE}
[[zone]]
id = \"shop\"
account = \"acme\"
sources = [\"10.1.0.0/16\"]
regions = [{regions}]
[zone.aegis]
enabled = true
pool_id = \"both\"
[[zone]]
id = \"free\"
account = \"acme\"
sources = [\"10.2.0.0/16\"]
[zone.aegis]
enabled = true
pool_id = \"both\"
"
    ))
}

const INSIDE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

#[test]
fn fwd_8_a_zone_leaves_in_its_regions_only() {
    let part = |regions: &str, server: &str| {
        let desired = desired(&confined(regions), server);
        assert!(!desired.confined.contains_key(&6), "the other zone is not");
        let part = desired.confined.get(&5)?.part;
        Some(match part {
            Part::Exit(exit) => {
                let to = desired.forwarded_by(exit, INSIDE);
                let exit = &desired.tunnel.as_ref().unwrap().exits[exit];
                let name = to.map_or("nobody", |(peer, _)| &peer.name);
                format!("{name}, {}", if exit.here { "or IPv6" } else { "alone" })
            }
            part => format!("{part:?}"),
        })
    };
    for (regions, frankfurt, amsterdam) in [
        ("", None, None),
        ("\"frankfurt\"", Some("All"), Some("fra01-s1, alone")),
        ("\"amsterdam\"", Some("ams01-s1, alone"), Some("All")),
        ("\"amsterdam\", \"frankfurt\"", Some("All"), Some("All")),
    ] {
        assert_eq!(part(regions, "fra01-s1").as_deref(), frankfurt, "{regions}");
        assert_eq!(part(regions, "ams01-s1").as_deref(), amsterdam, "{regions}");
    }
    // No server is there, which is not the same as everywhere.
    let mut resources = confined("\"frankfurt\"");
    resources.zones[0].regions = vec!["paris".to_owned()];
    for server in ["fra01-s1", "ams01-s1"] {
        let part = desired(&resources, server).confined[&5].part;
        assert_eq!(part, Part::Nothing, "{server}");
    }
    // What it had there drains: nowhere else, from there neither.
    let mut resources = confined("\"frankfurt\"");
    resources.pools[0].draining = vec!["192.0.2.1".parse().unwrap()];
    let left = |server| desired(&resources, server).confined[&5].part;
    assert_eq!(left("ams01-s1"), Part::Nothing);
    let Part::Exit(exit) = left("fra01-s1") else {
        panic!("IPv6 may leave")
    };
    assert_eq!(
        desired(&resources, "fra01-s1").forwarded_by(exit, INSIDE),
        None
    );
}

fn with_policy(mut resources: Resources, primary: &str, secondary: &str) -> Resources {
    let text = format!(
        "{FILE}
[[pool]]
id = \"a\"
account = \"acme\"
addresses = [\"2001:db8::/64\"]
[[policy]]
name = \"bank\"
account = \"acme\"
precedence = 1
traffic = \"net.dst.port == 443\"
egress = {{ ipv4 = \"{primary}\", ipv4_fallback = \"{secondary}\", ipv6 = \"2001:db8::/64\" }}
"
    );
    let other = model(&text);
    resources.policies = other.policies;
    resources.pools = other.pools;
    resources
}

fn health(state: State) -> crate::liveness::Health {
    crate::liveness::Health {
        state,
        round_trip_us: None,
    }
}

/// How the policy's IPv4 leaves the server in Frankfurt, by zone.
fn exits(resources: &Resources, state: State) -> Vec<(Vec<u16>, String)> {
    exits_among(resources, &[(2, state)])
}

/// As [`exits`], with this known of several servers, by their addresses' last part.
fn exits_among(resources: &Resources, states: &[(u8, State)]) -> Vec<(Vec<u16>, String)> {
    let healths = states.iter();
    let healths = healths.map(|(last, state)| ([10, 9, 0, *last].into(), health(*state)));
    let desired = among(resources, "fra01-s1", &healths.collect());
    let exits = &desired.tunnel.as_ref().unwrap().exits;
    let named = |exit: DesiredExit| match exit {
        DesiredExit::Elsewhere { exit, .. } => {
            let (peer, _) = desired.forwarded_by(exit, INSIDE).unwrap();
            format!("{} by {}", exits[exit].only.unwrap(), peer.name)
        }
        DesiredExit::By { address, .. } => address.to_string(),
        DesiredExit::Default => "default".to_owned(),
        DesiredExit::Nowhere { .. } => "nowhere".to_owned(),
    };
    let all = desired.policies.iter();
    all.map(|policy| (policy.zones.clone(), named(policy.ipv4)))
        .collect()
}

#[test]
fn policy_4_the_secondary_is_used_when_the_primarys_location_is_down() {
    let here = "192.0.2.1";
    let there = "192.0.2.2";
    let free = || confined("");
    let both = |text: &str| vec![(vec![5, 6], text.to_owned())];
    let with = |primary, secondary| with_policy(free(), primary, secondary);
    for (primary, secondary, alive, dead) in [
        (there, here, "192.0.2.2 by ams01-s1", here),
        (there, "0.0.0.0", "192.0.2.2 by ams01-s1", "default"),
        (here, there, here, here),
    ] {
        let resources = with(primary, secondary);
        assert_eq!(exits(&resources, State::Alive), both(alive));
        assert_eq!(exits(&resources, State::Silent), both(dead));
    }
    // What drains is no primary, wherever it is, and no secondary (POOL-9).
    for (primary, secondary, draining, expected) in [
        (here, there, vec![here], "192.0.2.2 by ams01-s1"),
        (here, "0.0.0.0", vec![here], "default"),
        (there, here, vec![there], here),
        (there, here, vec![there, here], "nowhere"),
    ] {
        let mut resources = with(primary, secondary);
        resources.pools[0].draining = draining.iter().map(|one| one.parse().unwrap()).collect();
        assert_eq!(exits(&resources, State::Alive), both(expected));
    }
    // One that this server cannot send anything is not down.
    let mut apart = with(there, here);
    let no_tunnel = FILE.replace("tunnel = \"10.9.0.1\"", "");
    let no_tunnel = no_tunnel.replace("tunnel = \"10.9.0.2\"", "");
    apart.locations = model(&no_tunnel).locations;
    let found = desired(&apart, "fra01-s1").policies[0].ipv4;
    assert_eq!(found, DesiredExit::Nowhere { pool: 3 });
    // Whom nobody at all answers is cut off, and knows of no location that it is down.
    let mut three = with(there, "0.0.0.0");
    let paris = "[[location]]\nname = \"paris\"\n[[location.data_center]]\nname = \"par01\"\n\
                 [[location.data_center.server]]\nname = \"par01-s1\"\nnumber = 3\ntunnel = \"10.9.0.3\"\n";
    three.locations = model(&format!("{FILE}{paris}")).locations;
    for (others, expected) in [(State::Alive, "default"), (State::Silent, "nowhere")] {
        let found = exits_among(&three, &[(2, State::Silent), (3, others)]);
        assert_eq!(found, both(expected));
    }
    // FWD-8: a zone that is confined uses neither an address nor the default egress elsewhere.
    for (primary, secondary, confined_to, of_shop, of_free) in [
        (here, there, "\"amsterdam\"", "192.0.2.2 by ams01-s1", here),
        (
            there,
            "0.0.0.0",
            "\"frankfurt\"",
            // Its location is not down, and where it may not go the default egress is not its place either.
            "nowhere",
            "192.0.2.2 by ams01-s1",
        ),
        (here, "0.0.0.0", "\"amsterdam\"", "nowhere", here),
    ] {
        let resources = with_policy(confined(confined_to), primary, secondary);
        let found = exits(&resources, State::Alive);
        assert_eq!((of(&found, 5), of(&found, 6)), (of_shop, of_free));
    }
    // Where the primary's location is down, the default egress is here, and not where the zone may leave.
    let mut resources = with_policy(confined("\"amsterdam\""), there, "0.0.0.0");
    let found = exits(&resources, State::Silent);
    assert_eq!((of(&found, 5), of(&found, 6)), ("nowhere", "default"));
    // Nor is an IPv6 address, nor the default egress of a policy that names it.
    let ipv6: BTreeMap<u16, bool> = desired(&resources, "fra01-s1")
        .policies
        .iter()
        .flat_map(|policy| {
            let leaves = matches!(policy.ipv6, DesiredExit::By { .. });
            policy.zones.iter().map(move |zone| (*zone, leaves))
        })
        .collect();
    assert_eq!(ipv6, [(5, false), (6, true)].into());
    resources.policies[0].egress = None;
    let found = exits(&resources, State::Alive);
    assert_eq!((of(&found, 5), of(&found, 6)), ("nowhere", "default"));
}

/// How a zone leaves.
fn of(found: &[(Vec<u16>, String)], zone: u16) -> &str {
    let found = found.iter().find(|(zones, _)| zones.contains(&zone));
    &found.unwrap().1
}

/// SAFE-1: a slice that is on its way from one server to another is no location that is down.
#[test]
fn clu_3_nobody_leaves_by_the_default_egress_while_an_address_is_on_its_way() {
    let all = |text: &str| vec![(vec![5, 6], text.to_owned())];
    for (secondary, expected) in [("0.0.0.0", "nowhere"), ("192.0.2.1", "nowhere")] {
        let mut resources = with_policy(confined(""), "192.0.2.2", secondary);
        // Nobody has been given anything yet: a new address, or a copy that an earlier version made.
        resources.ownership = Some(Ownership::default());
        for state in [State::Alive, State::Silent] {
            assert_eq!(exits(&resources, state), all(expected));
        }
    }
}

/// Who has the address makes it ready for the others, under the tunnel id that they use.
#[test]
fn policy_3_an_address_has_the_same_tunnel_id_at_both_ends() {
    let resources = with_policy(confined(""), "192.0.2.2", "192.0.2.1");
    let [here, there] = ["fra01-s1", "ams01-s1"].map(|server| {
        let exits = desired(&resources, server).tunnel.unwrap().exits;
        exits
            .into_iter()
            .map(|exit| (exit.only.unwrap().to_string(), (exit.here, exit.target)))
            .collect::<BTreeMap<_, _>>()
    });
    assert_eq!(here.len(), 2, "{here:?}");
    for address in ["192.0.2.1", "192.0.2.2"] {
        let (here, there) = (here[address], there.get(address));
        assert_eq!(here.0, address == "192.0.2.1");
        assert_eq!(here.1, target(&called(address.parse().unwrap())));
        // Frankfurt's own is only a secondary.
        if let Some(there) = there {
            assert_eq!(*there, (!here.0, here.1));
        }
    }
    assert!(there.contains_key("192.0.2.2"));
}
