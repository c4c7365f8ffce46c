//! The selectors of Gateway: those that the data plane decides, and why it decides no others (POLICY-2).

use std::fmt;

/// What of a packet a policy may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// `net.src.ip`
    SourceAddress,
    /// `net.dst.ip`
    DestinationAddress,
    /// `net.src.port`
    SourcePort,
    /// `net.dst.port`
    DestinationPort,
    /// `net.protocol`
    Protocol,
    /// `zone`: ours, by id or name.
    Zone,
}

impl Field {
    /// Every one, in the order in which they are listed.
    pub const ALL: [Self; 6] = [
        Self::SourceAddress,
        Self::DestinationAddress,
        Self::SourcePort,
        Self::DestinationPort,
        Self::Protocol,
        Self::Zone,
    ];

    /// Its name in expressions.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SourceAddress => "net.src.ip",
            Self::DestinationAddress => "net.dst.ip",
            Self::SourcePort => "net.src.port",
            Self::DestinationPort => "net.dst.port",
            Self::Protocol => "net.protocol",
            Self::Zone => "zone",
        }
    }

    /// A comparison with it, as an example.
    pub const fn example(self) -> &'static str {
        match self {
            Self::SourceAddress => "net.src.ip in {10.1.0.0/16}",
            Self::DestinationAddress => "net.dst.ip in {203.0.113.0/24}",
            Self::SourcePort => "net.src.port in {1024..65535}",
            Self::DestinationPort => "net.dst.port == 443",
            Self::Protocol => "net.protocol == \"tcp\"",
            Self::Zone => "zone == \"shop.example\"",
        }
    }

    /// The field of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.name() == name)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a selector that Gateway knows is none here; `None` for a name that Gateway does not know either.
pub(super) fn undecidable(name: &str) -> Option<&'static str> {
    const KNOWN: [(&str, &str); 12] = [
        ("net.dst.geo", "where an address is, no packet says"),
        ("net.src.geo", "where an address is, no packet says"),
        ("net.fqdn", "packets carry addresses, not host names"),
        ("net.sni", "a connection's first packet names no server"),
        (
            "dns",
            "packets carry addresses, not the answers they came from",
        ),
        ("http", "requests come after the connection they come by"),
        ("app", "packets name no application"),
        ("identity", "packets name no user"),
        ("device_posture", "packets say nothing about the device"),
        (
            "net.detected_protocol",
            "it shows after the connection is open",
        ),
        ("net.vnet_id", "there are no virtual networks here"),
        ("access", "packets name no Access application"),
    ];
    KNOWN
        .into_iter()
        .find(|(prefix, _)| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[', '_']))
        })
        .map(|(_, why)| why)
}
