//! BGP in the cities: each server tells its data center's router where egress IPs are, and that one tells the router
//! between the data centers. Both spread what they send over all equal routes (ECMP).

use std::{collections::BTreeSet, fmt::Write as _, net::Ipv4Addr};

use anyhow::Result;

use super::{
    DATA_CENTERS, SERVERS,
    network::{gateway_of, wan},
    server_address,
};
use crate::{
    bird,
    lab::Lab,
    netns::Namespace,
    pair::NET,
    service::{self, Service},
};

/// The kernel's table that servers announce.
pub(super) const TABLE: u32 = 1_900;
/// Autonomous systems: of the router between the data centers, of their routers, of servers.
const BACKBONE: u32 = 65_000;
const ROUTERS: u32 = 65_001;
const SERVERS_FROM: u32 = 65_101;

/// One end of a session.
struct Session {
    name: String,
    own: (Ipv4Addr, u32),
    peer: (Ipv4Addr, u32),
    import: &'static str,
    export: String,
}

impl Session {
    fn text(&self) -> String {
        format!(
            "protocol bgp to_{} {{ local {} as {}; neighbor {} as {}; connect retry time 1; connect delay time 1; \
             error wait time 1, 2; hold time 9; ipv4 {{ import {}; export {}; next hop self; }}; }}\n",
            self.name, self.own.0, self.own.1, self.peer.0, self.peer.1, self.import, self.export
        )
    }
}

/// Routing daemons on all servers and routers; they end with the values.
///
/// # Errors
/// When one does not start.
pub(super) fn start(lab: &Lab) -> Result<Vec<Service>> {
    let mut running = Vec::new();
    // Those that are called before those that call.
    running.push(router(lab, NET, wan(0)[1], &between())?);
    for (at, name) in DATA_CENTERS.iter().enumerate() {
        running.push(router(lab, name, wan(at)[0], &data_center(at))?);
    }
    for (number, (name, ..)) in SERVERS.iter().enumerate() {
        let own = server_address(number);
        let session = Session {
            name: "router".to_owned(),
            own: (own, SERVERS_FROM + number as u32),
            peer: (gateway_of(number), ROUTERS + data_center_of(number) as u32),
            import: "none",
            export: "all".to_owned(),
        };
        let text = format!(
            "protocol kernel learned {{ kernel table {TABLE}; learn; scan time 1; ipv4 {{ import all; export none; }}; }}\n{}",
            session.text()
        );
        running.push(one(lab, name, own, &text)?);
    }
    Ok(running)
}

/// The routers by which the router between the data centers reaches an address, by the name of the data center; at a data
/// center's own router, its servers.
///
/// # Errors
/// When `ip` fails.
pub(super) fn next_hops(node: &Namespace, address: Ipv4Addr) -> Result<BTreeSet<Ipv4Addr>> {
    let listed = node.ip(&format!("-4 route show {address}/32"))?;
    let words: Vec<&str> = listed.split_whitespace().collect();
    let vias = words.windows(2).filter(|pair| pair[0] == "via");
    Ok(vias.filter_map(|pair| pair[1].parse().ok()).collect())
}

/// The number of a server's data center, from 0.
pub(super) fn data_center_of(server: usize) -> usize {
    let name = SERVERS[server].1;
    DATA_CENTERS
        .iter()
        .position(|one| *one == name)
        .unwrap_or_default()
}

/// The sessions of the router between the data centers.
fn between() -> String {
    let sessions = DATA_CENTERS.iter().enumerate().map(|(at, name)| {
        let [peer, own] = wan(at);
        let session = Session {
            name: (*name).to_owned(),
            own: (own, BACKBONE),
            peer: (peer, ROUTERS + at as u32),
            import: "all",
            export: "none".to_owned(),
        };
        session.text()
    });
    sessions.collect()
}

/// The sessions of a data center's router.
fn data_center(at: usize) -> String {
    let [own, peer] = wan(at);
    let up = Session {
        name: "backbone".to_owned(),
        own: (own, ROUTERS + at as u32),
        peer: (peer, BACKBONE),
        import: "none",
        export: "where source = RTS_BGP".to_owned(),
    };
    let mut text = up.text();
    for number in (0..SERVERS.len()).filter(|server| data_center_of(*server) == at) {
        let down = Session {
            name: format!("server{}", number + 1),
            own: (gateway_of(number), ROUTERS + at as u32),
            peer: (server_address(number), SERVERS_FROM + number as u32),
            import: "all",
            export: "none".to_owned(),
        };
        text += &down.text();
    }
    text
}

fn router(lab: &Lab, name: &str, id: Ipv4Addr, sessions: &str) -> Result<Service> {
    let kernel = "protocol kernel put_all { merge paths on; ipv4 { import none; export all; }; }\n";
    one(lab, name, id, &format!("{kernel}{sessions}"))
}

fn one(lab: &Lab, name: &str, id: Ipv4Addr, protocols: &str) -> Result<Service> {
    let directory = service::shared_directory(&lab.directory(), &format!("bird-{name}"))?;
    let mut text = bird::head(id.into());
    // Writing to a String does not fail.
    let _ = write!(text, "{protocols}");
    bird::start(&lab.node(name), &directory, &text)
}
