//! SAFE-1 and ZONE-4: a packet that a tunnel carried to the gateway has a zone of its own. What carried it entered by
//! an inside interface and was judged there, and the kernel lets the inner packet inherit the outer one's mark.

use anyhow::{Result, ensure};
use egress_tests::{
    needs,
    origin::HTTP_PORT,
    site::{Plan, Site},
    standard::{
        BOUND, BOUND_ADDRESS, GATEWAY, INSIDE_BOUND, INSIDE_UNBOUND, Masquerade, Options, POOL,
        UNBOUND, UNBOUND_ADDRESS,
    },
};

/// A VXLAN between a client and the gateway; the client reaches the origins through it.
fn tunnel(
    site: &Site,
    client: &str,
    interface: &str,
    outer: [&str; 2],
    inner: [&str; 2],
) -> Result<()> {
    let [there, here] = outer;
    for (node, device, local, remote, address) in [
        (client, "eth0", there, here, inner[0]),
        (GATEWAY, interface, here, there, inner[1]),
    ] {
        let node = site.node(node);
        // Each client's tunnel has a name and a number of its own.
        let name = format!("t{}", client.len());
        node.ip(&format!(
            "link add {name} type vxlan id {} local {local} remote {remote} dstport 4789 dev {device}",
            client.len()
        ))?;
        node.ip(&format!("address add {address}/24 dev {name}"))?;
        node.ip(&format!("link set {name} up"))?;
    }
    site.node(client)
        .ip(&format!("route add 198.51.100.0/24 via {}", inner[1]))?;
    Ok(())
}

/// The address from which origin A sees a client.
fn seen(site: &Site, client: &str) -> Result<String> {
    site.curl(client, site.at_a(HTTP_PORT))
}

#[test]
fn safe_1_what_a_tunnel_carries_has_a_zone_of_its_own() -> Result<()> {
    const TEST: &str = "safe_1_what_a_tunnel_carries_has_a_zone_of_its_own";

    let Some(_turn) = needs::turn(TEST, &["nft", "curl"]) else {
        return Ok(());
    };
    for masquerade in Masquerade::ALL {
        let site = Site::start(&Plan {
            network: Options {
                masquerade,
                ..Options::default()
            },
            ..Plan::default()
        })?;
        let check = site.watch()?;
        // The unbound client carries a bound one's packets,
        let outer = [&UNBOUND_ADDRESS.to_string(), "10.2.0.1"];
        tunnel(
            &site,
            UNBOUND,
            INSIDE_UNBOUND,
            outer,
            ["10.1.77.2", "10.1.77.1"],
        )?;
        let from = seen(&site, UNBOUND)?;
        ensure!(
            POOL.iter().any(|address| address.to_string() == from),
            "masquerade {masquerade:?}: a bound packet in an unbound one was seen from {from}"
        );
        check.finish()?;
        // and the bound one an unbound one's.
        let outer = [&BOUND_ADDRESS.to_string(), "10.1.0.1"];
        tunnel(
            &site,
            BOUND,
            INSIDE_BOUND,
            outer,
            ["10.2.77.2", "10.2.77.1"],
        )?;
        site.node("net")
            .ip("route add 10.2.77.0/24 via 203.0.113.2")?;
        let from = seen(&site, BOUND)?;
        ensure!(
            !POOL.iter().any(|address| address.to_string() == from),
            "masquerade {masquerade:?}: an unbound packet in a bound one was seen from {from}"
        );
    }
    Ok(())
}
