//! Addresses that cannot be egress IPs, because somebody on this host's links has them.
//!
//! Replies to this host's own connections would be taken for an egress IP's and dropped. For a router's address the
//! uplink would answer in its stead: this host and its neighbours would lose the way out.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use super::interfaces;
use super::netlink;
use super::route;
use crate::dataplane::api::{DataPlaneError, Trouble, TroubleKind};
use crate::resource::Address;

/// Bit mask of the groups in which changes of addresses are announced.
const GROUPS: u32 = (libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR) as u32;

/// An address that is somebody's, within an egress IP or range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Taken {
    address: IpAddr,
    wanted: Address,
    by: By,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// This host, on the interface of this name.
    Interface(String),
    /// A router that routes of this host go by.
    Router,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "egress IP {}", self.address)?;
        if let Address::V6(range) = self.wanted {
            write!(f, ", which lies in the pool's range {range},")?;
        }
        match &self.by {
            By::Interface(name) => write!(
                f,
                " is configured on interface {name} of this host, which would be cut off"
            ),
            By::Router => f.write_str(
                " is a router's, by which routes of this host go: host and neighbours would lose that way",
            ),
        }
    }
}

impl Taken {
    fn remedy(&self) -> String {
        let address = self.address;
        match &self.by {
            By::Interface(name) => format!(
                "egress IPs need no configuration on the host: remove {address} from {name}, or from the pool"
            ),
            By::Router => format!(
                "take {address} out of the pool (`ip route show table all` lists the routes by it); egress IPs are \
                 addresses that nobody else has"
            ),
        }
    }
}

/// Refuses egress IPs that this host or one of its routers has.
///
/// # Errors
/// [`DataPlaneError::Refused`] that names the address and whose it is.
pub fn check_free(wanted: &[Address]) -> Result<(), DataPlaneError> {
    let taken = match own(wanted)?.pop_first() {
        Some(taken) => Some(taken),
        None => routers(wanted)?,
    };
    taken.map_or(Ok(()), |taken| {
        Err(DataPlaneError::Refused {
            reason: taken.to_string(),
            remedy: format!("{}; nothing was changed", taken.remedy()),
        })
    })
}

/// What comes of addresses that this host was given while they are egress IPs.
pub(super) fn troubles(wanted: &[Address]) -> Result<Vec<Trouble>, DataPlaneError> {
    let trouble = |taken: Taken| Trouble {
        kind: TroubleKind::OwnAddress,
        subject: taken.address.to_string(),
        text: format!("{taken}; a daemon that is started now is refused"),
        remedy: taken.remedy(),
    };
    Ok(own(wanted)?.into_iter().map(trouble).collect())
}

/// The addresses of this host that are wanted.
fn own(wanted: &[Address]) -> Result<BTreeSet<Taken>, DataPlaneError> {
    let taken = |(address, interface)| {
        Some(Taken {
            address,
            wanted: covering(wanted, address)?,
            by: By::Interface(interface),
        })
    };
    Ok(interfaces::addresses()?
        .into_iter()
        .filter_map(taken)
        .collect())
}

/// The first router whose address is wanted.
fn routers(wanted: &[Address]) -> Result<Option<Taken>, DataPlaneError> {
    let taken = |address| {
        Some(Taken {
            address,
            wanted: covering(wanted, address)?,
            by: By::Router,
        })
    };
    Ok(route::next_hops()?.into_iter().find_map(taken))
}

fn covering(wanted: &[Address], address: IpAddr) -> Option<Address> {
    wanted
        .iter()
        .copied()
        .find(|wanted| wanted.net().contains(&address))
}

/// Addresses that this host was given after they had become egress IPs.
pub(super) struct Watch {
    socket: OwnedFd,
    known: BTreeSet<Taken>,
}

impl Watch {
    /// Listens in this thread's network namespace.
    pub(super) fn listen() -> Result<Self, DataPlaneError> {
        let socket = netlink::socket(libc::NETLINK_ROUTE, GROUPS)
            .map_err(|error| DataPlaneError::failed("listening to changes of addresses", error))?;
        Ok(Self {
            socket,
            known: BTreeSet::new(),
        })
    }

    /// Looks if any address came or went since; returns what is new, one line each.
    pub(super) fn look(&mut self, wanted: &[Address]) -> Result<Vec<String>, DataPlaneError> {
        if !netlink::announced(&self.socket) {
            return Ok(Vec::new());
        }
        let found = own(wanted)?;
        let new = found.difference(&self.known);
        let mut lines: Vec<String> = new
            .map(|taken| format!("{taken}: {}", taken.remedy()))
            .collect();
        let gone = self.known.difference(&found);
        lines.extend(gone.map(|taken| format!("{} is the host's no more", taken.address)));
        self.known = found;
        Ok(lines)
    }
}
