//! `[api]`: the HTTP listener (API-4). Without the section nothing listens.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::resolve;
use crate::document::Table;

/// Requests of one token in five minutes, as the clients of the original expect it.
const REQUESTS: u32 = 1_200;

/// Where the API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// Address and port; `127.0.0.1:8080` by default. Another address than loopback needs `tls`.
    pub listen: SocketAddr,
    /// Certificate and key; without them, plain HTTP.
    pub tls: Option<Tls>,
    /// Requests that one token may make in five minutes, 1,200 by default; further ones are answered 429.
    pub requests_per_five_minutes: u32,
}

/// What TLS needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// PEM file: the server's certificate, then those that lead to a root.
    pub certificate: PathBuf,
    /// PEM file: its private key.
    pub key: PathBuf,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            tls: None,
            requests_per_five_minutes: REQUESTS,
        }
    }
}

impl Api {
    pub(super) fn read(mut table: Table<'_, '_>, directory: &Path) -> Self {
        let mut api = Self::default();
        let listen = table.get("listen", "listen = \"127.0.0.1:8080\"");
        let address = listen.and_then(|value| value.parsed("an address and port"));
        api.listen = address.unwrap_or(api.listen);
        let mut file = |key, example| {
            table
                .get(key, example)
                .and_then(|value| value.name())
                .map(|path| resolve(directory, &path))
        };
        let certificate = file("certificate", "certificate = \"/etc/egress/api.crt\"");
        let key = file("key", "key = \"/etc/egress/api.key\"");
        if let Some(requests) = table
            .get(
                "requests_per_five_minutes",
                "requests_per_five_minutes = 1200",
            )
            .and_then(|value| value.integer(1..=1_000_000, "requests"))
        {
            api.requests_per_five_minutes = requests;
        }
        match (certificate, key) {
            (Some(certificate), Some(key)) => api.tls = Some(Tls { certificate, key }),
            (None, None) => {
                if let Some(value) = listen.filter(|_| !api.listen.ip().is_loopback()) {
                    value.refuse(
                        format!(
                            "{} is not a loopback address, and tokens would cross the network in clear (API-4)",
                            api.listen.ip()
                        ),
                        "add certificate and key (PEM files) for TLS, or listen on 127.0.0.1",
                    );
                }
            }
            (certificate, _) => {
                let missing = if certificate.is_some() {
                    "key"
                } else {
                    "certificate"
                };
                table.report().error(
                    table.span(),
                    format!("TLS needs certificate and key, and [api] has no `{missing}`"),
                    "name both PEM files, or none of them",
                );
            }
        }
        table.finish();
        api
    }
}
