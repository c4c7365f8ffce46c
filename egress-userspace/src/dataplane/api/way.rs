//! The way of a packet through this host, as its routes, hooks and tables are now.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A packet, as far as routes depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traveller {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// Its firewall mark.
    pub mark: u32,
    /// The interface by which it enters, if that is known.
    pub interface: Option<String>,
    /// Whether a socket of this host sends it.
    pub own: bool,
}

/// What it meets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Where it leaves; `None` if nobody knows.
    pub exit: Option<Exit>,
    /// The flow table has no room.
    pub flows_full: bool,
    /// The table of origins has no room.
    pub origins_full: bool,
    /// This server's egress IPs of the family may be others' by now, and are not used (CLU-3).
    pub lapsed: bool,
}

/// Where a packet leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Exit {
    /// Nowhere.
    NoRoute {
        /// What the kernel says.
        text: String,
    },
    /// It is for this host itself.
    Here,
    /// By an uplink.
    Uplink {
        /// Its name.
        interface: String,
        /// Programs that are not in place there.
        missing: Vec<String>,
        /// Why it cannot be used, with all programs in place: it is a bridge's port, for instance.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unusable: Option<String>,
    },
    /// By an inside interface.
    Inside {
        /// Its name.
        interface: String,
    },
    /// By an interface that is neither.
    Elsewhere {
        /// Its name.
        interface: String,
    },
}
