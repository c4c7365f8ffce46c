//! POLICY-1 to POLICY-5, ZONE-5: egress policies, as the daemon compiles them, decided by the real programs.

use std::net::IpAddr;

use egress_common::policy::{Exit, Rule};
use egress_common::reason::Reason;
use egress_common::record::{self, kind};
use egress_userspace::dataplane::api::Protocol;
use egress_userspace::desired::{Desired, DesiredExit, DesiredPolicy, DesiredZone, Selectors};
use egress_userspace::policy::compile::{self, Tables};
use egress_userspace::policy::{Facts, parse};

use super::errors::NO_PORT;
use super::{Address, DataPlane, EGRESS, EGRESS_2, Endpoint, INSIDE, ORIGIN, Packet, at};
use crate::harness::Told;
use crate::packet::{ACK, RST, SYN};
use crate::seed::Random;
use crate::world::{self, ENABLED, POOL, World, ZONE};

/// A second enabled zone, of an account without policies.
const OTHER_ZONE: u32 = 9;
const OTHER: Endpoint = (at([10, 3, 0, 2]), 40_000);

/// The candidates of [`POOL`], from 1.
const FIRST: Exit = by(1);
const SECOND: Exit = by(2);
const DEFAULT: Exit = Exit {
    pool: 0,
    candidate: 0,
};
const NOWHERE: Exit = by(0);

const fn by(candidate: u32) -> Exit {
    Exit {
        pool: POOL,
        candidate,
    }
}

fn zone(number: u32, name: &str) -> DesiredZone {
    DesiredZone {
        number: number as u16,
        id: name.into(),
        name: name.into(),
        enabled: true,
        pool: Some(POOL as u16),
        selectors: Selectors::default(),
        realm: false,
        egress_tcp: true,
        egress_udp: true,
    }
}

/// Policies of the account of [`ZONE`], in order, and the tables they make.
fn compiled(policies: &[(&str, Exit)]) -> (Desired, Tables) {
    let policy = |(traffic, _): &(&str, Exit)| DesiredPolicy {
        name: (*traffic).into(),
        zones: vec![ZONE as u16],
        traffic: (!traffic.is_empty()).then(|| parse(traffic).unwrap()),
        ipv4: DesiredExit::Default,
        ipv6: DesiredExit::Default,
    };
    let desired = Desired {
        zones: vec![zone(ZONE, "zone"), zone(OTHER_ZONE, "other")],
        policies: policies.iter().map(policy).collect(),
        ..Desired::default()
    };
    let place = |of: &DesiredPolicy| {
        desired
            .policies
            .iter()
            .position(|one| std::ptr::eq(one, of))
    };
    let exit = |of: &DesiredPolicy| {
        let exit = policies[place(of).unwrap()].1;
        (exit, exit)
    };
    let tables = compile::compile(&desired, exit).unwrap();
    (desired, tables)
}

fn world() -> World {
    let mut world = World::default().with_addresses(&[world::EGRESS, world::EGRESS_2]);
    world.zones.push((OTHER_ZONE, ENABLED, POOL));
    world.sources.push(([10, 3, 0, 0], 16, OTHER_ZONE));
    world
}

/// A data plane of two addresses under these policies.
fn policed(policies: &[(&str, Exit)]) -> Option<DataPlane> {
    let mut plane = DataPlane::of(world())?;
    let (_, tables) = compiled(policies);
    plane.police(0, &tables);
    Some(plane)
}

fn text(address: Address) -> String {
    IpAddr::from(address).to_string()
}

fn syn(from: Endpoint, to: Endpoint) -> Packet {
    Packet::tcp(from, to, SYN)
}

#[test]
fn policy_1_the_first_match_by_precedence_decides_by_which_address_a_flow_leaves() {
    let origin = text(ORIGIN.0);
    let to_origin = format!("net.dst.ip == {origin}");
    let https = format!("net.dst.port == 443 and {to_origin}");
    for (policies, expected) in [
        (
            [(https.as_str(), SECOND), (to_origin.as_str(), FIRST)],
            EGRESS_2,
        ),
        (
            [(to_origin.as_str(), FIRST), (https.as_str(), SECOND)],
            EGRESS,
        ),
    ] {
        let Some(plane) = policed(&policies) else {
            return;
        };
        // Whichever address the inside host prefers (CAP-9).
        for host in 0..16 {
            let inside = (at([10, 1, 1, host]), 40_000);
            assert_eq!(plane.leaves(&syn(inside, ORIGIN)).0, expected);
            assert_eq!(plane.leaves(&Packet::udp(inside, ORIGIN, b"x")).0, expected);
        }
        plane.consistent();
    }
}

#[test]
fn zone_5_what_no_policy_matches_and_other_accounts_zones_leave_by_the_zones_pool() {
    let Some(plane) = policed(&[("net.dst.port == 443", SECOND)]) else {
        return;
    };
    let both = |from: [u8; 4], origin: Endpoint| {
        let leaves = |host| {
            let inside = (at([from[0], from[1], 1, host]), 40_000);
            plane.leaves(&syn(inside, origin)).0
        };
        let mut found: Vec<Address> = (0..32).map(leaves).collect();
        found.sort_unstable();
        found.dedup();
        found.len()
    };
    assert_eq!(both([10, 1, 0, 0], ORIGIN), 1);
    assert_eq!(both([10, 1, 0, 0], (ORIGIN.0, 80)), 2, "no policy matches");
    assert_eq!(both([10, 3, 0, 0], ORIGIN), 2, "another account's zone");
    plane.leaves(&syn(OTHER, ORIGIN));
}

#[test]
fn policy_3_the_default_egress_of_a_policy_leaves_packets_as_they_are() {
    let Some(plane) = policed(&[("net.dst.port == 443", DEFAULT), ("", SECOND)]) else {
        return;
    };
    plane.passes(&syn(INSIDE, ORIGIN));
    // It has no flow, so every packet of it is looked up.
    plane.passes(&Packet::tcp(INSIDE, ORIGIN, ACK).payload(b"more"));
    plane.passes(&Packet::udp(INSIDE, ORIGIN, b"x"));
    assert_eq!(plane.all_active(), 0);
    let other = (ORIGIN.0, 80);
    let late = plane.answered(&Packet::tcp(INSIDE, other, ACK).numbers(1, 1));
    assert_eq!(
        late.clone().segment().control,
        RST,
        "nothing else passes: {late:?}"
    );
    assert_eq!(plane.leaves(&syn(INSIDE, other)).0, EGRESS_2);
}

#[test]
fn policy_3_an_error_takes_the_default_egress_where_what_it_is_about_does() {
    let Some(plane) = policed(&[("net.dst.port == 443", DEFAULT)]) else {
        return;
    };
    let error = |port| {
        let about = Packet::udp((ORIGIN.0, port), INSIDE, b"hello").ip_bytes();
        Packet::icmp(INSIDE.0, ORIGIN.0, NO_PORT.0, NO_PORT.1, &about)
    };
    plane.passes(&error(443));
    plane.dropped(
        crate::harness::Hook::UplinkEgress,
        &error(80),
        Reason::IcmpError,
    );
}

/// What an error quotes is its sender's word: it does not lend another host a policy that is not its own.
#[test]
fn safe_1_an_error_about_a_neighbour_does_not_leave_by_the_neighbours_policy() {
    let of_inside = format!("net.src.ip == {}", text(INSIDE.0));
    let Some(plane) = policed(&[(of_inside.as_str(), DEFAULT)]) else {
        return;
    };
    let about = Packet::udp((ORIGIN.0, 443), INSIDE, b"hello").ip_bytes();
    let from = |source| Packet::icmp(source, ORIGIN.0, NO_PORT.0, NO_PORT.1, &about);
    plane.passes(&from(INSIDE.0));
    plane.dropped(
        crate::harness::Hook::UplinkEgress,
        &from(at([10, 1, 0, 9])),
        Reason::IcmpError,
    );
}

#[test]
fn safe_1_a_policy_whose_address_this_server_has_no_part_of_refuses() {
    let Some(plane) = policed(&[("", NOWHERE)]) else {
        return;
    };
    plane.answered(&syn(INSIDE, ORIGIN));
    assert_eq!(plane.reason(Reason::NoAddress), 1);
    assert_eq!(plane.all_active(), 0);
    plane.leaves(&syn(OTHER, ORIGIN));
}

#[test]
fn safe_5_a_flow_stays_on_its_address_and_new_ones_go_by_the_version_in_force() {
    let Some(mut plane) = policed(&[("", FIRST)]) else {
        return;
    };
    let egress = plane.establish(INSIDE, ORIGIN, (1, 1));
    assert_eq!(egress.0, EGRESS);
    let world = plane.world.clone();
    plane.write(1, &world);
    let (_, tables) = compiled(&[("net.dst.port == 443", SECOND), ("", DEFAULT)]);
    plane.police(1, &tables);
    let next = |plane: &DataPlane, port| plane.leaves(&syn((INSIDE.0, port), ORIGIN)).0;
    assert_eq!(next(&plane, 40_001), EGRESS, "it is not in force yet");
    plane.switch(1);
    assert_eq!(next(&plane, 40_002), EGRESS_2);
    plane.passes(&syn(INSIDE, (ORIGIN.0, 80)));
    // Its first packet after another, so that nothing of that one's policy is left.
    assert_eq!(plane.leaves(&syn(OTHER, (ORIGIN.0, 80))).1, OTHER.1);
    let data = Packet::tcp(INSIDE, ORIGIN, ACK).numbers(2, 2).payload(b"x");
    assert_eq!(plane.leaves(&data), egress);
    plane.arrives(&Packet::tcp(ORIGIN, egress, ACK).numbers(2, 3), INSIDE);
    plane.consistent();
}

#[test]
fn a_hole_in_the_tables_refuses() {
    let Some(mut plane) = policed(&[("net.dst.port == 443", SECOND)]) else {
        return;
    };
    // What the daemon never writes.
    plane.array(
        "POLICY_PORTS",
        egress_common::policy::of_destination_port(0, 443),
        u32::MAX,
    );
    plane.answered(&syn(INSIDE, ORIGIN));
    assert_eq!(plane.reason(Reason::Blocked), 1);
    assert_eq!(plane.all_active(), 0, "it fails closed");
}

/// Random policies and packets against the expressions, evaluated one after the other.
#[test]
fn policy_1_the_programs_decide_as_the_expressions_do() {
    let mut random = Random::announced("policies and packets");
    for _ in 0..6 {
        let fields: Vec<(String, Exit)> = (0..8).map(|_| random_policy(&mut random)).collect();
        let policies: Vec<(&str, Exit)> = fields
            .iter()
            .map(|(text, exit)| (text.as_str(), *exit))
            .collect();
        let Some(plane) = policed(&policies) else {
            return;
        };
        let (desired, _) = compiled(&policies);
        for _ in 0..64 {
            let from = (
                at([10, 1, 0, random.below(4) as u8]),
                40_000 + random.below(4) as u16,
            );
            let to = (
                at([192, 0, 2, random.below(4) as u8]),
                440 + random.below(4) as u16,
            );
            let tcp = random.below(2) == 0;
            let facts = Facts {
                source: from.0.into(),
                source_port: from.1,
                destination: to.0.into(),
                destination_port: to.1,
                protocol: if tcp { Protocol::Tcp } else { Protocol::Udp },
                zone: ("zone", "zone"),
            };
            let met = desired.policies.iter().position(|policy| {
                policy
                    .traffic
                    .as_ref()
                    .is_none_or(|traffic| traffic.matches(&facts))
            });
            let packet = if tcp {
                syn(from, to)
            } else {
                Packet::udp(from, to, b"x")
            };
            match met.map(|met| policies[met].1) {
                Some(DEFAULT) => plane.passes(&packet),
                Some(exit) => {
                    let expected = [EGRESS, EGRESS_2][exit.candidate as usize - 1];
                    assert_eq!(plane.leaves(&packet).0, expected, "{policies:?} {facts:?}");
                }
                None => {
                    plane.leaves(&packet);
                }
            }
        }
    }
}

fn random_policy(random: &mut Random) -> (String, Exit) {
    let host = |net: [u8; 4]| text(at(net));
    let test = |random: &mut Random| {
        let n = random.below(4) as u8;
        match random.below(6) {
            0 => format!("net.src.ip == {}", host([10, 1, 0, n])),
            1 => format!(
                "net.dst.ip in {{{} {}}}",
                host([192, 0, 2, n]),
                host([192, 0, 2, 3])
            ),
            2 => format!("net.dst.ip != {}", host([192, 0, 2, n])),
            3 => format!("net.src.port >= {}", 40_000 + u16::from(n)),
            4 => format!("net.dst.port in {{440..{}}}", 440 + u16::from(n)),
            _ => format!("net.protocol == \"{}\"", if n < 2 { "tcp" } else { "udp" }),
        }
    };
    let (one, other, third) = (test(random), test(random), test(random));
    let text = match random.below(4) {
        0 => format!("{one} and {other} and {third}"),
        1 => format!("({one} or {other}) and {third}"),
        2 => format!("not ({one} or {other})"),
        _ => format!("{one} and not {third}"),
    };
    (text, [FIRST, SECOND, DEFAULT][random.below(3) as usize])
}

#[test]
fn the_record_of_a_rule_has_no_padding() {
    assert_eq!(size_of::<Rule>(), 20);
}

#[test]
fn obs_4_the_flow_log_names_the_policy_that_decided() {
    let mut world = world();
    world.settings.log = 1 << kind::OPEN | 1 << kind::REFUSED;
    let Some(mut plane) = DataPlane::of(world) else {
        return;
    };
    let (_, tables) = compiled(&[
        ("net.dst.port in {80 8080..8090}", FIRST),
        ("net.dst.port == 443", SECOND),
        ("net.dst.port == 25", NOWHERE),
    ]);
    plane.police(0, &tables);
    let mut log = plane.flow_log();
    let mut policy = |port| {
        plane.out(&syn(INSIDE, (ORIGIN.0, port)));
        let told = log.told::<Address>();
        assert_eq!(told.len(), 1);
        match told[0] {
            Told::Opened(flow) => flow.head.policy,
            Told::Refused(refusal) => refusal.head.policy,
            Told::Closed(..) => panic!("{told:?}"),
        }
    };
    assert_eq!(record::which(policy(443)), Some((0, 1)));
    assert_eq!(record::which(policy(80)), Some((0, 0)));
    assert_eq!(record::which(policy(25)), Some((0, 2)));
    assert_eq!(record::which(policy(53)), None, "the zone's own pool");
}
