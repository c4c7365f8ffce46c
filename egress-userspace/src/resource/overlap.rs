//! Which prefixes of a set lie inside others.

use ipnet::IpNet;

/// Every prefix that lies inside, or equals, an earlier-sorted one, paired with the smallest such prefix.
///
/// O(n log n): sorted by network and length, the prefixes around the current one form a stack.
pub(super) fn overlaps<T: Copy + Ord>(mut nets: Vec<(IpNet, T)>) -> Vec<((IpNet, T), (IpNet, T))> {
    nets.sort_by_key(|(net, tag)| (net.network(), net.prefix_len(), *tag));
    let mut around: Vec<(IpNet, T)> = Vec::new();
    let mut found = Vec::new();
    for current in nets {
        while around
            .pop_if(|outer| !outer.0.contains(&current.0))
            .is_some()
        {}
        if let Some(outer) = around.last() {
            found.push((*outer, current));
        }
        around.push(current);
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nested_and_equal_prefixes_are_found() {
        let nets = [
            "10.0.0.0/8",
            "10.1.0.0/16",
            "11.0.0.0/8",
            "10.2.0.0/16",
            "10.1.0.0/16",
            "2001:db8::/32",
        ];
        let tagged = nets
            .iter()
            .enumerate()
            .map(|(tag, net)| (net.parse().unwrap(), tag))
            .collect();
        let pairs: Vec<_> = overlaps(tagged)
            .into_iter()
            .map(|(outer, inner)| (outer.1, inner.1))
            .collect();
        assert_eq!(pairs, [(0, 1), (1, 4), (0, 3)]);
    }

    proptest! {
        #[test]
        fn a_prefix_is_reported_exactly_when_another_one_holds_it(raw in prop::collection::vec((0u32..256, 24u8..=32), 0..12)) {
            let nets: Vec<(IpNet, usize)> = raw
                .iter()
                .enumerate()
                .map(|(tag, (low, len))| {
                    let net = ipnet::Ipv4Net::new((0xc000_0200 | low).into(), *len).unwrap().trunc();
                    (IpNet::V4(net), tag)
                })
                .collect();
            let mut found: Vec<usize> = overlaps(nets.clone()).into_iter().map(|(_, inner)| inner.1).collect();
            found.sort_unstable();
            let mut expected: Vec<usize> = nets
                .iter()
                .filter(|(net, tag)| nets.iter().any(|(other, at)| {
                    other.contains(net) && (other != net || at < tag) && at != tag
                }))
                .map(|(_, tag)| *tag)
                .collect();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
