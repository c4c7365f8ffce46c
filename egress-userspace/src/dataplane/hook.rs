//! The places where packets meet our programs.

use egress_common::settings::role;

use super::sys::Direction;

/// A program of ours and where it belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Hook {
    /// Decides the zone of what enters to be forwarded (ZONE-4).
    InsideIngress,
    /// Classifies, allocates, translates or refuses what leaves.
    UplinkEgress,
    /// Last in the chain: drops what [`Self::UplinkEgress`] has not seen (SAFE-6).
    UplinkGuard,
    /// Translates replies back, drops what nobody asked for (SAFE-3).
    UplinkIngress,
    /// Takes what other servers send on (FWD-6).
    TunnelIngress,
    /// Sends connections to other servers (FWD-2).
    TunnelEgress,
}

/// Where in the chain of its hook a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Before everything else.
    First,
    /// After everything else.
    Last,
}

impl Hook {
    /// In the order in which they are attached: at no instant does a packet of a bound zone meet an uplink
    /// without the program that would stop it.
    pub(super) const ALL: [Self; 6] = [
        Self::UplinkGuard,
        Self::UplinkEgress,
        Self::UplinkIngress,
        Self::InsideIngress,
        Self::TunnelIngress,
        Self::TunnelEgress,
    ];

    /// Those of an uplink, in attach order.
    pub(super) const UPLINK: [Self; 3] =
        [Self::UplinkGuard, Self::UplinkEgress, Self::UplinkIngress];

    /// Those of an inside interface.
    pub(super) const INSIDE: [Self; 1] = [Self::InsideIngress];

    /// Those of the tunnel.
    pub(super) const TUNNEL: [Self; 2] = [Self::TunnelIngress, Self::TunnelEgress];

    /// The program's name in the object, in pins and in what is printed.
    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::InsideIngress => "inside_ingress",
            Self::UplinkEgress => "uplink_egress",
            Self::UplinkGuard => "uplink_guard",
            Self::UplinkIngress => "uplink_ingress",
            Self::TunnelIngress => "tunnel_ingress",
            Self::TunnelEgress => "tunnel_egress",
        }
    }

    /// The hook whose program has this name.
    pub(super) fn of_program(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hook| hook.program() == name)
    }

    /// Which packets it sees.
    pub(super) const fn direction(self) -> Direction {
        match self {
            Self::InsideIngress | Self::UplinkIngress | Self::TunnelIngress => Direction::Ingress,
            Self::UplinkEgress | Self::UplinkGuard | Self::TunnelEgress => Direction::Egress,
        }
    }

    /// Where in the chain it runs: the translation before whatever else looks at the packet, the guard after it.
    pub(super) const fn order(self) -> Order {
        match self {
            Self::UplinkGuard => Order::Last,
            _ => Order::First,
        }
    }

    /// The key of the configuration that names its interface.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::InsideIngress => "inside",
            _ => "uplink",
        }
    }

    /// Its interface's role, as the data plane knows it.
    pub(super) const fn role(self) -> u32 {
        match self {
            Self::InsideIngress => role::INSIDE,
            Self::TunnelIngress | Self::TunnelEgress => role::TUNNEL,
            _ => role::UPLINK,
        }
    }

    /// Priority of its clsact filter: low runs first. Uncommon numbers, because filters of two kinds cannot
    /// share one.
    pub(super) const fn priority(self) -> u16 {
        match self.order() {
            Order::First => 17,
            Order::Last => 49_017,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_is_attached_first_and_runs_last() {
        assert_eq!(Hook::ALL[0], Hook::UplinkGuard);
        assert!(Hook::UplinkGuard.priority() > Hook::UplinkEgress.priority());
        for hook in Hook::ALL {
            assert_eq!(Hook::of_program(hook.program()), Some(hook));
        }
    }
}
