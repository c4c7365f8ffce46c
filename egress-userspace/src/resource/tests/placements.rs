//! Locations and placements that are wrong, and what is said about each, with its place.

use std::path::Path;

use super::super::*;
use super::sample::{PLACED, SAMPLE};
use crate::diagnostic::Severity;

/// `line:column: reason` of every error in the sample after one change, and whether the change was found in it.
fn errors_with(from: &str, to: &str) -> Vec<String> {
    let text = format!("{SAMPLE}{PLACED}");
    assert!(text.contains(from), "{from} is not in the sample");
    errors(&text.replacen(from, to, 1), None)
}

fn errors(text: &str, config: Option<&Config>) -> Vec<String> {
    let found = parse(&Source::new("resources.toml", text), config).1;
    let of = |d: &crate::diagnostic::Diagnostic| {
        assert!(!d.remedy.is_empty());
        format!("{}:{}: {}", d.line, d.column, d.reason)
    };
    let errors = found.0.iter().filter(|d| d.severity == Severity::Error);
    errors.map(of).collect()
}

fn warnings(text: &str, config: Option<&Config>) -> Vec<String> {
    let found = parse(&Source::new("resources.toml", text), config).1;
    let warnings = found.0.iter().filter(|d| d.severity == Severity::Warning);
    warnings.map(|d| d.reason.clone()).collect()
}

fn server(section: &str) -> Config {
    let text = format!("[dataplane]\nuplink = [\"up0\"]\n[server]\n{section}\n");
    let (config, found) = Config::parse(&Source::new("egress.toml", text), Path::new("/"));
    config.unwrap_or_else(|| panic!("{found}"))
}

/// Line of the first line of the sample that begins with `text`, so that the tests survive another sample.
fn line_of(text: &str, nth: usize) -> usize {
    let all = format!("{SAMPLE}{PLACED}");
    let found = all
        .lines()
        .enumerate()
        .filter(|(_, line)| line.starts_with(text))
        .nth(nth);
    found.unwrap_or_else(|| panic!("no line {text}")).0 + 1
}

#[test]
fn the_sample_with_placements_is_valid() {
    assert_eq!(errors(&format!("{SAMPLE}{PLACED}"), None), [""; 0]);
}

#[test]
fn pool_5_a_fifth_location_is_refused() {
    let mut text = SAMPLE.to_owned();
    let mut shares = Vec::new();
    for n in 1..=5 {
        text += &format!(
            "[[location]]\nname = \"l{n}\"\n[[location.data_center]]\nname = \"d{n}\"\n\
             [[location.data_center.server]]\nname = \"s{n}\"\nnumber = {n}\n"
        );
        shares.push(format!("{{ data_center = \"d{n}\", share = 1 }}"));
    }
    let place = |address: &str, count: usize| {
        let shares = shares[..count].join(", ");
        format!("[[placement]]\naddress = \"{address}\"\nshares = [{shares}]\n")
    };
    let other = place("192.0.2.11", 1);
    let four = format!("{text}{other}{}", place("192.0.2.10", 4));
    assert_eq!(errors(&four, None), [""; 0]);
    let five = format!("{text}{other}{}", place("192.0.2.10", 5));
    let line = five.lines().count();
    assert_eq!(
        errors(&five, None),
        [format!(
            "{line}:10: 192.0.2.10 is placed in 5 locations: l1, l2, l3, l4, l5"
        )]
    );
}

#[test]
fn pool_5_shares_that_sum_to_nothing_are_refused() {
    let line = line_of("shares", 1);
    let said = [format!(
        "{line}:10: the shares of 192.0.2.11 sum to nothing: no server would own it"
    )];
    let share = "[ { data_center = \"fra01\", share = 1 } ]";
    assert_eq!(
        errors_with(share, "[ { data_center = \"fra01\", share = 0 } ]"),
        said
    );
    assert_eq!(errors_with(share, "[]"), said);
    let found = errors_with("share = 3", "share = -3");
    assert!(
        found[0].contains("`share` must be from 0 to 1000"),
        "{found:?}"
    );
}

#[test]
fn fwd_3_distances_are_to_other_locations() {
    let with = |distances: &str| {
        let line = format!("name = \"amsterdam\"\ndistances = [{distances}]");
        errors_with("name = \"amsterdam\"", &line)
    };
    let one = |to: &str, time: &str| format!("{{ location = \"{to}\", microseconds = {time} }}");
    assert_eq!(with(&one("frankfurt", "7000")), [""; 0]);
    assert_eq!(with(""), [""; 0]);
    let bad = [
        (one("frankfort", "7000"), "has a distance to frankfort"),
        (one("amsterdam", "7000"), "has a distance to amsterdam"),
        (one("frankfurt", "0"), "`microseconds` must be from 1 to"),
        (one("frankfurt", "-5"), "`microseconds` must be from 1 to"),
        (one("frankfurt", "\"near\""), "`microseconds`"),
        ("{ location = \"frankfurt\" }".to_owned(), "microseconds"),
        ("{ microseconds = 7000 }".to_owned(), "location"),
        ("7000".to_owned(), "must be a table"),
        (
            [one("frankfurt", "7000"), one("frankfurt", "8000")].join(", "),
            "there are two distances from amsterdam to frankfurt",
        ),
    ];
    for (distances, said) in bad {
        let found = with(&distances);
        assert!(
            found.first().is_some_and(|first| first.contains(said)),
            "{distances}: {found:?}"
        );
    }
}

#[test]
fn names_and_numbers_are_unique() {
    let again = |key: &str, nth| line_of(key, nth);
    let first = line_of("name = \"fra01-s1\"", 0);
    assert_eq!(
        errors_with("\"ams01-s1\"", "\"fra01-s1\""),
        [format!(
            "{}:8: server fra01-s1 is there twice, first on line {first}",
            again("name = \"ams01-s1\"", 0)
        )]
    );
    let found = errors_with("name = \"amsterdam\"", "name = \"frankfurt\"");
    assert!(
        found[0].contains("location frankfurt is there twice"),
        "{found:?}"
    );
    let found = errors_with("name = \"ams01\"", "name = \"fra01\"");
    assert!(
        found[0].contains("data center fra01 is there twice"),
        "{found:?}"
    );
    let found = errors_with("number = 2", "number = 1");
    assert!(
        found[0].contains("server number 1 is there twice"),
        "{found:?}"
    );
    let found = errors_with("number = 2", "");
    assert!(
        found[0].contains("server ams01-s1 has no number"),
        "{found:?}"
    );
    let found = errors_with("number = 2", "number = 65536");
    assert!(
        found[0].contains("`number` must be from 1 to 65535"),
        "{found:?}"
    );
}

#[test]
fn placements_name_what_exists_once() {
    let found = errors_with("data_center = \"ams01\"", "data_center = \"ams1\"");
    assert_eq!(
        found,
        [format!(
            "{}:50: data center ams1 is in no location",
            line_of("shares", 0)
        )]
    );
    let found = errors_with("data_center = \"ams01\"", "data_center = \"fra01\"");
    assert!(
        found[0].contains("data center fra01 has two shares of 192.0.2.10"),
        "{found:?}"
    );
    let found = errors_with("address = \"192.0.2.11\"", "address = \"192.0.2.10\"");
    assert!(
        found
            .iter()
            .any(|e| e.contains("192.0.2.10 is placed twice")),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|e| e.contains("192.0.2.11 is placed nowhere")),
        "{found:?}"
    );
    assert!(!found.iter().any(|e| e.contains("API")), "{found:?}");
    let found = errors_with("address = \"192.0.2.11\"", "address = \"192.0.2.12\"");
    assert!(
        found.iter().any(|e| e.contains("192.0.2.12 is in no pool")),
        "{found:?}"
    );
    let no_server = "[[location.data_center.server]]\nname = \"ams01-s1\"\nnumber = 2\n";
    let found = errors_with(no_server, "");
    assert!(
        found[0].contains("data center ams01 has a share of 192.0.2.10, but no server"),
        "{found:?}"
    );
    let found = errors_with("2001:db8:aa::/64", "2001:db8:aa::/97");
    assert!(found[0].contains("too small a range"), "{found:?}");
}

#[test]
fn unknown_keys_are_refused_and_what_needs_more_is_warned_of() {
    let found = errors_with("number = 1", "number = 1\ntunel = \"10.9.0.1\"");
    assert!(found[0].contains("unknown key `tunel`"), "{found:?}");
    let text = format!("{SAMPLE}{PLACED}");
    let found = warnings(&text, None);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("192.0.2.10 is split over 2 servers"),
        "{found:?}"
    );
}

/// The sample, its servers reached at these addresses; an empty one is left out.
fn reached(addresses: [&str; 2]) -> String {
    let mut text = format!("{SAMPLE}{PLACED}");
    for (number, address) in (1..).zip(addresses) {
        if !address.is_empty() {
            let number = format!("number = {number}\n");
            text = text.replacen(&number, &format!("{number}tunnel = \"{address}\"\n"), 1);
        }
    }
    text
}

#[test]
fn fwd_6_servers_reach_each_other_at_addresses_of_their_own() {
    for addresses in [["10.9.0.1", "10.9.0.2"], ["2001:db8:9::1", "2001:db8:9::2"]] {
        assert_eq!(errors(&reached(addresses), None), [""; 0]);
        let said = warnings(&reached(addresses), None);
        assert!(
            !said.iter().any(|w| w.contains("is split over")),
            "{said:?}"
        );
    }
    let line = |nth| {
        let text = reached(["10.9.0.1", "10.9.0.1"]);
        let mut all = text.lines().enumerate();
        let found = all
            .by_ref()
            .filter(|(_, line)| line.starts_with("tunnel"))
            .nth(nth);
        found.unwrap().0 + 1
    };
    assert_eq!(
        errors(&reached(["10.9.0.1", "10.9.0.1"]), None),
        [format!(
            "{}:10: server ams01-s1 is reached at 10.9.0.1, and so is server fra01-s1: it would be its own peer",
            line(1)
        )]
    );
    for (addresses, said) in [
        (
            ["10.9.0.1", ""],
            "server ams01-s1 has no `tunnel` address, and others have",
        ),
        (
            ["", "10.9.0.1"],
            "server fra01-s1 has no `tunnel` address, and others have",
        ),
        (
            ["10.9.0.1", "2001:db8:9::2"],
            "the tunnel has one address family",
        ),
        (["10.9.0.1", "127.0.0.1"], "it is a loopback address"),
        (["10.9.0.1", "224.0.0.9"], "it is a multicast address"),
        (
            ["10.9.0.1", "255.255.255.255"],
            "it is the broadcast address",
        ),
        (["2001:db8:9::1", "fe80::1"], "it is a link-local address"),
        (
            ["2001:db8:9::1", "::ffff:10.9.0.2"],
            "an IPv4 address written as IPv6",
        ),
        (
            ["10.9.0.1", "192.0.2.10"],
            "it is an egress IP of pool partners",
        ),
        (["10.9.0.1", "0.0.0.0"], "at the unspecified address"),
        (["10.9.0.1", "ams01"], "\"ams01\" is not an IP address"),
    ] {
        let found = errors(&reached(addresses), None);
        assert_eq!(found.len(), 1, "{addresses:?}: {found:?}");
        assert!(found[0].contains(said), "{addresses:?}: {found:?}");
    }
}

#[test]
fn this_server_has_its_place() {
    let text = format!("{SAMPLE}{PLACED}");
    for fits in [
        "name = \"fra01-s1\"",
        "name = \"fra01-s1\"\ndata_center = \"fra01\"\nlocation = \"frankfurt\"",
    ] {
        assert_eq!(errors(&text, Some(&server(fits))), [""; 0]);
    }
    let found = errors(&text, Some(&server("name = \"fra01-s3\"")));
    assert!(
        found[0].contains("this server, fra01-s3, is in no location"),
        "{found:?}"
    );
    let wrong = server("name = \"fra01-s1\"\ndata_center = \"ams01\"");
    let found = errors(&text, Some(&wrong));
    assert!(
        found[0].contains("data center fra01 here, but its [server] says ams01"),
        "{found:?}"
    );
    // The other server owns a part of the first address and of the range only.
    let other = text.replace(", \"2001:db8:aa::/64\"", "").replace("address = \"192.0.2.10\"\nshares = [ { data_center = \"fra01\", share = 3 }, { data_center = \"ams01\", share = 1 } ]", "address = \"192.0.2.10\"\nshares = [ { data_center = \"fra01\", share = 3 } ]");
    let found = warnings(&other, Some(&server("name = \"ams01-s1\"")));
    assert!(
        found
            .iter()
            .any(|w| w.contains("ams01-s1, owns nothing of pool partners")),
        "{found:?}"
    );
}

#[test]
fn pool_8_a_gateway_address_is_in_one_data_center_and_two_are_in_two_cities() {
    let text = format!("{SAMPLE}{PLACED}").replace("use = \"cdn\"", "use = \"gateway\"");
    let zone = text.find("[[zone]]").unwrap();
    let rest = text.find("[[location]]").unwrap();
    let text = format!("{}{}", &text[..zone], &text[rest..]);
    let found = errors(&text, None);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("is placed in several data centers (POOL-8)"),
        "{found:?}"
    );
    let one = text.replace("{ data_center = \"fra01\", share = 3 }, ", "");
    assert_eq!(errors(&one, None), [""; 0]);
    assert!(!warnings(&one, None).iter().any(|w| w.contains("POOL-8")));
    let city = one.replace("data_center = \"ams01\"", "data_center = \"fra01\"");
    assert!(
        warnings(&city, None)
            .iter()
            .any(|w| w.contains("in one city (POOL-8)"))
    );
}

/// Two ids of pools that have the same tunnel id.
fn colliding() -> [String; 2] {
    let mut known = std::collections::HashMap::new();
    for number in 0.. {
        let id = format!("pool{number}");
        if let Some(other) = known.insert(crate::forwarding::target(&id), id.clone()) {
            return [other, id];
        }
    }
    unreachable!("there are 24 bits")
}

/// SAFE-1: no pool's tunnel id depends on which other pools a server knows.
#[test]
fn fwd_6_pools_that_cannot_be_told_apart_in_the_tunnel_are_refused_by_name() {
    let [one, other] = colliding();
    println!("{one} and {other} collide");
    let with = |text: String| {
        format!(
            "{text}[[pool]]\nid = \"{one}\"\naccount = \"acme\"\naddresses = [\"2001:db8:b1::/64\"]\n\
             [[pool]]\nid = \"{other}\"\naccount = \"acme\"\naddresses = [\"2001:db8:b2::/64\"]\n"
        )
    };
    let found = errors(&with(reached(["10.9.0.1", "10.9.0.2"])), None);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains(&format!(
            "pool {one} and pool {other} have the same id in the tunnel"
        )),
        "{found:?}"
    );
    // Servers that do not reach each other tell nobody.
    assert_eq!(errors(&with(format!("{SAMPLE}{PLACED}")), None), [""; 0]);
}
