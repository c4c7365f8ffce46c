//! TLS for listening beyond loopback (API-4).

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Tls;
use crate::control::Failure;

/// Reads certificate and key.
///
/// # Errors
/// When one cannot be read, or they do not belong together.
pub(super) fn acceptor(tls: &Tls) -> Result<TlsAcceptor, Failure> {
    let unreadable = |path: &Path, what: &str, error: &dyn std::fmt::Display| {
        Failure::failed(
            format!("cannot read the {what} {}: {error}", path.display()),
            format!("[api] {what} is the path of a PEM file that this user may read"),
        )
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(&tls.certificate)
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(&tls.certificate, "certificate", &error))?;
    if chain.is_empty() {
        let none = "there is no certificate in it";
        return Err(unreadable(&tls.certificate, "certificate", &none));
    }
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .map_err(|error| unreadable(&tls.key, "key", &error))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            Failure::failed(
                format!(
                    "certificate {} and key {} cannot be used: {error}",
                    tls.certificate.display(),
                    tls.key.display()
                ),
                "they must belong together; the certificate comes first in its file",
            )
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// What went wrong with a peer.
pub(super) fn handshake_failed(error: &io::Error) {
    tracing::debug!(%error, "a TLS handshake failed");
}
