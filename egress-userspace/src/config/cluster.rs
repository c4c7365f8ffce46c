//! `[cluster]`: how the servers' daemons ask each other, where the resources tell of any (CLU-1, OBS-2).

use std::path::{Path, PathBuf};

use super::resolve;
use crate::document::Table;

/// The port after that of VXLAN, but of TCP.
const PORT: u16 = 4790;

/// How the daemons of the servers ask each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// PEM file: one certificate, the same on all servers; whoever has its key is a server.
    pub certificate: PathBuf,
    /// PEM file: its private key.
    pub key: PathBuf,
    /// The TCP port at the servers' tunnel addresses; 4790 by default, the same on all servers.
    pub port: u16,
}

impl Cluster {
    pub(super) fn read(mut table: Table<'_, '_>, directory: &Path) -> Self {
        let mut file = |key, example| {
            let path = table.require(key, example).and_then(|value| value.name());
            resolve(directory, path.as_deref().unwrap_or_default())
        };
        let certificate = file("certificate", "certificate = \"/etc/egress/cluster.crt\"");
        let key = file("key", "key = \"/etc/egress/cluster.key\"");
        let port = table
            .get("port", "port = 4790")
            .and_then(|value| value.integer(1..=u16::MAX.into(), ""))
            .and_then(|port| u16::try_from(port).ok());
        table.finish();
        Self {
            certificate,
            key,
            port: port.unwrap_or(PORT),
        }
    }
}
