//! BIRD, the routing daemon: one on a gateway that exports what `egress` announces, and one on a router that learns it by
//! BGP.

use std::{fs, net::IpAddr, path::Path};

use anyhow::Result;
use ipnet::IpNet;

use crate::{
    netns::Namespace,
    service::{Port, Service},
};

/// Where BGP listens.
const BGP: Port = Port::Tcp(179);

/// One end of a BGP session over a link with an address of each family at both ends.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// The number of the own autonomous system.
    pub own_as: u32,
    /// The own addresses.
    pub own: [IpAddr; 2],
    /// The other's number.
    pub peer_as: u32,
    /// Its addresses.
    pub peer: [IpAddr; 2],
}

impl Session {
    /// The same session from the other end.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            own_as: self.peer_as,
            own: self.peer,
            peer_as: self.own_as,
            peer: self.own,
        }
    }

    /// The session's protocols; `export` and `import` are filters.
    fn protocols(self, export: [&str; 2], import: &str) -> String {
        let mut text = String::new();
        for (family, at, export) in [("ipv4", 0, export[0]), ("ipv6", 1, export[1])] {
            text += &format!(
                "protocol bgp peer_{family} {{ local {} as {}; neighbor {} as {}; connect retry time 1; \
                 connect delay time 1; error wait time 1, 2; \
                 {family} {{ import {import}; export {export}; gateway recursive; }}; }}\n",
                self.own[at], self.own_as, self.peer[at], self.peer_as,
            );
        }
        text
    }
}

/// BIRD on a gateway: what is in the kernel's table `table` goes out, as reached by the addresses `via`.
///
/// # Errors
/// When it does not start.
pub fn on_gateway(
    node: &Namespace,
    directory: &Path,
    table: u32,
    session: Session,
    via: [IpAddr; 2],
) -> Result<Service> {
    let kernel = |family| {
        format!(
            "protocol kernel learn_{family} {{ kernel table {table}; learn; scan time 1; \
             {family} {{ import all; export none; }}; }}\n"
        )
    };
    let export = via.map(|via| format!("filter {{ bgp_next_hop = {via}; accept; }}"));
    let text = [
        head(session.own[0]),
        kernel("ipv4"),
        kernel("ipv6"),
        session.protocols([&export[0], &export[1]], "none"),
    ];
    start(node, directory, &text.concat())
}

/// BIRD on a router: what it learns by BGP becomes its kernel's routes.
///
/// # Errors
/// When it does not start.
pub fn on_router(node: &Namespace, directory: &Path, session: Session) -> Result<Service> {
    let kernel = |family| {
        format!("protocol kernel put_{family} {{ {family} {{ import none; export all; }}; }}\n")
    };
    let text = [
        head(session.own[0]),
        "protocol direct { ipv4; ipv6; }\n".to_owned(),
        kernel("ipv4"),
        kernel("ipv6"),
        session.protocols(["none", "none"], "all"),
    ];
    start(node, directory, &text.concat())
}

/// The routes that a router's kernel has from its BIRD, but for those to its own links.
///
/// # Errors
/// When `ip` fails.
pub fn learned(router: &Namespace) -> Result<Vec<IpNet>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let listed = router.ip(&format!("{family} route show proto bird"))?;
        // Those of its own links have no `via`.
        for line in listed.lines().filter(|line| line.contains(" via ")) {
            let prefix = line.split_whitespace().next().unwrap_or_default();
            let net = prefix.parse::<IpNet>();
            let net = net.or_else(|_| prefix.parse::<IpAddr>().map(IpNet::from));
            found.extend(net);
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn head(id: IpAddr) -> String {
    format!("log stderr all;\nrouter id {id};\nprotocol device {{ scan time 1; }}\n")
}

pub(crate) fn start(node: &Namespace, directory: &Path, text: &str) -> Result<Service> {
    let config = directory.join("bird.conf");
    fs::write(&config, text)?;
    let (config, socket) = (config.display().to_string(), directory.join("bird.ctl"));
    let socket = socket.display().to_string();
    let command = ["bird", "-f", "-c", &config, "-s", &socket];
    Service::start(node, directory, &command, &[BGP])
}
