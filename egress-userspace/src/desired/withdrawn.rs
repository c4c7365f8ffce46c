//! BYOIP prefixes that are kept from the network (ANN-1).

use std::collections::BTreeMap;

use ipnet::IpNet;

use crate::resource::{Address, Resources};

/// Which egress IPs are not announced, because their prefix was withdrawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// The prefixes that are withdrawn, and those inside them that are not: the most specific one counts.
    prefixes: Vec<(IpNet, bool)>,
}

impl Withdrawn {
    /// Those of the resources.
    pub fn of(resources: &Resources) -> Self {
        let all = &resources.prefixes;
        let withdrawn: Vec<IpNet> = all
            .iter()
            .filter(|prefix| prefix.withdrawn)
            .map(|prefix| prefix.cidr)
            .collect();
        let concerns = |cidr: IpNet| withdrawn.iter().any(|around| around.contains(&cidr));
        let mut prefixes: Vec<(IpNet, bool)> = all
            .iter()
            .filter(|prefix| concerns(prefix.cidr))
            .map(|prefix| (prefix.cidr, prefix.withdrawn))
            .collect();
        prefixes.sort();
        Self { prefixes }
    }

    /// The withdrawn prefix that keeps an address, or a range, from being announced.
    pub fn around(&self, net: IpNet) -> Option<IpNet> {
        let around = self.prefixes.iter().filter(|(cidr, _)| cidr.contains(&net));
        let nearest = around.max_by_key(|(cidr, _)| cidr.prefix_len());
        nearest.and_then(|(cidr, withdrawn)| withdrawn.then_some(*cidr))
    }

    /// All withdrawn prefixes, each with those of `addresses` that are not announced for it.
    pub fn among(
        &self,
        addresses: impl IntoIterator<Item = Address>,
    ) -> BTreeMap<IpNet, Vec<Address>> {
        let withdrawn = self.prefixes.iter().filter(|(_, withdrawn)| *withdrawn);
        let mut found: BTreeMap<IpNet, Vec<Address>> =
            withdrawn.map(|(cidr, _)| (*cidr, Vec::new())).collect();
        for address in addresses {
            if let Some(cidr) = self.around(address.net()) {
                found.entry(cidr).or_default().push(address);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::Source;
    use crate::resource;

    #[test]
    fn ann_1_the_most_specific_prefix_says_whether_an_address_is_announced() {
        let text = r#"
account = [{ id = "acme" }]
[[prefix]]
cidr = "198.51.100.0/22"
account = "acme"
advertised = false
[[prefix]]
cidr = "198.51.102.0/24"
account = "acme"
[[prefix]]
cidr = "203.0.113.0/24"
account = "acme"
advertised = true
[[prefix]]
cidr = "2001:db8::/32"
account = "acme"
advertised = false
"#;
        let read = |text: &str| resource::parse(&Source::new("r.toml", text), None);
        let withdrawn = Withdrawn::of(&read(text).0.unwrap());
        let around = |net: &str| withdrawn.around(net.parse().unwrap());
        let outer = "198.51.100.0/22".parse().unwrap();
        assert_eq!(around("198.51.100.7/32"), Some(outer));
        assert_eq!(around("198.51.103.255/32"), Some(outer));
        assert_eq!(around("198.51.102.7/32"), None, "announced by itself");
        assert_eq!(around("203.0.113.7/32"), None);
        assert_eq!(around("192.0.2.1/32"), None, "leased");
        assert!(around("2001:db8:7::/64").is_some());
        assert_eq!(around("2001:db9:7::/64"), None);

        let addresses = ["198.51.100.7", "198.51.102.7", "192.0.2.1"];
        let addresses = addresses.map(|one| one.parse::<Address>().unwrap());
        let among = withdrawn.among(addresses);
        assert_eq!(
            among.into_iter().collect::<Vec<_>>(),
            [
                (outer, vec![addresses[0]]),
                ("2001:db8::/32".parse().unwrap(), Vec::new()),
            ]
        );
        // As it was, unless it is said otherwise.
        let said = "advertised = false\n";
        let silent = read(&text.replace(said, "")).0.unwrap();
        assert_eq!(Withdrawn::of(&silent), Withdrawn::default());
        let wrong = read(&text.replacen("false", "\"no\"", 1)).1.to_string();
        assert!(wrong.contains("advertised"), "{wrong}");
    }
}
