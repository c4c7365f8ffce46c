//! Which egress policy a packet without a flow meets (POLICY-1, ZONE-5), and where that lets it leave.

use egress_common::family::{V4, V6};
use egress_common::key::TCP;
use egress_common::packet;
use egress_common::policy::{
    Exit, FIELDS, MAX_RULES, MAX_SETS, Rule, RuleSet, Sets, of_destination_port, of_source_port,
    set,
};
use egress_common::reason::Reason;
use egress_common::settings::{MAX_ZONES, Selected};

use crate::classify::{Configuration, Selectable, host4, host6};
use crate::maps::{
    POLICY_FROM4, POLICY_FROM6, POLICY_PORTS, POLICY_RULES, POLICY_SETS, POLICY_TO4, POLICY_TO6,
    POLICY_ZONES,
};
use crate::outgoing::{Outgoing, next};

/// Address families that policies know.
pub trait Policed: Selectable {
    /// The set of a source address.
    fn source(version: u32, address: Self) -> Option<u32>;
    /// The set of a destination address.
    fn destination(version: u32, address: Self) -> Option<u32>;
    /// How its packets leave.
    fn exit(rule: &Rule) -> Exit;
}

#[inline(always)]
fn number(selected: Option<&Selected>) -> Option<u32> {
    selected.map(|selected| selected.zone)
}

impl Policed for V4 {
    #[inline(always)]
    fn source(version: u32, address: Self) -> Option<u32> {
        number(POLICY_FROM4.get(&host4(version, address)))
    }
    #[inline(always)]
    fn destination(version: u32, address: Self) -> Option<u32> {
        number(POLICY_TO4.get(&host4(version, address)))
    }
    #[inline(always)]
    fn exit(rule: &Rule) -> Exit {
        rule.exit4
    }
}

impl Policed for V6 {
    #[inline(always)]
    fn source(version: u32, address: Self) -> Option<u32> {
        number(POLICY_FROM6.get(&host6(version, address)))
    }
    #[inline(always)]
    fn destination(version: u32, address: Self) -> Option<u32> {
        number(POLICY_TO6.get(&host6(version, address)))
    }
    #[inline(always)]
    fn exit(rule: &Rule) -> Exit {
        rule.exit6
    }
}

/// Decides for a packet whose zone is known, or for what it quotes as an ICMP error. Policies are about TCP and UDP.
/// [`next::ADMIT`]: a new flow leaves by the packet's pool, of which a policy may have chosen one address.
/// [`next::FORWARD`]: a policy has chosen an address that other servers have. [`next::PASS`]: a policy leaves it on the
/// default egress. [`next::REFUSE`]: for the packet's reason.
#[inline(always)]
pub fn decide<A: Policed>(configuration: &Configuration, packet: &mut Outgoing<A>) -> i32 {
    if configuration.settings().rules == 0 || !packet::translated(packet.about) {
        return next::ADMIT;
    }
    look_up(packet)
}

/// A function of its own, so that what it needs of the stack is given back.
#[inline(never)]
fn look_up<A: Policed>(packet: &mut Outgoing<A>) -> i32 {
    let version = packet.version & 1;
    let zone = match POLICY_ZONES.get(version * MAX_ZONES + packet.zone).copied() {
        // Its account has none.
        None | Some(set::NONE) => return next::ADMIT,
        Some(zone) => zone,
    };
    let all = sets(version, zone, packet).and_then(|sets| members(version, &sets));
    let Some(all) = all else {
        // A table that the daemon fills completely has a hole.
        packet.reason = Reason::Blocked;
        return next::REFUSE;
    };
    let Some(rule) = RuleSet::first_of_all(all) else {
        return next::ADMIT;
    };
    let Some(rule) = POLICY_RULES.get(version * MAX_RULES + rule) else {
        packet.reason = Reason::Blocked;
        return next::REFUSE;
    };
    packet.policy = rule.policy + 1;
    let exit = A::exit(rule);
    if exit.pool == 0 {
        // What an error quotes is its sender's word: it vouches for nobody but the one who was asked (SAFE-1).
        if packet.ip.protocol != packet.about && packet.key.inside != packet.ip.source {
            packet.reason = Reason::IcmpError;
            return next::REFUSE;
        }
        return next::PASS;
    }
    packet.pool = exit.pool;
    packet.exit = 0;
    if exit.candidate & Exit::ELSEWHERE != 0 {
        packet.exit = exit.candidate & !Exit::ELSEWHERE;
        return next::FORWARD;
    }
    if exit.candidate == 0 {
        packet.reason = Reason::NoAddress;
        return next::REFUSE;
    }
    packet.only = exit.candidate;
    next::ADMIT
}

/// The sets of a packet's fields.
#[inline(always)]
fn sets<A: Policed>(version: u32, zone: u32, packet: &Outgoing<A>) -> Option<Sets> {
    let key = &packet.key;
    Some(Sets {
        zone,
        source: A::source(version, key.inside)?,
        destination: A::destination(version, key.origin)?,
        source_port: *POLICY_PORTS.get(of_source_port(version, key.inside_port))?,
        destination_port: *POLICY_PORTS.get(of_destination_port(version, key.origin_port))?,
        protocol: if packet.about == TCP {
            set::TCP
        } else {
            set::UDP
        },
    })
}

/// What is in them.
#[inline(always)]
fn members(version: u32, sets: &Sets) -> Option<[&'static RuleSet; FIELDS]> {
    Some([
        of(version, sets.zone)?,
        of(version, sets.source)?,
        of(version, sets.destination)?,
        of(version, sets.source_port)?,
        of(version, sets.destination_port)?,
        of(version, sets.protocol)?,
    ])
}

#[inline(always)]
fn of(version: u32, set: u32) -> Option<&'static RuleSet> {
    if set >= MAX_SETS {
        return None;
    }
    POLICY_SETS.get(version * MAX_SETS + set)
}
