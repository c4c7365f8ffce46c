//! The network of the cities: a router for each data center, and one between them.

use std::net::Ipv4Addr;

use super::{
    DATA_CENTERS, ETCD, ETCD_ADDRESS, ORIGINS, POOLS, SERVERS, crowd, inside,
    routes::data_center_of, server_address,
};
use crate::{
    pair::NET,
    topology::{End, Topology},
};

/// The interface of a data center's router towards the router between them.
pub(super) const WAN: &str = "wan";

/// The interface of its data center's router towards a server, numbered from 0.
pub(super) fn port(server: usize) -> String {
    format!("s{}", server + 1)
}

/// The node of the client behind a server.
pub(super) fn client(server: usize) -> String {
    format!("client-{}", SERVERS[server].0)
}

/// The end of a data center's router of its link to the router between them, and that one's end.
pub(super) fn wan(data_center: usize) -> [Ipv4Addr; 2] {
    [2, 1].map(|host| Ipv4Addr::new(172, 16, data_center as u8 + 1, host))
}

/// The router's end of the link to a server.
pub(super) fn gateway_of(server: usize) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, server as u8 + 1, 1)
}

/// The route of the router between the data centers to a server, in the words of `ip route`.
pub(super) fn way_to(server: usize) -> String {
    let [via, _] = wan(data_center_of(server));
    format!("203.0.{}.0/24 via {via}", server + 1)
}

/// The routers' own addresses from which they may complain to an origin.
#[must_use]
pub fn routers() -> Vec<Ipv4Addr> {
    let wans = (0..DATA_CENTERS.len()).flat_map(wan);
    let origins = ORIGINS.into_iter().map(|(_, address)| {
        let [a, b, c, _] = address.octets();
        Ipv4Addr::new(a, b, c, 1)
    });
    wans.chain(origins).collect()
}

/// All nodes and links.
#[must_use]
pub fn topology() -> Topology {
    let mut topology = router(Topology::new().node(NET), NET);
    for (at, (name, router_of)) in DATA_CENTERS.iter().map(|name| (name, name)).enumerate() {
        let [own, other] = wan(at);
        topology = router(topology.node(router_of), router_of)
            .link(
                End::new(router_of, WAN).address(&format!("{own}/24")),
                End::new(NET, name).address(&format!("{other}/24")),
            )
            .route(router_of, &format!("default via {other}"));
    }
    for (number, (name, data_center, _)) in SERVERS.iter().enumerate() {
        let client = client(number);
        let (mut outer, mut inner) = (End::new(&client, "eth0"), End::new(name, "in0"));
        for zone in 1..=POOLS {
            outer = outer.address(&format!("{}/24", inside(zone)));
            inner = inner.address(&format!("10.1.{zone}.1/24"));
            for address in crowd(zone) {
                outer = outer.address(&format!("{address}/24"));
            }
        }
        let (own, gateway) = (server_address(number), gateway_of(number));
        topology = topology
            .node(name)
            .node(&client)
            .forwarding(name)
            .link(outer, inner)
            .link(
                End::new(name, "up0").address(&format!("{own}/24")),
                End::new(data_center, &port(number)).address(&format!("{gateway}/24")),
            )
            .route(&client, "default via 10.1.1.1")
            .route(name, &format!("default via {gateway}"))
            .sysctl(&client, "net.ipv4.ip_local_port_range", "1024 65535");
        topology = topology.route(NET, &way_to(number));
    }
    for (node, address) in ORIGINS.into_iter().chain([(ETCD, ETCD_ADDRESS)]) {
        let [a, b, c, _] = address.octets();
        let gateway = Ipv4Addr::new(a, b, c, 1);
        topology = topology
            .node(node)
            .sysctl(node, "net.core.somaxconn", "65535")
            .sysctl(node, "net.ipv4.tcp_max_syn_backlog", "65536")
            .link(
                End::new(NET, &format!("{node}0")).address(&format!("{gateway}/24")),
                End::new(node, "eth0").address(&format!("{address}/24")),
            )
            .route(node, &format!("default via {gateway}"));
    }
    topology
}

/// A router that spreads flows over equal routes by addresses and ports.
fn router(topology: Topology, node: &str) -> Topology {
    topology
        .forwarding(node)
        .sysctl(node, "net.ipv4.fib_multipath_hash_policy", "1")
}
