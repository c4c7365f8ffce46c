//! Which server owns what of an egress address: locations and placements, divided (POOL-5, POOL-6).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use egress_common::placement::{Group, Member, digest, divide};
use egress_common::port::ALL_SLICES;
use ipnet::Ipv6Net;

use crate::config;
use crate::desired::DesiredPeer;
use crate::resource::{Address, DataCenter, Location, Resources, Server};

/// Bits of an IPv6 range that hold the server's number, behind the prefix (POOL-6).
const NUMBER_BITS: u8 = 16;
/// The longest range that is divided among servers: 65,536 addresses are left to each.
pub const LONGEST_DIVIDED: u8 = 96;

/// A server and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing<'r> {
    /// The server.
    pub server: &'r Server,
    /// Its data center.
    pub data_center: &'r DataCenter,
    /// The location of that.
    pub location: &'r Location,
}

/// All servers, in the order of the file.
pub fn servers(resources: &Resources) -> impl Iterator<Item = Standing<'_>> {
    resources.locations.iter().flat_map(|location| {
        let all = location.servers();
        all.map(move |(_, data_center, server)| Standing {
            server,
            data_center,
            location,
        })
    })
}

/// The data center that a server stands in: as the locations say, or as it says itself.
pub fn data_center<'a>(resources: &'a Resources, server: &'a config::Server) -> &'a str {
    servers(resources)
        .find(|one| one.server.name == server.name)
        .map_or(&server.data_center, |one| &one.data_center.name)
}

/// The servers that own slices of an IPv4 egress IP by the division, with them. Without locations nobody is named.
///
/// Depends on names alone: all servers that read the same file come to the same division.
pub fn owners(resources: &Resources, address: Ipv4Addr) -> Vec<(Standing<'_>, u32)> {
    divided(resources, address, |_| true, |_| 0)
}

/// Divides the slices of an IPv4 egress IP anew among the servers that take any, by what they `had`: as few move as can be.
pub fn divided<'r>(
    resources: &'r Resources,
    address: Ipv4Addr,
    takes: impl Fn(&str) -> bool,
    had: impl Fn(&str) -> u32,
) -> Vec<(Standing<'r>, u32)> {
    let all: Vec<Standing<'_>> = servers(resources).collect();
    let placement = resources
        .placements
        .iter()
        .find(|placement| placement.address == address);
    let Some(placement) = placement else {
        // With one server there is nothing to place.
        let only = all.first().filter(|_| all.len() == 1);
        let only = only.filter(|one| takes(&one.server.name));
        return only.map(|one| (*one, ALL_SLICES)).into_iter().collect();
    };
    let mut groups: Vec<Group> = placement
        .shares
        .iter()
        .map(|share| Group {
            name: digest(&share.data_center),
            share: share.share,
            slices: 0,
        })
        .collect();
    let (standing, mut members): (Vec<_>, Vec<_>) = all
        .into_iter()
        .filter(|one| takes(&one.server.name))
        .filter_map(|one| {
            let group = placement
                .shares
                .iter()
                .position(|share| share.data_center == one.data_center.name)?;
            let member = Member {
                name: digest(&one.server.name),
                group,
                owned: had(&one.server.name),
                ..Member::default()
            };
            Some((one, member))
        })
        .unzip();
    divide(address.to_bits(), &mut groups, &mut members);
    standing
        .into_iter()
        .zip(members)
        .filter(|(_, member)| member.owned != 0)
        .map(|(one, member)| (one, member.owned))
        .collect()
}

/// The slices of an IPv4 egress IP that the server of this name owns by the division: all, where no locations are told.
pub fn slices_of(resources: &Resources, server: &str, address: Ipv4Addr) -> u32 {
    if resources.locations.is_empty() {
        return ALL_SLICES;
    }
    owners(resources, address)
        .into_iter()
        .find(|(one, _)| one.server.name == server)
        .map_or(0, |(_, slices)| slices)
}

/// The slices of an IPv4 egress IP in which the server of this name may open flows now: those that it holds, where servers
/// share a store (CLU-3), else those of the division; none while it drains (FWD-7).
pub fn open_slices(resources: &Resources, server: &str, address: Ipv4Addr) -> u32 {
    if resources.drains_server(server) {
        return 0;
    }
    match &resources.ownership {
        Some(ownership) => ownership.open(server, address),
        None => slices_of(resources, server, address),
    }
}

/// The slices of an IPv4 egress IP whose replies come to the server of this name: also those in which it may open nothing.
pub fn held_slices(resources: &Resources, server: &str, address: Ipv4Addr) -> u32 {
    match &resources.ownership {
        Some(_) if is_another_hosts(resources, server) => 0,
        Some(ownership) => {
            let row = ownership.rows.get(&address);
            row.map_or(0, |row| row.held(server))
        }
        None => slices_of(resources, server, address),
    }
}

/// The servers to which replies to an IPv4 egress IP go, with their slices: also those that they are to pass on (CLU-3).
pub fn holders(resources: &Resources, address: Ipv4Addr) -> Vec<(Standing<'_>, u32)> {
    let Some(ownership) = &resources.ownership else {
        return owners(resources, address);
    };
    let Some(row) = ownership.rows.get(&address) else {
        return Vec::new();
    };
    let held = servers(resources).map(|one| (one, row.held(&one.server.name)));
    held.filter(|(_, slices)| *slices != 0).collect()
}

/// The slices of an address that become `server`'s and were others', with the names of those.
pub fn taken_over(
    before: &Resources,
    after: &Resources,
    server: &str,
    address: Ipv4Addr,
) -> (u32, Vec<String>) {
    let mine = slices_of(after, server, address);
    let (mut taken, mut from) = (0, Vec::new());
    for (one, slices) in owners(before, address) {
        if one.server.name != server && slices & mine != 0 {
            taken |= slices & mine;
            from.push(one.server.name.clone());
        }
    }
    (taken, from)
}

/// The servers that used something of `server`'s part of an IPv6 range before, whatever ranges that lay in.
pub fn taken_over_part(
    before: &Resources,
    after: &Resources,
    server: &str,
    range: Ipv6Net,
) -> Vec<String> {
    let Some(mine) = part_of(after, server, range) else {
        return Vec::new();
    };
    let ranges = before.pools.iter().flat_map(|pool| &pool.addresses);
    let mut from = BTreeSet::new();
    for address in ranges {
        let Address::V6(range) = *address else {
            continue;
        };
        for one in servers(before).filter(|one| one.server.name != server) {
            let theirs = part_of(before, &one.server.name, range);
            if theirs.is_some_and(|part| part.contains(&mine) || mine.contains(&part)) {
                from.insert(one.server.name.clone());
            }
        }
    }
    from.into_iter().collect()
}

/// Whether this host goes by the name of a server, and another host is that server: then nothing is its own (CLU-3).
fn is_another_hosts(resources: &Resources, server: &str) -> bool {
    let ownership = resources.ownership.as_ref();
    ownership.is_some_and(|ownership| ownership.is_another_hosts(server))
}

/// The part of an IPv6 range that the server of this name uses; `None` if it has none.
pub fn part_of(resources: &Resources, server: &str, range: Ipv6Net) -> Option<Ipv6Net> {
    if is_another_hosts(resources, server) {
        return None;
    }
    if resources.locations.is_empty() {
        return Some(range);
    }
    let found = servers(resources).find(|one| one.server.name == server)?;
    match found.server.number {
        Some(number) => numbered(range, number),
        None => (servers(resources).count() == 1).then_some(range),
    }
}

/// Where the server of this name is reached by the others, and what each of those owns; `None` where it has no
/// tunnel, or there is nobody else (FWD-5).
pub fn others(resources: &Resources, server: &str) -> Option<(IpAddr, Vec<DesiredPeer>)> {
    if is_another_hosts(resources, server) {
        return None;
    }
    let all = || servers(resources);
    let own = all().find(|one| one.server.name == server)?.server.tunnel?;
    let mut peers: Vec<DesiredPeer> = all()
        .filter(|one| one.server.name != server)
        .filter_map(|one| {
            Some(DesiredPeer {
                name: one.server.name.clone(),
                address: one.server.tunnel?,
                slices: Vec::new(),
                ranges: Vec::new(),
            })
        })
        .collect();
    for address in resources.pools.iter().flat_map(|pool| &pool.addresses) {
        match *address {
            Address::V4(address) => {
                for (owner, slices) in holders(resources, address) {
                    let found = peers.iter_mut().find(|peer| peer.name == owner.server.name);
                    if let Some(peer) = found {
                        peer.slices.push((address, slices));
                    }
                }
            }
            Address::V6(range) => {
                for peer in &mut peers {
                    peer.ranges.extend(part_of(resources, &peer.name, range));
                }
            }
        }
    }
    (!peers.is_empty()).then_some((own, peers))
}

/// The part of a range that belongs to the server of this number: the prefix goes on with it.
pub fn numbered(range: Ipv6Net, number: u16) -> Option<Ipv6Net> {
    if range.prefix_len() > LONGEST_DIVIDED {
        return None;
    }
    let length = range.prefix_len() + NUMBER_BITS;
    let bits = range.network().to_bits() | u128::from(number) << (128 - length);
    Ipv6Net::new(bits.into(), length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;
    use crate::resource;
    use egress_common::port::capacity;

    const FILE: &str = r#"
account = [{ id = "acme" }]
[[pool]]
id = "partners"
account = "acme"
addresses = ["192.0.2.10", "192.0.2.11", "2001:db8:aa::/64"]
[[location]]
name = "frankfurt"
[[location.data_center]]
name = "fra01"
server = [{ name = "fra01-s1", number = 1 }, { name = "fra01-s2", number = 2 }]
[[location]]
name = "amsterdam"
[[location.data_center]]
name = "ams01"
server = [{ name = "ams01-s1", number = 0x1234 }]
[[placement]]
address = "192.0.2.10"
shares = [ { data_center = "fra01", share = 3 }, { data_center = "ams01", share = 1 } ]
[[placement]]
address = "192.0.2.11"
shares = [ { data_center = "ams01", share = 1 } ]
"#;

    fn model() -> Resources {
        let (model, found) = resource::parse(&Source::new("r.toml", FILE), None);
        model.unwrap_or_else(|| panic!("{found}"))
    }

    #[test]
    fn pool_5_shares_become_slices_of_servers() {
        let model = model();
        let ten = Ipv4Addr::new(192, 0, 2, 10);
        let found = owners(&model, ten);
        let counts: Vec<(&str, u32)> = found
            .iter()
            .map(|(one, slices)| (one.server.name.as_str(), slices.count_ones()))
            .collect();
        // 31 * 3 / 4 is 23.25.
        let of = |name| counts.iter().find(|(other, _)| *other == name).unwrap().1;
        assert_eq!(of("ams01-s1"), 8);
        assert_eq!(of("fra01-s1") + of("fra01-s2"), 23);
        assert!(of("fra01-s1").abs_diff(of("fra01-s2")) == 1);
        assert_eq!(
            found.iter().fold(0, |all, (_, slices)| all ^ slices),
            ALL_SLICES
        );
        let sum: u32 = found.iter().map(|(_, slices)| capacity(*slices)).sum();
        assert_eq!(sum, 40_000);
        let eleven = Ipv4Addr::new(192, 0, 2, 11);
        assert_eq!(slices_of(&model, "ams01-s1", eleven), ALL_SLICES);
        assert_eq!(slices_of(&model, "fra01-s1", eleven), 0);
    }

    #[test]
    fn fwd_5_what_others_own_is_what_this_server_does_not() {
        let mut model = model();
        assert_eq!(others(&model, "fra01-s1"), None, "they have no tunnel");
        let mut next = 1;
        for location in &mut model.locations {
            let all = location.data_centers.iter_mut();
            for server in all.flat_map(|one| &mut one.servers) {
                server.tunnel = Some(Ipv4Addr::new(10, 9, 0, next).into());
                next += 1;
            }
        }
        let (own, peers) = others(&model, "fra01-s1").unwrap();
        assert_eq!(own, IpAddr::from([10, 9, 0, 1]));
        let names: Vec<&str> = peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["fra01-s2", "ams01-s1"]);
        let ten = Ipv4Addr::new(192, 0, 2, 10);
        let theirs = |peer: &DesiredPeer| {
            let of_ten = peer.slices.iter().find(|(address, _)| *address == ten);
            of_ten.map_or(0, |(_, slices)| *slices)
        };
        let mut all = slices_of(&model, "fra01-s1", ten);
        for peer in &peers {
            assert_eq!(all & theirs(peer), 0);
            all |= theirs(peer);
        }
        assert_eq!(all, ALL_SLICES);
        assert_eq!(peers[0].ranges, ["2001:db8:aa:0:2::/80".parse().unwrap()]);
        assert_eq!(others(&model, "nobody"), None);
    }

    #[test]
    fn pool_5_the_store_keeps_another_order_and_the_same_owners() {
        let mut other = model();
        other.locations.reverse();
        other.placements[0].shares.reverse();
        for server in ["fra01-s1", "fra01-s2", "ams01-s1"] {
            let slices = |model: &Resources| slices_of(model, server, Ipv4Addr::new(192, 0, 2, 10));
            assert_eq!(slices(&model()), slices(&other));
        }
    }

    #[test]
    fn pool_6_a_servers_part_of_a_range_ends_in_its_number() {
        let model = model();
        let range: Ipv6Net = "2001:db8:aa::/64".parse().unwrap();
        let part = |server| part_of(&model, server, range).map(|part| part.to_string());
        assert_eq!(part("fra01-s1").as_deref(), Some("2001:db8:aa:0:1::/80"));
        assert_eq!(part("ams01-s1").as_deref(), Some("2001:db8:aa:0:1234::/80"));
        assert_eq!(part("nobody"), None);
        let odd: Ipv6Net = "2001:db8:aa:8000::/49".parse().unwrap();
        assert_eq!(
            numbered(odd, 1).unwrap().to_string(),
            "2001:db8:aa:8000:8000::/65"
        );
        assert_eq!(numbered("2001:db8::/97".parse().unwrap(), 1), None);
    }

    #[test]
    fn pool_6_a_number_of_another_server_takes_its_part() {
        let before = model();
        let range: Ipv6Net = "2001:db8:aa::/64".parse().unwrap();
        let from = |after: &Resources, server| taken_over_part(&before, after, server, range);
        assert_eq!(from(&before, "fra01-s1"), [""; 0], "its own");

        let mut swapped = model();
        for location in &mut swapped.locations {
            for server in location
                .data_centers
                .iter_mut()
                .flat_map(|one| &mut one.servers)
            {
                server.number = match server.number {
                    Some(1) => Some(0x1234),
                    Some(0x1234) => Some(1),
                    other => other,
                };
            }
        }
        assert_eq!(from(&swapped, "fra01-s1"), ["ams01-s1"]);
        assert_eq!(from(&swapped, "ams01-s1"), ["fra01-s1"]);
        assert_eq!(from(&swapped, "fra01-s2"), [""; 0]);

        // Alone, it has all of the range, and of a larger one.
        let mut alone = model();
        alone.locations.clear();
        assert_eq!(from(&alone, "fra01-s1"), ["ams01-s1", "fra01-s2"]);
        let larger: Ipv6Net = "2001:db8:aa::/48".parse().unwrap();
        let from = taken_over_part(&before, &alone, "fra01-s1", larger);
        assert_eq!(from, ["ams01-s1", "fra01-s2"]);
        let other: Ipv6Net = "2001:db8:bb::/64".parse().unwrap();
        assert_eq!(taken_over_part(&before, &alone, "fra01-s1", other), [""; 0]);
    }
}
