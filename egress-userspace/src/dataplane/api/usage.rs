//! What the data plane keeps of the use of its counts.

use std::net::{IpAddr, SocketAddr};

use egress_common::usage::{Usage, WallClock};

use super::Protocol;

/// All counts at one look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UsageLook {
    /// What the data plane takes for wall-clock time.
    pub clock: WallClock,
    /// When it was looked, ns of the data plane's clock.
    pub now: u64,
    /// The counts, in no order.
    pub counts: Vec<UsageRecord>,
}

/// One count and its use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    /// The dedicated source address.
    pub egress_ip: IpAddr,
    /// Destination address and port.
    pub origin: SocketAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Which counter it is: another number if it is a new one for the same origin.
    pub counter: u64,
    /// The most that were admitted when the counter was last asked.
    pub capacity: u64,
    /// Connections times time, and the most at once.
    pub usage: Usage,
}
