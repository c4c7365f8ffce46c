//! Addresses that are somebody's already cannot be egress IPs.

use egress_userspace::dataplane::api::DataPlane as _;
use egress_userspace::desired::DesiredPrefix;

use super::open;
use super::refusals::said;
use crate::bench::{desired, ip, run};

#[test]
fn an_address_of_this_host_is_refused_as_an_egress_ip() {
    run(
        "an_address_of_this_host_is_refused_as_an_egress_ip",
        |bench| {
            ip("addr add 203.0.113.2/24 dev up0");
            ip("addr add 203.0.113.3 peer 203.0.113.4 dev mgmt0");
            let mut plane = open(bench);
            let right = desired(true, &["10.1.0.0/16"], &["192.0.2.10"]);
            let version = plane.apply(&right).unwrap().version;
            for (address, interface) in [("203.0.113.2", "up0"), ("203.0.113.3", "mgmt0")] {
                let wrong = desired(true, &["10.1.0.0/16"], &["192.0.2.11", address]);
                let said = said(&plane.apply(&wrong).unwrap_err());
                assert!(
                    said.contains(&format!("{address} is configured on interface {interface}"))
                        && said.contains(&format!("remove {address} from {interface}")),
                    "{said}"
                );
            }
            let again = plane.apply(&right).unwrap();
            assert_eq!((again.changed, again.version), (0, version));
            assert_eq!(plane.tidy().unwrap(), Vec::<String>::new());
            assert!(plane.check(&["203.0.113.2".parse().unwrap()]).is_err());
            // The other end of a point-to-point interface is somebody else.
            plane
                .apply(&desired(true, &["10.1.0.0/16"], &["203.0.113.4"]))
                .unwrap();
            // An address that was given to an interface later keeps nothing from being repaired.
            ip("addr add 203.0.113.4/32 dev lo");
            let said = plane.tidy().unwrap().join("; ");
            assert!(
                said.contains("203.0.113.4 is configured on interface lo"),
                "{said}"
            );
            assert_eq!(plane.tidy().unwrap(), Vec::<String>::new(), "said once");
            ip("link del up0");
            bench.link("up0");
            plane.repair().unwrap();
            bench.assert_in_place();
            ip("addr del 203.0.113.4/32 dev lo");
            let said = plane.tidy().unwrap().join("; ");
            assert!(said.contains("203.0.113.4 is the host's no more"), "{said}");
        },
    );
}

/// The uplink would answer for its own way out.
#[test]
fn a_routers_address_is_refused_as_an_egress_ip() {
    run("a_routers_address_is_refused_as_an_egress_ip", |bench| {
        // The bench switches IPv6 off for new interfaces.
        std::fs::write("/proc/sys/net/ipv6/conf/mgmt0/disable_ipv6", "0").unwrap();
        ip("addr add 203.0.113.2/24 dev up0");
        ip("addr add 198.51.100.2/24 dev mgmt0");
        ip("addr add 2001:db8:1::f002/64 dev mgmt0 nodad");
        ip("route add default via 203.0.113.1");
        ip("route add 192.0.2.0/25 table 77 via 203.0.113.7");
        ip("route add 10.9.0.0/16 nexthop via 203.0.113.8 nexthop via 198.51.100.9");
        ip("route add 10.10.0.0/16 via inet6 2001:db8:1::a dev mgmt0");
        ip("-6 route add default via 2001:db8:1::1");
        let mut plane = open(bench);
        for router in ["203.0.113.1", "203.0.113.7", "203.0.113.8", "198.51.100.9"] {
            let wrong = desired(true, &["10.1.0.0/16"], &["203.0.113.10", router]);
            let said = said(&plane.apply(&wrong).unwrap_err());
            assert!(
                said.contains(&format!("egress IP {router} is a router's"))
                    && said.contains(&format!("take {router} out of the pool")),
                "{said}"
            );
        }
        for (router, range) in [
            ("2001:db8:1::1", "2001:db8:1::/125"),
            ("2001:db8:1::a", "2001:db8:1::8/125"),
        ] {
            let mut wrong = desired(true, &["10.1.0.0/16"], &["203.0.113.10"]);
            wrong.pools[0].prefixes.push(DesiredPrefix {
                prefix: range.parse().unwrap(),
                cap: 40_000,
                draining: false,
            });
            let said = plane.apply(&wrong).unwrap_err().to_string();
            assert!(
                said.contains(&format!(
                    "egress IP {router}, which lies in the pool's range {range}, is a router's"
                )),
                "{said}"
            );
        }
        // Whoever is beside it on the link is free.
        plane
            .apply(&desired(true, &["10.1.0.0/16"], &["203.0.113.10"]))
            .unwrap();
    });
}
