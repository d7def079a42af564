//! TLS without verification: a probe asks whether the guest answers, not who it is.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, ClientConnection, Resumption};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, SignatureScheme, StreamOwned};

use crate::handlers::deadline::DeadlineStream;
use crate::handlers::resolve::Host;

/// The configuration of all connections, made for the first one.
#[derive(Debug, Default)]
pub struct Tls {
    config: OnceLock<Arc<ClientConfig>>,
}

impl Tls {
    /// A TLS connection on this stream. The handshake comes with the first bytes that are sent.
    ///
    /// # Errors
    ///
    /// The error of the TLS library.
    pub fn connect(&self, stream: DeadlineStream, host: &Host, peer: IpAddr) -> io::Result<TlsStream> {
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.clone()).ok(),
            Host::Address(_) => None,
        };
        // The name of an address is not sent.
        let name = name.unwrap_or(ServerName::IpAddress(peer.into()));
        let config = match self.config.get() {
            Some(config) => config,
            None => {
                let config = config().map_err(io::Error::other)?;
                self.config.get_or_init(|| config)
            }
        };
        let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(TlsStream(StreamOwned::new(connection, stream)))
    }
}

fn config() -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate)).with_no_client_auth();
    // A probe never continues the session of an earlier one.
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

pub struct TlsStream(StreamOwned<ClientConnection, DeadlineStream>);

impl Read for TlsStream {
    /// A server that closes without the alert of TLS ends the stream too: the length of a body tells whether it is whole.
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.0.read(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && !self.0.conn.is_handshaking() => Ok(0),
            result => result,
        }
    }
}

impl Write for TlsStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Accepts every certificate, also one that cannot be parsed, and every signature.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        use SignatureScheme::*;
        vec![
            ECDSA_NISTP256_SHA256,
            ECDSA_NISTP384_SHA384,
            ECDSA_NISTP521_SHA512,
            ED25519,
            ED448,
            RSA_PSS_SHA256,
            RSA_PSS_SHA384,
            RSA_PSS_SHA512,
            RSA_PKCS1_SHA256,
            RSA_PKCS1_SHA384,
            RSA_PKCS1_SHA512,
            RSA_PKCS1_SHA1,
            ECDSA_SHA1_Legacy,
        ]
    }
}
