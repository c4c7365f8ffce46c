//! Certificates towards etcd, and what is wrong with them, in words that name the file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use etcd_client::{Certificate, Identity, TlsOptions};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Etcd;

/// The files by which etcd and this server know each other.
#[derive(Debug)]
pub(super) struct Tls {
    ca: Option<PathBuf>,
    /// Certificate and key.
    identity: Option<(PathBuf, PathBuf)>,
}

/// How etcd takes leave of a client that it does not know; which of it is a matter of luck.
const ENDED: [&str; 4] = [
    "fatal alert",
    "connection closed",
    "onnection reset",
    "roken pipe",
];

pub(super) fn file(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

impl Tls {
    /// None where no member is reached by TLS.
    pub(super) fn of(config: &Etcd) -> Option<Self> {
        let secure = |at: &String| at.starts_with("https:");
        let identity = config.certificate.clone().zip(config.key.clone());
        config.endpoints.iter().any(secure).then(|| Self {
            ca: config.ca.clone(),
            identity,
        })
    }

    /// # Errors
    /// A file cannot be read, or is not what it is said to be.
    pub(super) fn options(&self) -> Result<TlsOptions, String> {
        let mut tls = TlsOptions::new();
        if let Some(path) = &self.ca {
            let bytes = file(path)?;
            chain(path, &bytes, "etcd_ca")?;
            tls = tls.ca_certificate(Certificate::from_pem(bytes));
        }
        if let Some((certificate, key)) = &self.identity {
            let (first, second) = (file(certificate)?, file(key)?);
            belong_together((certificate, &first), (key, &second))?;
            tls = tls.identity(Identity::from_pem(first, second));
        }
        Ok(tls)
    }

    /// What went wrong with the file that may be to blame, if one may be.
    pub(super) fn explain(&self, text: &str) -> Option<String> {
        if text.contains("UnknownIssuer") {
            return Some(match &self.ca {
                Some(ca) => format!(
                    "its certificate is of no authority in {} (`etcd_ca`): {text}",
                    ca.display()
                ),
                None => format!("no authority is trusted, since `etcd_ca` names none: {text}"),
            });
        }
        let is_ended = ENDED.into_iter().any(|word| text.contains(word));
        is_ended.then(|| match &self.identity {
            Some((certificate, _)) => format!(
                "{text} (perhaps it does not take {}, `etcd_certificate`)",
                certificate.display()
            ),
            None => {
                // One that speaks no TLS has no alerts, and may reset the connection, too.
                let or = if text.contains(ENDED[0]) {
                    ""
                } else {
                    "; or http:// instead of https://?"
                };
                format!(
                    "{text} (perhaps it wants a certificate: `etcd_certificate`, `etcd_key`{or})"
                )
            }
        })
    }
}

fn chain(path: &Path, bytes: &[u8], field: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let found =
        found.map_err(|error| format!("{} (`{field}`) cannot be used: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!(
            "there is no certificate in {} (`{field}`, PEM)",
            path.display()
        ));
    }
    Ok(found)
}

fn belong_together(
    (certificate, first): (&Path, &[u8]),
    (key, second): (&Path, &[u8]),
) -> Result<(), String> {
    let chain = chain(certificate, first, "etcd_certificate")?;
    let private = PrivateKeyDer::from_pem_slice(second)
        .map_err(|error| format!("{} (`etcd_key`) cannot be used: {error}", key.display()))?;
    // Whoever can be a server with them can be a client.
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain, private)
        })
        .map(drop)
        .map_err(|error| {
            format!(
                "{} and {} (`etcd_certificate`, `etcd_key`) cannot be used together: {error}",
                certificate.display(),
                key.display()
            )
        })
}
