//! Where packets of enabled zones may go: to exempt destinations, inside, and to uplinks that have our programs.

use std::collections::BTreeSet;

use egress_common::family::{V4, V6};
use egress_common::icmp::Quote;
use egress_common::packet::IcmpKind;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{ELSEWHERE, Stage, UNSEEN, Writer, list, types};
use crate::config::{DNS_PORT, IcmpQueries};

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK: u32 = 1;

/// ICMP queries and their answers in an address family, as the data plane tells them from errors.
fn queries<A: Quote>() -> String {
    types(|kind| A::icmp_kind(kind) == IcmpKind::Query)
}

/// Follows a resolver's address; the port is [`DNS_PORT`].
const DNS: &str = " meta l4proto { tcp, udp } th dport 53";
const _: () = assert!(DNS_PORT == 53);

impl Writer<'_> {
    /// Where a packet of an enabled zone may go.
    pub(super) fn destinations(&mut self, stage: Stage) {
        let chain = stage.chain();
        for (suffix, other) in [("_tcp", "udp"), ("_udp", "tcp"), ("_other", "{ tcp, udp }")] {
            let narrow = format!("{chain}{suffix}");
            self.rule(&narrow, format_args!("meta l4proto {other} accept"));
            self.rule(&narrow, format_args!("goto {chain}"));
        }

        let exempt = &self.desired.exempt;
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for net in &exempt.destinations {
            match net {
                IpNet::V4(net) => v4.push(*net),
                IpNet::V6(net) => v6.push(*net),
            }
        }
        // Sets must not overlap within themselves.
        let sets = [
            ("ip daddr", list(Ipv4Net::aggregate(&v4)), ""),
            ("ip6 daddr", list(Ipv6Net::aggregate(&v6)), ""),
            (
                "ip daddr",
                list(exempt.resolvers.iter().filter(|address| address.is_ipv4())),
                DNS,
            ),
            (
                "ip6 daddr",
                list(exempt.resolvers.iter().filter(|address| address.is_ipv6())),
                DNS,
            ),
        ];
        for (expression, set, more) in sets {
            if !set.is_empty() {
                self.rule(chain, format_args!("{expression} {{ {set} }}{more} accept"));
            }
        }
        if exempt.icmp_queries == IcmpQueries::Default {
            self.rule(chain, format_args!("icmp type {} accept", queries::<V4>()));
            self.rule(
                chain,
                format_args!("icmpv6 type {} accept", queries::<V6>()),
            );
        }
        let mut allowed = BTreeSet::from([LOOPBACK]);
        allowed.extend(&self.surroundings.insides);
        if stage == Stage::Bound {
            allowed.extend(&self.surroundings.uplinks);
        }
        // By index: an interface of the same name that was created anew has another.
        self.rule(chain, format_args!("oif {{ {} }} accept", list(allowed)));
        let counter = if stage == Stage::Unseen {
            UNSEEN
        } else {
            ELSEWHERE
        };
        self.rule(chain, format_args!("counter name \"{counter}\" drop"));
    }
}
