//! The world: where servers stand, how far locations are apart, who owns which slices.

use egress_common::distance::Distance;
use egress_common::forward::Site;
use egress_common::placement::{Group, Member, digest, divide};

use crate::Options;
use crate::random::Random;

/// Data centers of a location.
const DATA_CENTERS_PER_LOCATION: u64 = 3;
/// Egress IPs of a pool.
pub(crate) const POOL: usize = 4;
/// Round trips between two locations at the ends of the world, in microseconds.
const ACROSS: f64 = 200_000.0;

/// A data center with its servers, by their indices in [`World::sites`].
pub(crate) struct DataCenter {
    pub(crate) number: u16,
    pub(crate) location: u16,
    pub(crate) servers: Vec<usize>,
}

/// An egress IP, divided.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) number: u32,
    /// Indices of its data centers.
    pub(crate) data_centers: Vec<usize>,
    pub(crate) groups: Vec<Group>,
    /// Servers of these data centers.
    pub(crate) servers: Vec<usize>,
    pub(crate) members: Vec<Member>,
}

impl Address {
    /// Indices of servers that own slices, with the slices.
    pub(crate) fn owners(&self) -> impl Iterator<Item = (usize, u32)> {
        let owning = self.servers.iter().zip(&self.members);
        owning
            .filter(|(_, member)| member.owned != 0)
            .map(|(server, member)| (*server, member.owned))
    }
}

/// Everything.
pub(crate) struct World {
    pub(crate) locations: u16,
    pub(crate) data_centers: Vec<DataCenter>,
    pub(crate) sites: Vec<Site>,
    pub(crate) addresses: Vec<Address>,
    /// By location and location.
    pub(crate) distances: Vec<Vec<Distance>>,
    /// What is measured without noise, in microseconds.
    pub(crate) round_trips: Vec<Vec<f64>>,
}

impl World {
    pub(crate) fn make(options: &Options, random: &mut Random) -> Self {
        let locations = options.data_centers.div_ceil(DATA_CENTERS_PER_LOCATION) as u16;
        let mut data_centers: Vec<DataCenter> = (0..options.data_centers)
            .map(|at| DataCenter {
                number: at as u16 + 1,
                location: (at / DATA_CENTERS_PER_LOCATION) as u16 + 1,
                servers: Vec::new(),
            })
            .collect();
        let mut sites = Vec::new();
        for at in 0..options.servers {
            let index = (at % options.data_centers) as usize;
            let data_center = &mut data_centers[index];
            data_center.servers.push(sites.len());
            sites.push(Site {
                server: at as u16 + 1,
                data_center: data_center.number,
                location: data_center.location,
                out: 0,
            });
        }
        let places: Vec<(f64, f64)> = (0..=locations)
            .map(|_| {
                let part = |random: &mut Random| random.below(1_000_000) as f64 / 1e6;
                (part(random), part(random))
            })
            .collect();
        let round_trips: Vec<Vec<f64>> = places
            .iter()
            .map(|(x, y)| {
                let to = |(u, v): &(f64, f64)| 500.0 + ACROSS * (x - u).hypot(y - v);
                places.iter().map(to).collect()
            })
            .collect();
        let distances = round_trips
            .iter()
            .map(|row| {
                let measured = |trip: &f64| Distance::configured(0).measured(*trip as u32);
                row.iter().map(measured).collect()
            })
            .collect();
        let mut world = Self {
            locations,
            data_centers,
            sites,
            addresses: Vec::new(),
            distances,
            round_trips,
        };
        for number in 0..options.addresses as u32 {
            let address = world.place(number, random);
            world.addresses.push(address);
        }
        world
    }

    /// An address in one to four locations.
    fn place(&self, number: u32, random: &mut Random) -> Address {
        let mut address = Address {
            number,
            data_centers: Vec::new(),
            groups: Vec::new(),
            servers: Vec::new(),
            members: Vec::new(),
        };
        for _ in 0..=random.below(4) {
            let location = random.below(usize::from(self.locations)) as u16 + 1;
            for at in 0..self.data_centers.len() {
                // One of its data centers at least, mostly.
                if self.data_centers[at].location == location && random.below(3) < 2 {
                    self.join(&mut address, at, random.below(9) as u32 + 1);
                }
            }
        }
        if address.groups.is_empty() {
            self.join(&mut address, random.below(self.data_centers.len()), 1);
        }
        divide(address.number, &mut address.groups, &mut address.members);
        address
    }

    /// Gives a data center with all its servers a share, if it has none.
    pub(crate) fn join(&self, address: &mut Address, data_center: usize, share: u32) {
        if address.data_centers.contains(&data_center) {
            return;
        }
        let found = &self.data_centers[data_center];
        address.data_centers.push(data_center);
        address.groups.push(Group {
            name: digest(&format!("dc{}", found.number)),
            share,
            slices: 0,
        });
        for server in &found.servers {
            self.add(address, *server, address.groups.len() - 1);
        }
    }

    /// Adds a server to a data center of the address.
    pub(crate) fn add(&self, address: &mut Address, server: usize, group: usize) {
        address.servers.push(server);
        address.members.push(Member {
            name: digest(&format!("server{server}")),
            group,
            ..Member::default()
        });
    }
}
