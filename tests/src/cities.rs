//! Five servers in three locations, and pools of which each has something else.
//!
//! ```text
//!  frankfurt  fra01  fra01-s1, fra01-s2
//!             fra02  fra02-s1
//!  amsterdam  ams01  ams01-s1
//!  paris      par01  par01-s1
//!
//!  c1 10.1.K.2 ── in0  s1  up0 ── up1 ┐
//!  c2 10.1.K.2 ── in0  s2  up0 ── up2 ┤
//!                      ...            net ── a0 ── a  (origin)
//! ```
//!
//! Zone K has the sources 10.1.K.0/24, at every server, and pool K. The servers reach each other by their uplinks.

use std::{fs, net::Ipv4Addr};

use anyhow::{Context as _, Result};

use crate::{
    config::{Files, Resources, Server},
    gateway::{self, Gateway},
    lab::Lab,
    netns::Namespace,
    origin::Origin,
    pair::{NET, ORIGIN, ORIGIN_ADDRESS},
    topology::{End, Topology},
};

/// The servers, each with its data center and location.
pub const SERVERS: [(&str, &str, &str); 5] = [
    ("fra01-s1", "fra01", "frankfurt"),
    ("fra01-s2", "fra01", "frankfurt"),
    ("fra02-s1", "fra02", "frankfurt"),
    ("ams01-s1", "ams01", "amsterdam"),
    ("par01-s1", "par01", "paris"),
];
/// The shares of each pool: with one slice for two servers, one of them has nothing.
const SHARES: [&[(&str, u32)]; 3] = [
    &[("fra01", 1), ("par01", 30)],
    &[("fra02", 1), ("ams01", 1)],
    &[("ams01", 1), ("par01", 1)],
];

/// The egress IP of a pool, from 1.
#[must_use]
pub fn egress_ip(pool: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, pool as u8)
}

/// The address of a client in a zone.
#[must_use]
pub fn inside(zone: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, zone as u8, 2)
}

/// Locations, placements, pools and zones; microseconds from Frankfurt to Amsterdam and to Paris.
#[must_use]
pub fn resources(amsterdam: u32, paris: u32) -> Resources {
    resources_of(amsterdam, paris, SHARES.len())
}

/// As [`resources`], with only the first pools and their zones.
#[must_use]
pub fn resources_of(amsterdam: u32, paris: u32, pools: usize) -> Resources {
    let mut sections = String::new();
    for location in ["frankfurt", "amsterdam", "paris"] {
        sections += &format!("[[location]]\nname = \"{location}\"\n");
        if location == "frankfurt" {
            sections += &format!(
                "distances = [ {{ location = \"amsterdam\", microseconds = {amsterdam} }}, \
                 {{ location = \"paris\", microseconds = {paris} }} ]\n"
            );
        }
        let mut last = "";
        for (number, (name, data_center, of)) in (1..).zip(SERVERS) {
            if of != location {
                continue;
            }
            if data_center != last {
                sections += &format!("[[location.data_center]]\nname = \"{data_center}\"\n");
                last = data_center;
            }
            sections += &format!(
                "[[location.data_center.server]]\nname = \"{name}\"\nnumber = {number}\ntunnel = \"203.0.{number}.2\"\n"
            );
        }
    }
    for (pool, shares) in (1..).zip(SHARES).take(pools) {
        let address = egress_ip(pool);
        let shares: Vec<String> = shares
            .iter()
            .map(|(name, share)| format!("{{ data_center = \"{name}\", share = {share} }}"))
            .collect();
        sections += &format!(
            "[[placement]]\naddress = \"{address}\"\nshares = [{}]\n",
            shares.join(", ")
        );
        if pool > 1 {
            sections += &format!(
                "[[pool]]\nid = \"pool{pool}\"\naccount = \"acme\"\nkind = \"leased\"\naddresses = [\"{address}\"]\n\
                 [[zone]]\nid = \"zone{pool}\"\nname = \"zone{pool}\"\naccount = \"acme\"\nsources = [\"10.1.{pool}.0/24\"]\n\
                 [zone.aegis]\nenabled = true\npool_id = \"pool{pool}\"\n"
            );
        }
    }
    Resources {
        addresses: vec![egress_ip(1).to_string()],
        selectors: "sources = [\"10.1.1.0/24\"]".to_owned(),
        sections,
        ..Resources::default()
    }
}

/// Five servers that stand.
#[derive(Debug)]
pub struct Cities {
    /// Their daemons, in the order of [`SERVERS`].
    pub gateways: Vec<Gateway>,
    /// The origin.
    pub origin: Origin,
    /// The network.
    pub lab: Lab,
}

impl Cities {
    /// Sets everything up; all daemons are ready when this returns.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(resources: &Resources) -> Result<Self> {
        // Here all are equally far; what the file says is to decide.
        Self::start_with(resources, "[tunnel]\nprobes = false\n")
    }

    /// As [`Cities::start`], with sections for each `egress.toml`.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start_with(resources: &Resources, sections: &str) -> Result<Self> {
        let lab = Lab::up(&topology())?;
        let binary = gateway::binary()?;
        let mut gateways = Vec::new();
        for (number, (name, data_center, location)) in (1..).zip(SERVERS) {
            let node = server(number);
            let directory = lab.directory().join(&node);
            fs::create_dir_all(&directory)?;
            let mut pin = lab.pin().into_os_string();
            pin.push(format!("-{node}"));
            let files = Files {
                directory,
                pin: pin.into(),
            };
            let server = Server {
                name: name.to_owned(),
                data_center: data_center.to_owned(),
                location: location.to_owned(),
                inside: vec!["in0".to_owned()],
                max_flows: 4_096,
                sections: sections.to_owned(),
                ..Server::default()
            };
            let mut gateway = Gateway::on(lab.node(&node), files, &binary, &server, resources)?;
            gateway.restart().with_context(|| name.to_owned())?;
            gateways.push(gateway);
        }
        let origin = Origin::start(&lab.node(ORIGIN), &[ORIGIN_ADDRESS.into()], 1)?;
        Ok(Self {
            gateways,
            origin,
            lab,
        })
    }

    /// The node of the client behind a server, numbered from 0.
    #[must_use]
    pub fn client(&self, server: usize) -> Namespace {
        self.lab.node(&client(server + 1))
    }

    /// The router brings everything for a pool's egress IP to this server, numbered from 0.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn replies_to(&self, pool: usize, server: usize) -> Result<()> {
        let address = egress_ip(pool);
        let node = self.lab.node(NET);
        node.ip(&format!(
            "-4 route replace {address}/32 via 203.0.{}.2",
            server + 1
        ))?;
        Ok(())
    }
}

/// The router's interface towards a server, numbered from 0.
#[must_use]
pub fn port(server: usize) -> String {
    format!("up{}", server + 1)
}

fn server(number: usize) -> String {
    format!("s{number}")
}

fn client(number: usize) -> String {
    format!("c{number}")
}

fn topology() -> Topology {
    let mut topology = Topology::new().node(NET).node(ORIGIN).forwarding(NET);
    for number in 1..=SERVERS.len() {
        let (server, client) = (server(number), client(number));
        let (mut outer, mut inner) = (End::new(&client, "eth0"), End::new(&server, "in0"));
        for zone in 1..=SHARES.len() {
            outer = outer.address(&format!("{}/24", inside(zone)));
            inner = inner.address(&format!("10.1.{zone}.1/24"));
        }
        topology = topology
            .node(&server)
            .node(&client)
            .forwarding(&server)
            .link(outer, inner)
            .link(
                End::new(&server, "up0").address(&format!("203.0.{number}.2/24")),
                End::new(NET, &format!("up{number}")).address(&format!("203.0.{number}.1/24")),
            )
            .route(&client, "default via 10.1.1.1")
            .route(&server, &format!("default via 203.0.{number}.1"));
    }
    topology
        .link(
            End::new(NET, "a0").address("198.51.100.1/24"),
            End::new(ORIGIN, "eth0").address(&format!("{ORIGIN_ADDRESS}/24")),
        )
        .route(ORIGIN, "default via 198.51.100.1")
}
