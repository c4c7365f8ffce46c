//! Servers as `egress server list` shows them.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::liveness::{Healths, State};
use crate::ownership::Row;
use crate::placed;
use crate::resource::Address;
use crate::store::Stored;

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Its name.
    pub server: String,
    /// Its data center; absent where it is in no location (any more).
    pub data_center: Option<String>,
    /// The location of that.
    pub location: Option<String>,
    /// Where the others reach it.
    pub tunnel: Option<IpAddr>,
    /// Whether it is the one that answers this.
    pub here: bool,
    /// Whether it takes new connections, as far as operators have said.
    pub state: Standing,
    /// What probes say about it; absent where nobody probes.
    pub health: Option<State>,
    /// Slices of all IPv4 egress IPs that it holds: replies to them go to it.
    pub slices: u32,
    /// Those of them that it is to pass on: no new connections there.
    pub leaving: u32,
    /// Slices of others that it is to get.
    pub coming: u32,
}

/// What operators have said about a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Nothing: it takes new connections.
    Active,
    /// It drains: it takes none.
    Draining,
    /// It is fenced, and others get what it held.
    Forgotten,
    /// It is in no location, and still holds something.
    Unknown,
}

impl Standing {
    /// The word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Forgotten => "forgotten",
            Self::Unknown => "in no location",
        }
    }
}

/// All servers, by name.
pub fn servers(stored: &Stored, healths: &Healths, here: &str) -> Vec<ServerRecord> {
    let resources = stored.resources();
    let ownership = stored.ownership.as_ref();
    let all = || placed::servers(&resources);
    let mut names: Vec<&str> = all().map(|one| one.server.name.as_str()).collect();
    if resources.locations.is_empty() {
        names.push(here);
    }
    let rows = || {
        ownership
            .iter()
            .flat_map(|ownership| ownership.rows.values())
    };
    names.extend(rows().flat_map(Row::servers));
    names.sort_unstable();
    names.dedup();
    let addresses = resources.pools.iter().flat_map(|pool| &pool.addresses);
    let addresses: Vec<Ipv4Addr> = addresses
        .filter_map(|address| match *address {
            Address::V4(address) => Some(address),
            Address::V6(_) => None,
        })
        .collect();
    let record = |name: &str| {
        let standing = all().find(|one| one.server.name == name);
        let tunnel = standing.and_then(|one| one.server.tunnel);
        let sum = |slices: &dyn Fn(&Row) -> u32| rows().map(|row| slices(row).count_ones()).sum();
        let forgotten =
            ownership.is_some_and(|all| all.is_fenced(name) && !all.is_another_hosts(name));
        let slices = match ownership {
            Some(_) => sum(&|row| row.held(name)),
            None => addresses
                .iter()
                .map(|address| placed::slices_of(&resources, name, *address).count_ones())
                .sum(),
        };
        ServerRecord {
            server: name.to_owned(),
            data_center: standing.map(|one| one.data_center.name.clone()),
            location: standing.map(|one| one.location.name.clone()),
            tunnel,
            here: name == here,
            state: if forgotten {
                Standing::Forgotten
            } else if resources.drains_server(name) {
                Standing::Draining
            } else if standing.is_none() && !resources.locations.is_empty() {
                Standing::Unknown
            } else {
                Standing::Active
            },
            health: tunnel.and_then(|at| Some(healths.get(&at)?.state)),
            slices,
            leaving: sum(&|row| row.leaving(name)),
            coming: sum(&|row| row.coming(name)),
        }
    };
    names.into_iter().map(record).collect()
}
