//! The addresses that several servers of one data center share: only of those somebody needs to know what was when.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use egress_common::port::capacity_of;

use crate::placed;
use crate::resource::{Address, Resources};

/// Addresses, each with what all servers of the data center together may have by it to one origin at once. IPv6 has none:
/// each server has addresses of its own.
pub type Shared = HashMap<IpAddr, u64>;

/// Those of the data center of this name.
pub fn shared(resources: &Resources, data_center: &str) -> Shared {
    let mut found = Shared::new();
    for pool in &resources.pools {
        for address in &pool.addresses {
            let Address::V4(address) = *address else {
                continue;
            };
            let holders = placed::holders(resources, address);
            let here = holders
                .iter()
                .filter(|(one, _)| one.data_center.name == data_center);
            let here: Vec<_> = here.collect();
            let names: HashSet<&str> = here
                .iter()
                .map(|(one, _)| one.server.name.as_str())
                .collect();
            if names.len() > 1 {
                let slices = here.iter().fold(0, |all, (_, slices)| all | slices);
                let capacity = capacity_of(pool.connections_per_origin, slices);
                found.insert(address.into(), capacity.into());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;
    use crate::resource;

    #[test]
    fn obs_1_a_data_centers_part_is_that_of_its_servers() {
        let text = r#"
account = [{ id = "a1", name = "acme" }]
[[pool]]
id = "p"
account = "acme"
connections_per_origin = 3100
addresses = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8:aa::/64"]
[[location]]
name = "frankfurt"
[[location.data_center]]
name = "fra01"
server = [{ name = "s1", number = 1 }, { name = "s2", number = 2 }]
[[location.data_center]]
name = "fra02"
server = [{ name = "s3", number = 3 }]
[[placement]]
address = "192.0.2.1"
shares = [{ data_center = "fra01", share = 1 }]
[[placement]]
address = "192.0.2.2"
shares = [{ data_center = "fra01", share = 21 }, { data_center = "fra02", share = 10 }]
[[placement]]
address = "192.0.2.3"
shares = [{ data_center = "fra02", share = 1 }]
"#;
        let (resources, found) = resource::parse(&Source::new("r.toml", text), None);
        let resources = resources.unwrap_or_else(|| panic!("{found}"));
        let address = |last: u8| IpAddr::from([192, 0, 2, last]);
        let expected = Shared::from([(address(1), 3_100), (address(2), 2_100)]);
        assert_eq!(shared(&resources, "fra01"), expected);
        assert_eq!(
            shared(&resources, "fra02"),
            Shared::new(),
            "one server alone"
        );
    }
}
