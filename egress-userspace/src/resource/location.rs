//! A location: data centers of one city, and the servers in them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use egress_common::distance::FARTHEST;

use serde::{Deserialize, Serialize};

use super::name;
use super::place::ObjectPlaces;
use crate::document::Table;

/// Stands in for a number that was refused.
pub(super) const REFUSED: u16 = 0;

/// A city with data centers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// Unique name.
    pub name: String,
    /// Its data centers, in the order of the file.
    pub data_centers: Vec<DataCenter>,
    /// Round-trip times to other locations by their names, in microseconds (FWD-3). One that is not named is farther
    /// than all that are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub distances: BTreeMap<String, u32>,
}

/// A data center.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataCenter {
    /// Unique name, also among other locations.
    pub name: String,
    /// Its servers, in the order of the file.
    pub servers: Vec<Server>,
}

/// A server that runs egress.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Unique name: the one its own configuration says.
    pub name: String,
    /// What tells its part of every IPv6 range (POOL-6); unique, from 1.
    pub number: Option<u16>,
    /// Where the other servers reach it (FWD-6); unspecified when it was refused.
    pub tunnel: Option<IpAddr>,
}

impl Location {
    /// Notes data centers and servers under "data_center", "server", "number" and "tunnel", counted through the
    /// location.
    pub(super) fn read(mut table: Table<'_, '_>, places: &mut ObjectPlaces<'_>) -> Self {
        places.whole(table.span());
        let name = required(&mut table, "name = \"frankfurt\"", "name", 0, places);
        let mut distances = BTreeMap::new();
        const DISTANCES: &str = "distances = [ { location = \"amsterdam\", microseconds = 7000 } ]";
        for value in table.list("distances", DISTANCES) {
            let Some(mut one) = value.table("a distance") else {
                continue;
            };
            let to = one
                .require("location", "location = \"amsterdam\"")
                .and_then(|value| value.name());
            let time = one
                .require("microseconds", "microseconds = 7000")
                .and_then(|value| value.integer(1..=FARTHEST, "microseconds"));
            one.finish();
            if let (Some(to), Some(time)) = (to, time)
                && distances.insert(to.clone(), time).is_some()
            {
                value.refuse(
                    format!("there are two distances from {name} to {to}"),
                    "keep one of them",
                );
            }
        }
        let mut data_centers = Vec::new();
        let mut count = 0;
        for mut table in table.sections("data_center") {
            let at = data_centers.len();
            let name = required(&mut table, "name = \"fra01\"", "data_center", at, places);
            let mut servers = Vec::new();
            for table in table.sections("server") {
                servers.push(Server::read(table, count, places));
                count += 1;
            }
            table.finish();
            data_centers.push(DataCenter { name, servers });
        }
        table.finish();
        Self {
            name,
            data_centers,
            distances,
        }
    }

    /// Data centers and servers, each with the number under which its place is noted.
    pub fn servers(&self) -> impl Iterator<Item = (usize, &DataCenter, &Server)> {
        self.data_centers
            .iter()
            .flat_map(|one| one.servers.iter().map(move |server| (one, server)))
            .enumerate()
            .map(|(at, (data_center, server))| (at, data_center, server))
    }
}

impl Server {
    fn read(mut table: Table<'_, '_>, at: usize, places: &mut ObjectPlaces<'_>) -> Self {
        let name = required(&mut table, "name = \"fra01-s1\"", "server", at, places);
        let number = table.get("number", "number = 1").map(|value| {
            places.item("number", at, value.span());
            let number = value.integer(1..=u16::MAX.into(), "");
            number
                .and_then(|number| u16::try_from(number).ok())
                .unwrap_or(REFUSED)
        });
        let tunnel = table.get("tunnel", "tunnel = \"10.9.0.1\"").map(|value| {
            places.item("tunnel", at, value.span());
            let address: Option<IpAddr> = value.parsed("an IP address");
            if address.is_some_and(|address| address.is_unspecified()) {
                value.refuse(
                    format!("server {name} cannot be reached at the unspecified address"),
                    "write the address of an interface by which the servers reach each other",
                );
            }
            address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
        });
        table.finish();
        Self {
            name,
            number,
            tunnel,
        }
    }
}

/// Reads the name of a location, data center or server; empty when it was refused.
fn required(
    table: &mut Table<'_, '_>,
    example: &'static str,
    field: &'static str,
    at: usize,
    places: &mut ObjectPlaces<'_>,
) -> String {
    let Some(value) = table.require("name", example) else {
        return String::new();
    };
    places.item(field, at, value.span());
    name::checked(value, example).unwrap_or_default()
}
