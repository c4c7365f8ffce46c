//! `[tunnel]`: this server's end of the tunnel to the other servers, where the resources tell of any (FWD-6).

use super::interface_problem;
use crate::document::Table;

/// The VXLAN interface that the daemon makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Its name; `egress0` by default. It must not exist, or be ours.
    pub device: String,
    /// Its UDP port; 4789 by default (RFC 7348). The same on all servers.
    pub port: u16,
    /// Whether the other servers are asked by ICMP echoes whether they are there, and how far (FWD-3, FWD-7); true.
    pub probes: bool,
}

impl Default for Tunnel {
    fn default() -> Self {
        Self {
            device: "egress0".into(),
            port: 4789,
            probes: true,
        }
    }
}

impl Tunnel {
    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        let default = Self::default();
        let device = table
            .get("device", "device = \"egress0\"")
            .and_then(|value| {
                let name = value.name()?;
                if let Some(problem) = interface_problem(&name) {
                    value.refuse(
                        format!("\"{name}\" is no interface name: {problem}"),
                        "write, for instance, device = \"egress0\"",
                    );
                }
                Some(name)
            });
        let port = table
            .get("port", "port = 4789")
            .and_then(|value| value.integer(1..=u16::MAX.into(), ""))
            .and_then(|port| u16::try_from(port).ok());
        let probes = table
            .get("probes", "probes = true")
            .and_then(|value| value.boolean());
        table.finish();
        Self {
            device: device.unwrap_or(default.device),
            port: port.unwrap_or(default.port),
            probes: probes.unwrap_or(default.probes),
        }
    }
}
