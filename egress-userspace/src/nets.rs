//! Values by networks, found by an address that is in one: as many look-ups as there are lengths of prefixes, however
//! many networks.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

/// A value for each network.
#[derive(Clone, Debug)]
pub(crate) struct Nets<T> {
    values: HashMap<IpNet, T>,
    /// Lengths of prefixes.
    lengths: BTreeSet<u8>,
}

impl<T: Default> Nets<T> {
    /// The default value for each of these.
    pub(crate) fn of(nets: impl IntoIterator<Item = IpNet>) -> Self {
        let values: HashMap<IpNet, T> = nets
            .into_iter()
            .map(|net| (net.trunc(), T::default()))
            .collect();
        let lengths = values.keys().map(IpNet::prefix_len).collect();
        Self { values, lengths }
    }

    /// The value of a network.
    pub(crate) fn get(&self, net: IpNet) -> Option<&T> {
        self.values.get(&net.trunc())
    }

    /// Changes the values of all networks that an address is in.
    pub(crate) fn change(&mut self, address: IpAddr, mut change: impl FnMut(&mut T)) {
        for length in &self.lengths {
            // No IPv4 network is longer than 32.
            let net = IpNet::new(address, *length).ok();
            if let Some(value) = net.and_then(|net| self.values.get_mut(&net.trunc())) {
                change(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_all_networks_that_contain_it_and_in_no_other() {
        let texts = [
            "192.0.2.10/32",
            "192.0.2.11/32",
            "192.0.2.0/24",
            "2001:db8::/64",
            "2001:db8::/32",
            "2001:db8:0:1::7/64",
        ];
        let nets = texts.map(|text| text.parse::<IpNet>().unwrap());
        let mut seen = Nets::<u32>::of(nets);
        let addresses = [
            "192.0.2.10",
            "192.0.2.12",
            "198.51.100.1",
            "2001:db8::9",
            "2001:db8:0:1::1",
            "2001:db9::",
        ];
        for address in addresses {
            seen.change(address.parse().unwrap(), |value| *value += 1);
        }
        let slowly = nets.map(|net| {
            let inside = |text: &&&str| net.contains(&text.parse::<IpAddr>().unwrap());
            u32::try_from(addresses.iter().filter(inside).count()).unwrap()
        });
        assert_eq!(nets.map(|net| *seen.get(net).unwrap()), slowly);
        assert_eq!(slowly, [1, 0, 2, 1, 2, 1]);
        assert_eq!(seen.get("192.0.2.12/32".parse().unwrap()), None);
    }
}
