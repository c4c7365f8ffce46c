//! Who is a server: whoever has the key of the certificate that all servers have. There is no authority that signs
//! anything, no name that is compared, and no date: the certificate itself is compared, bit by bit, by both ends.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};

use crate::config::Cluster;
use crate::control::Failure;

/// Both ends of TLS between servers.
#[derive(Clone, Debug)]
pub struct Trust {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    pub(super) port: u16,
}

impl Trust {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// When one cannot be read, or they do not belong together.
    pub fn read(config: &Cluster) -> Result<Self, Failure> {
        let unreadable = |path: &Path, what: &str, error: &dyn std::fmt::Display| {
            Failure::failed(
                format!("cannot read the {what} {}: {error}", path.display()),
                format!("[cluster] {what} is the path of a PEM file that this user may read"),
            )
        };
        let (certificate, key) = (&config.certificate, &config.key);
        let shown = CertificateDer::from_pem_file(certificate)
            .map_err(|error| unreadable(certificate, "certificate", &error))?;
        let key =
            PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, "key", &error))?;
        ends(shown, key)
            .map(|(client, server)| Self {
                client: Arc::new(client),
                server: Arc::new(server),
                port: config.port,
            })
            .map_err(|error| {
                Failure::failed(
                    format!(
                        "certificate {} and key {} cannot be used: {error}",
                        certificate.display(),
                        config.key.display()
                    ),
                    "they must belong together, and be the same on all servers",
                )
            })
    }
}

fn ends(
    shown: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<(ClientConfig, ServerConfig), Error> {
    let provider = Arc::new(ring::default_provider());
    let same = Arc::new(Same {
        certificate: shown.clone(),
        provider: Arc::clone(&provider),
    });
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::clone(&same) as Arc<dyn ClientCertVerifier>)
        .with_single_cert(vec![shown.clone()], key.clone_key())?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(same)
        .with_client_auth_cert(vec![shown], key)?;
    Ok((client, server))
}

/// Accepts the one certificate that all servers have; that the other end has its key, the handshake's signature shows.
#[derive(Debug)]
struct Same {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl Same {
    fn compare(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        if *shown == self.certificate {
            return Ok(());
        }
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    }
}

/// That the other end has the certificate's key is told the same way at both ends.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls12_signature(message, certificate, signed, algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let algorithms = &self.provider.signature_verification_algorithms;
            verify_tls13_signature(message, certificate, signed, algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            let algorithms = &self.provider.signature_verification_algorithms;
            algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Same {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.compare(shown)
            .map(|()| ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for Same {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.compare(shown)
            .map(|()| ClientCertVerified::assertion())
    }

    signatures!();
}
