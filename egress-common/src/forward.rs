//! To which server a new connection goes (FWD-1 to FWD-4, FWD-8).
//!
//! Whoever owns slices of an applicable egress IP is offered, in any order; the best offer stays: this server, else
//! another one of its data center, else another data center of its location, else the closest other location. Within
//! one of these, each slice is a ticket that is drawn by a hash of the inside address: servers get connections in
//! proportion to what they own, one inside address keeps to one server, and when a server goes only those that drew
//! a slice of it draw again.
//!
//! How busy a server is, is not asked: load never moves traffic (CAP-4). The choice is for new flows; it is kept
//! with the flow, and nothing here is asked about it again (FWD-4).

use crate::distance::FARTHEST;
use crate::port::SLICES;
use crate::range::Range;
use crate::siphash::{Secret, siphash};

/// How many locations a zone may be confined to by name (FWD-8).
pub const MAX_REGIONS: usize = 8;
/// No location: they are numbered from 1.
pub const NO_LOCATION: u16 = 0;

/// Where a server stands; numbers from 1.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// The server.
    pub server: u16,
    /// Its data center.
    pub data_center: u16,
    /// The location of that.
    pub location: u16,
    /// 1 if it takes no new flows: it is dead, being drained, or has not proven itself after its return (FWD-7).
    pub out: u16,
}

/// The locations to which a zone is confined; without any it may leave anywhere (FWD-8).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regions(pub [u16; MAX_REGIONS]);

impl Regions {
    /// Whether traffic may leave at a location.
    #[inline(always)]
    pub fn allow(&self, location: u16) -> bool {
        let mut confined = false;
        for named in self.0 {
            if named == location && named != NO_LOCATION {
                return true;
            }
            confined |= named != NO_LOCATION;
        }
        !confined
    }
}

/// How near an owner is; the lower the better (FWD-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Tier {
    /// This server.
    Here = 0,
    /// Another server of this data center.
    DataCenter = 1,
    /// Another data center of this location.
    Location = 2,
    /// Another location.
    Elsewhere = 3,
}

/// How near `owner` is to `here`.
#[inline(always)]
pub const fn tier(here: &Site, owner: &Site) -> Tier {
    if owner.server == here.server {
        Tier::Here
    } else if owner.data_center == here.data_center {
        Tier::DataCenter
    } else if owner.location == here.location {
        Tier::Location
    } else {
        Tier::Elsewhere
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// How near it is.
    pub tier: Tier,
    /// The server that is to translate.
    pub server: u16,
    /// Its location.
    pub location: u16,
}

/// A decision in the making.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    here: Site,
    regions: Regions,
    secret: Secret,
    inside: u64,
    forwards: bool,
    /// Tier, distance and location in one number: the lowest wins, whatever the tickets say.
    rank: u64,
    ticket: u64,
    best: Option<Choice>,
}

impl Decision {
    /// Begins the decision about a flow of family `A` at the server `here`.
    ///
    /// `inside` is the digest of its inside address. `secret` is the cluster's; it need not be the same at all
    /// servers, but then the servers of a data center choose differently for the same inside address.
    #[inline(always)]
    pub fn new<A: Range>(here: Site, regions: Regions, secret: Secret, inside: u64) -> Self {
        Self {
            here,
            regions,
            secret,
            inside,
            forwards: A::FORWARDS,
            rank: u64::MAX,
            ticket: 0,
            best: None,
        }
    }

    /// Offers an owner of slices of an applicable egress IP, `address` its digest. `distance` is the settled one of
    /// the owner's location in microseconds; it counts for other locations only.
    #[inline(always)]
    pub fn offer(&mut self, owner: &Site, address: u64, slices: u32, distance: u32) {
        let tier = tier(&self.here, owner);
        if owner.out != 0
            || slices & crate::port::ALL_SLICES == 0
            || !self.regions.allow(owner.location)
            || !self.forwards && tier as u8 != Tier::Here as u8
        {
            return;
        }
        let distance = if tier as u8 != Tier::Elsewhere as u8 {
            0
        } else if distance > FARTHEST {
            FARTHEST
        } else {
            distance
        };
        // The location's number makes two that are equally far one after the other, not both.
        let near = tier as u8 == Tier::Here as u8 || tier as u8 == Tier::DataCenter as u8;
        let location = if near { 0 } else { owner.location };
        let rank = (tier as u64) << 48 | (distance as u64) << 16 | location as u64;
        if rank > self.rank {
            return;
        }
        let ticket = self.ticket_of(owner, address, slices);
        if rank == self.rank && ticket <= self.ticket {
            return;
        }
        self.rank = rank;
        self.ticket = ticket;
        self.best = Some(Choice {
            tier,
            server: owner.server,
            location: owner.location,
        });
    }

    /// The highest ticket an owner holds: one for each slice. The same slice is the same ticket whoever owns it, so
    /// that a slice that moves takes its inside addresses along and no others.
    #[inline(always)]
    fn ticket_of(&self, owner: &Site, address: u64, slices: u32) -> u64 {
        if owner.server == self.here.server {
            return u64::MAX;
        }
        let base = siphash(self.secret, [self.inside, address]);
        let mut best = 0;
        let mut slice = 1;
        while slice <= SLICES {
            if slices >> slice & 1 == 1 {
                let ticket = mixed(base ^ slice as u64);
                if ticket > best {
                    best = ticket;
                }
            }
            slice += 1;
        }
        best
    }

    /// What came of it; `None` if nobody may translate the flow: it is refused.
    #[inline(always)]
    pub const fn made(self) -> Option<Choice> {
        self.best
    }
}

/// The output step of splitmix64: different inputs, different outputs.
#[inline(always)]
const fn mixed(number: u64) -> u64 {
    let number = (number ^ number >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ number >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ number >> 31
}

#[cfg(test)]
mod tests;
