//! Eight servers in three locations, and pools of which each has something else.
//!
//! ```text
//!  frankfurt  fra01  fra01-s1, fra01-s2
//!             fra02  fra02-s1, fra02-s2
//!  amsterdam  ams01  ams01-s1, ams01-s2
//!  paris      par01  par01-s1, par01-s2
//!
//!  client-fra01-s1 10.1.K.2 ── in0 fra01-s1 up0 ── s1 ┐
//!  client-fra01-s2 10.1.K.2 ── in0 fra01-s2 up0 ── s2 fra01 wan ── fra01 ┐
//!                                      ...            fra02 wan ── fra02 ┤      ┌ a0 ── a
//!                                                     ams01 wan ── ams01 net ───┼ b0 ── b
//!                                                     par01 wan ── par01 ┘      └ etcd0 ── etcd
//! ```
//!
//! Zone K has the sources 10.1.K.0/24, at every server, and pool K. The servers reach each other by their uplinks, through
//! the routers of their data centers and the one between those, `net`.

mod attempts;
mod load;
mod network;
mod routes;
mod walk;

use std::{collections::BTreeSet, fs, net::Ipv4Addr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};

pub use self::{
    attempts::{Attempts, News, Pace},
    load::{Known, Load},
    network::{routers, topology},
    walk::{Case, Walk},
};
use crate::{
    config::{Files, Resources, Server},
    etcd::Etcd,
    gateway::{self, Gateway},
    lab::Lab,
    netns::Namespace,
    origin::Origin,
    pair::{NET, ORIGIN, ORIGIN_ADDRESS},
    service::{self, Service},
    wait,
};

/// The name of the lab.
pub const NAME: &str = "three-locations";
/// The servers, each with its data center and location; their names are those of their nodes.
pub const SERVERS: [(&str, &str, &str); 8] = [
    ("fra01-s1", "fra01", "frankfurt"),
    ("fra01-s2", "fra01", "frankfurt"),
    ("fra02-s1", "fra02", "frankfurt"),
    ("fra02-s2", "fra02", "frankfurt"),
    ("ams01-s1", "ams01", "amsterdam"),
    ("ams01-s2", "ams01", "amsterdam"),
    ("par01-s1", "par01", "paris"),
    ("par01-s2", "par01", "paris"),
];
/// The data centers; their names are those of their routers' nodes.
pub const DATA_CENTERS: [&str; 4] = ["fra01", "fra02", "ams01", "par01"];
/// The origins, each with its address.
pub const ORIGINS: [(&str, Ipv4Addr); 2] = [
    (ORIGIN, ORIGIN_ADDRESS),
    ("b", Ipv4Addr::new(198, 51, 101, 10)),
];
/// The node of the store that the servers share.
pub const ETCD: &str = "etcd";
/// Where it answers.
pub const ETCD_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 16, 9, 10);
/// How many pools and zones there are.
pub const POOLS: usize = 3;
/// The shares of each pool: with one slice for two servers, one of them has nothing.
const SHARES: [&[(&str, u32)]; POOLS] = [
    &[("fra01", 1), ("par01", 30)],
    &[("fra02", 1), ("ams01", 1)],
    &[("ams01", 1), ("par01", 1)],
];
/// How long a change may take to be everywhere, on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

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

/// More addresses of a client in a zone, for crowds: connections of one address all go to one server.
#[must_use]
pub fn crowd(zone: usize) -> [Ipv4Addr; 8] {
    [11, 12, 13, 14, 15, 16, 17, 18].map(|host| Ipv4Addr::new(10, 1, zone as u8, host))
}

/// Where a server is reached, numbered from 0.
#[must_use]
pub fn server_address(server: usize) -> Ipv4Addr {
    Ipv4Addr::new(203, 0, server as u8 + 1, 2)
}

/// The number of the server of a name, from 0.
#[must_use]
pub fn server_named(name: &str) -> Option<usize> {
    SERVERS.iter().position(|(one, ..)| *one == name)
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

/// Confines the first zone to a location, by its name (FWD-8).
#[must_use]
pub fn confined(mut resources: Resources, region: &str) -> Resources {
    resources.selectors += &format!("\nregions = [\"{region}\"]");
    resources
}

/// What differs from lab to lab.
#[derive(Clone, Debug)]
pub struct Plan {
    /// What all servers are told.
    pub resources: Resources,
    /// Sections of each `egress.toml`.
    pub sections: String,
    /// Places in each flow table.
    pub max_flows: u32,
    /// Whether the servers share an etcd; else each reads a file.
    pub etcd: bool,
    /// Whether routes come by BGP; else there are none to egress IPs before [`Cities::replies_to`].
    pub bgp: bool,
    /// The daemon, if not the one that [`crate::gateway::binary`] finds.
    pub binary: Option<PathBuf>,
    /// Whether the lab outlives this process, under the name [`NAME`].
    pub persistent: bool,
}

impl Plan {
    /// Nothing but servers that read their files.
    #[must_use]
    pub fn new(resources: Resources) -> Self {
        Self {
            resources,
            // Here all are equally far; what the file says is to decide.
            sections: "[tunnel]\nprobes = false\n".to_owned(),
            max_flows: 4_096,
            etcd: false,
            bgp: false,
            binary: None,
            persistent: false,
        }
    }

    /// All there is: a shared store, BGP, servers that ask each other whether they are there, and how far.
    #[must_use]
    pub fn whole(resources: Resources) -> Self {
        Self {
            sections: String::new(),
            etcd: true,
            bgp: true,
            ..Self::new(resources)
        }
    }
}

/// Servers that stand. The parts go in the order in which they are declared.
#[derive(Debug)]
pub struct Cities {
    /// Their daemons, in the order of [`SERVERS`].
    pub gateways: Vec<Gateway>,
    /// The origins, in the order of [`ORIGINS`]; none where the lab outlives this process.
    pub origins: Vec<Origin>,
    /// The store that they share.
    pub etcd: Option<Etcd>,
    routing: Vec<Service>,
    /// The network.
    pub lab: Lab,
}

impl Cities {
    /// Sets everything up; all daemons are ready, and what they were told is in force, when this returns.
    ///
    /// # Errors
    /// When a part does not start.
    pub fn start(plan: &Plan) -> Result<Self> {
        let lab = if plan.persistent {
            Lab::up_persistent(NAME, &topology())?
        } else {
            Lab::up(&topology())?
        };
        let etcd = if plan.etcd {
            let directory = service::shared_directory(&lab.directory(), ETCD)?;
            Some(Etcd::start(
                lab.node(ETCD),
                &directory,
                ETCD_ADDRESS.into(),
            )?)
        } else {
            None
        };
        let routing = if plan.bgp {
            routes::start(&lab)?
        } else {
            Vec::new()
        };
        let gateways = gateways(&lab, plan, etcd.as_ref().map(Etcd::endpoint).as_deref())?;
        let mut origins = Vec::new();
        for (node, address) in ORIGINS {
            let at = lab.node(node);
            if plan.persistent {
                let log = lab.directory().join(format!("origin-{node}.log"));
                Origin::detached(&at, &[address.into()], &log)?;
            } else {
                origins.push(Origin::start(&at, &[address.into()], 1)?);
            }
        }
        let cities = Self {
            gateways,
            origins,
            etcd,
            routing,
            lab,
        };
        if plan.etcd {
            cities.apply(0, &plan.resources)?;
        }
        for gateway in &cities.gateways {
            wait::until_true("the pools", LIMIT, || {
                let pools = gateway.json(&["pools"])?;
                Ok(pools.as_array().map(Vec::len) == Some(POOLS))
            })
            .with_context(|| gateway.last_words())?;
        }
        if plan.bgp {
            cities.wait_routes()?;
        }
        Ok(cities)
    }

    /// Leaves everything running (a persistent lab).
    pub fn keep(self) {
        self.gateways.into_iter().for_each(Gateway::keep);
        self.routing.into_iter().for_each(Service::keep);
        if let Some(etcd) = self.etcd {
            etcd.keep();
        }
        self.lab.keep();
    }

    /// Tells one server, numbered from 0, what all are to do.
    ///
    /// # Errors
    /// When it refuses.
    pub fn apply(&self, server: usize, resources: &Resources) -> Result<()> {
        let gateway = &self.gateways[server];
        gateway.files().write_resources(resources)?;
        let file = gateway.files().resources().display().to_string();
        gateway.text(["apply", "-f", &file]).map(drop)
    }

    /// The node of the client behind a server, numbered from 0.
    #[must_use]
    pub fn client(&self, server: usize) -> Namespace {
        self.lab.node(&network::client(server))
    }

    /// The interface by which a data center's router reaches a server, numbered from 0, and the router.
    #[must_use]
    pub fn port(&self, server: usize) -> (Namespace, String) {
        (self.lab.node(SERVERS[server].1), network::port(server))
    }

    /// Takes the link to a server away, or gives it back.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn link(&self, server: usize, up: bool) -> Result<()> {
        let (router, port) = self.port(server);
        let state = if up { "up" } else { "down" };
        router.ip(&format!("link set {port} {state}")).map(drop)
    }

    /// Cuts a data center, numbered from 0, off from all others and the origins, or gives it back.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn data_center_link(&self, data_center: usize, up: bool) -> Result<()> {
        let (net, name) = (self.lab.node(NET), DATA_CENTERS[data_center]);
        let state = if up { "up" } else { "down" };
        net.ip(&format!("link set {name} {state}"))?;
        if up {
            // The kernel has forgotten what was behind it.
            for server in
                (0..SERVERS.len()).filter(|one| routes::data_center_of(*one) == data_center)
            {
                net.ip(&format!("-4 route replace {}", network::way_to(server)))?;
            }
        }
        Ok(())
    }

    /// The routers bring everything for a pool's egress IP to this server, numbered from 0.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn replies_to(&self, pool: usize, server: usize) -> Result<()> {
        let address = egress_ip(pool);
        let [via, _] = network::wan(routes::data_center_of(server));
        self.lab
            .node(NET)
            .ip(&format!("-4 route replace {address}/32 via {via}"))?;
        let (router, _) = self.port(server);
        let via = server_address(server);
        router.ip(&format!("-4 route replace {address}/32 via {via}"))?;
        Ok(())
    }

    /// The data centers by which the router between them reaches a pool's egress IP.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn routed_to(&self, pool: usize) -> Result<BTreeSet<&'static str>> {
        let hops = routes::next_hops(&self.lab.node(NET), egress_ip(pool))?;
        let all = DATA_CENTERS.iter().enumerate();
        Ok(all
            .filter(|(at, _)| hops.contains(&network::wan(*at)[0]))
            .map(|(_, name)| *name)
            .collect())
    }

    /// The servers to which the routers of their data centers bring what is for a pool's egress IP.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn brought_to(&self, pool: usize) -> Result<BTreeSet<&'static str>> {
        let mut found = BTreeSet::new();
        for router in DATA_CENTERS {
            let hops = routes::next_hops(&self.lab.node(router), egress_ip(pool))?;
            let all = SERVERS.iter().enumerate();
            let here = all.filter(|(at, _)| hops.contains(&server_address(*at)));
            found.extend(here.map(|(_, (name, ..))| *name));
        }
        Ok(found)
    }

    /// Waits until the network knows the way to every data center that has a share.
    fn wait_routes(&self) -> Result<()> {
        for (pool, shares) in (1..).zip(SHARES) {
            let expected: BTreeSet<&str> = shares.iter().map(|(name, _)| *name).collect();
            let mut last = BTreeSet::new();
            let came = wait::until_true("routes", LIMIT, || {
                last = self.routed_to(pool)?;
                Ok(last == expected)
            });
            ensure!(
                came.is_ok(),
                "pool {pool} is reached by {last:?}, not {expected:?}"
            );
        }
        Ok(())
    }
}

/// The daemons: all are launched before one is waited for.
fn gateways(lab: &Lab, plan: &Plan, etcd: Option<&str>) -> Result<Vec<Gateway>> {
    let binary = plan.binary.clone().map_or_else(gateway::binary, Ok)?;
    let sections = if plan.bgp {
        format!("{}[announce]\ntable = {}\n", plan.sections, routes::TABLE)
    } else {
        plan.sections.clone()
    };
    let mut gateways = Vec::new();
    for (name, data_center, location) in SERVERS {
        let directory = lab.directory().join(name);
        fs::create_dir_all(&directory)?;
        let mut pin = lab.pin().into_os_string();
        pin.push(format!("-{name}"));
        let files = Files {
            directory,
            pin: pin.into(),
        };
        let server = Server {
            name: name.to_owned(),
            data_center: data_center.to_owned(),
            location: location.to_owned(),
            inside: vec!["in0".to_owned()],
            max_flows: plan.max_flows,
            sections: sections.clone(),
            etcd: etcd.map(ToOwned::to_owned),
            ..Server::default()
        };
        let mut gateway = Gateway::on(lab.node(name), files, &binary, &server, &plan.resources)?;
        gateway.launch().with_context(|| name.to_owned())?;
        gateways.push(gateway);
    }
    for gateway in &mut gateways {
        gateway.wait_ready()?;
    }
    Ok(gateways)
}
