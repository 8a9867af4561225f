//! Which certificates are trusted: those that the system's authorities vouch for, those that a
//! `ca_file` vouches for, and those that stand in a `ca_file` themselves.
//!
//! The last are self-signed certificates as `openssl req -x509` makes them, marked as authorities.
//! The verifier of the platform refuses to take an authority for a server; `curl` and `skopeo`
//! accept it, since the user has named this very certificate.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use rustls_platform_verifier::Verifier;

/// A TLS configuration that trusts the system's authorities and the certificates in `pem`. `client`
/// is a client certificate with its key, both as PEM. An error says which of them is wrong.
pub(super) fn config(pem: &[u8], client: Option<(&[u8], &[u8])>) -> Result<ClientConfig, String> {
    let named = certificates(pem)?;
    let provider = Arc::new(ring::default_provider());
    let platform = Verifier::new_with_extra_roots(named.clone(), provider.clone())
        .map_err(|e| e.to_string())?;
    let verifier = Arc::new(Trust { platform, named });
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match client {
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| e.to_string())?;
            builder.with_client_auth_cert(certificates(chain)?, key).map_err(|e| e.to_string())?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match read {
        Ok(found) if found.is_empty() => Err("no certificate in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

/// The platform's verifier, and the certificates that the user has named.
#[derive(Debug)]
struct Trust {
    platform: Verifier,
    named: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Whether all that is wrong with `certificate` is that it is marked as an authority, and the
    /// user has named it.
    fn is_named(&self, certificate: &CertificateDer<'_>, error: &Error) -> bool {
        let Error::InvalidCertificate(CertificateError::Other(reason)) = error else {
            return false;
        };
        // Its time has been checked before; its name is checked by the caller.
        reason.to_string().contains("CaUsedAsEndEntity") && self.named.contains(certificate)
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.platform.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verified {
            Err(error) if self.is_named(end_entity, &error) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.platform.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.platform.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.platform.supported_verify_schemes()
    }
}

/// Makes the process's choice of cryptography, which `reqwest` asks for.
pub(in crate::backend) fn choose_provider() {
    if CryptoProvider::get_default().is_none() {
        // Fails if another thread is faster, which is as good.
        let _ = ring::default_provider().install_default();
    }
}
