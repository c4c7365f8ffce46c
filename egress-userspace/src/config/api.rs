//! `[api]`: the HTTP listener (API-4). Read and checked, but not served by this version.

use std::net::SocketAddr;

use crate::document::Table;

/// Where the API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Api {
    /// Address and port; `127.0.0.1:8080` by default.
    pub listen: SocketAddr,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
        }
    }
}

impl Api {
    pub(super) fn read(mut table: Table<'_, '_>) -> Self {
        table.report().warning(
            table.span(),
            "[api] has no effect: the HTTP API is not available in this version",
            "use the command line; the section may stay for a later version",
        );
        let listen = table
            .get("listen", "listen = \"127.0.0.1:8080\"")
            .and_then(|value| value.parsed("an address and port"));
        table.finish();
        listen.map_or_else(Self::default, |listen| Self { listen })
    }
}
