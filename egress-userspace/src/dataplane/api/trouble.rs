//! What stands in the way of something that is configured, and is nobody's doing but the administrator's.

use serde::{Deserialize, Serialize};

/// Something that is not as the configuration supposes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trouble {
    /// Of which kind.
    pub kind: TroubleKind,
    /// The interface, the address or the cgroup.
    pub subject: String,
    /// What is wrong, and what comes of it.
    pub text: String,
    /// What to do.
    pub remedy: String,
}

/// Kinds of [`Trouble`]; the label of the metric `egress_troubles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TroubleKind {
    /// An interface that cannot be used as configured: it is a bridge's port, for instance.
    Interface,
    /// An egress IP that this host has itself.
    OwnAddress,
    /// A selected cgroup that does not exist.
    Cgroup,
    /// This server's name, which another host has.
    ServerName,
    /// This server's IPv4 egress IPs may be others' by now (`takeover_after`, CLU-3).
    Lapsed,
}

impl TroubleKind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Interface,
        Self::OwnAddress,
        Self::Cgroup,
        Self::ServerName,
        Self::Lapsed,
    ];

    /// Its name in JSON and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Interface => "interface",
            Self::OwnAddress => "own_address",
            Self::Cgroup => "cgroup",
            Self::ServerName => "server_name",
            Self::Lapsed => "lapsed",
        }
    }

    /// Whether nothing bound gets through while it lasts.
    pub const fn stops_traffic(self) -> bool {
        matches!(self, Self::Interface | Self::ServerName | Self::Lapsed)
    }
}
